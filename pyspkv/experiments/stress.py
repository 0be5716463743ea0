"""The conditions of bin.stress, their rows in OUT/parts, and the results."""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pyspkv.audio.reader import SAMPLE_RATE
from pyspkv.base import foreign
from pyspkv.base.atomic import atomic_file
from pyspkv.base.device import device as default_device
from pyspkv.base.errors import UserError
from pyspkv.batches.augment import AugmentConfig, Augmenter
from pyspkv.data.datadir import DataDir
from pyspkv.data.trials import trials_over
from pyspkv.models.load import load_encoder
from pyspkv.report import plots
from pyspkv.score import embedding_folder, metrics, scoring
from pyspkv.score.extract import embed

COLUMNS = ("condition", "eer", "min_dcf_0.01", "eer_ci_low", "eer_ci_high")


def conditions(args, cache: Path) -> dict[str, Callable[[], Callable]]:
    """Condition -> a function that opens its noise or makes its rooms, and returns change(row, wave).

    change returns the changed wave.
    """

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

    out: dict[str, Callable[[], Callable]] = {"unchanged": lambda: lambda row, wave: wave}
    for s in args.durations:
        out[f"{s:g} s"] = partial(cut, f"{s:g} s", s)
    for db in args.snr if args.noise else ():
        name, config = f"noise {db:g} dB", {"noise_list": args.noise, "noise_snr": (db, db)}
        out[name] = partial(augment, name, reverb_weight=0.0, rir_bank=0, **config)
    for s in args.rt60:
        name = f"reverberation {s:g} s"
        out[name] = partial(augment, name, additive_weight=0.0, rir_bank=30, rir_rt60=(s, s))
    return out


def identity(args, names: list[str]) -> dict:
    """Everything that the rows depend on: digests of weights, audio, speakers and trials, and the options."""

    def digests(data: str) -> dict:
        (pair,) = embedding_folder.pairs([args.model], [data], args.out, embedding_folder.Options())
        return {name: pair.identity[name] for name in ("model", "wav.scp", "segments", "audio")}

    spoken = digests(args.data)
    files = [Path(args.data) / name for name in ("utt2spk", "trials")]
    own = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    noise = digests(args.noise) if args.noise else None
    return {**spoken, "speakers, trials": own, "noise": noise, "seed": args.seed, "conditions": names}


def kept(file: Path, made_with: dict) -> dict[str, dict[str, Any]]:
    """Condition -> row of those that were measured with the same data and options."""

    record = foreign.read_json_or_empty(file)
    if record.get("identity") != made_with:
        return {}
    with suppress(KeyError, TypeError):  # somebody has edited the file
        return {row["condition"]: {key: row[key] for key in COLUMNS} for row in record["rows"]}
    return {}


def part_file(out: Path, k: int, n: int) -> Path:
    return out / "parts" / f"part.{k}-of-{n}.json"


def measure(args, changes: dict[str, Callable], rows: dict[str, dict], keep: Callable[[dict], None]) -> None:
    """Measure the conditions that `rows` lacks. Each row is added there, and `keep(rows)` is called."""

    data = DataDir.read(args.data)
    enrol, test, target = trials = trials_over(Path(args.data) / "trials", data.utts)
    device = default_device()
    encoder = load_encoder(args.model).to(device)
    speaker = dict(zip(data.utts, data.spk))
    units = metrics.Resampling([speaker[u] for u in enrol], [speaker[u] for u in test], "speakers")
    for name, change in changes.items():
        scores, _ = scoring.score_trials(embed(encoder, data, device, "fp32", change=change), trials)
        summary = metrics.summary(scores, target)
        row = {"condition": name, "eer": summary["eer"], "min_dcf_0.01": summary["min_dcf_0.01"]}
        interval = metrics.bootstrap(scores, target, units, metrics.REPLICATES // 10)
        rows[name] = row | {k: interval[k] for k in ("eer_ci_low", "eer_ci_high")}
        keep(rows)
        show(row)


def show(row: dict) -> None:
    print(
        f"{row['condition']:<20} EER {row['eer']:6.2f} %   minDCF(0.01) {row['min_dcf_0.01']:.3f}", flush=True
    )


def measure_part(args, k: int, n: int, makers: dict[str, Callable], made_with: dict) -> None:
    """Measure every n-th condition, from the k-th. The caller holds the lock of the part."""

    out = Path(args.out)
    file = part_file(out, k, n)
    rows = kept(file, made_with)
    for row in rows.values():
        show(row)
    own = [name for i, name in enumerate(makers) if i % n == k - 1]

    def keep(rows: dict) -> None:
        with atomic_file(file, inside=out) as f:
            json.dump({"identity": made_with, "rows": list(rows.values())}, f, indent=1)

    changes = {name: makers[name]() for name in own if name not in rows}
    if changes:
        measure(args, changes, rows, keep)
    elif not file.exists():
        keep(rows)  # there are more parts than conditions


def write_results(args, n: int, names: list[str], made_with: dict) -> None:
    """Write the results of all n parts. UserError: a part is missing, or was made with other data or options."""

    out, found = Path(args.out), dict[str, dict]()
    for k in range(1, n + 1):
        found |= kept(part_file(out, k, n), made_with)
    for i, name in enumerate(names):
        if name not in found:
            k = i % n + 1
            hint = f"run this command with --part {k}/{n} in place of --merge {n}"
            rule = f"lacks the condition {name}, or was made with other data or options"
            raise UserError(rule, file=part_file(out, k, n), hint=hint)
    rows = [found[name] for name in names]
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
