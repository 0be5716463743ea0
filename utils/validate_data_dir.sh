#!/usr/bin/env bash
# Check a data directory: every file, every line. With --no-wav, wav.scp may be missing; Kaldi's other
# options are accepted and have no effect.
#
# Usage: utils/validate_data_dir.sh [--no-text] [--no-feats] [--no-wav] [--no-spk-sort] [--non-print] DIR
#        utils/validate_data_dir.sh DIR --disjoint DIR2 ...   # must not share an utterance, speaker, ...
set -euo pipefail
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../path.sh"
exec python -m pyspkv.bin.datadir validate "$@"
