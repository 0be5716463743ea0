#!/usr/bin/env bash
# A corpus of your own for a recipe, sourced after steps/recipe.sh: its option, and stage 1, which is data.sh beside run.sh.
# shellcheck disable=SC2034,SC2154  # steps/recipe.sh's

corpus=             # where its files are

po_files+=("${BASH_SOURCE[0]}")

make_data() {
    "$recipe/data.sh" "$corpus" "$data"
    noise_lists # which may be there only now
}
noise_lists() { [ ! -d "$data/noise" ] || use_noise "$data/noise"; }
