#!/usr/bin/env bash
# VoxCeleb1 and 2, MUSAN and room impulse responses -> data directories train, train_labeled, dev, test, musan_noise,
# musan_speech, musan_music and rirs, and truth/. Usage: local/data.sh [options] <data>
set -euo pipefail
vox1=              # folder of VoxCeleb1: dev/wav, test/wav
vox2=              # folder of VoxCeleb2: dev/wav or dev/aac, as .wav
trials=            # file veri_test2.txt (O, cleaned), list_test_all2.txt (E) or list_test_hard2.txt (H)
musan=             # folder of MUSAN: noise, speech, music
rirs=              # folder of simulated room impulse responses
dry_run=false      # only print the commands
. "$(dirname "$0")/../path.sh"
. parse_options.sh
data=$1
for name in vox1 vox2 trials musan rirs; do
  $dry_run || [ -n "${!name}" ] || po_die "give run.sh --$name"
done
log_run python "$SPKV_ROOT/local/voxceleb.py" --trials "$trials" "$vox1" "$vox2" "$data"
for kind in noise speech music; do
  log_run python "$SPKV_ROOT/local/noise.py" "$data/musan_$kind" "$musan/$kind"
done
log_run python "$SPKV_ROOT/local/noise.py" --segment-seconds 0 "$data/rirs" "$rirs"
