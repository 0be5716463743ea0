#!/usr/bin/env bash
# Cluster embeddings into pseudo-speakers: a new data directory whose utt2spk is the clusters.
# Usage: steps/cluster.sh [options] <embedding.scp> <data-dir> <new-data-dir> [bin.cluster options]
#   e.g. steps/cluster.sh --num-clusters auto exp/pretrain/embed/train/embedding.scp data/train exp/round1/data
set -euo pipefail
num_clusters=auto   # or a number
previous=           # data directory of the previous round: cluster ids are matched to it
truth=              # true utt2spk, for diagnostics in the report only
seed=0
. "$(dirname "${BASH_SOURCE[0]}")/../path.sh"
. parse_options.sh
[ $# -ge 3 ] || { sed -n '2,4s/^# //p' "$0" >&2; exit 1; }
scp=$1 data=$2 new=$3; shift 3
if [ -f "$new/utt2spk" ]; then
    echo "$0: $new is there, its utt2spk is used as it is"; exit 0
fi
args=(--embeddings "$scp" --data "$data" --out-data "$new" --num-clusters "$num_clusters" --seed "$seed")
args+=(--report "$(dirname "$new")/report.json")
[ -z "$previous" ] || args+=(--previous "$previous")
[ -z "$truth" ] || args+=(--truth "$truth")
"$SPKV_PYTHON" -m pyspkv.bin.cluster "${args[@]}" "$@"
validate_data_dir.sh --no-text --no-feats --no-spk-sort "$new"
