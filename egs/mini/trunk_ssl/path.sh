# shellcheck shell=bash
# The recipe's folder and the repository, to be sourced by run.sh and local/data.sh. Nothing here needs editing.
SPKV_RECIPE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
export SPKV_RECIPE
if [ -z "${SPKV_ROOT:-}" ]; then
  SPKV_ROOT=$SPKV_RECIPE
  while [ "$SPKV_ROOT" != / ] && ! [ -f "$SPKV_ROOT/utils/parse_options.sh" ]; do SPKV_ROOT=$(dirname "$SPKV_ROOT"); done
fi
if ! [ -f "$SPKV_ROOT/utils/parse_options.sh" ]; then
  echo "$SPKV_RECIPE: set SPKV_ROOT to the folder of pyspkv" >&2
  exit 1
fi
. "$SPKV_ROOT/path.sh"
