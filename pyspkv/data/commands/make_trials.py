"""Make trials for a labelled data directory, or convert a trial list to its ids."""

import argparse
from pathlib import Path

from pyspkv.base.atomic import atomic_file, command_line
from pyspkv.base.errors import UserError
from pyspkv.data.commands.common import whole
from pyspkv.data.datadir import DataDir
from pyspkv.data.tables import read_table


def add_arguments(sub: argparse.ArgumentParser) -> None:
    sub.epilog = "Without counts: all pairs of utterances. The same seed makes the same trials."
    add = sub.add_argument
    add("--targets-per-speaker", type=whole, metavar="N", help="at most N target trials for each speaker")
    add(
        "--nontargets-per-speaker",
        type=whole,
        metavar="N",
        help="at most N nontarget trials for each speaker",
    )
    add("--max-targets", type=whole, metavar="N", help="at most N target trials in total")
    add("--max-nontargets", type=whole, metavar="N", help="at most N nontarget trials in total")
    add(
        "--same-gender",
        nargs="?",
        const="",
        metavar="FILE",
        help="make nontarget trials within one gender, from DIR/spk2gender or FILE (`utt m|f` or `spk m|f`)",
    )
    add(
        "--cross-session",
        nargs="?",
        const="",
        metavar="FILE",
        help="make target trials from two sessions, from DIR/utt2session or FILE (`utt session`)",
    )
    add(
        "--enrol-utts",
        type=whole,
        default=0,
        metavar="N",
        help="enrol each speaker with N utterances: writes enrol_map",
    )
    add(
        "--from-list",
        metavar="FILE",
        help="convert a list such as VoxCeleb's `1 path path`, or one of two columns without labels",
    )
    add("--seed", type=whole, default=0)
    add("--out", metavar="FILE", help="output list (default: DIR/trials); models go to enrol_map next to it")
    add("dir")


def run(args: argparse.Namespace) -> None:
    data = DataDir.read(args.dir, need_wav=False)
    out = Path(args.out or f"{args.dir}/trials")
    if args.from_list:
        lines, models = _of_list(args, data), dict[str, list[str]]()
    else:
        lines, models = _made(args, data)
    texts = (
        {out.with_name("enrol_map"): [f"{m} {' '.join(models[m])}" for m in sorted(models)]} if models else {}
    )
    texts[out] = lines  # written last: if it exists, so does enrol_map
    inside_dir = out.parent.resolve() == Path(args.dir).resolve()
    if not models and inside_dir and data.enrol_map and not args.from_list:
        rule = "contains the models of an earlier list"
        raise UserError(
            rule,
            file=out.with_name("enrol_map"),
            hint=command_line("rm", "-f", out, out.with_name("enrol_map")),
        )
    for file, wanted in texts.items():
        if file.is_file() and file.read_text(encoding="utf-8").split("\n")[:-1] != wanted:
            raise UserError("exists and has other lines", file=file, hint=command_line("rm", file))
    for file, wanted in texts.items():
        with atomic_file(file, own=True) as f:
            f.writelines(f"{line}\n" for line in wanted)
    target = sum(line.endswith(" target") for line in lines)
    kinds = (
        f"{target} target, {len(lines) - target} nontarget"
        if " target" in lines[0] or target
        else "no answers"
    )
    more = f", {len(models)} models of {args.enrol_utts} utterances" if models else ""
    print(f"{out}: {len(lines)} trials ({kinds}){more}")


def _of_list(args: argparse.Namespace, data: DataDir) -> list[str]:
    """Convert a trial list. UserError when it is blind and would be the trials of a data directory."""
    from pyspkv.data import trial_lists

    lines, labeled = trial_lists.read(Path(args.from_list), data)
    if not labeled and not args.out:
        rule = "has no answers (two columns), so it cannot be the trials of a data directory"
        raise UserError(rule, file=args.from_list, hint="give --out FILE, a list for scoring alone")
    return lines


def _made(args: argparse.Namespace, data: DataDir) -> tuple[list[str], dict[str, list[str]]]:
    from pyspkv.data.make_trials import make_trials
    from pyspkv.data.trial_design import Rules, by_speaker, design

    by_speaker(data)  # raises if the speakers are unknown
    session = None if args.cross_session is None else sessions(args.cross_session, data)
    group = None if args.same_gender is None else genders(args.same_gender, data)
    each = args.targets_per_speaker, args.nontargets_per_speaker
    in_all = args.max_targets, args.max_nontargets
    if each == (None, None) and not args.enrol_utts:
        limits = {"max_targets": in_all[0], "max_nontargets": in_all[1]}
        return make_trials(data.utts, data.spk, seed=args.seed, session=session, group=group, **limits), {}
    if in_all != (None, None):
        args.parser.error(
            "--max-targets and --max-nontargets cannot be combined with counts per speaker or --enrol-utts"
        )
    return design(data, Rules(*each, session, group, args.enrol_utts, args.seed))


def sessions(file: str, data: DataDir) -> dict[str, str]:
    """Utterance -> session. UserError when the table or the line of an utterance is missing."""
    path = Path(file or f"{data.path}/utt2session")
    if not path.is_file():
        hint = (
            "from-folder writes it with {session} in --pattern; else write `utterance session` lines, sorted"
        )
        raise UserError("no such file", file=path, hint=hint)
    table = read_table(path, "id")
    if missing := [u for u in data.utts if u not in table]:
        raise UserError(f"has no line for {len(missing)} utterances; the first is {missing[0]}", file=path)
    return table


def genders(file: str, data: DataDir) -> dict[str, str]:
    """Speaker -> m or f, from a table of speakers or utterances.

    UserError when one is missing or has both.
    """
    path = Path(file or f"{data.path}/spk2gender")
    if not path.is_file():
        raise UserError("no such file", file=path, hint="write `speaker m` or `speaker f` lines, sorted")
    table = read_table(path, "gender")
    out: dict[str, str] = {}
    for utt, spk in zip(data.utts, data.spk):
        found = table.get(spk) or table.get(utt)
        if found is None:
            raise UserError(f"has no line for speaker {spk} or utterance {utt}", file=path)
        if out.setdefault(spk, found) != found:
            raise UserError(
                f"speaker {spk} has utterances with m and with f", file=path, hint="correct the table"
            )
    return out
