#!/usr/bin/env bash
# WavLM-MHFA with iterative pseudo-labels (arXiv 2406.02285) on LibriSpeech, small: DINO, clustering, AAM-softmax with
# dynamic loss gate and label correction, again, large-margin fine-tuning. Student and options as in egs/mini/wavlm_ssl,
# corpus as in egs/librispeech/ssl.
#   egs/librispeech/wavlm_ssl/run.sh --librispeech /data/LibriSpeech --wavlm WavLM-Base+.pt
set -euo pipefail
# shellcheck source=steps/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../../steps/recipe.sh"
# shellcheck source=steps/wavlm.sh
. "$ROOT/steps/wavlm.sh"
num_rounds=3
corpora=${SPKV_CORPORA:-}
librispeech=${corpora:+$corpora/librispeech_subset/LibriSpeech}   # folder that holds train-clean-100, test-other ...
parts=train-clean-100
test_parts=test-other
trials=${corpora:+$corpora/trials/librispeech_test_other.trials}  # of the test parts; empty = all pairs
noise=${corpora:+$corpora/noise/boiler.wav}                       # audio files of training noise, or none
. parse_options.sh
begin
[ -z "$noise" ] || use_noise "$data/noise"
use_student

if run 1 "data directories from the corpus"; then
    [ -n "$librispeech" ] || { echo "$0: give --librispeech, the folder that holds $parts" >&2; exit 1; }
    local/librispeech_data.sh --parts "$parts" --test-parts "$test_parts" ${trials:+--trials "$trials"} \
        "$librispeech" "$data"
    # shellcheck disable=SC2086  # several files
    [ -z "$noise" ] || local/noise_data.sh "$data/noise" $noise
fi
if run 2 "check the data directories"; then check_data; fi
if run 3 "DINO"; then import_trunk; pretrain; fi
if run 4 "rounds of clustering and training"; then rounds; fi
if run 5 "large-margin fine-tuning of the last round"; then finetune; ablate; spoil_labels; fi
if run 6 "extract embeddings"; then extract_all; fi
if run 7 "score"; then score_all; fi
if run 8 "report"; then report; fi
