#!/usr/bin/env bash
# A few labels: N random utterances of each speaker of SRC into OUT/labeled, the others without speakers into
# OUT/unlabeled, their speakers into OUT/truth, for diagnostics. For one seed a smaller N draws a part of a larger one.
#
# Usage: utils/split_labels.sh [--seed S] SRC N OUT
set -euo pipefail
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../path.sh"
exec python -m pyspkv.bin.datadir split-labels "$@"
