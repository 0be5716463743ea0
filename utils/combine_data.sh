#!/usr/bin/env bash
# Combine several data directories into one. It gets the files that all sources have.
#
# Usage: utils/combine_data.sh [--extra-files 'F1 F2'] DST SRC1 SRC2 ...
set -euo pipefail
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../path.sh"
exec python -m pyspkv.bin.datadir combine "$@"
