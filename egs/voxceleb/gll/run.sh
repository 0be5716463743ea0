#!/usr/bin/env bash
# GLL, two-stage semi-supervised learning (Wang et al., IJCAI 2024), at full size: ECAPA-1024 pre-trained on VoxCeleb2
# without labels, then five iterations of gated label learning from 1, 4, 10, 20, 40 or 60 labels a speaker; tested on
# VoxCeleb1. The paper chooses epochs on its test trials; here dev speakers do. Baselines: --system (steps/semi.sh).
#   egs/voxceleb/gll/run.sh --ngpu 2 --labels 10 --vox1 DIR --vox2 DIR --trials veri_test2.txt --musan DIR --rirs DIR
set -euo pipefail
# shellcheck source=steps/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../../steps/recipe.sh"
# shellcheck source=steps/semi.sh
. "$ROOT/steps/semi.sh"
num_rounds=5
batch=200
labelled_batch=100
vox1=               # folder of VoxCeleb1: dev/wav, test/wav
vox2=               # folder of VoxCeleb2: dev/wav or dev/aac, as .wav
trials=             # veri_test2.txt (O, cleaned), list_test_all2.txt (E) or list_test_hard2.txt (H)
musan=              # folder of MUSAN: noise, speech, music
rirs=               # folder of simulated room impulse responses
. parse_options.sh
begin
use_system
noise_list=(augment.noise="$data/musan_noise" augment.babble="$data/musan_speech" augment.music="$data/musan_music"
    augment.rir="$data/rirs")

if run 1 "data directories and noise lists"; then
    for opt in vox1 vox2 trials musan rirs; do
        [ -n "${!opt}" ] || { echo "$0: give --$opt" >&2; exit 1; }
    done
    local/voxceleb_data.sh --trials "$trials" "$vox1" "$vox2" "$data"
    for kind in noise speech music; do local/noise_data.sh "$data/musan_$kind" "$musan/$kind"; done
    local/noise_data.sh --segment-seconds 0 "$data/rirs" "$rirs"
fi
if run 2 "check the data directories"; then check_data; fi
if run 3 "stage I: pre-train without labels"; then pretrain; fi
use_cell
if run 4 "$system from $labels labels a speaker"; then split_labels; learn; fi
if run 5 "all true labels, for comparison"; then ! $supervised || supervise_fully; fi
if run 6 "extract embeddings"; then extract_all; fi
if run 7 "score"; then score_all; fi
if run 8 "report"; then report_system; fi
