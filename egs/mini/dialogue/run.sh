#!/usr/bin/env bash
# Human-machine dialogues without speaker labels, with soft rejection (arXiv 2202.03484). The loss pulls utterances of a
# dialogue together and pushes those of other devices apart; less compact dialogues have a lower weight. Then GE2E on a
# few labeled speakers; dev speakers choose the epoch. --dry-run true prints every command.
# Here on a corpus that the recipe synthesizes itself; minutes on two CPU cores.
#   run.sh [--mode household] [--mixed-percent 50] [--num-labeled-spk 12] ...
set -euo pipefail
recipe=${SPKV_RECIPE:-$(dirname "$(readlink -f "$0")")}
[ -d "$recipe/conf" ] || recipe=$PWD # sbatch runs a copy of run.sh; its folder is the recipe's
[ -d "$recipe/conf" ] || { echo "$0: set SPKV_RECIPE to the folder of the recipe" >&2; exit 1; }
. "$recipe/path.sh"
# shellcheck source=egs/TEMPLATE/cmd.sh
. "$recipe/cmd.sh"

# -- options of the method
stage=1             # first stage, from 1 (data, check, pre-train, learn, fine-tune, extract, score, report)
stop_stage=8        # last stage, from 1
mode=random         # devices (random|household): one per speaker, or two speakers share one
mixed_percent=10    # percentage of dialogues with a second speaker (household: from the same household)
dialogue_opts=()    # further options of bin.simulate_dialogues
encoder=            # file of the encoder's config; empty: conf/encoder.yaml
pretrain=           # file of the config of stage 3; empty: conf/pretrain.yaml
train_set=train     # dialogues that stage 3 trains on; train_labeled has true speakers
finetune=true       # run stage 5
joint=false         # stage 5 trains on labeled speakers and dialogues together, from scratch (conf/joint.yaml)
num_labeled_spk=12  # number of labeled speakers for fine-tuning, from 1
pretrain_opts=()    # settings of stage 3, such as "epochs=3 optim.lr=1e-3"
finetune_opts=()    # settings of stage 5
reuse=              # folder of another experiment; its finished phases before --stage are reused
compare_with=()     # folders of experiments that the report compares with this one
seed=0              # seed of training and clustering
nj=2                # parallel jobs, from 1
ngpu=0              # GPUs; 0 uses the CPU
num_nodes=1         # machines of a training, from 1, each with these GPUs; more than one need cmd_backend=slurm
allow_pipes=false   # run the commands in wav.scp
exp=$recipe/exp     # folder of results
data=$recipe/data   # folder of the data directories
conf=$recipe/conf   # folder of the configs
dry_run=false       # only print the commands
# -- options of the corpus
num_train_spk=100   # speakers of the synthesized corpus
num_dev_spk=20
num_test_spk=40
mini_opts=()        # further options of local/mini.py
# -- end of options
. parse_options.sh
cd "$SPKV_ROOT"
$dry_run || [ -n "${SPKV_PYTHON:-}" ] || utils/setup_env.sh
noise=(augment.noise_list="$data/noise") truth=
speech=$data dialogues=$data/$mode-$mixed_percent
mixed=(--mixed "$dialogues/truth/dialogue2mixed")

if stage 1 "synthesize the corpus, simulate dialogues"; then
  log_run "$recipe/local/data.sh" --nj "$nj" --num-train-spk "$num_train_spk" --num-dev-spk "$num_dev_spk" \
    --num-test-spk "$num_test_spk" --num-labeled-spk "$num_labeled_spk" --mode "$mode" \
    --mixed-percent "$mixed_percent" \
    --dialogue-opts "${dialogue_opts[*]}" "$speech" "$dialogues" "${mini_opts[@]}"
fi

# -- the same in every dialogue recipe from here on (utils/sync_recipes.sh)
[ "$mixed_percent" -le 100 ] || po_die "--mixed-percent is a percentage, not '$mixed_percent'"
read -ra cuda <<< "$cuda_cmd"
train_opts=(--cmd "$cuda_cmd" --ngpu "$ngpu")
! $allow_pipes || train_opts+=(--allow-pipes true)
extract_opts=("${train_opts[@]}" --nj "$nj")
[ "$num_nodes" -eq 1 ] || train_opts+=(--num-nodes "$num_nodes")
settings=(seed="$seed" rooms_dir="$exp/rooms" "${noise[@]}")
encoder=${encoder:-$conf/encoder.yaml}
[ "$num_labeled_spk" -ge 12 ] || finetune_opts=(batch_size=$((4 * num_labeled_spk)) "${finetune_opts[@]}")
[ -z "$reuse" ] || log_run python -m pyspkv.bin.reuse --from "$reuse" --exp "$exp" --stage "$stage"

if stage 2 "check the data directories"; then
  log_run python -m pyspkv.bin.datadir validate --no-text --no-feats "$dialogues/train" "$speech/dev" "$speech/test"
  log_run python -m pyspkv.bin.datadir validate --no-text --no-feats "$speech/labeled-$num_labeled_spk" \
    --disjoint "$speech/test"
fi

if stage 3 "pre-train on dialogues"; then
  log_run steps/train.sh "${train_opts[@]}" "$encoder" "${pretrain:-$conf/pretrain.yaml}" \
    "$dialogues/$train_set" "$exp/pretrain/model" "${settings[@]}" "${pretrain_opts[@]}"
fi

if stage 4 "rank the dialogues by compactness"; then
  log_run "${cuda[@]}" --gpu $((ngpu > 0)) --show true "$exp/pretrain/dialogues.log" \
    python -m pyspkv.bin.score_dialogues --model "$exp/pretrain/model" --data "$dialogues/train" \
    "${mixed[@]}" --out "$exp/pretrain/dialogues"
fi

models=("$exp/pretrain/model")
! $finetune || models+=("$exp/finetune/model@best")
if $finetune && stage 5 "fine-tune on $num_labeled_spk labeled speakers"; then
  if $joint; then
    how=(--unlabeled "$dialogues/train") config=$conf/joint.yaml
  else
    how=(--init "$exp/pretrain/model") config=$conf/finetune.yaml
  fi
  log_run steps/train.sh "${train_opts[@]}" "${how[@]}" --dev "$speech/dev" "$encoder" "$config" \
    "$speech/labeled-$num_labeled_spk" "$exp/finetune/model" "${settings[@]}" "${finetune_opts[@]}"
fi

if stage 6 "extract embeddings"; then
  log_run steps/extract.sh "${extract_opts[@]}" "${models[@]}" --data "$speech/dev" "$speech/test"
fi

if stage 7 "score"; then
  log_run steps/score.sh --cmd "$train_cmd" --dev "$speech/dev" "${models[@]%/model*}" "$speech/test" test
fi

if stage 8 "report"; then
  log_run steps/report.sh --truth "$truth" "$exp" "${compare_with[@]}"
fi
