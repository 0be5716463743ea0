#!/usr/bin/env bash
# A new recipe: copies egs/TEMPLATE/<system> to egs/<corpus>/<system>, where data.sh is then to be written.
# Usage: utils/new_recipe.sh <corpus> [<system>]     e.g. utils/new_recipe.sh mycorpus ssl
set -euo pipefail
egs=$(cd "$(dirname "${BASH_SOURCE[0]}")/../egs" && pwd)
[ $# -ge 1 ] && [ $# -le 2 ] && [ "$1" != --help ] || { sed -n '2,3s/^# //p' "$0" >&2; exit 1; }
corpus=$1 system=${2:-ssl}
[[ $corpus =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] || { echo "$0: '$corpus' is no name for a folder" >&2; exit 1; }
[ -d "$egs/TEMPLATE/$system" ] || { echo "$0: no template '$system'; there is: $(ls "$egs/TEMPLATE")" >&2; exit 1; }
new=$egs/$corpus/$system
[ ! -e "$new" ] || { echo "$0: $new is there already" >&2; exit 1; }
mkdir -p "$egs/$corpus"
tmp=$egs/$corpus/.$system.$$
cp -a "$egs/TEMPLATE/$system" "$tmp"
sed -i "s/<corpus>/$corpus/" "$tmp/run.sh"
mv -T "$tmp" "$new"
echo "$0: $new: write data.sh, look through conf/, then ./run.sh --corpus DIR"
