#!/usr/bin/env bash
# Print the lines whose first (or COLUMN-th) column is an id in IDLIST; with --exclude, the others.
#
# Usage: utils/filter_scp.sh [--exclude] [-f COLUMN] IDLIST [IN] > OUT
set -euo pipefail
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../path.sh"
exec python -m pyspkv.bin.datadir filter "$@"
