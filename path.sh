#!/usr/bin/env bash
# The environment of every script, to be sourced: SPKV_ROOT (this folder), PATH, PYTHONPATH and LC_ALL. It installs
# nothing. `python` (utils/bin/python) is $SPKV_PYTHON where that is set, else .venv's, which utils/setup_env.sh makes.

SPKV_ROOT=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
export SPKV_ROOT LC_ALL=C

if [ -n "${SPKV_PYTHON:-}" ]; then
  if ! SPKV_PYTHON=$(command -v "$SPKV_PYTHON"); then
    echo "path.sh: SPKV_PYTHON is no program; set it to a Python 3.11 or newer, or unset it" >&2
    unset SPKV_PYTHON
    return 1
  fi
  case $SPKV_PYTHON in /*) ;; *) SPKV_PYTHON=$PWD/$SPKV_PYTHON ;; esac
  export SPKV_PYTHON
fi

case :$PATH: in
  ":$SPKV_ROOT/utils/bin:"*) ;;
  *) export PATH="$SPKV_ROOT/utils/bin:$SPKV_ROOT/utils:$PATH:$SPKV_ROOT/.venv/bin" ;; # the last for tensorboard
esac
case :${PYTHONPATH:-}: in ":$SPKV_ROOT:"*) ;; *) export PYTHONPATH="$SPKV_ROOT${PYTHONPATH:+:$PYTHONPATH}" ;; esac
