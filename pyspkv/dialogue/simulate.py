"""Simulate dialogues from labelled speech, and contaminate them with second speakers."""

import zlib
from dataclasses import replace

import numpy as np

from pyspkv.base.errors import UserError
from pyspkv.data.datadir import DataDir


def cut_sizes(n: int, low: int, high: int, rng: np.random.Generator) -> list[int]:
    """Split n into random parts of low..high; returns [n] if that is impossible."""
    out = []
    while n:
        fits = [s for s in range(low, high + 1) if n == s or -(-(n - s) // high) * low <= n - s]
        fits = [s for s in fits if s <= n]
        out.append(int(rng.choice(fits)) if fits else n)
        n -= out[-1]
    return out


def simulate(
    data: DataDir,
    session: dict[str, str],
    *,
    sizes: tuple[int, int] = (4, 8),
    households: bool = False,
    seed: int = 0,
) -> DataDir:
    """Add utt2dialogue and dialogue2device to `data`: the shuffled utterances of each session are cut into
    dialogues.

    Args:
        data: a directory with true speakers.
        session: utterance -> session; a dialogue has one speaker and one session.
        sizes: smallest and largest number of utterances in a dialogue.
        households: two random speakers share a device; by default each speaker has one of his own.

    Raises UserError when an utterance has no session.
    """
    rng = np.random.default_rng((seed, 0))
    speakers = sorted(set(data.spk))
    device = {s: s for s in speakers}
    if households:
        order = np.random.default_rng((seed, 3)).permutation(len(speakers))
        device |= {speakers[i]: f"home{k // 2:04d}" for k, i in enumerate(order)}
    parts: dict[tuple[str, str], list[str]] = {}
    for utt, spk in zip(data.utts, data.spk):
        if utt not in session:
            raise UserError(f"utterance {utt} has no session", file=data.path)
        parts.setdefault((spk, session[utt]), []).append(utt)
    dialogue: dict[str, str] = {}
    devices: dict[str, str] = {}
    for (spk, name), utts in sorted(parts.items()):
        utts = [utts[i] for i in rng.permutation(len(utts))]
        at = 0
        for k, size in enumerate(cut_sizes(len(utts), *sizes, rng)):
            new = f"{spk}-{name}-{k}"
            devices[new] = device[spk]
            dialogue |= dict.fromkeys(utts[at : at + size], new)
            at += size
    return replace(
        data,
        utt_tables={**data.utt_tables, "utt2dialogue": dialogue},
        dialogue2device=devices,
        dialogue2mixed=None,
    )


def contaminate(
    data: DataDir,
    mixed_fraction: float,
    *,
    share: tuple[float, float] = (1 / 3, 1 / 2),
    alike: dict[str, str] | None = None,
    seed: int = 0,
) -> DataDir:
    """Put a second speaker into `mixed_fraction` of the dialogues, and mark them in dialogue2mixed.

    Args:
        data: a directory with true speakers, utt2dialogue and dialogue2device.
        mixed_fraction: share of the dialogues with at least two utterances that become mixed.
        share: range of the share of a dialogue's utterances that are replaced (at least one, never all).
        alike: utterance -> key; a replacement has the same key if possible (the same word and round).

    The second speaker is one of the same device (household) if there is one, else drawn from all. The
    replacement is a copy named `<utt>-in-<dialogue>`; the original stays in its own dialogue. Dialogues are
    chosen in the same order for every fraction, so a higher fraction contains the mixed dialogues of a lower
    one.

    Raises UserError when a dialogue already has two speakers, or there is only one speaker.
    """
    spk, dialogue = dict(zip(data.utts, data.spk)), data.utt_tables["utt2dialogue"]
    members: dict[str, list[str]] = {}
    for utt in data.utts:
        members.setdefault(dialogue[utt], []).append(utt)
    owner = {d: spk[utts[0]] for d, utts in members.items()}
    if odd := next((d for d, utts in members.items() if {spk[u] for u in utts} != {owner[d]}), None):
        raise UserError(
            f"dialogue {odd} already has two speakers",
            file=data.path,
            hint="give a directory with true speakers",
        )
    home: dict[str, set[str]] = {}
    device_of = data.dialogue2device
    assert device_of is not None  # every directory with dialogues here also has devices
    for d, device in device_of.items():
        home.setdefault(device, set()).add(owner[d])
    said: dict[str, list[str]] = {}
    for utt in data.utts:
        said.setdefault(spk[utt], []).append(utt)
    keyed = {(spk[u], key): u for u, key in (alike or {}).items() if u in spk}
    # One utterance cannot have two speakers
    names = sorted(d for d, utts in members.items() if len(utts) > 1)
    if len(said) < 2:
        raise UserError("contamination needs two speakers", file=data.path)
    order = np.random.default_rng((seed, 1)).permutation(len(names))
    chosen = {names[i] for i in order[: round(mixed_fraction * len(names))]}
    copies: dict[str, tuple[str, str]] = {}  # new utterance -> (original, dialogue)
    gone: set[str] = set()
    for name in sorted(chosen):
        rng = np.random.default_rng((seed, 2, zlib.crc32(name.encode())))
        others = sorted(home[device_of[name]] - {owner[name]}) or sorted(set(said) - {owner[name]})
        second = others[rng.integers(len(others))]
        utts = members[name]
        count = max(1, round(float(rng.uniform(*share)) * len(utts)))
        count = min(count, len(utts) - 1, len(said[second]))
        taken: set[str] = set()
        for i in rng.permutation(len(utts))[:count]:
            key = (alike or {}).get(utts[i])
            new = keyed.get((second, key)) if key is not None else None
            if new is None or new in taken:
                left = [u for u in said[second] if u not in taken]
                new = left[rng.integers(len(left))]
            taken.add(new)
            gone.add(utts[i])
            copies[f"{new}-in-{name}"] = (new, name)
    tables = {n: dict(t) for n, t in data.tables().items()}
    for table in (t for n, t in tables.items() if n not in ("wav.scp", "dialogue2device", "dialogue2mixed")):
        table.update({new: table[utt] for new, (utt, _) in copies.items() if utt in table})
    if data.segments is None:
        tables["wav.scp"].update({new: data.wav[utt] for new, (utt, _) in copies.items()})
    tables["utt2dialogue"].update({new: name for new, (_, name) in copies.items()})
    tables["dialogue2mixed"] = {name: str(int(name in chosen)) for name in sorted(members)}
    out = DataDir.from_tables(data.path, tables, {})
    return out.subset([u for u in out.utts if u not in gone], trials=False)
