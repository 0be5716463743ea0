#!/usr/bin/env bash
# Copy a data directory, optionally with other ids. --spk-prefix X puts X before speaker ids, as in Kaldi; without a
# value it turns every utterance id into <spk>-<utt>, which Kaldi's own tools need.
#
# Usage: utils/copy_data_dir.sh [--utt-prefix X] [--utt-suffix X] [--spk-prefix [X]] [--spk-suffix X] SRC DST
set -euo pipefail
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../path.sh"
exec python -m pyspkv.bin.datadir copy "$@"
