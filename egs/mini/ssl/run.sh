#!/usr/bin/env bash
# Self-supervised speaker verification from unlabelled speech, on a corpus that this recipe synthesises itself:
# contrastive pre-training, rounds of clustering and training, large-margin fine-tuning. Minutes on a CPU.
#   egs/mini/ssl/run.sh [--stage 1] [--stop-stage 8] [--exp exp] [--supervised true] ...
set -euo pipefail
# shellcheck source=steps/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../../steps/recipe.sh"
# shellcheck source=steps/rounds.sh
. "$ROOT/steps/rounds.sh"
# shellcheck source=local/mini.sh
. "$ROOT/local/mini.sh"
. parse_options.sh
begin "$@"
noise_lists

if run 1 "synthesise the corpus"; then make_data; fi
if run 2 "check the data directories"; then check_data; fi
if run 3 "pre-train without labels"; then pretrain; fi
if run 4 "rounds of clustering and training"; then rounds; fi
if run 5 "large-margin fine-tuning of the last round"; then finetune; fi
if run 6 "extract embeddings"; then extract_all; fi
if run 7 "score"; then score_all; fi
if run 8 "report"; then report; fi
