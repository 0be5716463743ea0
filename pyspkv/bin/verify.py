"""Are these recordings of one speaker? Score, log-likelihood ratio and decision with the model's own threshold."""

import argparse
import itertools
from pathlib import Path
from typing import TYPE_CHECKING

from pyspkv.base.errors import UserError, run

if TYPE_CHECKING:
    import numpy as np


def embed_files(model: str, paths: list[str]) -> "np.ndarray":
    """float32 [n, D] length-normalized embeddings of whole audio files, embedded as bin.extract does.

    UserError: audio that cannot be read, or that has no signal (`audio.signal_problem`).
    """
    import torch

    from pyspkv.audio.reader import AudioReader
    from pyspkv.data.ark import normalize
    from pyspkv.data.datadir import DataDir
    from pyspkv.models.load import load_encoder
    from pyspkv.score.extract import embed

    files = DataDir(None, paths, paths, {path: path for path in paths})
    reader = AudioReader(files)
    for row in range(len(paths)):
        reader.read(row)
    if reader.silent:  # they would all be "the same speaker"
        raise UserError(reader.silence_note(most=len(paths)), hint="give recordings of speech")
    return normalize(embed(load_encoder(model), files, torch.device("cpu"), "fp32").x)


def main() -> None:
    p = argparse.ArgumentParser(
        prog="python -m pyspkv.bin.verify",
        description="Compare every pair of the given recordings. The threshold is the one stored in "
        "MODEL/calibration.json by pyspkv.bin.calibrate; without it only scores are printed.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("--model", required=True, metavar="DIR", help="run folder of bin.train, or DIR@best")
    p.add_argument("audio", nargs="+", help="two or more audio files")
    args = p.parse_args()
    if len(args.audio) < 2:
        p.error("give at least two audio files")
    from pyspkv.score.calibration import Calibration

    stored = Path(args.model.removesuffix("@best").removesuffix("@last")) / "calibration.json"
    calibration = Calibration.read(stored) if stored.exists() else None
    x = embed_files(args.model, args.audio)
    for i, j in itertools.combinations(range(len(x)), 2):
        score = float(x[i] @ x[j])
        line = f"{args.audio[i]} {args.audio[j]} score {score:.4f}"
        if calibration:
            decision = "same speaker" if score >= calibration.threshold else "different speakers"
            line += f" llr {calibration.llr(score):+.2f} decision: {decision}"
        print(line)
    if calibration:
        print(f"threshold {calibration.threshold:.4f} (prior {calibration.prior}), from {calibration.source}")
    else:
        print(
            f"no decision: {stored} is not there; make it with python -m pyspkv.bin.calibrate "
            f"--from-data DIR --embeddings SCP --model {stored.parent}"
        )


if __name__ == "__main__":
    run(main)
