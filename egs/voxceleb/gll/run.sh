#!/usr/bin/env bash
# GLL, two-stage semi-supervised learning from a few labels per speaker (Wang et al., IJCAI 2024). Stage I: contrastive
# pre-training with augmentation adversarial training. Stage II, gated label learning: constrained k-means gives every
# unlabeled utterance a labeled speaker, then training goes through the phases T (all utterances pass), V (the
# prediction must be the label) and L (the confidence must pass a flexible threshold), and starts again. With
# --baseline NAME, conf/baselines/NAME.yaml is trained instead of Stage II. The dev EER ends phases and chooses epochs.
# Here at full size: VoxCeleb2 without its labels, tested on VoxCeleb1; MUSAN and simulated rooms as noise.
#   run.sh [--labels-per-spk 2] [--baseline fixmatch] ...
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
labels_per_spk=10   # number of labeled utterances per speaker, from 1
baseline=           # name of a config in conf/baselines to train instead of GLL; empty: GLL
use_labels=few      # data of a baseline (few|only|all): few labels and the unlabeled rest, few labels only, all labels
start_from=pretrain # start of a baseline (pretrain|scratch): the model of Stage I, or random weights
threshold_from=     # folder of a FixMatch model; the gate's threshold is its mean confidence times a factor
threshold_factor=0.9 # the factor; the mean is that of the epoch with the highest one
num_rounds=5        # number of GLL's iterations, from 1
phases=(T V L)      # phases of an iteration; their gates are conf/gates/<phase>.yaml
phase_epochs=()     # maximum epochs of each phase, such as "4 3 3"; empty: from conf/semi.yaml
phase_rates=()      # learning rates of the phases, such as "2e-3 5e-4 5e-4"; empty: from conf/semi.yaml
patience=3          # end a phase or a baseline after this many epochs without a lower dev EER; the best epoch is used
cluster_opts=()     # options of bin.seeded_cluster, such as "--whiten 0.5"
label_noise=0.0     # experiment: share of the first pseudo-labels to make wrong; round1/corrupted lists them
pretrain_opts=()    # settings of stage 3, such as "epochs=3 optim.lr=1e-3"
learn_opts=()       # settings of stage 4
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
vox1=               # folder of VoxCeleb1: dev/wav, test/wav
vox2=               # folder of VoxCeleb2: dev/wav or dev/aac, as .wav or .flac
convert_m4a=false   # convert the .m4a files of VoxCeleb2's dev/aac into .flac files of dev/wav, in nj jobs
trials=()           # files veri_test2.txt (O), list_test_all2.txt (E) and list_test_hard2.txt (H), or NAME=FILE
num_dev_spk=40      # number of dev speakers, from 2
musan=              # folder of MUSAN: noise, speech, music
rirs=               # folder of simulated room impulse responses
# -- end of options
. parse_options.sh
cd "$SPKV_ROOT"
$dry_run || [ -n "${SPKV_PYTHON:-}" ] || utils/setup_env.sh
truth=$data/truth/train_utt2spk
noise=(augment.noise_list="$data/musan_noise" augment.babble_list="$data/musan_speech"
  augment.music_list="$data/musan_music" augment.rir_list="$data/rirs")

if stage 1 "data directories and noise lists"; then
  log_run "$recipe/local/data.sh" --vox1 "$vox1" --vox2 "$vox2" --num-dev-spk "$num_dev_spk" --musan "$musan" \
    --rirs "$rirs" --convert-m4a "$convert_m4a" --cmd "$train_cmd" --nj "$nj" "$data" "${trials[@]}"
fi

# -- the same in every gll recipe from here on (utils/sync_recipes.sh)
[ "$start_from" = pretrain ] || [ -n "$baseline" ] || po_die "--start-from scratch is for a --baseline"
read -ra cpu <<< "$train_cmd"
train_opts=(--cmd "$cuda_cmd" --ngpu "$ngpu")
! $allow_pipes || train_opts+=(--allow-pipes true)
extract_opts=("${train_opts[@]}" --nj "$nj")
[ "$num_nodes" -eq 1 ] || train_opts+=(--num-nodes "$num_nodes")
settings=(seed="$seed" rooms_dir="$exp/rooms" "${noise[@]}")
split=$exp/split threshold=() systems=()
[ "$start_from" = scratch ] || systems=("$exp/pretrain/model")
[ -z "$threshold_from" ] || threshold=("$exp/threshold.yaml")
if [ -n "$baseline" ]; then
  systems+=("$exp/baseline/model@best") cohort=
else
  for r in $(seq "$num_rounds"); do systems+=("$exp/round$r/model@best"); done
  cohort=$exp/round$num_rounds/data_out
fi
[ -z "$reuse" ] || log_run python -m pyspkv.bin.reuse --from "$reuse" --exp "$exp" --stage "$stage"

if stage 2 "check the data directories"; then
  log_run python -m pyspkv.bin.datadir validate --no-text --no-feats "$data/train" "$data/dev" "$data/test"
fi

if [ "$start_from" = pretrain ] && stage 3 "Stage I: pre-train without labels"; then
  log_run steps/train.sh "${train_opts[@]}" "$conf/encoder.yaml" "$conf/pretrain.yaml" "$data/train" \
    "$exp/pretrain/model" "${settings[@]}" "${pretrain_opts[@]}"
fi

learn=(steps/train.sh "${train_opts[@]}" --dev "$data/dev" --patience "$patience")
if stage 4 "Stage II: ${baseline:-GLL} from $labels_per_spk labels per speaker"; then
  log_run python -m pyspkv.bin.datadir split-labels --seed "$seed" "$data/train_labeled" "$labels_per_spk" "$split"
  [ -z "$threshold_from" ] ||
    log_run python -m pyspkv.bin.query threshold --factor "$threshold_factor" --out "${threshold[0]}" "$threshold_from"
  if [ -z "$baseline" ]; then
    from=$exp/pretrain
    for r in $(seq "$num_rounds"); do
      noise_opts=() start=$exp/pretrain/model keep_head=false trained=()
      { [ "$r" -gt 1 ] || [ "$label_noise" = 0.0 ]; } || noise_opts=(--label-noise "$label_noise")
      log_run steps/extract.sh "${extract_opts[@]}" "${systems[r - 1]}" --data "$data/train"
      log_run "${cpu[@]}" --show true "$exp/round$r/data.log" \
        python -m pyspkv.bin.seeded_cluster --embeddings "$from/embed/train/embedding.scp" \
        --labeled-data "$split/labeled" --unlabeled "$split/unlabeled" --out-data "$exp/round$r/data" \
        "${cluster_opts[@]}" "${noise_opts[@]}"
      for i in "${!phases[@]}"; do
        phase=${phases[i]} more=() gate=("$conf/gates/${phases[i]}.yaml")
        [ "$phase" != F ] || gate+=("${threshold[@]}")
        [ -z "${phase_epochs[i]:-}" ] || more+=(epochs="${phase_epochs[i]}")
        [ -z "${phase_rates[i]:-}" ] || more+=(optim.lr="${phase_rates[i]}")
        log_run "${learn[@]}" --init "$start" --keep-head $keep_head --unlabeled "$exp/round$r/data" \
          "$conf/encoder.yaml" "$conf/semi.yaml" "${gate[@]}" "$split/labeled" \
          "$exp/round$r/$phase/model" "${settings[@]}" "${more[@]}" "${learn_opts[@]}"
        start=$exp/round$r/$phase/model@best keep_head=true trained+=("$exp/round$r/$phase/model")
      done
      log_run python -m pyspkv.bin.query best --link "$exp/round$r/model" "${trained[@]}"
      from=$exp/round$r
    done
    log_run steps/extract.sh "${extract_opts[@]}" "${systems[num_rounds]}" --data "$data/train"
    log_run "${cpu[@]}" --show true "$cohort.log" \
      python -m pyspkv.bin.seeded_cluster --embeddings "$from/embed/train/embedding.scp" --with-labeled \
      --labeled-data "$split/labeled" --unlabeled "$split/unlabeled" --out-data "$cohort" \
      --report "$from/report_out.json" "${cluster_opts[@]}"
  else
    start=$exp/pretrain/model few=$split/labeled rest=(--unlabeled "$split/unlabeled") steps=()
    [ "$start_from" = pretrain ] || start=
    [ "$use_labels" = few ] || rest=()
    [ "$use_labels" != all ] || few=$data/train_labeled
    if [ "$use_labels" = only ]; then # train for as many steps as with unlabeled utterances
      steps=("$exp/steps.yaml")
      log_run python -m pyspkv.bin.query steps --config "$conf/encoder.yaml" "$conf/semi.yaml" \
        --labeled-data "$split/labeled" --unlabeled "$split/unlabeled" --out "$exp/steps.yaml"
    fi
    log_run "${learn[@]}" --init "$start" "${rest[@]}" "$conf/encoder.yaml" "$conf/semi.yaml" \
      "$conf/baselines/$baseline.yaml" "${threshold[@]}" "${steps[@]}" "$few" "$exp/baseline/model" \
      "${settings[@]}" "${learn_opts[@]}"
  fi
fi

# GLL has no stage 5.

if stage 6 "extract embeddings"; then # also of train: its pseudo-speakers are the AS-norm cohort
  log_run steps/extract.sh "${extract_opts[@]}" "${systems[@]}" --data "$data/train" "$data/dev" "$data/test"
fi

folders=("${systems[@]%/model*}")
if stage 7 "score"; then
  log_run steps/score.sh --cmd "$train_cmd" --dev "$data/dev" --cohort-data "$cohort" "${folders[@]}" "$data/test" test
fi

if stage 8 "report"; then
  log_run python -m pyspkv.bin.gate_curves --exp "$exp" --out "$exp/plots/gates.json" \
    --unlabeled "$split/unlabeled" --truth "$split/truth/unlabeled_utt2spk"
  log_run steps/report.sh --truth "$truth" "$exp" "${compare_with[@]}"
fi
