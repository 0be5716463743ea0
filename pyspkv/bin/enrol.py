"""Enrol a speaker from recordings, for `pyspkv identify`: `pyspkv enrol NAME a.wav b.wav --model exp`."""

import argparse
import os

from pyspkv.base.errors import UserError, run


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="python -m pyspkv.bin.enrol",
        description="Enrol a speaker: the mean direction of the recordings' embeddings goes into a store.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("name", help="the speaker's name")
    p.add_argument("audio", nargs="+", help="recordings of this speaker")
    p.add_argument(
        "--model", metavar="DIR", help="experiment, phase or model folder; needed for the first speaker"
    )
    p.add_argument("--store", default="speakers.npz", metavar="FILE", help="file of the enrolled speakers")
    p.add_argument("--replace", action="store_true", help="replace a speaker who is already enrolled")
    return p.parse_args()


def main() -> None:
    args = parse()
    from pyspkv.api import enrolment
    from pyspkv.api.speaker_model import load

    with enrolment.sole_writer(args.store):
        store = enrolment.Store.read(args.store) if os.path.lexists(args.store) else None
        name, digest = enrolment.model_of(args.model, store, args.store)
        store = store or enrolment.Store(name, digest)
        if args.name in store.names and not args.replace:  # checked before the recordings are embedded
            raise UserError(
                f"{args.name} is already enrolled", file=args.store, hint="give --replace, or another name"
            )
        x = load(name).embed_speech(args.audio)
        store.enrol(args.name, x, args.replace)
        store.write(args.store)
    print(f"{args.store}: {args.name} by {len(x)} recordings; {len(store.names)} speakers")


if __name__ == "__main__":
    run(main)
