"""Share of the utterances that an epoch of `unique_label` uses, and its time: python benchmarks/sampler.py [--num N]"""

import argparse
import time

import numpy as np

from pyspkv.base import config as cfg
from pyspkv.batches.sampler import SamplerConfig, pool_batches, turns

LABELS, BATCH, MOST = 7500, 240, 500


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--num", type=int, default=1_092_009, help="utterances")
    num = p.parse_args().num
    print("| sigma of log sizes | largest cluster | used | of the largest | seconds |\n|---|---|---|---|---|")
    for sigma in (0.8, 1.2):
        rng = np.random.default_rng(0)
        weight = rng.lognormal(0, sigma, LABELS)
        count = 1 + rng.multinomial(num - LABELS, weight / weight.sum())
        label = rng.permutation(np.repeat(np.arange(LABELS), count))
        kept, large = np.minimum(count, MOST), count >= np.quantile(count, 0.97)
        config = cfg.validate(SamplerConfig, {"name": "unique_label", "max_per_label": MOST})
        sampler = cfg.build(config, label, BATCH, 0)
        start = time.perf_counter()
        rows = sampler.epoch(1)
        seconds = time.perf_counter() - start
        start = time.perf_counter()
        order, turn = turns(label, np.random.default_rng(0))
        order = order[turn < MOST]
        pools = order[pool_batches(label[order], BATCH, np.random.default_rng(0))]
        before = time.perf_counter() - start

        def used(rows: np.ndarray, which: np.ndarray, label=label, kept=kept) -> str:
            return f"{100 * which[label[rows]].sum() / kept[which].sum():.2f}"

        every = np.ones(LABELS, dtype=bool)
        print(
            f"| {sigma} | {count.max()} | {used(rows, every)} % ({used(pools, every)}) | "
            f"{used(rows, large)} % ({used(pools, large)}) | {seconds:.1f} ({before:.1f}) |"
        )


if __name__ == "__main__":
    main()
