#!/usr/bin/env bash
# SSRL, self-supervised reflective learning (arXiv 2401.01473), on one-second commands (Arabic Speech Commands):
# contrastive pre-training, one clustering, one run in which labels move while the student learns; options as in
# egs/mini/ssrl, corpus as in egs/arabic_speech_commands/ssl.
#   egs/arabic_speech_commands/ssrl/run.sh [--offline-rounds 5] [--ablation true] ...
set -euo pipefail
# shellcheck source=steps/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../../steps/recipe.sh"
# shellcheck source=local/arabic_speech_commands.sh
. "$ROOT/local/arabic_speech_commands.sh"
# shellcheck source=steps/ssrl.sh
. "$ROOT/steps/ssrl.sh"
num_clusters=30         # more than there may be: SSRL brings the number down
cluster_opts="--method kmeans"  # alone, as the authors
. parse_options.sh
begin "$@"
noise_lists

if run 1 "data directories from the corpus"; then make_data; fi
if run 2 "check the data directories"; then check_data; fi
if run 3 "pre-train without labels"; then pretrain; fi
if run 4 "reflective learning"; then reflect; fi
if run 5 "train on the true labels, for comparison"; then compare; fi
if run 6 "extract embeddings"; then extract_all; offline extract_all; fi
if run 7 "score"; then score_all; offline score_all; fi
if run 8 "report"; then report_arms; fi
