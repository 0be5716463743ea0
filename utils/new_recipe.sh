#!/usr/bin/env bash
# A new recipe egs/<corpus>/<system> for a corpus of your own, where data.sh is then to be written.
# Usage: utils/new_recipe.sh <corpus> [ssl|ssrl|wavlm_ssl|gll]     e.g. utils/new_recipe.sh mycorpus ssrl
set -euo pipefail
egs=$(cd "$(dirname "${BASH_SOURCE[0]}")/../egs" && pwd)
[ $# -ge 1 ] && [ $# -le 2 ] && [ "$1" != --help ] || { sed -n '2,3s/^# //p' "$0" >&2; exit 1; }
corpus=$1 system=${2:-ssl}
[[ $corpus =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] || { echo "$0: '$corpus' is no name for a folder" >&2; exit 1; }
case $system in
    ssl) from=$egs/TEMPLATE/ssl ;;
    ssrl | wavlm_ssl | gll) from=$egs/mini/$system ;; # as it is but for the corpus
    *) echo "$0: no template '$system'; there are: ssl ssrl wavlm_ssl gll" >&2; exit 1 ;;
esac
new=$egs/$corpus/$system
[ ! -e "$new" ] || { echo "$0: $new is there already" >&2; exit 1; }
mkdir -p "$egs/$corpus"
tmp=$egs/$corpus/.$system.$$
mkdir "$tmp"
cp -a "$from"/{run.sh,conf,local,steps} "$egs/TEMPLATE/ssl/data.sh" "$tmp"
sed -i -e 's#local/mini\.sh#local/corpus.sh#; /^num_train_spk=/d; /^data_opts=/d' \
    -e 's#the corpus that egs/mini synthesises#<corpus>#; s#egs/mini/#egs/<corpus>/#' \
    -e 's#"synthesise the corpus"#"data directories from the corpus"#' \
    -e 's/^num_clusters=133 .*/num_clusters=auto   # better a third more than there are speakers: SSRL brings the number down/' \
    -e "s/<corpus>/$corpus/g" "$tmp/run.sh"
mv -T "$tmp" "$new"
echo "$0: $new: write data.sh, look through conf/, then ./run.sh --corpus DIR"
