#!/usr/bin/env bash
# Test a model on short, noisy and reverberant speech, in nj parallel jobs. Conditions that were measured are kept.
# Usage: steps/stress.sh [options] <model-dir> <data-dir> <out-dir> [options of bin.stress]
#   e.g. steps/stress.sh --nj 4 --noise data/noise_test exp/finetune/model@best data/test exp/stress --seed 1
set -euo pipefail
cmd=run.sh        # job runner
nj=1              # parallel jobs, from 1; each takes its share of the conditions
ngpu=0            # GPUs; 0 uses the CPU
noise=            # data directory of noises that no training used; empty: no noise
dry_run=false     # only print the commands
. "$(dirname "${BASH_SOURCE[0]}")/../path.sh"
. parse_options.sh
[ $# -ge 3 ] || po_die "give <model-dir> <data-dir> <out-dir>"
out=$3
args=(--model "$1" --data "$2" --out "$out"); shift 3
[ -z "$noise" ] || args+=(--noise "$noise")
args+=("$@")

visible_gpus "$ngpu"
gpu=$((ngpu > 0)) # of each job
read -ra cmd <<< "$cmd"
if [ "$nj" -eq 1 ]; then
  log_run "${cmd[@]}" --gpu "$gpu" --show true "$out/stress.log" python -m pyspkv.bin.stress "${args[@]}"
else
  log_run "${cmd[@]}" --gpu "$gpu" SPKV_JOB=1:"$nj" "$out/stress.SPKV_JOB.log" \
    python -m pyspkv.bin.stress "${args[@]}" --part "SPKV_JOB/$nj"
  log_run python -m pyspkv.bin.stress "${args[@]}" --merge "$nj"
fi
