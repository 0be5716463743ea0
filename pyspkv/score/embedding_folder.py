"""Folders of embeddings, for several models and data directories. Only what is out of date is embedded.

    OUT/embedding.ark, .scp               the embeddings OUT/made_by                           JSON, written
    last: digests of weights and audio, the options, and `silent`, the utterances without a signal and why
    OUT/part.K-of-N.ark, .scp, .made_by   a part, until all parts are merged

Batches are always formed from the whole data directory, and a part is a range of these batches. So the files
are the same, byte for byte, for any number of parts. torch is imported only if something must be embedded.
"""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from pyspkv.audio import silence
from pyspkv.base import foreign
from pyspkv.base.atomic import atomic_file
from pyspkv.base.errors import UserError
from pyspkv.data.ark import EmbeddingWriter, hold, refuse_links
from pyspkv.data.datadir import DataDir

_PART = re.compile(r"\.?part\.(\d+-of-\d+)\..+")  # files of a part, also temporary ones of a killed run


@dataclass(frozen=True)
class Options:
    """How to embed.

    crops: number of crops of `crop_seconds` each, 0 for whole utterances. part: (K, N), or None for
    everything.
    """

    precision: str = "fp32"
    crops: int = 0
    crop_seconds: float = 4.0
    allow_pipes: bool = False
    part: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """Name of the files that are written, without their endings."""
        return "embedding" if self.part is None else _part_name(*self.part)


@dataclass(frozen=True)
class Pair:
    """The embeddings of one data directory by one model.

    checkpoint: folder of the weights; out: folder of the embeddings; identity: everything that the embeddings
    depend on.
    """

    checkpoint: Path
    data: DataDir
    out: Path
    identity: dict


def pairs(models: Sequence[str], data_dirs: Sequence[str], out: str | None, options: Options) -> list[Pair]:
    """Combine every model with every data directory; the outer loop is over data directories.

    Without `out`, the folder of a pair is `embed/<name of the data directory>` beside the model folder, with
    `-crops` appended if crops are embedded. UserError: two pairs share a folder; a model or data directory
    cannot be read.
    """
    checkpoints = [_checkpoint(model) for model in models]
    outs = [[_out(c, data, out, options) for c in checkpoints] for data in data_dirs]
    owner: dict[str, str] = {}
    for data, row in zip(data_dirs, outs):
        for model, folder in zip(models, row):
            place = os.path.realpath(folder)
            if place in owner:
                raise UserError(
                    f"would contain the embeddings of {owner[place]} and of {model} with {data}",
                    file=folder,
                    hint="extract them one by one, each with its own --out",
                )
            owner[place] = f"{model} with {data}"
    weights = {c: _digest(c / "model.safetensors") for c in dict.fromkeys(checkpoints)}
    found = []
    for path, row in zip(data_dirs, outs):
        texts = {name: _digest(Path(path) / name) for name in ("wav.scp", "segments")}
        read = DataDir.read(path)
        texts["audio"] = _audio_digest(read)
        for checkpoint, folder in zip(checkpoints, row):
            identity = {
                "model": weights[checkpoint],
                **texts,
                "precision": options.precision,
                "crops": [options.crops, options.crop_seconds] if options.crops else None,
                "out": os.path.realpath(folder),  # a copy's scp points into the original
            }
            found.append(Pair(checkpoint, read, folder, identity))
    return found


def _checkpoint(model: str) -> Path:
    """Like `checkpoint.resolve_model`, but in the usual case without importing torch."""
    exp, _, which = (model, "", "last") if os.path.isdir(model) else model.rpartition("@")
    pointer = Path(exp) / {"last": "LATEST", "best": "best"}.get(which, "LATEST")
    with suppress(OSError, ValueError):
        name = pointer.read_text().strip() if pointer.is_file() else ""
        if re.fullmatch(r"ckpt-\d+", name) and (Path(exp) / name / "state.json").is_file():
            return Path(exp) / name
    from pyspkv.base.checkpoint import resolve_model

    return resolve_model(model)


def _out(checkpoint: Path, data: str, out: str | None, options: Options) -> Path:
    """The folder for the embeddings of a model and a data directory; see `pairs`."""
    if out is not None:
        return Path(out)
    model = checkpoint.parent
    if model.name in ("", ".."):
        model = Path(os.path.realpath(model))
    name = Path(data).name
    if name in ("", ".."):
        name = os.path.basename(os.path.realpath(data))
    return model.parent / "embed" / (name + ("-crops" if options.crops else ""))


def _digest(file: Path) -> str | None:
    """SHA-256 of a file; None if it does not exist."""
    if not file.is_file():
        return None
    with open(file, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _audio_file(entry: str) -> str | None:
    """File of a wav.scp entry, `path` or `archive.ark:offset`; None for a `command |`."""
    entry = entry.strip()
    if entry.endswith("|"):
        return None
    return entry if os.path.exists(entry) else entry.rpartition(":")[0] or entry


def _audio_digest(data: DataDir) -> str:
    """SHA-256 over size and time of every audio file.

    It changes if a download is repaired under the same path.
    """
    digest, seen = hashlib.sha256(), {}
    for entry in data.wav.values():
        file = _audio_file(entry)
        if file not in seen:
            try:
                found = file and os.stat(file)
                seen[file] = f"{found.st_size} {found.st_mtime_ns}\n" if found else "command\n"
            except OSError:
                seen[file] = "missing\n"
        digest.update(seen[file].encode())
    return digest.hexdigest()


def _check_audio(data: DataDir, allow_pipes: bool) -> None:
    """UserError: an audio file is missing, or is a command that may not be run.

    This is checked before older embeddings are replaced.
    """
    from pyspkv.audio.reader import AudioReader

    reader = AudioReader(data, allow_pipes)
    for row, utt in enumerate(data.utts):
        file = _audio_file(data.wav[data.segments[utt][0] if data.segments else utt])
        if not allow_pipes if file is None else not os.path.exists(file):
            reader.read(row, 0, 1)  # raises the UserError that names the utterance and the line


def _part_name(k: int, n: int) -> str:
    return f"part.{k}-of-{n}"


def _lock_name(k: int, n: int) -> str:
    return f".lock.{k}-of-{n}"


def _record_file(out: Path, name: str) -> Path:
    return out / ("made_by" if name == "embedding" else f"{name}.made_by")


def _record(out: Path, name: str) -> dict:
    """Contents of made_by; {} if it is missing or was not written by this program."""
    return foreign.read_json_or_empty(_record_file(out, name), limit=silence.MAX_RECORD)


def _sizes(out: Path, name: str) -> list[int]:
    """Sizes in bytes of the ark and the scp; [] if one is missing."""
    try:
        return [os.stat(out / f"{name}.{end}").st_size for end in ("ark", "scp")]
    except OSError:
        return []


def _differs(out: Path, name: str, identity: dict) -> list[str]:
    """In which entries the files `name` differ from `identity`; [] if they are complete and up to date."""
    record = _record(out, name)
    wrong = [key for key, value in identity.items() if record.get(key, "") != value]
    return wrong or ["size"] * (record.get("bytes") != _sizes(out, name))


def _write_record(pair: Pair, name: str, batches: str | None, silent: dict[str, str]) -> None:
    record = {**pair.identity, "bytes": _sizes(pair.out, name), "silent": dict(sorted(silent.items()))}
    if batches is not None:
        record["batches"] = batches
    with atomic_file(_record_file(pair.out, name)) as f:
        f.write(json.dumps(record, indent=1) + "\n")


def _begin(pair: Pair, name: str) -> None:
    """Remove the record of the existing files before writing: a killed run must not look finished.

    Call under the lock.
    """
    file = _record_file(pair.out, name)
    refuse_links([file])
    file.unlink(missing_ok=True)
    for left in pair.out.glob(f".{file.name}.*"):  # temporary files of a killed run
        left.unlink(missing_ok=True)


def _up_to_date(pair: Pair, options: Options) -> bool:
    """Return whether there is nothing to do, and print a line if so."""
    names = dict.fromkeys(["embedding", options.name])
    done = next((name for name in names if not _differs(pair.out, name, pair.identity)), None)
    if done is not None:
        print(f"up to date: {pair.out}" + ("" if done == "embedding" else f"/{done}.scp"), flush=True)
    return done is not None


def extract(found: Sequence[Pair], options: Options) -> None:
    """Embed those pairs of `found` that are not up to date; with `options.part`, a share of the batches.

    Models that need the same pieces of audio share one pass over it; memory holds all models and one batch
    ahead. Prints what it does. UserError: another process writes there; audio cannot be read.
    """
    stale = [pair for pair in found if not _up_to_date(pair, options)]
    with ExitStack() as locks:
        for pair in stale:
            hold(locks, pair.out, _lock_name(*options.part) if options.part else ".lock")
        # Another process may have finished them between the first check and the lock.
        stale = [pair for pair in stale if not _up_to_date(pair, options)]
        if stale:
            _extract(stale, options)


def _extract(stale: list[Pair], options: Options) -> None:
    from pyspkv.audio.reader import SAMPLE_RATE
    from pyspkv.base.device import device as default_device
    from pyspkv.models.load import load_encoder

    device = default_device()
    encoders = {c: load_encoder(c).to(device) for c in dict.fromkeys(pair.checkpoint for pair in stale)}
    crops = (options.crops, round(options.crop_seconds * SAMPLE_RATE)) if options.crops else None
    passes: dict[tuple, list[Pair]] = {}
    for pair in stale:
        least = max(encoders[pair.checkpoint].min_samples, crops[1] if crops else 0)
        passes.setdefault((id(pair.data), least), []).append(pair)
    for (_, least), same in passes.items():
        _check_audio(same[0].data, options.allow_pipes)
        _embed(same, [encoders[pair.checkpoint] for pair in same], device, least, crops, options)


def _embed(same: list[Pair], encoders: list, device, least: int, crops, options: Options) -> None:
    """Make one pass over the audio of a data directory, for encoders that need at least `least` samples."""
    from pyspkv.score.extract import Batches, embed_batches

    data, name = same[0].data, options.name
    batches = Batches(data, device, least, options.allow_pipes, crops)
    plans, part = batches.plans, ""
    if options.part:
        plans, part = batches.share(*options.part), "part {} of {}: ".format(*options.part)
    models = f"{len(same)} model{'s' * (len(same) > 1)}"
    print(f"{data.path}: {part}{sum(map(len, plans))} utterances x {models}", flush=True)
    for pair in same:
        _begin(pair, name)
    with ExitStack() as stack:
        writers = [
            stack.enter_context(EmbeddingWriter(pair.out, name, lock=None, empty=bool(options.part)))
            for pair in same
        ]
        for row, vectors in embed_batches(encoders, batches, plans, device, options.precision):
            for write, vector in zip(writers, vectors):
                write(data.utts[row], vector)
    digest = hashlib.sha256(repr(batches.plans).encode()).hexdigest() if options.part else None
    silent = {data.utts[row]: reason for row, reason in batches.reader.silent.items()}
    silence.warn(dict(sorted(silent.items())), data.path)
    for pair in same:
        _write_record(pair, name, digest, silent)
        if not options.part:
            _remove_parts(pair.out)
        print(f"embeddings: {pair.out}/{name}.scp", flush=True)


def merge(found: Sequence[Pair], n: int) -> None:
    """Join the `n` parts of each pair of `found` that is not up to date, and remove the parts.

    UserError: a part is missing, is being made, or comes from another model, audio or options. Nothing is
    changed then.
    """
    for pair in found:
        if _up_to_date(pair, Options()):
            continue
        with ExitStack() as lock:
            hold(lock, pair.out)
            if not _up_to_date(pair, Options()):
                _check_parts(pair, n)
                _join(pair, n)
                _remove_parts(pair.out)
                print(f"embeddings: {pair.out}/embedding.scp", flush=True)


def _join(pair: Pair, n: int) -> None:
    with ExitStack() as locks:
        for k in range(1, n + 1):
            hold(locks, pair.out, _lock_name(k, n))
        _check_parts(pair, n)  # again, under the locks that keep other processes from changing them
        silent: dict[str, str] = {}
        for k in range(1, n + 1):
            silent |= silence.of_record(_record(pair.out, _part_name(k, n)))
        _begin(pair, "embedding")
        with EmbeddingWriter(pair.out, lock=None) as write:
            for k in range(1, n + 1):
                write.append(pair.out / f"{_part_name(k, n)}.scp")
            if set(write.place) != set(pair.data.utts):
                raise UserError(
                    f"its parts hold {len(write.place)} utterances, {pair.data.path} has {len(pair.data.utts)}",
                    file=pair.out,
                    hint=_anew(n),
                )
        _write_record(pair, "embedding", None, silent)
        silence.warn(dict(sorted(silent.items())), pair.data.path)


def _anew(n: int) -> str:
    return f"remove part.*-of-{n}.* there, then embed all {n} parts again on machines of one kind"


def _check_parts(pair: Pair, n: int) -> None:
    """UserError: parts are missing or do not belong to this pair.

    It names the first one and counts the others.
    """
    wrong, batches = [], set()
    for k in range(1, n + 1):
        name = _part_name(k, n)
        differs = _differs(pair.out, name, pair.identity)
        if not _record(pair.out, name) or not _sizes(pair.out, name):
            wrong.append((k, "is missing"))
        elif differs:
            wrong.append((k, f"was made with another {', '.join(differs)}"))
        batches.add(_record(pair.out, name).get("batches"))
    if wrong:
        k, why = wrong[0]
        others = (
            f" (and {len(wrong) - 1} others: {', '.join(str(k) for k, _ in wrong[1:9])})" if wrong[1:] else ""
        )
        raise UserError(
            f"part {k} of {n} {why}{others}",
            file=pair.out / f"{_part_name(k, n)}.scp",
            hint=f"run this command with --part {k}/{n} in place of --merge {n}",
        )
    if len(batches) > 1:
        raise UserError("its parts were cut differently", file=pair.out, hint=_anew(n))


def _remove_parts(out: Path) -> None:
    """Remove parts that no process is making now. Call under the lock of `out`."""
    parts: dict[str, list[Path]] = {}
    for file in out.iterdir():
        if (found := _PART.fullmatch(file.name)) and not file.is_dir():
            parts.setdefault(found[1], []).append(file)
    for which, files in parts.items():
        with suppress(UserError), ExitStack() as lock:
            hold(lock, out, f".lock.{which}")
            for file in files:
                file.unlink(missing_ok=True)
