#!/usr/bin/env bash
# Score the trials of systems and print their metrics: <system-dir>/score/<name>.scores and .json.
# Usage: steps/score.sh [options] <system-dir>... <data-dir with trials> <name>
#   e.g. steps/score.sh --dev data/dev exp/pretrain exp/round1 data/test test
# Further lists of the data directory, trials_X, are scored as <name>_X from the same embeddings.
# Needs <system-dir>/embed/<name>; with --dev, also embed/dev: the threshold and the calibration are fitted on its
# trials and stored with the model. With --cohort-data it adds <name>-mean, scores after the mean of embed/train is
# subtracted, and <name>-asnorm, AS-norm with the pseudo-speakers of embed/train. With --crops true it adds <name>-crops,
# the mean of the scores of whole utterances and of embed/<name>-crops (arXiv 2406.02285).
set -euo pipefail
cmd=run.sh       # job runner
dev=             # data directory of the declared dev list
cohort_data=     # data directory of the pseudo-speakers whose mean embeddings are the cohort
cohort_set=train # name of those embeddings: <system-dir>/embed/<name>
top_n=300        # cohort speakers per side; all of them if there are fewer
compare=         # folder of another system: paired bootstrap of the EER difference
crops=false      # also score the embeddings of crops
dry_run=false    # only print the commands
. "$(dirname "${BASH_SOURCE[0]}")/../path.sh"
. parse_options.sh
[ $# -ge 3 ] || po_die "give <system-dir>... <data-dir> <name>"
args=(--systems "${@:1:$#-2}" --data "${*: -2:1}" --name "${*: -1}")
[ -z "$dev" ] || args+=(--dev "$dev")
[ -z "$cohort_data" ] || args+=(--cohort-data "$cohort_data" --top-n "$top_n")
[ "$cohort_set" = train ] || args+=(--cohort-set "$cohort_set")
[ -z "$compare" ] || args+=(--compare "$compare")
! $crops || args+=(--crops)
read -ra cmd <<< "$cmd"
log_run "${cmd[@]}" --show true "$1/score.${*: -1}.log" python -m pyspkv.bin.evaluate "${args[@]}"
