"""Rank dialogues by compactness, that is by how similar their utterances are; mixed ones should come
first."""

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
    """Mean and lowest cosine between the utterances of each dialogue.

    Args:
        dialogue: dialogue of each utterance, N names.
        x: unit vectors [N, D], aligned with `dialogue`.
        most: of longer dialogues only the first `most` utterances are used.

    Returns (names of the dialogues with at least two utterances, in C order; number of utterances used; mean
    cosine; lowest cosine), aligned.
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
        # At most 32 MiB of cosines
        for part in np.array_split(same, -(-len(same) * int(m) ** 2 // (1 << 22))):
            e = x[order[first[part][:, None] + np.arange(m)]]  # [n, m, D]
            cos = np.einsum("nid,njd->nij", e, e)[:, a, b]
            mean[part], low[part] = cos.mean(1), cos.min(1)
    keep = used >= 2
    return names[keep].tolist(), used[keep], mean[keep], low[keep]


def shared_channel(dialogue: Sequence[str], seed: int = 0) -> Callable[[int, np.ndarray], np.ndarray]:
    """Make a function change(row, wave) that passes each dialogue through one synthetic channel.

    A channel is a band, a frequency response and coloured noise at 15 dB SNR. In a corpus with one microphone
    for each speaker, a foreign utterance also has a foreign microphone. A narrow band and a common noise
    floor hide that, so the AUC of compactness gets closer to what the voices alone allow.
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
    """Rank the dialogues of a data directory, least compact first.

    Args:
        encoder, device, precision, allow_pipes: as for `embed`.
        data: a directory with utt2dialogue.
        reject: a RejectConfig that gives the weights; the power form is used if it has no rejection.
        most: utterances used of each dialogue.
        channel: pass the audio through `shared_channel`.
        mixed: dialogue -> "0" or "1", the truth; for diagnostics.

    Returns (rows of (dialogue, utterances, mean cosine, lowest cosine, weight), diagnostics or {}).
    Raises UserError when no dialogue has two utterances, or `mixed` lacks one.
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
