"""Extraction names utterances without a signal, and all that use its embeddings count them."""

import json
import shutil
import sys

import numpy as np
import pytest
import soundfile
import toy
from test_extract_parts import model
from test_report import scored

from pyspkv.audio import reader, silence
from pyspkv.bin import cluster, evaluate, extract, report, seeded_cluster
from pyspkv.clustering import made
from pyspkv.score import extract as embed_module


@pytest.fixture
def call(monkeypatch, capsys):
    """Run an entry point in this process with small batches: (stdout, stderr)."""
    monkeypatch.setattr(embed_module, "BATCH_SECONDS", {"cpu": 2})

    def run(module, *args):
        monkeypatch.setattr(sys, "argv", ["x", *map(str, args)])
        module.main()
        return capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model, and 12 utterances, one of zeros and one constant; with trials."""
    root = tmp_path_factory.mktemp("silence")
    data = toy.make(root, speakers=3, utts=4, seconds=0.6)
    zeros, constant = data.utts[2], data.utts[7]
    soundfile.write(data.wav[zeros], np.zeros(9000, np.int16), 16000)
    soundfile.write(data.wav[constant], np.full(9000, 3000, np.int16), 16000)
    toy.trials(data.path, data)
    return root, model(root / "exp/model", 0), data, {zeros: "digital silence", constant: "a constant 0.0916"}


def record(folder):
    return json.loads((folder / "made_by").read_text())


def test_extraction_names_and_records_them_in_any_number_of_parts(world, call, tmp_path):
    root, exp, data, silent = world
    what = ["--model", exp, "--data", data.path]
    said = f"warning: {data.path}: 2 utterances have no signal: "
    said += ", ".join(f"{u} ({why})" for u, why in silent.items()) + "\n"
    assert call(extract, *what, "--out", tmp_path / "whole").err == said
    assert record(tmp_path / "whole")["silent"] == silent
    told = [call(extract, *what, "--out", tmp_path / "parts", "--part", f"{k}/3").err for k in (3, 1, 2)]
    assert sum(t.count("no signal") for t in told) >= 1
    parts = [json.loads(f.read_text())["silent"] for f in (tmp_path / "parts").glob("part.*.made_by")]
    assert sorted(u for part in parts for u in part) == sorted(silent), "each in its own part"
    assert call(extract, *what, "--out", tmp_path / "parts", "--merge", 3).err == said
    one, other = record(tmp_path / "whole"), record(tmp_path / "parts")
    assert one.pop("out") != other.pop("out") and one.pop("bytes") and other.pop("bytes") and one == other
    arks = [(tmp_path / name / "embedding.ark").read_bytes() for name in ("whole", "parts")]
    assert arks[0] == arks[1]
    scps = [tmp_path / name / "embedding.scp" for name in ("whole", "parts")]
    assert made.embeddings_digest(scps[0]) == made.embeddings_digest(scps[1])
    assert "up to date" in call(extract, *what, "--out", tmp_path / "whole").out
    before = made.embeddings_digest(scps[0])
    shutil.copy(tmp_path / "whole/made_by", tmp_path / "old")
    older = {k: v for k, v in record(tmp_path / "whole").items() if k != "silent"}
    (tmp_path / "whole/made_by").write_text(json.dumps(older))  # a record of an older version
    assert "up to date" in call(extract, *what, "--out", tmp_path / "whole").out
    assert made.embeddings_digest(scps[0]) == before and silence.among([scps[0]], data.utts) == {}


def test_a_corpus_without_silence_gives_no_warning(world, call, tmp_path):
    root, exp, data, silent = world
    data.subset([u for u in data.utts if u not in silent]).write(tmp_path / "sound")
    assert (
        "signal"
        not in call(extract, "--model", exp, "--data", tmp_path / "sound", "--out", tmp_path / "e").err
    )
    assert record(tmp_path / "e")["silent"] == {}
    done = call(cluster, "--embeddings", tmp_path / "e/embedding.scp", "--data", tmp_path / "sound",
                "--out-data", tmp_path / "r/data", "--num-clusters", 3)  # fmt: skip
    assert "signal" not in done.err
    assert json.loads((tmp_path / "r/report.json").read_text())["silent"] == 0


def test_clusterings_reports_and_trials_count_them(world, call, tmp_path, monkeypatch):
    root, exp, data, silent = world
    call(extract, "--model", exp, "--data", data.path, "--out", tmp_path / "s/embed/data")
    scp = tmp_path / "s/embed/data/embedding.scp"

    def refuse(*args, **kwargs):
        raise AssertionError("audio was opened")

    monkeypatch.setattr(reader.AudioReader, "__init__", refuse)
    zeros, constant = silent
    some = data.subset([u for u in data.utts if u != zeros])
    some.write(tmp_path / "some")
    for source, number in ((data.path, 2), (tmp_path / "some", 1)):
        round1 = tmp_path / f"exp{number}/round1"
        done = call(
            cluster, "--embeddings", scp, "--data", source, "--out-data", round1 / "data", "--num-clusters", 3
        )
        assert f"warning: {source}: {number} utterance" in done.err and constant in done.err
        assert json.loads((round1 / "report.json").read_text())["silent"] == number
        scored(tmp_path / f"exp{number}", "round1")
        call(report, "--exp", tmp_path / f"exp{number}")
        text = (tmp_path / f"exp{number}/report.md").read_text()
        assert f"Round 1: {number} labeled utterance" in text
        results = json.loads((tmp_path / f"exp{number}/results.json").read_text())
        assert results["rounds"][0]["silent"] == number
        found = json.loads((round1 / "report.json").read_text())
        (round1 / "report.json").write_text(json.dumps(found | {"silent": 0}))
        call(report, "--exp", tmp_path / f"exp{number}")
        none = json.loads((tmp_path / f"exp{number}/results.json").read_text())
        assert (
            "silent" not in none["rounds"][0]
            and "signal" not in (tmp_path / f"exp{number}/report.md").read_text()
        )
    labeled, rest = data.subset(data.utts[:6]), data.subset(data.utts[6:])
    labeled.write(tmp_path / "labeled")
    rest.write(tmp_path / "rest")
    done = call(seeded_cluster, "--embeddings", scp, "--labeled-data", tmp_path / "labeled", "--unlabeled",
                tmp_path / "rest", "--out-data", tmp_path / "semi/data")  # fmt: skip
    assert "2 utterances have no signal" in done.err
    assert json.loads((tmp_path / "semi/report.json").read_text())["silent"] == 2
    (tmp_path / "s/model").mkdir()
    done = call(evaluate, "--systems", tmp_path / "s", "--data", data.path)
    assert done.err.count("2 utterances have no signal") == 1 and f"{data.path}/trials" in done.err


def test_damaged_records_are_handled(tmp_path):
    scp = tmp_path / "embedding.scp"
    for text, want in (
        ('{"silent": {"a": "zeros", "b": 3, "z": "not asked for"}}', {"a": "zeros"}),
        ('{"silent": ["a"]}', {}),
        ('{"silent": null}', {}),
        ("[]", {}),
        ("[" * 10**5, {}),
        ('{"silent": {"a": "\\ud800"}}', {}),
        ("\xff", {}),
    ):
        (tmp_path / "made_by").write_text(text, encoding="latin-1")
        assert silence.among([scp], ["a", "b"]) == want
    (tmp_path / "made_by").unlink()
    assert silence.among([scp], ["a"]) == {}


def test_only_the_first_of_many_are_named():
    many = {f"u{k:02d}": "zeros" for k in range(30)}
    text = silence.note(many)
    assert text.startswith("30 utterances have no signal: u00 (zeros), ") and text.endswith(
        ", u09 (zeros), ..."
    )
    assert silence.note({}) == "" and silence.note({"u": "zeros"}) == "1 utterance has no signal: u (zeros)"
