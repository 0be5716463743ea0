"""Embeddings on disk against kaldiio, an independent reader and writer."""

import os
import pickle
import struct

import kaldiio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyspkv.base.errors import UserError
from pyspkv.data.ark import CHUNK, EmbeddingWriter, normalize, read_embeddings


def arrays(rng, n, dim=7, rows=None):
    shape = (dim,) if rows is None else (rows, dim)
    return {f"utt{i:03d}": rng.standard_normal(shape).astype(np.float32) for i in range(n)}


def check(scp, want):
    got = read_embeddings(scp)
    assert set(got.ids) == set(want)
    assert got.x.dtype == np.float32
    assert got.offsets.dtype == np.int64
    for i, utt in enumerate(got.ids):
        np.testing.assert_array_equal(got.x[got.offsets[i] : got.offsets[i + 1]], np.atleast_2d(want[utt]))
    return got


def test_writer_output_is_read_by_kaldiio_and_by_us(tmp_path):
    rng = np.random.default_rng(0)
    want = arrays(rng, 20)
    with EmbeddingWriter(tmp_path / "out") as write:
        for utt in rng.permutation(list(want)):  # as after extraction in order of length
            write(str(utt), want[utt])
    theirs = kaldiio.load_scp(str(tmp_path / "out/embedding.scp"))
    assert list(theirs) == sorted(want)
    for utt in want:
        np.testing.assert_array_equal(theirs[utt], want[utt])
    got = check(tmp_path / "out/embedding.scp", want)
    assert got.single
    assert got.vectors() is got.x
    assert sorted(os.listdir(tmp_path / "out")) == [".lock", "embedding.ark", "embedding.scp"]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from([None, 1, 2, 5]), min_size=1, max_size=12), st.sampled_from(["f4", "f8"]))
def test_any_mix_of_vectors_and_matrices_written_by_kaldiio(tmp_path_factory, rows, dtype):
    tmp = tmp_path_factory.mktemp("mix")
    rng = np.random.default_rng(1)
    shapes = [(3,) if r is None else (r, 3) for r in rows]
    want = {f"u{i}": rng.standard_normal(s).astype(np.float32) for i, s in enumerate(shapes)}
    stored = {k: v.astype(dtype) for k, v in want.items()}
    kaldiio.save_ark(str(tmp / "a.ark"), stored, scp=str(tmp / "a.scp"))
    check(tmp / "a.scp", want)


def test_several_arks_shuffled_lines_text_compressed_and_a_file_without_offset(tmp_path):
    rng = np.random.default_rng(2)
    want, lines = {}, []
    for name, options in {"x": {}, "t": {"text": True}, "c": {"compression_method": 3}}.items():
        part = {f"{name}{k}": v for k, v in arrays(rng, 4, rows=9).items()}
        ark, scp = str(tmp_path / f"{name}.ark"), tmp_path / f"{name}.scp"
        if name == "t":
            part = {k: np.round(v, 3) for k, v in part.items()}
            part["tutt000"][0, 0] = 1.0  # text files contain "1", not "1.0"
        kaldiio.save_ark(ark, part, scp=str(scp), **options)
        want |= {k: kaldiio.load_mat(line.split()[1]) if name == "c" else part[k]
                 for line in scp.read_text().splitlines() for k in [line.split()[0]]}  # fmt: skip
        lines += scp.read_text().splitlines()
    kaldiio.save_mat(str(tmp_path / "one.vec"), np.arange(7, dtype=np.float32))
    want["one"] = np.arange(7, dtype=np.float32)
    lines.append(f"one {tmp_path}/one.vec")
    rng.shuffle(lines)
    (tmp_path / "all.scp").write_text("\n".join(lines) + "\n")
    got = check(tmp_path / "all.scp", want)
    assert got.ids == [line.split()[0] for line in lines]


def test_a_compressed_entry_of_impossible_size_is_refused(tmp_path):
    sizes = struct.pack("<ffii", 0, 1, 2_000_000_000, 2_000_000_000)
    (tmp_path / "x.ark").write_bytes(b"\0BCM2 " + sizes + b"\0" * 64)
    (tmp_path / "x.scp").write_text(f"u {tmp_path}/x.ark:0\n")
    with pytest.raises(UserError, match="the ark ends before"):
        read_embeddings(tmp_path / "x.scp")


def test_vectors_beyond_one_chunk(tmp_path):
    dim = CHUNK // 4 // 3  # a chunk holds three vectors and a bit
    want = {f"u{i}": np.full(dim, i, np.float32) for i in range(5)}
    with EmbeddingWriter(tmp_path) as write:
        for utt, x in want.items():
            write(utt, x)
    check(tmp_path / "embedding.scp", want)


def test_vectors_of_matrix_entries_are_mean_directions(tmp_path):
    with EmbeddingWriter(tmp_path) as write:
        write("a", np.array([[2.0, 0], [0, 5.0]]))
        write("b", np.array([[0.0, -3.0]]))
    got = read_embeddings(tmp_path / "embedding.scp")
    assert not got.single
    np.testing.assert_allclose(got.vectors(), [[0.5, 0.5], [0, -1]])


def test_normalize_leaves_a_zero_row_alone():
    np.testing.assert_allclose(normalize(np.array([[3.0, 4.0], [0, 0]], np.float32)), [[0.6, 0.8], [0, 0]])
    tiny = normalize(np.array([[3e-30, 4e-30]], np.float32))  # the squares underflow in float32
    np.testing.assert_allclose(tiny, [[0.6, 0.8]], rtol=1e-6)


@pytest.mark.parametrize(
    ("second", "says"),
    [
        (("b", [1.0, np.nan]), "embedding of utterance b contains NaN or Inf"),
        (("b", [1.0, np.inf]), "embedding of utterance b contains NaN or Inf"),
        (("a", [1.0, 2.0]), "utterance a has two embeddings"),
        (("b", [1.0, 2.0, 3.0]), r"embedding of b has shape \[3\], not \[2\] or \[n, 2\]"),
        (("b", []), r"embedding of b has shape \[0\]"),
        (("b c", [1.0, 2.0]), "white space"),
    ],
)
def test_writer_refuses_and_leaves_what_stood_there(tmp_path, second, says):
    with EmbeddingWriter(tmp_path) as write:
        write("old", np.ones(2))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(UserError, match=says), EmbeddingWriter(tmp_path) as write:
        write("a", np.ones(2))
        write(second[0], np.array(second[1]))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_writer_of_nothing_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no embedding was written"), EmbeddingWriter(tmp_path):
        pass
    assert os.listdir(tmp_path) == [".lock"]


@pytest.fixture
def good(tmp_path):
    with EmbeddingWriter(tmp_path) as write:
        for i in range(4):
            write(f"u{i}", np.full(5, i + 1.0))
    return tmp_path / "embedding.scp"


def spoil_line(scp, number, text):
    lines = scp.read_text().splitlines()
    lines[number - 1] = text
    scp.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("line", "text", "says"),
    [
        (2, "u1", r"embedding\.scp:2: a line must be"),
        (3, "u2 cat x.ark |", r"embedding\.scp:3: .*is a command"),
        (3, "u2 x.ark:5[0:2]", r"embedding\.scp:3: .*range"),
        (4, "u0 x.ark:5", r"embedding\.scp:4: utterance u0 appears twice"),
        (1, "u0 /nowhere/x.ark:3", r"embedding\.scp:1: .*cannot open the ark: No such file"),
    ],
)
def test_reader_names_the_scp_line(good, line, text, says):
    spoil_line(good, line, text)
    with pytest.raises(UserError, match=says) as err:
        read_embeddings(good)
    assert "hint:" in str(err.value)


def test_reader_refuses_wrong_offsets_and_cut_arks(good):
    ark = good.with_suffix(".ark")
    whole = ark.read_bytes()
    offset = int(good.read_text().splitlines()[2].rsplit(":")[1])
    text = good.read_text()
    good.write_text(text.replace(f":{offset}\n", f":{offset + 1}\n"))
    with pytest.raises(UserError, match=r"embedding\.scp:3: u2 .*no Kaldi vector"):
        read_embeddings(good)
    good.write_text(text)
    ark.write_bytes(whole[:-3])
    with pytest.raises(UserError, match=r"embedding\.scp:4: u3 .*the ark ends before"):
        read_embeddings(good)
    good.write_text("")
    with pytest.raises(UserError, match="contains no embeddings"):
        read_embeddings(good)


def test_reader_refuses_nan_and_mixed_dimensions(tmp_path):
    bad = {"a": np.ones(3, np.float32), "b": np.array([1, np.nan, 1], np.float32)}
    kaldiio.save_ark(str(tmp_path / "a.ark"), bad, scp=str(tmp_path / "a.scp"))
    with pytest.raises(UserError, match=r"a\.scp:2: embedding of utterance b contains NaN"):
        read_embeddings(tmp_path / "a.scp")
    bad["b"] = np.ones((2, 4), np.float32)
    kaldiio.save_ark(str(tmp_path / "a.ark"), bad, scp=str(tmp_path / "a.scp"))
    with pytest.raises(UserError, match=r"a\.scp:2: b .*has 4 dimensions, a has 3"):
        read_embeddings(tmp_path / "a.scp")


class Bomb:
    def __reduce__(self):
        return os.mkdir, (os.environ["SPKV_TEST_BOMB"],)


def test_nothing_is_unpickled_or_run(tmp_path, monkeypatch):
    monkeypatch.setenv("SPKV_TEST_BOMB", str(tmp_path / "boom"))
    (tmp_path / "a.ark").write_bytes(b"u0 PKL" + pickle.dumps(Bomb()))
    for entry in ("a.ark:3", f"mkdir {tmp_path}/boom |", f"| mkdir {tmp_path}/boom"):
        (tmp_path / "a.scp").write_text(f"u0 {tmp_path / entry if 'ark' in entry else entry}\n")
        with pytest.raises(UserError):
            read_embeddings(tmp_path / "a.scp")
    assert not (tmp_path / "boom").exists()
