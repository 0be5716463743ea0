#!/usr/bin/env bash
# Options for a script, as in Kaldi, and two helpers for recipes. Source it after the option block of the script:
#
#   # What the script does: this comment is what --help prints first.
#   set -euo pipefail
#   nj=4              # number of jobs, from 1
#   supervised=false  # true or false
#   exp=$recipe/exp   # folder of results
#   round_opts=()     # settings of the rounds, as "epochs=3 optim.lr=1e-3"
#   . parse_options.sh
#
# `--some-name value` and `--some-name=value` set some_name, if the block has it; any other option is an error. If the
# default is true or false, the value must be one of them; if it is a whole number, the value must be a whole number from
# 0, or from 1 if the help says "from 1". "(one|two)" in the help lists the allowed values. An array is split at blanks.
# In a recipe (`recipe` is set) an option whose help starts with "file" or "folder" is a path: relative to the current
# folder, and afterwards relative to $SPKV_ROOT, where run.sh works. If the help says NAME=FILE, a word may have a name.
# --config FILE holds lines name=value; the command line wins. The first word that is no option, or `--`, ends the
# options and stays in "$@"; po_given holds the options as --name=value. --help prints the comment and the block.
#
#   stage N "title"      true if $stage <= N <= $stop_stage; then prints the title
#   log_run COMMAND...   print the command, append it to $exp/log/commands, and run it; with $dry_run only print it and
#                        the commands that it would run (steps/*.sh and local/data.sh get --dry-run true)

shopt -s extglob

po_die() {
  echo "$0: $*" >&2
  echo "$0: see $0 --help" >&2
  exit 1
}

po_block() { # FILE: print its options, one per line: name, default and help, separated by tabs
  awk '
    /^\. .*parse_options\.sh/ { exit }
    /^[a-z][a-z0-9_]*=/ {
      name = $0; sub(/=.*/, "", name)
      rest = substr($0, length(name) + 2); help = ""
      if (match(rest, /[ \t]+# /)) { help = substr(rest, RSTART + RLENGTH); rest = substr(rest, 1, RSTART - 1) }
      if (name != "recipe") printf "%s\t%s\t%s\n", name, rest, help
    }' "$1"
}

po_help() { # FILE: print its comment and its options
  awk '/^#!/ && FNR == 1 { next } /^#/ { sub(/^# ?/, ""); print; next } { exit }' "$1"
  echo
  echo "Options (with their defaults):"
  po_block "$1" | awk -F'\t' '{ gsub(/_/, "-", $1); printf "  --%-20s %-12s %s\n", $1, $2, $3 }'
  echo "Options may stand in a file, as lines name=value: --config FILE"
}

po_set() { # NAME VALUE: set the option, if the block has it
  local name=${1//-/_} value=$2 choice='\(([a-z0-9_]+(\|[a-z0-9_]+)+)\)'
  [ -n "${po_text[$name]+set}" ] || po_die "unknown option --$1; the options are:$po_names"
  if [[ ${po_text[$name]} =~ $choice ]]; then
    choice=${BASH_REMATCH[1]}
    [[ $value =~ ^($choice)$ ]] || po_die "--$1 is ${choice//|/ or }, not '$value'"
  fi
  case ${po_default[$name]} in
    "("*)
      # shellcheck disable=SC2229  # the variable whose name it holds
      read -ra "$name" <<< "$value"
      return ;;
    true | false) [[ $value == true || $value == false ]] || po_die "--$1 is true or false, not \"$value\"" ;;
    0 | [1-9]*([0-9]))
      local least=0
      [[ ${po_text[$name]} != *"from 1"* ]] || least=1
      [[ $value =~ ^(0|[1-9][0-9]{0,8})$ && $value -ge $least ]] ||
        po_die "--$1 is a number from $least${po_up_to[$name]:-}, not '$value'" ;;
  esac
  printf -v "$name" %s "$value"
}

declare -A po_default=() po_text=() po_up_to=([stage]=" to 8" [stop_stage]=" to 8")
po_names='' po_given=() po_config=
while IFS=$'\t' read -r po_name po_value po_help_text; do
  po_default[$po_name]=$po_value po_text[$po_name]=$po_help_text po_names+=" --${po_name//_/-}"
done < <(po_block "${BASH_SOURCE[1]}" | sed 's/\t\t/\t \t/')
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) po_help "${BASH_SOURCE[1]}"; exit 0 ;;
    --) shift; break ;;
    --*=*) po_given+=("$1"); shift ;;
    --*)
      [ $# -gt 1 ] || po_die "$1 needs a value"
      po_given+=("$1=$2")
      shift 2 ;;
    -[a-zA-Z]*) po_die "unknown option $1; the options are:$po_names" ;;
    *) break ;;
  esac
done
for po_option in "${po_given[@]}"; do
  [[ $po_option != --config=?* || -n ${po_text[config]+set} ]] || po_config=${po_option#*=}
done
if [ -n "$po_config" ]; then
  [ -f "$po_config" ] || po_die "no such file: $po_config"
  while IFS='=' read -r po_name po_value; do
    [[ $po_name =~ ^[[:space:]]*(#.*)?$ ]] || po_set "${po_name//_/-}" "$po_value"
  done < "$po_config"
fi
for po_option in "${po_given[@]}"; do
  if [ "$po_option" != "--config=$po_config" ]; then
    po_name=${po_option%%=*}
    po_set "${po_name#--}" "${po_option#*=}"
  fi
done
if [ -n "${cmd+set}" ] && [ -z "$cmd" ]; then po_die "--cmd is empty"; fi

# shellcheck disable=SC2154  # stage and stop_stage are in every recipe's block
if [ -n "${recipe:-}" ]; then
  [ $# -eq 0 ] || po_die "'$1' is not an option"
  { [ "$stage" -ge 1 ] && [ "$stage" -le 8 ]; } || po_die "--stage is a number from 1 to 8, not '$stage'"
  { [ "$stop_stage" -ge 1 ] && [ "$stop_stage" -le 8 ]; } || po_die "--stop-stage is a number from 1 to 8, not '$stop_stage'"
  [ "$stage" -le "$stop_stage" ] || po_die "--stage $stage comes after --stop-stage $stop_stage"
  [ "${round:-1}" -le "${num_rounds:-1}" ] || po_die "--round $round comes after --num-rounds $num_rounds"
  recipe=$(realpath -ms --relative-base="$SPKV_ROOT" -- "$recipe")
  for po_name in "${!po_text[@]}"; do
    [[ ${po_text[$po_name]} == @(file|folder)* ]] || continue
    declare -n po_path=$po_name
    for po_option in "${!po_path[@]}"; do
      po_value=${po_path[$po_option]} po_word=
      [[ -z ${po_text[$po_name]##*NAME=FILE*} && $po_value =~ ^([A-Za-z0-9_]+=)(.+) && ! -e $po_value ]] &&
        po_word=${BASH_REMATCH[1]} po_value=${BASH_REMATCH[2]}
      [ -z "$po_value" ] ||
        po_path[po_option]=$po_word$(realpath -ms --relative-base="$SPKV_ROOT" -- "$po_value")
    done
    unset -n po_path
  done
fi

stage() {
  [ "$stage" -le "$1" ] && [ "$stop_stage" -ge "$1" ] || return 1
  if ${dry_run:-false}; then echo "== stage $1: $2"; else echo "== stage $1: $2 ($(date +%T))"; fi
}

visible_gpus() { # NGPU: the first NGPU of the visible GPUs serve the jobs of a step
  if [ "$1" -gt 0 ]; then
    CUDA_VISIBLE_DEVICES=$(cut -d, -f1-"$1" <<< "${CUDA_VISIBLE_DEVICES:-$(seq -s, 0 $(($1 - 1)))}")
  else
    CUDA_VISIBLE_DEVICES=
  fi
  export CUDA_VISIBLE_DEVICES SPKV_NGPU="$1"
}

po_child='' po_level=${SPKV_COMMANDS:+inner}
po_stop() { # EXIT-CODE: end the running command, then this script
  trap '' INT TERM HUP
  if [ -n "$po_child" ]; then
    kill -TERM "$po_child" 2> /dev/null || true
    wait "$po_child" 2> /dev/null || true
  fi
  exit "$1"
}

log_run() {
  local word line='' code=0
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word=${word@Q}
    line+=" $word"
  done
  line=${po_level:+  }${line# }
  echo "$line"
  [ -z "${exp:-}" ] || export SPKV_COMMANDS=${SPKV_COMMANDS:-$exp/log/commands}
  if ${dry_run:-false}; then
    case $1 in steps/*.sh | */local/data.sh) "$1" --dry-run true "${@:2}" ;; esac
    return
  fi
  if [ -z "$po_level" ] && [ -n "${exp:-}" ] && [ -z "${po_lock:-}" ]; then # only one run.sh per experiment
    mkdir -p "$exp/log"
    exec {po_lock}>> "$exp/log/.lock"
    flock -n "$po_lock" || po_die "another run.sh works in $exp ($(tail -n 1 "$exp/log/.lock")); wait for it, or give another --exp"
    echo "host $(hostname), process $$" > "$exp/log/.lock"
  fi
  [ -z "${SPKV_COMMANDS:-}" ] || echo "$line" >> "$SPKV_COMMANDS"
  trap 'po_stop 130' INT
  trap 'po_stop 143' TERM HUP
  "$@" & # in the background: bash handles a signal only after a foreground command has ended
  po_child=$!
  wait "$po_child" || code=$?
  po_child=
  if [ "$code" -ne 0 ]; then
    [ -n "$po_level" ] || echo "$0: this command failed (exit code $code): $line" >&2
    exit "$code"
  fi
}
