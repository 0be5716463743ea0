"""Decide whether recordings are of the same speaker: score, log-likelihood ratio, the model's threshold."""

import argparse
import itertools

from pyspkv.base.errors import run


def main() -> None:
    p = argparse.ArgumentParser(
        prog="python -m pyspkv.bin.verify",
        description="Compare every pair of the given recordings. The threshold is the one stored in "
        "MODEL/calibration.json by pyspkv.bin.calibrate; without it only scores are printed.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument(
        "--model", required=True, metavar="DIR", help="experiment, phase or model folder, or DIR@best"
    )
    p.add_argument("audio", nargs="+", help="two or more audio files")
    args = p.parse_args()
    if len(args.audio) < 2:
        p.error("give at least two audio files")
    from pyspkv.api.speaker_model import judge, load
    from pyspkv.data.ark import normalize

    model = load(args.model, device="cpu")
    x = normalize(model.embed_speech(args.audio))
    for i, j in itertools.combinations(range(len(x)), 2):
        found = judge(float(x[i] @ x[j]), model.calibration)
        line = f"{args.audio[i]} {args.audio[j]} score {found.score:.4f}"
        if found.llr is not None:
            decision = "same speaker" if found.decision else "different speakers"
            line += f" llr {found.llr:+.2f} decision: {decision}"
        print(line)
    if known := model.calibration:
        print(f"threshold {known.threshold:.4f} (prior {known.prior}), from {known.source}")
    else:
        folder = str(model.folder).removesuffix("@best").removesuffix("@last")
        print(
            f"no decision: {folder}/calibration.json does not exist; make it with python -m pyspkv.bin.calibrate "
            f"--from-data DIR --embeddings SCP --model {folder}"
        )


if __name__ == "__main__":
    run(main)
