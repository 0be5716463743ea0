#!/usr/bin/env bash
# GLL, two-stage semi-supervised learning (Wang et al., IJCAI 2024), on one-second commands of 18 speakers: contrastive
# pre-training with augmentation adversarial training, then gated label learning from a few labels a speaker; or one of
# its baselines (--system, listed in steps/semi.sh). The val speakers are dev: they end stages and choose epochs.
#   egs/arabic_speech_commands/gll/run.sh --labels 4 [--system fixmatch] [--supervised true]
set -euo pipefail
# shellcheck source=steps/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../../steps/recipe.sh"
# shellcheck source=steps/semi.sh
. "$ROOT/steps/semi.sh"
stage_epochs="4 2 2"
labelled_batch=16
corpora=${SPKV_CORPORA:-}
corpus=${corpora:+$corpora/arabic_speech_commands}  # folder that holds dataset/ and the three .csv
trials=${corpora:+$corpora/trials}                  # folder of the given lists; empty = made by the same rule
noise=${corpora:+$corpora/noise/boiler.wav}         # audio files of training noise, or none
. parse_options.sh
begin
use_system
[ -z "$noise" ] || use_noise "$data/noise"

if run 1 "data directories from the corpus"; then
    [ -n "$corpus" ] || { echo "$0: give --corpus, the folder that holds dataset/ and the .csv" >&2; exit 1; }
    lists=()
    for set in dev:val test:test; do
        list=$trials/arabic_speech_commands_${set#*:}.trials
        [ -z "$trials" ] || lists+=("--${set%:*}-trials" "$list")
    done
    local/arabic_speech_commands_data.sh "${lists[@]}" "$corpus" "$data"
    # shellcheck disable=SC2086  # several files
    [ -z "$noise" ] || local/noise_data.sh "$data/noise" $noise
fi
if run 2 "check the data directories"; then check_data; fi
if run 3 "stage I: pre-train without labels"; then pretrain; fi
use_cell
if run 4 "$system from $labels labels a speaker"; then split_labels; learn; fi
if run 5 "all true labels, for comparison"; then ! $supervised || supervise_fully; fi
if run 6 "extract embeddings"; then extract_all; fi
if run 7 "score"; then score_all; fi
if run 8 "report"; then report_system; fi
