#!/usr/bin/env bash
# Arabic Speech Commands -> speaker folds for simulated dialogues (--help lists the options).
set -euo pipefail
# shellcheck source=path.sh
. "$(dirname "$(readlink -f "$0")")/../path.sh"
exec python "$ROOT/local/arabic_speech_commands_folds.py" "$@"
