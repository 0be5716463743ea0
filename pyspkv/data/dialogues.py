"""Data directories with dialogues: facts about them, and a check that two directories have nothing in
common."""

import numpy as np

from pyspkv.base.errors import UserError
from pyspkv.data.datadir import DataDir


def dialogue_lines(data: DataDir) -> list[str]:
    """Lines of facts about a directory with utt2dialogue, to read before training on it."""
    dialogue = data.utt_tables["utt2dialogue"]
    _, size = np.unique(list(dialogue.values()), return_counts=True)
    many, count = np.unique(size, return_counts=True)
    shown = ", ".join(f"{m}: {c}" for m, c in list(zip(many.tolist(), count.tolist()))[:20])
    lines = [f"utterances in a dialogue: {shown}{', ...' if len(many) > 20 else ''}"]
    if data.dialogue2device is None:
        lines.append(
            "warning: no dialogue2device: each dialogue counts as a device, and all others are its negatives"
        )
        return lines
    usable = {d for d, n in zip(sorted(set(dialogue.values())), size) if n >= 2}
    devices, per = np.unique(list(data.dialogue2device.values()), return_counts=True)
    most = len({dev for d, dev in data.dialogue2device.items() if d in usable})
    lines.append(
        f"{len(devices)} devices of {per.min()} to {per.max()} dialogues (median {np.median(per):g})"
    )
    lines.append(
        f"{len(usable)} dialogues of at least two utterances, on {most} devices (the largest possible batch)"
    )
    return lines


def check_disjoint(a: DataDir, b: DataDir) -> None:
    """UserError when the two directories share an utterance, a speaker, a dialogue or a device."""

    def names(data: DataDir) -> dict[str, set[str]]:
        found = {"utterance": set(data.utts), "speaker": set(data.spk)}
        found["dialogue"] = set(data.utt_tables.get("utt2dialogue", {}).values())
        return found | {"device": set((data.dialogue2device or {}).values())}

    theirs = names(b)
    for what, own in names(a).items():
        if shared := own & theirs[what]:
            option = {"speaker": "spk", "utterance": "utt"}.get(what, what)
            raise UserError(
                f"{len(shared)} {what}s are in {a.path} too: {min(shared)}",
                file=b.path,
                hint=f"remove them from one of the directories (subset_data_dir.sh --{option}-list)",
            )
