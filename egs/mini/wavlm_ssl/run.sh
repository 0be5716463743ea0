#!/usr/bin/env bash
# WavLM-MHFA with iterative pseudo-labels (arXiv 2406.02285) on the corpus that egs/mini synthesises, small: DINO,
# clustering, AAM-softmax with dynamic loss gate and label correction, again, large-margin fine-tuning. The student is
# the ECAPA-TDNN of conf/round.yaml; --student small-wavlm puts a small WavLM with MHFA, trained from scratch, in its place.
#   egs/mini/wavlm_ssl/run.sh [--labels-from wavlm --wavlm WavLM-Base+.pt] [--student small-wavlm] ...
set -euo pipefail
# shellcheck source=steps/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../../steps/recipe.sh"
# shellcheck source=local/mini.sh
. "$ROOT/local/mini.sh"
# shellcheck source=steps/wavlm.sh
. "$ROOT/steps/wavlm.sh"
num_rounds=3
cluster_opts="--whiten 0.75"  # DINO spends its first axes on channels
. parse_options.sh
begin "$@"
noise_lists
use_student

if run 1 "synthesise the corpus"; then make_data; fi
if run 2 "check the data directories"; then check_data; fi
if run 3 "DINO"; then import_trunk; pretrain; fi
if run 4 "rounds of clustering and training"; then rounds; fi
if run 5 "large-margin fine-tuning of the last round"; then finetune; ablate; spoil_labels; fi
if run 6 "extract embeddings"; then extract_all; fi
if run 7 "score"; then score_all; fi
if run 8 "report"; then report; fi
