#!/usr/bin/env bash
# GLL, two-stage semi-supervised learning (Wang et al., IJCAI 2024), on one-second commands of 18 speakers: contrastive
# pre-training with augmentation adversarial training, then gated label learning from a few labels a speaker; or one of
# its baselines (--system, listed in steps/semi.sh). The val speakers are dev: they end stages and choose epochs.
#   egs/arabic_speech_commands/gll/run.sh --labels 4 [--system fixmatch] [--supervised true]
set -euo pipefail
# shellcheck source=steps/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../../steps/recipe.sh"
# shellcheck source=local/arabic_speech_commands.sh
. "$ROOT/local/arabic_speech_commands.sh"
# shellcheck source=steps/semi.sh
. "$ROOT/steps/semi.sh"
stage_epochs="4 2 2"
stage_rates="1e-3 2e-4 2e-4"  # a full rate again would learn wrong labels by heart
cluster_opts="--whiten 0.5"
labelled_batch=16
. parse_options.sh
begin "$@"
use_system
noise_lists

if run 1 "data directories from the corpus"; then make_data; fi
if run 2 "check the data directories"; then check_data; fi
if run 3 "stage I: pre-train without labels"; then pretrain; fi
use_cell
if run 4 "$system from $labels labels a speaker"; then split_labels; learn; fi
if run 5 "all true labels, for comparison"; then ! $supervised || supervise_fully; fi
if run 6 "extract embeddings"; then extract_all; fi
if run 7 "score"; then score_all; fi
if run 8 "report"; then report_system; fi
