#!/usr/bin/env bash
# Run a command, or JOB=1:n numbered copies of it, as a SLURM array: the call and options of utils/run.sh.
#
# Usage: utils/slurm.sh [--config FILE] [--max-jobs-run N] [--num-threads N] [--gpu N] [--mem SIZE] [--time T]
#                       [--signal SECONDS] [--name N] [--num-nodes M] [--show true] [JOB=1:n] LOG COMMAND [ARGUMENT ...]
# e.g.:  utils/slurm.sh --max-jobs-run 50 JOB=1:400 exp/log/extract.JOB.log python -m pyspkv.bin.extract --part JOB/400
#
# It ends when all jobs have ended. If some failed or it was stopped, the same command submits only the missing ones.
# Exit code: 0 if all jobs succeeded; else 1, after the names and last lines of the failed logs. See docs/cluster.md.
set -euo pipefail
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../path.sh"
exec python -m pyspkv.bin.slurm "$@"
