#!/usr/bin/env bash
# Collect an experiment: <exp>/results.json, report.md and plots/.
# Usage: steps/report.sh [--truth UTT2SPK] <exp-dir>
set -euo pipefail
truth=     # true utt2spk of the training data, for diagnostics only
. "$(dirname "${BASH_SOURCE[0]}")/../path.sh"
. parse_options.sh
[ $# -eq 1 ] || { sed -n '2,3s/^# //p' "$0" >&2; exit 1; }
args=(--exp "$1")
[ -z "$truth" ] || args+=(--truth "$truth")
exec "$SPKV_PYTHON" -m pyspkv.bin.report "${args[@]}"
