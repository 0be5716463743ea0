"""Decide whether existing labels are kept: only if they were made from the same inputs with the same options.

A round's report.json records what its labels were made from: `asked` (options and digests of the data
directories) and `embeddings`. Digests depend on contents, not on paths, so an experiment may be moved. This
module imports nothing heavy.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pyspkv.audio.silence import MAX_RECORD
from pyspkv.base import foreign
from pyspkv.base.atomic import command_line, folder_lock
from pyspkv.base.errors import UserError
from pyspkv.data.datadir import check_replaceable, list_tables

_LENGTHS = (
    "utt2dur",
    "utt2num_samples",
    "utt2num_frames",
    "reco2dur",
)  # tables that follow from the audio and may be added later
# Entries of an extraction's made_by that do not identify its inputs: places, sizes, batches, findings.
_OF_THE_PLACE = ("out", "bytes", "batches", "silent")


def data_digest(folder: str | Path, speakers: bool = False) -> str:
    """SHA-256 of the tables that a relabeled copy takes over; with `speakers`, of the speakers too.

    UserError: there is no such data directory.
    """
    folder, digest = Path(folder), hashlib.sha256()
    for name, (keyed, _) in list_tables(folder).items():
        if keyed not in ("utt", "reco", "dialogue") or name in _LENGTHS:
            continue
        text = (folder / name).read_bytes()
        if name == "utt2spk" and not speakers:
            text = b"\n".join(line.split(b" ", 1)[0] for line in text.split(b"\n"))
        digest.update(f"{name} {len(text)}\n".encode() + text)
    return digest.hexdigest()


def labels_digest(folder: str | Path) -> str:
    """SHA-256 of a data directory's utt2spk.

    It equals `DataDir.label_hash` if this program wrote the directory.
    """
    list_tables(Path(folder))  # UserError if there is no such folder
    return hashlib.sha256((Path(folder) / "utt2spk").read_bytes()).hexdigest()


def embeddings_digest(scp: str | Path) -> dict[str, str | None]:
    """{"made_by": SHA-256 of the extraction's record or None, "content": `content_digest`}."""
    return {"made_by": _made_by(scp), "content": content_digest(scp)}


def content_digest(scp: str | Path, place: Callable[[str], str] = str) -> str:
    """SHA-256 of an embedding.scp without its paths, and of the arks that it points into.

    place: gives the file of an ark that the scp names. UserError: one is missing.
    """
    arks: dict[bytes, int] = {}
    digest = hashlib.sha256()
    for line in Path(scp).read_bytes().splitlines():
        fields = line.split(None, 1)  # a blank or a tab is between them
        if len(fields) < 2:
            continue  # `read_scp` refuses the line, and says where it is
        utt, entry = fields
        ark, colon, offset = entry.strip().rpartition(b":")
        if not colon:
            ark, offset = offset, b""
        digest.update(b"%s %d %s\n" % (utt, arks.setdefault(ark, len(arks)), offset))
    for ark in arks:
        name = place(ark.decode(errors="surrogateescape"))
        if not Path(name).is_file():
            raise UserError(
                f"points into {name}, which does not exist", file=scp, hint="extract the embeddings again"
            )
        with open(name, "rb") as f:
            digest.update(hashlib.file_digest(f, "sha256").digest())
    return digest.hexdigest()


def _made_by(scp: str | Path) -> str | None:
    found = foreign.read_json_or_empty(Path(scp).with_name("made_by"), limit=MAX_RECORD)
    record = {k: v for k, v in found.items() if k not in _OF_THE_PLACE}
    if not record:
        return None
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def is_kept(out: str | Path, report: str | Path, asked: dict, scps: Sequence[str]) -> bool:
    """Return whether labels exist in `out` and are kept, and print a line if so. False: there are none yet.

    Args:
        asked: name -> value. A name is an option (with _ for -), or "data", "previous", ... (values are
            digests).

    UserError: the labels were made with other options, or from other embeddings or another data directory.
    """
    out, report = Path(out), Path(report)
    if not (out / "utt2spk").is_file():
        return False
    made = _read(report)
    if "asked" not in made or "embeddings" not in made:
        print(f"kept: {out} ({report} does not say how it was made)")
        return True
    for key, value in asked.items():
        if (before := made["asked"].get(key)) != value:
            raise _refused(_difference(key, before, value), out, report)
    if len(made["embeddings"]) != len(scps):
        rule = f"was made from {len(made['embeddings'])} --embeddings, now {len(scps)}"
        raise _refused(rule, out, report)
    for scp, before in zip(scps, made["embeddings"]):
        if (record := _made_by(scp)) is not None and record == before.get("made_by"):
            continue
        if content_digest(scp) != before.get("content"):
            rule = f"was made from other embeddings than {scp} has now: the model or the audio has changed"
            raise _refused(rule, out, report)
    edited = labels_digest(out) != made.get("label_hash")
    print(
        f"kept: {out}"
        + (f" (edited by hand: its utt2spk differs from the one in {report})" if edited else "")
    )
    return True


def _read(report: Path) -> dict:
    """Read report.json; {} if it does not exist. UserError: it is damaged."""
    if not report.is_file():
        return {}
    try:
        made = foreign.read_json(report, limit=MAX_RECORD, nan=True)
        asked, found = made.get("asked", {}), made.get("embeddings", [])
        good = isinstance(asked, dict) and isinstance(found, list) and all(isinstance(e, dict) for e in found)
    except UserError:
        good = False
    if not good:
        rule = "is damaged: it does not say how the labels were made; without it they are kept as they are"
        raise UserError(rule, file=report, hint=command_line("rm", report))
    return made


def _difference(key: str, before, now) -> str:
    option = f"--{key.replace('_', '-')}"
    if key in ("data", "labeled_data", "unlabeled") or (key == "previous" and before and now):
        return f"was made with another {option}, or its files have changed since"

    def said(value) -> str:
        if value is None or value is False:
            return f"without {option}"
        return f"with {option}" if value is True or key == "previous" else f"with {option} {value}"

    return f"was made {said(before)}, now {said(now)}".replace(f"now with {option} ", "now ")


def _refused(rule: str, out: Path, report: Path) -> UserError:
    """The error for labels that cannot be kept.

    Its hint removes this round's folder and all later rounds, which
    depend on it.
    """

    def number(path: Path) -> int:
        return int(found[1]) if (found := re.fullmatch(r"round(\d{1,9})", path.name)) else -1

    here, folders = out.parent, [out, report]
    if number(here) >= 0:
        folders = sorted((p for p in here.parent.iterdir() if number(p) >= number(here)), key=number)
    rule += "; give another experiment folder, or remove these labels and all that was made with them"
    return UserError(rule, file=out, hint=command_line("rm", "-r", *folders))


@contextlib.contextmanager
def sole_writer(out: str | Path) -> Iterator[None]:
    """Lock the folder of `out` against other labelings.

    After an error, a folder that was new and is empty is removed.

    UserError: another process holds the lock.
    """
    folder = Path(out).absolute().parent
    new = not folder.exists()
    with folder_lock(folder):
        try:
            yield
        except BaseException:
            if new and [p.name for p in folder.iterdir()] == [".lock"]:
                (folder / ".lock").unlink()
                folder.rmdir()
            raise


def unless_kept(
    out: str | Path, report: str | Path, asked: dict, scps: Sequence[str], label: Callable[[], dict]
) -> dict | None:
    """Call `label` as the only writer in the folder of `out`. None: existing labels are kept (`is_kept`)."""
    if is_kept(out, report, asked, scps):
        return None
    check_replaceable(Path(out))
    with sole_writer(out):
        if is_kept(out, report, asked, scps):  # another process has just made them
            return None
        return label()
