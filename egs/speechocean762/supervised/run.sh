#!/usr/bin/env bash
# AAM-softmax on true speaker labels, then large-margin fine-tuning: the usual baseline. With
# --init it starts from another model, like exp/pretrain/model of an ssl experiment. --dry-run true prints all commands.
# Here on speechocean762: 101 training, 24 dev and 125 test speakers. Speech Commands and LibriSpeech are
# further test sets.
#   run.sh [--init ../ssl/exp/pretrain/model] ...
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
init=               # folder of the model whose encoder training starts from; empty: from scratch
train_set=train_labeled # name of the labeled training directory in --data
encoder=            # file of the encoder's config; empty: conf/encoder.yaml
train=              # file of stage 4's config; empty: conf/train.yaml
finetune=false      # run stage 5
use_dev=false       # use the dev speakers to stop the training and to choose the epoch
patience=0          # with --use-dev: stop after this many epochs without a lower dev EER; 0: never
crops=0             # number of 4 s crops to score with, in addition to the whole utterance; 0: none
qmf=false           # score with quality measures, too (NAME-qmf; fitted on dev)
also_test=()        # further test sets in --data, scored like test
train_opts=()       # settings of stage 4, such as "epochs=3 optim.lr=1e-3"
finetune_opts=()    # settings of stage 5
reuse=              # folder of another experiment; its finished phases before --stage are reused
compare_with=()     # folders of experiments that the report compares with this one
seed=0              # seed of training
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

# -- the same in every supervised recipe from here on (utils/sync_recipes.sh)
how=(--cmd "$cuda_cmd" --ngpu "$ngpu")
! $allow_pipes || how+=(--allow-pipes true)
extract_opts=("${how[@]}" --nj "$nj")
[ "$num_nodes" -eq 1 ] || how+=(--num-nodes "$num_nodes")
settings=(seed="$seed" rooms_dir="$exp/rooms" "${noise[@]}")
tests=("$data/test" "${also_test[@]/#/$data/}")
dev=() best=''
encoder=${encoder:-$conf/encoder.yaml} systems=("$exp/supervised")
! $finetune || systems+=("$exp/finetune")
! $use_dev || dev=(--dev "$data/dev" --patience "$patience") best=@best
[ -z "$reuse" ] || log_run python -m pyspkv.bin.reuse --from "$reuse" --exp "$exp" --stage "$stage"

eval_sets=("${tests[@]}") dev_opts=() # dev may be missing: the rest is done without it
has() { [ -e "$data/$1" ] || [ ! -d "$data/$train_set" ]; } # a dry run before stage 1 shows all
! has dev || { eval_sets=("$data/dev" "${tests[@]}"); dev_opts=(--dev "$data/dev"); }

if stage 2 "check the data directories"; then
  log_run python -m pyspkv.bin.datadir validate --no-text --no-feats "$data/$train_set" "${eval_sets[@]}"
fi

# Supervised training has no stage 3.

if stage 4 "train on the true labels"; then
  log_run steps/train.sh "${how[@]}" "${dev[@]}" --init "$init" "$encoder" "${train:-$conf/train.yaml}" \
    "$data/$train_set" "$exp/supervised/model" "${settings[@]}" "${train_opts[@]}"
fi

if $finetune && stage 5 "large-margin fine-tuning"; then
  log_run steps/train.sh "${how[@]}" --init "$exp/supervised/model$best" --keep-head true "$encoder" \
    "$conf/finetune.yaml" "$data/$train_set" "$exp/finetune/model" "${settings[@]}" "${finetune_opts[@]}"
fi

models=("${systems[@]/%//model}")
models[0]+=$best
if stage 6 "extract embeddings"; then # also of the training data: its speakers are the AS-norm cohort
  log_run steps/extract.sh "${extract_opts[@]}" "${models[@]}" --data "$data/$train_set" "${eval_sets[@]}"
  [ "$crops" -eq 0 ] ||
    log_run steps/extract.sh "${extract_opts[@]}" --crops "$crops" "${models[@]}" --data "${tests[@]}"
fi

has dev || echo "there is no $data/dev: nothing is calibrated, and no model has a dev EER"
if stage 7 "score"; then
  use_crops=false
  [ "$crops" -eq 0 ] || use_crops=true
  for name in test "${also_test[@]}"; do
    log_run steps/score.sh --cmd "$train_cmd" "${dev_opts[@]}" \
      --cohort-data "$data/$train_set" --cohort-set "${train_set##*/}" \
      --crops "$use_crops" --qmf "$qmf" "${systems[@]}" "$data/$name" "$name"
  done
fi

if stage 8 "report"; then
  log_run steps/report.sh "$exp" "${compare_with[@]}"
fi
