#!/usr/bin/env bash
# Score a published speaker model on the test set of a recipe: import, embeddings, scores with AS-norm and crops,
# report. Nothing is trained. The AS-norm cohort is num-cohort utterances of <data>/train, by speaker where it has labels.
# Usage: steps/score_published.sh [options] <file of the model> <data> <exp-dir>
#   e.g. steps/score_published.sh model000000018.model egs/voxceleb/trunk_ssl/data exp/published
# <data> has train, test and, for calibration, dev. The model becomes <exp-dir>/published/model.
set -euo pipefail
cmd=run.sh       # job runner
nj=2             # parallel jobs, from 1
ngpu=0           # GPUs; 0 uses the CPU
crops=15         # number of 4 s crops to score with, in addition to the whole utterance; 0: none
num_cohort=20000 # number of training utterances that are the AS-norm cohort
qmf=false        # score with quality measures, too (test-qmf; fitted on dev)
dry_run=false    # only print the commands
. "$(dirname "${BASH_SOURCE[0]}")/../path.sh"
. parse_options.sh
[ $# -eq 3 ] || po_die "give <file of the model> <data> <exp-dir>"
! $qmf || [ -e "$2/dev" ] || po_die "--qmf true needs $2/dev"
model=$(realpath -ms -- "$1") data=$(realpath -ms -- "$2") exp=$(realpath -ms -- "$3")
cd "$SPKV_ROOT"
cohort=$exp/cohort$num_cohort system=$exp/published
extract_opts=(--cmd "$cmd" --nj "$nj" --ngpu "$ngpu")
sets=("$data/test") score_opts=(--cohort-data "$cohort" --cohort-set "cohort$num_cohort")
[ ! -e "$data/dev" ] || { sets+=("$data/dev"); score_opts+=(--dev "$data/dev"); }
! $qmf || score_opts+=(--qmf true)

log_run python -m pyspkv.bin.import_checkpoint --from "$model" --out "$system/model"
[ -d "$cohort" ] || log_run utils/subset_data_dir.sh "$data/train" "$num_cohort" "$cohort"
log_run steps/extract.sh "${extract_opts[@]}" "$system/model" --data "$cohort" "${sets[@]}"
if [ "$crops" -gt 0 ]; then
  log_run steps/extract.sh "${extract_opts[@]}" --crops "$crops" "$system/model" --data "$data/test"
  score_opts+=(--crops true)
fi
log_run steps/score.sh --cmd "$cmd" "${score_opts[@]}" "$system" "$data/test" test
log_run steps/report.sh "$exp"
