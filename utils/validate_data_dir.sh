#!/usr/bin/env bash
# Check a data directory: every file, every line. Only --no-wav changes anything here (wav.scp may be missing).
#
# Usage: utils/validate_data_dir.sh [--no-text] [--no-feats] [--no-wav] [--no-spk-sort] [--non-print] DIR
#        utils/validate_data_dir.sh DIR --disjoint DIR2 ...   # they may share no utterance, speaker, dialogue or device
set -euo pipefail
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../path.sh"
exec python -m pyspkv.bin.datadir validate "$@"
