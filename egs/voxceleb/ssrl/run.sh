#!/usr/bin/env bash
# SSRL, self-supervised reflective learning (arXiv 2401.01473), at full size: DINO on VoxCeleb2 without its labels, k-means
# into 8,000, one run in which labels move while the student learns; tested on VoxCeleb1. Sizes and memory stand in
# conf/*.yaml, the other options in egs/mini/ssrl.
#   egs/voxceleb/ssrl/run.sh --ngpu 6 --vox1 DIR --vox2 DIR --trials veri_test2.txt --musan DIR --rirs DIR
set -euo pipefail
# shellcheck source=steps/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../../steps/recipe.sh"
# shellcheck source=local/voxceleb.sh
. "$ROOT/local/voxceleb.sh"
# shellcheck source=steps/ssrl.sh
. "$ROOT/steps/ssrl.sh"
num_clusters=8000   # k-means alone, as the authors
cluster_opts="--method kmeans"
. parse_options.sh
begin "$@"
noise_lists

if run 1 "data directories and noise lists"; then make_data; fi
if run 2 "check the data directories"; then check_data; fi
if run 3 "DINO"; then pretrain; fi
if run 4 "reflective learning"; then reflect; fi
if run 5 "train on the true labels, for comparison"; then compare; fi
if run 6 "extract embeddings"; then extract_all; offline extract_all; fi
if run 7 "score"; then score_all; offline score_all; fi
if run 8 "report"; then report_arms; fi
