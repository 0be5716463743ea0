# shellcheck shell=bash
# The recipe's folder and the repository, to be sourced by run.sh and local/data.sh. Nothing here needs editing.
# SPKV_RECIPE is not exported, so that in a shell that sources this file another recipe's run.sh finds its own folder.
SPKV_RECIPE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
if [ -z "${SPKV_ROOT:-}" ]; then
  SPKV_ROOT=$SPKV_RECIPE
  while [ "$SPKV_ROOT" != / ] && ! [ -f "$SPKV_ROOT/utils/parse_options.sh" ]; do SPKV_ROOT=$(dirname "$SPKV_ROOT"); done
fi
if ! [ -f "$SPKV_ROOT/utils/parse_options.sh" ]; then
  echo "$SPKV_RECIPE: set SPKV_ROOT to the folder of pyspkv" >&2
  return 1
fi
. "$SPKV_ROOT/path.sh"
