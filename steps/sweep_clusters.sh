#!/usr/bin/env bash
# How much the number of pseudo-speakers matters: the recipe's stages 4 to 8 for each number from one pre-trained model,
# in <exp>/k<number>; the final model's EER by number goes into a table of --results. What is there already is kept.
# Usage: steps/sweep_clusters.sh [options] <recipe> <exp>
#   e.g. steps/sweep_clusters.sh --clusters "50 100 150 200" egs/mini/wavlm_ssl egs/mini/wavlm_ssl/exp
set -euo pipefail
clusters="50 100 150 200"  # numbers of pseudo-speakers
seed=0
data=             # the recipe's data directories; default <recipe>/data
run_opts=         # further options of the recipe's run.sh
title="EER by number of pseudo-speakers"
results=          # RESULTS.jsonl; default <recipe>/RESULTS.jsonl
. "$(dirname "${BASH_SOURCE[0]}")/../path.sh"
. parse_options.sh
[ $# -eq 2 ] || { sed -n '2,5s/^# //p' "$0" >&2; exit 1; }
recipe=$(realpath "$1") exp=$(realpath -m "$2")
data=$(realpath -m "${data:-$recipe/data}") results=$(realpath -m "${results:-$recipe/RESULTS.jsonl}")

# shellcheck disable=SC2086  # options are split on purpose
"$recipe/run.sh" --stop-stage 3 --exp "$exp" --data "$data" --seed "$seed" $run_opts
for k in $clusters; do
    mkdir -p "$exp/k$k"
    ln -sfn ../pretrain "$exp/k$k/pretrain"
    # shellcheck disable=SC2086
    "$recipe/run.sh" --stage 4 --exp "$exp/k$k" --data "$data" --seed "$seed" --num-clusters "$k" $run_opts
    last=$exp/k$k/finetune
    [ -d "$last" ] || last=$(printf '%s\n' "$exp/k$k"/round* | sort -V | tail -n 1)
    "$SPKV_PYTHON" -m pyspkv.bin.results --file "$results" --table "$title" --system "$last" \
        --row "${last##*/}" --column "$k" --seed "$seed" \
        --command "steps/sweep_clusters.sh --clusters \"$clusters\" --seed $seed ${recipe#"$ROOT/"} ${2#"$ROOT/"}"
done
