#!/usr/bin/env bash
# Synthesise the corpus of egs/mini: data directories train, train_labeled, dev, test and noise, and truth/.
# Usage: local/data.sh [options] <data> [options of local/mini.py]
set -euo pipefail
nj=2               # processes, from 1
num_train_spk=100  # training speakers
num_dev_spk=20     # development speakers
num_test_spk=40    # test speakers
dry_run=false      # only print the commands
. "$(dirname "$0")/../path.sh"
. parse_options.sh
log_run python "$SPKV_ROOT/local/mini.py" --nj "$nj" --num-train-spk "$num_train_spk" --num-dev-spk "$num_dev_spk" \
  --num-test-spk "$num_test_spk" "$@"
