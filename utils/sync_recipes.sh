#!/usr/bin/env bash
# Copy the templates egs/TEMPLATE/<method>/run.sh to every egs/<corpus>/<method>/run.sh, except the recipe's comment, its
# option values, the options of its corpus and its stage 1. path.sh, cmd.sh and the help of the options are copied too.
# A recipe without the line "# -- the same in every ..." is not changed.
# Usage: utils/sync_recipes.sh [--check true]
set -euo pipefail
check=false   # change nothing; exit 1 and name the recipes that differ
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../path.sh"
. parse_options.sh
cd "$SPKV_ROOT/egs"

merge() { # TEMPLATE RECIPE: the recipe as it should be
  awk '
    function block(line) {
      if (line ~ /^# -- options of the method/) return "method"
      if (line ~ /^# -- options of the corpus/) return "corpus"
      if (line ~ /^# -- end of options/) return "own"
      if (line ~ /^# -- the same in every/) return "stages"
      return ""
    }
    FNR == 1 { where = "comment" }
    { next_block = block($0); if (next_block) where = next_block }
    where == "comment" && !/^#/ { where = "head" }
    FNR == NR { # the recipe
      if (where == "comment") comment = comment $0 "\n"
      else if (where == "method" && match($0, /^[a-z_]+=/)) {
        name = substr($0, 1, RLENGTH - 1); value = substr($0, RLENGTH + 1); sub(/[ \t]+# .*/, "", value); values[name] = value
      }
      else if ((where == "corpus" || where == "own") && !next_block) own[where] = own[where] $0 "\n"
      next
    }
    where == "comment" { if (!done++) printf "%s", comment; next }
    where == "method" && match($0, /^[a-z_]+=/) {
      name = substr($0, 1, RLENGTH - 1); value = substr($0, RLENGTH + 1); help = ""
      if (match(value, /[ \t]+# .*/)) { help = substr(value, RSTART); value = substr(value, 1, RSTART - 1) }
      sub(/^[ \t]+/, "", help)
      printf "%-19s %s\n", name "=" (name in values ? values[name] : value), help
      next
    }
    where == "corpus" || where == "own" { if (next_block) printf "%s\n%s", $0, own[where]; next }
    { print }' "$2" "$1"
}

different=0
for recipe in */*/run.sh; do
  method=$(basename "$(dirname "$recipe")")
  case $recipe in TEMPLATE/*) continue ;; esac
  grep -q '^# -- the same in every' "$recipe" || continue
  [ -f "TEMPLATE/$method/run.sh" ] || { echo "$0: egs/$recipe has no template" >&2; exit 1; }
  new=$(mktemp)
  for file in run.sh path.sh cmd.sh; do
    target=$(dirname "$recipe")/$file
    if [ $file = run.sh ]; then merge "TEMPLATE/$method/run.sh" "$recipe" > "$new"; else cat "TEMPLATE/$file" > "$new"; fi
    if ! cmp -s "$new" "$target"; then
      different=1
      echo "egs/$target differs from its template"
      $check || { chmod --reference="$target" "$new" 2> /dev/null || true; mv "$new" "$target"; new=$(mktemp); }
    fi
  done
  rm "$new"
done
if $check && [ $different -eq 1 ]; then
  echo "$0: edit the template, then run utils/sync_recipes.sh" >&2
  exit 1
fi
