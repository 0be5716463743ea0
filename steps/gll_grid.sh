#!/usr/bin/env bash
# Tables 1, 2 and 3 of GLL for a recipe, the threshold sweep of FixMatch and the corruption test: RESULTS.jsonl and
# RESULTS.md in the recipe's folder, curves of quality and quantity in <exp>/seed<s>/n<labels>/<system>/plots. A rerun
# goes on where it was; --jobs 2 has two cells at a time. Stage I and w/o GLL (whose first C and T the variants share)
# come first.
# Usage: steps/gll_grid.sh [options] <recipe>
#   e.g. steps/gll_grid.sh --jobs 2 --title "Arabic Speech Commands" egs/arabic_speech_commands/gll
set -euo pipefail
title=              # of the tables
labels="1 4 10"     # labelled utterances of each speaker
seeds="0 1 2"       # of the headline rows (Stage I, supervised, all labels, SimCLRv2, w/o GLL, GLL); the first of the others
rounds=3            # iterations of GLL
long_labels=4       # at which GLL and w/o GLL have --long-rounds iterations, with the first seed
long_rounds=5
scratch_labels=4    # at which baselines are trained from scratch too
calibrate_labels=10 # at which FixMatch's confidence calibrates the low threshold, and the sweep is
sweep="0.8 0.9 0.95 1.0 1.05"  # thresholds, in highest mean confidences
systems="supervised wo-gll gll full fixed flexible verification fixmatch fixmatch-low flexmatch flexmatch-low \
pseudo-label pseudo-label-low mean-teacher distil gcl cdvat gcn"
corruption=true     # the corruption test
jobs=1              # cells at a time
ngpu=0              # GPUs; 0 uses the CPU
exp=                # default <recipe>/exp/grid
data=               # default <recipe>/data
results=            # default <recipe>/RESULTS.jsonl
run_opts=           # further options of the recipe's run.sh
ALL_SYSTEMS=$systems
. "$(dirname "${BASH_SOURCE[0]}")/../path.sh"
. parse_options.sh
[ $# -eq 1 ] || { sed -n '2,8s/^# //p' "$0" >&2; exit 1; }
recipe=$(realpath "$1")
for system in $systems; do
    [[ " $ALL_SYSTEMS " == *" $system "* ]] || { echo "$0: no system is called '$system'" >&2; exit 1; }
done
[[ $rounds =~ ^[1-9][0-9]*$ ]] || { echo "$0: --rounds is a number from 1, not '$rounds'" >&2; exit 1; }
exp=$(realpath -m "${exp:-$recipe/exp/grid}") data=$(realpath -m "${data:-$recipe/data}")
results=$(realpath -m "${results:-$recipe/RESULTS.jsonl}")
first=${seeds%% *}

command=steps/gll_grid.sh # as RESULTS.md shows it: the options given, less places and the number of jobs
# shellcheck disable=SC2154  # po_given is parse_options.sh's
for option in ${po_given[@]+"${po_given[@]}"}; do
    case $option in
        --jobs=* | --ngpu=* | --exp=* | --data=* | --results=*) ;;
        *) command+=" ${option%%=*} \"${option#*=}\"" ;;
    esac
done
command+=" ${recipe#"$ROOT/"}"

wave() { # <what>: run the cells on standard input, `seed labels system init rounds [factor]` each
    echo "== $1 ($(date +%T))"
    xargs -r -P "$jobs" -L 1 "$ROOT/steps/gll_cell.sh" --title "$title" --results "$results" \
        --data "$data" --calibrate-labels "$calibrate_labels" --rounds-counted "$rounds" --ngpu "$ngpu" --run-opts "$run_opts" \
        --command "$command" "$recipe" "$exp"
}
has() { [[ " $systems " == *" $1 "* ]]; }
rounds_of() { # <seed> <labels>
    if [ "$1" = "$first" ] && [ "$2" = "$long_labels" ]; then echo "$long_rounds"; else echo "$rounds"; fi
}
cells() { # <seeds> <labels> <init> <system>...
    local s n init=$3 seeds=$1 labels=$2 system; shift 3
    for n in $labels; do for system in "$@"; do for s in $seeds; do
        ! has "$system" || echo "$s $n $system $init $(rounds_of "$s" "$n")"
    done; done; done
}

# shellcheck disable=SC2086  # options are split on purpose
"$recipe/run.sh" --exp "$exp/seed$first" --data "$data" --ngpu "$ngpu" --stop-stage 2 $run_opts
for s in $seeds; do echo "$s $first stage1 stage1 1"; done | wave "Stage I"
{
    cells "$seeds" "$labels" stage1 wo-gll supervised
    cells "$first" "$labels" stage1 fixmatch
    cells "$seeds" all stage1 full
    ! has supervised || cells "$seeds" all scratch full
} | wave "w/o GLL, and what others need"
{
    cells "$seeds" "$labels" stage1 gll
    cells "$seeds" "$labels" scratch supervised
    cells "$first" "$labels" stage1 fixed flexible verification fixmatch-low flexmatch flexmatch-low pseudo-label \
        pseudo-label-low mean-teacher distil gcl cdvat gcn
    cells "$first" "$scratch_labels" scratch fixmatch fixmatch-low flexmatch flexmatch-low pseudo-label pseudo-label-low \
        mean-teacher gcl cdvat
    ! has fixmatch-low || for factor in $sweep; do echo "$first $calibrate_labels fixmatch-low stage1 1 $factor"; done
    ! $corruption || echo "$first $long_labels flip stage1 1"
} | wave "the rest"
for n in $labels; do # the paper's figures 3 and 4
    found=()
    for system in gll wo-gll fixmatch-low flexmatch-low; do
        curves=$exp/seed$first/n$n/$system/plots/gates.json
        [ ! -f "$curves" ] || found+=("$system=$curves")
    done
    [ ${#found[@]} -eq 0 ] ||
        "$SPKV_PYTHON" -m pyspkv.bin.gate_curves --compare "${found[@]}" --out "$exp/seed$first/n$n/gates.png"
done
echo "tables: ${results%.jsonl}.md; curves: $exp/seed*/n*/*/plots/gates.png"
