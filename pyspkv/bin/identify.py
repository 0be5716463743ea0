"""Find which enrolled speaker a recording is from; with a calibrated model, also decide for each speaker."""

import argparse

from pyspkv.base.errors import UserError, natural, run


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="python -m pyspkv.bin.identify",
        description="Compare recordings with the speakers of a store that pyspkv enrol made. One line per speaker: "
        "recording, name, score, and, if the model is calibrated, llr and decision.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("audio", nargs="+", help="recordings")
    p.add_argument("--store", default="speakers.npz", metavar="FILE", help="file of the enrolled speakers")
    p.add_argument("--model", metavar="DIR", help="the model, if it has moved")
    p.add_argument("--top", type=natural, default=3, metavar="N", help="number of speakers to print; 0: all")
    return p.parse_args()


def main() -> None:
    args = parse()
    from pyspkv.api import enrolment
    from pyspkv.api.speaker_model import judge, load

    store = enrolment.Store.read(args.store)
    if not store.names:
        raise UserError("contains no speaker", file=args.store, hint="enrol a speaker first")
    model = load(enrolment.model_of(args.model, store, args.store)[0])
    for path, x in zip(args.audio, model.embed_speech(args.audio)):
        for name, score in store.scores(x)[: args.top or None]:
            found = judge(score, model.calibration)
            line = f"{path} {name} score {score:.4f}"
            if found.decision is not None:
                line += f" llr {found.llr:+.2f} decision: {'same speaker' if found.decision else 'different speakers'}"
            print(line)


if __name__ == "__main__":
    run(main)
