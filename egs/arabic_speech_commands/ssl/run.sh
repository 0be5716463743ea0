#!/usr/bin/env bash
# Self-supervised speaker verification on one-second commands (Arabic Speech Commands, 18 training speakers, official
# split; its val speakers are dev) without speaker labels: contrastive pre-training, rounds of clustering and training,
# large-margin fine-tuning. The corpus in $SPKV_CORPORA is the default where that is set.
#   egs/arabic_speech_commands/ssl/run.sh --corpus /data/arabic-speech-commands-dataset
set -euo pipefail
# shellcheck source=steps/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../../steps/recipe.sh"
num_rounds=3
num_clusters=30     # more than there may be; the estimate (auto) finds speakers x commands instead
corpora=${SPKV_CORPORA:-}
corpus=${corpora:+$corpora/arabic_speech_commands}  # folder that holds dataset/ and the three .csv
trials=${corpora:+$corpora/trials}                  # folder of the given lists; empty = made by the same rule
noise=${corpora:+$corpora/noise/boiler.wav}         # audio files of training noise, or none
. parse_options.sh
begin
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
if run 3 "pre-train without labels"; then pretrain; fi
if run 4 "rounds of clustering and training"; then rounds; fi
if run 5 "large-margin fine-tuning of the last round"; then finetune; fi
if run 6 "extract embeddings"; then extract_all; fi
if run 7 "score"; then score_all; fi
if run 8 "report"; then report; fi
