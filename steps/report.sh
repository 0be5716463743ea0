#!/usr/bin/env bash
# Collect an experiment: <exp>/results.json, report.md and plots/.
# Usage: steps/report.sh [options] <exp-dir>
set -euo pipefail
truth=     # true utt2spk of the training data, for diagnostics only
beside=    # another experiment from the same pre-training: dev EER against the cost of both
. "$(dirname "${BASH_SOURCE[0]}")/../path.sh"
. parse_options.sh
[ $# -eq 1 ] || { sed -n '2,3s/^# //p' "$0" >&2; exit 1; }
args=(--exp "$1")
[ -z "$truth" ] || args+=(--truth "$truth")
[ -z "$beside" ] || args+=(--beside "$beside")
exec "$SPKV_PYTHON" -m pyspkv.bin.report "${args[@]}"
