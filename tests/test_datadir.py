"""Data directories: round trips, every kind of bad input, repair, subsets, kills in the middle of a write."""

import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyspkv.base.errors import UserError
from pyspkv.bin.datadir import main
from pyspkv.data.datadir import DataDir, combine, read_table, read_trials
from pyspkv.data.fix import fix
from pyspkv.data.tables import plain_number, whole_number

ROOT = Path(__file__).resolve().parent.parent

# A directory in Kaldi's form, written by hand: recordings with segments, and all files that we know.
KALDI = {
    "wav.scp": "r1 /data/r1.wav\nr2 sph2pipe -f wav /data/r2.sph |\nr3 foo.ark:123\n",
    "segments": "a-1 r1 0.00 1.50\na-2 r1 1.50 3.25\nb-1 r2 0 2\nc-1 r3 10.5 11\n",
    "utt2spk": "a-1 a\na-2 a\nb-1 b\nc-1 c\n",
    "spk2utt": "a a-1 a-2\nb b-1\nc c-1\n",
    "text": "a-1 hello there\na-2 \nb-1 caf\u00e9\nc-1 x\n",
    "feats.scp": "a-1 f.ark:5\na-2 f.ark:99\nb-1 f.ark:200\nc-1 f.ark:300[0:10]\n",
    "utt2dur": "a-1 1.5\na-2 1.75\nb-1 2\nc-1 0.5\n",
    "reco2dur": "r1 3.25\nr2 2.0\nr3 11\n",
    "spk2gender": "a f\nb m\nc f\n",
    "utt2dialogue": "a-1 d1\na-2 d1\nb-1 d2\nc-1 d2\n",
    "dialogue2device": "d1 x\nd2 y\n",
    "dialogue2mixed": "d1 0\nd2 1\n",
    "utt2time": "a-1 1700000000\na-2 1700000009.5\nb-1 -3\nc-1 0\n",
    "utt2source": "a-1 customer\na-2 customer\nb-1 device\nc-1 customer\n",
    "enrol_map": "m1 a-1 b-1\nm2 c-1\n",
    "trials": "m1 a-2 target\nm1 c-1 nontarget\na-1 a-2 target\nm2 b-1 nontarget\n",
}


def put(path: Path, files: dict[str, str | bytes]) -> Path:
    path.mkdir(parents=True)
    for name, text in files.items():
        (path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def contents(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in path.iterdir() if p.is_file()}


def test_reads_a_kaldi_directory(tmp_path):
    data = DataDir.read(put(tmp_path / "d", KALDI))
    assert data.utts == ["a-1", "a-2", "b-1", "c-1"]
    assert data.spk == ["a", "a", "b", "c"]
    assert data.wav["r2"] == "sph2pipe -f wav /data/r2.sph |"
    assert data.segments["a-2"] == ("r1", 1.5, 3.25)
    assert data.utt_tables["text"] == {"a-1": "hello there", "a-2": "", "b-1": "caf\u00e9", "c-1": "x"}
    assert data.dialogue2device == {"d1": "x", "d2": "y"}
    assert data.label_hash() == hashlib.sha256(KALDI["utt2spk"].encode()).hexdigest()


def test_write_then_read_is_the_same(tmp_path):
    data = DataDir.read(put(tmp_path / "d", KALDI))
    data.write(tmp_path / "e")
    again = DataDir.read(tmp_path / "e")
    again.path = data.path
    assert again == data
    assert (tmp_path / "e" / "utt2spk").read_text() == KALDI["utt2spk"]
    assert (tmp_path / "e" / "spk2utt").read_text() == KALDI["spk2utt"]


def test_blanks_and_tabs_between_columns_are_equivalent(tmp_path):
    files = {
        "utt2spk": "u1\ts1\nu2   s1\n",
        "spk2utt": "s1 u1  u2 \n",
        "wav.scp": "u1 \t a  b.wav\nu2 c.wav\n",
    }
    data = DataDir.read(put(tmp_path / "d", files))
    assert data.spk == ["s1", "s1"]
    assert data.wav == {"u1": "a  b.wav", "u2": "c.wav"}


def test_truth_is_neither_read_nor_copied(tmp_path):
    data = DataDir.read(put(tmp_path / "d", {**KALDI, "utt2spk_true": "garbage"}))
    data.write(tmp_path / "e")
    assert "utt2spk_true" not in data.utt_tables
    assert not (tmp_path / "e" / "utt2spk_true").exists()


# (file, new content or None to delete it, line in the message or None, words in the message); then the hint
BAD = {
    "unsorted": ("utt2spk", "a-2 a\na-1 a\nb-1 b\nc-1 c\n", 2, "C order"),
    "duplicate": ("utt2spk", "a-1 a\na-1 a\nb-1 b\nc-1 c\n", 2, "twice"),
    "missing column": ("utt2spk", "a-1 a\na-2\nb-1 b\nc-1 c\n", 2, "exactly two columns"),
    "too many columns": ("utt2spk", "a-1 a\na-2 a a\nb-1 b\nc-1 c\n", 2, "exactly two columns"),
    "empty file": ("utt2spk", "", None, "empty"),
    "empty optional": ("utt2dur", "", None, "empty"),
    "empty line": ("utt2spk", "a-1 a\n\na-2 a\nb-1 b\nc-1 c\n", 2, "empty"),
    "leading blank": ("utt2spk", " a-1 a\na-2 a\nb-1 b\nc-1 c\n", 1, "starts with a blank"),
    "no final newline": ("utt2spk", "a-1 a\na-2 a\nb-1 b\nc-1 c", 4, "cut short"),
    "not utf-8": ("utt2spk", b"a-1 a\na-2 \xff\nb-1 b\nc-1 c\n", 2, "UTF-8"),
    "crlf": ("utt2spk", "a-1 a\r\na-2 a\r\nb-1 b\r\nc-1 c\r\n", 1, "carriage return"),
    "trailing blank": ("utt2spk", "a-1 a\na-2 a \nb-1 b\nc-1 c\n", 2, "the line ends in a blank"),
    "nul": ("utt2spk", b"a-1 a\na-2 a\nb\x00-1 b\nc-1 c\n", 3, "control character 0x00"),
    "escape": ("wav.scp", "r1 /x\x1b.wav\nr2 y\nr3 z\n", 1, "control character 0x1b"),
    "odd blank in id": ("utt2spk", "a-1 a\na-2 a\u00a0a\nb-1 b\nc-1 c\n", 2, "U+00A0"),
    "byte-order mark": ("utt2spk", "\ufeffa-1 a\na-2 a\nb-1 b\nc-1 c\n", 1, "U+FEFF"),
    "no utt2spk": ("utt2spk", None, None, "no such file"),
    "no spk2utt": ("spk2utt", None, None, "no such file"),
    "no wav.scp": ("wav.scp", None, None, "no such file"),
    "no path": ("wav.scp", "r1\nr2 y\nr3 z\n", 1, "an id and a path"),
    "tilde": ("wav.scp", "r1 ~/x.wav\nr2 y\nr3 z\n", 1, "~"),
    "utt not in utt2spk": ("text", KALDI["text"] + "d-1 x\n", 5, "d-1 is not in utt2spk"),
    "utt lost": ("text", "a-1 x\nb-1 x\nc-1 x\n", None, "no line for a-2"),
    "recording lost": ("wav.scp", "r1 x\nr3 z\n", None, "no line for r2 of segments"),
    "recording unused": ("wav.scp", KALDI["wav.scp"] + "r4 q\n", 4, "r4 is not in segments"),
    "start after end": ("segments", KALDI["segments"].replace("0 2", "2 0"), 3, "0 <= start < end"),
    "start is end": ("segments", KALDI["segments"].replace("0 2", "2 2"), 3, "0 <= start < end"),
    "negative start": ("segments", KALDI["segments"].replace("0 2", "-1 2"), 3, "0 <= start < end"),
    "time is a word": ("segments", KALDI["segments"].replace("0 2", "0 two"), 3, "0 <= start < end"),
    "time is nan": ("segments", KALDI["segments"].replace("0 2", "0 nan"), 3, "0 <= start < end"),
    "time is inf": ("segments", KALDI["segments"].replace("0 2", "0 inf"), 3, "0 <= start < end"),
    "segment columns": ("segments", KALDI["segments"].replace("0 2", "0 2 A"), 3, "0 <= start < end"),
    "segment after the end": ("segments", KALDI["segments"].replace("0 2", "0 2.6"), 3, "r2 has 2 s"),
    "duration 0": ("utt2dur", KALDI["utt2dur"].replace("2\n", "0\n"), 3, "above 0"),
    "duration nan": ("utt2dur", KALDI["utt2dur"].replace("2\n", "nan\n"), 3, "above 0"),
    "duration underscore": ("utt2dur", KALDI["utt2dur"].replace("2\n", "1_0\n"), 3, "above 0"),
    "count not whole": ("utt2num_samples", "a-1 16000\na-2 2.5\nb-1 1\nc-1 1\n", 2, "whole number"),
    "count foreign digits": ("utt2num_samples", "a-1 16000\na-2 \u0663\nb-1 1\nc-1 1\n", 2, "whole number"),
    "spk2utt other speaker": ("spk2utt", "a a-1\nb a-2 b-1\nc c-1\n", 1, "not the inverse of utt2spk"),
    "spk2utt lost speaker": ("spk2utt", "a a-1 a-2\nb b-1\n", None, "speaker c of utt2spk is missing"),
    "spk2utt more": ("spk2utt", KALDI["spk2utt"] + "d d-1\n", 4, "not the inverse of utt2spk"),
    "gender": ("spk2gender", "a f\nb x\nc f\n", 2, "m or f"),
    "speaker lost": ("spk2gender", "a f\nc f\n", None, "no line for b of spk2utt"),
    "two dialogues": ("utt2dialogue", "a-1 d1\na-1 d2\na-2 d1\nb-1 d2\nc-1 d2\n", 2, "twice"),
    "no dialogue": ("utt2dialogue", "a-1 d1\na-2 d1\nb-1 d2\n", None, "no line for c-1"),
    "two devices": ("dialogue2device", "d1 x\nd1 y\nd2 y\n", 2, "twice"),
    "no device": ("dialogue2device", "d1 x\n", None, "no line for d2 of utt2dialogue"),
    "device of no dialogue": ("dialogue2device", "d1 x\nd2 y\nd3 y\n", 3, "d3 is not in utt2dialogue"),
    "devices alone": ("utt2dialogue", None, None, "without utt2dialogue"),
    "mixed": ("dialogue2mixed", "d1 0\nd2 maybe\n", 2, "0 or 1"),
    "source": ("utt2source", "a-1 customer\na-2 human\nb-1 device\nc-1 device\n", 2, "customer or device"),
    "time": ("utt2time", "a-1 1\na-2 noon\nb-1 2\nc-1 3\n", 2, "time in seconds"),
    "trial label": ("trials", "m1 a-2 target\nm1 c-1 maybe\n", 2, "target|nontarget"),
    "trial columns": ("trials", "m1 a-2 target\nm1 c-1\n", 2, "target|nontarget"),
    "trial test": ("trials", "m1 a-2 target\nm1 zz target\n", 2, "zz is not in utt2spk"),
    "trial enrol": ("trials", "m1 a-2 target\nm9 a-1 target\n", 2, "m9 is neither"),
    "trial both ways": (
        "trials",
        "m1 a-2 target\nm2 a-2 target\nm1 a-2 nontarget\n",
        3,
        "nontarget in another",
    ),
    "model utt": ("enrol_map", "m1 a-1 zz\nm2 c-1\n", 1, "zz is not in utt2spk"),
    "model empty": ("enrol_map", "m1 a-1\nm2\n", 2, "one or more ids"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_names_file_line_rule_and_hint(tmp_path, kind):
    name, text, line, words = BAD[kind]
    path = put(tmp_path / "d", KALDI)
    if text is None:
        (path / name).unlink()
    else:
        (path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as err:
        DataDir.read(path)
    message, hint = str(err.value).split("\n")
    place = message.split(": ", 1)[0]
    if kind == "devices alone":
        name = "dialogue2device"
    assert place == f"{path / name}" + (f":{line}" if line else "")
    assert words in message
    assert hint.startswith("  hint: ")


FIXABLE = [k for k in BAD if BAD[k][1] is not None and k not in ("empty file", "trial both ways")]


@pytest.mark.parametrize("kind", [*FIXABLE, "no spk2utt", "devices alone"])
def test_fix_repairs_it_and_a_second_fix_does_nothing(tmp_path, kind):
    name, text, _, _ = BAD[kind]
    path = put(tmp_path / "d", KALDI)
    if text is None:
        (path / name).unlink()
    else:
        (path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    before = contents(path)
    assert fix(path)
    data = DataDir.read(path)
    assert set(data.utts) <= {"a-1", "a-2", "b-1", "c-1"}
    kept = contents(path / ".backup")
    assert kept or kind == "no spk2utt"  # if nothing was replaced there is no backup
    assert all(before[n] == kept[n] for n in kept)
    after = contents(path)
    assert all(after.get(n) == before[n] for n in before.keys() - kept.keys())
    assert fix(path) == []
    assert contents(path) == after
    assert not (path / ".fix").exists()


def test_fix_keeps_what_a_byte_order_mark_precedes_and_every_backup(tmp_path):
    path = put(tmp_path / "d", KALDI)
    text = "".join(f"{u} hello\n" for u in ("a-1", "a-2", "b-1", "c-1"))
    (path / "text").write_text(text, encoding="utf-8-sig")
    with pytest.raises(UserError, match="text:1: byte-order mark"):
        DataDir.read(path)
    fix(path)
    assert (path / "text").read_text() == text and len(DataDir.read(path).utts) == 4
    assert (path / ".backup" / "text").read_bytes()[:3] == b"\xef\xbb\xbf"
    (path / "text").write_text(text.replace("a-2 hello", "a-2  hello"))
    (path / "utt2spk").write_text("c-1 c\nb-1 b\na-1 a\na-2 a\n")
    fix(path)
    assert contents(path / ".backup").keys() == {"text"} and "utt2spk" in contents(path / ".backup.2")


def test_fix_keeps_exactly_what_every_file_has(tmp_path):
    files = {
        "utt2spk": "u3 s2\nu1 s1\nu4 s2\nu1 other\r\n\nu2 s1 \nbroken\n",
        "wav.scp": "u2 b.wav\nu1 a.wav\nu3 c.wav\nu9 z.wav\n",
        "utt2dur": "u1 1\nu2 2\n",
        "utt2lang": "u1 en\nu2 en\nu3 de\nu4 de\n",
    }
    path = put(tmp_path / "d", files)
    notes = "\n".join(fix(path))
    assert "kept 3 of 4 utterances" in notes
    assert "utt2dur: removed, because it has 2 of 3 ids" in notes
    assert contents(path) == {
        "utt2spk": b"u1 s1\nu2 s1\nu3 s2\n",
        "spk2utt": b"s1 u1 u2\ns2 u3\n",
        "wav.scp": b"u1 a.wav\nu2 b.wav\nu3 c.wav\n",
        "utt2lang": b"u1 en\nu2 en\nu3 de\n",
    }


def test_fix_refuses_to_leave_nothing(tmp_path):
    path = put(tmp_path / "d", {**KALDI, "text": "z hello\n"})
    before = contents(path)
    with pytest.raises(UserError, match="text: shares no utterance with the other files"):
        fix(path)
    assert contents(path) == before


# What fix must refuse without changing a byte: file, its content, words of the message.
REFUSED = {
    "trials of another form": ("trials", "m1,a-2,target\nm1,c-1,nontarget\n", "2 of 2 lines cannot be read"),
    "trials with scores": (
        "trials",
        "m1 a-2 target 0.1\nm1 c-1 nontarget 0.2\nm2 b-1 target\n",
        "2 of 3 lines",
    ),
    "trials half converted": ("trials", "1 a-1 a-2\n0 a-1 b-1\na-1 c-1 nontarget\n", "2 of 3 lines"),
    "trials of labels on both sides": ("trials", "1 a-1 0\n0 a-2 1\n", "2 of 2 lines"),
    "trials of others": ("trials", "x y target\nx z nontarget\n", "2 of 2 lines name utterances"),
    "voxceleb of others": ("trials", "1 x/y/z.wav x/y/q.wav\n0 x/y/z.wav v.wav\n", "name utterances"),
    "trials mostly of others": ("trials", "m1 a-2 target\nm1 y target\nm1 z target\n", "2 of 3 lines name"),
    "trials empty": ("trials", "\n\n", "the file is empty"),
    "trials binary": ("trials", b"\x80\x04\x95\x00\nxyz\x00", "lines cannot be read"),
    "trials UTF-16": ("trials", KALDI["trials"].encode("utf-16"), "lines cannot be read"),
    "enrol_map": ("enrol_map", "m1\nm2\n", "2 of 2 lines cannot be read"),
    "enrol_map of others": ("enrol_map", "m1 x y\nm2 z\n", "name utterances"),
    "segments": ("segments", KALDI["segments"].replace(" ", ","), "4 of 4 lines cannot be read"),
    "segments in samples": (
        "segments",
        KALDI["segments"].replace("r1", "q").replace("r3", "q"),
        "3 of 4 name record",
    ),
    "reco2dur": ("reco2dur", "r1 3:25\nr2 2:00\nr3 11\n", "2 of 3 lines cannot be read"),
    "reco2dur in minutes": ("reco2dur", "r1 0.05\nr2 0.03\nr3 0.2\n", "4 of 4 lie beyond"),
    "utt2dur": ("utt2dur", "a-1 1,5\na-2 1,75\nb-1 2,0\nc-1 0.5\n", "3 of 4 lines cannot be read"),
    "utt2num_samples": (
        "utt2num_samples",
        "a-1 1e4\na-2 1e4\nb-1 5\nc-1 1e4\n",
        "3 of 4 lines cannot be read",
    ),
    "utt2dialogue": ("utt2dialogue", "a-1 d 1\na-2 d 1\nb-1 d 2\nc-1 d2\n", "3 of 4 lines cannot be read"),
    "utt2dialogue of few": ("utt2dialogue", "a-1 d1\n", "has 1 of 4 utterances"),
    "dialogue2device": ("dialogue2device", "d1\nd2\n", "2 of 2 lines cannot be read"),
    "dialogue2device of others": ("dialogue2device", "e1 x\ne2 y\n", "no utterance"),
    "spk2gender": ("spk2gender", "a female\nb male\nc f\n", "2 of 3 lines cannot be read"),
    "text of few": ("text", "b-1 x\n", "has 1 of 4 utterances"),
    "utt2spk": ("utt2spk", "a-1\na-2\nb-1 b\nc-1\n", "3 of 4 lines cannot be read"),
    "utt2spk contradicts itself": (
        "utt2spk",
        "".join(f"a-1 {i}\n" for i in range(9)),
        "8 of 9 lines cannot be read",
    ),
    "an odd file": ("utt2lang", "x\ny z\nz\n", "2 of 3 lines cannot be read"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_fix_refuses_and_changes_nothing(tmp_path, kind):
    name, text, words = REFUSED[kind]
    # following this hint would call fix
    files = {**KALDI, "utt2dur": KALDI["utt2dur"].replace("a-2 1.75", "a-2  1.75")}
    path = put(tmp_path / "d", {**files, name: text})
    before = contents(path)
    with pytest.raises(UserError) as err:
        fix(path)
    assert words in str(err.value)
    assert str(err.value).startswith(f"{path / ('segments' if kind.endswith('minutes') else name)}:")
    assert contents(path) == before and [p for p in path.iterdir() if p.is_dir()] == []


def test_fix_reports_what_it_cannot_repair(tmp_path, monkeypatch):
    """Fix writes its result to the side first and checks it as `validate` would."""
    path = put(tmp_path / "d", {**KALDI, "utt2spk": "a-2 a\na-1 a\nb-1 b\nc-1 c\n"})
    before = contents(path)
    monkeypatch.setattr("pyspkv.data.fix.spk2utt_lines", lambda utts, spk: ["a b-1"])
    with pytest.raises(UserError, match="spk2utt:1: not the inverse .*nothing was changed"):
        fix(path)
    assert contents(path) == before and [p for p in path.iterdir() if p.is_dir()] == []


def test_fix_converts_a_published_list_whose_paths_are_those_of_the_audio(tmp_path):
    utts = [f"id{i}-v{k}-0000{k}" for i in (1, 2) for k in (1, 2)]
    wav = [f"/corpora/vox1/wav/{u.replace('-', '/')}.flac" for u in utts]
    files = {
        "utt2spk": "".join(f"{u} {u[:3]}\n" for u in utts),
        "wav.scp": "".join(f"{u} {w}\n" for u, w in zip(utts, wav)),
        "trials": "1 id1/v1/00001.wav id1/v2/00002.wav\r\n0 id1/v1/00001.wav id2/v1/00001.wav\r\n",
    }
    path = put(tmp_path / "d", files)
    assert "converted" in " ".join(fix(path))
    assert (path / "trials").read_text() == f"{utts[0]} {utts[1]} target\n{utts[0]} {utts[2]} nontarget\n"
    assert (path / ".backup" / "trials").read_text().startswith("1 id1/v1") and fix(path) == []


def test_fix_makes_utt2spk_from_spk2utt(tmp_path):
    path = put(tmp_path / "d", {"spk2utt": "b u3\na u2 u1\n", "wav.scp": "u1 x\nu2 y\nu3 z\n"})
    fix(path)
    assert (path / "utt2spk").read_text() == "u1 a\nu2 a\nu3 b\n" and DataDir.read(path).spk == [
        "a",
        "a",
        "b",
    ]
    path = put(tmp_path / "e", {"spk2utt": "b u1\na u2 u1\n", "wav.scp": "u1 x\nu2 y\n"})
    with pytest.raises(UserError, match="u1 has two speakers"):
        fix(path)


def test_a_shortened_utt2spk_defines_the_subset_as_in_kaldi(tmp_path):
    path = put(tmp_path / "d", {**KALDI, "utt2spk": "c-1 c\n"})
    fix(path)
    data = DataDir.read(path)
    assert data.utts == ["c-1"] and data.enrol_map == {"m2": "c-1"} and data.wav == {"r3": "foo.ark:123"}


# ---- segments that end with their recording, or beyond it ----------------------------------------------------
def to_the_end(tmp_path, **files) -> Path:
    segments = "a-1 r1 0.00 1.50\na-2 r1 1.50 -1\nb-1 r2 0 -1.0\nc-1 r3 10.5 11\n"
    return put(tmp_path / "d", {**KALDI, "segments": segments, **files})


def test_an_end_of_minus_one_is_kept_by_every_tool(tmp_path):
    path = to_the_end(tmp_path)
    data = DataDir.read(path)
    assert data.segments["a-2"] == ("r1", 1.5, -1.0) and data.segments["b-1"] == ("r2", 0.0, -1.0)
    assert fix(path) == []
    run("subset", "--utt-list", _ids(tmp_path, "a-2\nc-1\n"), path, tmp_path / "sub")
    run("copy", "--utt-prefix", "x-", path, tmp_path / "copy")
    for name in ("enrol_map", "trials"):  # its models would have two meanings
        (path / name).unlink()
    run("combine", tmp_path / "both", path, tmp_path / "copy")
    run("split", "--per-utt", path, 4)
    for folder, utt in (
        ("sub", "a-2"),
        ("copy", "x-a-2"),
        ("both", "x-a-2"),
        ("both", "a-2"),
        ("d/split4utt/2", "a-2"),
    ):
        assert DataDir.read(tmp_path / folder).segments[utt] == ("r1", 1.5, -1.0)
        assert f"{utt} r1 1.5 -1\n" in (tmp_path / folder / "segments").read_text()
    (path / "segments").write_text(KALDI["segments"].replace("1.50 3.25", "3.25 -1"))
    with pytest.raises(UserError, match="a-2 starts at 3.25 s but r1 has 3.25 s"):
        DataDir.read(path)
    for end in ("-2", "-0.5", "-1.5", "-0"):
        (path / "segments").write_text(KALDI["segments"].replace("1.50 3.25", f"1.50 {end}"))
        with pytest.raises(UserError, match="0 <= start < end"):
            DataDir.read(path)


def _ids(tmp_path, text) -> Path:
    (tmp_path / "ids").write_text(text)
    return tmp_path / "ids"


def test_the_shortest_by_segments_need_the_recordings_lengths(tmp_path):
    path = to_the_end(tmp_path)
    (path / "utt2dur").unlink()
    run("subset", "--shortest", path, 2, tmp_path / "out")  # 1.5, 1.75, 2 and 0.5 seconds
    assert DataDir.read(tmp_path / "out").utts == ["a-1", "c-1"]
    (path / "reco2dur").unlink()
    with pytest.raises(UserError, match="a-2 ends with its recording .*\n.*write reco2dur"):
        run("subset", "--shortest", path, 2, tmp_path / "out")


@pytest.fixture
def heard(tmp_path) -> Path:
    """Recordings of 2 s and 1 s. One segment ends a little late, one much too late, one begins too late."""
    import numpy as np
    import soundfile

    for name, seconds in (("r1", 2), ("r2", 1)):
        soundfile.write(tmp_path / f"{name}.wav", np.full(8000 * seconds, 0.1), 8000)
    files = {
        "wav.scp": "".join(f"{r} {tmp_path}/{r}.wav\n" for r in ("r1", "r2")),
        "segments": "a r1 0 2.4\nb r1 1.5 7\nc r1 2 3\nd r2 0.25 -1\ne r2 1.5 -1\nf r2 0 1\n",
        "utt2spk": "a s\nb s\nc s\nd s\ne s\nf s\n",
        "utt2dur": "a 2\nb 5.5\nc 1\nd 0.75\ne 1\nf 1\n",
        "utt2num_samples": "a 16000\nb 44000\nc 8000\nd 6000\ne 8000\nf 8000\n",
    }
    return put(tmp_path / "d", files)


@pytest.mark.parametrize("options", [[], ["--check-audio"]])
def test_fix_cuts_segments_to_the_audio(heard, options):
    run("fix", *options, heard)
    data = DataDir.read(heard)
    assert data.segments == {
        "a": ("r1", 0, 2.4),  # within the half second that Kaldi allows
        "b": ("r1", 1.5, 2),
        "d": ("r2", 0.25, -1),
        "f": ("r2", 0, 1),
    }
    assert data.utt_tables == {"utt2dur": {"a": "2", "b": "0.5", "d": "0.75", "f": "1"}}
    assert (heard / ".backup" / "utt2num_samples").exists()
    assert fix(heard, check_audio=True) == []


def test_check_audio_names_what_cannot_be_read(heard, tmp_path):
    (tmp_path / "r1.wav").write_text("<html>404</html>")
    (tmp_path / "r2.wav").unlink()
    (heard / "wav.scp").write_text((heard / "wav.scp").read_text() + "r3 sox x.wav - |\n")
    (heard / "segments").write_text((heard / "segments").read_text().replace("f r2", "f r3"))
    before = contents(heard)
    with pytest.raises(UserError) as err:
        run("fix", "--check-audio", heard)
    text = str(err.value)
    assert "2 of 3 recordings cannot be read" in text and "r1.wav" in text and "r2.wav does not exist" in text
    assert contents(heard) == before


# ---- numbers ------------------------------------------------------------------------------------------------
NO_NUMBERS = ["9" * 5000, "9" * 30, "9" * 19, "\u00b2", "\u0663", "1_0", "+1", "1.0", "-1", "", " 1", "0x1"]


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_whole_numbers_are_ascii_digits_of_a_sane_length(tmp_path, text, capsys):
    assert whole_number(text) is None
    path = put(tmp_path / "d", {**KALDI, "utt2num_samples": f"a-1 1\na-2 {text}\nb-1 1\nc-1 1\n"})
    if text.strip() == text:  # a blank separates columns
        with pytest.raises(UserError, match="utt2num_samples:2: "):
            DataDir.read(path)
    (path / "utt2num_samples").unlink()
    for words in (["subset", path, text, "x"], ["split", path, text], ["filter", "-f", text, path / "text"]):
        with pytest.raises(SystemExit) as err:
            run(*words)
        assert err.value.code == 2
    assert len(capsys.readouterr().err) < 2500


def test_whole_numbers():
    assert [whole_number(t) for t in ("0", "007", "9" * 18)] == [0, 7, 10**18 - 1]
    assert plain_number("1e3") == 1000 and all(
        plain_number(t) != plain_number(t) for t in ("\u0663", "1_0", "nan", "1e999")
    )


# ---- several directories, and none ----------------------------------------------------------------------------
def test_validate_checks_every_directory_it_is_given(tmp_path, capsys):
    good, bad, other = (put(tmp_path / n, KALDI) for n in ("good", "bad", "other"))
    (bad / "spk2utt").unlink()
    run("validate", good, other)
    assert capsys.readouterr().out.count("Successfully validated") == 2
    with pytest.raises(UserError) as err:
        run("validate", "--no-text", bad, good, tmp_path / "none", other)
    faults = [line for line in str(err.value).split("\n") if not line.startswith("  hint: ")]
    assert faults == [
        f"{bad / 'spk2utt'}: no such file",
        f"error: {tmp_path / 'none'}: no such data directory",
    ]
    # also the directories after a bad one
    assert capsys.readouterr().out.count("Successfully validated") == 2
    with pytest.raises(UserError, match="utterances are in|4 utterances"):
        run("validate", good, "--disjoint", other)
    with pytest.raises(SystemExit):
        run("validate", good, bad, "--disjoint", other)


@pytest.mark.parametrize(
    "words",
    ["validate D", "validate D D", "fix D", "copy D out", "subset D 1 out", "subset --utt-list /dev/null D out",
     "combine out D", "combine out good D", "split D 2", "split-labels D 2 out", "validate good --disjoint D",
     "corrupt --share 0.5 --list l D out"],
)  # fmt: skip
def test_no_such_data_directory_is_one_clear_error(tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    put(Path("good"), KALDI)
    Path("file").write_text("x")
    for name, rule in (
        ("gone", "gone: no such data directory"),
        ("file", "file: is a file, not a data directory"),
    ):
        with pytest.raises(UserError, match=rule):
            run(*words.replace("D", name).split())
    assert sorted(os.listdir()) == ["file", "good"]
    for name in ("gone", "file"):
        with pytest.raises(UserError):
            DataDir.read(name)


def test_a_table_that_is_a_pipe_or_a_link_to_nowhere_is_named(tmp_path):
    path = put(tmp_path / "d", KALDI)
    (path / "utt2lang").symlink_to("gone")
    with pytest.raises(UserError, match="utt2lang: is a link to nowhere"):
        DataDir.read(path)
    (path / "utt2lang").unlink()
    os.mkfifo(path / "utt2lang")
    with pytest.raises(UserError, match="utt2lang: is a pipe or device, not a file"):
        DataDir.read(path)


@pytest.mark.parametrize(
    "place",
    [
        "split3/1/diary",
        "split3/9/diary",
        "split3/1/sub/text",
        "split3/01/text",
        ".backup/diary",
        "notes/text",
    ],
)
def test_a_folder_with_files_of_others_is_not_replaced(tmp_path, place):
    data = DataDir.read(put(tmp_path / "d", KALDI))
    data.write_split(3)
    file = data.path / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("dear")
    with pytest.raises(UserError, match="would delete it"):
        replace(data, path=tmp_path / "x").write(data.path)
    if place.startswith("split"):
        with pytest.raises(UserError, match="would delete it"):
            data.write_split(3)
    assert file.read_text() == "dear"
    shutil.rmtree(data.path / "split3") if place.startswith("split") else shutil.rmtree(file.parent)
    data.write(data.path)
    data.write_split(3)


# ---- cutting and joining -------------------------------------------------------------------------------------
def test_subset_keeps_all_tables(tmp_path):
    data = DataDir.read(put(tmp_path / "d", KALDI))
    data.subset(["c-1", "a-2", "a-1"]).write(tmp_path / "e")
    assert {k: v.decode() for k, v in contents(tmp_path / "e").items()} == {
        "wav.scp": "r1 /data/r1.wav\nr3 foo.ark:123\n",
        "segments": "a-1 r1 0 1.5\na-2 r1 1.5 3.25\nc-1 r3 10.5 11\n",
        "utt2spk": "a-1 a\na-2 a\nc-1 c\n",
        "spk2utt": "a a-1 a-2\nc c-1\n",
        "text": "a-1 hello there\na-2\nc-1 x\n",
        "feats.scp": "a-1 f.ark:5\na-2 f.ark:99\nc-1 f.ark:300[0:10]\n",
        "utt2dur": "a-1 1.5\na-2 1.75\nc-1 0.5\n",
        "reco2dur": "r1 3.25\nr3 11\n",
        "spk2gender": "a f\nc f\n",
        "utt2dialogue": "a-1 d1\na-2 d1\nc-1 d2\n",
        "dialogue2device": "d1 x\nd2 y\n",
        "dialogue2mixed": "d1 0\nd2 1\n",
        "utt2time": "a-1 1700000000\na-2 1700000009.5\nc-1 0\n",
        "utt2source": "a-1 customer\na-2 customer\nc-1 customer\n",
        "enrol_map": "m2 c-1\n",
        "trials": "a-1 a-2 target\n",
    }
    assert DataDir.read(tmp_path / "e").utts == ["a-1", "a-2", "c-1"]
    with pytest.raises(UserError, match="nobody is not in utt2spk"):
        data.subset(["nobody"])


def test_regenerated_speakers_leave_the_old_speakers_files_behind(tmp_path):
    data = DataDir.read(put(tmp_path / "d", KALDI)).with_speakers(["k2", "k1", "k1", "k2"])
    data.write(tmp_path / "e")
    assert (tmp_path / "e" / "spk2utt").read_text() == "k1 a-2 b-1\nk2 a-1 c-1\n"
    assert not (tmp_path / "e" / "spk2gender").exists()
    assert DataDir.read(tmp_path / "e").spk == ["k2", "k1", "k1", "k2"]
    with pytest.raises(UserError, match="1 speakers for 4"):
        data.with_speakers(["k"])


def test_combine(tmp_path):
    a, b = (DataDir.read(put(tmp_path / n, KALDI)) for n in "ab")
    other = b.renamed(lambda u, _: f"z-{u}", lambda s: f"z-{s}")
    del other.utt_tables["text"]
    other.enrol_map, other.trials = {"n1": "z-a-1"}, {"trials": other.trials["trials"][2:3]}
    both, left_out = combine(tmp_path / "c", [a, other])
    both.write(tmp_path / "c")
    read = DataDir.read(tmp_path / "c")
    assert left_out == {"text"}
    assert read.utts == sorted([*a.utts, *other.utts])
    assert len(read.wav) == 3  # both have the same recordings
    assert read.trials["trials"][4:] == ["z-a-1 z-a-2 target"]


def test_combine_refuses_one_id_with_two_lines(tmp_path):
    a, b = (DataDir.read(put(tmp_path / n, KALDI)) for n in "ab")
    with pytest.raises(UserError, match="differs from that in an earlier source"):
        combine(tmp_path / "c", [a, b.with_speakers(["x", "x", "x", "x"])])
    with pytest.raises(UserError, match="utt2lang: no such file"):
        combine(tmp_path / "c", [a], ["utt2lang"])
    line = b.trials["trials"][0]
    b.trials["trials"][0] = line.rsplit(" ", 1)[0] + (" nontarget" if line.endswith(" target") else " target")
    with pytest.raises(UserError, match="target in one source and nontarget in another"):
        combine(tmp_path / "c", [a, b])


def test_nothing_is_written_that_could_not_be_read(tmp_path):
    data = DataDir.read(put(tmp_path / "d", KALDI))
    with pytest.raises(UserError, match="'a b-a-1' is not an id"):
        run("copy", "--utt-prefix", "a b-", data.path, tmp_path / "copy")
    data.write_split(2)
    (data.path / "split2" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="notes.txt: is not a part"):
        data.write_split(2)
    (tmp_path / "copy" / "trials").mkdir(parents=True)
    with pytest.raises(UserError, match="would delete it"):
        run("copy", data.path, tmp_path / "copy")


def test_an_error_of_the_system_is_no_traceback(tmp_path):
    for name in ("x" * 300, "loop"):
        (tmp_path / "loop").unlink(missing_ok=True)
        (tmp_path / "loop").symlink_to("loop")
        argv = [sys.executable, "-m", "pyspkv.bin.datadir", "validate", tmp_path / name]
        done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 1 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr


def test_lists_of_ids_may_begin_with_a_byte_order_mark(tmp_path, capsys):
    path = put(tmp_path / "d", KALDI)
    (tmp_path / "list").write_text("a-1\nb-1\nz-9\n", encoding="utf-8-sig")
    run("subset", "--utt-list", tmp_path / "list", path, tmp_path / "some")
    assert DataDir.read(tmp_path / "some").utts == ["a-1", "b-1"]
    assert "1 of 3 ids are not in" in capsys.readouterr().out
    (tmp_path / "list").write_bytes(b"a-1\nb\xe9\n")
    with pytest.raises(UserError, match="list:2: not UTF-8"):
        run("subset", "--utt-list", tmp_path / "list", path, tmp_path / "some")


ids = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=8)


@st.composite
def directories(draw) -> DataDir:
    utts = sorted(draw(st.sets(ids, min_size=1, max_size=12)))
    names = draw(st.lists(ids, min_size=1, max_size=5))
    spk = [draw(st.sampled_from(names)) for _ in utts]
    data = DataDir(Path("x"), utts, spk, {u: f"/w/{i} {i}.wav" for i, u in enumerate(utts)})
    if draw(st.booleans()):
        start = st.floats(0, 1e4, allow_nan=False)
        recos = [draw(st.sampled_from(names)) for _ in utts]
        data.segments = {u: (r, a := draw(start), a + 0.25 + draw(start)) for u, r in zip(utts, recos)}
        data.wav = dict.fromkeys(sorted(set(recos)), "x.ark:12")
    if draw(st.booleans()):
        data.utt_tables["utt2dialogue"] = {u: draw(st.sampled_from(names)) for u in utts}
        data.dialogue2device = {d: draw(ids) for d in sorted(set(data.utt_tables["utt2dialogue"].values()))}
    if draw(st.booleans()):
        pairs = draw(st.sets(st.tuples(st.sampled_from(utts), st.sampled_from(utts)), min_size=1, max_size=6))
        data.trials["trials"] = [f"{a} {b} {'target' if a < b else 'nontarget'}" for a, b in pairs]
    return data


relaxed = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@relaxed
@given(data=directories())
def test_round_trip(tmp_path, data):
    data.write(tmp_path / "d")
    read = DataDir.read(tmp_path / "d")
    read.path = data.path
    assert read == data
    for p in (tmp_path / "d").iterdir():
        if p.name != "trials":
            lines = p.read_bytes().split(b"\n")[:-1]
            # C order is the order of bytes
            assert lines == sorted(lines, key=lambda line: line.split(b" ")[0])


@relaxed
@given(data=directories(), seed=st.integers(0, 999))
def test_fix_of_a_shuffled_directory_restores_it(tmp_path, data, seed):
    path = tmp_path / "d"
    data.write(path)
    before = contents(path)
    rng = random.Random(seed)
    for name, raw in before.items():
        lines = raw.split(b"\n")[:-1]
        if name == "trials":
            continue
        lines += rng.choices(lines, k=2)
        rng.shuffle(lines)
        (path / name).write_bytes(
            b"".join(line + rng.choice([b"\n", b"\r\n", b" \n", b"\n\n"]) for line in lines)
        )
    (path / "spk2utt").unlink()
    fix(path)
    assert contents(path) == before


@relaxed
@given(data=directories(), n=st.integers(1, 6), per_utt=st.booleans())
def test_split_is_a_partition_by_speaker(data, n, per_utt):
    units = len(data.utts) if per_utt else len(set(data.spk))
    if n > units:
        with pytest.raises(UserError, match="cannot split"):
            data.split(n, per_utt=per_utt)
        return
    parts = data.split(n, per_utt=per_utt)
    assert len(parts) == n
    assert all(p.utts and p.utts == sorted(p.utts) for p in parts)
    assert sorted(u for p in parts for u in p.utts) == data.utts
    if not per_utt:
        assert sum(len(set(p.spk)) for p in parts) == units
    else:
        assert max(len(p.utts) for p in parts) - min(len(p.utts) for p in parts) <= 1


@relaxed
@given(data=directories())
def test_speaker_prefix_gives_both_sort_orders(tmp_path, data):
    """Kaldi's validator checks that lines sorted by utterance are sorted by speaker, too."""
    new = data.speaker_prefixed()
    new.write(tmp_path / "d")
    lines = (tmp_path / "d" / "utt2spk").read_bytes().split(b"\n")[:-1]
    assert lines == sorted(lines, key=lambda line: line.split()[0])
    assert lines == sorted(lines, key=lambda line: (line.split()[1], line))
    assert all(u.startswith(f"{s}-") for u, s in zip(new.utts, new.spk))
    DataDir.read(tmp_path / "d")


def test_split_balances(tmp_path):
    utts = [f"s{i % 10}-{i:03d}" for i in range(500)]
    data = DataDir(tmp_path, sorted(utts), [u[:2] for u in sorted(utts)], dict.fromkeys(utts, "x"))
    assert [len(p.utts) for p in data.split(5)] == [100] * 5
    data.write(tmp_path / "d")
    assert data.split(3)[0].spk[0] == "s0"
    DataDir.read(tmp_path / "d").write_split(4)
    assert sorted(p.name for p in (tmp_path / "d" / "split4").iterdir()) == ["1", "2", "3", "4"]
    assert sum(len(DataDir.read(tmp_path / "d" / "split4" / str(i)).utts) for i in (1, 2, 3, 4)) == 500


# ---- atomic ----------------------------------------------------------------------------------------------------
def _write_for_ever(path: str, n: int) -> None:
    utts = [f"u{i:05d}" for i in range(n)]
    for generation in range(10**6):
        DataDir(Path(path), utts, [f"s{generation}"] * n, dict.fromkeys(utts, f"{generation}.wav")).write(
            path
        )


def test_kill_in_the_middle_leaves_a_whole_directory(tmp_path):
    context = multiprocessing.get_context("fork")
    path = tmp_path / "d"
    for pause in (0.15, 0.08, 0.11, 0.13, 0.17):
        writer = context.Process(target=_write_for_ever, args=(str(path), 3000))
        writer.start()
        time.sleep(pause)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        # killed between the two renames: the old directory is complete, and the message says where it is
        if not path.exists():
            old = tmp_path / ".d.old"
            if not old.exists():
                continue  # killed before the first rename
            with pytest.raises(UserError, match="mv .*d.old"):
                DataDir.read(path)
            old.rename(path)
        data = DataDir.read(path)
        generation = data.spk[0].removeprefix("s")
        assert len(data.utts) == 3000
        assert set(data.spk) == {f"s{generation}"}
        assert set(data.wav.values()) == {f"{generation}.wav"}


def test_fix_killed_between_two_files_ends_the_same(tmp_path, monkeypatch):
    files = {
        "utt2spk": "u2 s\nu1 s\nu3 t\n",
        "wav.scp": "u3 c\nu1 a\nu4 d\n",
        "utt2lang": "u3 x\nu1 y\n",
        "spk2gender": "t m\ns f\n",
    }
    whole = put(tmp_path / "whole", files)
    fix(whole)
    real = os.replace
    for stop_at in range(5):
        path = put(tmp_path / f"cut{stop_at}", files)
        done = []

        def replace(a, b, done=done, stop_at=stop_at):
            if len(done) == stop_at:
                raise KeyboardInterrupt
            done.append(b)
            real(a, b)

        with monkeypatch.context() as patch:
            patch.setattr("pyspkv.data.fix.os.replace", replace)
            with pytest.raises(KeyboardInterrupt):
                fix(path)
        fix(path)
        assert contents(path) == contents(whole)


def test_write_refuses_to_delete_what_is_not_its_own(tmp_path):
    data = DataDir.read(put(tmp_path / "d", KALDI))
    put(tmp_path / "home", {"thesis.tex": "years of work\n", "utt2spk": "x"})
    with pytest.raises(UserError, match="thesis.tex"):
        data.write(tmp_path / "home")
    assert (tmp_path / "home" / "thesis.tex").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file, so no data directory"):
        data.write(tmp_path / "file")


# ---- trials and tables ------------------------------------------------------------------------------------------
def test_trials_in_file_order(tmp_path):
    (tmp_path / "t").write_text("b x target\na y nontarget\nb x target\n")
    enrol, test, target = read_trials(tmp_path / "t")
    assert (enrol, test, target.tolist()) == (["b", "a", "b"], ["x", "y", "x"], [True, False, True])


def test_published_voxceleb_trials_get_their_own_hint(tmp_path):
    (tmp_path / "t").write_text("1 id1/a.wav id1/b.wav\n0 id1/a.wav id2/c.wav\n")
    with pytest.raises(UserError) as err:
        read_trials(tmp_path / "t")
    command = str(err.value).split("hint: ")[1]
    assert os.system(command) == 0
    enrol, _, target = read_trials(tmp_path / "t")
    assert enrol == ["id1/a.wav", "id1/a.wav"] and target.tolist() == [True, False]
    assert (tmp_path / "t~").read_text().startswith("1 id1/a.wav")


def test_enrolment_in_another_directory(tmp_path):
    files = {"utt2spk": "t1 a\nt2 b\n", "spk2utt": "a t1\nb t2\n", "wav.scp": "t1 x\nt2 y\n"}
    path = put(tmp_path / "d", {**files, "trials": "model1 t1 target\nmodel1 t2 nontarget\n"})
    data = DataDir.read(path)
    assert data.subset(["t2"]).trials == {"trials": ["model1 t2 nontarget"]}
    assert fix(path) == []


def test_read_table(tmp_path):
    (tmp_path / "t").write_text("a 1 2\nb x\n")
    assert read_table(tmp_path / "t") == {"a": "1 2", "b": "x"}


# ---- the command line --------------------------------------------------------------------------------------------
def run(*args) -> None:
    main([str(a) for a in args])


def test_copy_spk_prefix_with_and_without_a_value(tmp_path):
    src = put(tmp_path / "src", KALDI)
    for i, words in enumerate(
        [("--spk-prefix", src, "DST"), (src, "DST", "--spk-prefix"), (src, "--spk-prefix", "DST")]
    ):
        dst = tmp_path / f"bare{i}"
        run("copy", *[dst if w == "DST" else w for w in words])
        assert (dst / "utt2spk").read_text() == "a-a-1 a\na-a-2 a\nb-b-1 b\nc-c-1 c\n"
        assert (dst / "trials").read_text().startswith("m1 a-a-2 target\n")
    for i, words in enumerate([("--spk-prefix", "-x-", src), ("--spk-prefix=-x-", src)]):
        run("copy", *words, tmp_path / f"value{i}", "--utt-suffix", "-noise")
        assert (tmp_path / f"value{i}" / "utt2spk").read_text().startswith("a-1-noise -x-a\n")


def test_subset_options(tmp_path, capsys):
    utts = [f"u{i:02d}" for i in range(20)]
    data = DataDir(tmp_path, utts, [f"s{i % 4}" for i in range(20)], dict.fromkeys(utts, "x"))
    data.utt_tables["utt2dur"] = {u: str(1 + (7 * i) % 20) for i, u in enumerate(utts)}
    data.write(tmp_path / "d")

    def subset(*args) -> DataDir:
        run("subset", *args[:-1], *([tmp_path / "d"] + list(args[-1])), tmp_path / "out")
        return DataDir.read(tmp_path / "out")

    assert subset([5]).utts == ["u00", "u04", "u08", "u12", "u16"]
    assert subset("--first", [3]).utts == utts[:3]
    assert subset("--last", [3]).utts == utts[-3:]
    assert sorted(map(float, subset("--shortest", [4]).utt_tables["utt2dur"].values())) == [1, 2, 3, 4]
    assert (
        subset("--per-spk", [2]).spk == ["s0", "s1", "s2", "s3"] * 2
        or len(subset("--per-spk", [2]).utts) == 8
    )
    chosen = subset("--speakers", [7])
    assert len(chosen.utts) == 10 and len(set(chosen.spk)) == 2
    (tmp_path / "list").write_text("s3 and more\ns1\nnobody\n")
    assert set(subset("--spk-list", tmp_path / "list", []).spk) == {"s1", "s3"}
    (tmp_path / "list").write_text("u07\n")
    assert subset("--utt-list", tmp_path / "list", []).utts == ["u07"]
    with pytest.raises(UserError, match="21 of 20 utterances cannot be chosen"):
        subset([21])
    (tmp_path / "list").write_text("nobody\n")
    with pytest.raises(UserError, match="none of these ids"):
        subset("--utt-list", tmp_path / "list", [])


def test_no_wav(tmp_path):
    path = put(tmp_path / "d", {"utt2spk": "u s\n", "spk2utt": "s u\n"})
    run("validate", "--no-wav", "--no-text", "--no-feats", "--no-spk-sort", "--non-print", path)
    with pytest.raises(UserError, match="wav.scp: no such file"):
        run("validate", path)


def test_combine_refuses_its_own_source(tmp_path):
    path = put(tmp_path / "d", KALDI)
    with pytest.raises(UserError, match="one of the sources"):
        run("combine", path, path)
    shutil.copytree(path, tmp_path / "e")
    with pytest.raises(UserError, match="same folder"):
        run("copy", path, path)


def test_corrupt_moves_a_random_share_to_other_speakers(tmp_path, capsys):
    utts = [f"u{i:02d}" for i in range(20)]
    DataDir(tmp_path, utts, [f"s{i % 4}" for i in range(20)], dict.fromkeys(utts, "x.wav")).write(
        tmp_path / "d"
    )
    args = ["corrupt", "--share", "0.4", "--seed", "1", "--list", tmp_path / "list", tmp_path / "d"]
    run(*args, tmp_path / "e")
    old, new = (DataDir.read(tmp_path / name) for name in ("d", "e"))
    changed = [u for u, a, b in zip(old.utts, old.spk, new.spk) if a != b]
    assert changed == (tmp_path / "list").read_text().split() and len(changed) == 8
    assert set(new.spk) <= set(old.spk) and new.wav == old.wav
    run(*args, tmp_path / "f")
    assert (tmp_path / "f/utt2spk").read_bytes() == (tmp_path / "e/utt2spk").read_bytes()
