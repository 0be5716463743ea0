"""Record of utterances without a signal, for whatever uses their embeddings later.

An encoder gives silence an ordinary embedding, so all silent utterances would look like one speaker.
`AudioReader` finds them, and extraction lists them in OUT/made_by under `silent`. This module only reads that
list, opens no audio and imports nothing heavy.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from pyspkv.base import foreign
from pyspkv.base.errors import printable

MAX_RECORD = 1 << 28  # bytes of a made_by file, which may list a million utterances


def note(found: dict[str, str], most: int = 10) -> str:
    """One line that lists the first `most` utterances without a signal, each with its reason; "" for none."""
    if not found:
        return ""
    named = [f"{utt} ({found[utt]})" for utt in list(found)[:most]]
    more = ["..."] if len(found) > most else []
    subject = "1 utterance has" if len(found) == 1 else f"{len(found)} utterances have"
    return f"{subject} no signal: {', '.join(named + more)}"


def warn(found: dict[str, str], what: str | Path) -> None:
    """Print `note` to stderr: "warning: <what>: 2 utterances have no signal: u1 (digital silence), ..."."""
    if found:
        print(printable(f"warning: {what}: {note(found)}"), file=sys.stderr, flush=True)


def of_record(record: dict) -> dict[str, str]:
    """Utterance -> reason, from the content of made_by; {} for an older record without that list."""
    found = record.get("silent")
    pairs = found.items() if isinstance(found, dict) else ()
    return {utt: reason for utt, reason in pairs if isinstance(reason, str)}


def among(scps: Sequence[str | Path], utts: Iterable[str]) -> dict[str, str]:
    """Utterance -> reason, for those of `utts` that were silent when these embedding.scp were extracted."""
    found: dict[str, str] = {}
    for scp in scps:
        found |= of_record(foreign.read_json_or_empty(Path(scp).with_name("made_by"), limit=MAX_RECORD))
    wanted = set(utts) if found else set()
    return {utt: found[utt] for utt in sorted(found) if utt in wanted}
