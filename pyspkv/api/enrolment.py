"""Enrolled speakers in one .npz file: names, embeddings, and the model that made them. Reading it unpickles
nothing.

names       str [S]          speakers, in the order in which they were enrolled
x           float32 [S, D]   unit vectors: the mean direction of a speaker's recordings
recordings  int64 [S]        number of recordings of each speaker
model       str, absolute path of the model folder;   digest  str, SHA-256 of its weights
"""

import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pyspkv.base.arrays import NUMPY_ERRORS
from pyspkv.base.atomic import atomic_file, folder_lock
from pyspkv.base.errors import UserError

MAX_BYTES = 4 << 30  # of a store after decompression
HINT = "give a store that enrolment wrote, or enrol anew into another --store"


@dataclass
class Store:
    """Speakers that were enrolled with one model; the module's docstring gives the shapes."""

    model: str
    digest: str
    names: list[str] = field(default_factory=list)
    x: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    recordings: list[int] = field(default_factory=list)

    def enrol(self, name: str, x: np.ndarray, replace: bool = False) -> None:
        """Add a speaker by the embeddings [n, D] of his recordings.

        replace: overwrite a speaker of that name. UserError when the name is taken or invalid, or the mean is
            zero.
        """
        from pyspkv.data.ark import normalize

        if not name.strip() or not name.isprintable():
            raise UserError(f"{name!r} cannot be a speaker's name")
        mean = normalize(normalize(x).mean(0))
        if not mean.any():
            raise UserError(f"the recordings of {name} have opposite embeddings, whose mean is zero")
        if name in self.names:
            if not replace:
                raise UserError(f"{name} is already enrolled", hint="give --replace, or another name")
            row = self.names.index(name)
            self.x[row], self.recordings[row] = mean, len(x)
            return
        self.x = np.concatenate([self.x.reshape(-1, len(mean)), mean[None]])
        self.names.append(name)
        self.recordings.append(len(x))

    def scores(self, x: np.ndarray) -> list[tuple[str, float]]:
        """(name, cosine) for every speaker and an embedding [D]; highest first, equal scores by name."""
        from pyspkv.data.ark import normalize

        found = (self.x @ normalize(x)).tolist()
        return sorted(zip(self.names, found), key=lambda pair: (-pair[1], pair[0]))

    def write(self, file: str | Path) -> None:
        """Write the store to `file`, atomically."""
        with atomic_file(file, "wb", own=True) as f:
            np.savez(
                f,
                names=np.array(self.names, dtype=np.str_),
                x=self.x.astype(np.float32),
                recordings=np.array(self.recordings, dtype=np.int64),
                model=np.array(self.model),
                digest=np.array(self.digest),
            )

    @classmethod
    def read(cls, file: str | Path) -> "Store":
        """Read a store. UserError when the file does not exist or is not a store."""
        try:
            with zipfile.ZipFile(file) as z:
                if sum(entry.file_size for entry in z.infolist()) > MAX_BYTES:
                    raise ValueError("it is larger than any store")
            with np.load(file, allow_pickle=False) as z:
                found = {name: z[name] for name in ("names", "x", "recordings", "model", "digest")}
            names, x, recordings = found["names"], found["x"], found["recordings"]
            texts = all(found[k].dtype.kind == "U" for k in ("names", "model", "digest"))
            whole = (
                names.ndim == 1 and x.ndim == 2 and recordings.shape == names.shape and len(x) == len(names)
            )
            if not texts or not whole or x.dtype != np.float32 or recordings.dtype != np.int64:
                raise ValueError("its arrays do not fit each other")
            if found["model"].ndim or found["digest"].ndim or len({*names.tolist()}) < len(names):
                raise ValueError("its arrays do not fit each other")
            if not np.isfinite(x).all() or (np.abs(np.linalg.norm(x, axis=1) - 1) > 1e-3).any():
                raise ValueError("a row is not a unit vector")
        except FileNotFoundError:
            raise UserError(
                "no such store", file=file, hint="enrol a speaker first, or check --store"
            ) from None
        except NUMPY_ERRORS as err:
            raise UserError(f"is not a store of speakers ({err})", file=file, hint=HINT) from None
        return cls(str(found["model"]), str(found["digest"]), names.tolist(), x, recordings.tolist())


@contextmanager
def sole_writer(file: str | Path) -> Iterator[None]:
    """Hold a lock on the store while it is changed. UserError when another process holds it."""
    file = Path(os.path.realpath(file))
    with folder_lock(file.parent, f".{file.name}.lock"):
        yield


def model_of(given: str | None, store: Store | None, file: str | Path) -> tuple[str, str]:
    """(model folder, digest of its weights) to embed with: the given model, else the store's.

    Raises UserError when there is neither, or the speakers were enrolled with another model.
    """
    from pyspkv.api.speaker_model import find_model
    from pyspkv.base.checkpoint import digest

    if given is None:
        if store is None:
            raise UserError("no such store", file=file, hint="for the first speaker, also give --model")
        given = store.model
    name = find_model(given)
    found = digest(name)
    if store is not None and found != store.digest:
        rule = f"its speakers were enrolled with another model than {name}"
        raise UserError(
            rule, file=file, hint="give --model the model of the store, or enrol anew into another --store"
        )
    return os.path.abspath(name), found
