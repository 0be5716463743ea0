"""Check the audio of a new data directory; unusable utterances are dropped and listed."""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial

from pyspkv.base.errors import UserError
from pyspkv.data.datadir import DataDir
from pyspkv.data.manifests.rows import Skipped

RATE = 16000  # Hz, of the audio that AudioReader returns


def reason(err: UserError | OSError, utt: str) -> str:
    """An error's message without the utterance and the hint."""
    if isinstance(err, OSError):
        return err.strerror or str(err)
    first = str(err).partition("\n")[0]
    return first.partition(f"utterance {utt}: ")[2] or first


def _length(reader, row: int) -> tuple[int, int, str]:
    """(row, number of samples according to the header, reason why the row cannot be used or "")."""
    try:
        return row, reader.num_samples(row), ""
    except (UserError, OSError) as err:
        return row, 0, f"cannot be read: {reason(err, reader.data.utts[row])}"


def _whole(reader, row: int) -> tuple[int, int, str]:
    """(row, number of decoded samples, reason why the row cannot be used or "")."""
    try:
        n = len(reader.read(row))
    except (UserError, OSError) as err:
        return row, 0, f"cannot be read: {reason(err, reader.data.utts[row])}"
    silent = reader.silent.pop(row, "")
    return row, n, f"silent: {silent}" if silent else ""


def each_row(work: Callable, reader, rows: Iterable[int], nj: int, what: str) -> Iterator:
    """Yield work(reader, row) for every row, in order, computed by `nj` processes; with a progress bar."""
    from tqdm import tqdm

    rows = list(rows)
    show = partial(tqdm, total=len(rows), desc=what, unit="utt", disable=None, leave=False)
    if nj < 2 or len(rows) < 2 * nj:
        yield from show(work(reader, row) for row in rows)
        return
    with multiprocessing.get_context("fork").Pool(nj) as pool:
        yield from show(pool.imap(partial(work, reader), rows, chunksize=min(64, -(-len(rows) // nj))))


def check(
    data: DataDir, how: str, skipped: Skipped, *, min_seconds: float, nj: int = 1, allow_pipes: bool = False
) -> DataDir:
    """Check the audio; return the usable utterances with utt2dur (with segments: reco2dur). Others go to
    `skipped`.

    how: "none" opens no file; "headers" finds files that cannot be opened or are shorter than `min_seconds`;
    "audio" decodes everything, and so finds silence and damage as well. UserError when nothing is left.
    """
    if how == "none":
        return _long_enough(data, skipped, min_seconds)
    from pyspkv.audio.reader import AudioReader

    ids = sorted(data.wav)
    files = DataDir(None, ids, ids, data.wav)  # type: ignore[arg-type] # there is no folder behind it
    bad: dict[str, str] = {}
    seconds: dict[str, float] = {}
    reader = AudioReader(files, allow_pipes)
    for row, n, why in each_row(_length, reader, range(len(ids)), nj, "headers"):
        if why:
            bad[ids[row]] = why
        else:
            seconds[ids[row]] = n / RATE
    bad = _by_utterance(data, bad, seconds)
    kept = _without(data, bad, skipped)
    kept = _long_enough(_with_seconds(kept, seconds), skipped, min_seconds)
    if how == "headers":
        return kept
    silent: dict[str, str] = {}
    nowhere = replace(kept, path=None, utt_tables={}, reco_tables={})  # type: ignore[arg-type] # see above
    reader = AudioReader(nowhere, allow_pipes)
    for row, _, why in each_row(_whole, reader, range(len(kept.utts)), nj, "audio"):
        if why:
            silent[kept.utts[row]] = why
    return _without(kept, silent, skipped)


def _by_utterance(data: DataDir, bad: dict[str, str], seconds: dict[str, float]) -> dict[str, str]:
    """Utterance -> reason: that of its recording, or that its segment lies beyond the recording."""
    if data.segments is None:
        return bad
    out = {}
    for utt, (reco, start, end) in data.segments.items():
        if reco in bad:
            out[utt] = bad[reco]
        elif start >= seconds[reco] or end > seconds[reco] + 0.5:
            out[utt] = f"beyond its recording: {start:g} to {end:g} s of {seconds[reco]:.2f} s"
    return out


def _with_seconds(data: DataDir, seconds: dict[str, float]) -> DataDir:
    """`data` with utt2dur, or with reco2dur if there are segments."""
    if data.segments is not None:
        recos = {r for r, _, _ in data.segments.values()}
        return replace(
            data, reco_tables=data.reco_tables | {"reco2dur": {r: repr(seconds[r]) for r in recos}}
        )
    return replace(data, utt_tables=data.utt_tables | {"utt2dur": {u: repr(seconds[u]) for u in data.utts}})


def _long_enough(data: DataDir, skipped: Skipped, min_seconds: float) -> DataDir:
    """`data` without the utterances that are known to be shorter than `min_seconds`."""
    whole = {r: float(d) for r, d in data.reco_tables.get("reco2dur", {}).items()}
    short = {}
    for utt in data.utts:
        if data.segments is not None:
            reco, start, end = data.segments[utt]
            last = min(end, whole.get(reco, end)) if end >= 0 else whole.get(reco)
            length = None if last is None else last - start
        else:
            length = float(data.utt_tables["utt2dur"][utt]) if "utt2dur" in data.utt_tables else None
        if length is not None and length < min_seconds:
            short[utt] = f"shorter than {min_seconds:g} s: {length:.3f} s"
    return _without(data, short, skipped)


def _without(data: DataDir, bad: dict[str, str], skipped: Skipped) -> DataDir:
    if not bad:
        return data
    paths = data.utt_tables.get("utt2path", {})
    for utt in sorted(bad):
        entry = data.wav[data.segments[utt][0] if data.segments else utt]
        name = paths.get(utt, entry)
        skipped.add(f"{name} ({utt})" if data.segments else name, bad[utt])
    kept = [u for u in data.utts if u not in bad]
    if not kept:
        utt, why = min(bad.items())
        raise UserError(f"none of {len(data.utts)} utterances can be used; {utt}: {why}", file=data.path)
    return data.subset(kept)
