"""A trained model in Python: load it, embed audio, verify.

Embeddings equal those of bin.extract, bit for bit.
"""

import os
import re
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np

from pyspkv.base import foreign
from pyspkv.base.errors import UserError

if TYPE_CHECKING:
    import torch

    from pyspkv.models.encoder import Encoder
    from pyspkv.score.calibration import Calibration

Audio = Union[str, "os.PathLike[str]", np.ndarray]
_ARRAY_RATES = (100, 10_000_000)  # Hz


@dataclass(frozen=True)
class Verification:
    """Result of `Model.verify`. llr, decision and threshold are None without a calibration.json."""

    score: float  # cosine of the two embeddings, -1 to 1
    llr: float | None = None  # natural log-likelihood ratio of one speaker against two
    decision: bool | None = None  # True: the same speaker (score >= threshold)
    threshold: float | None = None


class Model:
    """An encoder in evaluation mode, and its calibration if it has one. Made by `pyspkv.load`.

    Attributes:
        encoder: the torch module, wave float32 [B, T] at 16 kHz and lengths int64 [B] -> [B, D].
        folder: the model folder. calibration: the result of bin.calibrate, or None.
    """

    def __init__(
        self,
        encoder: "Encoder",
        folder: Path,
        device: "torch.device",
        calibration: "Calibration | None",
    ):
        self.encoder, self.folder, self.device, self.calibration = encoder, folder, device, calibration

    def __repr__(self) -> str:
        kind, known = type(self.encoder).__name__, "calibrated" if self.calibration else "not calibrated"
        return f"pyspkv.Model({kind} of {self.folder}, {self.device}, {known})"

    def embed(self, audio: Audio | Sequence[Audio], sample_rate: int | None = None) -> np.ndarray:
        """Embeddings of recordings, not length-normalized: float32 [D] for one, [N, D] for a list.

        Args:
            audio: path of an audio file, or mono samples [T] (floats within -1 and 1, or int16); or a list of
                these.
            sample_rate: of the samples, in Hz; required for arrays, not used for files.

        Audio is resampled to 16 kHz, and the channels of a file are averaged. A list gives the digits that
        bin.extract gives for a data directory with the same recordings in the same order. A recording without
        a signal is embedded too, with a warning. Raises UserError when audio cannot be read or an array is
        not valid audio.
        """
        items: list[Any] = list(audio) if isinstance(audio, (list, tuple)) else [audio]
        x, silent = self.embed_all(items, sample_rate)
        if silent:
            warnings.warn(silent, stacklevel=2)
        return x if isinstance(audio, (list, tuple)) else x[0]

    def verify(self, a: Audio, b: Audio, sample_rate: int | None = None) -> Verification:
        """Decide whether two recordings are by the same speaker; `a`, `b` and `sample_rate` as in `embed`.

        Raises UserError as `embed`, and for a recording without a signal, whose embedding would be
        meaningless.
        """
        from pyspkv.data.ark import normalize

        x = normalize(self.embed_speech([a, b], sample_rate))
        return judge(float(x[0] @ x[1]), self.calibration)

    def embed_speech(self, items: Sequence[Audio], sample_rate: int | None = None) -> np.ndarray:
        """Like `embed_all`, float32 [N, D], but UserError for a recording without a signal."""
        x, silent = self.embed_all(items, sample_rate)
        if silent:
            raise UserError(silent, hint="give recordings of speech")
        return x

    def embed_all(self, items: Sequence[Audio], sample_rate: int | None = None) -> tuple[np.ndarray, str]:
        """(embeddings float32 [N, D] as by `embed`, a line on recordings without a signal or "")."""
        from pyspkv.data.datadir import DataDir
        from pyspkv.score.extract import Batches, embed_batches

        with tempfile.TemporaryDirectory(prefix="pyspkv-") as folder:
            wav: dict[str, str] = {}
            paths: list[str] = []
            for i, item in enumerate(items):
                name, path = _entry(item, i, sample_rate, Path(folder))
                while wav.setdefault(name, path) != path:  # a file has the same name as an array
                    name += "'"
                paths.append(name)
            if not paths:
                raise UserError("no audio was given", hint="give a path, an array, or a list of them")
            data = DataDir(None, paths, paths, wav)  # type: ignore[arg-type] # there is no folder behind it
            batches = Batches(data, self.device, self.encoder.min_samples)
            x = None
            for row, (vector,) in embed_batches([self.encoder], batches, batches.plans, self.device, "fp32"):
                if x is None:
                    x = np.empty((len(paths), len(vector)), np.float32)
                x[row] = vector
        assert x is not None  # because the list is not empty
        return x, batches.reader.silence_note(most=len(paths))


def judge(score: float, calibration: "Calibration | None") -> Verification:
    """Apply the calibration, if any, to a cosine score."""
    if calibration is None:
        return Verification(score)
    threshold = calibration.threshold
    return Verification(score, float(calibration.llr(np.asarray(score))), score >= threshold, threshold)


def _entry(item: Audio, i: int, sample_rate: int | None, folder: Path) -> tuple[str, str]:
    """(name for messages, file) of a recording; an array is written unchanged to a WAV file in `folder`."""
    if isinstance(item, (str, os.PathLike)):
        path = os.fspath(item)
        if not isinstance(path, str) or not path.strip():
            raise UserError(f"recording {i}: {path!r} is not a path")
        # A caller's path is never run as a `command |`, and the reader must open exactly this name.
        file = os.path.abspath(path)
        if file != file.strip() or file.endswith("|"):
            raise UserError("a file name must not end in a blank or |", file=file, hint="rename it")
        return path, file
    if not isinstance(item, np.ndarray):
        kind = type(item).__name__
        raise UserError(f"recording {i} is a {kind}", hint="give a path or a numpy array of samples [T]")
    name, made = f"array {i}", folder / f"{i}.wav"
    _write_wav(name, item, sample_rate, made)
    return name, str(made)


def _write_wav(name: str, x: np.ndarray, sample_rate: int | None, file: Path) -> None:
    """Write samples to a WAV file. UserError when they are not mono samples, or the rate is missing."""
    if sample_rate is None:
        raise UserError(
            f"{name}: samples need a sample rate", hint="give sample_rate, for example sample_rate=16000"
        )
    if isinstance(sample_rate, bool) or int(sample_rate) != sample_rate:
        raise UserError(f"sample_rate {sample_rate!r} is not a whole number of Hz")
    if not _ARRAY_RATES[0] <= sample_rate <= _ARRAY_RATES[1]:
        raise UserError(
            f"sample_rate {sample_rate} is not between {_ARRAY_RATES[0]} and {_ARRAY_RATES[1]} Hz"
        )
    if x.ndim != 1:
        hint = "average channels with x.mean(axis); give several recordings as a list"
        raise UserError(f"{name} has shape {x.shape}, not [T]", hint=hint)
    if not len(x):
        raise UserError(f"{name} contains no samples")
    if x.dtype != np.int16 and x.dtype not in (np.float16, np.float32, np.float64):
        hint = "give floats between -1 and 1, or int16"
        raise UserError(f"{name} has the type {x.dtype}, whose scale is unknown", hint=hint)
    if x.dtype != np.int16 and not np.isfinite(x).all():
        raise UserError(f"{name} contains NaN or infinity")
    import soundfile

    integers = x.dtype == np.int16
    samples = x if integers else x.astype(np.float32)
    soundfile.write(file, samples, int(sample_rate), subtype="PCM_16" if integers else "FLOAT")


def load(model: str | os.PathLike, device: "str | torch.device | None" = None) -> Model:
    """Load a trained model, ready to embed and verify.

    Args:
        model: a model folder from bin.train (also `FOLDER@best`), export or import; a phase, which means its
            model; or an experiment, which means the model of its last phase (fine-tuning, else the last
            round).
        device: "cpu", "cuda", ...; by default the first GPU, or the CPU if there is none, as in bin.extract.

    Raises UserError when there is no such model (the message lists candidates), the checkpoint is damaged, or
    there is no such device.
    """
    name = find_model(model)
    import torch

    from pyspkv.base.checkpoint import resolve_model
    from pyspkv.base.device import device as default_device
    from pyspkv.models.load import load_encoder

    try:
        where = default_device() if device is None else torch.device(device)
        encoder = load_encoder(name).to(where)
    # Torch's errors about the device; checkpoints raise UserError
    except (RuntimeError, AssertionError) as err:
        if device is None:
            raise
        raise UserError(f"device {device}: {str(err).splitlines()[0]}", hint='use device="cpu"') from None
    return Model(encoder, Path(name), where, read_calibration(resolve_model(name).parent))


def read_calibration(folder: Path) -> "Calibration | None":
    """The calibration in a model folder, or None."""
    from pyspkv.score.calibration import Calibration

    file = folder / "calibration.json"
    return Calibration.read(file) if file.exists() else None


def find_model(path: str | os.PathLike) -> str:
    """The model folder of an experiment, phase or model folder; a suffix @best or @last is kept.

    Raises UserError when there is none, when one is still being trained, or when it is not clear which of
    several is the last; the message lists candidates.
    """
    name = os.fspath(path)
    base, suffix = name, ""
    if not os.path.isdir(name) and (cut := re.fullmatch(r"(.+)(@best|@last)", name, re.DOTALL)):
        base, suffix = cut[1], cut[2]
    folder = Path(base)
    if is_model(folder) or (folder / "state.json").is_file():
        return name
    if is_model(folder / "model"):
        return f"{folder / 'model'}{suffix}"
    if folder.is_file():
        raise UserError("is a file, not a folder", file=folder, hint=_meant(_models_near(folder.parent)))
    if not folder.is_dir():
        raise UserError("no such model folder", file=folder, hint=_meant(_models_near(folder)))
    models = sorted(m for m in folder.glob("*/model") if is_model(m))
    if not models:
        raise UserError(
            "contains no model", file=folder, hint=_meant(_models_near(folder) or sorted(_below(folder)))
        )
    return f"{_last_of(folder, models)}{suffix}"


def _last_of(exp: Path, models: list[Path]) -> Path:
    """The model of an experiment's last phase; the report uses the same rule."""
    from pyspkv.score.side_by_side import LAST

    open_ = [m for m in models if not foreign.is_finished(m)]
    if open_:
        rule = f"{open_[0].parent.name} is still being trained, so the experiment has no last model"
        raise UserError(rule, file=exp, hint=_meant(models))
    if len(models) == 1:
        return models[0]
    of = {m.parent.name: m for m in models}
    rounds = {int(name[5:]): m for name, m in of.items() if re.fullmatch(r"round\d{1,6}", name)}
    last = next((of[name] for name in LAST if name in of), rounds[max(rounds)] if rounds else None)
    if last is None:
        raise UserError(
            "has several models, and it is not clear which one is the last", file=exp, hint=_meant(models)
        )
    return last


def is_model(folder: Path) -> bool:
    """True for a model folder, complete or not."""
    return (folder / "LATEST").is_file()


def _below(folder: Path) -> set[Path]:
    """Model folders at most three levels down."""
    found = set()
    for pattern in ("LATEST", "*/LATEST", "*/*/LATEST", "*/*/*/LATEST"):
        found |= {file.parent for file in folder.glob(pattern) if file.is_file()}
    return found


def _models_near(folder: Path) -> list[Path]:
    """Models below `folder` or, if there are none, below the folders at most two levels above it."""
    there = folder if folder.is_dir() else folder.parent
    for place in [there, *Path(os.path.abspath(there)).parents[:2]]:
        if place.is_dir() and place != Path(place.anchor) and (found := _below(place)):
            return sorted(found)
    return []


def _meant(models: list[Path], most: int = 8) -> str:
    if not models:
        return "give the --exp folder of a bin.train run, or train one with a recipe's run.sh"
    shown = ", ".join(str(m) for m in models[:most]) + (", ..." if len(models) > most else "")
    return f"perhaps one of these was meant: {shown}"
