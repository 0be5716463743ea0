#!/usr/bin/env bash
# Make .venv from requirements.txt and requirements-dev.txt, byte-compiled, unless it is complete already.
# run.sh and run_tests.sh call this on first use.
#
# Usage: utils/setup_env.sh
#
# SPKV_TORCH=cpu|cuda chooses the torch build; by default `nvidia-smi` decides.
set -euo pipefail
[ $# -eq 0 ] || { sed -n '2,/^set /{/^set /d; s/^# \?//; p}' "$0"; exit 1; }

root=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)
venv=$root/.venv
requirements=$root/requirements.txt # includes the extra [mini] of pyproject.toml, for the recipes of egs/mini
dev=$root/requirements-dev.txt      # run_tests.sh needs these
stamp=$venv/.complete # hash of both files, and the path of .venv, because a moved .venv does not work
want="$(cat "$requirements" "$dev" | sha256sum | cut -d' ' -f1) $venv"

say() { echo "setup_env.sh: $*" >&2; }
die() { say "$@"; exit 1; }
complete() { [ -x "$venv/bin/python" ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; }

if complete; then exit 0; fi
exec 9< "$root" # the lock is on the repository folder, so it leaves no file behind
flock -n 9 || { say "waiting for another set-up of $venv"; flock 9; }
if complete; then exit 0; fi

# --- find a Python interpreter
base=
for candidate in python3 python3.13 python3.12 python3.11; do
  command -v "$candidate" > /dev/null || continue
  if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    base=$candidate
    break
  fi
done
if [ -z "$base" ]; then
  have=$(python3 --version 2>&1) || have="no python3"
  die "Python 3.11 or newer is needed, found: $have. Install one, or set SPKV_PYTHON to one that has requirements.txt"
fi
if ! "$base" -c 'import ensurepip, venv' 2> /dev/null; then
  package=python3-venv
  [ "$base" = python3 ] || package=$base-venv
  die "$base cannot make virtual environments"$'\n'"  hint: apt install $package"
fi

# --- make a new environment, or update a complete one
if [ -x "$venv/bin/python" ] && [ -f "$stamp" ] && [ "$(cut -d' ' -f2- < "$stamp")" = "$venv" ]; then
  say "requirements.txt has changed, or requirements-dev.txt: updating $venv"
  rm "$stamp"
else
  [ ! -e "$venv" ] || say "$venv is incomplete or was moved here: making it again"
  say "making $venv with $("$base" --version) (about 2 GB, some minutes)"
  "$base" -m venv --clear "$venv"
fi
python=$venv/bin/python
pip=("$python" -m pip --disable-pip-version-check)

# --- choose the torch build: CUDA if there is a GPU, else CPU
gpu=false
if nvidia-smi -L > /dev/null 2>&1; then gpu=true; fi
case ${SPKV_TORCH:-} in
  "") kind=cpu; reason="nvidia-smi lists no GPU"; if $gpu; then kind=cuda; reason="nvidia-smi lists a GPU"; fi ;;
  cpu | cuda) kind=$SPKV_TORCH; reason="SPKV_TORCH=$SPKV_TORCH" ;;
  *) die "SPKV_TORCH is cpu or cuda, not $SPKV_TORCH" ;;
esac
index=()
if [ "$kind" = cpu ]; then
  # Use torch's own package index only if pip would not install a CPU build anyway (such as a local wheel).
  torch=$(grep -E '^torch==' "$requirements")
  report=$("${pip[@]}" install -qq --dry-run --ignore-installed --no-deps --report - "$torch") ||
    die "pip finds no $torch: see above"
  if echo "$report" | grep -qE '"(nvidia|cuda|triton)[-a-z0-9_]*'; then
    index=(--extra-index-url https://download.pytorch.org/whl/cpu)
  fi
fi
say "torch: $kind build (${reason})${index[*]:+, from ${index[1]}}"

"${pip[@]}" install -qq --compile "${index[@]}" -r "$requirements" -r "$dev" || die "the installation failed: see above; run again"

# --- check the installation
"$python" - << 'PY'
import importlib.util
import pathlib
import torch
# The package index only has torchaudio for CUDA. Its compiled part does not load with a CPU torch and would break every
# import of torchaudio, and so of transformers' WavLM. Without that part, everything that we use works.
if torch.version.cuda is None:
    for lib in (pathlib.Path(importlib.util.find_spec("torchaudio").origin).parent / "lib").glob("*torchaudio*.so"):
        lib.unlink()
PY
site=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
[ -d "$site/torch/__pycache__" ] || "$python" -m compileall -q -j 0 "$site" || true # an odd test file may not compile
"$python" -c 'import torch, torchaudio; from transformers import WavLMModel; print("setup_env.sh: torch", torch.__version__)' >&2 ||
  die "the installed packages do not import: see above; remove the environment, then run this again"$'\n'"  hint: rm -r $(printf %q "$venv")"
echo "$want" > "$stamp.new"
mv "$stamp.new" "$stamp"
say "done: $venv"
