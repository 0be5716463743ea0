#!/usr/bin/env python3
"""VoxCeleb2's .m4a -> .flac of 16 kHz, one channel, by ffmpeg in several processes.

    local/m4a_to_flac.py --nj 16 VOX2/dev/aac VOX2/dev/wav

TARGET gets the folders of SOURCE (it may be the same folder). A file appears whole or not at all, and what is there
is kept: run it again to resume. A file that cannot be converted is named, the others go on, and the exit code is 1.
On several machines, --part K/N converts every N-th file, from the K-th; the files are the same for any N.
"""

import argparse
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from pyspkv.base.errors import UserError, printable, run
from pyspkv.base.parts import part


def count(text: str) -> int:
    """argparse type: a whole number from 1, in plain digits."""
    if not (text.isascii() and text.isdecimal()) or len(text) > 4 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is no whole number from 1 to 9999")
    return int(text)


def sources(root: Path) -> list[Path]:
    """All .m4a files below a folder, relative to it, sorted; links are followed. UserError: there is none."""
    found, seen = [], set()
    for folder, folders, names in os.walk(root, followlinks=True):
        place = os.stat(folder)
        if (place.st_dev, place.st_ino) in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add((place.st_dev, place.st_ino))
        folders.sort()
        found += [Path(folder, name).relative_to(root) for name in sorted(names) if name.endswith(".m4a")]
    if not found:
        raise UserError("has no .m4a file", file=root, hint="give the folder of the speakers, VOX2/dev/aac")
    return found


def convert(ffmpeg: str, source: Path, root: Path, target: Path, temporary: Path) -> str | None:
    """Write one .flac below `root` by way of a temporary name; None, or the reason why it failed.

    No shell sees the names.
    """
    # "file:" keeps ffmpeg from taking a name such as `a:b` for a protocol, and -xerror from passing damaged parts over.
    command = [ffmpeg, "-nostdin", "-v", "error", "-xerror", "-threads", "1", "-y", "-i", f"file:{source}"]
    command += ["-vn", "-map_metadata", "-1", "-ac", "1", "-ar", "16000", "-f", "flac", f"file:{temporary}"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
        if done.returncode:
            said = done.stderr.decode("utf-8", "replace").strip().splitlines()
            return said[-1] if said else f"ffmpeg ended with exit code {done.returncode}"
        if not temporary.is_file() or not temporary.stat().st_size:
            return "ffmpeg wrote nothing"
        if not target.parent.resolve().is_relative_to(root.resolve()):
            return f"{target.parent} is a link out of {root}, and nothing is written through it"
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary, target)
    except OSError as err:
        return str(err)
    finally:
        temporary.unlink(missing_ok=True)
    return None


def convert_all(
    ffmpeg: str, source: Path, target: Path, files: list[Path], nj: int
) -> Iterator[tuple[Path, str | None]]:
    """(file, None or the reason of its failure) of each file, as they end; `nj` at a time.

    The temporary folder of a killed run is removed.
    """
    from pyspkv.base.atomic import scratch_dir

    with scratch_dir(target / "m4a_to_flac") as scratch, ThreadPoolExecutor(nj) as pool:
        pending: dict[Future[str | None], Path] = {}
        todo = iter(enumerate(files))
        try:
            while True:
                for number, file in itertools.islice(todo, 2 * nj - len(pending)):
                    new = (target / file).with_suffix(".flac")
                    temporary = scratch / f"{number}.flac"
                    pending[pool.submit(convert, ffmpeg, source / file, target, new, temporary)] = file
                if not pending:
                    return
                for job in wait(pending, return_when=FIRST_COMPLETED).done:
                    yield pending.pop(job), job.result()
        finally:  # after Ctrl-C, those that wait do not begin
            for job in pending:
                job.cancel()


def main() -> int:
    p = argparse.ArgumentParser(
        prog="local/m4a_to_flac.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("source", metavar="SOURCE", type=Path, help="folder with .m4a files, at any depth")
    p.add_argument("target", metavar="TARGET", type=Path, help="folder of the .flac files")
    p.add_argument("--nj", type=count, default=os.cpu_count() or 1, help="processes (default: one a core)")
    p.add_argument("--part", type=part, default=(1, 1), metavar="K/N", help="convert only part K of N")
    args = p.parse_args()
    from tqdm import tqdm

    from pyspkv.base.atomic import folder_lock

    if not args.source.is_dir():
        raise UserError(
            "no such folder", file=args.source, hint="give the folder of the speakers, VOX2/dev/aac"
        )
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        raise UserError(
            "ffmpeg is not on PATH, and it reads .m4a", hint="apt-get install ffmpeg (Debian, Ubuntu)"
        )
    source, target = args.source.absolute(), args.target.absolute()
    k, n = args.part
    files = sources(source)[k - 1 :: n]
    failed = 0
    with folder_lock(target, ".lock" if n == 1 else f".lock.{k}-of-{n}"):
        todo = [file for file in files if not (target / file).with_suffix(".flac").is_file()]
        bar = tqdm(total=len(files), initial=len(files) - len(todo), desc="m4a to flac", disable=None)
        for file, why in convert_all(ffmpeg, source, target, todo, args.nj):
            bar.update()
            if why:
                failed += 1
                bar.write(f"{printable(str(source / file))}: {printable(why)}", file=sys.stderr)
        bar.close()
    print(f"{len(todo) - failed} files converted, {len(files) - len(todo)} were there, {failed} failed")
    if failed:
        print("convert them again, or leave them out of the corpus", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    run(main)
