#!/usr/bin/env bash
# VoxCeleb1 and 2 as published -> train, train_labelled, dev, test data directories and trials (--help lists the options).
set -euo pipefail
# shellcheck source=path.sh
. "$(dirname "$(readlink -f "$0")")/../path.sh"
exec python "$ROOT/local/voxceleb_data.py" "$@"
