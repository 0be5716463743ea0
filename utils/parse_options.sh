#!/usr/bin/env bash
# Options for a script, Kaldi's way; to be sourced after the script's defaults:
#
#   # What the script does: this comment block is what --help prints first.
#   set -euo pipefail
#   nj=4              # number of jobs
#   supervised=false  # true or false
#   . utils/parse_options.sh
#
# `--some-name value` and `--some-name=value` set the existing variable some_name; where the default is true or false
# only those are taken. --config FILE is sourced first, so that the command line wins. The first word that is no
# option, or `--`, ends the options and stays in "$@"; po_given holds the options as --name=value. --help prints the
# comment block and the defaults above.

po_die() {
  echo "$0: $*" >&2
  echo "$0: see $0 --help" >&2
  exit 1
}

po_help() { # FILE...: the first one's comment block, then every `name=default  # comment` before this file is sourced;
  # further files are named by po_files in a script whose options come from elsewhere too
  awk '
    FNR == 1 { body = NR > 1; done = 0 }
    FNR == 1 && /^#!/ { next }
    !body && /^#/ { sub(/^# ?/, ""); print; next }
    { body = 1 }
    /^\. .*parse_options\.sh/ || /^po_files[+]?=/ { done = 1 }
    done { next }
    /^[a-z][a-z0-9_]*=/ {
      name = $0; sub(/=.*/, "", name)
      rest = substr($0, length(name) + 2); comment = ""
      if (match(rest, /[ \t]+# /)) { comment = substr(rest, RSTART + RLENGTH); rest = substr(rest, 1, RSTART - 1) }
      gsub(/_/, "-", name)
      if (!(name in value)) order[++n] = name
      if (!(name in own)) value[name] = rest # the script itself has the last word, else the file sourced last
      if (comment != "") text[name] = comment
      if (FILENAME == ARGV[1]) own[name]
    }
    END {
      if (n) print "\nOptions (with their defaults):"
      for (i = 1; i <= n; i++) printf "  --%-20s %-12s %s\n", order[i], value[order[i]], text[order[i]]
    }' "$@"
}

po_set() { # --name=value: sets the variable
  local po_name=${1%%=*} po_value=${1#*=}
  local po_option=$po_name
  po_name=${po_name#--}
  po_name=${po_name//-/_}
  [[ $po_name =~ ^[a-z][a-z0-9_]*$ && $po_name != po_* && -n "${!po_name+set}" ]] || po_die "unknown option $po_option"
  if [[ ${!po_name} == true || ${!po_name} == false ]] && [[ $po_value != true && $po_value != false ]]; then
    po_die "$po_option is true or false, not \"$po_value\""
  fi
  printf -v "$po_name" %s "$po_value"
}

po_given=()
# shellcheck disable=SC2154  # po_files is the caller's, if it is at all
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) po_help "${BASH_SOURCE[1]}" ${po_files[@]+"${po_files[@]}"}; exit 0 ;;
    --) shift; break ;;
    --*=*) po_given+=("$1"); shift ;;
    --*)
      [ $# -gt 1 ] || po_die "$1 needs a value"
      po_given+=("$1=$2")
      shift 2 ;;
    -[a-zA-Z]*) po_die "unknown option $1" ;;
    *) break ;;
  esac
done
for po_option in "${po_given[@]}"; do
  case $po_option in --config=?*)
    [ -f "${po_option#*=}" ] || po_die "no such file: ${po_option#*=}"
    # shellcheck disable=SC1090
    . "${po_option#*=}" ;;
  esac
done
for po_option in "${po_given[@]}"; do
  [[ $po_option == --config=* ]] || po_set "$po_option"
done
if [ -n "${cmd+set}" ] && [ -z "$cmd" ]; then po_die "--cmd is empty"; fi
unset po_option
