#!/usr/bin/env bash
# Turn `utt spk` lines into `spk utt1 utt2 ...` lines.
#
# Usage: utils/utt2spk_to_spk2utt.sh [UTT2SPK] > SPK2UTT
set -euo pipefail
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../path.sh"
exec python -m pyspkv.bin.datadir utt2spk-to-spk2utt "$@"
