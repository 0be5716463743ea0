"""Test a model on short, noisy and reverberant speech: EER of one trial list under each condition.

    python -m pyspkv.bin.stress --model exp/finetune/model --data data/test --noise data/noise_test --out
    exp/stress

Every utterance of both sides is changed: cut to a random segment of N seconds, or mixed with noise at an SNR,
or reverberated by simulated rooms with one reverberation time. The changes are drawn from (seed, condition,
row), so two models are tested on the same audio.
"""

from __future__ import annotations  # so that np.ndarray can be named although numpy is imported later

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyspkv.base.errors import UserError, natural, run

if TYPE_CHECKING:
    import numpy as np


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="python -m pyspkv.bin.stress",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--model", required=True, metavar="DIR[@best|last]")
    p.add_argument("--data", required=True, metavar="DIR", help="data directory with trials, of any corpus")
    p.add_argument(
        "--out", required=True, metavar="DIR", help="output folder of stress.json, stress.md and stress.png"
    )
    p.add_argument(
        "--noise",
        default="",
        metavar="DIR",
        help="data directory of noises not used in training (default: no noise rows)",
    )
    p.add_argument(
        "--durations",
        type=float,
        nargs="*",
        default=[1, 2, 3, 5],
        metavar="S",
        help="durations in seconds (1 2 3 5)",
    )
    p.add_argument(
        "--snr", type=float, nargs="*", default=[20, 10, 5, 0], metavar="DB", help="SNRs in dB (20 10 5 0)"
    )
    p.add_argument(
        "--rt60",
        type=float,
        nargs="*",
        default=[0.3, 0.6, 0.9],
        metavar="S",
        help="reverberation times in seconds (0.3 0.6 0.9)",
    )
    p.add_argument("--seed", type=natural, default=0)
    args = p.parse_args()
    if not all(0.1 <= s < math.inf for s in args.durations) or not all(0.1 <= s <= 1.5 for s in args.rt60):
        p.error("--durations must be at least 0.1 s, --rt60 from 0.1 to 1.5 s")
    return args


def conditions(args, cache: Path) -> dict[str, Callable]:
    """Condition -> change(row, wave), a function that returns the changed wave."""
    import numpy as np

    from pyspkv.audio.reader import SAMPLE_RATE
    from pyspkv.batches.augment import AugmentConfig, Augmenter

    def random(name: str, row: int) -> np.random.Generator:
        return np.random.default_rng([args.seed, *name.encode(), row])

    def cut(name: str, seconds: float) -> Callable:
        def change(row: int, wave: np.ndarray) -> np.ndarray:
            num = round(seconds * SAMPLE_RATE)
            start = int(random(name, row).integers(max(0, len(wave) - num) + 1))
            return wave[start : start + num]

        return change

    def augment(name: str, **config) -> Callable:
        augmenter = Augmenter(AugmentConfig(prob=1.0, both_weight=0.0, **config), args.seed, cache_dir=cache)

        def change(row: int, wave: np.ndarray) -> np.ndarray:
            return augmenter.apply(wave, augmenter.draw(random(name, row)))

        return change

    out: dict[str, Callable] = {"unchanged": lambda row, wave: wave}
    for s in args.durations:
        out[f"{s:g} s"] = cut(f"{s:g} s", s)
    for db in args.snr if args.noise else ():
        name = f"noise {db:g} dB"
        out[name] = augment(name, reverb_weight=0.0, rir_bank=0, noise_list=args.noise, noise_snr=(db, db))
    for s in args.rt60:
        name = f"reverberation {s:g} s"
        out[name] = augment(name, additive_weight=0.0, rir_bank=30, rir_rt60=(s, s))
    return out


def main() -> None:
    args = parse()

    from pyspkv.base.atomic import atomic_file
    from pyspkv.base.device import device as default_device
    from pyspkv.data.datadir import DataDir
    from pyspkv.data.trials import trials_over
    from pyspkv.models.load import load_encoder
    from pyspkv.report import plots
    from pyspkv.score import metrics, scoring
    from pyspkv.score.extract import embed

    data, out = DataDir.read(args.data), Path(args.out)
    file = Path(args.data) / "trials"
    if not file.is_file():
        raise UserError("has no trials", file=args.data, hint="give a data directory with a trials file")
    enrol, test, target = trials = trials_over(file, data.utts)
    device = default_device()
    encoder = load_encoder(args.model).to(device)
    speaker = dict(zip(data.utts, data.spk))
    units = metrics.Resampling([speaker[u] for u in enrol], [speaker[u] for u in test], "speakers")
    rows: list[dict[str, Any]] = []
    for name, change in conditions(args, out / "rooms").items():
        scores, _ = scoring.score_trials(embed(encoder, data, device, "fp32", change=change), trials)
        summary = metrics.summary(scores, target)
        row = {"condition": name, "eer": summary["eer"], "min_dcf_0.01": summary["min_dcf_0.01"]}
        interval = metrics.bootstrap(scores, target, units, metrics.REPLICATES // 10)
        rows.append(row | {k: interval[k] for k in ("eer_ci_low", "eer_ci_high")})
        print(f"{name:<20} EER {row['eer']:6.2f} %   minDCF(0.01) {row['min_dcf_0.01']:.3f}", flush=True)
    with atomic_file(out / "stress.json") as f:
        json.dump({"model": args.model, "data": args.data, "seed": args.seed, "rows": rows}, f, indent=1)
        f.write("\n")
    with atomic_file(out / "stress.md") as f:
        f.write("| condition | EER % | minDCF 0.01 |\n|---|---|---|\n")
        f.writelines(f"| {r['condition']} | {r['eer']:.2f} | {r['min_dcf_0.01']:.3f} |\n" for r in rows)
    plots.eer_by_system(
        [(r["condition"], r["eer"], r["eer_ci_low"], r["eer_ci_high"]) for r in rows], out / "stress.png"
    )
    print(f"stress: {out}/stress.md, stress.json, stress.png")


if __name__ == "__main__":
    run(main)
