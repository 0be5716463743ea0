"""Rank dialogues by how compact they are: mixed ones, of two speakers, come first."""

import itertools
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from pyspkv.audio.reader import SAMPLE_RATE
from pyspkv.base.errors import UserError
from pyspkv.data.datadir import DataDir


# ---- compactness -------------------------------------------------------------------------------------------------
def compactness(
    dialogue: Sequence[str], x: np.ndarray, most: int = 20
) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """(names, utterances used, mean and lowest cosine of two utterances) of every dialogue of two or more, C order.

    x: unit vectors [N, D], aligned with `dialogue`; of longer dialogues the first `most` utterances count.
    """
    names, group = np.unique(np.asarray(dialogue), return_inverse=True)
    order = np.argsort(group, kind="stable")
    size = np.bincount(group)
    first = np.cumsum(size) - size
    used = np.minimum(size, most)
    mean, low = np.full(len(names), np.nan), np.full(len(names), np.nan)
    for m in np.unique(used[used >= 2]):
        same = np.flatnonzero(used == m)
        a, b = np.triu_indices(m, 1)
        for part in np.array_split(same, -(-len(same) * int(m) ** 2 // (1 << 22))):  # 32 MiB of cosines
            e = x[order[first[part][:, None] + np.arange(m)]]  # [n, m, D]
            cos = np.einsum("nid,njd->nij", e, e)[:, a, b]
            mean[part], low[part] = cos.mean(1), cos.min(1)
    keep = used >= 2
    return names[keep].tolist(), used[keep], mean[keep], low[keep]


def shared_channel(dialogue: Sequence[str], seed: int = 0) -> Callable[[int, np.ndarray], np.ndarray]:
    """change(row, wave): each dialogue is heard over one synthetic channel (band, curve, colored noise at 15 dB).

    In a corpus of one microphone a speaker, a foreign utterance brings a foreign microphone; under a narrow band and a
    common noise floor that gives it away less, so AUC of compactness is nearer to what the voices alone allow.
    """

    from scipy.fft import next_fast_len

    def power(spectrum: np.ndarray) -> float:
        return float(np.vdot(spectrum, spectrum).real)

    def change(row: int, wave: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng((seed, zlib.crc32(dialogue[row].encode())))
        low, high, tilt = rng.uniform(200, 400), rng.uniform(2800, 3600), rng.uniform(0, 1)
        curve = rng.normal(0, 4, 6)
        size = next_fast_len(len(wave), real=True)
        frequency = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
        band = slice(*np.searchsorted(frequency, (low, high)))
        f = frequency[band]
        heard = np.fft.rfft(wave, size)[band] * 10 ** (np.interp(f, np.geomspace(100, 4000, 6), curve) / 20)
        noise = np.random.default_rng((seed, row)).standard_normal(2 * len(f)).view(complex) * f**-tilt
        out = np.zeros(len(frequency), complex)
        out[band] = heard + noise * np.sqrt(max(power(heard), 1e-10) / 10**1.5 / power(noise))
        out = np.fft.irfft(out, size)[: len(wave)]
        return (out * np.sqrt(max(float(np.mean(wave**2)), 1e-10) / np.mean(out**2))).astype(np.float32)

    return change


def rank_dialogues(
    encoder,
    data: DataDir,
    device,
    *,
    reject,
    most: int = 20,
    channel: bool = False,
    mixed: dict[str, str] | None = None,
    precision: str = "fp32",
    allow_pipes: bool = False,
) -> tuple[list[tuple[str, int, float, float, float]], dict[str, float]]:
    """([(dialogue, utterances, mean cosine, lowest cosine, weight)], least compact first; with the truth, diagnostics).

    The weight is what `reject` (a RejectConfig) gives, the power form where that has no rejection. mixed: dialogue -> 0
    or 1; UserError when it lacks one. channel: through `shared_channel`.
    """
    import torch
    from sklearn.metrics import roc_auc_score

    from pyspkv.data.ark import normalize
    from pyspkv.objectives.dialogue import rejection
    from pyspkv.score.extract import embed

    of = data.utt_tables["utt2dialogue"]
    nth: dict[str, Iterator[int]] = defaultdict(itertools.count)
    data = data.subset([u for u in data.utts if next(nth[of[u]]) < most], trials=False)
    dialogue = [of[u] for u in data.utts]
    change = shared_channel(dialogue) if channel else None
    x = normalize(embed(encoder, data, device, precision, allow_pipes, change).x)
    names, used, mean, low = compactness(dialogue, x, most)
    if not names:
        raise UserError("no dialogue has two utterances", file=data.path)
    if reject.kind in ("none", "oracle"):
        reject = reject.model_copy(update={"kind": "power"})
    c = torch.from_numpy(mean)
    weight = rejection(c, reject, c.mean(), c.std(correction=0)).numpy()
    rows = [
        (names[i], int(used[i]), float(mean[i]), float(low[i]), float(weight[i])) for i in np.argsort(mean)
    ]
    if mixed is None:
        return rows, {}
    if missing := [name for name in names if name not in mixed]:
        raise UserError(f"the truth has no line for {len(missing)} dialogues; the first is {missing[0]}")
    truth = np.array([mixed[name] == "1" for name in names])
    if truth.all() or not truth.any():
        return rows, {"auc": np.nan, "auc_low": np.nan, "weight_ratio": np.nan, "mixed": int(truth.sum())}
    return rows, {
        "auc": float(roc_auc_score(truth, -mean)),
        "auc_low": float(roc_auc_score(truth, -low)),
        "weight_ratio": float(weight[truth].mean() / weight[~truth].mean()),
        "mixed": int(truth.sum()),
    }
