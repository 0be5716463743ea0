#!/usr/bin/env bash
# GLL, two-stage semi-supervised learning (Wang et al., IJCAI 2024), at full size: ECAPA-1024 pre-trained on VoxCeleb2
# without labels, then five iterations of gated label learning from 1, 4, 10, 20, 40 or 60 labels a speaker; tested on
# VoxCeleb1. The paper chooses epochs on its test trials; here dev speakers do. Baselines: --system (steps/semi.sh).
#   egs/voxceleb/gll/run.sh --ngpu 2 --labels 10 --vox1 DIR --vox2 DIR --trials veri_test2.txt --musan DIR --rirs DIR
set -euo pipefail
# shellcheck source=steps/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../../steps/recipe.sh"
# shellcheck source=local/voxceleb.sh
. "$ROOT/local/voxceleb.sh"
# shellcheck source=steps/semi.sh
. "$ROOT/steps/semi.sh"
num_rounds=5
batch=200
labelled_batch=100
. parse_options.sh
begin "$@"
use_system
noise_lists

if run 1 "data directories and noise lists"; then make_data; fi
if run 2 "check the data directories"; then check_data; fi
if run 3 "stage I: pre-train without labels"; then pretrain; fi
use_cell
if run 4 "$system from $labels labels a speaker"; then split_labels; learn; fi
if run 5 "all true labels, for comparison"; then ! $supervised || supervise_fully; fi
if run 6 "extract embeddings"; then extract_all; fi
if run 7 "score"; then score_all; fi
if run 8 "report"; then report_system; fi
