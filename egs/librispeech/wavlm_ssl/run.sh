#!/usr/bin/env bash
# WavLM-MHFA with iterative pseudo-labels (arXiv 2406.02285) on LibriSpeech, small: DINO, clustering, AAM-softmax with
# dynamic loss gate and label correction, again, large-margin fine-tuning. Student and options as in egs/mini/wavlm_ssl,
# corpus as in egs/librispeech/ssl.
#   egs/librispeech/wavlm_ssl/run.sh --librispeech /data/LibriSpeech --wavlm WavLM-Base+.pt
set -euo pipefail
# shellcheck source=steps/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../../steps/recipe.sh"
# shellcheck source=local/librispeech.sh
. "$ROOT/local/librispeech.sh"
# shellcheck source=steps/wavlm.sh
. "$ROOT/steps/wavlm.sh"
num_rounds=3
round_init=         # from DINO's encoder: 819 utterances are too few to begin anew (README)
cluster_opts="--whiten 0.75 --linkage average --metric cosine"  # as in ../ssl
. parse_options.sh
begin "$@"
noise_lists
use_student

if run 1 "data directories from the corpus"; then make_data; fi
if run 2 "check the data directories"; then check_data; fi
if run 3 "DINO"; then import_trunk; pretrain; fi
if run 4 "rounds of clustering and training"; then rounds; fi
if run 5 "large-margin fine-tuning of the last round"; then finetune; ablate; spoil_labels; fi
if run 6 "extract embeddings"; then extract_all; fi
if run 7 "score"; then score_all; fi
if run 8 "report"; then report; fi
