#!/usr/bin/env bash
# One cell of steps/gll_grid.sh: train a system from some labels with a seed, score the test list once, record the rows.
# A cell that is recorded is not done again.
# Usage: steps/gll_cell.sh [options] <recipe> <grid-dir> <seed> <labels> <system> <init> <rounds> [threshold factor]
set -euo pipefail
title=            # of the tables, before "Table 1"
results=          # RESULTS.jsonl
data=             # the recipe's data directories
calibrate_labels=10
rounds_counted=3  # iterations that tables 1 and 2 choose from, by dev EER; table 3 has all
ngpu=0            # GPUs; 0 uses the CPU
run_opts=         # further options of the recipe's run.sh
command=          # to record with the rows
. "$(dirname "${BASH_SOURCE[0]}")/../path.sh"
. parse_options.sh
[ $# -ge 7 ] || { sed -n '2,4s/^# //p' "$0" >&2; exit 1; }
recipe=$1 grid=$2 seed=$3 labels=$4 system=$5 init=$6 rounds=$7 factor=${8:-}
exp=$grid/seed$seed name=$system
[ "$init" = stage1 ] || name+=-$init
[ -z "$factor" ] || name=fixmatch-x$factor
cell=$exp/n$labels/$name

train() { # [run.sh options]
    # shellcheck disable=SC2086  # options are split on purpose
    "$recipe/run.sh" --exp "$exp" --data "$data" --seed "$seed" --nj 1 --ngpu "$ngpu" --labels "$labels" --system "$system" \
        --init "$init" --name "$name" --num-rounds "$rounds" --calibrate-labels "$calibrate_labels" $run_opts "$@"
}
evaluate() { # <folder with model>: the chosen epoch on the test list
    local which=
    [ ! -f "$1/model/best" ] || which=@best
    "$ROOT/steps/extract.sh" --ngpu "$ngpu" "$1/model$which" "$data/test" "$1/embed/test"
    "$ROOT/steps/score.sh" "$1" "$data/test" test
}
record() { # <table> <row> <column> <folder> [bin.results options]
    local table="$title. $1" row=$2 column=$3 folder=$4; shift 4
    "$SPKV_PYTHON" -m pyspkv.bin.results --file "$results" --table "$table" --row "$row" --column "$column" \
        --system "$folder" --seed "$seed" --command "$command" "$@"
}
row() { # the paper's name of the system
    local text
    case $system in
        gll) text="GLL" ;;
        wo-gll) text="w/o GLL" ;;
        fixed) text="fixed threshold" ;;
        flexible) text="flexible threshold" ;;
        verification) text="label verification" ;;
        supervised) if [ "$init" = stage1 ]; then text="SimCLRv2, fine-tuned (supervised)"; else text="supervised"; fi ;;
        distil) text="SimCLRv2, distilled" ;;
        fixmatch | flexmatch | pseudo-label)
            text=$(sed 's/fixmatch/FixMatch (0.9)/; s/flexmatch/FlexMatch (0.9)/; s/pseudo-label/Pseudo Label (0.95)/' <<< "$system") ;;
        fixmatch-low | flexmatch-low | pseudo-label-low)
            text=$(sed 's/fixmatch/FixMatch/; s/flexmatch/FlexMatch/; s/pseudo-label/Pseudo Label/; s/-low/ (calibrated)/' <<< "$system") ;;
        mean-teacher) text="Mean Teacher" ;;
        gcl | cdvat | gcn) text="${system^^}, in the spirit of" ;;
        full) text="all true labels" ;;
        *) text=$system ;;
    esac
    [ "$init" = stage1 ] || text+=", from scratch"
    echo "$text"
}
record_iterations() { # of GLL and its variants
    local r best runs=() cost=() spent=() folder
    for r in $(seq "$rounds"); do
        folder=$cell/round$r
        evaluate "$folder"
        mapfile -t cost < <(find "$folder" -maxdepth 1 -name '[TVLF]' | sort)
        if [ "$r" -le "$rounds_counted" ]; then
            runs+=("$folder/model")
            spent+=("${cost[@]}")
        fi
        case $system in
            gll | wo-gll) record "Table 3: iterations, $labels labels a speaker" "$(row)" "iteration $r" "$folder" \
                --cost "${cost[@]}" --labels "$folder/data" --truth "$exp/n$labels/split/truth/unlabelled_utt2spk" ;;
        esac
    done
    best=$("$SPKV_PYTHON" -m pyspkv.bin.runs best "${runs[@]}")
    set -- "$labels" "${best%/model}" --cost "${spent[@]}" --labels "${best%/model}/data" \
        --truth "$exp/n$labels/split/truth/unlabelled_utt2spk"
    case $system in gll | wo-gll) record "$table1" "$(row)" "$@" ;; esac
    record "Table 2: variants, by labels a speaker" "$(row)" "$@"
}

table1="Table 1: by labels a speaker"
marker=$cell/.recorded
[ "$system" != stage1 ] || marker=$exp/pretrain/.recorded
asked="$results, --rounds $rounds, --run-opts $run_opts"
if [ -f "$marker" ]; then
    [ -s "$marker" ] && [ "$(cat "$marker")" != "$asked" ] || exit 0
    echo "$0: $cell is recorded for $(cat "$marker"), not for $asked: give another --exp, or remove $marker" >&2
    exit 1
fi
mkdir -p "$grid/log"
log=$grid/log/seed$seed-n$labels-$name.log started=$SECONDS
trap '[ $? -eq 0 ] || echo "$0: failed, see $log" >&3' EXIT
exec 3>&1 >> "$log" 2>&1
case $system in
    stage1)
        train --stage 3 --stop-stage 3
        "$ROOT/steps/extract.sh" --ngpu "$ngpu" "$exp/pretrain/model" "$data/train" "$exp/pretrain/embed/train"
        evaluate "$exp/pretrain"
        record "$table1" "Stage I only" none "$exp/pretrain"
        ;;
    gll | wo-gll | fixed | flexible | verification)
        train --stage 4 --stop-stage 4
        record_iterations
        ;;
    flip) # the corruption test: what T, V and L let through of 30 % wrong labels
        system=gll train --stage 4 --stop-stage 4 --flip 0.3
        evaluate "$cell/round1"
        ;;
    *)
        options=()
        if [ -n "$factor" ]; then # a threshold of the sweep
            options=(--low-threshold "$("$SPKV_PYTHON" -m pyspkv.bin.runs peak --factor "$factor" confidence \
                "$exp/n$labels/fixmatch/finetune/model")")
        fi
        train --stage 4 --stop-stage 4 "${options[@]}"
        evaluate "$cell/finetune"
        if [ -n "$factor" ]; then
            record "FixMatch: threshold in mean confidences, $labels labels a speaker" FixMatch "$factor" "$cell/finetune"
        else
            record "$table1" "$(row)" "$labels" "$cell/finetune"
        fi
        ;;
esac
[ "$system" = stage1 ] || train --stage 8 --stop-stage 8 # report.md, plots/gates.png
echo "$asked" > "$marker"
echo "seed $seed, $labels labels, $name: $((SECONDS - started)) s" >&3
