"""Make dialogues from a voice-assistant log: a data directory with utt2dialogue and dialogue2device."""

import argparse
from pathlib import Path

from pyspkv.base.errors import run

EDGES = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 6 * 3600, 24 * 3600)


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="utils/sessionize.sh",
        description="A new dialogue begins where the pause between two turns of a device is too long, or the "
        "dialogue becomes too long. Prints a histogram of the pauses; choose --max-gap in its valley. "
        "Without OUT, nothing is written.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument(
        "log",
        metavar="LOG",
        type=Path,
        help="a data directory with utt2time and utt2device (utt2source), a .jsonl or a .csv file",
    )
    p.add_argument("out", metavar="OUT", type=Path, nargs="?", help="new data directory")
    p.add_argument(
        "--from", dest="kind", choices=["kaldi", "jsonl", "csv"], help="default: from the name of LOG"
    )
    for name, about in (
        ("utt", "utterance id"),
        ("audio", "audio file, relative to the log's folder"),
        ("device", "device or account"),
        ("time", "start in seconds, or ISO 8601"),
        ("source", "who speaks; the log may lack it"),
        ("duration", "in seconds; the log may lack it"),
    ):
        p.add_argument(f"--{name}-field", default=name, metavar="NAME", help=f"{about} (jsonl, csv)")
    p.add_argument(
        "--drop-source", default="device", help="drop turns of this source, for example the machine's"
    )
    p.add_argument("--max-gap", type=float, default=60, help="longest pause in a dialogue, in seconds")
    p.add_argument("--max-span", type=float, default=600, help="longest dialogue, in seconds")
    p.add_argument("--min-utts", type=int, default=2, help="fewest utterances in a dialogue")
    p.add_argument("--max-utts", type=int, default=20, help="most utterances in a dialogue")
    p.add_argument("--min-dur", type=float, default=0.5, help="shortest turn, in seconds (skips wake words)")
    p.add_argument("--plot", metavar="PNG", type=Path, help="write the histogram as a figure")
    args = p.parse_args()
    if not (args.max_gap > 0 and args.max_span > 0) or not 2 <= args.min_utts <= args.max_utts:
        p.error("--max-gap and --max-span must be above 0, --min-utts from 2 to --max-utts")
    if args.kind is None:
        named = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}
        args.kind = named.get(args.log.suffix.lower(), "kaldi")
    return args


def histogram(gaps, max_gap: float) -> list[str]:
    """One line per class of pauses; the line that contains --max-gap is marked."""
    import numpy as np

    count = np.histogram(gaps, [-np.inf, *EDGES, np.inf])[0]
    widest = max(1, int(count.max()))
    names = [f"< {EDGES[0]} s", *(f"{a}-{b} s" for a, b in zip(EDGES, EDGES[1:])), f"> {EDGES[-1]} s"]
    lines = []
    for name, n, start in zip(names, count.tolist(), [0, *EDGES]):
        mark = (
            " <- --max-gap"
            if start <= max_gap < dict(zip([0, *EDGES], [*EDGES, float("inf")]))[start]
            else ""
        )
        lines.append(f"{name:>13} {n:>9} {'#' * round(50 * n / widest)}{mark}")
    return lines


def main() -> None:
    args = parse()
    from dataclasses import replace

    from pyspkv.base.errors import UserError
    from pyspkv.data.dialogues import dialogue_lines
    from pyspkv.dialogue import sessionize

    if args.kind == "kaldi":
        found = sessionize.from_kaldi(args.log, args.drop_source)
    else:
        names = ("utt", "audio", "device", "time", "source", "duration")
        fields = sessionize.Fields(**{n: getattr(args, f"{n}_field") for n in names})
        found = sessionize.from_log(args.log, args.kind, fields, args.drop_source)
    if args.out and args.log.resolve().is_relative_to(args.out.resolve()):
        raise UserError("OUT must not be LOG", file=args.out, hint="choose another OUT")
    if args.plot and args.plot.resolve() == args.log.resolve():
        raise UserError("is the same file as LOG", file=args.plot, hint="choose another --plot")
    if args.plot and args.out and args.plot.resolve().is_relative_to(args.out.resolve()):
        raise UserError(
            "lies in OUT, which is replaced as a whole", file=args.plot, hint="choose another --plot"
        )
    data, seconds = found.data, found.seconds()
    print(
        f"{args.log}: {len(data.utts)} turns of {len(set(found.device))} devices; {found.dropped} dropped by source"
    )
    gaps = sessionize.gaps(found.device, found.time, seconds)
    print("pauses between the turns of a device:")
    print("\n".join(histogram(gaps, args.max_gap)))
    if args.plot and len(gaps):
        from pyspkv.report import plots

        plots.gaps(gaps, args.max_gap, args.plot)
    if args.out is None:
        return
    dialogue = sessionize.sessionize(
        found.device,
        found.time,
        seconds,
        max_gap=args.max_gap,
        max_span=args.max_span,
        max_utts=args.max_utts,
        min_utts=args.min_utts,
        min_dur=args.min_dur,
    )
    named = {row: name for row, name in enumerate(dialogue) if name is not None}
    rows = list(named)
    if not rows:
        raise UserError(
            "no dialogue meets the options",
            file=args.log,
            hint="raise --max-gap, lower --min-utts",
        )
    kept = data.subset([data.utts[row] for row in rows], trials=False)
    extra: dict[str, dict[str, str]] = {
        "utt2dialogue": {data.utts[row]: named[row] for row in rows},
        "utt2time": {data.utts[row]: repr(float(found.time[row])) for row in rows},
        "utt2dur": {data.utts[row]: f"{seconds[row]:.6f}" for row in rows},
    }
    kept = replace(
        kept,
        utt_tables={**kept.utt_tables, **extra},
        dialogue2device={named[row]: found.device[row] for row in rows},
    )
    assert kept.dialogue2device is not None
    kept.write(args.out, own=True)
    hours = sum(float(seconds[row]) for row in rows) / 3600
    print(
        f"{args.out}: {len(rows)} of {len(data.utts)} turns in {len(kept.dialogue2device)} dialogues, "
        f"{hours:.2f} hours; the other turns are too short or in no dialogue"
    )
    for line in dialogue_lines(kept):
        print(f"{args.out}: {line}")


if __name__ == "__main__":
    run(main)
