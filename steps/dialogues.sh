#!/usr/bin/env bash
# What the dialogue recipes add to steps/recipe.sh: sourced after it.
# shellcheck disable=SC2034,SC2154  # the options are that file's or its readers'

mode=random         # devices: random = a speaker each, household = two speakers share one
rate=10             # percent of the dialogues with a second speaker (household: the other one at home)
labelled=12         # speakers of the labelled set that fine-tuning has
dialogue_opts=      # further options of bin.simulate_dialogues

po_files+=("${BASH_SOURCE[0]}")
use_best=true

begin_dialogues() { # the dialogues' folders: <data>/<mode>-<rate>, <exp>/<mode>-<rate>
    case $mode in random | household) ;; *) echo "$0: --mode is random or household, not '$mode'" >&2; exit 1 ;; esac
    [[ $rate =~ ^[0-9]+$ && $rate -le 100 ]] || { echo "$0: --rate is a percentage, not '$rate'" >&2; exit 1; }
    rate=$((10#$rate)) # 010 is ten
    begin "$@"
    speech=$data
    data=$data/$mode-$rate exp=$exp/$mode-$rate
}
simulate() { # <labelled speech> [options]: dialogues with and without their truth, dev and test beside them
    local from=$1 set; shift
    [ "$mode" = random ] || set -- --households "$@"
    local made="$* $dialogue_opts"
    if [ ! -f "$data/train/utt2dialogue" ]; then
        # shellcheck disable=SC2086  # options are split on purpose
        "$SPKV_PYTHON" -m pyspkv.bin.simulate_dialogues \
            --rate "$(printf '%d.%02d' $((rate / 100)) $((rate % 100)))" "$@" $dialogue_opts "$from" "$data"
        echo "$made" > "$data/made_by"
    elif [ -f "$data/made_by" ] && [ "$(cat "$data/made_by")" != "$made" ]; then
        echo "$0: $data was made with other options ($(cat "$data/made_by")): give another --data, or remove it" >&2
        exit 1
    fi
    for set in dev test; do ln -sfn "../$set" "$data/$set"; done
}
check_dialogues() {
    check_data
    validate_data_dir.sh "$data/train_labelled" --disjoint "$data/test"
}
rank() { # the dialogues by compactness; a truth adds figures and changes nothing
    local mixed=()
    [ ! -f "$data/truth/dialogue2mixed" ] || mixed=(--mixed "$data/truth/dialogue2mixed")
    (
        [ "$ngpu" -gt 0 ] || export CUDA_VISIBLE_DEVICES=
        "$SPKV_PYTHON" -m pyspkv.bin.score_dialogues --model "$exp/pretrain/model" --data "$data/train" \
            "${mixed[@]}" --out "$exp/pretrain/dialogues"
    )
}
finetune_few() { # <labelled set>: GE2E from the dialogues' encoder and, to compare, from scratch; dev speakers stop both
    local options=()
    [ "$labelled" -ge 12 ] || options=(batch_size=$((4 * labelled)))
    train --init "$exp/pretrain/model" --dev "$data/dev" "$conf/finetune.yaml" "$1" "$exp/finetune/model" "${options[@]}"
    ! $supervised ||
        train --dev "$data/dev" "$conf/scratch.yaml" "$1" "$exp/supervised/model" "${options[@]}"
}
