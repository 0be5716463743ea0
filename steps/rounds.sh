#!/usr/bin/env bash
# What recipes with rounds of clustering and training add to steps/recipe.sh: sourced after it.
# shellcheck disable=SC2034,SC2154  # the options are that file's or its readers'

round=1             # start stage 4 at this round
num_rounds=2
num_clusters=auto   # pseudo-speakers, or auto: estimated without labels
cluster_opts="--whiten 0.5"  # further options of bin.cluster
ensemble=false      # cluster the embeddings of all phases so far, side by side
labels_from=pretrain # the phase whose embeddings give the first round's labels
round_init=         # where each round's training starts: empty = the pre-trained model, none = from scratch
dev_curve=false     # the declared dev list's EER after every epoch of stage 4, for the plots only

po_files+=("${BASH_SOURCE[0]}")
round_yaml=round.yaml
data_out=false      # objectives that move labels write them to round<r>/data_out
supervised_options=() # key=value for training on the true labels, which needs no gate
student_options=() # key=value for every training of stages 4 and 5

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
