"""Copy a data directory, optionally with other ids."""

import argparse

from pyspkv.data.commands.common import write_new
from pyspkv.data.datadir import DataDir

_PREFIXES = ("--utt-prefix", "--utt-suffix", "--spk-prefix", "--spk-suffix", "--validate-opts")


def add_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("src")
    sub.add_argument("dst")
    sub.add_argument("--utt-prefix", default="", help="prefix of each utterance id")
    sub.add_argument("--utt-suffix", default="", help="suffix of each utterance id")
    sub.add_argument(
        "--spk-prefix",
        nargs="?",
        const=True,
        default="",
        help="with a value: put it before each speaker id (Kaldi); without: make every utterance id "
        "<spk>-<utt>, which Kaldi's own tools demand",
    )
    sub.add_argument("--spk-suffix", default="", help="suffix of each speaker id")
    sub.add_argument(
        "--validate-opts", default="", help="accepted for Kaldi's scripts; the copy is always checked"
    )


def run(args: argparse.Namespace) -> None:
    data = DataDir.read(args.src, need_wav=False)
    if args.spk_prefix is True:
        data = data.speaker_prefixed()
        args.spk_prefix = ""
    if any((args.utt_prefix, args.utt_suffix, args.spk_prefix, args.spk_suffix)):
        data = data.renamed(
            lambda u, _: f"{args.utt_prefix}{u}{args.utt_suffix}",
            lambda s: f"{args.spk_prefix}{s}{args.spk_suffix}",
        )
    write_new(data, args.src, args.dst)


def _join_values(argv: list[str]) -> list[str]:
    """Write copy's `--opt value` as `--opt=value`, because values may start with `-`.

    `--spk-prefix` has a value if and only if two other words remain for SRC and DST.
    """
    out: list[str] = []
    i, words, at = 0, 0, None
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


def tidy(words: list[str]) -> list[str]:
    """Rewrite the words after `copy`, so that argparse understands them as Kaldi's script does."""
    words = _join_values(words)
    if "--spk-prefix" in words:  # argparse would take SRC as its value
        words = [w for w in words if w != "--spk-prefix"] + ["--spk-prefix"]
    return words
