#!/usr/bin/env bash
# What the wavlm_ssl recipes add to steps/recipe.sh: sourced after it.
# shellcheck disable=SC2034,SC2154  # the options are that file's or its readers'

wavlm=              # WavLM-Base+.pt, a Hugging Face folder, or another foreign checkpoint to start the student from
student=            # empty: the encoder of conf/; small-wavlm: a small WavLM with MHFA, from scratch
round_init=none     # rounds start from the pre-trained trunk, or from scratch; empty = from DINO's encoder
crops=15
labels_from=dino    # the first round's labels: dino, or wavlm: clusters of the imported trunk's pooled embeddings

po_files+=("${BASH_SOURCE[0]}")
small_wavlm="{name: wavlm, layers: 3, dim: 96, heads: 4, ffn: 192, conv_dim: 64, pos_conv_kernel: 32, pos_conv_groups: 4, \
embed_dim: 128, mhfa_heads: 8, mhfa_dim: 32, freeze: none, trunk_lr: 1.0, layerdrop: 0.0}"

use_student() {
    case $student in
        "") [ -z "$wavlm" ] || ! grep -q "name: wavlm" "$conf/round.yaml" || student_options=(encoder.pretrained="$exp/wavlm") ;;
        small-wavlm) student_options=(encoder="$small_wavlm") ;;
        *) echo "$0: --student is empty or small-wavlm, not '$student'" >&2; exit 1 ;;
    esac
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
        [ -f "$exp/${out%:*}/LATEST" ] || "$SPKV_PYTHON" -m pyspkv.bin.import_checkpoint --from "$wavlm" \
            --out "$exp/${out%:*}" --pooling "${out#*:}"
    done
}
