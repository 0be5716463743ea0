#!/usr/bin/env bash
# Arabic Speech Commands -> one speaker fold (speech, dev, test, train_labeled, labeled-<number>) and its dialogues.
# Usage: local/data.sh [options] <folder of the fold> <folder of the dialogues> [options of bin.simulate_dialogues]
set -euo pipefail
corpus=            # folder that holds dataset/ and the three .csv
fold=0             # speaker fold, 0 to 4
mode=random        # devices: random = a speaker each, household = two speakers share one
mixed_percent=10   # percent of the dialogues with a second speaker
dry_run=false      # only print the commands
. "$(dirname "$0")/../path.sh"
. parse_options.sh
$dry_run || [ -n "$corpus" ] || po_die "give run.sh --corpus, the folder that holds dataset/ and the .csv"
speech=$1 dialogues=$2; shift 2
[ "$mode" = random ] || set -- --households "$@"
log_run python "$SPKV_ROOT/local/arabic_speech_commands.py" --fold "$fold" "$corpus" "$speech"
log_run python -m pyspkv.bin.simulate_dialogues --mixed-percent "$mixed_percent" \
  --session "$speech/truth/utt2session" --alike "$speech/truth/utt2content" "$@" "$speech/speech" "$dialogues"
