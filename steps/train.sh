#!/usr/bin/env bash
# Train one model, or go on with it. Several GPUs (or processes) run under torchrun, one needs nothing.
# Usage: steps/train.sh [options] <config.yaml> <data-dir> <model-dir> [key=value ...]
#   e.g. steps/train.sh --ngpu 2 conf/pretrain.yaml data/train exp/pretrain/model optim.lr=0.002
set -euo pipefail
ngpu=0          # GPUs of this machine; 0 uses the CPU
nproc=1         # processes on the CPU (ngpu=0)
init=           # start from this model's encoder: DIR, DIR@best
keep_head=false # with --init: its classes too (same labels)
labels_out=     # data directory with the final labels, of objectives that move them
unlabelled=     # second data directory, semi-supervised objectives only
dev=            # declared dev directory with a trials file: gives @best
patience=0      # stop after this many epochs without a better dev EER
. "$(dirname "${BASH_SOURCE[0]}")/../path.sh"
. parse_options.sh
[ $# -ge 3 ] || { sed -n '2,4s/^# //p' "$0" >&2; exit 1; }
config=$1 data=$2 model=$3; shift 3
[[ $ngpu =~ ^(0|[1-9][0-9]*)$ ]] || { echo "$0: --ngpu is a number from 0, not '$ngpu'" >&2; exit 1; }
[[ $nproc =~ ^[1-9][0-9]*$ ]] || { echo "$0: --nproc is a number from 1, not '$nproc'" >&2; exit 1; }

args=(--config "$config" --data "$data" --exp "$model")
[ -z "$init" ] || args+=(--init "$init")
! $keep_head || args+=(--keep-head)
[ -z "$labels_out" ] || args+=(--labels-out "$labels_out")
[ -z "$unlabelled" ] || args+=(--unlabelled "$unlabelled")
[ -z "$dev" ] || args+=(--dev "$dev" --dev-trials "$dev/trials" --patience "$patience")
[ $# -eq 0 ] || args+=(--set "$@")

# What a step frees is kept for the next one: glibc by itself maps and clears every tensor over 32 MiB anew.
export MALLOC_MMAP_THRESHOLD_="${MALLOC_MMAP_THRESHOLD_:-1073741824}" MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-4294967296}"

if [ "$ngpu" -gt 0 ]; then nproc=$ngpu; else export CUDA_VISIBLE_DEVICES=; fi
export SPKV_NGPU="$ngpu"
if [ "$nproc" -gt 1 ]; then
    exec "$SPKV_PYTHON" -m torch.distributed.run --standalone --nproc-per-node "$nproc" -m pyspkv.bin.train "${args[@]}"
fi
exec "$SPKV_PYTHON" -m pyspkv.bin.train "${args[@]}"
