"""Embed every utterance of data directories: writes OUT/embedding.ark and OUT/embedding.scp.

    python -m pyspkv.bin.extract --model exp/round1/model --data data/train data/test

Without --out the embeddings go to exp/round1/embed/train and exp/round1/embed/test. Embeddings of the same
model, audio and options are kept. On several machines run the same command with another K each, and then once
--merge:

    python -m pyspkv.bin.extract --model exp/round1/model --data data/train --part 1/4
    python -m pyspkv.bin.extract --model exp/round1/model --data data/train --merge 4

Without a data directory, the embeddings of audio files and folders go into one .npz (--audio --help):

    python -m pyspkv.bin.extract --model exp/round1/model --audio recordings --out x.npz
"""

import argparse
import os
import sys

from pyspkv.base.errors import UserError, natural, run
from pyspkv.base.parts import part, parts

MAX_CROPS, MAX_CROP_SECONDS, MAX_ALL_CROPS = (
    1000,
    600,
    6000,
)  # number, seconds, seconds in all (all crops of an utterance are in one batch)


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="python -m pyspkv.bin.extract",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "--model",
        required=True,
        nargs="+",
        action="extend",
        metavar="DIR[@best|last]",
        help="model folders; the audio is read once for all of them",
    )
    p.add_argument(
        "--data", required=True, nargs="+", action="extend", metavar="DIR", help="data directories"
    )
    p.add_argument(
        "--out",
        metavar="DIR",
        help="output folder, for one model and one data directory (default: next to each model)",
    )
    p.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    p.add_argument(
        "--crops", type=natural, default=0, metavar="N", help="embed N evenly spaced crops: entries of [N, D]"
    )
    p.add_argument("--crop-seconds", type=float, default=4.0, metavar="S", help="length of the crops")
    p.add_argument("--allow-pipes", action="store_true", help="run `command |` entries of wav.scp")
    how = p.add_mutually_exclusive_group()
    how.add_argument("--part", type=part, metavar="K/N", help="embed only part K of N")
    how.add_argument("--merge", type=parts, metavar="N", help="join the N parts, then remove them")
    args = p.parse_args()
    if not 0.1 <= args.crop_seconds <= MAX_CROP_SECONDS or args.crops > MAX_CROPS:
        p.error(f"--crops must be at most {MAX_CROPS}, --crop-seconds from 0.1 to {MAX_CROP_SECONDS}")
    if args.crops * args.crop_seconds > MAX_ALL_CROPS:
        p.error(
            f"the crops of an utterance may last {MAX_ALL_CROPS} s in all: lower --crops or --crop-seconds"
        )
    if args.out is not None and len(args.model) * len(args.data) > 1:
        p.error("--out is for one model and one data directory")
    return args


def parse_audio() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="python -m pyspkv.bin.extract --audio",
        description="Write names (str [N], paths in order of name) and x (float32 [N, D]) to an .npz file, "
        "which numpy.load reads without pickles. Silent recordings are listed on stderr.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument(
        "--audio", required=True, nargs="+", action="extend", metavar="FILE", help="files, or folders"
    )
    p.add_argument(
        "--model", required=True, metavar="DIR", help="experiment, phase or model folder, or DIR@best"
    )
    p.add_argument(
        "--out", required=True, metavar="FILE.npz", help="output file; an existing file is replaced"
    )
    return p.parse_args()


def extract_audio() -> None:
    """Embed audio files and folders into one .npz file."""
    args = parse_audio()
    if not args.out.endswith(".npz"):
        hint = "with --data, embeddings go into a folder"
        raise UserError("--out must be an .npz file", file=args.out, hint=hint)
    from pyspkv.api import audio_folder
    from pyspkv.api.speaker_model import load

    files = audio_folder.audio_files(args.audio)
    x, silent = audio_folder.embed_to_npz(load(args.model), files, args.out)
    if silent:
        print(f"warning: {silent}", file=sys.stderr)
    print(f"{args.out}: {len(files)} recordings, {x.shape[1]} numbers each")


def main() -> None:
    # Threads that spin at barriers take 5 times as long on a busy machine. Set before OpenMP is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if any(word == "--audio" or word.startswith("--audio=") for word in sys.argv[1:]):
        extract_audio()
        return
    args = parse()
    from pyspkv.score import embedding_folder

    options = embedding_folder.Options(
        args.precision, args.crops, args.crop_seconds, args.allow_pipes, args.part
    )
    found = embedding_folder.pairs(args.model, args.data, args.out, options)
    if args.merge is not None:
        embedding_folder.merge(found, args.merge)
    else:
        embedding_folder.extract(found, options)


if __name__ == "__main__":
    run(main)
