# shellcheck shell=bash disable=SC2034
# Where the jobs of a recipe run. Options may follow: train_cmd="run.sh --max-jobs-run 4".
train_cmd=run.sh    # small jobs on a CPU
cuda_cmd=run.sh     # training and extraction
