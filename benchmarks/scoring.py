"""AS-norm and metrics at VoxCeleb1-H size: seconds, peak memory, and the ratio to a plain loop over trials.

    python benchmarks/scoring.py [--trials N] [--utterances N] [--scores N]

Speakers, utterances and trials are drawn as in VoxCeleb1-H (1,251 speakers, half of the trials targets). The loop
is what most toolkits do: one cosine, or one AS-norm, per trial in Python; it is timed on a sample of trials, and the
scores of that sample must agree to 1e-5.
"""

import argparse
import resource
import time

import numpy as np

from pyspkv.data.ark import normalize
from pyspkv.score import metrics, scoring


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def data(num_utt: int, num_trials: int, num_cohort: int, dim: int = 256):
    """Directions [N, D] of 1,251 speakers, trials (i, j, target), cohort [C, D] of other speakers."""
    rng = np.random.default_rng(0)
    spk = np.sort(rng.integers(1251, size=num_utt))
    x = rng.standard_normal((1251, dim), dtype=np.float32)[spk]
    x += rng.standard_normal((num_utt, dim), dtype=np.float32)
    x = normalize(x)
    first = np.searchsorted(spk, np.arange(1252))
    i = rng.integers(num_utt, size=num_trials)
    j = rng.integers(num_utt, size=num_trials)
    same = rng.random(num_trials) < 0.5
    j[same] = rng.integers(first[spk[i[same]]], first[spk[i[same]] + 1])
    cohort = normalize(rng.standard_normal((num_cohort, dim), dtype=np.float32))
    return x, i, j, spk[i] == spk[j], cohort


def plain_cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))


def plain_as_norm(a: np.ndarray, b: np.ndarray, cohort: np.ndarray, top_n: int) -> float:
    s, out = plain_cosine(a, b), 0.0
    for side in (a, b):
        top = np.sort(cohort @ side)[-top_n:].astype(np.float64)
        out += (s - top.mean()) / top.std() / 2
    return out


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--trials", type=int, default=552_536)
    p.add_argument("--utterances", type=int, default=118_000)
    p.add_argument("--cohort", type=int, default=6_000)
    p.add_argument("--top-n", type=int, default=300)
    p.add_argument("--scores", type=int, default=10_000_000, help="number of scores for the metrics")
    p.add_argument("--sample", type=int, default=1_000, help="number of trials for the plain AS-norm loop")
    args = p.parse_args()

    x, i, j, target, cohort = data(args.utterances, args.trials, args.cohort)
    before = peak_gib()
    start = time.perf_counter()
    raw = scoring.cosine(x, x, i, j)
    cosine_s = time.perf_counter() - start
    start = time.perf_counter()
    normed = scoring.as_norm(x, x, i, j, cohort, args.top_n)
    norm_s = time.perf_counter() - start
    peak = peak_gib()

    sample, many = args.sample, min(args.trials, 100 * args.sample)
    start = time.perf_counter()
    for a, b in zip(i[:many], j[:many]):
        plain_cosine(x[a], x[b])
    loop_cosine = (time.perf_counter() - start) / many
    start = time.perf_counter()
    for a, b in zip(i[:sample], j[:sample]):
        plain_as_norm(x[a], x[b], cohort, args.top_n)
    loop_norm_s = (time.perf_counter() - start) / sample

    exact, cohort = x.astype(np.float64), cohort.astype(np.float64)  # reference for the float32 results
    pairs = list(zip(i[:sample], j[:sample]))
    off = (
        np.abs(raw[:sample] - [plain_cosine(exact[a], exact[b]) for a, b in pairs]).max(),
        np.abs(
            normed[:sample] - [plain_as_norm(exact[a], exact[b], cohort, args.top_n) for a, b in pairs]
        ).max(),
    )
    assert max(off) < 1e-5, off

    print(f"{args.trials} trials over {args.utterances} utterances of {x.shape[1]} dimensions")
    ratio = loop_cosine * args.trials / cosine_s
    print(
        f"cosine   {cosine_s:7.2f} s; loop {1e6 * loop_cosine:8.1f} us a trial: {ratio:6.0f} x; off by {off[0]:.1e}"
    )
    ratio = loop_norm_s * args.trials / norm_s
    print(
        f"AS-norm  {norm_s:7.2f} s; loop {1e6 * loop_norm_s:8.1f} us a trial: {ratio:6.0f} x; off by {off[1]:.1e}"
    )
    ratio = loop_cosine * args.trials / norm_s
    print(f"         (AS-norm of ours is {ratio:.1f} x the speed of the plain cosine loop)")
    print(f"peak     {peak:7.2f} GiB of which the embeddings and trials {before:.2f} GiB")
    for name, s in (("cosine", raw), (f"AS-norm ({args.cohort}, top {args.top_n})", normed)):
        print(f"EER      {metrics.eer(s, target):7.3f} % {name}")

    rng = np.random.default_rng(0)
    target = rng.random(args.scores) < 0.1
    scores = rng.standard_normal(args.scores) + 3 * target
    start = time.perf_counter()
    out = metrics.summary(scores, target)
    seconds = time.perf_counter() - start
    print(
        f"metrics  {seconds:7.2f} s for {args.scores} scores: EER {out['eer']:.3f} %, peak {peak_gib():.2f} GiB"
    )


if __name__ == "__main__":
    main()
