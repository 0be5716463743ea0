#!/usr/bin/env bash
# VoxCeleb for a recipe, sourced after steps/recipe.sh: the corpus' options and stage 1. Training on VoxCeleb2's development
# part without its labels, tests on VoxCeleb1, MUSAN and simulated rooms as augmentation.
# shellcheck disable=SC2034,SC2154  # steps/recipe.sh's

vox1=               # folder of VoxCeleb1: dev/wav, test/wav
vox2=               # folder of VoxCeleb2: dev/wav or dev/aac, as .wav
trials=             # veri_test2.txt (O, cleaned), list_test_all2.txt (E) or list_test_hard2.txt (H)
musan=              # folder of MUSAN: noise, speech, music
rirs=               # folder of simulated room impulse responses

po_files+=("${BASH_SOURCE[0]}")

make_data() {
    local name kind
    for name in vox1 vox2 trials musan rirs; do
        [ -n "${!name}" ] || { echo "$0: give --$name" >&2; exit 1; }
    done
    "$ROOT/local/voxceleb_data.sh" --trials "$trials" "$vox1" "$vox2" "$data"
    for kind in noise speech music; do "$ROOT/local/noise_data.sh" "$data/musan_$kind" "$musan/$kind"; done
    "$ROOT/local/noise_data.sh" --segment-seconds 0 "$data/rirs" "$rirs"
}
noise_lists() {
    noise_list=(augment.noise="$data/musan_noise" augment.babble="$data/musan_speech"
        augment.music="$data/musan_music" augment.rir="$data/rirs")
}
