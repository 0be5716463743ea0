"""Make dialogues from labeled speech, clean or contaminated: OUT/train, OUT/train_labeled and OUT/truth."""

import argparse
import json
from pathlib import Path

from pyspkv.base import foreign
from pyspkv.base.errors import UserError, natural, run


def span(text: str) -> tuple[float, float]:
    """argparse type: LOW:HIGH."""
    low, _, high = text.partition(":")
    try:
        return float(low), float(high)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not LOW:HIGH") from None


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="python -m pyspkv.bin.simulate_dialogues",
        description="Cut each speaker's sessions into dialogues (unless DATA has utt2dialogue) and put a second "
        "speaker into a share of them. The truth (speakers, dialogue2mixed) goes to OUT/train_labeled and OUT/truth.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("data", metavar="DATA", help="data directory with true speakers")
    p.add_argument("out", metavar="OUT", type=Path, help="output folder of train, train_labeled and truth")
    p.add_argument("--session", metavar="FILE", help="`utt session` lines; default: one session per speaker")
    p.add_argument(
        "--sizes",
        type=span,
        default=(4, 8),
        metavar="LOW:HIGH",
        help="fewest and most utterances in a dialogue",
    )
    p.add_argument("--households", action="store_true", help="two speakers share a device")
    p.add_argument(
        "--mixed-percent",
        type=float,
        default=0.0,
        metavar="P",
        help="percent of the dialogues that have two speakers",
    )
    p.add_argument(
        "--share",
        type=span,
        default=(0.33, 0.5),
        metavar="LOW:HIGH",
        help="share of a mixed dialogue's utterances that are the second speaker's",
    )
    p.add_argument(
        "--alike",
        metavar="FILE",
        help="`utt key` lines: where possible, an utterance of the second speaker has the key (such as the "
        "spoken word) of the one that it replaces",
    )
    p.add_argument("--seed", type=natural, default=0)
    args = p.parse_args()
    if not 0 <= args.mixed_percent <= 100 or not 0 < args.share[0] <= args.share[1] < 1:
        p.error("--mixed-percent must be from 0 to 100, --share LOW:HIGH between 0 and 1")
    if not 2 <= args.sizes[0] <= args.sizes[1] < float("inf"):
        p.error("--sizes LOW:HIGH must be at least 2")
    return args


def main() -> None:
    args = parse()
    from dataclasses import replace

    from pyspkv.base.atomic import atomic_file
    from pyspkv.data.datadir import DataDir
    from pyspkv.data.dialogues import dialogue_lines
    from pyspkv.data.tables import read_table
    from pyspkv.dialogue.simulate import contaminate, simulate

    if any(
        Path(args.out, part).resolve() == Path(args.data).resolve() for part in ("train", "train_labeled")
    ):
        raise UserError("OUT must not be DATA", file=args.data, hint="choose another OUT")
    asked = {k: str(v) for k, v in vars(args).items() if k != "out"}
    record = args.out / "made_by.json"
    if record.is_file() and (args.out / "train/utt2dialogue").is_file():
        before = foreign.read_json(record, hint="give another OUT, or remove this one")
        if before != asked:
            name = next(k for k in [*asked, *before] if before.get(k) != asked.get(k))
            rule = f"was made with another {name}: {foreign.short(before.get(name))}, now {asked.get(name)}"
            raise UserError(rule, file=args.out, hint="give another OUT, or remove this one")
        print(f"up to date: {args.out}")
        return
    data = replace(DataDir.read(args.data), trials={}, enrol_map=None)
    if len(set(data.spk)) == len(data.utts):
        raise UserError("every utterance has a speaker of its own", file=args.data, hint="give true speakers")
    if "utt2dialogue" not in data.utt_tables:
        session = read_table(args.session, "id") if args.session else dict.fromkeys(data.utts, "0")
        sizes = (int(args.sizes[0]), int(args.sizes[1]))
        data = simulate(data, session, sizes=sizes, households=args.households, seed=args.seed)
    elif data.dialogue2device is None:
        raise UserError(
            "no such file", file=data.path / "dialogue2device", hint="write `dialogue device` lines"
        )
    alike = read_table(args.alike, "id") if args.alike else None
    data = contaminate(data, args.mixed_percent / 100, share=args.share, alike=alike, seed=args.seed)
    data.write_training_set(args.out)
    with atomic_file(record) as f:
        json.dump(asked, f, indent=1)
    assert data.dialogue2mixed is not None and data.dialogue2device is not None  # `contaminate` sets both
    mixed = sum(v == "1" for v in data.dialogue2mixed.values())
    print(f"{args.out}/train: {len(data.dialogue2device)} dialogues, {mixed} with a second speaker")
    for line in dialogue_lines(data):
        print(f"{args.out}/train: {line}")


if __name__ == "__main__":
    run(main)
