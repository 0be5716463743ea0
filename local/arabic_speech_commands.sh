#!/usr/bin/env bash
# Arabic Speech Commands for a recipe, sourced after steps/recipe.sh: the corpus' options and stage 1. Official split, 18
# training speakers; its val speakers are dev. The corpus in $SPKV_CORPORA is the default where that is set.
# shellcheck disable=SC2034,SC2154  # steps/recipe.sh's

corpora=${SPKV_CORPORA:-}
corpus=${corpora:+$corpora/arabic_speech_commands}  # folder that holds dataset/ and the three .csv
trials=${corpora:+$corpora/trials}                  # folder of the given lists; empty = made by the same rule
noise=${corpora:+$corpora/noise/boiler.wav}         # audio files of training noise, or none

po_files+=("${BASH_SOURCE[0]}")

make_data() {
    local lists=() set list
    [ -n "$corpus" ] || { echo "$0: give --corpus, the folder that holds dataset/ and the .csv" >&2; exit 1; }
    for set in dev:val test:test; do
        list=$trials/arabic_speech_commands_${set#*:}.trials
        [ -z "$trials" ] || lists+=("--${set%:*}-trials" "$list")
    done
    "$ROOT/local/arabic_speech_commands_data.sh" "${lists[@]}" "$corpus" "$data"
    # shellcheck disable=SC2086  # several files
    [ -z "$noise" ] || "$ROOT/local/noise_data.sh" "$data/noise" $noise
}
noise_lists() { [ -z "$noise" ] || use_noise "$data/noise"; }
