#!/usr/bin/env bash
# Cluster more embeddings than memory holds: steps/cluster.sh whose k-means is an array of jobs, each of which reads its
# part of the embeddings. It ends when bin.cluster would, with its files. What was killed goes on at the missing parts.
# Usage: steps/kmeans.sh [options] <embedding.scp>... <data-dir> <new-data-dir> [options of bin.cluster]
#   e.g. steps/kmeans.sh --nj 32 --cmd slurm.sh exp/pretrain/embed/train/embedding.scp data/train exp/round1/data
set -euo pipefail
cmd=run.sh          # job runner
nj=4                # parts, from 1; those who run at a time are the runner's --max-jobs-run
device=cpu          # where the nearest centroids are looked for (cpu|cuda); cuda takes a GPU for each job
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
out=${2%/}
args+=(--data "$1" --out-data "$out" --num-clusters "$num_clusters" --seed "$seed"); shift 2
[ -z "$previous" ] || args+=(--previous "$previous")
[ -z "$truth" ] || args+=(--truth "$truth")
[[ " $* " != *" --device "* ]] || po_die "give --device to steps/kmeans.sh, before the embeddings"
args+=("$@")
state=$out.kmeans
read -ra cmd <<< "$cmd"
where=() gpu=()
[ "$device" = cpu ] || where=(--device "$device") gpu=(--gpu 1)
step() { # SECOND-WORD LOG ARGUMENTS...: one job
  log_run "${cmd[@]}" --show true "${gpu[@]}" "$2" python -m pyspkv.bin.kmeans "$1" "${where[@]}" "${@:3}"
}

step start "$out.log" --nj "$nj" "${args[@]}"
if $dry_run; then
  echo "  # until $state/next says last:"
elif [ ! -d "$state" ]; then # labels are kept
  exit 0
fi
while :; do
  it=I last=last
  $dry_run || read -r it last < "$state/next"
  log_run "${cmd[@]}" "${gpu[@]}" SPKV_JOB=1:"$nj" "$state/log/assign.$it.SPKV_JOB.log" \
    python -m pyspkv.bin.kmeans assign "${where[@]}" --out-data "$out" --part "SPKV_JOB/$nj"
  ! $dry_run || step update "$state/log/update.$it.log" --out-data "$out"
  [ -z "$last" ] || break
  step update "$state/log/update.$it.log" --out-data "$out"
done
step finish "$out.log" "${args[@]}"
