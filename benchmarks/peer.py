"""Compare our speed with sslsv (github.com/theolepage/sslsv), given its checkout: training, extraction, data
loading.

    git clone https://github.com/theolepage/sslsv /tmp/sslsv
    OMP_NUM_THREADS=2 python benchmarks/peer.py --sslsv /tmp/sslsv [score step extract data] [--profile]

Both sides alternate in one process, and each figure is the median over the turns.
- `step`: ECAPA-TDNN-512, 80 mel bands, 192 dimensions, 3 s crops, batch 32, AAM-softmax over 1,000 classes;
  one complete optimizer step in fp32 (ours also in bf16).
- `extract`: the same encoders in evaluation mode.
- `data`: decode, crop 3 s, reverberate and add noise, with the same files and no model. sslsv reads its
  impulse responses and noises from files, as its users do; ours reads the same files.
- `score`: AS-norm of trials drawn as in VoxCeleb1-H.
"""

import argparse
import importlib
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch.nn import functional as F

from pyspkv.audio import rir
from pyspkv.base import config as cfg
from pyspkv.base.device import autocast
from pyspkv.batches.augment import AugmentConfig, Augmenter
from pyspkv.batches.dataset import Batches, TrainingRows, View
from pyspkv.data.datadir import DataDir
from pyspkv.models.registry import EncoderConfig
from pyspkv.train.config import TrainConfig
from pyspkv.train.trainer import Trainer

BATCH, SECONDS, CLASSES, RATE = 32, 3.0, 1000, 16000
CPU = torch.device("cpu")


def take_turns(sides: dict, turns: int = 5, repeats: int = 1) -> dict[str, float]:
    """Median seconds of each side's call over alternating turns; a first call of each is not counted."""
    seconds = {name: [] for name in sides}
    for turn in range(turns + 1):
        for name, call in sides.items():
            start = time.perf_counter()
            for _ in range(repeats):
                call()
            if turn:
                seconds[name].append((time.perf_counter() - start) / repeats)
    return {name: statistics.median(s) for name, s in seconds.items()}


def report(what: str, seconds: dict[str, float], items: int, unit: str, base: str = "sslsv") -> None:
    """Print the speed of each side, and its ratio to `base`."""
    print(f"{what}: {items} {unit} a call, {torch.get_num_threads()} threads")
    for name, s in seconds.items():
        print(f"  {name:<18} {items / s:8.1f} {unit}/s   {seconds[base] / s:5.2f} x {base}", flush=True)


def speech(folder: Path, count: int, seconds: float = 8.0) -> DataDir:
    """`count` recordings of coloured noise as FLAC, one a speaker; the content does not affect speed."""
    rng = np.random.default_rng(0)
    wav = {}
    (folder / "flac").mkdir(parents=True)
    for i in range(count):
        x = np.cumsum(rng.standard_normal(round(seconds * RATE))) * 1e-3
        path = folder / "flac" / f"u{i:04d}.flac"
        soundfile.write(path, (x - x.mean()).clip(-0.9, 0.9), RATE)
        wav[f"u{i:04d}"] = str(path)
    data = DataDir(folder / "data", list(wav), list(wav), wav)
    data.write(folder / "data")
    return DataDir.read(folder / "data")


class Theirs:
    """sslsv's ECAPA-TDNN with its AAM-softmax and Adam."""

    def __init__(self):
        encoder = importlib.import_module("sslsv.encoders.ECAPATDNN")
        loss = importlib.import_module("sslsv.methods.Supervised.AAMSoftmaxLoss")
        self.encoder = encoder.ECAPATDNN(encoder.ECAPATDNNConfig(mel_n_mels=80, encoder_dim=192))
        self.weight = torch.nn.Parameter(0.1 * torch.randn(CLASSES, 192))
        self.loss = loss.AAMSoftmaxLoss()
        self.optimizer = torch.optim.Adam([*self.encoder.parameters(), self.weight], lr=1e-3)

    def step(self, wave: torch.Tensor, label: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        cos = F.linear(F.normalize(self.encoder(wave)), F.normalize(self.weight))
        self.loss(cos, label)[0].backward()
        self.optimizer.step()


def our_trainer(folder: Path, data: DataDir) -> Trainer:
    raw = {
        "encoder": {"name": "ecapa"},
        "objective": {"name": "aam", "crop_seconds": SECONDS, "augment": False},
    }
    raw |= {"batch_size": BATCH, "precision": "fp32"}
    return Trainer(cfg.validate(TrainConfig, raw), data, folder / "exp")


def step(args, folder: Path) -> None:
    trainer = our_trainer(folder, speech(folder, CLASSES, seconds=SECONDS))
    theirs = Theirs()
    batch = Batches(trainer.corpus, trainer.views, None, 0)[0, 0, np.arange(BATCH)]
    wave = batch.views["main"][0]
    trainer.objective.train()

    def ours(precision: str):
        trainer.precision = precision
        trainer._step(trainer.objective, batch, 0)

    sides = {
        "sslsv": lambda: theirs.step(wave, batch.label),
        "ours fp32": lambda: ours("fp32"),
        "ours bf16": lambda: ours("bf16"),
    }
    report("training step", take_turns(sides), BATCH, "utterances")
    if args.profile:
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU]) as prof:
            ours("fp32")
        print(prof.key_averages().table(sort_by="self_cpu_time_total", row_limit=15))


def extract(args, folder: Path) -> None:
    torch.manual_seed(0)
    theirs, ours = (
        Theirs().encoder.eval(),
        cfg.build(cfg.validate(EncoderConfig, {"name": "ecapa"})).eval(),
    )
    wave = 0.1 * torch.randn(BATCH, round(SECONDS * RATE))
    lengths = torch.full((BATCH,), wave.shape[1])

    @torch.inference_mode()
    def embed(precision: str) -> torch.Tensor:
        with autocast(CPU, precision):
            return ours(wave, lengths).float()

    with torch.inference_mode():
        sides = {
            "sslsv": lambda: theirs(wave),
            "ours fp32": lambda: embed("fp32"),
            "ours bf16": lambda: embed("bf16"),
        }
        report("extraction", take_turns(sides), BATCH, "utterances")
    cos = F.cosine_similarity(embed("fp32"), embed("bf16"))
    print(f"  cosine of bf16 to fp32: least {cos.min():.5f}")


def data_path(args, folder: Path) -> None:
    augmentation = importlib.import_module("sslsv.datasets.DataAugmentation")
    dataset = importlib.import_module("sslsv.datasets.Dataset")
    data = speech(folder, 64)
    bank = rir.bank(64, 0, (0.1, 0.7), (0.5, 4.0), folder / "rooms")
    rng = np.random.default_rng(1)
    rirs, noises = {}, {}
    for i, h in enumerate(bank):
        path = folder / "simulated_rirs" / "a" / "b" / f"r{i}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, h / np.abs(h).max() * 0.9, RATE)
        rirs[f"r{i:03d}"] = str(path)
    for kind in ("noise", "speech", "music"):
        for i in range(16):  # musan_split: pieces of 5 s
            path = folder / "musan_split" / kind / "a" / f"{i}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, 0.1 * rng.standard_normal(5 * RATE), RATE)
            noises[f"{kind}-{i:03d}"] = str(path)
    for name, wav in (("rir", rirs), ("noise", noises)):
        (folder / f"{name}.scp").write_text("".join(f"{k} {v}\n" for k, v in sorted(wav.items())))
    strategy = augmentation.DataAugmentationStrategyEnum.BOTH
    config = dataset.DatasetConfig(
        augmentation=augmentation.DataAugmentationConfig(strategy=strategy),
        frame_length=round(SECONDS * RATE),
        base_path=folder,
    )
    theirs = dataset.Dataset(config, [data.wav[u] for u in data.utts])
    common = {"prob": 1.0, "reverb_weight": 0.0, "additive_weight": 0.0, "both_weight": 1.0}
    common |= {"noise": str(folder / "noise.scp"), "rir": str(folder / "rir.scp")}
    rows = np.arange(len(data.utts))

    def ours(cache_mb: float):
        batches = Batches(
            TrainingRows(data, cache_mb=cache_mb), {"main": View(SECONDS, augment=True)},
            Augmenter(AugmentConfig(**common, cache_mb=cache_mb)), 0,
        )  # fmt: skip
        return lambda: batches[0, 0, rows]

    sides = {
        "sslsv": lambda: torch.stack([theirs[int(i)][1] for i in rows]),
        "ours": ours(0),
        "ours cached": ours(1024),
    }
    report("data path", take_turns(sides), len(rows), "crops")


def scoring_loop(args, folder: Path) -> None:
    """AS-norm with 118,000 utterances, a cohort of 6,000 and top 300, timed on both sides."""
    from types import SimpleNamespace
    from unittest.mock import MagicMock

    from scoring import data

    from pyspkv.score import scoring

    for name in ("pandas", "wandb"):  # imported by sslsv's other modules
        sys.modules.setdefault(name, MagicMock())
    theirs = importlib.import_module("sslsv.evaluations.CosineSVEvaluation")
    x, i, j, _, cohort = data(118_000, 552_536, 6_000)
    keys = [f"u{k:06d}" for k in range(len(x))]
    few = 20_000  # number of trials for sslsv's loop
    peer = object.__new__(theirs.CosineSVEvaluation)
    peer.verbose = False
    peer.task_config = SimpleNamespace(score_norm=theirs.ScoreNormEnum.ASNORM, score_norm_cohort_size=300)
    tensors = dict(zip(keys, torch.from_numpy(x)[:, None]))
    peer.enrol_embeddings = peer.test_embeddings = tensors
    peer.train_embeddings = dict(enumerate(torch.from_numpy(cohort)[:, None]))
    start = time.perf_counter()
    mean, std = peer._compute_norm_stats(tensors)
    statistics_s = time.perf_counter() - start
    peer.enrol_mean = peer.test_mean = mean
    peer.enrol_std = peer.test_std = std
    pairs = [(keys[a], keys[b]) for a, b in zip(i[:few], j[:few])]
    start = time.perf_counter()
    scores = np.array([peer._get_sv_score(a, b) for a, b in pairs])
    loop = (time.perf_counter() - start) / few
    peer.task_config.score_norm = theirs.ScoreNormEnum.NONE
    start = time.perf_counter()
    [peer._get_sv_score(a, b) for a, b in pairs]
    plain = (time.perf_counter() - start) / few
    start = time.perf_counter()
    scoring.cosine(x, x, i, j)
    ours_plain = (time.perf_counter() - start) / len(i)
    start = time.perf_counter()
    ours = scoring.as_norm(x, x, i, j, cohort, 300)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    scoring.cohort_statistics(x, cohort, 300)
    apart = (seconds - (time.perf_counter() - start)) / len(i)
    # sslsv's standard deviation divides by n - 1
    off = np.abs(scores * np.sqrt(300 / 299) - ours[:few]).max()
    total = statistics_s + loop * len(i)
    print(f"scoring: {len(i)} trials, largest difference {off:.1e}")
    print(
        f"  cosine of a trial   sslsv {1e6 * plain:.1f} us, ours {1e6 * ours_plain:.2f} us: {plain / ours_plain:.0f} x"
    )
    print(
        f"  AS-norm of a trial  sslsv {1e6 * loop:6.1f} us, its statistics {statistics_s:.1f} s, in all {total:.1f} s"
    )
    print(f"                      ours  {1e6 * apart:6.1f} us, statistics apart: {loop / apart:.0f} x")
    print(f"  AS-norm in all      ours {seconds:.1f} s: {total / seconds:.1f} x")


PARTS = {"score": scoring_loop, "step": step, "extract": extract, "data": data_path}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    p.add_argument("--sslsv", required=True, type=Path, help="checkout of sslsv")
    p.add_argument("--profile", action="store_true", help="print where the time of our step goes")
    args = p.parse_args()
    sys.path.insert(0, str(args.sslsv))
    for part in args.parts or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            PARTS[part](args, Path(folder))


if __name__ == "__main__":
    main()
