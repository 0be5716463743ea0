#!/usr/bin/env bash
# The environment of every script, to be sourced: ROOT, PYTHONPATH, PATH, LC_ALL and the Python interpreter.
# SPKV_PYTHON names an existing interpreter; without it, .venv is made on first use (utils/setup_env.sh).

ROOT=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
export ROOT LC_ALL=C

if [ -z "${SPKV_PYTHON:-}" ]; then
  "$ROOT/utils/setup_env.sh" || return 1
  SPKV_PYTHON=$ROOT/.venv/bin/python
elif ! SPKV_PYTHON=$(command -v "$SPKV_PYTHON"); then
  echo "path.sh: SPKV_PYTHON is no program; set it to a Python 3.11 or newer, or unset it" >&2
  unset SPKV_PYTHON
  return 1
fi
case $SPKV_PYTHON in /*) ;; *) SPKV_PYTHON=$PWD/$SPKV_PYTHON ;; esac
export SPKV_PYTHON

# `python` is that interpreter: from its own folder, or through a wrapper where that has none of the name.
_bin=$(dirname "$SPKV_PYTHON")
if ! [ "$_bin/python" -ef "$SPKV_PYTHON" ]; then
  _bin=$ROOT/.venv.wrapper
  mkdir -p "$_bin"
  printf '#!/bin/sh\nexec "%s" "$@"\n' "$SPKV_PYTHON" > "$_bin/python.$$"
  chmod +x "$_bin/python.$$"
  mv "$_bin/python.$$" "$_bin/python"
fi
case :$PATH: in ":$ROOT/utils:$_bin:"*) ;; *) export PATH="$ROOT/utils:$_bin:$PATH" ;; esac
case :${PYTHONPATH:-}: in ":$ROOT:"*) ;; *) export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" ;; esac
unset _bin
