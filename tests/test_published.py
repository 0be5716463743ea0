"""Published embeddings and pseudo-labels: names are matched by a stated rule, and nothing in a file is run."""

import os
import pickle
import sys

import numpy as np
import pytest
import torch

from pyspkv.base.errors import UserError
from pyspkv.bin import datadir, import_embeddings, reuse
from pyspkv.data.ark import EmbeddingWriter, read_embeddings
from pyspkv.data.datadir import DataDir
from pyspkv.data.published_names import end_of, match

NAMES = [
    "id2/vB/00001.wav",
    "id1/vA/00001.wav",
    "id1/vA/00002.wav",
    "id9/vZ/00001.wav",
]  # the last is of no utterance
UTTS = ["id1-vA-00001", "id1-vA-00002", "id2-vB-00001"]
ROWS = [1, 2, 0]


@pytest.fixture
def train(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "wav.scp").write_text("".join(f"{u} /vox2/dev/aac/{u.replace('-', '/')}.m4a\n" for u in UTTS))
    for name in ("utt2spk", "spk2utt"):
        (folder / name).write_text("".join(f"{u} {u}\n" for u in UTTS))
    return folder


def test_names_are_ids_or_ends_of_paths(train):
    data = DataDir.read(train)
    assert match(NAMES, data, "x") == ROWS
    assert match([UTTS[2], "/other/place/id1/vA/00002.flac", UTTS[0]], data, "x") == [2, 1, 0]
    assert match(["vB/00001", "vA/00002.wav", "vA/00001.wav"], data, "x") == [2, 1, 0]
    assert end_of("a/b/c/d.e.wav") == "b/c/d.e" and end_of("d") == "d"
    (train / "utt2path").write_text("".join(f"{u} p/{k}.wav\n" for k, u in enumerate(UTTS)))
    assert match(["p/2.wav", "p/0.wav", "p/1.wav"], DataDir.read(train), "x") == [1, 2, 0]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (NAMES[1:3], "x: has no line for 1 of 3 utterances of .*; the first is id2-vB-00001; a name there is 'id1"),
        ([], "has no line for 3 of 3 utterances"),
        (["a", "b"], "has no line for 3 of 3 utterances"),
        ([*NAMES, "x/id1/vA/00002.m4a"], "names one utterance twice: 'id1/vA/00002.wav' and 'x/id1/vA/00002.m4a'"),
        ([*NAMES, UTTS[0]], "names one utterance twice: 'id1-vA-00001' and 'id1/vA/00001.wav'"),
        ([*NAMES, "vA/00001.wav"], "names one utterance twice"),
        (["00001.wav", "00002.wav"], "'00001.wav' is the end of two paths, those of id1-vA-00001 and id2-vB-00001"),
    ],
)  # fmt: skip
def test_what_is_missing_or_double_is_counted_and_named(train, names, says):
    with pytest.raises(UserError, match=says):
        match(names, DataDir.read(train), "x")


# ---- labels -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("order", ["label path", "path label"])
def test_labels_of_either_order_become_speakers(train, tmp_path, capsys, order):
    lines = [(f"{k % 2}", name) for k, name in enumerate(NAMES)]
    text = "".join(" ".join(pair if order == "label path" else pair[::-1]) + "\n" for pair in lines)
    (tmp_path / "list").write_text(text)
    words = ["from-labels", str(tmp_path / "list"), str(train), str(tmp_path / "out")]
    datadir.main(words)
    got = DataDir.read(tmp_path / "out")
    assert (got.utts, got.spk) == (UTTS, ["1", "0", "0"])
    assert got.wav == DataDir.read(train).wav
    assert "1 of 4 lines are of no utterance" in capsys.readouterr().out
    before = os.stat(tmp_path / "out/utt2spk").st_mtime_ns
    datadir.main(words)
    assert "kept" in capsys.readouterr().out and os.stat(tmp_path / "out/utt2spk").st_mtime_ns == before
    (tmp_path / "list").write_text(text.replace("0 id1", "2 id1").replace(".wav 0", ".wav 2"))
    with pytest.raises(UserError, match="out: has other labels than the list gives"):
        datadir.main(words)


@pytest.mark.parametrize(
    ("text", "says"),
    [("1 a b\n", "list:1: the line must be"), ("\n", "contains no label"), ("1 a\n2\n", "list:2: the line must be"),
     ("1 id1/vA/00001.wav\n", "has no line for 2 of 3")],
)  # fmt: skip
def test_lists_of_labels_that_cannot_be_used(train, tmp_path, text, says):
    (tmp_path / "list").write_text(text)
    with pytest.raises(UserError, match=says):
        datadir.main(["from-labels", str(tmp_path / "list"), str(train), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


# ---- embeddings -------------------------------------------------------------------------------------------------
@pytest.fixture
def call(train, tmp_path, monkeypatch, capsys):
    def run(source, *options):
        words = ["x", "--from", source, "--data", train, "--out", tmp_path / "out", *options]
        monkeypatch.setattr(sys, "argv", [str(word) for word in words])
        import_embeddings.main()
        return capsys.readouterr().out

    return run


def vectors():
    return np.random.default_rng(0).standard_normal((len(NAMES), 5)).astype(np.float32)


def save(folder, form, x):
    if form == "pt":
        torch.save({name: torch.tensor(v) for name, v in zip(NAMES, x)}, folder / "dino.pt")
    elif form == "pt of rows":
        torch.save({name: torch.tensor(v)[None].half() for name, v in zip(NAMES, x)}, folder / "dino.pt")
    elif form == "npz":
        np.savez(folder / "dino.npz", **dict(zip(NAMES, x)))
    elif form == "npz of two":
        np.savez(folder / "dino.npz", utts=np.array(NAMES), embeddings=x)
    elif form == "npy":
        np.save(folder / "dino.npy", x)
        (folder / "names").write_text("\n".join(NAMES) + "\n")
        return folder / "dino.npy", "--names", folder / "names"
    else:
        with EmbeddingWriter(folder / "scp") as write:
            for name, v in zip(NAMES, x):
                write(name, v)
        return (folder / "scp/embedding.scp",)
    return (next(folder.glob("dino.*")),)


@pytest.mark.parametrize("form", ["pt", "pt of rows", "npz", "npz of two", "npy", "scp"])
def test_embeddings_of_every_form(tmp_path, call, form):
    x = vectors()
    source = save(tmp_path, form, x)
    said = call(*source)
    assert "3 embeddings of 5 dimensions" in said and "1 of 4 names are of no utterance" in said
    got = read_embeddings(tmp_path / "out/embedding.scp")
    assert got.ids == UTTS
    np.testing.assert_allclose(got.x, x[ROWS], rtol=1e-3 if form == "pt of rows" else 0)
    assert "imported already" in call(*source)
    save(tmp_path, form, x + 1)
    with pytest.raises(UserError, match="out: contains other embeddings"):
        call(*source)
    np.testing.assert_array_equal(read_embeddings(tmp_path / "out/embedding.scp").x, got.x)


# Names that 3D-Speaker's local/prepare_data*.sh gives the files of VoxCeleb2, and the ids of this project for them.
# Ids of videos may have - and _ .
SPEAKER_3D = [
    "id00012/21Uxsk56VDQ/00001.wav",
    "id00012/_raOc3-IRsw/00110.wav",
    "id00015/-0fTs5bSK0A/00002.wav",
]


@pytest.fixture
def vox2(tmp_path):
    """A data directory as local/voxceleb.py makes it, of those files as .m4a or .flac elsewhere."""
    lines = [(name[:-4].replace("/", "-"), f"/corpora/vox2/dev/aac/{name[:-4]}.flac") for name in SPEAKER_3D]
    (tmp_path / "data").mkdir()
    (tmp_path / "data/wav.scp").write_text("".join(f"{utt} {path}\n" for utt, path in sorted(lines)))
    for table in ("utt2spk", "spk2utt"):
        (tmp_path / "data" / table).write_text("".join(f"{utt} {utt}\n" for utt, _ in sorted(lines)))
    return tmp_path / "data"


def import_all(source, data, out, monkeypatch):
    words = ["import_embeddings", "--from", source, "--data", data, "--out", out]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    import_embeddings.main()
    return read_embeddings(out / "embedding.scp")


def test_shards_as_3d_speaker_writes_them(tmp_path, vox2, monkeypatch, capsys):
    """extract_ssl.py of modelscope/3D-Speaker: a [1, D] matrix an utterance, xvector_NN.ark and .scp of each process by
    kaldiio, with the path of the ark from the folder that it ran in. The shards are joined by `cat`."""
    from kaldiio import WriteHelper

    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    folder = tmp_path / "3D-Speaker/exp/rdino/embeddings"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "3D-Speaker")
    for rank in range(2):
        stem = f"exp/rdino/embeddings/xvector_{rank:02d}"
        with WriteHelper(f"ark,scp:{stem}.ark,{stem}.scp") as write:
            for k in range(rank, 3, 2):
                write(SPEAKER_3D[k], x[k][None])
    monkeypatch.chdir(tmp_path)
    joined = folder / "xvector.scp"
    joined.write_text("".join(p.read_text() for p in sorted(folder.glob("xvector_*.scp"))))
    assert joined.read_text().count(" exp/rdino/embeddings/xvector_0") == 3
    got = import_all(joined, vox2, tmp_path / "out", monkeypatch)
    assert got.ids == ["id00012-21Uxsk56VDQ-00001", "id00012-_raOc3-IRsw-00110", "id00015--0fTs5bSK0A-00002"]
    np.testing.assert_array_equal(got.x, x)
    import_all(joined, vox2, tmp_path / "out", monkeypatch)
    assert "imported already" in capsys.readouterr().out
    with pytest.raises(UserError, match="has no line for 1 of 3 utterances"):
        import_all(folder / "xvector_00.scp", vox2, tmp_path / "one", monkeypatch)
    joined.write_text(joined.read_text().replace("embeddings/xvector_01.ark", "other/xvector_00.ark"))
    with pytest.raises(UserError, match="two arks are called xvector_00.ark"):
        import_all(joined, vox2, tmp_path / "two", monkeypatch)
    (folder / "xvector_00.ark").unlink()
    with pytest.raises(
        UserError, match="points into exp/rdino/embeddings/xvector_00.ark, which does not exist"
    ):
        import_all(folder / "xvector_00.scp", vox2, tmp_path / "gone", monkeypatch)


def test_a_list_with_tabs_or_a_blank_line(train, tmp_path, call):
    save(tmp_path, "scp", vectors())
    scp = tmp_path / "scp/embedding.scp"
    text = scp.read_text()
    scp.write_text(text + "\n")
    with pytest.raises(
        UserError, match=f"embedding.scp:{len(NAMES) + 1}: a line must be `utterance ark:offset`"
    ):
        call(scp)
    scp.write_text(text.replace(" ", "\t"))
    call(scp)
    assert read_embeddings(tmp_path / "out/embedding.scp").ids == UTTS


def test_labels_of_3d_speakers_names(tmp_path, vox2):
    """In its utt2spk (`name speaker`), and with the ids of this project (`label id`)."""
    spk = {name: f"c{k % 2}" for k, name in enumerate(SPEAKER_3D)}
    (tmp_path / "utt2spk").write_text("".join(f"{name} {label}\n" for name, label in spk.items()))
    (tmp_path / "list").write_text(
        "".join(f"{label} {name[:-4].replace('/', '-')}\n" for name, label in spk.items())
    )
    for k, file in enumerate(("utt2spk", "list")):
        datadir.main(["from-labels", str(tmp_path / file), str(vox2), str(tmp_path / f"out{k}")])
        got = DataDir.read(tmp_path / f"out{k}")
        assert dict(zip(got.utts, got.spk)) == {n[:-4].replace("/", "-"): label for n, label in spk.items()}


class Bomb:
    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return os.mkdir, (self.file,)


@pytest.mark.parametrize("form", ["pt", "npy", "npz", "plain"])
def test_nothing_in_a_file_is_run(tmp_path, call, form):
    bomb, options = Bomb(tmp_path / "ran"), ()
    file = tmp_path / f"x.{form}"
    if form == "pt":
        torch.save({NAMES[0]: bomb}, file)
    elif form == "npy":
        np.save(file, np.array({NAMES[0]: bomb}, dtype=object), allow_pickle=True)
        (tmp_path / "names").write_text("\n".join(NAMES))
        options = ("--names", tmp_path / "names")
    elif form == "npz":
        np.savez(file, a=np.array([bomb], dtype=object))
    else:
        file.write_bytes(pickle.dumps({NAMES[0]: bomb}))
    with pytest.raises(UserError, match=rf"x\.{form}: "):
        call(file, *options)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out/embedding.scp").exists()


def test_files_that_hold_something_else_are_named(tmp_path, call):
    x = vectors()
    np.savez(tmp_path / "odd.npz", **{NAMES[0]: np.arange(3)})
    np.savez(tmp_path / "short.npz", names=np.array(NAMES[:2]), x=x)
    np.savez_compressed(tmp_path / "packed.npz", **{NAMES[0]: np.zeros(100000, np.float32)})
    (tmp_path / "cut.npz").write_bytes((tmp_path / "short.npz").read_bytes()[:-30])
    np.save(tmp_path / "some.npy", x)
    (tmp_path / "names").write_text("a b\n")
    torch.save([torch.zeros(3)], tmp_path / "list.pt")
    torch.save({"a": torch.zeros(3), "b": 1}, tmp_path / "mixed.pt")
    torch.save({name: torch.full((5,), float("nan")) for name in NAMES}, tmp_path / "nan.pt")
    torch.save({name: torch.zeros(3 + k) for k, name in enumerate(NAMES)}, tmp_path / "dims.pt")
    for name, says in (
        ("odd.npz", "holds no floats"), ("short.npz", "for 2 names"), ("packed.npz", "is packed"),
        ("cut.npz", "cut short"), ("some.npy", "has no names"), ("list.pt", "no dictionary of tensors"),
        ("mixed.pt", "no dictionary of tensors"), ("nan.pt", "NaN"), ("dims.pt", "has shape"),
        ("gone.pt", "no such file"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=says):
            call(tmp_path / name)
    with pytest.raises(UserError, match="for 2 names"):
        call(tmp_path / "some.npy", "--names", tmp_path / "names")
    assert not (tmp_path / "out/embedding.scp").exists()


def test_an_extraction_is_not_overwritten_and_a_killed_import_goes_on(tmp_path, call, monkeypatch):
    (source,) = save(tmp_path, "pt", vectors())
    with EmbeddingWriter(tmp_path / "out") as write:
        write(UTTS[0], np.ones(4))
    before = (tmp_path / "out/embedding.ark").read_bytes()
    with pytest.raises(UserError, match="contains other embeddings"):
        call(source)
    assert (tmp_path / "out/embedding.ark").read_bytes() == before
    for file in (tmp_path / "out").iterdir():
        file.unlink()
    real, left = os.replace, [0]

    def replace(*names):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        real(*names)

    monkeypatch.setattr("pyspkv.base.atomic.os.replace", replace)
    for allowed in range(10):
        left[0] = allowed
        try:
            call(source)
            break
        except KeyboardInterrupt:
            assert not (tmp_path / "out/embedding.scp").exists()
    assert allowed > 1
    assert read_embeddings(tmp_path / "out/embedding.scp").ids == UTTS


def test_a_new_experiment_takes_imported_embeddings_over(tmp_path, call, monkeypatch):
    call(*save(tmp_path, "pt", vectors()))
    old, new = tmp_path / "old/imported/embed", tmp_path / "new"
    old.mkdir(parents=True)
    (tmp_path / "out").rename(old / "train")
    words = ["reuse", "--from", str(tmp_path / "old"), "--exp", str(new), "--stage"]
    monkeypatch.setattr(sys, "argv", [*words, "3"])
    with pytest.raises(UserError, match="has no finished phase before this stage"):
        reuse.main()
    assert not new.exists()
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", [*words, "4"])
        reuse.main()
    assert (new / "imported/embed/train/embedding.ark").read_bytes() == (
        old / "train/embedding.ark"
    ).read_bytes()
