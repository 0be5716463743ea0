#!/usr/bin/env bash
# LibriSpeech for a recipe, sourced after steps/recipe.sh: the corpus' options and stage 1. It wants the corpus in its own
# layout: the full one, or the subset in $SPKV_CORPORA, which is the default where that is set. 30 training speakers are dev.
# shellcheck disable=SC2034,SC2154  # steps/recipe.sh's

corpora=${SPKV_CORPORA:-}
librispeech=${corpora:+$corpora/librispeech_subset/LibriSpeech}   # folder that holds train-clean-100, test-other ...
parts=train-clean-100
test_parts=test-other
trials=${corpora:+$corpora/trials/librispeech_test_other.trials}  # of the test parts; empty = all pairs
fold=0              # which 30 are dev, 0 .. 7 of the subset; the configs were chosen on 0. With an --exp and a --data of its own
noise=${corpora:+$corpora/noise/boiler.wav}                       # audio files of training noise, or none

po_files+=("${BASH_SOURCE[0]}")

make_data() {
    [ -n "$librispeech" ] || { echo "$0: give --librispeech, the folder that holds $parts" >&2; exit 1; }
    "$ROOT/local/librispeech_data.sh" --parts "$parts" --test-parts "$test_parts" --fold "$fold" ${trials:+--trials "$trials"} \
        "$librispeech" "$data"
    # shellcheck disable=SC2086  # several files
    [ -z "$noise" ] || "$ROOT/local/noise_data.sh" "$data/noise" $noise
}
noise_lists() { [ -z "$noise" ] || use_noise "$data/noise"; }
