#!/usr/bin/env bash
# Embed a data directory in nj parallel jobs; done already where made_by says so: of the same model, audio and options.
# Usage: steps/extract.sh [options] <model-dir> <data-dir> <out-dir>
#   e.g. steps/extract.sh --nj 2 exp/round1/model data/test exp/round1/embed/test
set -euo pipefail
nj=1              # parallel jobs
ngpu=0            # GPUs of this machine; 0 uses the CPU
precision=fp32    # fp32, bf16
crops=0           # embed so many evenly spaced crops of 4 s instead of the whole utterance
cmd=run.sh        # job runner
. "$(dirname "${BASH_SOURCE[0]}")/../path.sh"
. parse_options.sh
[ $# -eq 3 ] || { sed -n '2,4s/^# //p' "$0" >&2; exit 1; }
model=$1 data=$2 out=$3

scp=$out/embedding.scp
digest() { cat "$@" 2> /dev/null | sha256sum | cut -d' ' -f1; } # of what is there of these files
identity() { # two lines: the weights; the audio and the options
    local folder=$model pointer=LATEST
    case $model in
        *@best) folder=${model%@best} pointer=best ;;
        *@last) folder=${model%@last} ;;
    esac
    digest "$folder/$(cat "$folder/$pointer" 2> /dev/null || true)/model.safetensors" || true
    echo "$(digest "$data/wav.scp" "$data/segments" || true) $precision $crops $(realpath -m "$out")" # a copy points elsewhere
}
[[ $nj =~ ^[1-9][0-9]*$ ]] || { echo "$0: --nj is a number from 1, not '$nj'" >&2; exit 1; }
[[ $ngpu =~ ^(0|[1-9][0-9]*)$ ]] || { echo "$0: --ngpu is a number from 0, not '$ngpu'" >&2; exit 1; }
made_by=$(identity)
if [ -f "$scp" ] && [ -f "$out/made_by" ] && [ "$(cat "$out/made_by")" = "$made_by" ]; then
    echo "$0: $scp is up to date"; exit 0
fi
rm -f "$out/made_by"
utts=$(wc -l < "$data/utt2spk")
[ "$nj" -le "$utts" ] || nj=$utts
gpu=()
if [ "$ngpu" -gt 0 ]; then # one job a GPU at a time
    CUDA_VISIBLE_DEVICES=$(cut -d, -f1-"$ngpu" <<< "${CUDA_VISIBLE_DEVICES:-$(seq -s, 0 $((ngpu - 1)))}")
    gpu=(--gpu 1)
else
    CUDA_VISIBLE_DEVICES=
fi
export CUDA_VISIBLE_DEVICES SPKV_NGPU="$ngpu"
if [ "$nj" -eq 1 ]; then
    "$SPKV_PYTHON" -m pyspkv.bin.extract --model "$model" --data "$data" --out "$out" \
        --precision "$precision" --crops "$crops"
else
    split=$data/split${nj}utt
    split_data.sh --per-utt "$data" "$nj"
    "$SPKV_PYTHON" -m pyspkv.bin.runs model "$model" > /dev/null
    rm -f "$scp" # the jobs write over the arks that it points into
    # shellcheck disable=SC2086  # cmd may carry options
    OMP_NUM_THREADS=$(( ($(nproc) + nj - 1) / nj )) $cmd ${gpu[@]+"${gpu[@]}"} SPKV_JOB=1:"$nj" "$out/log/extract.SPKV_JOB.log" \
        "$SPKV_PYTHON" -m pyspkv.bin.extract --model "$model" --data "$split/SPKV_JOB" --out "$out/SPKV_JOB" \
        --precision "$precision" --crops "$crops"
    for job in $(seq "$nj"); do cat "$out/$job/embedding.scp"; done | sort > "$scp.tmp"
    mv "$scp.tmp" "$scp"
    echo "$0: $utts embeddings in $scp"
fi
echo "$made_by" > "$out/made_by"
