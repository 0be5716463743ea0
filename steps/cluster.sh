#!/usr/bin/env bash
# Cluster embeddings into pseudo-speakers, and write a data directory with these in utt2spk. Several embedding.scp of the
# same utterances are joined. Existing labels are kept if the options are the same; other options are an error.
# --nj N may also stand among the options of bin.cluster, as in a recipe's --cluster-opts "--nj 32".
# Usage: steps/cluster.sh [options] <embedding.scp>... <data-dir> <new-data-dir> [options of bin.cluster]
#   e.g. steps/cluster.sh --num-clusters auto exp/pretrain/embed/train/embedding.scp data/train exp/round1/data
set -euo pipefail
cmd=run.sh          # job runner
nj=1                # from 1; more: k-means in so many parts, for embeddings that memory does not hold (steps/kmeans.sh)
num_clusters=auto   # number of pseudo-speakers, or auto
previous=           # data directory of the previous round: clusters that match keep their ids
truth=              # true utt2spk, for diagnostics in the report only
seed=0
dry_run=false       # only print the commands
. "$(dirname "${BASH_SOURCE[0]}")/../path.sh"
. parse_options.sh
words=()
while [ $# -gt 0 ]; do
  if [ "$1" = --nj ]; then
    [ $# -gt 1 ] || po_die "--nj needs a value"
    po_set nj "$2"; shift 2
  else
    words+=("$1"); shift
  fi
done
set -- "${words[@]}"
if [ "$nj" -gt 1 ]; then
  # shellcheck disable=SC2154  # parse_options.sh sets po_given
  exec "$SPKV_ROOT/steps/kmeans.sh" "${po_given[@]}" --nj "$nj" "$@"
fi
args=()
while [[ ${1:-} == *.scp ]]; do args+=(--embeddings "$1"); shift; done
[ ${#args[@]} -gt 0 ] && [ $# -ge 2 ] || po_die "give <embedding.scp>... <data-dir> <new-data-dir>"
log=$2.log
args+=(--data "$1" --out-data "$2" --num-clusters "$num_clusters" --seed "$seed"); shift 2
[ -z "$previous" ] || args+=(--previous "$previous")
[ -z "$truth" ] || args+=(--truth "$truth")
read -ra cmd <<< "$cmd"
log_run "${cmd[@]}" --show true "$log" python -m pyspkv.bin.cluster "${args[@]}" "$@"
