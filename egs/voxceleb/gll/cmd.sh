# shellcheck shell=bash disable=SC2034
# Where the jobs of a recipe run; only this file decides. Options may follow a runner: "run.sh --max-jobs-run 4".
cmd_backend=local # this machine; slurm: a cluster, see docs/cluster.md
case $cmd_backend in
  local)
    train_cmd=run.sh    # small jobs on a CPU
    cuda_cmd=run.sh     # training and extraction
    ;;
  slurm)
    train_cmd=slurm.sh
    cuda_cmd=slurm.sh
    if [ -f "$SPKV_RECIPE/conf/slurm.conf" ]; then export SPKV_SLURM_CONF=$SPKV_RECIPE/conf/slurm.conf; fi
    ;;
  *) echo "cmd.sh: cmd_backend is local or slurm, not '$cmd_backend'" >&2; return 1 ;;
esac
