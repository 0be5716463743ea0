#!/usr/bin/env bash
# What the wavlm_ssl recipes add to steps/recipe.sh: sourced after it.
# shellcheck disable=SC2034,SC2154  # the options are that file's or its readers'

# shellcheck source=steps/rounds.sh
. "$ROOT/steps/rounds.sh"

wavlm=              # WavLM-Base+.pt, a Hugging Face folder, or another foreign checkpoint to start the student from
student=            # empty: the encoder of conf/; small-wavlm: a small WavLM with MHFA, from scratch
round_init=none     # rounds start from the pre-trained trunk, or from scratch; empty = from DINO's encoder
crops=15
labels_from=dino    # the first round's labels: dino, or wavlm: clusters of the imported trunk's pooled embeddings

ablation=false      # stage 5 also trains the other rows of the paper's ablation table
label_noise=        # shares as "0.2 0.4": stage 5 also trains each gate on round 1's labels with so many made wrong

po_files+=("${BASH_SOURCE[0]}")
small_wavlm="{name: wavlm, layers: 3, dim: 96, heads: 4, ffn: 192, conv_dim: 64, pos_conv_kernel: 32, pos_conv_groups: 4, \
embed_dim: 128, mhfa_heads: 8, mhfa_dim: 32, freeze: none, trunk_lr: 1.0, layerdrop: 0.0, normalise: true}"

is_ecapa() { [ -z "$student" ] && ! grep -q "name: wavlm" "$conf/round.yaml"; }
use_student() {
    case $student in
        "") if [ -z "$wavlm" ] && grep -q "^  *pull:" "$conf/round.yaml"; then
                echo "$0: $conf/round.yaml pulls the student to pre-trained weights: give --wavlm" >&2; exit 1
            fi
            [ -z "$wavlm" ] || is_ecapa || student_options=(encoder.pretrained="$exp/wavlm") ;;
        small-wavlm) student_options=(encoder="$small_wavlm") ;;
        *) echo "$0: --student is empty or small-wavlm, not '$student'" >&2; exit 1 ;;
    esac
    [ -n "$round_init" ] || is_ecapa || round_init=none # DINO's encoder is one
    case $labels_from in
        dino) labels_from=pretrain ;;
        wavlm)
            [ -n "$wavlm" ] || { echo "$0: --labels-from wavlm needs --wavlm" >&2; exit 1; }
            labels_from=trunk ;;
        *) echo "$0: --labels-from is dino or wavlm, not '$labels_from'" >&2; exit 1 ;;
    esac
}
import_trunk() { # for the student, and with mean pooling as a phase of its own that can give first labels
    local out
    [ -n "$wavlm" ] || return 0
    for out in wavlm:mhfa trunk/model:mean; do
        "$SPKV_PYTHON" -m pyspkv.bin.import_checkpoint --from "$wavlm" --out "$exp/${out%:*}" --pooling "${out#*:}"
    done
}

arm() { # <name> <data> <init> [key=value ...]: a system beside the chain, trained as round 1 is
    train --init "$3" "$(round_config 1)" "$2" "$exp/$1/model" "${student_options[@]}" "${@:4}"
}
open_gate=objective.gate="{name: none}"
no_correction=objective.gate.correct_epoch=null
supervised_options=("$open_gate")

ablate() { # the rows of the paper's table that the chain lacks
    $ablation || return 0
    local start
    start=$(round_start)
    arm no_gate "$exp/round1/data" "$start" "$open_gate"
    arm no_correction "$exp/round1/data" "$start" "$no_correction"
    if [ -n "$start" ]; then # the other start
        arm supervised_from_scratch "$data/train_labelled" "" "$open_gate"
    elif is_ecapa; then
        arm supervised_from_dino "$data/train_labelled" "$exp/pretrain/model" "$open_gate"
    fi
    [ -d "$exp/trunk" ] && [ "$labels_from" != trunk ] || return 0
    "$ROOT/steps/extract.sh" --nj "$nj" --ngpu "$ngpu" "$exp/trunk/model" "$data/train" "$exp/trunk/embed/train"
    # shellcheck disable=SC2086  # options are split on purpose
    "$ROOT/steps/cluster.sh" --num-clusters "$num_clusters" --seed "$seed" \
        "$exp/trunk/embed/train/embedding.scp" "$data/train" "$exp/trunk_labels/data" $cluster_opts
    arm trunk_labels "$exp/trunk_labels/data" "$start"
}
spoil_labels() { # what each gate makes of wrong labels that are known to be so
    local share gate name options
    for share in $label_noise; do
        for gate in no_gate no_correction both; do
            name=noise${share}_$gate options=()
            [ $gate != no_gate ] || options=("$open_gate")
            [ $gate != no_correction ] || options=("$no_correction")
            [ -d "$exp/$name/data" ] || "$SPKV_PYTHON" -m pyspkv.bin.datadir corrupt --share "$share" --seed "$seed" \
                --list "$exp/$name/corrupted" "$exp/round1/data" "$exp/$name/data"
            arm "$name" "$exp/$name/data" "$(round_start)" "${options[@]}"
        done
    done
}
