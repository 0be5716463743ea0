#!/usr/bin/env bash
# Run a command, or JOB=1:n numbered copies of it in parallel, on this machine; each has its own log.
#
# Usage: utils/run.sh [--max-jobs-run N] [--num-threads N] [--gpu N] [--show true] [JOB=1:n] LOG COMMAND [ARGUMENT ...]
# e.g.:  utils/run.sh --max-jobs-run 4 JOB=1:32 exp/log/extract.JOB.log python -m pyspkv.bin.extract --data d/split32/JOB
#
# JOB (any name) becomes the number in LOG and in every argument. The arguments reach the command as they are; nothing is
# parsed by a shell again, so write pipes as: bash -c '... | ...'. When this script ends, even by kill -9, everything that
# the jobs started ends too. The options may also follow JOB=1:n; slurm.sh has the same ones.
#   --max-jobs-run N   most jobs at a time (default: all)
#   --num-threads N    OMP_NUM_THREADS of each job (default: as it is set; else numbered jobs share the cores)
#   --gpu N            GPUs of each job, set by CUDA_VISIBLE_DEVICES; fewer jobs run at a time if necessary
#   --show true|false  copy the output of a single job without JOB to stdout (default: on a terminal)
#   --config, --mem, --name, --time, --signal, --num-nodes 1    accepted, as slurm.sh has them, but without effect
# A log goes on below its old lines until its job has succeeded; the next call then begins it anew.
# Exit code: 0 if all jobs succeeded; else 1, after the names and last lines of the failed logs.
set -euo pipefail

die() { echo "run.sh: $*" >&2; exit 1; }
whole() { [[ $2 =~ ^[0-9]+$ ]] || die "$1 must be a whole number, not '$2'"; }

max=0 gpu=0 show=false
if [ -t 2 ]; then show=true; fi # on a terminal, a single job shows its progress bar
name='' first=1 last=1
while :; do
  if [ -z "$name" ] && [[ ${1:-} =~ ^([A-Za-z_][A-Za-z0-9_]*)=([0-9]+)(:([0-9]+))?$ ]]; then
    name=${BASH_REMATCH[1]} first=$((10#${BASH_REMATCH[2]})) last=$((10#${BASH_REMATCH[4]:-${BASH_REMATCH[2]}}))
    shift
    continue
  fi
  [[ ${1:-} == --* ]] || break
  option=${1%%=*}
  option=${option//_/-}
  case $option in
    --help) sed -n '2,/^set /{/^set /d; s/^# \?//; p}' "$0"; exit 0 ;;
    --max-jobs-run | --num-threads | --gpu | --show | --config | --mem | --name | --time | --signal | --num-nodes) ;;
    *) die "unknown option $1; see utils/run.sh --help" ;;
  esac
  if [[ $1 == *=* ]]; then
    value=${1#*=}
    shift
  else
    [ $# -gt 1 ] || die "$1 needs a value"
    value=$2
    shift 2
  fi
  case $option in
    --max-jobs-run) whole "$option" "$value"; max=$value ;;
    --num-threads) whole "$option" "$value"; export OMP_NUM_THREADS=$value ;;
    --gpu) whole "$option" "$value"; gpu=$value ;;
    --show) [[ $value == true || $value == false ]] || die "--show is true or false, not \"$value\""; show=$value ;;
    --num-nodes) [ "$value" = 1 ] || die "--num-nodes $value, but this is one machine; slurm.sh has more (cmd.sh)" ;;
  esac
done

[ $# -ge 2 ] || die "expected [JOB=1:n] LOG COMMAND; see utils/run.sh --help"
n=$((last - first + 1))
[ "$n" -ge 1 ] || die "no jobs in $name=$first:$last"
log=$1
shift
if [ "$n" -gt 1 ] && [[ $log != *"$name"* ]]; then die "the name of the log must contain $name, because each job has its own log: $log"; fi
if [ "$max" -eq 0 ] || [ "$max" -gt "$n" ]; then max=$n; fi

devices=()
if [ "$gpu" -gt 0 ]; then
  if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
    IFS=, read -r -a devices <<< "$CUDA_VISIBLE_DEVICES"
  else
    mapfile -t devices < <(nvidia-smi --query-gpu=index --format=csv,noheader 2> /dev/null || true)
  fi
  slots=$((${#devices[@]} / gpu))
  [ "$slots" -ge 1 ] || die "--gpu $gpu, but this machine has ${#devices[@]}; without --ngpu the recipes use the CPU"
  if [ "$max" -gt "$slots" ]; then max=$slots; fi
fi

if [ -n "$name" ] && [ -z "${OMP_NUM_THREADS:-}" ]; then export OMP_NUM_THREADS=$((($(nproc) + max - 1) / max)); fi

job() { # SLOT LOG COMMAND...: run one job; the log gets a header, the output and the exit code
  local slot=$1 log=$2 start=$SECONDS code=0
  exec {guard}>&- # only this script may hold it open: see guard
  if tail -n 1 "$log" 2> /dev/null | grep -aq '# Ended (code 0) at '; then : > "$log"; fi # else append
  exec 3>&1 >> "$log" 2>&1 < /dev/null
  shift 2
  if [ "$gpu" -gt 0 ]; then
    CUDA_VISIBLE_DEVICES=$(IFS=,; echo "${devices[*]:slot*gpu:gpu}")
    export CUDA_VISIBLE_DEVICES
  fi
  printf '#'
  printf ' %q' "$@"
  printf '\n# Started at %s\n#\n' "$(date)"
  if [ -z "$name" ] && $show; then
    exec 4> >(exec tee -a "$log" >&3)
    local tee=$!
    "$@" >&4 2>&4 3>&- 4>&- || code=$?
    exec 4>&-
    wait "$tee" || true
  else
    exec 3>&-
    "$@" || code=$?
  fi
  printf '# Ended (code %d) at %s, elapsed time %d seconds\n' "$code" "$(date)" "$((SECONDS - start))"
  return "$code"
}

declare -A log_of slot_of
failed=() free=()
for ((i = 0; i < max; i++)); do free+=("$i"); done

stop() { # CODE SECONDS: end the process group of every job, by SIGTERM, and after so many seconds by SIGKILL
  trap '' INT TERM HUP
  local pid k
  for pid in "${!log_of[@]}"; do kill -TERM -- "-$pid" 2> /dev/null || true; done
  for ((k = 0; k < 10 * $2; k++)); do
    for pid in "${!log_of[@]}"; do kill -0 -- "-$pid" 2> /dev/null || unset "log_of[$pid]"; done
    [ "${#log_of[@]}" -gt 0 ] || break
    sleep 0.1
  done
  for pid in "${!log_of[@]}"; do kill -KILL -- "-$pid" 2> /dev/null || true; done
  echo "run.sh: stopped; the same command goes on" >&2
  exit "$1"
}
trap 'stop 130 5' INT
trap 'stop 143 60' TERM HUP # a training first ends its step and saves its state

reap() { # wait for one job
  local pid='' code=0
  wait -n -p pid || code=$?
  if [ "$code" -ne 0 ]; then failed+=("${log_of[$pid]}"); fi
  free+=("${slot_of[$pid]}")
  unset "log_of[$pid]"
  tell "-$pid"
}

set -m # job control: each background job becomes a process group
guard() { # reads "+GROUP" and "-GROUP" lines; at end of file (this script has ended) it kills the remaining groups
  trap '' INT TERM HUP
  local line
  local -A left=()
  while read -r line; do
    if [[ $line == +* ]]; then left[${line#+}]=1; else unset "left[${line#-}]"; fi
  done
  for line in "${!left[@]}"; do kill -KILL -- "-$line" 2> /dev/null || true; done
}
coproc GUARD { guard > /dev/null 2>&1; }
to_guard=${GUARD[1]} from_guard=${GUARD[0]}
exec {guard}>&"$to_guard" {to_guard}>&- {from_guard}<&-
trap : PIPE # in case the guard has been killed
tell() { { echo "$1" >&"$guard"; } 2> /dev/null || true; }
for ((i = first; i <= last; i++)); do
  if [ "${#free[@]}" -eq 0 ]; then reap; fi
  slot=${free[0]}
  free=("${free[@]:1}")
  command=("$@") this_log=$log
  if [ -n "$name" ]; then
    command=("${command[@]//"$name"/$i}")
    this_log=${log//"$name"/$i}
  fi
  mkdir -p "$(dirname "$this_log")"
  job "$slot" "$this_log" "${command[@]}" &
  log_of[$!]=$this_log
  slot_of[$!]=$slot
  tell "+$!"
done
while [ "${#log_of[@]}" -gt 0 ]; do reap; done

if [ "${#failed[@]}" -gt 0 ]; then
  echo "run.sh: ${#failed[@]} of $n jobs failed:" >&2
  for this_log in "${failed[@]:0:3}"; do
    echo "run.sh: last lines of $this_log" >&2
    tail -n 12 "$this_log" | sed 's/^/  /' >&2
  done
  for this_log in "${failed[@]:3}"; do echo "run.sh: also failed: $this_log" >&2; done
  exit 1
fi
