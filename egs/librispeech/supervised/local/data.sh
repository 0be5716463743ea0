#!/usr/bin/env bash
# LibriSpeech in its own layout -> data directories train, train_labeled, dev, test and noise, and truth/.
# Usage: local/data.sh [options] <data> [<audio file of training noise> ...]
set -euo pipefail
librispeech=       # folder with train-clean-100, ...
parts=(train-clean-100) # training parts
test_parts=(test-other) # test parts
fold=0             # which 30 training speakers are dev
trials=            # file of test trials; empty: all pairs
dry_run=false      # only print the commands
. "$(dirname "$0")/../path.sh"
. parse_options.sh
data=$1; shift
given=()
[ -z "$trials" ] || given=(--trials "$trials")
$dry_run || [ -n "$librispeech" ] || po_die "give run.sh --librispeech, the folder that holds ${parts[*]}"
log_run python "$SPKV_ROOT/local/librispeech.py" --parts "${parts[*]}" --test-parts "${test_parts[*]}" --fold "$fold" \
  "${given[@]}" "$librispeech" "$data"
[ $# -eq 0 ] || log_run python "$SPKV_ROOT/local/noise.py" "$data/noise" "$@"
