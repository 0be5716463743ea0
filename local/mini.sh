#!/usr/bin/env bash
# The corpus that the egs/mini recipes synthesise, sourced after steps/recipe.sh: its options and stage 1.
# shellcheck disable=SC2034,SC2154  # steps/recipe.sh's

num_train_spk=100   # speakers of the synthesised corpus
num_test_spk=40
num_dev_spk=20
data_opts=          # further options of local/mini_data.sh

po_files+=("${BASH_SOURCE[0]}")

make_data() {
    # shellcheck disable=SC2086  # options are split on purpose
    "$ROOT/local/mini_data.sh" --nj "$nj" --num-train-spk "$num_train_spk" --num-test-spk "$num_test_spk" \
        --num-dev-spk "$num_dev_spk" $data_opts "$data"
}
noise_lists() { [ ! -d "$data/noise" ] && [ "$stage" -gt 1 ] || use_noise "$data/noise"; }
