#!/usr/bin/env bash
# Self-supervised speaker verification on LibriSpeech without its speaker labels: contrastive pre-training, rounds of
# clustering and training, large-margin fine-tuning; 30 training speakers are held out as dev. Wants the corpus in its
# own layout: the full one, or the subset in $SPKV_CORPORA, which is the default where that is set.
#   egs/librispeech/ssl/run.sh --librispeech /data/LibriSpeech --parts "train-clean-100 train-clean-360"
set -euo pipefail
# shellcheck source=steps/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../../steps/recipe.sh"
corpora=${SPKV_CORPORA:-}
librispeech=${corpora:+$corpora/librispeech_subset/LibriSpeech}   # folder that holds train-clean-100, test-other ...
parts=train-clean-100
test_parts=test-other
trials=${corpora:+$corpora/trials/librispeech_test_other.trials}  # of the test parts; empty = all pairs
noise=${corpora:+$corpora/noise/boiler.wav}                       # audio files of training noise, or none
. parse_options.sh
begin
[ -z "$noise" ] || use_noise "$data/noise"

if run 1 "data directories from the corpus"; then
    [ -n "$librispeech" ] || { echo "$0: give --librispeech, the folder that holds $parts" >&2; exit 1; }
    local/librispeech_data.sh --parts "$parts" --test-parts "$test_parts" ${trials:+--trials "$trials"} \
        "$librispeech" "$data"
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
