"""Take some of the utterances of a data directory."""

import argparse
import random

from pyspkv.base.errors import UserError
from pyspkv.data.commands.common import whole, write_new
from pyspkv.data.datadir import DataDir, segment_seconds
from pyspkv.data.tables import decode, whole_number

_WHOLE = {"spk": "speakers", "dialogue": "dialogues", "device": "devices"}  # units that stay complete


def add_arguments(sub: argparse.ArgumentParser) -> None:
    how = sub.add_mutually_exclusive_group()
    how.add_argument("--first", action="store_true", help="the first N")
    how.add_argument("--last", action="store_true", help="the last N")
    how.add_argument("--shortest", action="store_true", help="the N shortest")
    how.add_argument(
        "--per-spk",
        action="store_true",
        help="N utterances of each speaker, evenly over its list, or all if there are fewer",
    )
    how.add_argument(
        "--speakers", action="store_true", help="whole speakers at random, until there are N utterances"
    )
    how.add_argument("--first-speakers", action="store_true", help="all utterances of the first N speakers")
    how.add_argument("--dialogues", action="store_true", help="whole dialogues at random (utt2dialogue)")
    how.add_argument("--devices", action="store_true", help="all dialogues of devices drawn at random")
    how.add_argument("--utt-list", metavar="FILE", help="SRC DST: the utterances in FILE")
    how.add_argument("--spk-list", metavar="FILE", help="SRC DST: the speakers in FILE")
    how.add_argument("--dialogue-list", metavar="FILE", help="SRC DST: the dialogues in FILE")
    how.add_argument("--device-list", metavar="FILE", help="SRC DST: the dialogues of the devices in FILE")
    sub.add_argument("--seed", type=whole, default=0, help="seed of --speakers, --dialogues, --devices")
    sub.add_argument("rest", nargs="+", metavar="SRC N DST")


def run(args: argparse.Namespace) -> None:
    unit = next((u for u in ("utt", *_WHOLE) if getattr(args, f"{u}_list")), None)
    by_list = unit and getattr(args, f"{unit}_list")
    if len(args.rest) != (2 if by_list else 3):
        args.parser.error("expected SRC DST" if by_list else "expected SRC N DST")
    src, dst = args.rest[0], args.rest[-1]
    n = None if by_list else whole_number(args.rest[1])
    if n is None and not by_list:
        args.parser.error(f"N is not a number: {args.rest[1][:40]}")
    data = DataDir.read(src, need_wav=False)
    if unit and by_list:
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
        assert n is not None
        utts = _choose(data, args, n)
    write_new(data.subset(utts), src, dst)


def _ids(path: str) -> list[str]:
    """The first field of each line. UserError when there is none."""
    ids = [line.split()[0] for line in decode(path).split("\n") if line.strip()]
    if not ids:
        raise UserError("the list of ids is empty", file=path)
    return ids


def _durations(data: DataDir) -> dict[str, float]:
    """A length of each utterance, in whatever unit the directory's tables have."""
    for name in ("utt2num_samples", "utt2dur", "utt2num_frames"):
        if name in data.utt_tables:
            return {u: float(v) for u, v in data.utt_tables[name].items()}
    if data.segments is not None:
        return segment_seconds(data)
    if "reco2dur" in data.reco_tables:
        return {u: float(v) for u, v in data.reco_tables["reco2dur"].items()}
    rule = "has no utt2num_samples, utt2dur or segments to find the shortest with"
    raise UserError(rule, file=data.path, hint="write utt2dur (`utterance seconds`)")


def _choose(data: DataDir, args: argparse.Namespace, n: int) -> list[str]:
    total = len(data.utts)
    unit = next((u for u in ("spk", "dialogue", "device") if getattr(args, _WHOLE[u])), None)
    unit = "spk" if args.first_speakers else unit
    if n < 1 or (n > total and not (unit or args.per_spk)):
        raise UserError(
            f"{n} of {total} utterances cannot be chosen", file=data.path, hint=f"give 1 to {total}"
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
    units = sorted(by_spk)
    out: list[str] = []
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
    hint = "write it, or make the directory from a log (sessionize.sh)"
    if "utt2dialogue" not in data.utt_tables:
        raise UserError("no such file", file=data.path / "utt2dialogue", hint=hint)
    dialogues = [data.utt_tables["utt2dialogue"][u] for u in data.utts]
    if unit == "dialogue":
        return dialogues
    if data.dialogue2device is None:
        raise UserError("no such file", file=data.path / "dialogue2device", hint=hint)
    return [data.dialogue2device[d] for d in dialogues]
