"""Suggests settings of a recipe for a corpus, from the number of its utterances and their durations only.

The shipped configs were made for egs/mini: 1600 utterances of about 3 s. `suggest` adapts them to another
corpus:

- *batch*: an eighth of the utterances, rounded down to a power of two, at least 8 and at most the config's
  value. So an epoch has at least 8 steps, and a contrastive batch is not most of the corpus.
- *epochs*: enough for as many steps as the config makes with 1600 utterances, at least the config's value; in
  pre-training at least 200 steps. (After 28 steps on real speech, EER was at chance and `auto` found only the
  sexes.)
- *crops*: in pre-training at most half of the median duration, so that two crops of an utterance need not
  overlap; in the rounds at most the 25th percentile, in fine-tuning the median. Never longer than the
  config's, nor below 0.25 s.
- *clusters*: `auto` from 500 utterances on; below that a twentieth of the utterances, at least 3.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

TUNED_ON = 1600  # utterances of egs/mini
LEAST_PRETRAIN_STEPS = 200
LEAST_BATCH, BATCH_SHARE = 8, 8
LEAST_CROP = 0.25  # s; an encoder needs at least 0.075 s
AUTO_FROM, PER_CLUSTER, LEAST_CLUSTERS = 500, 20, 3


@dataclass(frozen=True)
class Settings:
    """Settings of one training: batch_size in utterances, crop_seconds of the longest crop."""

    batch_size: int
    epochs: int
    crop_seconds: float


def percentile(seconds: Sequence[float], p: float) -> float:
    """The value that a share `p` (0 to 1) of the durations does not exceed."""
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(p * len(ordered)))]


def clusters(num_utts: int) -> str:
    """The suggested value of --num-clusters."""
    return "auto" if num_utts >= AUTO_FROM else str(max(LEAST_CLUSTERS, num_utts // PER_CLUSTER))


def suggest(num_utts: int, durations: Sequence[float], stage: str, like: Settings) -> Settings:
    """Suggest the settings of one training by the rules of this module.

    Args:
        num_utts: number of utterances in the training directory.
        durations: in seconds, of all utterances or of a sample.
        stage: name of the config: "pretrain", "finetune"; any other name is a round.
        like: the settings in the config.
    """
    batch = min(like.batch_size, max(LEAST_BATCH, 2 ** int(math.log2(max(1, num_utts // BATCH_SHARE)))))
    batch = max(1, min(batch, num_utts))
    wanted = like.epochs * (TUNED_ON // like.batch_size)
    if stage == "pretrain":
        wanted = max(wanted, LEAST_PRETRAIN_STEPS)
    epochs = like.epochs and max(like.epochs, math.ceil(wanted / (num_utts // batch)))
    limits = {"pretrain": percentile(durations, 0.5) / 2, "finetune": percentile(durations, 0.5)}
    limit = max(LEAST_CROP, limits.get(stage, percentile(durations, 0.25)))
    return Settings(batch, epochs, min(like.crop_seconds, math.floor(limit * 20 + 1e-9) / 20))


def fitted(text: str, stage: str, num_utts: int, durations: Sequence[float]) -> str:
    """The text of a YAML config with the suggested numbers; everything else stays, comments too.

    A config that lacks epochs or batch_size, or has a sampler of its own (which decides on its batches),
    keeps both values. All crop lengths of a config shrink by the same factor: DINO's local ones with its
    global ones.
    """
    epochs, batch = (re.search(rf"(?m)^{key}: *(\d+)", text) for key in ("epochs", "batch_size"))
    own = epochs is None or batch is None or re.search(r"(?m)^sampler:", text)
    crops = [float(x) for x in re.findall(r"\b\w+_seconds: *([\d.]+)", text)]
    longest = max(crops, default=math.inf)
    own_sizes = (64, 1) if epochs is None or batch is None or own else (int(batch[1]), int(epochs[1]))
    like = Settings(*own_sizes, longest)
    found = suggest(num_utts, durations, stage, like)
    if not own:
        text = re.sub(r"(?m)^epochs: *\d+", f"epochs: {found.epochs}", text)
        text = re.sub(r"(?m)^batch_size: *\d+", f"batch_size: {found.batch_size}", text)
    if crops and found.crop_seconds < like.crop_seconds:
        share = found.crop_seconds / like.crop_seconds
        text = re.sub(
            r"\b(\w+_seconds: *)([\d.]+)",
            lambda m: f"{m[1]}{max(LEAST_CROP / 2, round(float(m[2]) * share, 3)):g}",
            text,
        )
    return text
