#!/usr/bin/env bash
# Train one model, or resume its training. Later config files override earlier ones, and key=value overrides all. What
# follows --set-known is passed over where the chosen encoder, objective, ... has no such key.
# Usage: steps/train.sh [options] <config.yaml>... <data-dir> <model-dir> [key=value ...] [--set-known key=value ...]
#   e.g. steps/train.sh --ngpu 2 conf/encoder.yaml conf/pretrain.yaml data/train exp/pretrain/model optim.lr=0.002
set -euo pipefail
cmd=run.sh      # job runner
ngpu=0          # GPUs; 0 uses the CPU
nproc=1         # processes on the CPU, from 1 (with --ngpu 0)
num_nodes=1     # machines, from 1, each with this number of GPUs or processes; more than one need slurm.sh
init=           # start from this model's encoder: DIR, DIR@best
keep_head=false # with --init: its classes and its gate too (same labels)
labels_out=     # data directory to write, with the final labels of objectives that change labels
unlabeled=     # second data directory, for semi-supervised objectives
dev=            # data directory of dev speakers, with trials: gives @best
patience=0      # stop after this many epochs without a better dev EER
allow_pipes=false  # run the commands in wav.scp
dry_run=false   # only print the commands
. "$(dirname "${BASH_SOURCE[0]}")/../path.sh"
. parse_options.sh
configs=()
while [[ ${1:-} == *.yaml ]]; do configs+=("$1"); shift; done
[ ${#configs[@]} -gt 0 ] && [ $# -ge 2 ] || po_die "give <config.yaml>... <data-dir> <model-dir> [key=value ...]"
data=$1 model=$2; shift 2

args=(--config "${configs[@]}" --data "$data" --exp "$model")
[ -z "$init" ] || args+=(--init "$init")
! $keep_head || args+=(--keep-head)
[ -z "$labels_out" ] || args+=(--labels-out "$labels_out")
[ -z "$unlabeled" ] || args+=(--unlabeled "$unlabeled")
[ -z "$dev" ] || args+=(--dev "$dev" --dev-trials "$dev/trials" --patience "$patience")
! $allow_pipes || set -- allow_pipes=true "$@"
[[ $# -eq 0 || $1 == --set-known ]] || args+=(--set)
args+=("$@")

# Reuse freed memory in the next training step. By default glibc maps and clears new memory for each tensor over 32 MiB.
export MALLOC_MMAP_THRESHOLD_="${MALLOC_MMAP_THRESHOLD_:-1073741824}" MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-4294967296}"
if [ "$ngpu" -gt 0 ]; then nproc=$ngpu; else export CUDA_VISIBLE_DEVICES=; fi
export SPKV_NGPU="$ngpu"
launch=()
[ "$nproc" -eq 1 ] || launch=(pyspkv.bin.launch --nproc "$nproc")
read -ra cmd <<< "$cmd"
if [ "$num_nodes" -gt 1 ]; then # the runner starts the launcher on each machine, with the address of the first one
  launch=(pyspkv.bin.launch --nproc "$nproc") cmd+=(--num-nodes "$num_nodes")
fi
log_run "${cmd[@]}" --gpu "$ngpu" "$model.log" \
  python -m "${launch[@]}" pyspkv.bin.train "${args[@]}"
# The runner shows a job's output on a terminal only. Signs of trouble are for the log of a night's run, too.
# The log may begin with earlier calls, so each is shown once.
if ! $dry_run && [ ! -t 2 ]; then grep '^warning: ' "$model.log" | awk '!seen[$0]++' >&2 || true; fi
