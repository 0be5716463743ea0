#!/usr/bin/env bash
# One round: embed with the previous model, cluster, train on the clusters. Everything lands in <exp>/round<r>;
# what is there already is kept, so a round can be inspected, its data/utt2spk replaced by hand, and gone on with.
# Usage: steps/round.sh [options] <round> <config.yaml> <data-dir> <exp-dir> [key=value ...]
#   e.g. steps/round.sh --nj 2 --num-clusters 80 1 conf/round.yaml data/train exp
set -euo pipefail
nj=1
ngpu=0
labels_from=pretrain # the phases whose embeddings, side by side, give the first round's labels
init=               # where training starts: empty = the pre-trained model, none = from scratch, or a model folder
num_clusters=auto
cluster_opts=       # further options of bin.cluster, e.g. "--linkage average --metric cosine"
dev=                # declared dev directory with trials: its EER after every epoch
data_out=false      # the objective moves labels: write those it comes to into <exp>/round<r>/data_out
truth=              # true utt2spk, for diagnostics only
ensemble=false      # cluster the embeddings of all phases so far, side by side, not those of the last alone
seed=0
. "$(dirname "${BASH_SOURCE[0]}")/../path.sh"
. parse_options.sh
[ $# -ge 4 ] || { sed -n '2,5s/^# //p' "$0" >&2; exit 1; }
round=$1 config=$2 data=$3 exp=$4; shift 4

read -ra first <<< "$labels_from"
if [ "$round" -eq 1 ]; then
    phases=("${first[@]}") previous=
else
    phases=("round$((round - 1))") previous=$exp/round$((round - 1))/data
    if $ensemble; then
        phases+=("${first[@]}")
        for r in $(seq "$((round - 2))"); do phases+=("round$r"); done
    fi
fi
init=${init:-$exp/pretrain/model}
[ "$init" != none ] || init=
here=$exp/round$round

others=()
for phase in "${phases[@]}"; do
    "$ROOT/steps/extract.sh" --nj "$nj" --ngpu "$ngpu" "$exp/$phase/model" "$data" "$exp/$phase/embed/train"
    others+=(--embeddings "$exp/$phase/embed/train/embedding.scp")
done
# shellcheck disable=SC2086  # options are split on purpose
"$ROOT/steps/cluster.sh" --num-clusters "$num_clusters" --previous "$previous" --truth "$truth" --seed "$seed" \
    "$exp/${phases[0]}/embed/train/embedding.scp" "$data" "$here/data" "${others[@]:2}" $cluster_opts
[ ! "$here/data/utt2spk" -ot "$exp/${phases[0]}/model/LATEST" ] ||
    echo "warning: $here/data is older than $exp/${phases[0]}/model; to label anew remove $here and what follows it" >&2
labels_out=
! $data_out || labels_out=$here/data_out
"$ROOT/steps/train.sh" --ngpu "$ngpu" --init "$init" --labels-out "$labels_out" --dev "$dev" "$config" "$here/data" "$here/model" \
    seed="$seed" "$@"
