#!/usr/bin/env bash
# Speaker verification without speaker labels: contrastive pre-training, rounds of clustering and training on the
# clusters, large-margin fine-tuning. Round r is the folder exp/round<r>: data/ (a data directory whose utt2spk is the
# clusters), model/, report.json. Run it again to go on where it stopped; --dry-run true prints every command.
# Here on speechocean762: 101 training, 24 dev and 125 test speakers. Speech Commands and LibriSpeech are
# further test sets.
#   run.sh [--stage 1] [--stop-stage 8] [--exp DIR] ...
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
round=1             # first round of stage 4, from 1
num_rounds=2        # number of rounds, from 1
num_pretrain=1      # number of independent pre-trainings, from 1; their embeddings are joined for the first clusters
num_clusters=auto   # number of pseudo-speakers; auto estimates it without labels
cluster_opts=(--whiten 0.5) # options of bin.cluster
ensemble=false      # cluster the joined embeddings of all earlier phases, not only of the last one
dev_curve=false     # measure the dev EER after every epoch of stage 4, for the plots only
finetune=false      # run stage 5
crops=0             # number of 4 s crops to score with, in addition to the whole utterance; 0: none
qmf=false           # score with quality measures, too (NAME-qmf; fitted on dev)
also_test=()        # further test sets in --data, scored like test
versus=pretrain     # phase, such as pretrain, with which all EERs are compared (paired); empty: none
pretrain_opts=()    # settings of stage 3, such as "epochs=3 optim.lr=1e-3"
round_config=       # config of stage 4; empty: conf/early_round.yaml, and conf/round.yaml for the last round
round_opts=()       # settings of stage 4
finetune_opts=()    # settings of stage 5
reuse=              # folder of another experiment; its finished phases before --stage and --round are reused
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
corpus=${SPKV_CORPORA:+$SPKV_CORPORA/speechocean762} # folder that holds train/, test/ and the lists of speakers
words=${SPKV_CORPORA:+$SPKV_CORPORA/speech_commands} # folder of Speech Commands; empty: without it
librispeech=${SPKV_CORPORA:+$SPKV_CORPORA/librispeech_subset/LibriSpeech} # folder with test-other/; empty: without
trials=${SPKV_CORPORA:+$SPKV_CORPORA/trials} # folder of the given trial lists; empty: they are made
noise_audio=(${SPKV_CORPORA:+"$SPKV_CORPORA/noise/boiler.wav"}) # files of training noise
# -- end of options
. parse_options.sh
cd "$SPKV_ROOT"
$dry_run || [ -n "${SPKV_PYTHON:-}" ] || utils/setup_env.sh
truth=$data/truth/train_utt2spk noise=()
[ ${#noise_audio[@]} -eq 0 ] || noise=(augment.noise_list="$data/noise")
[ -z "$words" ] || also_test+=(speech_commands_test)
[ -z "$librispeech" ] || also_test+=(librispeech_test)

if stage 1 "data directories from the corpus"; then
  log_run "$recipe/local/data.sh" --corpus "$corpus" --words "$words" --librispeech "$librispeech" \
    --trials "$trials" "$data" "${noise_audio[@]}"
fi

# -- the same in every ssl recipe from here on (utils/sync_recipes.sh)
train_opts=(--cmd "$cuda_cmd" --ngpu "$ngpu")
! $allow_pipes || train_opts+=(--allow-pipes true)
extract_opts=("${train_opts[@]}" --nj "$nj")
[ "$num_nodes" -eq 1 ] || train_opts+=(--num-nodes "$num_nodes")
settings=(seed="$seed" rooms_dir="$exp/rooms" "${noise[@]}")
tests=("$data/test" "${also_test[@]/#/$data/}")
pretrained=("$exp/pretrain") rounds=() dev=()
for i in $(seq 2 "$num_pretrain"); do pretrained+=("$exp/pretrain$i"); done
for r in $(seq "$num_rounds"); do rounds+=("$exp/round$r"); done
! $dev_curve || dev=(--dev "$data/dev")
[ -z "$reuse" ] || log_run python -m pyspkv.bin.reuse --from "$reuse" --exp "$exp" --stage "$stage" --round "$round"

eval_sets=() dev_opts=() unscored=true # without dev or test, all other work is still done
has() { [ -e "$data/$1" ] || [ ! -d "$data/train" ]; } # before stage 1, a dry run assumes that it exists
! has dev || { eval_sets+=("$data/dev"); dev_opts=(--dev "$data/dev"); }
! $qmf || { has dev || po_die "--qmf true needs $data/dev"; dev_opts+=(--qmf true); }
! has test || { eval_sets+=("${tests[@]}"); unscored=false; }

if stage 2 "check the data directories"; then
  log_run python -m pyspkv.bin.datadir validate --no-text --no-feats "$data/train" "${eval_sets[@]}"
fi

if stage 3 "pre-train without labels"; then
  for i in $(seq "$num_pretrain"); do
    other_seed=()
    [ "$i" -eq 1 ] || other_seed=(seed=$((seed + 1000 * i)))
    log_run steps/train.sh "${train_opts[@]}" "$conf/encoder.yaml" "$conf/pretrain.yaml" "$data/train" \
      "${pretrained[i - 1]}/model" "${settings[@]}" "${other_seed[@]}" "${pretrain_opts[@]}"
  done
fi

if stage 4 "rounds of clustering and training"; then
  for r in $(seq "$round" "$num_rounds"); do
    if [ "$r" -eq 1 ]; then
      labels_from=("${pretrained[@]}") previous=()
    else
      labels_from=("$exp/round$((r - 1))") previous=(--previous "$exp/round$((r - 1))/data")
      ! $ensemble || labels_from+=("${pretrained[@]}" "${rounds[@]:0:r-2}")
    fi
    config=${round_config:-$conf/round.yaml}
    [ -n "$round_config" ] || [ "$r" -eq "$num_rounds" ] || config=$conf/early_round.yaml
    log_run steps/extract.sh "${extract_opts[@]}" "${labels_from[@]/%//model}" --data "$data/train"
    log_run steps/cluster.sh --cmd "$train_cmd" --num-clusters "$num_clusters" --seed "$seed" "${previous[@]}" \
      "${labels_from[@]/%//embed/train/embedding.scp}" "$data/train" "$exp/round$r/data" "${cluster_opts[@]}"
    log_run steps/train.sh "${train_opts[@]}" "${dev[@]}" --init "$exp/pretrain/model" "$conf/encoder.yaml" "$config" \
      "$exp/round$r/data" "$exp/round$r/model" "${settings[@]}" "${round_opts[@]}"
  done
fi

systems=("${pretrained[@]}" "${rounds[@]}")
! $finetune || systems+=("$exp/finetune")
if $finetune && stage 5 "large-margin fine-tuning of the last round"; then
  log_run steps/train.sh "${train_opts[@]}" --init "$exp/round$num_rounds/model" --keep-head true "$conf/encoder.yaml" \
    "$conf/finetune.yaml" "$exp/round$num_rounds/data" "$exp/finetune/model" "${settings[@]}" "${finetune_opts[@]}"
fi

if stage 6 "extract embeddings"; then # also of train: its pseudo-speakers are the AS-norm cohort
  log_run steps/extract.sh "${extract_opts[@]}" "${systems[@]/%//model}" --data "$data/train" "${eval_sets[@]}"
  $unscored || [ "$crops" -eq 0 ] ||
    log_run steps/extract.sh "${extract_opts[@]}" --crops "$crops" "${systems[@]/%//model}" --data "${tests[@]}"
fi

has dev || echo "there is no $data/dev: nothing is calibrated, and no model has a dev EER"
! $unscored || echo "there is no $data/test: nothing is scored, and the report holds labels and training alone"
if ! $unscored && stage 7 "score"; then
  use_crops=false
  [ "$crops" -eq 0 ] || use_crops=true
  for name in test "${also_test[@]}"; do
    log_run steps/score.sh --cmd "$train_cmd" "${dev_opts[@]}" --cohort-data "$exp/round$num_rounds/data" \
      --crops "$use_crops" --compare "${versus:+$exp/$versus}" "${systems[@]}" "$data/$name" "$name"
  done
fi

if stage 8 "report"; then
  log_run steps/report.sh --truth "$truth" --unscored "$unscored" "$exp" "${compare_with[@]}"
fi
