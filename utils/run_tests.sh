#!/usr/bin/env bash
# All checks: ruff, mypy, shellcheck, the documentation and pytest. It prints what each one found; exit code 0 only if all pass.
#
# Usage: utils/run_tests.sh [--slow] [pytest arguments]     e.g. utils/run_tests.sh tests/test_datadir.py -k fix
#
# Tests on real speech run if SPKV_CORPORA is the folder of corpora; --slow adds tests that take minutes.
set -euo pipefail
if [ "${1:-}" = --help ]; then sed -n '2,/^set /{/^set /d; s/^# \?//; p}' "$0"; exit 0; fi
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../path.sh"
cd "$SPKV_ROOT"
[ -n "${SPKV_PYTHON:-}" ] || utils/setup_env.sh

verdict=() failed=0
check() { # NAME COMMAND...
  local name=$1 start=$SECONDS
  shift
  echo "run_tests.sh: $name"
  if "$@"; then
    verdict+=("$name ok ($((SECONDS - start)) s)")
  else
    verdict+=("$name FAILED")
    failed=1
  fi
}

mapfile -t scripts < <(git ls-files -co --exclude-standard | while read -r f; do
  if [[ -f $f && ! -L $f ]] && { [[ $f == *.sh ]] || head -c 40 "$f" | head -n 1 | grep -aq '^#!.*bash'; }; then echo "$f"; fi
done)
PATH=$(python -c 'import sysconfig; print(sysconfig.get_path("scripts"))'):$PATH # for the linter
check ruff python -m ruff check
check "ruff format" python -m ruff format --check
check mypy python -m mypy --no-error-summary
check "shellcheck (${#scripts[@]} scripts)" shellcheck "${scripts[@]}"
pages=$(mktemp -d)
check docs utils/build_docs.sh --out "$pages"
rm -r "$pages"
# Two workers with one thread each: more threads than cores make every small tensor operation slower.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
check pytest python -m pytest -n "${SPKV_TEST_WORKERS:-2}" "$@"
printf -v line '%s, ' "${verdict[@]}"
echo "run_tests.sh: ${line%, }"
exit "$failed"
