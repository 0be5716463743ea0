#!/usr/bin/env bash
# Arabic Speech Commands -> train, train_labelled, dev, test data directories and trials (--help lists the options).
set -euo pipefail
# shellcheck source=path.sh
. "$(dirname "$(readlink -f "$0")")/../path.sh"
exec python "$ROOT/local/arabic_speech_commands_data.py" "$@"
