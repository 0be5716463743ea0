#!/usr/bin/env bash
# VoxCeleb1 and 2, MUSAN and room impulse responses -> data directories train, train_labeled, dev, test, musan_noise,
# musan_speech, musan_music and rirs, and truth/. Usage: local/data.sh [options] <data> <trials>...
# <trials> are veri_test2.txt (O, cleaned), list_test_all2.txt (E), list_test_hard2.txt (H) or NAME=FILE. Where they
# name all speakers of VoxCeleb1, as E does, the dev speakers come from VoxCeleb2 and are left out of train.
set -euo pipefail
vox1=              # folder of VoxCeleb1: dev/wav, test/wav
vox2=              # folder of VoxCeleb2: dev/wav or dev/aac, as .wav or .flac
convert_m4a=false  # convert the .m4a files of dev/aac into .flac files of dev/wav, in nj jobs
cmd=run.sh         # job runner of the conversion
nj=1               # parallel jobs, from 1
num_dev_spk=40     # number of dev speakers, from 2; 0: no dev, and nothing is calibrated
musan=             # folder of MUSAN: noise, speech, music
rirs=              # folder of simulated room impulse responses
dry_run=false      # only print the commands
. "$(dirname "$0")/../path.sh"
. parse_options.sh
[ $# -ge 1 ] || po_die "give <data> <trials>..."
data=$1
for name in vox1 vox2 musan rirs; do
  $dry_run || [ -n "${!name}" ] || po_die "give run.sh --$name"
done
$dry_run || [ $# -ge 2 ] || po_die "give run.sh --trials"
[ $# -ge 2 ] || set -- "$data" ""
if $convert_m4a; then
  read -ra cmd <<< "$cmd"
  log_run "${cmd[@]}" SPKV_JOB=1:"$nj" "$data/log/m4a_to_flac.SPKV_JOB.log" \
    python "$SPKV_ROOT/local/m4a_to_flac.py" --nj 1 --part "SPKV_JOB/$nj" "$vox2/dev/aac" "$vox2/dev/wav"
fi
lists=()
for list in "${@:2}"; do lists+=(--trials "$list"); done
log_run python "$SPKV_ROOT/local/voxceleb.py" "${lists[@]}" --num-dev-spk "$num_dev_spk" "$vox1" "$vox2" "$data"
for kind in noise speech music; do
  log_run python "$SPKV_ROOT/local/noise.py" "$data/musan_$kind" "$musan/$kind"
done
log_run python "$SPKV_ROOT/local/noise.py" --segment-seconds 0 "$data/rirs" "$rirs"
