#!/usr/bin/env bash
# Synthesise the corpus of egs/mini, cut its sessions into dialogues, and take a few labeled speakers.
# Usage: local/data.sh [options] <data> <folder of the dialogues> [options of local/mini.py]
set -euo pipefail
nj=2               # processes, from 1
num_train_spk=100  # training speakers
num_dev_spk=20     # development speakers
num_test_spk=40    # test speakers
num_labeled_spk=12 # labeled speakers, from 1
mode=random        # devices: random = a speaker each, household = two speakers share one
mixed_percent=10   # percent of the dialogues with a second speaker
dialogue_opts=()   # further options of bin.simulate_dialogues
dry_run=false      # only print the commands
. "$(dirname "$0")/../path.sh"
. parse_options.sh
data=$1 dialogues=$2; shift 2
[ "$mode" = random ] || dialogue_opts=(--households "${dialogue_opts[@]}")
log_run python "$SPKV_ROOT/local/mini.py" --nj "$nj" --num-train-spk "$num_train_spk" --num-dev-spk "$num_dev_spk" \
  --num-test-spk "$num_test_spk" "$data" "$@"
log_run python -m pyspkv.bin.simulate_dialogues --mixed-percent "$mixed_percent" \
  --session "$data/truth/utt2session" --sizes 2:4 "${dialogue_opts[@]}" "$data/train_labeled" "$dialogues"
log_run python -m pyspkv.bin.datadir subset --first-speakers "$data/train_labeled" "$num_labeled_spk" \
  "$data/labeled-$num_labeled_spk"
