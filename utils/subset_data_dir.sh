#!/usr/bin/env bash
# Some utterances of a data directory, with all that belongs to them (dialogues, devices, trials, durations).
#
# Usage: utils/subset_data_dir.sh [--first|--last|--shortest|--per-spk|--speakers|--dialogues|--devices] SRC N DST
#        utils/subset_data_dir.sh --utt-list|--spk-list|--dialogue-list|--device-list FILE SRC DST
set -euo pipefail
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../path.sh"
exec python -m pyspkv.bin.datadir subset "$@"
