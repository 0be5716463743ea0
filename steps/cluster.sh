#!/usr/bin/env bash
# Cluster embeddings into pseudo-speakers, and write a data directory with these in utt2spk. Several embedding.scp of the
# same utterances are joined. Existing labels are kept if the options are the same; other options are an error.
# Usage: steps/cluster.sh [options] <embedding.scp>... <data-dir> <new-data-dir> [options of bin.cluster]
#   e.g. steps/cluster.sh --num-clusters auto exp/pretrain/embed/train/embedding.scp data/train exp/round1/data
set -euo pipefail
cmd=run.sh          # job runner
num_clusters=auto   # number of pseudo-speakers, or auto
previous=           # data directory of the previous round: clusters that match keep their ids
truth=              # true utt2spk, for diagnostics in the report only
seed=0
dry_run=false       # only print the commands
. "$(dirname "${BASH_SOURCE[0]}")/../path.sh"
. parse_options.sh
args=()
while [[ ${1:-} == *.scp ]]; do args+=(--embeddings "$1"); shift; done
[ ${#args[@]} -gt 0 ] && [ $# -ge 2 ] || po_die "give <embedding.scp>... <data-dir> <new-data-dir>"
log=$2.log
args+=(--data "$1" --out-data "$2" --num-clusters "$num_clusters" --seed "$seed"); shift 2
[ -z "$previous" ] || args+=(--previous "$previous")
[ -z "$truth" ] || args+=(--truth "$truth")
read -ra cmd <<< "$cmd"
log_run "${cmd[@]}" --show true "$log" python -m pyspkv.bin.cluster "${args[@]}" "$@"
