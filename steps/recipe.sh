#!/usr/bin/env bash
# What the recipes share, to be sourced at their top: the options that every run.sh takes, and the stages that do not
# depend on the corpus as functions. The recipe adds its own options, sources parse_options.sh, calls `begin`, and is
# then a list of stages:
#
#   . "$(dirname "${BASH_SOURCE[0]}")/../../../steps/recipe.sh"
#   num_pretrain=3
#   . parse_options.sh
#   begin "$@"
#   if run 3 "pre-train without labels"; then pretrain; fi
#
# Folders: <exp>/{pretrain,round1,round2,...,finetune,supervised}/{model,embed,score}, round<r>/data are the labels.

stage=1             # 1 data, 2 check, 3 pre-train, 4 label learning, 5 fine-tune, 6 extract, 7 score, 8 report
stop_stage=8
num_pretrain=1      # independent pre-trainings, in pretrain, pretrain2, ...: side by side they give the first labels
crops=0             # also score by so many crops of 4 s together with the whole utterance
# shellcheck disable=SC2034  # the recipes'
supervised=false    # also train on the true labels, for comparison
nj=2                # parallel jobs
ngpu=0              # GPUs; 0 uses the CPU
seed=0
exp=exp             # results; relative to the caller, by default beside run.sh
data=data           # the corpus' data directories; likewise
conf=conf           # configs; likewise

# shellcheck disable=SC2034  # read by parse_options.sh
po_files=("${BASH_SOURCE[0]}") # --help lists these options too
recipe=$(cd "$(dirname "$0")" && pwd)
. "$recipe/../../../path.sh"
exp=$recipe/$exp data=$recipe/$data conf=$recipe/$conf
use_best=false      # models trained with a declared dev list count at their best epoch
beside=             # another experiment that the report sets beside this one
noise_list=() # training options that name the noise list; `use_noise` sets it

begin() { # after the options, "$@" being what is left: absolute paths
    [ $# -eq 0 ] || { echo "$0: '$1' belongs to no option; see --help" >&2; exit 1; }
    local option least
    for option in stage stop_stage; do
        [[ ${!option} =~ ^[1-8]$ ]] || { echo "$0: --${option/_/-} is a number from 1 to 8, not '${!option}'" >&2; exit 1; }
    done
    for option in num_rounds:1 round:1 num_pretrain:1 nj:1 ngpu:0 seed:0 crops:0; do
        least=${option#*:} option=${option%:*}
        [ -n "${!option+set}" ] || continue # not every recipe has rounds
        [[ ${!option} =~ ^(0|[1-9][0-9]*)$ && ${!option} -ge $least ]] ||
            { echo "$0: --${option/_/-} is a number from $least, not '${!option}'" >&2; exit 1; }
    done
    [ "${round:-1}" -le "${num_rounds:-1}" ] || { echo "$0: --round $round comes after --num-rounds $num_rounds" >&2; exit 1; }
    [ "$stage" -le "$stop_stage" ] || { echo "$0: --stage $stage comes after --stop-stage $stop_stage" >&2; exit 1; }
    exp=$(realpath -m "$exp") data=$(realpath -m "$data") conf=$(realpath -m "$conf")
}
run() { # <stage> <what>: whether it is asked for
    [ "$stage" -le "$1" ] && [ "$stop_stage" -ge "$1" ] && echo "== stage $1: $2 ($(date +%T))"
}
use_noise() { noise_list=(augment.noise="$1"); }

check_data() {
    local set
    for set in train dev test; do
        validate_data_dir.sh --no-text --no-feats --no-spk-sort "$data/$set"
    done
}
train() { # [steps/train.sh options] <config> <data> <model> [key=value ...]
    "$ROOT/steps/train.sh" --ngpu "$ngpu" "$@" seed="$seed" "${noise_list[@]}"
}
pretrain() {
    local phase base=$seed
    for phase in pretrain $(more_pretrained); do
        seed=$((base + 1000 * (${phase#pretrain} + 0))) train "$conf/pretrain.yaml" "$data/train" "$exp/$phase/model"
    done
}
more_pretrained() { [ "$num_pretrain" -lt 2 ] || seq -f pretrain%g 2 "$num_pretrain"; }

some_model() {
    compgen -G "$exp/*/model" > /dev/null || { echo "$0: no model is in $exp; stages 3 to 5 make them" >&2; exit 1; }
}
extract_all() { # of every model: dev, test, and train, whose pseudo-speakers are the AS-norm cohort
    local model set at
    some_model
    for model in "$exp"/*/model; do
        at=$model
        if $use_best && [ -f "$model/best" ]; then at=$model@best; fi
        for set in train dev test; do
            "$ROOT/steps/extract.sh" --nj "$nj" --ngpu "$ngpu" "$at" "$data/$set" "${model%/model}/embed/$set"
        done
        [ "$crops" -eq 0 ] || "$ROOT/steps/extract.sh" --nj "$nj" --ngpu "$ngpu" --crops "$crops" \
            "$at" "$data/test" "${model%/model}/embed/test-crops"
    done
}
score_all() { # every model; where one was trained on the true labels, all are compared to it
    local model cohort=$exp/round${num_rounds:-0}/data compare=
    some_model
    [ ! -d "${cohort}_out" ] || cohort=${cohort}_out # where labels moved
    [ -d "$cohort" ] || cohort=
    if [ -d "$exp/supervised/model" ]; then
        score "$exp/supervised"
        compare=$exp/supervised
    fi
    for model in "$exp"/*/model; do
        [ "${model%/model}" = "$compare" ] || score "${model%/model}"
    done
}
score() { # <system>
    "$ROOT/steps/score.sh" --dev "$data/dev" --cohort-data "$cohort" --compare "$compare" "$1" "$data/test" test
}
report() { # the truth, where there is one, for diagnostics
    local truth=$data/truth/train_utt2spk
    [ -f "$truth" ] || truth=
    "$ROOT/steps/report.sh" --truth "$truth" --beside "$beside" "$exp"
}
