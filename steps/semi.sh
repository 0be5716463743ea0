#!/usr/bin/env bash
# What the gll recipes add to steps/recipe.sh: sourced after it. One system is trained, from n labels a speaker:
#   gll, wo-gll, fixed, flexible, verification         gated label learning and its variants (steps/gll.sh)
#   supervised                                         the labelled part alone; from Stage I this is SimCLRv2's fine-tuning
#   distil                                             SimCLRv2: that model teaches the unlabelled utterances
#   fixmatch, flexmatch, pseudo-label                  threshold 0.9 (pseudo-label: 0.95 of the scaled softmax)
#   fixmatch-low, flexmatch-low, pseudo-label-low      a calibrated one, --low-threshold
#   mean-teacher, cdvat, gcl, gcn                      gcl, cdvat and gcn are in the spirit of their papers
#   full                                               all true labels
# It lands in <exp>/n<labels>/<name>, beside <exp>/n<labels>/split; Stage I in <exp>/pretrain.
# shellcheck disable=SC2034,SC2154  # the options are that file's or its readers'

system=gll          # see steps/semi.sh for the list
labels=10           # labelled utterances of each speaker
init=stage1         # stage1, or scratch (not for GLL and its variants)
name=               # of the result's folder; default the system, with -scratch
num_rounds=3        # GLL's iterations
cluster_opts=       # further options of bin.seeded_cluster: --faithful, "--whiten 0.5"
stage_epochs=       # at most so many in GLL's stages, "4 3 3"; empty = as conf/semi.yaml
stage_rates=        # learning rates of GLL's stages, "2e-3 5e-4 5e-4"; empty = as conf/semi.yaml
patience=3          # epochs without a lower dev EER that end a stage or a run; the best epoch counts
batch=128           # utterances in a batch
labelled_batch=32   # of which labelled
low_threshold=      # empty: 0.9 x the highest mean confidence of fixmatch at --calibrate-labels
calibrate_labels=10
epochs=             # of a baseline; empty = as conf/semi.yaml
overrides=          # key=value for every training of stage 4, as "optim.lr=0.001 objective.encoder_lr=0.5"
flip=0              # an experiment: so many of GLL's first pseudo-labels are changed
po_files+=("${BASH_SOURCE[0]}")
use_best=true

use_system() { # after `begin`: the folders
    name_suffix=
    [ "$init" = stage1 ] || name_suffix=-$init
    [ -n "$name" ] || name=$system$name_suffix
    base=$exp split=$exp/n$labels/split
    stage1=$exp/pretrain/model
    read -ra more <<< "$overrides"
    two_stream=(batch_size="$batch" sampler="{name: two_stream, labelled: $labelled_batch}")
    case $init in
        stage1) start=$stage1 ;;
        scratch) start= ;;
        *) echo "$0: --init is stage1 or scratch, not '$init'" >&2; exit 1 ;;
    esac
}
use_cell() { # after Stage I: `exp` is the system's folder, with links to what it shares
    exp=$base/n$labels/$name
    [ "$stop_stage" -ge 4 ] || return 0
    mkdir -p "$exp"
    ln -sfn ../../pretrain "$exp/pretrain"
    ! $supervised || ln -sfn "../../nall/full${name_suffix}/finetune" "$exp/supervised"
}
split_labels() { # once, though several systems may start together
    [ "$labels" != all ] || return 0
    mkdir -p "$split"
    (
        flock 9
        [ -f "$split/labelled/utt2spk" ] ||
            "$ROOT/utils/split_labels.sh" --seed "$seed" "$data/train_labelled" "$labels" "$split"
    ) 9> "$split/.lock"
}
low() { # the calibrated threshold
    [ -n "$low_threshold" ] || low_threshold=$("$SPKV_PYTHON" -m pyspkv.bin.runs peak --factor 0.9 confidence \
        "$base/n$calibrate_labels/fixmatch/finetune/model") || return 1
    echo "$low_threshold"
}
learn() { # train the system
    local threshold
    case $system in
        gll) gll "T V L" ;;
        wo-gll) gll "T" ;;
        verification) gll "T V" ;;
        flexible) gll "T L" ;;
        fixed) threshold=$(low) && gll "T F" --threshold "$threshold" ;;
        full) baseline "$data/train_labelled" "" batch_size=$((batch - labelled_batch)) objective.name=supervised ;;
        supervised) labelled_only ;;
        distil) semi objective.name=distil objective.teacher="$base/n$labels/supervised/finetune/model@best" ;;
        fixmatch) own "{name: fixed, threshold: 0.9}" ;;
        fixmatch-low) threshold=$(low) && own "{name: fixed, threshold: $threshold}" ;;
        flexmatch) own "{name: flexmatch, threshold: 0.9}" ;;
        flexmatch-low) threshold=$(low) && own "{name: flexmatch, threshold: $threshold}" ;;
        pseudo-label) semi objective.name=pseudo_label objective.gate="{name: fixed, threshold: 0.95}" ;;
        pseudo-label-low) threshold=$(low) && semi objective.name=pseudo_label objective.confidence_scale=1.0 \
            objective.gate="{name: fixed, threshold: $threshold}" ;;
        mean-teacher) semi objective.name=mean_teacher ;;
        cdvat) semi objective.name=cdvat ;;
        gcl) config=$conf/gcl.yaml semi ;;
        gcn) propagated ;;
        *) echo "$0: no system is called '$system'; see steps/semi.sh" >&2; exit 1 ;;
    esac
}
gll() { # <stages> [steps/gll.sh options]: with GLL's own C and T where they are wanted and there
    local stages=$1 first=; shift
    [ "$init" = stage1 ] || { echo "$0: $system starts from Stage I" >&2; exit 1; }
    [ "$system" = wo-gll ] || [ "$flip" != 0 ] || [ ! -d "$base/n$labels/wo-gll/round1/T" ] || first=$base/n$labels/wo-gll
    "$ROOT/steps/gll.sh" --nj "$nj" --ngpu "$ngpu" --iterations "$num_rounds" --stages "$stages" \
        --epochs "$stage_epochs" --rates "$stage_rates" --patience "$patience" --first "$first" --flip "$flip" \
        --cluster-opts "$cluster_opts" "$@" "$conf/semi.yaml" "$data/train" "$split" "$data/dev" "$stage1" "$exp" \
        "${two_stream[@]}" seed="$seed" "${noise_list[@]}" "${more[@]}"
}
baseline() { # <labelled data> <unlabelled data, or empty> [key=value ...]
    local labelled=$1 unlabelled=$2; shift 2
    if [ -d "$stage1/rooms" ] && [ ! -d "$exp/finetune/model" ]; then # simulated once
        mkdir -p "$exp/finetune/model"
        ln -s "$stage1/rooms" "$exp/finetune/model/rooms"
    fi
    train --init "$start" --unlabelled "$unlabelled" --dev "$data/dev" --patience "$patience" \
        "${config:-$conf/semi.yaml}" "$labelled" "$exp/finetune/model" "$@" ${epochs:+epochs="$epochs"} "${more[@]}"
}
semi() { # [key=value ...]: a baseline on both streams
    baseline "$split/labelled" "$split/unlabelled" "${two_stream[@]}" "$@"
}
own() { semi objective.target=own objective.gate="$1"; }
labelled_only() { # as many steps as the others, of as many rows as far as there are
    local few many each
    few=$(wc -l < "$split/labelled/utt2spk") many=$(wc -l < "$split/unlabelled/utt2spk")
    each=$((batch - (few < labelled_batch ? few : labelled_batch)))
    baseline "$split/labelled" "" objective.name=supervised batch_size=$((few < each ? few : each)) \
        sampler="{name: repeat, steps: $((many / each))}"
}
propagated() { # label spreading on Stage I's embeddings, then training on all of it
    local embed=$base/pretrain/embed/train
    if [ ! -f "$exp/round1/data/utt2spk" ]; then
        "$ROOT/steps/extract.sh" --nj "$nj" --ngpu "$ngpu" "$stage1" "$data/train" "$embed"
        # shellcheck disable=SC2086  # options are split on purpose
        "$SPKV_PYTHON" -m pyspkv.bin.seeded_cluster $cluster_opts --method propagation --embeddings "$embed/embedding.scp" \
            --labelled "$split/labelled" --unlabelled "$split/unlabelled" --out-data "$exp/round1/data"
    fi
    baseline "$split/labelled" "$exp/round1/data" "${two_stream[@]}"
}
supervise_fully() { # the true labels, for comparison
    local system=full name='' labels=all supervised=false exp=$base
    local base split stage1 start
    use_system
    use_cell
    learn
}
report_system() {
    gate_curves
    report
    ln -sfn "n$labels/$name/results.json" "$base/results.json"
}
gate_curves() { # what the gates let through; the truth is for this alone
    local r run runs=() data_of=()
    for r in $(seq "$num_rounds"); do
        for run in "$exp/round$r"/{T,V,L,F}; do
            [ ! -d "$run/rows" ] || { runs+=("$run"); data_of+=("$exp/round$r/data"); }
        done
    done
    if [ -d "$exp/finetune/model/rows" ]; then
        runs+=("$exp/finetune/model")
        if [ -d "$exp/round1/data" ]; then data_of+=("$exp/round1/data"); else data_of+=("$split/unlabelled"); fi # gcn's
    fi
    [ ${#runs[@]} -gt 0 ] || return 0
    local flipped=()
    [ ! -f "$exp/round1/flipped" ] || flipped=(--flipped "$exp/round1/flipped")
    "$SPKV_PYTHON" -m pyspkv.bin.gate_curves --runs "${runs[@]}" --unlabelled "${data_of[@]}" \
        --truth "$split/truth/unlabelled_utt2spk" "${flipped[@]}" --out "$exp/plots/gates.json"
}
