#!/usr/bin/env bash
# Arabic Speech Commands, official split -> data directories train, train_labeled, dev, test and noise, and truth/.
# Usage: local/data.sh [options] <data> [<audio file of training noise> ...]
set -euo pipefail
corpus=            # folder that holds dataset/ and the three .csv
trials=            # folder of the given trial lists; empty: made by the same rule
dry_run=false      # only print the commands
. "$(dirname "$0")/../path.sh"
. parse_options.sh
data=$1; shift
given=()
[ -z "$trials" ] || given=(--dev-trials "$trials/arabic_speech_commands_val.trials"
  --test-trials "$trials/arabic_speech_commands_test.trials")
$dry_run || [ -n "$corpus" ] || po_die "give run.sh --corpus, the folder that holds dataset/ and the .csv"
log_run python "$SPKV_ROOT/local/arabic_speech_commands.py" "${given[@]}" "$corpus" "$data"
[ $# -eq 0 ] || log_run python "$SPKV_ROOT/local/noise.py" "$data/noise" "$@"
