"""The dev list: trials of speakers who are not in the training data, scored after every epoch."""

from pathlib import Path

import torch

from pyspkv.base.errors import UserError
from pyspkv.data.datadir import DataDir
from pyspkv.data.trials import trials_over
from pyspkv.score.extract import embed


def check_apart(dev: DataDir, data: DataDir, unlabeled: DataDir | None = None) -> None:
    """Raise UserError if the dev list shares speakers with the training data, or utterances with its unlabeled part."""
    unlabeled_utts = set(unlabeled.utts) if unlabeled else set()
    for what, where, shared in (
        ("speakers", "training", set(dev.spk) & set(data.spk)),
        ("utterances", "--unlabeled", set(dev.utts) & unlabeled_utts),
    ):
        if shared:
            raise UserError(
                f"dev and {where} share {len(shared)} {what} ({min(shared)}, ...)",
                file=dev.path,
                hint="choose other dev speakers",
            )


class DevList:
    """A data directory, and trials over its utterances."""

    def __init__(self, data: DataDir, trials: Path):
        self.data, self.trials = data, trials_over(trials, data.utts)

    def eer(self, encoder: torch.nn.Module, device: torch.device, precision: str, allow_pipes: bool) -> float:
        """The EER of the trials in percent, by cosine scores of `encoder`'s embeddings."""
        from pyspkv.score.metrics import eer
        from pyspkv.score.scoring import score_trials

        embeddings = embed(encoder, self.data, device, precision, allow_pipes=allow_pipes)
        return float(eer(*score_trials(embeddings, self.trials)))
