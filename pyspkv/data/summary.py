"""Facts about a data directory to check before training: durations, rates, silence, clipping, duplicates,
speakers.

Each utterance is measured as `AudioReader` returns it (16 kHz, mono):
- quiet: share of 20 ms frames whose RMS is at least 40 dB below that of the loudest frame;
- clipped: share of samples at 0.999 of full scale or beyond;
- duplicate: exactly the same decoded samples as another utterance (compared by SHA-256).
"""

import hashlib
from collections import Counter
from dataclasses import dataclass

import numpy as np

from pyspkv.base.errors import UserError
from pyspkv.data.datadir import DataDir

RATE = 16000
FRAME = 320  # samples
QUIET_DB = 40.0
FULL = 0.999
CLIPPED_SHARE = 1e-3  # an utterance with more clipped samples counts as clipped
EDGES = (0.25, 0.5, 1, 2, 3, 5, 8, 12, 20, 30, 60)  # s, bin edges of the histogram
FEW = 3  # utterances of a speaker


@dataclass(frozen=True)
class Measured:
    """Measurements of one utterance. problem: why it cannot be used; "" if it can."""

    seconds: float
    rate: int  # Hz, of the file
    quiet: float
    clipped: float
    digest: str
    problem: str
    silent: bool


def measure(reader, row: int) -> Measured:
    """Decode and measure one utterance; audio that cannot be read gives a `problem`."""
    from pyspkv.data.manifests.check import reason

    try:
        x = reader.read(row)
    except (UserError, OSError) as err:
        return Measured(0.0, 0, 0.0, 0.0, "", reason(err, reader.data.utts[row]), False)
    silent = reader.silent.pop(row, "")
    digest = hashlib.sha256(x.tobytes()).hexdigest()
    clipped = float(np.mean(np.abs(x) >= FULL))
    return Measured(
        len(x) / RATE, int(reader._rate[row]), quiet_share(x), clipped, digest, silent, bool(silent)
    )


def quiet_share(x: np.ndarray) -> float:
    """Share of frames at least 40 dB below the loudest one, for samples [n]; 0 if n is below one frame."""
    frames = x[: len(x) // FRAME * FRAME].reshape(-1, FRAME)
    if not len(frames):
        return 0.0
    power = np.mean(np.square(frames, dtype=np.float64), axis=1)
    return float(np.mean(power <= power.max() * 10 ** (-QUIET_DB / 10)))


def summarize(data: DataDir, measured: list[Measured], crop_seconds: float) -> dict:
    """A dict of facts, with `warnings` as a list of sentences. `measured` is aligned with data.utts."""
    good = [(u, m) for u, m in zip(data.utts, measured) if not m.problem]
    seconds = np.array([m.seconds for _, m in good])
    speakers = Counter(data.spk)
    unlabeled = sum(u == s for u, s in zip(data.utts, data.spk))
    out: dict = {"utterances": len(data.utts), "speakers": len(speakers), "without_speaker": unlabeled}
    out["hours"] = float(seconds.sum() / 3600)
    points = [0, 5, 25, 50, 75, 95, 100]
    names = ("min", "p5", "p25", "median", "p75", "p95", "max")
    found = np.percentile(seconds, points).tolist() if len(seconds) else [0.0] * len(points)
    out["seconds"] = dict(zip(names, found))
    out["histogram"] = _histogram(seconds)
    out["sample_rates"] = {str(r): n for r, n in sorted(Counter(m.rate for _, m in good).items())}
    out["quiet_share"] = float(np.mean([m.quiet for _, m in good])) if good else 0.0
    out["clipped"] = sorted(u for u, m in good if m.clipped > CLIPPED_SHARE)
    out["clipped_samples_share"] = (
        float(np.average([m.clipped for _, m in good], weights=seconds)) if good else 0.0
    )
    out["silent"] = {u: m.problem for u, m in zip(data.utts, measured) if m.silent}
    out["unreadable"] = {u: m.problem for u, m in zip(data.utts, measured) if m.problem and not m.silent}
    out["duplicates"] = _duplicates(good)
    counts = sorted(speakers.values())
    out["utterances_per_speaker"] = {"min": counts[0], "median": float(np.median(counts)), "max": counts[-1]}
    out["speakers_with_one_utterance"] = sum(n == 1 for n in counts)
    out["warnings"] = warnings(data, out, seconds, crop_seconds)
    return out


def _histogram(seconds: np.ndarray) -> list[dict]:
    """Numbers of utterances between the edges; the last bin has no upper end."""
    edges = np.array([0, *EDGES, np.inf])
    counts = np.histogram(seconds, edges)[0]
    return [{"from": float(a), "to": None if b == np.inf else float(b), "utterances": int(n)}
            for a, b, n in zip(edges, edges[1:], counts)]  # fmt: skip


def _duplicates(good: list[tuple[str, Measured]]) -> list[list[str]]:
    """Groups of utterances with the same samples; groups and their members in C order."""
    groups: dict[str, list[str]] = {}
    for utt, m in good:
        groups.setdefault(m.digest, []).append(utt)
    return sorted(group for group in groups.values() if len(group) > 1)


def warnings(data: DataDir, facts: dict, seconds: np.ndarray, crop: float) -> list[str]:
    """Warnings about what would harm training or a test, each with what to do."""
    n, out = facts["utterances"], []
    labeled = facts["without_speaker"] < n
    short = int((seconds < crop).sum())
    if short > len(seconds) / 2:
        out.append(
            f"{short} of {len(seconds)} utterances are shorter than the crops of {crop:g} s (median "
            f"{facts['seconds']['median']:.2f} s): two crops of one utterance would be the same audio; set "
            "crop_seconds below the median, or join utterances"
        )
    if labeled and facts["speakers"] == 1:
        out.append("there is only one speaker: nothing can be learnt or tested")
    one = facts["speakers_with_one_utterance"]
    if labeled and one > facts["speakers"] / 2:
        out.append(
            f"{one} of {facts['speakers']} speakers have one utterance: these give no target trial and no positive pair"
        )
    low = {r: k for r, k in facts["sample_rates"].items() if int(r) < RATE}
    if low:
        shown = ", ".join(f"{k} at {r} Hz" for r, k in low.items())
        out.append(
            f"{sum(low.values())} utterances have a rate below 16 kHz ({shown}): they are resampled, and the upper "
            "bands are empty; do not mix them with 16 kHz audio of other speakers: the rate then reveals the speaker"
        )
    for name, what, todo in (
        ("silent", "have no signal", "remove them: to a model, all silence sounds like one speaker"),
        ("unreadable", "cannot be read", "remove or replace them"),
        (
            "clipped",
            f"have more than {CLIPPED_SHARE:.1%} clipped samples",
            "record at a lower level if you can",
        ),
    ):
        if found := list(facts[name]):
            out.append(f"{len(found)} of {n} utterances {what} ({', '.join(found[:3])}): {todo}")
    if groups := facts["duplicates"]:
        more = sum(map(len, groups)) - len(groups)
        of = dict(zip(data.utts, data.spk))
        mixed = sum(len({of[u] for u in group}) > 1 for group in groups) if labeled else 0
        text = f"{more} utterances are copies of others ({' = '.join(groups[0][:3])})"
        text += f", and {mixed} of {len(groups)} groups have several speakers" if mixed else ""
        out.append(
            f"{text}: remove them: trials of copies are too easy, and labels of copies contradict each other"
        )
    if facts["quiet_share"] > 0.5:
        out.append(
            f"{facts['quiet_share']:.0%} of the frames are quiet: cut the pauses, or some crops will be silent"
        )
    return out


def as_text(facts: dict) -> str:
    """The facts as text."""
    s, n = facts["seconds"], facts["utterances"]
    lines = [f"utterances        {n}, {facts['hours']:.2f} hours"]
    unknown = facts["without_speaker"]
    lines += [f"speakers          {'unknown' if unknown == n else facts['speakers']}"]
    if unknown < n:
        u = facts["utterances_per_speaker"]
        lines += [f"  utterances each {u['min']} to {u['max']}, median {u['median']:g}"]
    rates = ", ".join(f"{r} Hz: {k}" for r, k in facts["sample_rates"].items())
    lines += [f"sample rates      {rates or '-'}"]
    lines += [f"seconds           {s['min']:.2f} to {s['max']:.2f}, median {s['median']:.2f}"]
    most = max([b["utterances"] for b in facts["histogram"]] + [1])
    shown = [i for i, b in enumerate(facts["histogram"]) if b["utterances"]] or [0]
    for b in facts["histogram"][shown[0] : shown[-1] + 1]:
        end = f"{b['to']:5g}" if b["to"] is not None else "     "
        lines += [
            f"  {b['from']:5g} - {end} s  {b['utterances']:8d}  {'#' * round(40 * b['utterances'] / most)}".rstrip()
        ]
    lines += [f"quiet frames      {facts['quiet_share']:.1%}"]
    lines += [
        f"clipped           {len(facts['clipped'])} utterances, {facts['clipped_samples_share']:.3%} of all samples"
    ]
    lines += [f"silent            {len(facts['silent'])}", f"unreadable        {len(facts['unreadable'])}"]
    lines += [f"duplicates        {sum(map(len, facts['duplicates'])) - len(facts['duplicates'])}"]
    lines += [f"warning: {w}" for w in facts["warnings"]] or ["no warning"]
    return "\n".join(lines)
