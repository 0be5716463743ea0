"""Kaldi data directories from the command line; utils/*.sh are thin fronts with Kaldi's names and options."""

import argparse
import random
import sys
from pathlib import Path

from pyspkv.base.errors import Shown, UserError, printable, run
from pyspkv.data.datadir import DataDir, combine, segment_seconds, spk2utt_lines
from pyspkv.data.fix import fix
from pyspkv.data.tables import decode, decode_bytes, plain_number, whole_number

_WHOLE = {"spk": "speakers", "dialogue": "dialogues", "device": "devices"}  # what a subset leaves whole
_PREFIXES = ("--utt-prefix", "--utt-suffix", "--spk-prefix", "--spk-suffix", "--validate-opts")


def _summary(data: DataDir) -> str:
    text = f"{len(data.utts)} utterances, {len(set(data.spk))} speakers"
    if data.segments is not None:
        text += f", {len(data.wav)} recordings"
    if "utt2dialogue" in data.utt_tables:
        text += f", {len(set(data.utt_tables['utt2dialogue'].values()))} dialogues"
    if "utt2dur" in data.utt_tables:
        text += f", {sum(map(float, data.utt_tables['utt2dur'].values())) / 3600:.2f} hours"
    return text


def validate(args: argparse.Namespace) -> None:
    if args.disjoint and len(args.dirs) > 1:
        args.parser.error("--disjoint goes with one DIR before it")
    faults = []
    for path in args.dirs:
        try:
            _validate(path, args)
        except (UserError, OSError) as err:
            if len(args.dirs) == 1:
                raise
            named = isinstance(err, OSError) and err.filename
            faults.append(printable(f"{err.filename}: {err.strerror}") if named else str(err))
    if faults:
        raise UserError(Shown("\nerror: ".join(faults)))


def _validate(path: str, args: argparse.Namespace) -> None:
    from pyspkv.dialogue.simulate import check_disjoint, dialogue_lines

    data = DataDir.read(path, need_wav=not args.no_wav)
    for other in args.disjoint or ():
        check_disjoint(data, DataDir.read(other, need_wav=False))
    print(f"Successfully validated data-directory {path}: {_summary(data)}")
    if "utt2dialogue" in data.utt_tables:
        for line in dialogue_lines(data):
            print(f"{path}: {line}")


def fix_dir(args: argparse.Namespace) -> None:
    for note in fix(args.dir, args.check_audio) or [f"{args.dir}: nothing to hint"]:
        print(note)


def copy(args: argparse.Namespace) -> None:
    data = DataDir.read(args.src, need_wav=False)
    if args.spk_prefix is True:
        data = data.speaker_prefixed()
        args.spk_prefix = ""
    if any((args.utt_prefix, args.utt_suffix, args.spk_prefix, args.spk_suffix)):
        data = data.renamed(
            lambda u, _: f"{args.utt_prefix}{u}{args.utt_suffix}",
            lambda s: f"{args.spk_prefix}{s}{args.spk_suffix}",
        )
    _write(data, args.src, args.dst)


def _write(data: DataDir, src: str, dst: str) -> None:
    if Path(src).resolve() == Path(dst).resolve():
        raise UserError(
            "source and destination are the same folder", file=dst, hint="choose another destination"
        )
    data.write(dst, own=True)
    print(f"{dst}: {_summary(data)}")


def _ids(path: str) -> list[str]:
    ids = [line.split()[0] for line in decode(path).split("\n") if line.strip()]
    if not ids:
        raise UserError("the list of ids is empty", file=path)
    return ids


def _durations(data: DataDir) -> dict[str, float]:
    for name in ("utt2num_samples", "utt2dur", "utt2num_frames"):
        if name in data.utt_tables:
            return {u: float(v) for u, v in data.utt_tables[name].items()}
    if data.segments is not None:
        return segment_seconds(data)
    if "reco2dur" in data.reco_tables:
        return {u: float(v) for u, v in data.reco_tables["reco2dur"].items()}
    rule = "no utt2num_samples, utt2dur nor segments to find the shortest by"
    raise UserError(rule, file=data.path, hint="write utt2dur (`utterance seconds`)")


def _choose(data: DataDir, args: argparse.Namespace, n: int) -> list[str]:
    total = len(data.utts)
    unit = next((u for u in ("spk", "dialogue", "device") if getattr(args, _WHOLE[u])), None)
    unit = "spk" if args.first_speakers else unit
    if n < 1 or (n > total and not (unit or args.per_spk)):
        raise UserError(
            f"cannot take {n} of {total} utterances", file=data.path, hint=f"ask for 1 to {total}"
        )
    if args.first:
        return data.utts[:n]
    if args.last:
        return data.utts[-n:]
    if args.shortest:
        length = _durations(data)
        return sorted(data.utts, key=length.__getitem__)[:n]
    if not (unit or args.per_spk):
        return [data.utts[i * total // n] for i in range(n)]  # evenly over the list, as Kaldi's subset_scp
    by_spk: dict[str, list[str]] = {}
    for u, s in zip(data.utts, _column(data, unit or "spk")):
        by_spk.setdefault(s, []).append(u)
    if args.per_spk:
        return [us[i * len(us) // min(n, len(us))] for us in by_spk.values() for i in range(min(n, len(us)))]
    units, out = sorted(by_spk), []
    if args.first_speakers:
        return [u for name in units[:n] for u in by_spk[name]]
    random.Random(args.seed).shuffle(units)
    for name in units:
        if len(out) >= n:
            break
        out += by_spk[name]
    return out


def _column(data: DataDir, unit: str) -> list[str]:
    """Speaker, dialogue or device of each utterance."""
    if unit in ("utt", "spk"):
        return data.utts if unit == "utt" else data.spk
    hint = "make it from a log with utils/sessionize.sh"
    if "utt2dialogue" not in data.utt_tables:
        raise UserError("no such file", file=data.path / "utt2dialogue", hint=hint)
    dialogues = [data.utt_tables["utt2dialogue"][u] for u in data.utts]
    if unit == "dialogue":
        return dialogues
    if data.dialogue2device is None:
        raise UserError("no such file", file=data.path / "dialogue2device", hint=hint)
    return [data.dialogue2device[d] for d in dialogues]


def subset(args: argparse.Namespace) -> None:
    unit = next((u for u in ("utt", *_WHOLE) if getattr(args, f"{u}_list")), None)
    by_list = unit and getattr(args, f"{unit}_list")
    if len(args.rest) != (2 if by_list else 3):
        args.parser.error("expected SRC DST" if by_list else "expected SRC N DST")
    src, dst = args.rest[0], args.rest[-1]
    n = None if by_list else whole_number(args.rest[1])
    if n is None and not by_list:
        args.parser.error(f"the number of utterances is not a number: {args.rest[1][:40]}")
    data = DataDir.read(src, need_wav=False)
    if by_list:
        names = _column(data, unit)
        ids = {*_ids(by_list)}
        wanted = ids.intersection(names)
        if not wanted:
            where = (
                "dialogue2device" if unit == "device" else f"utt2{unit}" if unit == "dialogue" else "utt2spk"
            )
            raise UserError(f"none of these ids is in {src}/{where}", file=by_list)
        if len(wanted) < len(ids):
            print(f"{by_list}: {len(ids) - len(wanted)} of {len(ids)} ids are not in {src}")
        utts = [u for u, name in zip(data.utts, names) if name in wanted]
    else:
        utts = _choose(data, args, n)
    _write(data.subset(utts), src, dst)


def combine_dirs(args: argparse.Namespace) -> None:
    if Path(args.dst).resolve() in [Path(s).resolve() for s in args.src]:
        raise UserError(
            "the destination is one of the sources", file=args.dst, hint="choose another destination"
        )
    sources = [DataDir.read(s, need_wav=False) for s in args.src]
    data, left_out = combine(args.dst, sources, args.extra_files.split())
    for name in sorted(left_out):
        print(f"{args.dst}: left out {name}, which some source lacks")
    data.write(args.dst, own=True)
    print(f"{args.dst}: {_summary(data)}")


def corrupt(args: argparse.Namespace) -> None:
    import numpy as np

    from pyspkv.base.atomic import atomic_file
    from pyspkv.clustering.quality import corrupt_labels

    data = DataDir.read(args.src, need_wav=False)
    names = sorted(set(data.spk))
    if len(names) < 2:
        rule = "has one speaker; a wrong label needs another"
        raise UserError(rule, file=f"{args.src}/utt2spk", hint="take labels of two speakers or more")
    found, rows = corrupt_labels(np.searchsorted(names, data.spk), args.share, len(names), args.seed)
    with atomic_file(args.list, own=True) as f:
        f.writelines(f"{data.utts[row]}\n" for row in rows)
    _write(data.with_speakers([names[k] for k in found]), args.src, args.dst)


def split(args: argparse.Namespace) -> None:
    folder = DataDir.read(args.dir, need_wav=False).write_split(args.n, per_utt=args.per_utt)
    print(f"{folder}: {args.n} parts")


def split_labels(args: argparse.Namespace) -> None:
    few, many = DataDir.read(args.dir).write_label_split(args.out, args.n, args.seed)
    print(f"{args.out}: {few} labeled and {many} unlabeled utterances")


def filter_scp(args: argparse.Namespace) -> None:
    """Bytes in, bytes out: a filter must not mind what else is in a line."""
    keep = set()
    with open(args.idlist, "rb") as f:
        for number, line in enumerate(f, 1):
            parts = line.removeprefix(b"\xef\xbb\xbf").split(None, 1)
            if not parts:
                raise UserError("empty line in the list of ids", file=args.idlist, line=number)
            keep.add(parts[0])
    at = args.field - 1
    with open(args.file, "rb") if args.file else sys.stdin.buffer as f:
        for number, line in enumerate(f, 1):
            parts = line.split(None, args.field)
            if at < 0 or len(parts) <= at:
                raise UserError(f"no column {args.field}", file=args.file or "stdin", line=number)
            if (parts[at] in keep) != args.exclude:
                sys.stdout.buffer.write(line)


def spk2utt(args: argparse.Namespace) -> None:
    utts, spk, name = [], [], args.file or "stdin"
    text = decode(args.file) if args.file else decode_bytes(sys.stdin.buffer.read(), name)
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], 1):
        parts = line.split()
        if len(parts) != 2:
            raise UserError("the rule is `utterance speaker`", file=name, line=number)
        utts.append(parts[0])
        spk.append(parts[1])
    sys.stdout.buffer.writelines(f"{line}\n".encode() for line in spk2utt_lines(utts, spk))


def _join_values(argv: list[str]) -> list[str]:
    """Write copy's `--opt value` as `--opt=value`, for values may start with `-`.

    `--spk-prefix` has a value exactly when two other words remain for SRC and DST.
    """
    out, i, words, at = [], 0, 0, None
    while i < len(argv):
        if argv[i] == "--spk-prefix":
            at = len(out)
            out.append(argv[i])
        elif argv[i] in _PREFIXES and i + 1 < len(argv):
            out.append(f"{argv[i]}={argv[i + 1]}")
            i += 1
        else:
            words += not argv[i].startswith("--")
            out.append(argv[i])
        i += 1
    if at is not None and words == 3:
        out[at : at + 2] = [f"--spk-prefix={out[at + 1]}"]
    elif at is not None:
        out[at] = "--spk-prefix"
    return out


def _share(text: str) -> float:
    if not 0 <= (share := plain_number(text)) <= 1:
        raise argparse.ArgumentTypeError(f"a share lies from 0 to 1, not {text[:40]}")
    return share


def _whole(text: str) -> int:
    if (value := whole_number(text)) is None:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no whole number from 0")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pyspkv.bin.datadir", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, function, about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=about,
            description=about,
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        sub.set_defaults(function=function, parser=sub)
        return sub

    sub = command("validate", validate, "check data directories: every file, every line")
    sub.add_argument("dirs", nargs="+", metavar="DIR")
    sub.add_argument("--no-wav", action="store_true", help="wav.scp may be missing")
    sub.add_argument(
        "--disjoint",
        nargs="+",
        metavar="DIR2",
        help="after DIR: directories that must share no utterance, speaker, dialogue or device with it",
    )
    for name in ("--no-text", "--no-feats", "--no-spk-sort", "--non-print"):
        sub.add_argument(name, action="store_true", help="Kaldi's option; here always so")

    sub = command("fix", fix_dir, "sort and hint a data directory; the old files go to DIR/.backup")
    about = "open every recording: cut segments that end beyond it; refuse where audio cannot be read, and name it"
    sub.add_argument("--check-audio", action="store_true", help=about)
    sub.add_argument("dir")

    sub = command("copy", copy, "copy a data directory, perhaps with other ids")
    sub.add_argument("src")
    sub.add_argument("dst")
    sub.add_argument("--utt-prefix", default="", help="put before each utterance id")
    sub.add_argument("--utt-suffix", default="", help="put after each utterance id")
    sub.add_argument(
        "--spk-prefix",
        nargs="?",
        const=True,
        default="",
        help="with a value: put it before each speaker id (Kaldi); without: make every utterance id "
        "<spk>-<utt>, which Kaldi's own tools demand",
    )
    sub.add_argument("--spk-suffix", default="", help="put after each speaker id")
    sub.add_argument("--validate-opts", default="", help="Kaldi's option; the copy is always checked in full")

    sub = command(
        "subset", subset, "SRC N DST: N utterances, evenly over the list unless an option says otherwise"
    )
    how = sub.add_mutually_exclusive_group()
    how.add_argument("--first", action="store_true", help="the first N")
    how.add_argument("--last", action="store_true", help="the last N")
    how.add_argument("--shortest", action="store_true", help="the N shortest")
    how.add_argument("--per-spk", action="store_true", help="N of each speaker, or all where there are fewer")
    how.add_argument(
        "--speakers", action="store_true", help="random whole speakers until N utterances are reached"
    )
    how.add_argument("--first-speakers", action="store_true", help="all utterances of the first N speakers")
    how.add_argument("--dialogues", action="store_true", help="likewise whole dialogues (utt2dialogue)")
    how.add_argument("--devices", action="store_true", help="likewise all dialogues of whole devices")
    how.add_argument("--utt-list", metavar="FILE", help="SRC DST: the utterances in FILE")
    how.add_argument("--spk-list", metavar="FILE", help="SRC DST: the speakers in FILE")
    how.add_argument("--dialogue-list", metavar="FILE", help="SRC DST: the dialogues in FILE")
    how.add_argument("--device-list", metavar="FILE", help="SRC DST: the dialogues of the devices in FILE")
    sub.add_argument("--seed", type=_whole, default=0, help="for --speakers, --dialogues, --devices")
    sub.add_argument("rest", nargs="+", metavar="SRC N DST")

    sub = command("combine", combine_dirs, "several data directories into one; files that all have are kept")
    sub.add_argument("--extra-files", default="", metavar="'F1 F2'", help="files that every source must have")
    sub.add_argument("--skip-fix", default="false", help="Kaldi's option; the result needs no fixing")
    sub.add_argument("dst")
    sub.add_argument("src", nargs="+")

    about = (
        "SRC DST: a random share of the utterances gets another speaker's label, to test what copes with that"
    )
    sub = command("corrupt", corrupt, about)
    sub.add_argument("--share", type=_share, required=True, help="of the utterances, from 0 to 1")
    sub.add_argument("--seed", type=_whole, default=0)
    sub.add_argument("--list", required=True, metavar="FILE", help="where the ids of those utterances go")
    sub.add_argument("src")
    sub.add_argument("dst")

    sub = command("split", split, "cut into DIR/split<N>/<1..N> by whole speakers")
    sub.add_argument("--per-utt", action="store_true", help="by utterances, into DIR/split<N>utt")
    sub.add_argument("dir")
    sub.add_argument("n", type=_whole)

    sub = command(
        "split-labels",
        split_labels,
        "into OUT/labeled N random utterances of each speaker, into OUT/unlabeled the others without speakers, into "
        "OUT/truth their speakers, for diagnostics",
    )
    sub.add_argument(
        "--seed", type=_whole, default=0, help="of the draw; for one seed a smaller N draws a part"
    )
    sub.add_argument("dir")
    sub.add_argument("n", type=_whole)
    sub.add_argument("out")

    sub = command("filter", filter_scp, "print the lines whose column is an id in IDLIST (its first column)")
    sub.add_argument("--exclude", action="store_true", help="the other lines")
    sub.add_argument("-f", dest="field", type=_whole, default=1, help="the column to look at, from 1")
    sub.add_argument("idlist")
    sub.add_argument("file", nargs="?", help="default: standard input")

    sub = command("utt2spk-to-spk2utt", spk2utt, "turn `utt spk` lines into `spk utt1 utt2 ...`")
    sub.add_argument("file", nargs="?", help="default: standard input")
    return parser


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["copy"]:
        argv = ["copy", *_join_values(argv[1:])]
        if "--spk-prefix" in argv:  # argparse would take SRC as its value
            argv = [a for a in argv if a != "--spk-prefix"] + ["--spk-prefix"]
    args = _parser().parse_args(argv)
    args.function(args)


if __name__ == "__main__":
    run(main)
