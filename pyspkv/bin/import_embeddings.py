"""Published embeddings, a file of names and vectors, become the embeddings of a data directory.

    python -m pyspkv.bin.import_embeddings --from dino.pt --data data/train --out exp/imported/embed/train

A name is an utterance id, or the end of the utterance's path: `id/video/utt.wav` finds `.../id/video/utt.m4a`.
"""

import argparse
import hashlib
import json
from contextlib import ExitStack
from pathlib import Path

from pyspkv.base.errors import UserError, run


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="python -m pyspkv.bin.import_embeddings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--from", dest="source", required=True, metavar="FILE",
                   help="name -> vector: saved by torch.save, .npz, .npy with --names, or a Kaldi .scp")  # fmt: skip
    p.add_argument("--names", metavar="FILE", help="of a .npy file's rows, a name a line")
    p.add_argument(
        "--data", required=True, metavar="DIR", help="data directory; each utterance needs a vector"
    )
    p.add_argument("--out", required=True, metavar="DIR", help="folder for embedding.scp and .ark")
    return p.parse_args()


def record_of(source: Path, names: str | None, utts: list[str]) -> dict:
    """What the embeddings depend on. `model` stands for the model: sets of two models are not scored together."""
    from pyspkv.clustering.made import content_digest
    from pyspkv.score.embedding_import import ark_of

    def digest(file: Path) -> str:
        with open(file, "rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()

    scp = source.suffix == ".scp"
    vectors = content_digest(source, lambda ark: ark_of(source, ark)) if scp else digest(source)
    listed = digest(Path(names)) if names else None
    ids = hashlib.sha256("\n".join(utts).encode("utf-8", "surrogateescape")).hexdigest()
    return {
        "model": vectors,
        "names": listed,
        "utterances": ids,
        "source": str(source),
        "silent": {},
    }


def main() -> None:
    args = parse()
    from pyspkv.base import foreign
    from pyspkv.base.atomic import atomic_file, command_line
    from pyspkv.data.ark import EmbeddingWriter, hold, refuse_links
    from pyspkv.data.datadir import DataDir
    from pyspkv.data.published_names import match

    source, out = Path(args.source), Path(args.out)
    for file in filter(None, (args.source, args.names)):
        if not Path(file).is_file():
            raise UserError("no such file", file=file, hint="check the path")
    data = DataDir.read(args.data)
    record, made_by = record_of(source, args.names, data.utts), out / "made_by"
    with ExitStack() as locks:
        hold(locks, out)
        if (out / "embedding.scp").exists():
            found = foreign.read_json_or_empty(made_by, limit=1 << 28)
            if any(found.get(key) != record[key] for key in ("model", "names", "utterances")):
                hint = command_line("rm", "-r", out)
                raise UserError("contains other embeddings", file=out, hint=hint)
            print(f"imported already: {out}")
            return
        from pyspkv.score import embedding_import

        names, vectors = embedding_import.read(source, Path(args.names) if args.names else None)
        rows = match(names, data, source)
        refuse_links([made_by])
        # Nothing tells a half-written set but its scp, which is the last to appear: the record goes first.
        with atomic_file(made_by) as f:
            f.write(json.dumps(record, indent=1) + "\n")
        with EmbeddingWriter(out, lock=None) as write:
            for utt, row in zip(data.utts, rows):
                vector = vectors[row]
                write(utt, vector[0] if vector.ndim == 2 and len(vector) == 1 else vector)
    print(f"{len(rows)} embeddings of {write.dim} dimensions: {out}/embedding.scp")
    if others := len(names) - len(rows):
        print(f"{source}: {others} of {len(names)} names are of no utterance in {args.data}")


if __name__ == "__main__":
    run(main)
