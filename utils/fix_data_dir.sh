#!/usr/bin/env bash
# Sort and correct a data directory in place; the replaced files go to DIR/.backup.
#
# Usage: utils/fix_data_dir.sh [--check-audio] DIR
set -euo pipefail
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../path.sh"
exec python -m pyspkv.bin.datadir fix "$@"
