"""Bytes, seconds and memory that docs/scale.md multiplies: one JSON row.

    OMP_NUM_THREADS=1 python benchmarks/scale.py [--lines 1000000] [--rows 262144] [--dim 192] [--centroids 50000]
    OMP_NUM_THREADS=1 python benchmarks/scale.py --lines 0 --rows 0 --rates 192 256

--lines: of the tables (validate, reading); --rows: embeddings of which k-means in parts does one step, as one part;
--rates: dimensions at which the search for the nearest centroids is timed alone, by cells and exact.
Seconds are of CPU (user and system) in the process of the command, start-up included, so that a busy machine changes
them little; `mib` is its peak memory.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
PARENT = """
import json, resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=sys.stderr)
r = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"cpu_s": round(r.ru_utime + r.ru_stime, 1), "mib": round(r.ru_maxrss / 1024)}))
sys.exit(done.returncode)
"""


def measure(*words) -> dict:
    """CPU seconds and peak MiB of `python WORDS`, under a small parent whose only child it is."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    args = [sys.executable, "-c", PARENT, sys.executable, *map(str, words)]
    done = subprocess.run(args, check=True, stdout=subprocess.PIPE, env=env, text=True)
    return json.loads(done.stdout)


def tables(folder: Path, lines: int) -> dict:
    """Bytes a line, and the cost of reading so many."""
    from datadir import make

    made = make(folder / "data", lines, max(1, lines // 182))
    utts = [line.split(" ", 1)[0] for line in made["wav.scp"]]
    del made
    with open(folder / "embedding.scp", "w") as f:
        f.writelines(
            f"{u} /work/exp/pretrain/embed/train/embedding.ark:{i * 800}\n" for i, u in enumerate(utts)
        )
    found: dict = {"bytes_a_line": {}}
    for file in (*sorted((folder / "data").iterdir()), folder / "embedding.scp"):
        found["bytes_a_line"][file.name] = round(file.stat().st_size / lines, 1)
    found["validate"] = measure("-m", "pyspkv.bin.datadir", "validate", folder / "data")
    code = "import sys; from pyspkv.data.{} import {}; {}(sys.argv[1])"
    found["read_scp"] = measure("-c", code.format("ark", *["read_scp"] * 2), folder / "embedding.scp")
    found["read_data"] = measure("-c", code.format("datadir", "DataDir", "DataDir.read"), folder / "data")
    return found


def kmeans(folder: Path, rows: int, dim: int, centroids: int) -> dict:
    """One step of k-means in one part, on embeddings that `embedding.scp` lists."""
    from synthetic_embeddings import generate, write

    x, speaker, _ = generate(rows, dim=dim)
    write(folder, x, speaker)
    del x
    ark = folder / "embed/embedding.ark"
    found: dict = {"ark_bytes_a_row": round(ark.stat().st_size / rows, 1)}
    out = ["--out-data", folder / "out/data"]
    more = ["--embeddings", ark.with_suffix(".scp"), "--data", folder / "data", "--num-kmeans", centroids]
    call = ["-m", "pyspkv.bin.kmeans"]
    found["start"] = measure(
        *call, "start", "--nj", 1, *more, "--num-clusters", round(0.15 * centroids), *out
    )
    found["assign"] = measure(*call, "assign", *out, "--part", "1/1")
    found["rows_a_cpu_s"] = round(rows / found["assign"]["cpu_s"])
    state = folder / "out/data.kmeans"
    found["sums_bytes"] = (state / "sums.0.1-of-1.npz").stat().st_size
    found["labels_bytes_a_row"] = round((state / "labels.0.1-of-1.npz").stat().st_size / rows, 1)
    found["update"] = measure(*call, "update", *out)
    return found


def rate(dim: int, k: int, rows: int = 32_768) -> dict:
    """Rows a CPU second of the search among k random centroids, once they are in their cells; exact on a tenth."""
    import time

    from pyspkv.clustering import kmeans as km
    from pyspkv.clustering.kmeans_parts import _Search
    from pyspkv.clustering.vectors import l2_normalize

    rng = np.random.default_rng(0)
    centroids = l2_normalize(rng.standard_normal((k, dim), np.float32))
    x = l2_normalize(rng.standard_normal((rows, dim), np.float32))
    found, bias = {}, km._bias(centroids, False)
    for name, coarse, some in (
        ("cells", centroids[:: k // (k // 8)][: k // 8], x),
        ("exact", x[:0], x[::10]),
    ):
        search = _Search(coarse, dim, "cpu")
        search.look_at(x[:1])
        search(centroids, bias)  # puts the centroids into their cells
        start = time.process_time()
        search.look_at(np.ascontiguousarray(some))
        search(centroids, bias)
        found[name] = round(len(some) / (time.process_time() - start))
    return found


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("lines", 1_000_000), ("rows", 262_144), ("dim", 192), ("centroids", 50_000)):
        p.add_argument(f"--{name}", type=int, default=value)
    p.add_argument("--rates", type=int, nargs="*", default=[])
    args = p.parse_args()
    row = {**vars(args), "threads": os.environ.get("OMP_NUM_THREADS"), "numpy": np.__version__}
    with tempfile.TemporaryDirectory() as name:
        if args.lines:
            row |= tables(Path(name), args.lines)
        if args.rows:
            work = Path(name, "kmeans")
            work.mkdir()
            row |= kmeans(work, args.rows, args.dim, args.centroids)
    if args.rates:
        row["search_rows_a_cpu_s"] = {dim: rate(dim, args.centroids) for dim in args.rates}
    print(json.dumps(row))


if __name__ == "__main__":
    main()
