"""Further fuzz targets (see targets.py): audio, scores, tables, trials, result rows, records, arrays."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import soundfile

from pyspkv.audio.reader import AudioReader
from pyspkv.audio.rir import _read as read_rooms
from pyspkv.base.errors import UserError
from pyspkv.clustering import kmeans, made
from pyspkv.data import tables
from pyspkv.data.datadir import DataDir
from pyspkv.experiments import results
from pyspkv.experiments.grid import Table
from pyspkv.score import embedding_folder, wanted
from pyspkv.score.calibration import Calibration
from pyspkv.score.scoring import read_mean, read_scores

ENROL, TEST = ["a", "a", "b"], ["x", "y", "x"]
GRID = b"""title: t
options: {num-rounds: 3}
tables:
  main: {title: "T1", base: A, compare: points, unit: seed, figures: [eer]}
cells:
  p-{seed}: {each: {seed: [0, 1]}, options: {stop-stage: 3}, rows: [{table: main, row: A, system: pretrain}]}
  "{s}-{n}-{seed}":
    each: {seed: [0], "s, name": [[x, X], [y, Y]], n: [1, 4]}
    after: ["p-{seed}"]
    options: {labels: "{n}", init: "{exp:p-{seed}}/pretrain/model"}
    rows: [{table: main, row: "{name}", column: "{n}", cost: [round1]}]
"""
AUDIO = [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "GSM610"), ("WAVEX", "PCM_24"), ("W64", "PCM_16"),
         ("RF64", "PCM_16"), ("AIFF", "PCM_16"), ("AU", "ULAW"), ("CAF", "PCM_16"), ("NIST", "PCM_16"),
         ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")]  # fmt: skip


def _audio(kind: str, subtype: str) -> bytes:
    """0.15 s of a tone at 8 kHz."""
    wave = (0.3 * np.sin(np.arange(1200) / 3)).astype(np.float32)
    out = io.BytesIO()
    soundfile.write(out, wave, 8000, format=kind, subtype=subtype)
    return out.getvalue()


def audio(folder: Path, data: bytes) -> None:
    """An audio file, whole and a crop, alone and with a segment."""
    (path := folder / "audio").write_bytes(data)
    cut = {"u": ("r", 0.05, 0.1)}
    for held in (
        DataDir(folder, ["u"], ["u"], {"u": str(path)}),
        DataDir(folder, ["u"], ["u"], {"r": str(path)}, cut),
    ):
        try:
            reader = AudioReader(held, cache_mb=1)
            x = reader.read(0)
            assert x.dtype == np.float32 and len(x) and np.isfinite(x).all()
            assert abs(reader.num_samples(0) - len(x)) <= 1600
            assert len(reader.read(0, 0, 100)) <= 100
        except UserError as err:
            assert "u" in str(err)


def scores(folder: Path, data: bytes) -> None:
    (path := folder / "x.scores").write_bytes(data)
    found = read_scores(path, ENROL, TEST)
    assert found.shape == (3,) and np.isfinite(found).all()


def table(folder: Path, data: bytes) -> None:
    """Kaldi text of every kind, as it is and as the fixer saves it."""
    (path := folder / "table").write_bytes(data)
    for kind in tables.VALUES:
        for read in (tables.read_table, tables.salvage):
            try:
                found = read(path, kind)
            except UserError:
                continue
            if read is tables.read_table:
                assert list(found) == sorted(found)
                assert kind == "any" or not any(k.split() != [k] for k in found)


def result_rows(folder: Path, data: bytes) -> None:
    """RESULTS.jsonl, and the RESULTS.md that is written from it."""
    (path := folder / "RESULTS.jsonl").write_bytes(data)
    results.write_tables(path, {})
    results.add_rows(path, [{"table": "t", "row": "r", "seed": 0, "eer": 5.0}])
    assert results.read_rows(path)


def grid(folder: Path, data: bytes) -> None:
    """A table of experiments: its cells and their commands."""
    (path := folder / "grid.yaml").write_bytes(data)
    found = Table(path)
    for cell in found.select("."):
        assert all(isinstance(word, str) for word in found.command(cell, folder))


def record(folder: Path, data: bytes) -> None:
    """Records of extraction and scoring: a damaged record counts as missing and is never an error."""
    (folder / "score").mkdir(exist_ok=True)
    for file in ("made_by", "score/made_by"):
        (folder / file).write_bytes(data)
    (folder / "embedding.scp").write_bytes(b"")
    assert embedding_folder._differs(folder, "embedding", {"model": "x", "crops": None})
    assert isinstance(wanted.read_made_by(str(folder)), dict)
    made._made_by(folder / "embedding.scp")


def label_record(folder: Path, data: bytes) -> None:
    """The report.json that decides whether clusters are kept."""
    (path := folder / "report.json").write_bytes(data)
    (folder / "utt2spk").write_bytes(b"a b\n")
    with contextlib.redirect_stdout(io.StringIO()):
        made.is_kept(folder, path, {"seed": 0, "data": "x"}, [])


def calibration(folder: Path, data: bytes) -> None:
    (path := folder / "calibration.json").write_bytes(data)
    assert np.isfinite(Calibration.read(path).llr(np.array([0.5]))).all()


def array(folder: Path, data: bytes) -> None:
    """A mean, a bank of rooms and the state of k-means; the last two are made again if they are damaged."""
    for name in ("mean.npy", "rooms.npy", "kmeans.npz"):
        (folder / name).write_bytes(data)
    read_rooms(folder / "rooms.npy", 2)
    kmeans._load(folder / "kmeans.npz", "k", 3, 2, 2)
    assert np.isfinite(read_mean(str(folder / "mean.npy"))).all()


def _npy(x: np.ndarray) -> bytes:
    np.save(out := io.BytesIO(), x)
    return out.getvalue()


def _npz() -> bytes:
    out, labels, numbers = io.BytesIO(), np.array([0, 1, 1], np.int32), np.array([3, 0, 1])
    centroids, coarse = np.ones((2, 2), np.float32), np.zeros((0, 0), np.float32)
    np.savez(out, key=np.array("k"), centroids=centroids, labels=labels, coarse=coarse, numbers=numbers)
    return out.getvalue()


ROW = {
    "table": "t",
    "row": "A",
    "seed": 0,
    "eer": 5.5,
    "column": "1",
    "fold": 2,
    "command": "c",
    "commit": "9",
}
MADE_BY = {
    "model": "x",
    "wav.scp": None,
    "crops": [3, 4.0],
    "out": "/x",
    "bytes": [1, 2],
    "test": {"from": {}},
}
LABELS = {
    "asked": {"seed": 0, "data": "x"},
    "embeddings": [{"made_by": None, "content": "y"}],
    "num_clusters": 3,
}
CALIBRATION = dict.fromkeys(Calibration.__annotations__, 0.5) | {"source": "dev"}
TABLES = [
    b"a b\nc d\n",
    b"a-1 r1 0.00 1.50\nb-1 r2 0 -1\n",
    b"r1 /data/r1.wav\nr2 sph2pipe x |\n",
    b"u1 3.5\nu2 17\n",
]


def _json(value) -> bytes:
    return json.dumps(value).encode()


ALL = {
    "audio": (audio, lambda: [_audio(*kind) for kind in AUDIO]),
    "scores": (
        scores,
        lambda: [b"a x 0.5\na y -1e-3\nb x 3\n", b"\xef\xbb\xbfb x .5\r\na y 1.\r\na x +2\r\n"],
    ),
    "table": (table, lambda: TABLES),
    "result_rows": (
        result_rows,
        lambda: [_json(ROW) + b"\n" + _json({**ROW, "seed": 1, "nmi": None}) + b"\n"],
    ),
    "grid": (grid, lambda: [GRID]),
    "record": (record, lambda: [_json(MADE_BY)]),
    "label_record": (label_record, lambda: [_json(LABELS)]),
    "calibration": (calibration, lambda: [_json(CALIBRATION)]),
    "array": (array, lambda: [_npy(np.ones(3, np.float32)), _npy(np.eye(2, 5, dtype=np.float32)), _npz()]),
}
