"""JSON files that others may have written: each place that reads them raises an error that names the file, or
counts the file as missing.
"""

import json
import math
import sys

import pytest
import torch

from pyspkv.base import checkpoint, foreign
from pyspkv.base.errors import UserError
from pyspkv.batches.augment import AugmentConfig, Augmenter
from pyspkv.bin import simulate_dialogues
from pyspkv.dialogue import sessionize
from pyspkv.experiments import results, runner
from pyspkv.score import calibration, evaluate, wanted
from pyspkv.train import log as train_log
from pyspkv.train.trainer import _seed_of

HOSTILE = {
    "not UTF-8": b'{"a": "\xff\xfe"}',
    "a number": b"5",
    "a list": b"[1]",
    "null": b"null",
    "nothing": b"",
    "cut": b'{"a": [1, ',
    "deep list": b"[" * 100_000,
    "deep object": b'{"a":' * 3000 + b"1" + b"}" * 3000,
    "5000 digits": b'{"seconds": ' + b"9" * 5000 + b', "scale": ' + b"9" * 5000 + b"}",
    "half a character": b'{"a": "\\ud800"}',
    "out of range": b'{"eer": 1e999, "scale": 1e999, "seconds": 1e999}',
    "huge": b'{"eer": 99999999999999999999, "seconds": 1e300, "scale": 99999999999999999999}',
    "NaN": b'{"eer": NaN, "seconds": NaN, "scale": NaN}',
    "wrong types": b'{"eer": [], "definition": 3, "seconds": "x", "scale": null, "table": {}, "done": 3}',
}


@pytest.fixture(params=HOSTILE)
def file(request, tmp_path):
    (path := tmp_path / "made.json").write_bytes(HOSTILE[request.param])
    return path


def refused(file, read):
    with pytest.raises(UserError) as err:
        read()
    assert str(file) in str(err.value)


def test_damaged_files_that_are_needed_are_errors(file, tmp_path, monkeypatch):
    raw = file.read_bytes()
    refused(file, lambda: calibration.Calibration.read(file))
    refused(file, lambda: results.checked(raw, file, 1))
    cell = tmp_path / "cell/grid.json"
    cell.parent.mkdir()
    cell.write_bytes(raw)
    job = runner.Runner.__new__(runner.Runner)
    job.exp = tmp_path
    refused(cell, lambda: job.mark("cell"))
    log = tmp_path / "turns.jsonl"
    log.write_bytes(raw + b"\n" if raw else b"1\n")
    fields = sessionize.Fields()
    refused(log, lambda: sessionize.from_log(log, "jsonl", fields, ""))
    out = tmp_path / "out"
    (out / "train").mkdir(parents=True)
    (out / "train/utt2dialogue").touch()
    (out / "made_by.json").write_bytes(raw)
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path / "data"), str(out)])
    refused(out, simulate_dialogues.main)


def test_damaged_files_that_are_optional_count_as_missing(file, tmp_path):
    raw = file.read_bytes()
    (tmp_path / "score").mkdir()
    (tmp_path / "score/made_by").write_bytes(raw)
    assert isinstance(wanted.read_made_by(str(tmp_path)).get("test"), type(None))
    (tmp_path / "ckpt-1").mkdir()
    (tmp_path / "LATEST").write_text("ckpt-1\n")
    (tmp_path / "ckpt-1/state.json").write_bytes(raw)
    odd = b'"done"' not in raw and isinstance(foreign.read_json_or_empty(file), dict)
    assert foreign.is_finished(tmp_path) in ((False, True) if odd else (False,))
    (tmp_path / "LATEST").write_bytes(raw or b"../x")
    assert not foreign.is_finished(tmp_path)
    assert not train_log._is_record_until(raw.decode("utf-8", "replace"), 10**6)


def test_the_table_of_figures_accepts_only_numbers(file):
    try:
        found = evaluate.read_figures(file)
    except UserError as err:
        assert str(file) in str(err)
    else:
        assert found == {}, "it holds no figure"


def test_a_training_log_continues_after_the_last_complete_record():
    lines = [
        '{"step": 3}',
        '{"step": 4, "loss": NaN}',
        '{"step": 9}',
        '{"step": true}',
        '{"step": "3"}',
        '{"step": 5',
    ]
    assert [train_log._is_record_until(line, 5) for line in lines] == [True, True, False, False, False, False]


def test_a_valid_record_is_read(tmp_path):
    made = calibration.Calibration(3.0, -1.0, 0.3, 0.5, "x", 9, 9, 0.4)
    made.write(tmp_path / "c")
    assert calibration.Calibration.read(tmp_path / "c") == made
    row = {"table": "t", "row": "r", "seed": 1, "eer": 2.5, "cllr": None}
    assert results.checked(json.dumps(row), tmp_path) == row


# -- seeds, checkpoints and rooms


def test_the_seed_of_a_step_is_unchanged_and_never_overflows():
    assert _seed_of(0, 0, 0) == 0 and _seed_of(1, 2, 3) == (1_000_003 + 2) * 4_099 + 3
    torch.manual_seed(_seed_of(2**31 - 1, 10**14, 4_098))
    with pytest.raises((RuntimeError, ValueError)):
        torch.manual_seed(_seed_of(2**31 * 1100, 0, 0))


def test_a_checkpoint_beyond_the_end_is_refused(tmp_path):
    model = torch.nn.Linear(2, 2)
    adam = {"all": torch.optim.Adam(model.parameters())}
    model(torch.ones(1, 2)).sum().backward()
    adam["all"].step()
    state = {"epoch": 1, "done": False, "means": {}, "label_hash": "x", "evaluates": "encoder"}
    checkpoint.save(tmp_path, 7, model, adam, state)
    folder = checkpoint.latest(tmp_path)
    assert checkpoint.restore(folder, model, adam, last=7)["step"] == 7
    with pytest.raises(UserError, match="is from step 7, but the training has only 6"):
        checkpoint.restore(folder, model, adam, last=6)


def test_rooms_can_wait(tmp_path):
    config = AugmentConfig(rir_bank=2, prob=1.0)
    late = Augmenter(config, 3, cache_dir=tmp_path / "rooms", rooms_later=True)
    assert not list(tmp_path.iterdir()) and late.num_rirs == 2
    late.make_rooms()
    [kept] = (tmp_path / "rooms").iterdir()
    now = Augmenter(config, 3)
    assert all((a == b).all() for a, b in zip(late._rirs, now._rirs, strict=True))
    kept.unlink()
    late.make_rooms()
    assert not kept.exists(), "they are there already"
    assert math.isclose(float((late._rirs[0] ** 2).sum()), 1, rel_tol=1e-5)
