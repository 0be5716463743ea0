#!/usr/bin/env bash
# Self-supervised speaker verification on <corpus> without speaker labels: contrastive pre-training, rounds of
# clustering and training, large-margin fine-tuning.
set -euo pipefail
# shellcheck source=steps/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../../steps/recipe.sh"
# shellcheck source=steps/rounds.sh
. "$ROOT/steps/rounds.sh"
# shellcheck source=local/corpus.sh
. "$ROOT/local/corpus.sh"
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
