#!/usr/bin/env bash
# Speaker verification from human-machine dialogues without speaker labels (arXiv 2202.03484), on dialogues simulated
# from Arabic Speech Commands: utterances of a dialogue attract, those of other devices repel, dialogues of low
# compactness count less; then GE2E on a few labelled speakers. One of five speaker folds; grid.sh runs whole tables.
#   egs/arabic_speech_commands/dialogue/run.sh [--fold 0] [--mode household] [--rate 50] [--supervised true] ...
set -euo pipefail
# shellcheck source=steps/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../../steps/recipe.sh"
# shellcheck source=steps/dialogues.sh
. "$ROOT/steps/dialogues.sh"
fold=0              # 0 to 4
corpora=${SPKV_CORPORA:-}
corpus=${corpora:+$corpora/arabic_speech_commands}  # folder that holds dataset/ and the three .csv
. parse_options.sh
data=$data/fold$fold exp=$exp/fold$fold
begin_dialogues "$@"

if run 1 "speaker folds and dialogues from the corpus"; then
    [ -n "$corpus" ] || { echo "$0: give --corpus, the folder that holds dataset/ and the .csv" >&2; exit 1; }
    [ -f "$speech/truth/utt2content" ] || "$ROOT/local/arabic_speech_commands_folds.sh" --fold "$fold" "$corpus" "$speech"
    simulate "$speech/speech" --session "$speech/truth/utt2session" --alike "$speech/truth/utt2content"
fi
if run 2 "check the data directories"; then check_dialogues; fi
if run 3 "pre-train on dialogues"; then pretrain; fi
if run 4 "rank the dialogues by compactness"; then rank; fi
if run 5 "fine-tune on $labelled labelled speakers"; then finetune_few "$speech/labelled-$labelled"; fi
if run 6 "extract embeddings"; then extract_all; fi
if run 7 "score"; then score_all; fi
if run 8 "report"; then report; fi
