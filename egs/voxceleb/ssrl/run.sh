#!/usr/bin/env bash
# SSRL, self-supervised reflective learning (arXiv 2401.01473): contrastive pre-training, one clustering, then one
# training in which a teacher's predictions change the labels while the student learns. The labels at its start
# are exp/round1/data, those at its end exp/round1/data_out. --dry-run true prints every command.
# Here at full size: VoxCeleb2 without its labels, tested on VoxCeleb1; MUSAN and simulated rooms as noise.
#   run.sh [--num-clusters 300] [--exp DIR] ...
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
num_clusters=8000   # number of pseudo-speakers at the start; best a third more than speakers
cluster_opts=(--method kmeans) # options of bin.cluster
dev_curve=false     # measure the dev EER after every epoch of stage 4, for the plots only
crops=0             # number of 4 s crops to score with, in addition to the whole utterance; 0: none
qmf=false           # score with quality measures, too (NAME-qmf; fitted on dev)
pretrain_opts=()    # settings of stage 3, such as "epochs=3 optim.lr=1e-3"
round_opts=()       # settings of stage 4
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

# -- the same in every ssrl recipe from here on (utils/sync_recipes.sh)
train_opts=(--cmd "$cuda_cmd" --ngpu "$ngpu")
! $allow_pipes || train_opts+=(--allow-pipes true)
extract_opts=("${train_opts[@]}" --nj "$nj")
[ "$num_nodes" -eq 1 ] || train_opts+=(--num-nodes "$num_nodes")
settings=(seed="$seed" rooms_dir="$exp/rooms" "${noise[@]}")
dev=()
! $dev_curve || dev=(--dev "$data/dev")
[ -z "$reuse" ] || log_run python -m pyspkv.bin.reuse --from "$reuse" --exp "$exp" --stage "$stage"

eval_sets=("$data/test") dev_opts=() # dev may be missing: the rest is done without it
has() { [ -e "$data/$1" ] || [ ! -d "$data/train" ]; } # a dry run before stage 1 shows all
! has dev || { eval_sets=("$data/dev" "$data/test"); dev_opts=(--dev "$data/dev"); }

if stage 2 "check the data directories"; then
  log_run python -m pyspkv.bin.datadir validate --no-text --no-feats "$data/train" "${eval_sets[@]}"
fi

if stage 3 "pre-train without labels"; then
  log_run steps/train.sh "${train_opts[@]}" "$conf/encoder.yaml" "$conf/pretrain.yaml" "$data/train" \
    "$exp/pretrain/model" "${settings[@]}" "${pretrain_opts[@]}"
fi

if stage 4 "reflective learning"; then
  log_run steps/extract.sh "${extract_opts[@]}" "$exp/pretrain/model" --data "$data/train"
  log_run steps/cluster.sh --cmd "$train_cmd" --num-clusters "$num_clusters" --seed "$seed" \
    "$exp/pretrain/embed/train/embedding.scp" "$data/train" "$exp/round1/data" "${cluster_opts[@]}"
  log_run steps/train.sh "${train_opts[@]}" "${dev[@]}" --init "$exp/pretrain/model" \
    --labels-out "$exp/round1/data_out" "$conf/encoder.yaml" "$conf/round.yaml" "$exp/round1/data" \
    "$exp/round1/model" "${settings[@]}" "${round_opts[@]}"
fi

# SSRL has no stage 5.

systems=("$exp/pretrain" "$exp/round1")

if stage 6 "extract embeddings"; then # also of train: its pseudo-speakers are the AS-norm cohort
  log_run steps/extract.sh "${extract_opts[@]}" "${systems[@]/%//model}" --data "$data/train" "${eval_sets[@]}"
  [ "$crops" -eq 0 ] ||
    log_run steps/extract.sh "${extract_opts[@]}" --crops "$crops" "${systems[@]/%//model}" --data "$data/test"
fi

has dev || echo "there is no $data/dev: nothing is calibrated, and no model has a dev EER"
if stage 7 "score"; then
  use_crops=false
  [ "$crops" -eq 0 ] || use_crops=true
  log_run steps/score.sh --cmd "$train_cmd" "${dev_opts[@]}" \
    --cohort-data "$exp/round1/data_out" --crops "$use_crops" --qmf "$qmf" "${systems[@]}" "$data/test" test
fi

if stage 8 "report"; then
  log_run steps/report.sh --truth "$truth" "$exp" "${compare_with[@]}"
fi
