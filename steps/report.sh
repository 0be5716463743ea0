#!/usr/bin/env bash
# Collect an experiment: <exp>/results.json, report.md and plots/.
# Usage: steps/report.sh [options] <exp-dir> [<exp-dir> to compare with ...]
set -euo pipefail
truth=           # true utt2spk of the training data, for diagnostics only
unscored=false   # there are no test trials: report everything else
dry_run=false    # only print the commands
. "$(dirname "${BASH_SOURCE[0]}")/../path.sh"
. parse_options.sh
[ $# -ge 1 ] || po_die "give <exp-dir>"
args=(--exp "$1"); shift
[ -z "$truth" ] || args+=(--truth "$truth")
! $unscored || args+=(--unscored)
[ $# -eq 0 ] || args+=(--compare-with "$@")
log_run python -m pyspkv.bin.report "${args[@]}"
