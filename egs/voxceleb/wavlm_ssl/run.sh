#!/usr/bin/env bash
# WavLM-MHFA with iterative pseudo-labels (arXiv 2406.02285) at full size: RDINO on VoxCeleb2 without its labels, k-means
# into 50,000, Ward into 7,500, WavLM-Base+ with MHFA, AAM-softmax, dynamic loss gate and label correction, two more
# rounds, large-margin fine-tuning; tested on VoxCeleb1. Sizes and memory stand in conf/*.yaml.
#   egs/voxceleb/wavlm_ssl/run.sh --ngpu 2 --vox1 DIR --vox2 DIR --trials veri_test2.txt --musan DIR --rirs DIR \
#       --wavlm WavLM-Base+.pt
set -euo pipefail
# shellcheck source=steps/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../../steps/recipe.sh"
# shellcheck source=local/voxceleb.sh
. "$ROOT/local/voxceleb.sh"
# shellcheck source=steps/wavlm.sh
. "$ROOT/steps/wavlm.sh"
num_rounds=3
num_clusters=7500
cluster_opts=       # as the paper: no whitening
. parse_options.sh
begin "$@"
use_student
noise_lists

if run 1 "data directories and noise lists"; then make_data; fi
if run 2 "check the data directories"; then check_data; fi
if run 3 "DINO"; then import_trunk; pretrain; fi
if run 4 "rounds of clustering and training"; then rounds; fi
if run 5 "large-margin fine-tuning of the last round"; then finetune; ablate; spoil_labels; fi
if run 6 "extract embeddings"; then extract_all; fi
if run 7 "score"; then score_all; fi
if run 8 "report"; then report; fi
