#!/usr/bin/env bash
# Embed data directories, in nj parallel jobs. Embeddings that are up to date with the model and the audio are kept.
# Usage: steps/extract.sh [options] <model-dir> <data-dir> <out-dir>
#        steps/extract.sh [options] <model-dir>... --data <data-dir>...
# The second form writes each pair into <model-dir>/../embed/<name of the data directory>.
#   e.g. steps/extract.sh --nj 2 exp/pretrain/model exp/round1/model --data data/dev data/test
set -euo pipefail
cmd=run.sh        # job runner
nj=1              # parallel jobs, from 1
ngpu=0            # GPUs; 0 uses the CPU
precision=fp32    # fp32, bf16
crops=0           # embed this number of evenly spaced 4 s crops instead of the whole utterance, into embed/<name>-crops
allow_pipes=false # run the commands in wav.scp
dry_run=false     # only print the commands
. "$(dirname "${BASH_SOURCE[0]}")/../path.sh"
. parse_options.sh
if [[ " $* " == *" --data "* ]]; then
  args=(--model "$@")
  log=$(dirname "$1")
else
  [ $# -eq 3 ] || po_die "give <model-dir> <data-dir> <out-dir>, or <model-dir>... --data <data-dir>..."
  args=(--model "$1" --data "$2" --out "$3")
  log=$3
fi
[ "$precision" = fp32 ] || args+=(--precision "$precision")
[ "$crops" -eq 0 ] || args+=(--crops "$crops")
! $allow_pipes || args+=(--allow-pipes)

visible_gpus "$ngpu"
gpu=$((ngpu > 0)) # of each job
read -ra cmd <<< "$cmd"
if [ "$nj" -eq 1 ]; then
  log_run "${cmd[@]}" --gpu "$gpu" "$log/extract.log" python -m pyspkv.bin.extract "${args[@]}"
else
  log_run "${cmd[@]}" --gpu "$gpu" SPKV_JOB=1:"$nj" "$log/extract.SPKV_JOB.log" \
    python -m pyspkv.bin.extract "${args[@]}" --part "SPKV_JOB/$nj"
  log_run python -m pyspkv.bin.extract "${args[@]}" --merge "$nj"
fi
