"""Folders and lists of audio become data directories and back: cases by hand, round trips, bad input."""

import ast
import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from pyspkv.base.errors import UserError
from pyspkv.bin.datadir import main
from pyspkv.data.datadir import DataDir
from pyspkv.data.manifests import folder, ids, lines
from pyspkv.data.tables import has_bad_characters

RATE = 16000


def wav(path: Path, seconds: float = 0.5, seed: int = 0, rate: int = RATE, silent: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    x = np.random.default_rng(seed).standard_normal(round(seconds * rate)) * (0 if silent else 0.1)
    soundfile.write(path, x, rate)
    return path


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """Two speakers with two sessions each and an utterance per session."""
    monkeypatch.chdir(tmp_path)
    for k, name in enumerate(("anna/s1/a.wav", "anna/s2/a.flac", "ben/s1/b 1.wav", "ben/s3/c.ogg")):
        wav(tmp_path / "audio" / name, 0.5 + 0.25 * k, k)
    return tmp_path / "audio"


def dd(*words) -> None:
    main([str(w) for w in words])


def fails(*words) -> str:
    with pytest.raises(UserError) as err:
        dd(*words)
    return str(err.value)


# -- ids


@given(st.lists(st.text(max_size=12), max_size=30), st.randoms())
def test_ids_are_unique_plain_and_do_not_depend_on_the_order(names, rng):
    found = ids.unique_ids(names)
    assert set(found) == set(names) and len(set(found.values())) == len(found)
    assert all(i.split() == [i] and not has_bad_characters(i) and "/" not in i for i in found.values())
    rng.shuffle(names)
    assert ids.unique_ids(names) == found


def test_ids_by_hand():
    found = ids.unique_ids(["a b", "a_b", "a/b", "a-b", "a_b-2", "a\tb"])
    assert found["a_b"] == "a_b" and found["a-b"] == "a-b" and found["a/b"] == "a-b-2"
    assert {found["a b"], found["a\tb"]} == {"a_b-3", "a_b-4"}, "a_b-2 is another's name"
    assert ids.plain_id("") == "_" and ids.plain_id("\u00fc\u3000\ud800") == "\u00fc__"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text("ab /\u00e9-_.", min_size=1, max_size=8), min_size=1, max_size=6, unique=True))
def test_any_names_in_a_table_make_a_sound_directory(tmp_path_factory, names):
    tmp = tmp_path_factory.mktemp("names")
    path = wav(tmp / "x.wav")
    rows = [f"{json.dumps({'utt': n, 'path': str(path), 'speaker': n[::-1]})}\n" for n in names]
    (tmp / "list").write_text("".join(rows))
    dd("from-jsonl", tmp / "list", tmp / "d", "--check", "none")
    data = DataDir.read(tmp / "d")
    back = data.utt_tables.get("utt2name", {u: u for u in data.utts})
    assert len(data.utts) == len(names)
    assert {ast.literal_eval(v) if v[0] == "'" else v for v in back.values()} == set(names), (
        "the table leads back"
    )


# -- a folder


def test_a_folder_with_a_pattern(corpus, tmp_path):
    dd("from-folder", corpus, "d", "--pattern", "{speaker}/{session}/{utterance}")
    data = DataDir.read("d")
    assert data.utts == ["anna-s1-a", "anna-s2-a", "ben-s1-b_1", "ben-s3-c"]
    assert data.spk == ["anna", "anna", "ben", "ben"]
    assert data.utt_tables["utt2path"]["ben-s1-b_1"] == "ben/s1/b 1.wav"
    assert data.wav["ben-s1-b_1"] == str(corpus / "ben/s1/b 1.wav")
    assert list(data.utt_tables["utt2session"].values()) == ["s1", "s2", "s1", "s3"]
    assert [float(s) for s in data.utt_tables["utt2dur"].values()] == pytest.approx(
        [0.5, 0.75, 1.0, 1.25], abs=0.01
    )
    assert not Path("d.skipped").exists()
    before = {p.name: p.read_bytes() for p in Path("d").iterdir()}
    dd("from-folder", corpus, "d", "--regex", r"(?P<speaker>[^/]+)/(?P<session>[^/]+)/.*", "--nj", "2")
    assert {p.name: p.read_bytes() for p in Path("d").iterdir()} == before


def test_without_a_pattern_each_utterance_is_its_own_speaker(corpus, capsys):
    dd("from-folder", corpus, "d")
    data = DataDir.read("d")
    assert data.utts == data.spk and len(data.utts) == 4
    assert "no speaker is known" in capsys.readouterr().out


def test_unusable_files_are_named(corpus, tmp_path, capsys):
    wav(corpus / "anna/s1/silent.wav", silent=True)
    wav(corpus / "anna/s1/tiny.wav", 0.01)
    (corpus / "anna/s1/broken.wav").write_bytes(b"RIFF")
    (corpus / "anna/s1/phone.m4a").write_bytes(b"x")
    (corpus / "anna/s1/notes.txt").write_text("x")
    wav(corpus / "anna/s1/new\nline.wav")
    wav(corpus / "loose.wav")
    os.symlink("..", corpus / "anna/loop")
    os.symlink("nowhere", corpus / "anna/gone.wav")
    os.mkfifo(corpus / "anna/pipe.wav")
    dd("from-folder", corpus, "d", "--pattern", "{speaker}/{session}/{utterance}")
    rows = [line.split("\t") for line in Path("d.skipped").read_text().splitlines()]
    found = {name: reason for reason, name in rows}
    expected = {
        "anna/s1/silent.wav": "silent: digital silence",
        "anna/s1/tiny.wav": "shorter than 0.1 s",
        "anna/s1/broken.wav": "cannot be read",
        "anna/s1/phone.m4a": "ffmpeg",
        "anna/s1/new\\nline.wav": "line end",
        "loose.wav": "does not fit the pattern",
        "anna/loop": "read already",
        "anna/gone.wav": "a link to nowhere",
        "anna/pipe.wav": "a pipe",
    }
    assert set(found) == set(expected)
    assert all(part in found[name] for name, part in expected.items())
    assert len(DataDir.read("d").utts) == 4 and "1 .txt" in capsys.readouterr().out
    before = {p.name: p.read_bytes() for p in Path("d").iterdir()}
    text = fails("from-folder", corpus, "d", "--pattern", "{speaker}/{session}/{utterance}", "--strict")
    assert "9 entries" in text and "d.skipped" in text
    assert {p.name: p.read_bytes() for p in Path("d").iterdir()} == before, "the old directory stays"
    dd("from-folder", corpus, "e", "--check", "headers")
    assert "anna-s1-silent" in DataDir.read("e").utts, "silence takes decoding"
    dd("from-folder", corpus, "e", "--check", "none")
    assert {"anna-s1-tiny", "anna-s1-broken"} < set(DataDir.read("e").utts)


def test_links_are_followed_once_and_real_folders_come_first(tmp_path):
    wav(tmp_path / "away/x.wav")
    wav(tmp_path / "root/z/y.wav")
    (tmp_path / "root/a").symlink_to(tmp_path / "away")
    (tmp_path / "root/b").symlink_to(tmp_path / "away")
    (tmp_path / "root/c").symlink_to("z")
    (tmp_path / "away/back").symlink_to(tmp_path / "root")
    dd("from-folder", tmp_path / "root", tmp_path / "d")
    assert DataDir.read(tmp_path / "d").utts == ["a-x", "z-y"]


def test_equal_stems_and_equal_ids(tmp_path):
    for name in ("a.wav", "a.flac", "a.wav.ogg", "b/c.wav", "b-c.wav"):
        wav(tmp_path / "r" / name)
    dd("from-folder", tmp_path / "r", tmp_path / "d")
    paths = DataDir.read(tmp_path / "d").utt_tables["utt2path"]
    assert paths == {"a.flac": "a.flac", "a.wav": "a.wav", "a.wav.ogg": "a.wav.ogg",
                     "b-c": "b-c.wav", "b-c-2": "b/c.wav"}  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "path", "speaker"),
    [
        ("{speaker}/{session}/{utterance}.wav", "a/b/c.wav", "a"),
        ("{speaker}/{session}/{utterance}.wav", "a/b/c/d.wav", None),
        ("{speaker}/{session}/{utterance}.wav", "a/b/c.flac", None),
        ("{speaker}/**", "a/b/c/d.wav", "a"),
        ("*/{speaker}_*", "dir/id7_x.wav", "id7"),
        ("{speaker}_{session}_{utterance}", "a_1_x_y.flac", "a"),
        ("{speaker}/{speaker}-{utterance}", "a/a-1.wav", "a"),
        ("{speaker}/{speaker}-{utterance}", "a/b-1.wav", None),
        ("a+b({speaker})", "a+b(x).wav", "x"),
    ],
)
def test_patterns(pattern, path, speaker):
    match = folder.pattern_of(pattern).fullmatch(path)
    assert (match and match["speaker"]) == speaker


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--pattern", "{who}/{utterance}"], "{who}"),
        (["--regex", "("], "is not a regular expression"),
        (["--regex", "(?P<who>.*)"], "has none of the fields"),
        (["--pattern", "{speaker}.wav"], "matches none of 4 paths, such as anna/s1/a.wav"),
        (["--endings", "mp3"], "contains no audio file"),
        (["--min-seconds", "9"], "none of 4 utterances can be used"),
    ],
)
def test_bad_options_of_a_folder(corpus, words, part):
    assert part in fails("from-folder", corpus, "d", *words)
    assert not Path("d").exists()


def test_out_is_refused_as_elsewhere(corpus, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/thesis.txt").write_text("x")
    assert "thesis.txt" in fails("from-folder", corpus, "d")
    assert "is not a folder" in fails("from-folder", tmp_path / "nowhere", "e")


# -- lists


TABLE = "file,who,from,to\na.wav,anna,0.0,0.5\na.wav,ben,0.5,1.5\nb.wav,,,\n"


def test_a_table_with_times(tmp_path):
    wav(tmp_path / "a.wav", 2)
    wav(tmp_path / "b.wav", 1)
    names = [
        "--audio-column",
        "file",
        "--speaker-column",
        "who",
        "--start-column",
        "from",
        "--end-column",
        "to",
    ]
    for name, text in {
        "comma.csv": TABLE,
        "tab.tsv": TABLE.replace(",", "\t"),
        "semicolon.csv": TABLE.replace(",", ";"),
        "windows.csv": "\ufeff" + TABLE.replace("\n", "\r\n"),
    }.items():
        (tmp_path / name).write_text(text, newline="")
        dd("from-csv", tmp_path / name, tmp_path / "d", *names)
        data = DataDir.read(tmp_path / "d")
        assert data.segments == {
            "a-0000000-0000050": ("a", 0.0, 0.5), "a-0000050-0000150": ("a", 0.5, 1.5), "b": ("b", 0.0, -1.0),
        }  # fmt: skip
        assert data.spk == ["anna", "ben", "b"] and data.reco_tables["reco2dur"] == {"a": "2.0", "b": "1.0"}


def test_json_lines_with_keys_inside(tmp_path):
    wav(tmp_path / "sub/a.wav")
    record = {"audio": {"path": "sub/a.wav"}, "id": 17, "meta": {"spk": "anna", "sex": "female"}}
    with gzip.open(tmp_path / "l.jsonl.gz", "wt") as f:
        f.write(json.dumps(record) + "\n\n")
    keys = [
        "--audio-key",
        "audio.path",
        "--utt-key",
        "id",
        "--speaker-key",
        "meta.spk",
        "--gender-key",
        "meta.sex",
    ]
    dd("from-jsonl", tmp_path / "l.jsonl.gz", tmp_path / "d", *keys)
    data = DataDir.read(tmp_path / "d")
    assert data.utts == ["17"] and data.spk_tables["spk2gender"] == {"anna": "f"}


BAD = {
    "no column": ("csv", "name,speaker\nx,y\n", "has no 'path'; there are name, speaker"),
    "an empty path": ("csv", "path,speaker\n,y\n", ":2: has no 'path'"),
    "cells": ("csv", "path,speaker\na.wav\n", ":2: has 1 cells for 2 columns"),
    "a row after a quoted line end": ("csv", 'path,speaker\n"a\n.wav",x\na.wav\n', ":4: has 1 cells"),
    "names": ("csv", "path,path\na.wav,b\n", "two columns have the same name"),
    "quotes": ("csv", 'path,speaker\n"a.wav,x\n', "is not a row of CSV"),
    "empty": ("csv", "", "is empty"),
    "only names": ("csv", "path,speaker\n", "lists no usable audio"),
    "not UTF-8": ("csv", b"path\n\xff\n", ":2: is not UTF-8 text"),
    "twice": ("csv", "utt,path\nx,a.wav\nx,a.wav\n", ":3: the utterance 'x' is given twice, as in line 2"),
    "a gone file": ("csv", "path\nnowhere.wav\n", "none of 1 utterances can be used; nowhere: cannot be read"),
    "a command": ("csv", "path\ncat a.wav |\n", "--allow-pipes"),
    "a time": ("csv", "path,start\na.wav,soon\n", ":2: 'start' is nan"),
    "backwards": ("csv", "path,start,end\na.wav,2,1\n", ":2: ends at 1 s but starts at 2 s"),
    "beyond": ("csv", "path,start,end\na.wav,2,5\n", "beyond its recording"),
    "genders": ("csv", "path,utt,speaker,gender\na.wav,1,s,m\na.wav,2,s,F\n", ":3: the speaker 's' has both m and f"),
    "no JSON": ("jsonl", '{"path": "a.wav"}\n{"path":\n', ":2: is not JSON"),
    "no object": ("jsonl", "[1]\n", ":1: is not a JSON object"),
    "a list as path": ("jsonl", '{"path": ["a.wav"]}\n', ":1: 'path' is ['a.wav'], not text"),
    "deep": ("jsonl", "[" * 100_000, ":1: is not JSON (nested deeper"),
    "half a character": ("jsonl", '{"path": "\\ud800"}', ":1: is not JSON"),
    "a line end": ("jsonl", '{"path": "a\\nb.wav"}', "no usable audio; the first: the name holds a line"),
    "an ark's place": ("jsonl", '{"path": "/x/a.ark:17"}', "ends like a place in an ark"),
    "gzip": ("jsonl.gz", b"\x1f\x8b\x08\x00", "is damaged gzip data"),
    "shards": ("wespeaker", "shards/shards_000.tar\n", "shard.list"),
    "no key": ("wespeaker", '{"key": "x", "spk": "y"}\n', "has no 'wav'"),
    "no RTTM": ("rttm", "anna 1 2\n", "the line must be `SPEAKER"),
    "a negative time": ("rttm", "SPEAKER a 1 -3 1 <NA> <NA> x <NA> <NA>\n", ":1: the line must be"),
    "an endless turn": ("rttm", "SPEAKER a 1 0 1.5e308 <NA> <NA> x <NA> <NA>\n", ":1: the line must be"),
    "other recordings": ("rttm", "SPEAKER q 1 0 1 <NA> <NA> x <NA> <NA>\n", "no audio of the recording: q"),
    "no recording": ("lhotse", '{"id": "r"}\n', ":1: is not a recording"),
    "a source": ("lhotse", '{"id": "r", "duration": 1, "sources": [3]}\n', ":1: 'sources' has an element that is not"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_lists(tmp_path, case):
    kind, content, part = BAD[case]
    wav(tmp_path / "a.wav", 1)
    file = tmp_path / f"list.{kind}"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    words = {"rttm": ["--wav-dir", tmp_path], "lhotse": ["--recordings"]}.get(kind, [])
    text = fails(f"from-{kind.removesuffix('.gz')}", *words, file, tmp_path / "d")
    assert part in text and str(file) in text or "none of" in text
    assert not (tmp_path / "d").exists()


def test_a_command_only_where_it_is_allowed(tmp_path):
    path = wav(tmp_path / "a.wav")
    (tmp_path / "l.csv").write_text(f"utt,path\nx,cat {path} |\n")
    dd("from-csv", tmp_path / "l.csv", tmp_path / "d", "--allow-pipes")
    assert DataDir.read(tmp_path / "d").wav == {"x": f"cat {path} |"}
    (tmp_path / "l.csv").write_text(f"utt,path\nx,touch {tmp_path}/canary |\n")
    fails("from-csv", tmp_path / "l.csv", tmp_path / "e")
    assert not (tmp_path / "canary").exists()


RTTM = """;; a comment
SPKR-INFO meet 1 <NA> <NA> <NA> unknown A <NA>
SPEAKER meet 1 0.00 1.50 <NA> <NA> A <NA> <NA>
SPEAKER meet 1 1.25 1.00 <NA> <NA> B <NA> <NA>
SPEAKER meet 1 2.50 0.20 <NA> <NA> A <NA> <NA>
SPEAKER call 1 0.00 1.00 <NA> <NA> A <NA>
"""


def test_diarized_recordings(tmp_path):
    wav(tmp_path / "w/meet.wav", 3)
    wav(tmp_path / "w/call.wav", 1)
    (tmp_path / "x.rttm").write_text(RTTM)
    dd("from-rttm", tmp_path / "x.rttm", tmp_path / "d", "--wav-dir", tmp_path / "w")
    data = DataDir.read(tmp_path / "d")
    assert data.segments == {
        "call-A-0000000-0000100": ("call", 0.0, 1.0),
        "meet-A-0000000-0000150": ("meet", 0.0, 1.5),
        "meet-B-0000125-0000225": ("meet", 1.25, 2.25),
    }
    assert data.spk == ["call-A", "meet-A", "meet-B"]
    assert "shorter than 0.5 s" in (tmp_path / "d.skipped").read_text()
    scp = tmp_path / "wav.scp"
    scp.write_text(f"call {tmp_path}/w/call.wav\nmeet {tmp_path}/w/meet.wav\n")
    dd(
        "from-rttm",
        tmp_path / "x.rttm",
        tmp_path / "d",
        "--wav-scp",
        scp,
        "--same-speakers",
        "--min-seconds",
        "0.1",
    )
    assert DataDir.read(tmp_path / "d").spk == ["A", "A", "A", "B"]


# The output of lhotse 1.33 (Recording, SupervisionSegment and MonoCut as in its documentation).
RECORDING = {
    "id": "r", "sources": [{"type": "file", "channels": [0], "source": "r.wav"}], "sampling_rate": 16000,
    "num_samples": 48000, "duration": 3.0, "channel_ids": [0],
}  # fmt: skip
SUPERVISION = {"id": "s1", "recording_id": "r", "start": 0.5, "duration": 1.0, "channel": 0, "speaker": "anna",
               "gender": "female", "text": "hello"}  # fmt: skip


def jsonl(path: Path, *records) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def test_lhotse_as_its_documentation_has_it(tmp_path):
    wav(tmp_path / "r.wav", 3)
    whole = {"id": "s2", "recording_id": "r", "start": 0, "duration": 3.0, "channel": 0}
    recordings = jsonl(tmp_path / "r.jsonl", RECORDING)
    supervisions = jsonl(tmp_path / "s.jsonl", SUPERVISION, whole)
    dd("from-lhotse", "--recordings", recordings, "--supervisions", supervisions, tmp_path / "d")
    data = DataDir.read(tmp_path / "d")
    assert data.segments == {"s1": ("r", 0.5, 1.5), "s2": ("r", 0.0, -1.0)} and data.spk == ["anna", "s2"]
    dd("from-lhotse", "--recordings", recordings, tmp_path / "d")
    assert DataDir.read(tmp_path / "d").wav == {"r": str(tmp_path / "r.wav")}
    cut = {"id": "c", "start": 1.0, "duration": 0.5, "channel": 0, "supervisions": [SUPERVISION],
           "recording": RECORDING, "type": "MonoCut"}  # fmt: skip
    two = {**cut, "id": "c2", "supervisions": [SUPERVISION, {**SUPERVISION, "speaker": "ben"}]}
    mixed = {"id": "m", "tracks": [], "type": "MixedCut"}
    loud = {**RECORDING, "transforms": [{"name": "Speed", "kwargs": {"factor": 1.1}}]}
    url = {**RECORDING, "sources": [{"type": "url", "channels": [0], "source": "https://x"}]}
    cuts = [cut, two, mixed, {**cut, "id": "t", "recording": loud}, {**cut, "id": "u", "recording": url}]
    dd("from-lhotse", "--cuts", jsonl(tmp_path / "c.jsonl", *cuts), tmp_path / "d")
    assert DataDir.read(tmp_path / "d").segments == {"c": ("r", 1.0, 1.5)}
    left_out = (tmp_path / "d.skipped").read_text()
    assert all(part in left_out for part in ("several speakers", "MixedCut", "transforms", "type 'url'"))


def test_nemo_as_its_documentation_has_it(tmp_path):
    wav(tmp_path / "a.wav", 3)
    whole = {"audio_filepath": "a.wav", "offset": 0.5, "duration": 1.0, "label": "anna"}
    other = {"audio_filepath": str(tmp_path / "a.wav"), "offset": 0, "duration": 3.0, "label": "infer"}
    dd("from-nemo", jsonl(tmp_path / "m.json", whole, other), tmp_path / "d")
    data = DataDir.read(tmp_path / "d")
    assert data.segments == {"a-0000000-0000300": ("a", 0.0, 3.0), "a-0000050-0000150": ("a", 0.5, 1.5)}
    assert data.spk == ["a-0000000-0000300", "anna"]


def test_a_channel_of_several_is_not_taken_for_the_mean(tmp_path):
    soundfile.write(tmp_path / "r.wav", np.random.default_rng(0).standard_normal((48000, 2)) * 0.1, RATE)
    stereo = {
        **RECORDING,
        "sources": [{**RECORDING["sources"][0], "channels": [0, 1]}],
        "channel_ids": [0, 1],
    }
    both = {**SUPERVISION, "id": "s3", "channel": [0, 1]}
    files = [jsonl(tmp_path / "r.jsonl", stereo), jsonl(tmp_path / "s.jsonl", SUPERVISION, both)]
    dd("from-lhotse", "--recordings", files[0], "--supervisions", files[1], tmp_path / "d")
    assert DataDir.read(tmp_path / "d").utts == ["s3"]
    assert "one channel of several" in (tmp_path / "d.skipped").read_text()


# -- out again


def tables(path) -> dict:
    data = DataDir.read(path)
    kept = ("utt2spk", "wav.scp", "segments")
    return {name: table for name, table in data.tables().items() if name in kept}


@pytest.mark.parametrize("kind", ["jsonl", "csv", "lhotse", "wespeaker"])
@pytest.mark.parametrize("segmented", [False, True])
def test_export_and_import_give_the_same_directory(corpus, tmp_path, kind, segmented):
    dd("from-folder", corpus, "d", "--pattern", "{speaker}/{session}/{utterance}")
    wav(corpus / "x/y.wav", 1)
    dd("from-folder", corpus / "x", "e")
    dd("combine", "f", "d", "e")
    if segmented:
        data = DataDir.read("f")
        data.segments = {u: (f"rec-{u}", 0.1, round(0.4 + 0.05 * k, 2)) for k, u in enumerate(data.utts)}
        data.wav = {f"rec-{u}": p for u, p in data.wav.items()}
        data.utt_tables.pop("utt2dur")
        data.write("f")
    if kind == "wespeaker" and segmented:
        assert "raw.list lists whole files" in fails("to-wespeaker", "f", "out")
        return
    dd(f"to-{kind}", "f", "out")
    read = {"jsonl": ["from-nemo", "out"], "csv": ["from-csv", "out"], "wespeaker": ["from-wespeaker", "out"]}
    manifests = ["from-lhotse", "--recordings", "out/recordings.jsonl.gz"]
    dd(*read.get(kind, [*manifests, "--supervisions", "out/supervisions.jsonl.gz"]), "back")
    found, before = tables("back"), tables("f")
    if segmented and kind != "lhotse":  # these lists do not contain names of recordings
        found, before = (
            {u: (t["wav.scp"][r], a, b) for u, (r, a, b) in t["segments"].items()} for t in (found, before)
        )
    assert found == before
    if kind == "csv":
        assert DataDir.read("back").utt_tables.get("utt2session") == DataDir.read("f").utt_tables.get(
            "utt2session"
        )


def test_commands_and_arks_are_not_exported(tmp_path):
    (tmp_path / "d").mkdir()
    for name, text in {"wav.scp": "u cat x |\n", "utt2spk": "u u\n", "spk2utt": "u u\n"}.items():
        (tmp_path / "d" / name).write_text(text)
    for kind in ("wespeaker", "csv", "lhotse"):
        assert "is a command" in fails(f"to-{kind}", tmp_path / "d", tmp_path / "out")
        assert not (tmp_path / "out").exists()


# -- Hugging Face


def arrow(folder: Path, rows: list[dict], features: dict) -> Path:
    pa = pytest.importorskip("pyarrow")
    folder.mkdir()
    table = pa.Table.from_pylist(rows)
    with (
        pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as f,
        pa.ipc.new_stream(f, table.schema) as w,
    ):
        w.write_table(table)
    (folder / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    return folder


def test_a_data_set_on_disk(tmp_path):
    raw = wav(tmp_path / "x.flac").read_bytes()
    rows = [{"audio": {"bytes": raw, "path": "x.flac"}, "speaker_id": k} for k in (0, 1)]
    rows += [{"audio": {"bytes": None, "path": str(tmp_path / "x.flac")}, "speaker_id": 1}]
    data = arrow(tmp_path / "hf", rows, {"speaker_id": {"_type": "ClassLabel", "names": ["anna", "ben"]}})
    dd("from-huggingface", data, tmp_path / "d")
    found = DataDir.read(tmp_path / "d")
    assert found.utts == ["x", "x-00000001", "x-00000002"] and found.spk == ["anna", "ben", "ben"]
    assert Path(found.wav["x"]).read_bytes() == raw and Path(found.wav["x"]).suffix == ".flac"
    assert found.wav["x-00000002"] == str(tmp_path / "x.flac")
    assert "not empty" in fails("from-huggingface", data, tmp_path / "d")
    text = fails("from-huggingface", data, tmp_path / "e", "--audio-column", "sound")
    assert "there are audio, speaker_id" in text and not (tmp_path / "e.audio").exists()
    assert "none of" in fails("from-huggingface", data, tmp_path / "e", "--min-seconds", "9")
    assert not (tmp_path / "e.audio").exists(), "audio without a data directory"


def test_folders_that_are_no_data_set(tmp_path, monkeypatch):
    (tmp_path / "hf").mkdir()
    assert "no state.json" in fails("from-huggingface", tmp_path / "hf", tmp_path / "d")
    (tmp_path / "hf/state.json").write_text('{"_data_files": [{"filename": "../x.arrow"}]}')
    assert "lists no Arrow files" in fails("from-huggingface", tmp_path / "hf", tmp_path / "d")
    (tmp_path / "hf/state.json").write_text('{"_data_files": [{"filename": "x.arrow"}]}')
    (tmp_path / "hf/x.arrow").write_bytes(b"x")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    assert "pip install pyarrow" in fails("from-huggingface", tmp_path / "hf", tmp_path / "d")
    (tmp_path / "hf/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert "the splits train, test" in fails("from-huggingface", tmp_path / "hf", tmp_path / "d")


# -- bounds


def test_a_list_that_never_ends_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE", 1000)
    with gzip.open(tmp_path / "l.gz", "wb") as f:
        f.write(b"x" * 10_000)
    with pytest.raises(UserError, match="too long"):
        list(lines.text_lines(tmp_path / "l.gz"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="not a plain file"):
        list(lines.text_lines(tmp_path / "pipe"))
