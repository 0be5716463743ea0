#!/usr/bin/env bash
# What the ssrl recipes add to steps/recipe.sh: sourced after it.
# shellcheck disable=SC2034,SC2154  # the options are that file's or its readers'

# shellcheck source=steps/rounds.sh
. "$ROOT/steps/rounds.sh"

offline_rounds=0    # the other arm: so many rounds of clustering and training from the same model, in <exp>/offline
ablation=false      # also without queue, without noise model, without both, and with labels that stay, in <exp>/no_...
num_rounds=1
po_files+=("${BASH_SOURCE[0]}")

offline() { # <function>: the same in the other arm's folder, with its config and rounds
    local base=$exp num_rounds=$offline_rounds round_yaml=offline.yaml dev_curve=false # its rounds' ends are enough
    local exp=$base/offline
    [ "$offline_rounds" -gt 0 ] || return 0
    mkdir -p "$exp"
    ln -sfn ../pretrain "$exp/pretrain"
    "$1"
}
reflect() { # one run in which labels move; beside it the other arm and the ablations
    data_out=true
    rounds
    data_out=false
    offline rounds
    $ablation || return 0
    arm no_queue objective.queue=1
    arm no_noise_model objective.noise_model=false
    arm no_queue_no_noise_model objective.queue=1 objective.noise_model=false
    arm no_updates objective.fixed_epochs=1000 objective.noise_model=false
}
arm() { # <name> <key=value ...>: the same start and labels, another objective
    train --init "$(round_start)" "$(round_config 1)" "$exp/round1/data" "$exp/$1/model" "${@:2}"
    [ -d "$exp/$1/data" ] || cp -r "$exp/round1/data" "$exp/$1/data"
}
compare() { # the true labels, which stay
    ! $supervised || round_yaml=offline.yaml supervise
}
report_arms() {
    offline report
    [ "$offline_rounds" -eq 0 ] || beside=$exp/offline
    report
}
