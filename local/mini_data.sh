#!/usr/bin/env bash
# Make the synthetic corpus of egs/mini: local/mini_data.sh [options] DATADIR (--help lists them).
set -euo pipefail
# shellcheck source=path.sh
. "$(dirname "$(readlink -f "$0")")/../path.sh"
exec python "$ROOT/local/mini_data.py" "$@"
