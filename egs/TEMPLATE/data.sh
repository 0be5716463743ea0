#!/usr/bin/env bash
# The only part of this recipe that depends on the corpus: it makes data directories from its files. Make in <data>:
#   train           wav.scp `utterance path`, utt2spk `utterance utterance`, spk2utt; no speaker is named here
#   dev, test       wav.scp, utt2spk, spk2utt with the speakers, and trials `enrol test target|nontarget`
#   noise           optional: a data directory of noises to augment with; then set noise=(...) in run.sh
#   train_labeled  wav.scp, utt2spk, spk2utt with the true speakers: for the methods supervised and gll
# utils/fix_data_dir.sh sorts and makes spk2utt. docs/recipes.md has this file for a folder of <speaker>/<file>.wav.
# Usage: local/data.sh [options] <corpus> <data>
set -euo pipefail
dry_run=false      # only print the commands
. "$(dirname "$0")/../path.sh"
. parse_options.sh
corpus=$1 data=$2
$dry_run || po_die "to be written: make train, dev and test in $data from ${corpus:-what run.sh --corpus names}"
