#!/usr/bin/env bash
# Self-supervised speaker verification on LibriSpeech without its speaker labels: contrastive pre-training, rounds of
# clustering and training, large-margin fine-tuning; 30 training speakers are held out as dev. Wants the corpus in its
# own layout: the full one, or the subset in $SPKV_CORPORA, which is the default where that is set.
#   egs/librispeech/ssl/run.sh --librispeech /data/LibriSpeech --parts "train-clean-100 train-clean-360"
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
corpora=${SPKV_CORPORA:-}
librispeech=${corpora:+$corpora/librispeech_subset/LibriSpeech}   # folder that holds train-clean-100, test-other ...
parts=train-clean-100
test_parts=test-other
trials=${corpora:+$corpora/trials/librispeech_test_other.trials}  # of the test parts; empty = all pairs
noise=${corpora:+$corpora/noise/boiler.wav}                       # audio files of training noise, or none
stage=1             # 1 data, 2 check, 3 pre-train, 4 rounds, 5 fine-tune, 6 extract, 7 score, 8 report
stop_stage=8
round=1             # start stage 4 at this round
num_rounds=2
num_clusters=300    # pseudo-speakers (more than there may be), or auto: estimated without labels
supervised=false    # also train on the true labels, for comparison
nj=2                # parallel jobs
ngpu=0              # GPUs; 0 uses the CPU
seed=0
conf=$here/conf     # configs
exp=$here/exp       # results, relative to the caller
data=$here/data     # the corpus' data directories, relative to the caller
. "$here/../../../path.sh"
. parse_options.sh
exp=$(realpath -m "$exp") data=$(realpath -m "$data") conf=$(realpath -m "$conf")
cd "$here"
run() { [ "$stage" -le "$1" ] && [ "$stop_stage" -ge "$1" ] && echo "== stage $1: $2 ($(date +%T))"; }
set_noise=() # what every training is told of the noise list
[ -z "$noise" ] || set_noise=(augment.noise="$data/noise")

if run 1 "data directories from the corpus"; then
    [ -n "$librispeech" ] || { echo "$0: give --librispeech, the folder that holds $parts" >&2; exit 1; }
    local/librispeech_data.sh --parts "$parts" --test-parts "$test_parts" ${trials:+--trials "$trials"} \
        "$librispeech" "$data"
    # shellcheck disable=SC2086  # several files
    [ -z "$noise" ] || local/noise_data.sh "$data/noise" $noise
fi
if run 2 "check the data directories"; then
    for set in train dev test; do
        validate_data_dir.sh --no-text --no-feats --no-spk-sort "$data/$set"
    done
fi
if run 3 "pre-train without labels"; then
    steps/train.sh --ngpu "$ngpu" "$conf/pretrain.yaml" "$data/train" "$exp/pretrain/model" \
        seed="$seed" "${set_noise[@]}"
fi
if run 4 "rounds of clustering and training"; then
    for r in $(seq "$round" "$num_rounds"); do
        steps/round.sh --nj "$nj" --ngpu "$ngpu" --num-clusters "$num_clusters" --seed "$seed" \
            "$r" "$conf/round.yaml" "$data/train" "$exp" "${set_noise[@]}"
    done
fi
if run 5 "large-margin fine-tuning of the last round"; then
    last=$exp/round$num_rounds
    steps/train.sh --ngpu "$ngpu" --init "$last/model" "$conf/finetune.yaml" "$last/data" "$exp/finetune/model" \
        seed="$seed" "${set_noise[@]}"
    if $supervised; then
        steps/train.sh --ngpu "$ngpu" --init "$exp/pretrain/model" "$conf/round.yaml" "$data/train_labelled" \
            "$exp/supervised/model" seed="$seed" "${set_noise[@]}"
    fi
fi
if run 6 "extract embeddings of dev and test"; then
    for model in "$exp"/*/model; do
        for set in dev test; do
            steps/extract.sh --nj "$nj" --ngpu "$ngpu" "$model" "$data/$set" "${model%/model}/embed/$set"
        done
    done
fi
if run 7 "score"; then
    for model in "$exp"/*/model; do
        steps/score.sh --dev "$data/dev" "${model%/model}" "$data/test" test
    done
fi
if run 8 "report"; then
    steps/report.sh --truth "$data/truth/train_utt2spk" "$exp"
fi
