#!/usr/bin/env bash
# Keep a few labels: write N random utterances per speaker of SRC to OUT/labeled, the others without speakers to
# OUT/unlabeled, and their speakers to OUT/truth, for diagnostics. With the same seed, a smaller N draws a subset.
#
# Usage: utils/split_labels.sh [--seed S] SRC N OUT
set -euo pipefail
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../path.sh"
exec python -m pyspkv.bin.datadir split-labels "$@"
