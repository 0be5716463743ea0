#!/usr/bin/env bash
# What the recipes share, to be sourced at their top: the options that every run.sh takes, and the stages that do not
# depend on the corpus as functions. The recipe adds its own options, sources parse_options.sh, calls `begin`, and is
# then a list of stages:
#
#   . "$(dirname "${BASH_SOURCE[0]}")/../../../steps/recipe.sh"
#   num_clusters=auto
#   . parse_options.sh
#   begin "$@"
#   if run 3 "pre-train without labels"; then pretrain; fi
#
# Folders: <exp>/{pretrain,round1,round2,...,finetune,supervised}/{model,embed,score}, round<r>/data are the labels.

stage=1             # 1 data, 2 check, 3 pre-train, 4 label learning, 5 fine-tune, 6 extract, 7 score, 8 report
stop_stage=8
round=1             # start stage 4 at this round
num_rounds=2
num_clusters=auto   # pseudo-speakers, or auto: estimated without labels
cluster_opts="--whiten 0.5"  # further options of bin.cluster
ensemble=false      # cluster the embeddings of all phases so far, side by side
num_pretrain=1      # independent pre-trainings, in pretrain, pretrain2, ...: side by side they give the first labels
labels_from=pretrain # the phase whose embeddings give the first round's labels
round_init=         # where each round's training starts: empty = the pre-trained model, none = from scratch
crops=0             # also score by so many crops of 4 s together with the whole utterance
dev_curve=false     # the declared dev list's EER after every epoch of stage 4, for the plots only
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
round_yaml=round.yaml
use_best=false      # models trained with a declared dev list count at their best epoch
beside=             # another experiment that the report sets beside this one
data_out=false      # objectives that move labels write them to round<r>/data_out
supervised_options=() # key=value for training on the true labels, which needs no gate
student_options=() # key=value for every training of stages 4 and 5
noise_list=() # training options that name the noise list; `use_noise` sets it

begin() { # after the options, "$@" being what is left: absolute paths
    [ $# -eq 0 ] || { echo "$0: '$1' belongs to no option; see --help" >&2; exit 1; }
    local option
    for option in stage stop_stage; do
        [[ ${!option} =~ ^[1-8]$ ]] || { echo "$0: --${option/_/-} is a number from 1 to 8, not '${!option}'" >&2; exit 1; }
    done
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

round_config() { # <r>: round.yaml, or early_round.yaml, where there is one, before the last
    local early=$conf/early_$round_yaml
    if [ "$1" -lt "$num_rounds" ] && [ -f "$early" ]; then echo "$early"; else echo "$conf/$round_yaml"; fi
}
rounds() { # embed, cluster, train; again and again
    local r dev=
    ! $dev_curve || dev=$data/dev
    [ "$labels_from" != pretrain ] || labels_from="pretrain $(more_pretrained | paste -sd ' ')"
    for r in $(seq "$round" "$num_rounds"); do
        "$ROOT/steps/round.sh" --nj "$nj" --ngpu "$ngpu" --num-clusters "$num_clusters" --seed "$seed" \
            --data-out "$data_out" --labels-from "$labels_from" --init "$round_init" --cluster-opts "$cluster_opts" \
            --ensemble "$ensemble" --dev "$dev" \
            "$r" "$(round_config "$r")" "$data/train" "$exp" "${noise_list[@]}" "${student_options[@]}"
    done
}
finetune() { # large margin, from the last round
    local last=$exp/round$num_rounds
    train --init "$last/model" --keep-head true "$conf/finetune.yaml" "$last/data" "$exp/finetune/model" \
        "${student_options[@]}"
    ! $supervised || supervise
}
round_start() { # the model that rounds start from, if any
    [ "$round_init" = none ] || echo "${round_init:-$exp/pretrain/model}"
}
supervise() { # the true labels in the last round's place, same start, same steps
    train --init "$(round_start)" "$(round_config "$num_rounds")" "$data/train_labelled" "$exp/supervised/model" \
        "${student_options[@]}" "${supervised_options[@]}"
}
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
    local model cohort=$exp/round$num_rounds/data compare=
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
