"""Utterances without a signal: what extraction found and wrote down, for whatever uses the embeddings later.

An encoder gives silence an embedding as good as any, so such utterances would be one speaker. `AudioReader` finds
them; OUT/made_by of an extraction names them under `silent`. No audio is opened here, and nothing heavy imported.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from pyspkv.base import foreign
from pyspkv.base.errors import printable

MAX_RECORD = 1 << 28  # bytes of a made_by: it may name a million utterances


def note(found: dict[str, str], most: int = 10) -> str:
    """One line on utterances and why they have no signal, the first `most` by name; "" where there are none."""
    if not found:
        return ""
    named = [f"{utt} ({found[utt]})" for utt in list(found)[:most]]
    more = ["..."] if len(found) > most else []
    subject = "1 utterance has" if len(found) == 1 else f"{len(found)} utterances have"
    return f"{subject} no signal: {', '.join(named + more)}"


def warn(found: dict[str, str], what: str | Path) -> None:
    """`note` on stderr, as "warning: <what>: 2 utterances have no signal: u1 (digital silence), ..."."""
    if found:
        print(printable(f"warning: {what}: {note(found)}"), file=sys.stderr, flush=True)


def of_record(record: dict) -> dict[str, str]:
    """Utterance -> why it has no signal, of what a made_by holds; {} of an older one, which does not say."""
    found = record.get("silent")
    pairs = found.items() if isinstance(found, dict) else ()
    return {utt: reason for utt, reason in pairs if isinstance(reason, str)}


def among(scps: Sequence[str | Path], utts: Iterable[str]) -> dict[str, str]:
    """Those of `utts` that the extraction of one of these embedding.scp has found without a signal, and why."""
    found: dict[str, str] = {}
    for scp in scps:
        found |= of_record(foreign.read_json_or_empty(Path(scp).with_name("made_by"), limit=MAX_RECORD))
    wanted = set(utts) if found else set()
    return {utt: found[utt] for utt in sorted(found) if utt in wanted}
