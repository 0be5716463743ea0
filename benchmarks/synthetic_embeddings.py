"""Synthetic embeddings of VoxCeleb2's shape: speakers with long-tailed counts, sessions, uneven quality.

    python benchmarks/synthetic_embeddings.py --num-utts 1092009 --out DIR   # ark/scp, data directory, utt2spk_true

Each speaker has a center, each session (about 7.5 utterances, like VoxCeleb2's videos) an offset from it, and
each utterance noise whose scale varies (log-normal: some utterances are poor). The sums are
length-normalized. The full size has 5,994 speakers; N utterances have N / 182.2. With the default noise,
k-means + AHC reaches an NMI near 0.95, which the paper's authors report for DINO embeddings.
"""

import argparse
from pathlib import Path

import numpy as np

FULL_UTTS, FULL_SPEAKERS, UTTS_PER_SESSION = 1_092_009, 5_994, 7.5


def speaker_counts(num_utts: int, num_speakers: int, rng: np.random.Generator) -> np.ndarray:
    """Long-tailed counts (log-normal, from 20 to 1,000 if possible) that sum to num_utts: int64 [S]."""
    share = np.clip(np.exp(rng.normal(0, 0.65, num_speakers)), 0.13, 6.5)
    counts = np.maximum((share / share.sum() * num_utts).astype(np.int64), 1)
    while (gap := num_utts - counts.sum()) != 0:
        at = rng.choice(num_speakers, min(abs(gap), num_speakers), replace=False)
        counts[at] = np.maximum(counts[at] + np.sign(gap), 1)
    return counts


def generate(num_utts: int, *, dim: int = 256, num_speakers: int | None = None, session: float = 1.0,
             noise: float = 1.1, spread: float = 0.35, seed: int = 0):  # fmt: skip
    """Unit vectors float32 [N, dim], speakers int64 [N] and sessions int64 [N], in shuffled order."""
    rng = np.random.default_rng(seed)
    if num_speakers is None:
        num_speakers = max(2, round(num_utts * FULL_SPEAKERS / FULL_UTTS))
    counts = speaker_counts(num_utts, num_speakers, rng)
    speaker = np.repeat(np.arange(num_speakers), counts)
    sessions = np.maximum(1, np.round(counts / UTTS_PER_SESSION)).astype(np.int64)
    base = np.cumsum(sessions) - sessions
    which = base[speaker] + (rng.random(num_utts) * sessions[speaker]).astype(np.int64)
    # speakers and sessions vary in a few directions more than in others, as real embeddings do
    scale = (1 + np.arange(dim) / 16.0) ** -0.5
    scale *= np.sqrt(dim / (scale**2).sum())
    center = (rng.standard_normal((num_speakers, dim)) * scale).astype(np.float32)
    offset = (session * rng.standard_normal((sessions.sum(), dim)) * scale).astype(np.float32)
    order = rng.permutation(num_utts)
    speaker, which = speaker[order], which[order]
    x = np.empty((num_utts, dim), dtype=np.float32)
    for first in range(0, num_utts, 65536):
        s, w = speaker[first : first + 65536], which[first : first + 65536]
        level = noise * np.exp(spread * rng.standard_normal((len(s), 1), dtype=np.float32))
        part = rng.standard_normal((len(s), dim), dtype=np.float32) * scale.astype(np.float32)
        part = center[s] + offset[w] + level * part
        x[first : first + 65536] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return x, speaker, which


def write(out: Path, x: np.ndarray, speaker: np.ndarray) -> None:
    """Write out/embed/embedding.scp, out/data (without speakers) and out/utt2spk_true."""
    from pyspkv.data.ark import EmbeddingWriter
    from pyspkv.data.datadir import DataDir

    utts = [f"u{i:07d}" for i in range(len(x))]
    DataDir(out / "data", utts, utts, {u: f"/nowhere/{u}.wav" for u in utts}).write(out / "data")
    with EmbeddingWriter(out / "embed") as w:
        for u, e in zip(utts, x):
            w(u, e)
    with open(out / "utt2spk_true", "w", encoding="utf-8") as f:
        f.writelines(f"{u} s{s:05d}\n" for u, s in zip(utts, speaker.tolist()))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--num-utts", type=int, default=FULL_UTTS)
    p.add_argument("--dim", type=int, default=256)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--session", type=float, default=1.0, help="scale of session offsets; speakers have 1")
    p.add_argument("--noise", type=float, default=1.1, help="scale of utterance noise")
    p.add_argument("--out", type=Path, required=True)
    a = p.parse_args()
    x, speaker, _ = generate(a.num_utts, dim=a.dim, session=a.session, noise=a.noise, seed=a.seed)
    write(a.out, x, speaker)
    print(f"{a.out}/data {a.out}/embed/embedding.scp {a.out}/utt2spk_true")


if __name__ == "__main__":
    main()
