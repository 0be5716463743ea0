#!/usr/bin/env bash
# Speaker verification from human-machine dialogues without speaker labels (arXiv 2202.03484), on dialogues simulated
# from the corpus that egs/mini synthesises: each session is cut into dialogues of 2 to 4 utterances.
#   egs/mini/dialogue/run.sh [--mode household] [--rate 50] [--supervised true] ...
set -euo pipefail
# shellcheck source=steps/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../../steps/recipe.sh"
# shellcheck source=local/mini.sh
. "$ROOT/local/mini.sh"
# shellcheck source=steps/dialogues.sh
. "$ROOT/steps/dialogues.sh"
. parse_options.sh
begin_dialogues "$@"
use_noise "$speech/noise"

if run 1 "synthesise the corpus, simulate dialogues"; then
    data=$speech make_data
    simulate "$speech/train_labelled" --session "$speech/truth/utt2session" --sizes 2:4
    subset_data_dir.sh --spk-list <(head -n "$labelled" "$speech/train_labelled/spk2utt") \
        "$speech/train_labelled" "$speech/labelled-$labelled"
fi
if run 2 "check the data directories"; then check_dialogues; fi
if run 3 "pre-train on dialogues"; then pretrain; fi
if run 4 "rank the dialogues by compactness"; then rank; fi
if run 5 "fine-tune on $labelled labelled speakers"; then finetune_few "$speech/labelled-$labelled"; fi
if run 6 "extract embeddings"; then extract_all; fi
if run 7 "score"; then score_all; fi
if run 8 "report"; then report; fi
