#!/usr/bin/env bash
# Build docs/ into a folder of HTML pages. A broken link or anchor is an error.
# Usage: utils/build_docs.sh [--out DIR]     DIR is site by default
set -euo pipefail
out=site # folder of the pages
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../path.sh"
. parse_options.sh
out=$(realpath -m -- "$out")
cd "$SPKV_ROOT"
python -c 'import mkdocs, material, pymdownx' 2> /dev/null || {
  printf '%s: mkdocs is not installed\n  hint: python -m pip install -r %q\n' "$0" "$SPKV_ROOT/requirements-docs.txt" >&2
  exit 1
}
NO_MKDOCS_2_WARNING=1 python -m mkdocs build --strict --clean --config-file mkdocs.yml --site-dir "$out"
echo "$0: $out/index.html"
