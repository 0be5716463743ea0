"""Embeddings of audio files and folders without a data directory, written to one .npz file."""

import os

import numpy as np

from pyspkv.api.speaker_model import Model
from pyspkv.base.atomic import atomic_file
from pyspkv.base.errors import UserError

ENDINGS = (
    *(".wav", ".flac", ".ogg", ".opus", ".mp3", ".w64", ".rf64", ".aif", ".aiff", ".aifc", ".au", ".snd"),
    *(".caf", ".sph", ".nist"),
)


def audio_files(given: list[str]) -> list[str]:
    """The given files, and all audio files in the given folders and below them, sorted by name.

    Raises UserError when a folder holds no audio. Files are not opened here.
    """
    found: dict[str, None] = {}
    for path in given:
        if not os.path.isdir(path):
            found[path] = None  # if it cannot be read, the reader reports it
            continue
        inside = [
            os.path.join(folder, name)
            for folder, _, names in os.walk(path)
            for name in names
            if name.lower().endswith(ENDINGS) and not name.startswith(".")
        ]
        if not inside:
            raise UserError(
                "contains no audio file",
                file=path,
                hint=f"files end in {' '.join(ENDINGS)}; or give the files themselves",
            )
        found |= dict.fromkeys(inside)
    return sorted(found)


def embed_to_npz(model: Model, files: list[str], out: str) -> tuple[np.ndarray, str]:
    """Embed recordings; write `names` (str [N]) and `x` (float32 [N, D], as by `Model.embed`) to the .npz
    file `out`.

    Returns (x, a line on recordings without a signal or ""). numpy.load reads the file without unpickling.
    """
    x, silent = model.embed_all(files)
    names = [os.fsencode(name).decode("utf-8", "backslashreplace") for name in files]
    with atomic_file(out, "wb", own=True) as f:
        np.savez(f, names=np.array(names, dtype=np.str_), x=x)
    return x, silent
