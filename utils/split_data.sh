#!/usr/bin/env bash
# Split a data directory into DIR/split<N>/<1..N> by whole speakers, or into DIR/split<N>utt by utterances.
#
# Usage: utils/split_data.sh [--per-utt] DIR N
set -euo pipefail
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../path.sh"
exec python -m pyspkv.bin.datadir split "$@"
