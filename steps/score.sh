#!/usr/bin/env bash
# Score one system's trials and print its metrics: <system>/score/<name>.scores and .json.
# Usage: steps/score.sh [options] <system-dir> <data-dir with trials> <name>
#   e.g. steps/score.sh --dev data/dev exp/round1 data/test test
# Needs <system>/embed/<name>; with --dev, also <system>/embed/dev: the threshold and calibration are fitted on its
# trials and stored with the model. With --cohort-data and <system>/embed/train also <name>-mean, scores less the
# training embeddings' mean, and <name>-asnorm, AS-normed with its pseudo-speakers. With <system>/embed/<name>-crops
# also <name>-crops, the mean of the whole utterances' score and of the crops' (arXiv 2406.02285).
set -euo pipefail
dev=             # data directory of the declared dev list
cohort_data=     # data directory of pseudo-speakers whose mean embeddings (embed/train) are the cohort
top_n=300        # of the cohort; all of a smaller one
compare=         # another system's folder: paired bootstrap of the EERs' difference
. "$(dirname "${BASH_SOURCE[0]}")/../path.sh"
. parse_options.sh
[ $# -eq 3 ] || { sed -n '2,4s/^# //p' "$0" >&2; exit 1; }
system=$1 data=$2 name=$3

score() {  # <data> <sets of embeddings> <scores> [options]
    local data=$1 scps=() set scores=$3
    for set in $2; do scps+=("$system/embed/$set/embedding.scp"); done
    shift 3
    [ ! -f "$data/enrol_map" ] || set -- --enrol-map "$data/enrol_map" "$@"
    "$SPKV_PYTHON" -m pyspkv.bin.score --trials "$data/trials" --enrol "${scps[@]}" --test "${scps[@]}" \
        --out "$scores" "$@"
}
measure() {  # <data> <scores> [options]
    local data=$1 scores=$2; shift 2
    [ ! -f "$data/enrol_map" ] || set -- --enrol-map "$data/enrol_map" "$@"
    "$SPKV_PYTHON" -m pyspkv.bin.metrics --scores "$scores" --trials "$data/trials" --utt2spk "$data/utt2spk" \
        --json "$@" > "$scores.tmp"
    mv "$scores.tmp" "${scores%.scores}.json"
}
mkdir -p "$system/score"
if [ -n "$dev" ]; then
    score "$dev" dev "$system/score/dev.scores"
    measure "$dev" "$system/score/dev.scores"
    "$SPKV_PYTHON" -m pyspkv.bin.calibrate --scores "$system/score/dev.scores" --trials "$dev/trials" \
        --model "$system/model" || { echo "$0: $system is scored without calibration" >&2; rm -f "$system/model/calibration.json"; }
fi
plain=$system/score/$name.scores options=()
score "$data" "$name" "$plain"
[ ! -f "$system/model/calibration.json" ] || options+=(--calibration "$system/model/calibration.json")
[ -z "$compare" ] || options+=(--compare "$compare/score/$name.scores")
measure "$data" "$plain" "${options[@]}"
model_of() { head -n 1 "$system/embed/$1/made_by" 2> /dev/null || true; } # as steps/extract.sh notes it
if [ -f "$system/embed/$name-crops/embedding.scp" ] && [ "$(model_of "$name")" = "$(model_of "$name-crops")" ]; then
    score "$data" "$name $name-crops" "$system/score/$name-crops.scores"
    measure "$data" "$system/score/$name-crops.scores"
else
    rm -f "$system/score/$name-crops".* # of another model
fi
if [ -n "$cohort_data" ] && [ -f "$system/embed/train/embedding.scp" ]; then
    score "$data" "$name" "$system/score/$name-mean.scores" --mean "$system/embed/train/embedding.scp"
    measure "$data" "$system/score/$name-mean.scores"
    size=$(wc -l < "$cohort_data/spk2utt")
    [ "$top_n" -le "$size" ] || { echo "$0: the cohort has $size pseudo-speakers, all are used"; top_n=$size; }
    score "$data" "$name" "$system/score/$name-asnorm.scores" --cohort "$system/embed/train/embedding.scp" \
        --cohort-utt2spk "$cohort_data/utt2spk" --top-n "$top_n"
    measure "$data" "$system/score/$name-asnorm.scores"
fi
