#!/usr/bin/env bash
# SSRL, self-supervised reflective learning (arXiv 2401.01473), on the corpus that egs/mini synthesises: contrastive
# pre-training, one clustering, one run in which labels move while the student learns; beside it, with
# --offline-rounds 5, rounds of clustering and training from the same pre-trained model.
#   egs/mini/ssrl/run.sh [--num-clusters 133] [--offline-rounds 5] [--ablation true] ...
set -euo pipefail
# shellcheck source=steps/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../../steps/recipe.sh"
# shellcheck source=local/mini.sh
. "$ROOT/local/mini.sh"
# shellcheck source=steps/ssrl.sh
. "$ROOT/steps/ssrl.sh"
data_opts="--sessions 5"  # of 4 utterances
num_clusters=133    # 1.33 times the speakers; SSRL brings the number down
cluster_opts="--method kmeans"  # alone, as the authors
. parse_options.sh
begin "$@"
noise_lists

if run 1 "synthesise the corpus"; then make_data; fi
if run 2 "check the data directories"; then check_data; fi
if run 3 "pre-train without labels"; then pretrain; fi
if run 4 "reflective learning"; then reflect; fi
if run 5 "train on the true labels, for comparison"; then compare; fi
if run 6 "extract embeddings"; then extract_all; offline extract_all; fi
if run 7 "score"; then score_all; offline score_all; fi
if run 8 "report"; then report_arms; fi
