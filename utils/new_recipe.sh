#!/usr/bin/env bash
# Make a recipe for your own corpus: the folder DIR/<name>/<method>. Without --data you then write its local/data.sh.
# Usage: utils/new_recipe.sh <name> <method> [--dir DIR] [--data DATA]
#   e.g. utils/new_recipe.sh mycorpus ssl --dir ~/recipes --data data/train
# Methods: ssl ssrl trunk_ssl gll dialogue supervised. DIR is egs by default; elsewhere, run.sh needs SPKV_ROOT. DATA is
# the data directory to train on: epochs, batches, crops and the number of clusters are then adapted to it
# (by the rules in pyspkv/data/plan.py).
set -euo pipefail
egs=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../egs" && pwd)
die() { echo "$0: $*" >&2; exit 1; }
dir=$egs data='' words=()
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) sed -n '2,7s/^# //p' "$0"; exit 0 ;;
    --dir) [ $# -gt 1 ] || die "--dir needs a value"; dir=$2; shift 2 ;;
    --data) [ $# -gt 1 ] || die "--data needs a value"; data=$2; shift 2 ;;
    --data=*) data=${1#*=}; shift ;;
    --dir=*) dir=${1#*=}; shift ;;
    -*) die "unknown option $1; see utils/new_recipe.sh --help" ;;
    *) words+=("$1"); shift ;;
  esac
done
[ ${#words[@]} -eq 2 ] || { sed -n '3,7s/^# //p' "$0" >&2; exit 1; }
name=${words[0]} method=${words[1]}
[[ $name =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] || die "'$name' cannot be the name of a folder"
[ -f "$egs/TEMPLATE/$method/run.sh" ] || die "no method '$method'; there are: ssl ssrl trunk_ssl gll dialogue supervised"
new=$dir/$name/$method
[ ! -e "$new" ] || die "$new already exists"
mkdir -p "$dir/$name"
tmp=$(mktemp -d "$dir/$name/.$method.XXXXXX")
cp -a "$egs/TEMPLATE/$method/run.sh" "$egs/TEMPLATE/path.sh" "$egs/TEMPLATE/cmd.sh" "$egs/mini/$method/conf" "$tmp"
mkdir "$tmp/local"
cp -a "$egs/TEMPLATE/data.sh" "$tmp/local"
before="write local/data.sh, look through conf/" words=(--corpus DIR)
if [ -n "$data" ]; then
  . "$egs/../path.sh"
  fitted=$(python -m pyspkv.bin.plan "$data" --conf "$tmp/conf" --fit --no-timing) ||
    { rm -r "$tmp"; rmdir --ignore-fail-on-non-empty "$dir/$name"; exit 1; }
  printf '%s\n' "${fitted//"$tmp/"/}"
  clusters=${fitted##*num_clusters=}
  sed -i "s/^num_clusters=auto /num_clusters=$(printf %-4s "$clusters") /" "$tmp/run.sh"
  full=$(cd "$data" && pwd) # the data is made already, so nobody has to write local/data.sh
  before="look through conf/"
  case ${full##*/} in train | train_labeled) ;; *) before="rename $(printf %q "$full") to train, $before" ;; esac
  words=(--data "${full%/*}" --stage 2)
fi
next_step() { printf '%s, then run: %s' "$before" "$(printf '%q ' "$@" "${words[@]}" | sed 's/ $//')"; }
printf '# %s: %s\n\nMade by utils/new_recipe.sh. Next: %s\n' "$name" "$method" "$(next_step run.sh)" > "$tmp/README.md"
chmod 755 "$tmp"
mv -T "$tmp" "$new"
echo "$0: $new: $(next_step "$new/run.sh")"
