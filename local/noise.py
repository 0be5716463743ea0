#!/usr/bin/env python3
"""Audio files, or folders of them -> one data directory for augmentation, with each file its own speaker.

Long recordings are cut into segments, so that even two recordings give many different noises.
"""

import argparse
import re
from pathlib import Path

from pyspkv.base.errors import UserError, run
from pyspkv.data.datadir import DataDir

ENDINGS = (".wav", ".flac", ".ogg", ".mp3", ".opus")


def main() -> int:
    p = argparse.ArgumentParser(
        prog="local/noise.py",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("dir", metavar="DATADIR", type=Path, help="new data directory")
    p.add_argument(
        "sources", metavar="FILE_OR_FOLDER", type=Path, nargs="+", help="audio files, or folders to search"
    )
    p.add_argument(
        "--segment-seconds",
        type=float,
        default=10.0,
        help="cut files that are longer than this; 0: keep them whole",
    )
    args = p.parse_args()
    import soundfile

    wav, segments = {}, {}
    for source in args.sources:
        if not source.exists():
            raise UserError("no such file or folder", file=source)
        files = (
            [source]
            if source.is_file()
            else sorted(f for f in source.rglob("*") if f.suffix.lower() in ENDINGS)
        )
        if not files:
            raise UserError(f"contains no audio file ({', '.join(ENDINGS)})", file=source)
        for file in files:
            name = file.name if source.is_file() else str(file.relative_to(source))
            reco = re.sub(r"[^\w.]+", "-", str(Path(name).with_suffix("")), flags=re.ASCII).strip("-")
            if not reco:
                raise UserError(
                    "its name has no ASCII letter or digit for an id", file=file, hint="rename it"
                )
            if reco in wav:
                raise UserError(
                    f"two files would be called {reco} ({wav[reco]})", file=file, hint="rename one"
                )
            wav[reco] = str(file.absolute())
            try:
                info = soundfile.info(str(file))
            except soundfile.LibsndfileError as err:
                raise UserError(f"libsndfile cannot read it ({err.error_string})", file=file) from None
            if not info.frames:
                raise UserError("contains no samples", file=file)
            hundredths = max(1, info.frames * 100 // info.samplerate)
            step = round(args.segment_seconds * 100) or hundredths
            # a remainder shorter than half a segment is added to the segment before it
            count = max(1, (hundredths + step // 2) // step)
            ends = [*range(0, count * step, step), hundredths]
            for a, b in zip(ends, ends[1:]):
                segments[f"{reco}-{a:07d}-{b:07d}"] = (reco, a / 100, b / 100)
    utts = sorted(segments)
    DataDir(args.dir, utts, utts, dict(sorted(wav.items())), dict(sorted(segments.items()))).write(args.dir)
    print(f"{args.dir}: {len(wav)} recordings, {len(utts)} pieces")
    return 0


if __name__ == "__main__":
    run(main)
