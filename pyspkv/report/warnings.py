"""Signs of trouble in a training, a clustering or an experiment, with likely cause and what to change.

`at_start` checks a training that is about to begin, `of_labels` a clustering, `collect` a whole experiment.
The checks are rules of thumb with the thresholds below. They prove nothing, and no model is chosen by them.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pyspkv.base.errors import printable
from pyspkv.data.plan import LEAST_CLUSTERS, PER_CLUSTER

FEW_STEPS = (
    40  # after 28 steps of contrastive pre-training real speech was at chance, after 48 synthetic speech not
)
FEW_UTTS = (
    100  # 280 words of 1 s from 28 speakers were enough to learn from, 8 sentences were learned by heart
)
NEAR_CHANCE = 0.9  # share of the loss that guessing gives
LOW_ACCURACY = 0.2  # accuracy on the training labels at the end of training
COLLAPSED = 0.1  # spread, 1 - |mean|^2 of unit embeddings; a sound encoder has 0.9 or more
GIANT = 0.25  # share of all utterances in one cluster
PURE = 0.8  # share of utterances that have their cluster's most frequent value
KEPT = 0.05  # share of the utterances that a gate lets through
LOOKED_AT = 500  # utterances whose durations are read, spread evenly over the list
MOST_FOR_AMI = 50_000  # utterances that AMI is computed on, spread evenly over the list


@dataclass(frozen=True)
class Sign:
    """One sign of trouble.

    kind: a fixed word for programs. where: the phase. what, cause, change: text for people.
    """

    kind: str
    where: str
    what: str
    cause: str
    change: str

    def __str__(self) -> str:
        return printable(
            f"warning: {self.where}: {self.what}. Likely cause: {self.cause}. Change: {self.change}"
        )

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


# -- before and during a training


def seconds_of(data, allow_pipes: bool = False, most: int = LOOKED_AT) -> list[float]:
    """Durations in seconds of at most `most` utterances of a DataDir, spread evenly over the list.

    They come from tables or audio headers. Utterances of unknown length are left out, as are commands without
    `allow_pipes`.
    """
    from pyspkv.audio.reader import AudioReader
    from pyspkv.base.errors import UserError

    reader, out = AudioReader(data, allow_pipes), []
    for row in evenly(len(data.utts), most):
        try:
            out.append(reader.num_samples(row) / 16000)
        except (UserError, OSError):
            continue
    return out


def evenly(n: int, most: int) -> list[int]:
    """At most `most` of the rows 0 .. n-1, evenly spaced."""
    return list(range(n)) if n <= most else [i * n // most for i in range(most)]


def longest_crop(objective: dict[str, Any]) -> float | None:
    """Seconds of the longest crop in an objective's config; None if it has no crops."""
    found = [v for k, v in objective.items() if k.endswith("_seconds") and isinstance(v, (int, float))]
    return max(found, default=None)


def of_crops(where: str, crop: float | None, seconds: Sequence[float]) -> list[Sign]:
    """Check for crops that are longer than most utterances.

    seconds: durations of the utterances, or of a sample of them.
    """
    short = sum(s < crop - 1e-3 for s in seconds) if crop else 0
    if not seconds or short <= len(seconds) / 2:
        return []
    median = sorted(seconds)[len(seconds) // 2]
    share = f"{100 * short / len(seconds):.0f} %"
    what = f"crops of {crop:g} s are longer than {share} of the utterances (median {median:.2f} s)"
    cause = (
        "short utterances are repeated, so both crops of an utterance are the same audio and teach nothing"
    )
    shorter = f"set crop_seconds to {max(0.1, median / 2):.2f} or less"
    return [Sign("long_crops", where, what, cause, f"{shorter}, or join the pieces of one recording")]


def of_steps(where: str, steps: int) -> list[Sign]:
    """Check for too few training steps. Fine-tuning is short on purpose and is not checked."""
    if steps >= FEW_STEPS or steps == 0 or where == "finetune":  # 0 steps: the user wants an untrained model
        return []
    what = f"{steps} training steps in all"
    cause = "epochs and batch_size suit a larger corpus; a network hardly changes in so few steps"
    change = "raise epochs or lower batch_size until there are 200 steps; `pyspkv plan DATA --conf conf --fit` does"
    return [Sign("few_steps", where, what, cause, change)]


def of_corpus(where: str, num_utts: int) -> list[Sign]:
    """Check for too few utterances to learn from. Zero means that their number is not known."""
    if not 0 < num_utts < FEW_UTTS:
        return []
    what = f"{num_utts} utterances in all"
    cause = "a network learns so few by heart; accuracy and clusters then say nothing about other speakers"
    change = f"collect {FEW_UTTS} utterances or more of 10 speakers or more, or cut long recordings into utterances"
    return [Sign("few_utterances", where, what, cause, change)]


def of_encoder(where: str, encoder: Any) -> list[Sign]:
    """Check for settings of a trunk (the encoder's config) that have no effect, as all of it is frozen."""
    if getattr(encoder, "freeze", None) != "trunk":
        return []
    idle = {"l2_sp_weight": encoder.l2_sp_weight}
    if not (getattr(encoder, "lora_rank", 0) or getattr(encoder, "adapter_dim", 0)):
        idle["frozen_epochs"] = getattr(encoder, "frozen_epochs", 0)
    found = {key: value for key, value in idle.items() if value}
    if not found:
        return []
    what = " and ".join(f"encoder.{key}={value:g}" for key, value in found.items()) + " without effect"
    change = f"set {' and '.join(f'encoder.{key}: 0' for key in found)}, or another encoder.freeze"
    return [
        Sign("idle_setting", where, what, "encoder.freeze: trunk leaves nothing that it could act on", change)
    ]


def at_start(trainer) -> list[Sign]:
    """Check a Trainer that has been built: its encoder, its number of steps, and its crops against the durations.

    A training without `--init`, the first of a recipe, is checked for too few utterances, too.
    """
    where, config = trainer.exp.parent.name or str(trainer.exp), trainer.config
    data = trainer.corpus.parts[-1]
    signs = of_corpus(where, sum(len(part.utts) for part in trainer.corpus.parts)) if not trainer.init else []
    signs += of_encoder(where, config.encoder)
    signs += of_steps(where, trainer.sampler.steps * config.epochs)
    crop = longest_crop({f"{name}_seconds": view.seconds for name, view in trainer.views.items()})
    return signs + of_crops(where, crop, seconds_of(data, config.allow_pipes))


def chance(config: dict[str, Any]) -> tuple[str, float] | None:
    """(name of a logged loss, its value for a network that only guesses) of a config; None if unknown.

    NT-Xent has 2N - 1 candidates for N utterances (Chen et al. 2020, eq. 1) and the angular prototypical loss
    N. DINO's cross-entropy is that of a uniform distribution over its prototypes. The loss of AAM-softmax
    contains a margin and tells little, so there accuracy is checked instead.
    """
    objective, batch = config.get("objective") or {}, config.get("batch_size")
    if objective.get("name") == "contrastive" and isinstance(batch, int) and batch > 1:
        paired = objective.get("loss", "nt_xent") == "nt_xent"
        return objective.get("loss", "nt_xent"), math.log(2 * batch - 1 if paired else batch)
    if objective.get("name") == "dino" and isinstance(objective.get("num_prototypes"), int):
        return "dino", math.log(objective["num_prototypes"])
    return None


def _longer(config: Mapping[str, Any]) -> str:
    """How to pre-train for twice as long."""
    epochs = config.get("epochs")
    twice = (
        f"epochs={2 * epochs}" if isinstance(epochs, int) else "epochs=N, N twice that of conf/pretrain.yaml"
    )
    return f"pre-train longer (--pretrain-opts {twice})"


def of_training(where: str, records: Sequence[dict[str, Any]], config: dict[str, Any]) -> list[Sign]:
    """Check the end-of-epoch records (train.jsonl) of a training with this resolved config."""
    if not records:
        return []
    last = records[-1]
    signs = of_steps(where, int(last.get("step", FEW_STEPS)))
    guess = chance(config)
    if guess and last.get(guess[0], 0) > NEAR_CHANCE * guess[1]:
        what = f"{guess[0]} ends at {last[guess[0]]:.2f}, and guessing gives {guess[1]:.2f}"
        cause = "too few steps, a learning rate that does not suit, or audio without speech"
        change = f"{_longer(config)}, try half of optim.lr, and listen to the audio"
        signs.append(Sign("chance_loss", where, what, cause, change))
    if (config.get("objective") or {}).get("name") == "aam" and 0 <= last.get("accuracy", 1) < LOW_ACCURACY:
        what = f"accuracy on the training labels ends at {100 * last['accuracy']:.0f} %"
        cause = "too few steps, or labels that are not speakers"
        change = "raise epochs of this stage; where that does not help, pre-train longer"
        signs.append(Sign("low_accuracy", where, what, cause, change))
    if last.get("spread", 1) < COLLAPSED:
        what = f"embeddings nearly all point one way (spread {last['spread']:.2f}, a sound model has 0.9 or more)"
        cause = "a collapsed encoder: the learning rate is too high, or most audio is the same or silent"
        change = "halve optim.lr, and look for silent and double files with `pyspkv datadir summary`"
        signs.append(Sign("collapsed", where, what, cause, change))
    if "kept" in last and last["kept"] < KEPT:
        what = f"the gate kept {100 * last['kept']:.1f} % of the utterances in the last epoch"
        cause = "the model does not agree with its labels, or the threshold is too strict"
        change = "loosen the gate (objective.gate), start it later, or go on from a model that has been trained longer"
        signs.append(Sign("gate_refuses", where, what, cause, change))
    return signs


# -- labels


def of_labels(where: str, labels: Sequence[str], known: Mapping[str, Sequence[str]]) -> list[Sign]:
    """Check clusters [N]. known: other properties of the utterances, name -> [N], from `known_of`."""
    sizes = Counter(labels)
    k, n = len(sizes), len(labels)
    if k <= 2:
        shown = " / ".join(str(c) for c in sorted(sizes.values()))
        what = f"{k} cluster{'s' * (k > 1)} (of {shown} utterances)"
        cause = "`auto` stopped at the coarsest split, such as men and women or channels, or training was too short"
        change = (
            f"give --num-clusters {max(LEAST_CLUSTERS, n // PER_CLUSTER)} (a twentieth of the utterances; too many are "
            "better than too few), or the number of speakers if you know it, and run from stage 4 with a new --exp and "
            f"--reuse of this one; where that does not help, {_longer({})}"
        )
        return [Sign("two_clusters", where, what, cause, change)]
    signs = []
    name, most = max(sizes.items(), key=lambda item: item[1])
    if most / n > max(GIANT, 3 / k):
        what = f"cluster {name} holds {100 * most / n:.0f} % of the utterances ({most} of {n})"
        cause = "too little training, or much of the audio is alike (silence, music)"
        change = "listen to some of it, remove what is not speech, pre-train longer, or raise --num-clusters"
        signs.append(Sign("giant_cluster", where, what, cause, change))
    return signs + _confused(where, labels, known)


def known_of(data) -> dict[str, list[str]]:
    """Properties of utterances that a DataDir knows besides speakers: sessions, words, parts of the ids."""
    out = {}
    for file, name in (("utt2session", "sessions (utt2session)"), ("text", "words (text)")):
        table = data.utt_tables.get(file)
        if table and all(u in table for u in data.utts):
            out[name] = [table[u] for u in data.utts]
    return out | fields(data.utts)


def fields(utts: Sequence[str]) -> dict[str, list[str]]:
    """Split ids at `-` and `_`: name -> values [N] of each part; {} unless all ids have equally many parts.

    Parts that are constant, or differ for more than half of the utterances, are left out.
    """
    parts = [u.replace("_", "-").split("-") for u in utts]
    if not parts or len({len(p) for p in parts}) != 1 or not 1 < len(parts[0]) < 10:
        return {}
    columns = {f"part {i} of the ids": list(c) for i, c in enumerate(zip(*parts), 1)}
    return {name: c for name, c in columns.items() if 1 < len(set(c)) <= len(c) / 2}


def _confused(where: str, labels: Sequence[str], known: Mapping[str, Sequence[str]]) -> list[Sign]:
    """Check for clusters that are sessions or words instead of speakers.

    If speakers came to several sessions or said several words, a cluster of one speaker mixes them. So a
    table (sessions, words) is a sign of trouble if each cluster has one value of it. A part of the ids may be
    the speaker, in Kaldi's style the first part. So parts are a sign only if clusters determine two parts
    that differ, or one that is not the first.
    """
    rows = evenly(len(labels), MOST_FOR_AMI)
    labels = [labels[i] for i in rows]
    pure = {name: values for name, all_values in known.items()
            if told(labels, values := [all_values[i] for i in rows])}  # fmt: skip
    parts = [name for name in pure if name.startswith("part ")]
    others = [name for name in pure if not name.startswith("part ")]
    first = [name for name in parts if name.startswith("part 1 ")]
    two = len(parts) > 1 and not _same(pure[parts[0]], pure[parts[1]])
    if not others and parts and (two or not first):
        others = parts
    if not others:
        return []
    from pyspkv.clustering.quality import adjusted_mutual_info

    def shown(name: str) -> str:
        some = ", ".join(sorted(set(pure[name]))[:3])
        return f"{name} (as {some}; AMI {adjusted_mutual_info(labels, pure[name]):.2f})"

    what = f"each cluster has only one value of {' and of '.join(map(shown, others[:2]))}"
    cause = (
        "if these are sessions or words, the embeddings represent the room or the words, not only the speaker"
    )
    change = 'more augmentation (noise, rooms), or --cluster-opts "--whiten 0.75"'
    return [
        Sign(
            "not_speakers",
            where,
            what,
            cause,
            f"{change}; nothing, if these are the speakers, or each speaker has only one",
        )
    ]


def told(labels: Sequence[str], values: Sequence[str]) -> bool:
    """Whether clusters have one value each, beyond what the number of clusters explains.

    Shuffled values must have a clearly lower purity.
    """
    import numpy as np

    if len(set(values)) < 2 or purity(labels, values) < PURE:
        return False
    order = np.random.default_rng(0).permutation(len(values))
    return purity(labels, [values[i] for i in order]) < (1 + PURE) / 3


def purity(labels: Sequence[str], values: Sequence[str]) -> float:
    """Share of utterances that have the most frequent value of their cluster."""
    best: dict[str, int] = {}
    for (label, _), count in Counter(zip(labels, values)).items():
        best[label] = max(best.get(label, 0), count)
    return sum(best.values()) / max(1, len(labels))


def _same(a: Sequence[str], b: Sequence[str]) -> bool:
    """Whether each of the two determines the other."""
    return len(set(zip(a, b))) == len(set(a)) == len(set(b))


# -- a whole experiment


def of_dev(eers: dict[str, float]) -> list[Sign]:
    """Check whether the last phase is worse than the first.

    eers: phase -> dev EER in percent, in the order of the pipeline.
    """
    if len(eers) < 2:
        return []
    (first, before), (last, after) = list(eers.items())[0], list(eers.items())[-1]
    if after <= before:
        return []
    what = f"its dev EER is {after:.2f} %, and that of {first}, the first model, {before:.2f} %"
    cause = "it was trained on labels that are not speakers, or for too few steps"
    change = f"solve the problems that are listed for earlier phases; use {first} until then"
    return [Sign("worse_than_first", last, what, cause, change)]


@dataclass(frozen=True)
class Phase:
    """The results of a phase: its folder, its end-of-epoch records, its dev EER in percent."""

    name: str
    folder: Path
    epochs: Sequence[dict[str, Any]]
    dev_eer: float | None


def collect(phases: Sequence[Phase]) -> list[Sign]:
    """All signs of trouble of the phases, which are given in pipeline order."""
    from pyspkv.base import config as cfg
    from pyspkv.data.datadir import DataDir

    out: dict[str, list[Sign]] = {phase.name: [] for phase in phases}
    configs, seconds, num_utts = {}, None, 0
    for phase in phases:
        file = phase.folder / "model/config.yaml"
        config = cfg.read(file) if file.is_file() else {}
        configs[phase.name] = config if isinstance(config.get("objective"), dict) else {}
        if all((phase.folder / "data" / table).is_file() for table in ("utt2spk", "spk2utt")):
            data = DataDir.read(phase.folder / "data", need_wav=False)
            out[phase.name] += of_labels(phase.name, data.spk, known_of(data))
            num_utts = num_utts or len(data.utts)
            if seconds is None and (known := data.utt_tables.get("utt2dur")):
                seconds = [float(s) for s in known.values()]
        out[phase.name] += of_training(phase.name, phase.epochs, configs[phase.name])
    for name, config in configs.items():
        out[name] += of_crops(name, longest_crop(config.get("objective") or {}), seconds or ())
    if phases:
        out[phases[0].name] = of_corpus(phases[0].name, num_utts) + out[phases[0].name]
    eers = {p.name: p.dev_eer for p in phases if p.dev_eer is not None and p.name != "supervised"}
    return [sign for signs in out.values() for sign in signs] + of_dev(eers)


def markdown(signs: Sequence[Sign], text=str) -> list[str]:
    """Lines of report.md. text: function that escapes a name for Markdown."""
    lines = ["", "## Signs of trouble", ""]
    if not signs:
        return [
            *lines,
            "None found. Checked were utterances, steps, loss, spread, crops, clusters, gates and dev EER.",
        ]
    lines += ["| phase | sign | likely cause | what to change |", "|---|---|---|---|"]
    return lines + [f"| {' | '.join(map(text, (s.where, s.what, s.cause, s.change)))} |" for s in signs]
