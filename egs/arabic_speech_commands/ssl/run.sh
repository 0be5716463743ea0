#!/usr/bin/env bash
# Self-supervised speaker verification on one-second commands (Arabic Speech Commands, 18 training speakers, official
# split; its val speakers are dev) without speaker labels: contrastive pre-training, rounds of clustering and training,
# large-margin fine-tuning. The corpus in $SPKV_CORPORA is the default where that is set.
#   egs/arabic_speech_commands/ssl/run.sh --corpus /data/arabic-speech-commands-dataset
set -euo pipefail
# shellcheck source=steps/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../../steps/recipe.sh"
# shellcheck source=steps/rounds.sh
. "$ROOT/steps/rounds.sh"
# shellcheck source=local/arabic_speech_commands.sh
. "$ROOT/local/arabic_speech_commands.sh"
num_rounds=3
num_clusters=30     # more than there may be; the estimate (auto) finds speakers x commands instead
. parse_options.sh
begin "$@"
noise_lists

if run 1 "data directories from the corpus"; then make_data; fi
if run 2 "check the data directories"; then check_data; fi
if run 3 "pre-train without labels"; then pretrain; fi
if run 4 "rounds of clustering and training"; then rounds; fi
if run 5 "large-margin fine-tuning of the last round"; then finetune; fi
if run 6 "extract embeddings"; then extract_all; fi
if run 7 "score"; then score_all; fi
if run 8 "report"; then report; fi
