#!/usr/bin/env bash
# The one part of this recipe that knows the corpus: its files -> data directories. Usage: ./data.sh <corpus> <data>
# To be made in <data>:
#   train           wav.scp `utterance path`, utt2spk `utterance utterance`, spk2utt; no speaker is named here
#   dev, test       wav.scp, utt2spk, spk2utt with the speakers, and trials `enrol test target|nontarget`
#   noise           optional: a data directory of noises to augment with
#   train_labelled, truth/train_utt2spk   the true speakers, for --supervised and for diagnostics; optional but in gll,
#                   whose few labels are drawn from train_labelled
# utils/utt2spk_to_spk2utt.sh, fix_data_dir.sh and validate_data_dir.sh help; local/librispeech_data.py is an example.
set -euo pipefail
# [ -n "$1" ] || { echo "$0: give run.sh --corpus, the folder of the files" >&2; exit 1; }
echo "$0: to be written: make train, dev and test in $2 from ${1:-what --corpus names}" >&2
exit 1
