#!/usr/bin/env bash
# GLL, two-stage semi-supervised learning (Wang et al., IJCAI 2024), on the corpus that egs/mini synthesises: contrastive
# pre-training with augmentation adversarial training, then gated label learning from a few labels a speaker; or one of
# its baselines (--system, listed in steps/semi.sh). The dev speakers end stages and choose epochs.
#   egs/mini/gll/run.sh --labels 2 [--system fixmatch] [--supervised true]
set -euo pipefail
# shellcheck source=steps/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../../steps/recipe.sh"
# shellcheck source=local/mini.sh
. "$ROOT/local/mini.sh"
# shellcheck source=steps/semi.sh
. "$ROOT/steps/semi.sh"
labels=2
stage_epochs="14 3 3"
stage_rates="1e-3 2e-4 2e-4"  # a full rate again would learn wrong labels by heart
num_train_spk=64    # with 32 utterances each: what is unlabelled must fill an epoch
data_opts="--utts-per-session 8"
. parse_options.sh
begin "$@"
use_system
noise_lists

if run 1 "synthesise the corpus"; then make_data; fi
if run 2 "check the data directories"; then check_data; fi
if run 3 "stage I: pre-train without labels"; then pretrain; fi
use_cell
if run 4 "$system from $labels labels a speaker"; then split_labels; learn; fi
if run 5 "all true labels, for comparison"; then ! $supervised || supervise_fully; fi
if run 6 "extract embeddings"; then extract_all; fi
if run 7 "score"; then score_all; fi
if run 8 "report"; then report_system; fi
