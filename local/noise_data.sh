#!/usr/bin/env bash
# Audio files -> one data directory of noises for augmentation (--help lists the options).
set -euo pipefail
# shellcheck source=path.sh
. "$(dirname "$(readlink -f "$0")")/../path.sh"
exec python "$ROOT/local/noise_data.py" "$@"
