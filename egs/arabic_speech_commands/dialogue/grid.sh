#!/usr/bin/env bash
# The tables of README.md, run by run, resumable; start it twice to use two cores. The data of all folds is made first.
#   egs/arabic_speech_commands/dialogue/grid.sh [--tables AB] [--folds 0 1] [--seeds 0] [--list | --report]
# All options: grid.sh --help. SPKV_CORPORA names the folder of Arabic Speech Commands and the LibriSpeech subset.
set -euo pipefail
recipe=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=path.sh
. "$recipe/../../../path.sh"
case " $* " in *" --help "* | *" --report "* | *" --list "*) exec python "$ROOT/local/dialogue_grid.py" "$@" ;; esac
data=$recipe/data
corpora=${SPKV_CORPORA:?names the folder of the corpora}
mkdir -p "$data"
exec 9< "$data" # one process makes the data
flock 9
[ -d "$data/librispeech/train_labelled" ] ||
    "$ROOT/local/librispeech_data.sh" --test-parts test-other "$corpora/librispeech_subset/LibriSpeech" "$data/librispeech"
for fold in 0 1 2 3 4; do
    for mode in random household; do
        for rate in 0 10 30 50; do
            [ -f "$data/fold$fold/$mode-$rate/train/utt2dialogue" ] ||
                "$recipe/run.sh" --stage 1 --stop-stage 1 --fold "$fold" --mode "$mode" --rate "$rate"
        done
    done
done
exec 9>&-
exec python "$ROOT/local/dialogue_grid.py" "$@"
