#!/usr/bin/env bash
# Self-supervised speaker verification on LibriSpeech without its speaker labels: contrastive pre-training, rounds of
# clustering and training, large-margin fine-tuning; 30 training speakers are held out as dev. Wants the corpus in its
# own layout: the full one, or the subset in $SPKV_CORPORA, which is the default where that is set.
#   egs/librispeech/ssl/run.sh --librispeech /data/LibriSpeech --parts "train-clean-100 train-clean-360"
set -euo pipefail
# shellcheck source=steps/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../../steps/recipe.sh"
# shellcheck source=steps/rounds.sh
. "$ROOT/steps/rounds.sh"
# shellcheck source=local/librispeech.sh
. "$ROOT/local/librispeech.sh"
num_rounds=2
num_pretrain=6      # independent ones err differently (README: dev AMI and EER by their number)
ensemble=true       # of the phases so far; as average linkage, chosen on the dev speakers
cluster_opts="--whiten 0.75 --linkage average --metric cosine"
. parse_options.sh
begin "$@"
noise_lists

if run 1 "data directories from the corpus"; then make_data; fi
if run 2 "check the data directories"; then check_data; fi
if run 3 "pre-train without labels"; then pretrain; fi
if run 4 "rounds of clustering and training"; then rounds; fi
if run 5 "large-margin fine-tuning of the last round"; then finetune; fi
if run 6 "extract embeddings"; then extract_all; fi
if run 7 "score"; then score_all; fi
if run 8 "report"; then report; fi
