#!/usr/bin/env bash
# Make dialogues from a voice-assistant log (Kaldi utt2time, JSON lines or CSV): writes a data directory with utt2dialogue
# and dialogue2device. Without OUT it only prints a histogram of the pauses, which helps to choose --max-gap.
#
# Usage: utils/sessionize.sh [--max-gap 60] [--max-span 600] [--plot gaps.png] LOG [OUT]     (--help lists the options)
set -euo pipefail
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../path.sh"
exec python -m pyspkv.bin.sessionize "$@"
