"""A few seconds of toy speech for tests (harmonic voices of different pitch and timbre), and runs that are
killed.
"""

import numpy as np
import pytest
import soundfile

from pyspkv.data.datadir import DataDir
from pyspkv.train.trainer import Trainer


class Killed(Exception):
    pass


def killed_at(steps, run):
    """Call `run`, which trains, so that it is killed once before each of these global steps; then let it
    finish.
    """
    deaths, step = set(steps), Trainer._step

    def fatal(self, model, batch, number):
        if number in deaths:
            deaths.remove(number)
            raise Killed
        return step(self, model, batch, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_step", fatal)
        for _ in steps:
            with pytest.raises(Killed):
                run()
    run()


def make(folder, speakers=4, utts=6, seconds=1.0, seed=0, labelled=True) -> DataDir:
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * 16000)) / 16000
    wav, spk_of = {}, {}
    (folder / "wav").mkdir(parents=True, exist_ok=True)
    for s in range(speakers):
        pitch, tilt = 90 * 1.25**s, rng.uniform(0.3, 0.9)
        for u in range(utts):
            f0 = pitch * rng.uniform(0.97, 1.03) * (1 + 0.02 * np.sin(2 * np.pi * rng.uniform(2, 4) * t))
            phase = 2 * np.pi * np.cumsum(f0) / 16000
            x = sum(tilt**k * np.sin(k * phase + rng.uniform(0, 6)) for k in range(1, 12))
            x = 0.1 * x * rng.uniform(0.5, 1.5) + rng.normal(0, 0.005, len(t))
            name = f"s{s:02d}-u{u:02d}"
            soundfile.write(folder / "wav" / f"{name}.wav", x.astype(np.float32), 16000, subtype="PCM_16")
            wav[name], spk_of[name] = str(folder / "wav" / f"{name}.wav"), f"s{s:02d}" if labelled else name
    utts_sorted = sorted(wav)
    data = folder / ("data" if labelled else "unlabelled")
    data.mkdir()
    (data / "wav.scp").write_text("".join(f"{u} {wav[u]}\n" for u in utts_sorted))
    (data / "utt2spk").write_text("".join(f"{u} {spk_of[u]}\n" for u in utts_sorted))
    members: dict[str, list[str]] = {}
    for u in utts_sorted:
        members.setdefault(spk_of[u], []).append(u)
    (data / "spk2utt").write_text("".join(f"{s} {' '.join(members[s])}\n" for s in sorted(members)))
    return DataDir.read(data)


def trials(folder, data: DataDir):
    """All pairs of utterances of `data`."""
    path = folder / "trials"
    pairs = [(a, b) for i, a in enumerate(range(len(data.utts))) for b in range(i + 1, len(data.utts))]
    path.write_text(
        "".join(
            f"{data.utts[a]} {data.utts[b]} {'target' if data.spk[a] == data.spk[b] else 'nontarget'}\n"
            for a, b in pairs
        )
    )
    return path
