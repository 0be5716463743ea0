"""Functions for corpora with lists of speakers: reading ROOT/<set>_speakers, and trials that are given or
made."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from pyspkv.base.errors import UserError, natural
from pyspkv.data.datadir import DataDir
from pyspkv.data.tables import read_columns
from pyspkv.data.trials import trials_over


def speakers_of(listed: Path, hint: str) -> Iterator[tuple[int, str]]:
    """Yield (line, speaker) of a list with one speaker per line.

    UserError with `hint` when there is no list.
    """
    if not listed.is_file():
        raise UserError("no such list of speakers", file=listed, hint=hint)
    return enumerate(read_columns(listed, "any", "write one speaker a line, sorted")[0], 1)


def given_trials(given: Path, data: DataDir) -> list[str]:
    """The lines of a given trial list. UserError when an utterance in it is not in `data`."""
    trials_over(given, data.utts)
    return given.read_text(encoding="utf-8").splitlines()


def num_targets(data: DataDir) -> int:
    """Number of pairs of two utterances by the same speaker."""
    return sum(n * (n - 1) // 2 for n in map(data.spk.count, set(data.spk)))


def add_trial_options(p: argparse.ArgumentParser) -> None:
    for name in ("dev", "test"):
        p.add_argument(
            f"--{name}-trials",
            type=Path,
            help="trial list to use; without it, trials are made by the rule in trials_of",
        )
    p.add_argument("--seed", type=natural, default=0, help="seed of the trials that are made")
