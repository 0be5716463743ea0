#!/usr/bin/env bash
# speechocean762 and, as further test sets, Speech Commands and LibriSpeech's test-other -> data directories train,
# train_labeled, dev, test, speech_commands_dev, speech_commands_test, librispeech_test and noise, and truth/.
# Usage: local/data.sh [options] <data> [<audio file of training noise> ...]
set -euo pipefail
corpus=            # folder that holds train/, test/ and the lists of speakers
words=             # folder of Speech Commands; empty: without it
librispeech=       # folder that holds test-other/ of LibriSpeech; empty: without it
trials=            # folder of the given trial lists; empty: they are made
dry_run=false      # only print the commands
. "$(dirname "$0")/../path.sh"
. parse_options.sh
data=$1; shift
given() { # CORPUS: options that name its lists
  [ -z "$trials" ] || lists=(--dev-trials "$trials/$1_dev.trials" --test-trials "$trials/$1_test.trials")
}
lists=()
$dry_run || [ -n "$corpus" ] || po_die "give run.sh --corpus, the folder that holds train/ and test/"
given speechocean762
log_run python "$SPKV_ROOT/local/speechocean762.py" "${lists[@]}" "$corpus" "$data"
given speech_commands
[ -z "$words" ] || log_run python "$SPKV_ROOT/local/speech_commands.py" "${lists[@]}" "$words" "$data"
lists=()
[ -z "$trials" ] || lists=(--trials "$trials/librispeech_test_other.trials")
[ -z "$librispeech" ] ||
  log_run python "$SPKV_ROOT/local/librispeech.py" --only-test librispeech_test "${lists[@]}" "$librispeech" "$data"
[ $# -eq 0 ] || log_run python "$SPKV_ROOT/local/noise.py" "$data/noise" "$@"
