#!/usr/bin/env bash
# Pseudo-labels for a large pre-trained trunk (arXiv 2406.02285): DINO, clusters of its embeddings, AAM-softmax training
# of the student with loss gate and label correction, clusters of its embeddings, again, large-margin fine-tuning. At
# full size: VoxCeleb2 without its labels, tested on VoxCeleb1. run.sh [--trunk FILE.pt] [--student conf/trunk.yaml]
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
num_rounds=3        # number of rounds, from 1
trunk=              # file WavLM-Base+.pt, or folder of a Hugging Face model: a wavlm or trunk student starts from it
student=()          # files of settings for stages 4 and 5, as egs/voxceleb/trunk_ssl/conf/trunk.yaml for another trunk
embeddings=         # file of published embeddings of train, for the first clusters: nothing is pre-trained
labels=             # file of published pseudo-labels, as "label path" lines, for round 1: nothing is pre-trained
trunk_layers=       # number of lowest layers of the trunk that give its own embeddings; empty: all
labels_from=pretrain # source of the first clusters (pretrain|trunk|both): stage 3's model, the trunk as it is
round_init=none     # start of the rounds (pretrain|none): stage 3's model; none: the trunk, or from scratch
num_clusters=7500   # number of pseudo-speakers; auto estimates it without labels
cluster_opts=()     # options of bin.cluster
finetune=true       # run stage 5
label_noise=0.0     # experiment: share of each round's labels to make wrong; round<r>/corrupted lists them
also_test=()        # further sets of --data that have trials, scored as test is
versus=             # phase that the EERs of the others are compared to, paired, as pretrain; empty: none
crops=15            # number of 4 s crops to score with, in addition to the whole utterance; 0: none
qmf=false           # score with quality measures, too (NAME-qmf; fitted on dev)
pretrain_opts=()    # settings of stage 3, such as "epochs=3 optim.lr=1e-3"
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
vox1=               # folder of VoxCeleb1: dev/wav, test/wav
vox2=               # folder of VoxCeleb2: dev/wav or dev/aac, as .wav or .flac
convert_m4a=false   # convert the .m4a files of VoxCeleb2's dev/aac into .flac files of dev/wav, in nj jobs
trials=()           # files veri_test2.txt (O), list_test_all2.txt (E) and list_test_hard2.txt (H), or NAME=FILE
num_dev_spk=40      # number of dev speakers, from 2; 0: no dev, and nothing is calibrated
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

# -- the same in every trunk_ssl recipe from here on (utils/sync_recipes.sh)
[ "$labels_from" = pretrain ] || [ -n "$trunk" ] || po_die "--labels-from $labels_from needs --trunk"
pretrains=true systems=()
[ -z "$embeddings" ] || [ -z "$labels" ] || po_die "give --embeddings or --labels, not both"
[ -z "$embeddings$labels" ] || pretrains=false labels_from=imported round_init=none
train_opts=(--cmd "$cuda_cmd" --ngpu "$ngpu")
! $allow_pipes || train_opts+=(--allow-pipes true)
extract_opts=("${train_opts[@]}" --nj "$nj")
[ "$num_nodes" -eq 1 ] || train_opts+=(--num-nodes "$num_nodes")
settings=(seed="$seed" rooms_dir="$exp/rooms" "${noise[@]}")
init=() from_trunk=() # a student that is no wavlm or trunk has no such key: it only uses labels from the trunk
[ -z "$trunk" ] || from_trunk=(--set-known encoder.pretrained="$exp/trunk_mhfa/model")
labeled=data # folder in a round that stages 4 and 5 train on
[ "$label_noise" = 0.0 ] || labeled=noisy_data
[ "$round_init" = none ] || init=(--init "$exp/pretrain/model")
tests=("$data/test" "${also_test[@]/#/$data/}") first=("$exp/$labels_from")
[ "$labels_from" != both ] || first=("$exp/pretrain" "$exp/trunk")
! $pretrains || systems+=("$exp/pretrain")
[ -z "$trunk" ] || systems+=("$exp/trunk")
for r in $(seq "$num_rounds"); do systems+=("$exp/round$r"); done
! $finetune || systems+=("$exp/finetune")
[ -z "$reuse" ] || log_run python -m pyspkv.bin.reuse --from "$reuse" --exp "$exp" --stage "$stage" --round "$round"

eval_sets=() dev_opts=() unscored=true # without dev or test, all other work is still done
has() { [ -e "$data/$1" ] || [ ! -d "$data/train" ]; } # before stage 1, a dry run assumes that it exists
! has dev || { eval_sets+=("$data/dev"); dev_opts=(--dev "$data/dev"); }
! $qmf || { has dev || po_die "--qmf true needs $data/dev"; dev_opts+=(--qmf true); }
! has test || { eval_sets+=("${tests[@]}"); unscored=false; }

if stage 2 "check the data directories"; then
  log_run python -m pyspkv.bin.datadir validate --no-text --no-feats "$data/train" "${eval_sets[@]}"
fi

if stage 3 "check the student, pre-train without labels"; then
  if [ -n "$trunk" ]; then # with MHFA for the student; with mean pooling as a system of its own
    log_run python -m pyspkv.bin.import_checkpoint --from "$trunk" --out "$exp/trunk_mhfa/model" --pooling mhfa
    log_run python -m pyspkv.bin.import_checkpoint --from "$trunk" --out "$exp/trunk/model" --pooling mean \
      ${trunk_layers:+--layers "$trunk_layers"}
  fi
  log_run python -m pyspkv.bin.train --check --config "$conf/encoder.yaml" "$conf/round.yaml" "${student[@]}" \
    --set "${settings[@]}" "${round_opts[@]}" "${from_trunk[@]}"
  [ -z "$embeddings" ] || log_run python -m pyspkv.bin.import_embeddings --from "$embeddings" --data "$data/train" \
    --out "$exp/imported/embed/train"
  ! $pretrains || log_run steps/train.sh "${train_opts[@]}" "$conf/encoder.yaml" "$conf/pretrain.yaml" "$data/train" \
    "$exp/pretrain/model" "${settings[@]}" "${pretrain_opts[@]}"
fi

if stage 4 "rounds of clustering and training"; then
  for r in $(seq "$round" "$num_rounds"); do
    from=("${first[@]}") previous=()
    [ "$r" -eq 1 ] || { from=("$exp/round$((r - 1))"); previous=(--previous "$exp/round$((r - 1))/data"); }
    if [ "$r" -eq 1 ] && [ -n "$labels" ]; then
      log_run python -m pyspkv.bin.datadir from-labels "$labels" "$data/train" "$exp/round1/data"
    else
      [ "${from[0]}" = "$exp/imported" ] ||
        log_run steps/extract.sh "${extract_opts[@]}" "${from[@]/%//model}" --data "$data/train"
      log_run steps/cluster.sh --cmd "$train_cmd" --num-clusters "$num_clusters" --seed "$seed" "${previous[@]}" \
        "${from[@]/%//embed/train/embedding.scp}" "$data/train" "$exp/round$r/data" "${cluster_opts[@]}"
    fi
    [ "$label_noise" = 0.0 ] ||
      log_run python -m pyspkv.bin.datadir corrupt --share "$label_noise" --seed "$seed" \
        --list "$exp/round$r/corrupted" "$exp/round$r/data" "$exp/round$r/noisy_data"
    log_run steps/train.sh "${train_opts[@]}" "${init[@]}" "$conf/encoder.yaml" "$conf/round.yaml" "${student[@]}" \
      "$exp/round$r/$labeled" "$exp/round$r/model" "${settings[@]}" "${round_opts[@]}" "${from_trunk[@]}"
  done
fi

if $finetune && stage 5 "large-margin fine-tuning of the last round"; then # its head is not new: no epoch is frozen
  log_run steps/train.sh "${train_opts[@]}" --init "$exp/round$num_rounds/model" --keep-head true "$conf/encoder.yaml" \
    "$conf/finetune.yaml" "${student[@]}" "$exp/round$num_rounds/$labeled" "$exp/finetune/model" \
    "${settings[@]}" "${finetune_opts[@]}" "${from_trunk[@]}" --set-known encoder.frozen_epochs=0
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
