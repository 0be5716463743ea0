#!/usr/bin/env bash
# Self-supervised speaker verification from unlabelled speech, on a corpus that this recipe synthesises itself:
# contrastive pre-training, rounds of clustering and training, large-margin fine-tuning. Minutes on a CPU.
#   egs/mini/ssl/run.sh [--stage 1] [--stop-stage 8] [--exp exp] [--supervised true] ...
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
stage=1             # 1 data, 2 check, 3 pre-train, 4 rounds, 5 fine-tune, 6 extract, 7 score, 8 report
stop_stage=8
round=1             # start stage 4 at this round
num_rounds=3
num_clusters=120    # pseudo-speakers (more than there may be), or auto: estimated without labels
supervised=false    # also train on the true labels, for comparison
nj=2                # parallel jobs
ngpu=0              # GPUs; 0 uses the CPU
seed=0
conf=$here/conf     # configs
exp=$here/exp       # results, relative to the caller
data=$here/data     # the corpus, relative to the caller
num_train_spk=100
num_test_spk=40
num_dev_spk=20
data_opts=          # further options of local/mini_data.sh
. "$here/../../../path.sh"
. parse_options.sh
exp=$(realpath -m "$exp") data=$(realpath -m "$data") conf=$(realpath -m "$conf")
cd "$here"
run() { [ "$stage" -le "$1" ] && [ "$stop_stage" -ge "$1" ] && echo "== stage $1: $2 ($(date +%T))"; }

if run 1 "synthesise the corpus"; then
    # shellcheck disable=SC2086  # options are split on purpose
    local/mini_data.sh --nj "$nj" --num-train-spk "$num_train_spk" --num-test-spk "$num_test_spk" \
        --num-dev-spk "$num_dev_spk" $data_opts "$data"
fi
if run 2 "check the data directories"; then
    for set in train dev test; do
        validate_data_dir.sh --no-text --no-feats --no-spk-sort "$data/$set"
    done
fi
if run 3 "pre-train without labels"; then
    steps/train.sh --ngpu "$ngpu" "$conf/pretrain.yaml" "$data/train" "$exp/pretrain/model" \
        augment.noise="$data/noise" seed="$seed"
fi
if run 4 "rounds of clustering and training"; then
    for r in $(seq "$round" "$num_rounds"); do
        steps/round.sh --nj "$nj" --ngpu "$ngpu" --num-clusters "$num_clusters" --seed "$seed" \
            "$r" "$conf/round.yaml" "$data/train" "$exp" augment.noise="$data/noise"
    done
fi
if run 5 "large-margin fine-tuning of the last round"; then
    last=$exp/round$num_rounds
    steps/train.sh --ngpu "$ngpu" --init "$last/model" "$conf/finetune.yaml" "$last/data" "$exp/finetune/model" \
        augment.noise="$data/noise" seed="$seed"
    if $supervised; then
        steps/train.sh --ngpu "$ngpu" --init "$exp/pretrain/model" "$conf/round.yaml" "$data/train_labelled" \
            "$exp/supervised/model" augment.noise="$data/noise" seed="$seed"
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
