#!/usr/bin/env bash
# SSRL, self-supervised reflective learning (arXiv 2401.01473), on the corpus that egs/mini synthesises: contrastive
# pre-training, one clustering, one run in which labels move while the student learns; beside it, with
# --offline-rounds 5, rounds of clustering and training from the same pre-trained model (in <exp>/offline).
#   egs/mini/ssrl/run.sh [--num-clusters 133] [--offline-rounds 5] ...
set -euo pipefail
# shellcheck source=steps/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../../steps/recipe.sh"
num_rounds=1
num_clusters=133    # 1.33 times the speakers; SSRL brings the number down
offline_rounds=0    # rounds of the other arm
. parse_options.sh
begin
use_noise "$data/noise"

offline() { # <function>: the same in the other arm's folder, with its config and rounds
    local base=$exp confs=$conf num_rounds=$offline_rounds
    local exp=$base/offline conf=$base/offline/conf
    [ "$offline_rounds" -gt 0 ] || return 0
    mkdir -p "$conf"
    ln -sfn "$confs/offline.yaml" "$conf/round.yaml"
    ln -sfn ../pretrain "$exp/pretrain"
    "$1"
}

if run 1 "synthesise the corpus"; then local/mini_data.sh --nj "$nj" "$data"; fi
if run 2 "check the data directories"; then check_data; fi
if run 3 "pre-train without labels"; then pretrain; fi
if run 4 "reflective learning"; then
    data_out=true
    rounds
    data_out=false
    offline rounds
fi
if run 5 "large-margin fine-tuning on the labels it came to"; then
    train --init "$exp/round1/model" "$conf/finetune.yaml" "$exp/round1/data_out" "$exp/finetune/model"
fi
if run 6 "extract embeddings"; then extract_all; offline extract_all; fi
if run 7 "score"; then score_all; offline score_all; fi
if run 8 "report"; then offline report; report; fi
