"""What corpora with lists of speakers share: ROOT/<set>_speakers, and trials that are given or made."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from pyspkv.base.errors import UserError, natural
from pyspkv.data.datadir import DataDir
from pyspkv.data.tables import read_columns
from pyspkv.data.trials import trials_over


def speakers_of(listed: Path, hint: str) -> Iterator[tuple[int, str]]:
    """(line, speaker) of a list with one speaker a line. UserError with this hint: there is no list."""
    if not listed.is_file():
        raise UserError("no such list of speakers", file=listed, hint=hint)
    return enumerate(read_columns(listed, "any", "write one speaker a line, sorted")[0], 1)


def given_trials(given: Path, data: DataDir) -> list[str]:
    """The lines of a given list. UserError: an utterance of it is not in `data`."""
    trials_over(given, data.utts)
    return given.read_text(encoding="utf-8").splitlines()


def num_targets(data: DataDir) -> int:
    """How many pairs of two utterances of one speaker there are."""
    return sum(n * (n - 1) // 2 for n in map(data.spk.count, set(data.spk)))


def add_trial_options(p: argparse.ArgumentParser) -> None:
    for name in ("dev", "test"):
        p.add_argument(
            f"--{name}-trials", type=Path, help="given list; without it trials are made, see the source"
        )
    p.add_argument("--seed", type=natural, default=0, help="of trials that are made")
