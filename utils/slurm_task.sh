#!/usr/bin/env bash
# Run one task of an array of utils/slurm.sh; SLURM starts it on a node. Usage: slurm_task.sh FOLDER
# FOLDER has three files. tasks: a line "number hash attempt" for each index of the array. environment: NAME=VALUE
# entries, each ended by a NUL. call: also NUL-ended, the folder to work in, the name JOB, log, number of nodes, and the
# words of the command.
# The task writes "hash attempt code" to FOLDER/../done.<number> or failed.<number>; neither if SLURM ends it. It writes
# "hash attempt step" to again.<number> if the command is to be submitted again (exit code 75: a signal stopped a
# training in time, at this step).
set -uo pipefail
folder=$1 stopped='' child=''
mapfile -t tasks < "$folder/tasks" || exit 1
read -r number hash attempt <<< "${tasks[SLURM_ARRAY_TASK_ID]}"
while IFS= read -r -d '' pair; do export "${pair?}"; done < "$folder/environment"
mapfile -d '' -t call < "$folder/call"
cd "${call[0]}" || exit 1
name=${call[1]} log=${call[2]} nodes=${call[3]} command=("${call[@]:4}")
if [ -n "$name" ]; then
  command=("${command[@]//"$name"/$number}")
  log=${log//"$name"/$number}
fi

# SLURM may run a finished task again, for example after its controller was killed.
read -r made _ 2> /dev/null < "$folder/../done.$number" && [ "$made" = "$hash" ] && exit 0

mark() { # done|failed|again CODE|STEP: write the file, atomically
  local file=$folder/../$1.$number
  echo "$hash $attempt $2" > "$file.$SLURM_JOB_ID" && mv -f "$file.$SLURM_JOB_ID" "$file"
}

rm -f "$folder/../again.$number"
exec >> "$log" 2>&1 < /dev/null || exit 1
printf '#'
printf ' %q' "${command[@]}"
printf '\n# Started at %s on %s, job %s, attempt %d\n#\n' "$(date)" "$SLURMD_NODENAME" \
  "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" "$((attempt + ${SLURM_RESTART_COUNT:-0}))"

if [ "$nodes" -gt 1 ]; then # start it once on every node; pyspkv.bin.launch reads the address from SPKV_*, torchrun from PET_*
  head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  address=$(scontrol -o show node "$head" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
  export PET_NNODES=$nodes PET_RDZV_BACKEND=c10d PET_RDZV_ID=$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}
  address=${address:-$head} port=$((20000 + (SLURM_JOB_ID + 997 * ${SLURM_RESTART_COUNT:-0}) % 12000))
  while (: < "/dev/tcp/$address/$port") 2> /dev/null; do port=$((port + 1)); done # another program listens there
  export SPKV_NODES=$nodes SPKV_HEAD=$address:$port
  export PET_RDZV_ENDPOINT=$SPKV_HEAD
  command=(srun --export=ALL --ntasks="$nodes" --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}"
    --kill-on-bad-exit=1 -- "${command[@]}")
elif [ -n "$name" ]; then # numbered jobs share a node with others
  export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_ON_NODE:-1}}"
fi

trap 'stopped=1; [ -z "$child" ] || kill -TERM "$child" 2> /dev/null' TERM # scancel, preemption, a time limit
case " ${command[*]} " in # --signal: some time before the limit; anything but a training would die of it
  *" pyspkv.bin.train "*) trap '[ -z "$child" ] || kill -USR1 "$child" 2> /dev/null' USR1 ;;
  *) trap : USR1 ;;
esac
start=$SECONDS code=0
"${command[@]}" &
child=$!
while wait "$child"; kill -0 "$child" 2> /dev/null; do :; done # a signal ends `wait` before the child has ended
wait "$child" || code=$? # bash remembers the exit code of a child
if [ "$code" -gt 128 ] || [ "$nodes" -gt 1 ]; then sleep 2; fi # what ended it may be on its way to this script
if [ -n "$stopped" ] && [ "$nodes" -gt 1 ] && [ "$code" -eq 0 ]; then
  code=143 # an srun that SLURM ends, or whose node has failed, does not learn how its tasks ended, and returns 0
fi
printf '# Ended (code %d) at %s, elapsed time %d seconds\n' "$code" "$(date)" "$((SECONDS - start))"
if [ "$code" -eq 0 ]; then
  mark "done" 0
elif [ "$code" -eq 75 ] || [ "$code" -eq 138 ]; then # 138: SIGUSR1 came before it had its handler
  mark again "$(tail -n 200 "$log" | sed -n 's/.*stopped by SIG[A-Z0-9]* at step \([0-9]*\):.*/\1/p' | tail -n 1)"
elif [ -z "$stopped" ]; then
  mark failed "$code"
fi
exit "$code"
