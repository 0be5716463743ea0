#!/usr/bin/env bash
# Write some utterances of a data directory, with their dialogues, devices, trials and durations.
#
# Usage: utils/subset_data_dir.sh [--first|--last|--shortest|--per-spk|--speakers|--first-speakers|--dialogues|--devices]
#                                 SRC N DST
#        utils/subset_data_dir.sh --utt-list|--spk-list|--dialogue-list|--device-list FILE SRC DST
set -euo pipefail
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../path.sh"
exec python -m pyspkv.bin.datadir subset "$@"
