"""Embeddings that others published: a file name -> vector, read without running anything in it.

.npz         an array for each name, or two arrays: names [N] and vectors [N, D]
.npy         vectors [N, D], with a text file of N names
.scp         a Kaldi, WeSpeaker or 3D-Speaker list, `name ark:offset`
others       a dictionary name -> tensor, saved by torch.save
"""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pyspkv.base.arrays import NUMPY_ERRORS
from pyspkv.base.errors import UserError
from pyspkv.base.foreign import regular
from pyspkv.data.tables import decode

SAVE = "save it with torch.save({name: tensor, ...}) or np.savez(FILE, names=..., embeddings=...)"


def read(file: Path, names: Path | None = None) -> tuple[list[str], Sequence[np.ndarray]]:
    """(names, vectors [D] or [n, D] each) of a file. UserError: it is of none of the forms above."""
    regular(file)
    if file.suffix == ".npy":
        return _matrix(file, names)
    if names is not None:
        raise UserError("has names of its own, so --names is not needed", file=file, hint="leave out --names")
    if file.suffix == ".npz":
        return _archive(file)
    if file.suffix == ".scp":
        return _listed(file)
    from pyspkv.models.wavlm_import import named_tensors

    tensors = named_tensors(file)
    return list(tensors), [value.float().numpy() for value in tensors.values()]


def ark_of(scp: Path, ark: str) -> str:
    """The file of an ark that `scp` names: where it says, else the one of that name beside the scp.

    3D-Speaker and WeSpeaker write paths from the folder in which they ran.
    """
    beside = scp.parent / Path(ark).name
    return ark if os.path.exists(ark) or not beside.exists() else str(beside)


def _listed(scp: Path) -> tuple[list[str], Sequence[np.ndarray]]:
    from pyspkv.data.ark import read_embeddings, read_scp

    files = Counter(ark_of(scp, ark) for ark in read_scp(scp)[1])
    if double := next((file for file, arks in files.items() if arks > 1), None):
        rule = f"two arks are called {Path(double).name}, and at least one is not where this file says"
        raise UserError(rule, file=scp, hint="write the true paths of the arks")
    found = read_embeddings(scp, lambda ark: ark_of(scp, ark))
    return found.ids, [found.x[a:b] for a, b in zip(found.offsets, found.offsets[1:])]


def _matrix(file: Path, names: Path | None) -> tuple[list[str], Sequence[np.ndarray]]:
    if names is None:
        hint = (
            "give --names FILE, a name a line; a dictionary in a .npy file is a pickle, which is not read: "
            + SAVE
        )
        raise UserError("has no names", file=file, hint=hint)
    lines = decode(names).split()
    x = _vectors(file, lambda: np.load(file, mmap_mode="r", allow_pickle=False))
    return _paired(lines, x, file)


def _archive(file: Path) -> tuple[list[str], Sequence[np.ndarray]]:
    from pyspkv.models.wavlm_import import check_zip

    check_zip(file)
    arrays = _vectors(file, lambda: dict(np.load(file, allow_pickle=False)))
    names = [k for k, v in arrays.items() if v.dtype.kind == "U" and v.ndim == 1]
    if len(arrays) == 2 and names:
        (x,) = (v for k, v in arrays.items() if k != names[0])
        return _paired(arrays[names[0]].tolist(), x, file)
    if odd := next((k for k, v in arrays.items() if v.dtype.kind != "f"), None):
        raise UserError(f"its array {odd[:100]!a} holds no floats", file=file, hint=SAVE)
    return list(arrays), list(arrays.values())


def _vectors(file: Path, load):
    """What `load` reads. UserError in place of what numpy raises for files of strangers."""
    try:
        found = load()
    except NUMPY_ERRORS as err:
        reason = "it is a pickle" if "pickle" in str(err) else type(err).__name__
        raise UserError(f"is not an array of numbers ({reason})", file=file, hint=SAVE) from None
    return found


def _paired(names: list[str], x: np.ndarray, file: Path) -> tuple[list[str], Sequence[np.ndarray]]:
    if not isinstance(x, np.ndarray) or x.dtype.kind != "f" or x.ndim != 2 or len(x) != len(names):
        shape = f"{x.dtype} {list(x.shape)}" if isinstance(x, np.ndarray) else "an archive"
        raise UserError(f"holds {shape} for {len(names)} names, not floats [{len(names)}, D]", file=file)
    return names, list(x)
