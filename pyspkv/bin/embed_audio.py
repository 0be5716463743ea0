"""Embed audio files and folders of them into one .npz: `pyspkv extract --audio FOLDER --model exp --out x.npz`."""

import argparse
import os

from pyspkv.base.errors import UserError, run

ENDINGS = (
    *(".wav", ".flac", ".ogg", ".opus", ".mp3", ".w64", ".rf64", ".aif", ".aiff", ".aifc", ".au", ".snd"),
    *(".caf", ".sph", ".nist"),
)


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="python -m pyspkv.bin.extract --audio",
        description="Write names (str [N], paths in order of name) and x (float32 [N, D]) to an .npz file, "
        "which numpy.load reads without pickles. Recordings without a signal are named on stderr.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument(
        "--audio", required=True, nargs="+", action="extend", metavar="FILE", help="files, or folders"
    )
    p.add_argument(
        "--model", required=True, metavar="DIR", help="experiment, phase or model folder, or DIR@best"
    )
    p.add_argument("--out", required=True, metavar="FILE.npz", help="what is there is replaced")
    return p.parse_args()


def audio_files(given: list[str]) -> list[str]:
    """The files that are given and those of folders, whole trees, by their endings; in order of name.

    UserError: nothing is there, or a folder holds no audio.
    """
    found: dict[str, None] = {}
    for path in given:
        if not os.path.isdir(path):
            found[path] = None  # what cannot be read is said when it is read
            continue
        inside = [
            os.path.join(folder, name)
            for folder, _, names in os.walk(path)
            for name in names
            if name.lower().endswith(ENDINGS) and not name.startswith(".")
        ]
        if not inside:
            raise UserError(
                "holds no audio", file=path, mend=f"files end in {' '.join(ENDINGS)}; or give files"
            )
        found |= dict.fromkeys(inside)
    return sorted(found)


def main() -> None:
    args = parse()
    if not args.out.endswith(".npz"):
        raise UserError(
            "--out is an .npz file", file=args.out, mend="with --data embeddings go into a folder"
        )
    files = audio_files(args.audio)
    # Threads that spin at barriers cost a busy machine 5 x the time; must be set before OpenMP is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import sys

    import numpy as np

    from pyspkv.api.speaker_model import load
    from pyspkv.base.atomic import atomic_file

    x, silent = load(args.model).embed_all(files)
    if silent:
        print(f"warning: {silent}", file=sys.stderr)
    names = [os.fsencode(name).decode("utf-8", "backslashreplace") for name in files]
    with atomic_file(args.out, "wb", own=True) as f:
        np.savez(f, names=np.array(names, dtype=np.str_), x=x)
    print(f"{args.out}: {len(files)} recordings, {x.shape[1]} numbers each")


if __name__ == "__main__":
    run(main)
