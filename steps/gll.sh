#!/usr/bin/env bash
# Stage II of gated label learning. In each iteration, constrained seed k-means gives every unlabelled utterance one of
# the labelled speakers (C); then the stages, each a training run that starts from the one before, the first from the
# pre-trained encoder: T everything passes, V the prediction must be the label, L the confidence must pass the flexible
# threshold, F a fixed one. <exp>/round<r>/{data,report.json,T,V,L}; model is the stage with the lowest dev EER, whose
# embeddings are clustered next. What is there already is kept.
# Usage: steps/gll.sh [options] <config.yaml> <all-data> <split-dir> <dev-dir> <pre-trained> <exp-dir> [key=value ...]
set -euo pipefail
nj=1
ngpu=0
iterations=3
stages="T V L"
epochs=           # at most so many in each of the stages ("4 3 3"); empty = the config's
rates=            # learning rates of the stages ("2e-3 5e-4 5e-4"); empty = the config's, in each from the start
patience=3        # a stage ends after so many epochs without a lower dev EER
threshold=        # of stage F
first=            # another system's folder: its round1/data and round1/T are this one's too
cluster_opts=     # further options of bin.seeded_cluster: --faithful, "--whiten 0.5"
flip=0            # an experiment: so many pseudo-labels are changed
. "$(dirname "${BASH_SOURCE[0]}")/../path.sh"
. parse_options.sh
[ $# -ge 6 ] || { sed -n '2,7s/^# //p' "$0" >&2; exit 1; }
config=$1 data=$2 split=$3 dev=$4 pretrained=$5 exp=$6; shift 6

if [[ $stages == *F* && -z $threshold ]]; then echo "$0: stage F needs --threshold" >&2; exit 1; fi

gate() { # <stage>
    case $1 in
        T) echo "{name: all}" ;;
        V) echo "{name: verification}" ;;
        L) echo "{name: flexible}" ;;
        F) echo "{name: fixed, threshold: $threshold}" ;;
        *) echo "$0: no stage is called '$1'" >&2; exit 1 ;;
    esac
}
cluster() { # <model> <new data> [options]: labels from its embeddings
    local model=$1 new=$2; shift 2
    if [ -f "$new/utt2spk" ]; then
        [ ! "$new/utt2spk" -ot "${model%@*}/LATEST" ] ||
            echo "warning: $new is older than $model; to label anew remove $(dirname "$new") and what follows it" >&2
        return 0
    fi
    "$ROOT/steps/extract.sh" --nj "$nj" --ngpu "$ngpu" "$model" "$data" "${model%/model*}/embed/train"
    # shellcheck disable=SC2086  # options are split on purpose
    "$SPKV_PYTHON" -m pyspkv.bin.seeded_cluster $cluster_opts --embeddings "${model%/model*}/embed/train/embedding.scp" \
        --labelled "$split/labelled" --unlabelled "$split/unlabelled" --out-data "$new" "$@"
}
share_rooms() { # <run>: Stage I's simulated rooms, which would be the same
    mkdir -p "$1"
    [ ! -d "$pretrained/rooms" ] || ln -sfn "$(realpath "$pretrained/rooms")" "$1/rooms"
}

for stage in $stages; do gate "$stage" > /dev/null; done
read -ra most <<< "$epochs"
read -ra rate <<< "$rates"
before=$pretrained
for r in $(seq "$iterations"); do
    here=$exp/round$r
    mkdir -p "$here"
    if [ "$r" -eq 1 ] && [ -n "$first" ]; then
        for part in data report.json T; do
            [ -e "$here/$part" ] || ln -sfn "$(realpath "$first")/round1/$part" "$here/$part"
        done
    fi
    if [ "$r" -eq 1 ]; then cluster "$before" "$here/data" --flip "$flip"; else cluster "$before" "$here/data"; fi
    init=$pretrained keep_head=false runs=() i=0
    for stage in $stages; do
        own=()
        [ -z "${most[i]:-}" ] || own+=(epochs="${most[i]}")
        [ -z "${rate[i]:-}" ] || own+=(optim.lr="${rate[i]}")
        [ -d "$here/$stage" ] || share_rooms "$here/$stage"
        "$ROOT/steps/train.sh" --ngpu "$ngpu" --init "$init" --keep-head "$keep_head" \
            --unlabelled "$here/data" --dev "$dev" --patience "$patience" "$config" "$split/labelled" "$here/$stage" \
            "${own[@]}" "$@" objective.gate="$(gate "$stage")"
        init=$here/$stage@best keep_head=true runs+=("$here/$stage") i=$((i + 1))
    done
    best=$("$SPKV_PYTHON" -m pyspkv.bin.runs best "${runs[@]}")
    ln -sfn "$(basename "$best")" "$here/model"
    echo "$0: iteration $r, stage $(basename "$best") has the lowest dev EER"
    before=$here/model@best
done
cluster "$before" "$here/data_out" --with-labelled --report "$here/report_out.json"
