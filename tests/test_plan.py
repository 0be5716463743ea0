"""Settings that fit a corpus, and the plan of a recipe."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import toy
import yaml

from pyspkv.base.errors import UserError
from pyspkv.bin import plan as plan_cli
from pyspkv.data.plan import Settings, clusters, fitted, suggest

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "egs/mini/ssl/conf"
PRETRAIN = Settings(batch_size=128, epochs=4, crop_seconds=1.5)


def test_the_rule_by_hand():
    # 16 speakers x 60 utterances of 3 to 5 s: 960 / 8 = 120 -> 64; 15 steps an epoch, 200 / 15 -> 14 epochs
    assert suggest(960, [4.0] * 960, "pretrain", PRETRAIN) == Settings(64, 14, 1.5)
    # 2400 words of 0.42 s: crops of half of it, floored at 0.25; 18 steps an epoch
    assert suggest(2400, [0.42] * 50, "pretrain", PRETRAIN) == Settings(128, 12, 0.25)
    # a round: 25th percentile; steps as the config has on 1600 utterances, 20 x 12 = 240 = 4 x 60 epochs' worth
    durations = [0.9] * 30 + [5.0] * 70
    assert suggest(64, durations, "round", Settings(128, 20, 1.5)) == Settings(8, 30, 0.9)
    assert suggest(100, durations, "finetune", Settings(128, 3, 2.5)).crop_seconds == 2.5
    assert clusters(499) == "24" and clusters(500) == "auto" and clusters(10) == "3"


@pytest.mark.parametrize("num", [1, 2, 7, 8, 63, 64, 1000, 1600, 10**6])
@pytest.mark.parametrize("stage", ["pretrain", "round", "finetune"])
def test_what_the_rule_promises(num, stage):
    found = suggest(num, [0.5, 1.0, 2.0, 8.0], stage, PRETRAIN)
    steps = num // found.batch_size * found.epochs
    assert 1 <= found.batch_size <= min(num, 128) and (num < 64 or found.batch_size <= num / 8)
    assert steps >= 4 * (1600 // 128) and (stage != "pretrain" or steps >= 200)
    assert found.epochs >= 4 and 0.25 <= found.crop_seconds <= 1.5
    assert found.crop_seconds <= {"pretrain": 1.0, "round": 1.0, "finetune": 2.0}[stage]


def test_a_config_of_the_size_that_it_was_made_for_keeps_its_rounds():
    for file in CONF.glob("*.yaml"):
        new = fitted(file.read_text(), file.stem, 1600, [4.0] * 100)
        if file.stem != "pretrain":
            assert new == file.read_text()
    assert fitted("# nothing: 1\n", "pretrain", 10, [1.0]) == "# nothing: 1\n"


@pytest.mark.parametrize("method", ["ssl", "trunk_ssl", "gll", "dialogue", "ssrl", "supervised"])
@pytest.mark.parametrize("num, seconds", [(40, 0.3), (960, 3.0), (100_000, 8.0)])
def test_a_fitted_config_is_a_config_and_differs_in_its_numbers_alone(method, num, seconds):
    for file in (ROOT / "egs/mini" / method / "conf").rglob("*.yaml"):
        text = file.read_text()
        new = fitted(text, file.stem, num, [seconds] * 20)
        without = [re.sub(r"[\d.]+", "", t) for t in (text, new)]
        assert without[0] == without[1]
        a, b = yaml.safe_load(text), yaml.safe_load(new)
        changed = {k for k in a if a[k] != b[k]}
        assert changed <= {"epochs", "batch_size", "objective"}
        for key, value in (b.get("objective") or {}).items():
            assert key.endswith("_seconds") or value == a["objective"][key]
            assert not key.endswith("_seconds") or 0.1 <= value <= a["objective"][key]


def words(monkeypatch, *argv) -> None:
    monkeypatch.setattr("sys.argv", ["plan", *map(str, argv)])
    plan_cli.main()


def test_a_plan_of_a_recipe(tmp_path, monkeypatch, capsys):
    data = toy.make(tmp_path, speakers=4, utts=10, seconds=0.5, labelled=False)
    conf = tmp_path / "conf"
    conf.mkdir()
    for file in (ROOT / "tests/conf").glob("*.yaml"):
        (conf / file.name).write_text(file.read_text())
    (conf / "train.yaml").unlink()
    words(monkeypatch, data.path, "--conf", conf, "--num-rounds", 1, "--fit", "--no-timing")
    out = capsys.readouterr().out
    assert "40 utterances, about 0.01 hours, median 0.50 s" in out and "num_clusters=3" in out
    config = yaml.safe_load((conf / "pretrain.yaml").read_text())
    assert config["batch_size"] == 8 and 40 // 8 * config["epochs"] >= 200
    assert config["objective"]["crop_seconds"] == 0.25
    words(monkeypatch, data.path, "--conf", conf, "--num-rounds", 1)
    lines = capsys.readouterr().out.splitlines()
    rows = {
        line.split()[0]: line.split()[1:]
        for line in lines
        if line.split()[0] in ("pretrain", "round1", "finetune")
    }
    assert set(rows) == {"pretrain", "round1", "finetune"}
    steps, epochs, batch, crop, hours, minutes, mb = map(float, rows["pretrain"])
    assert (steps, epochs, batch, crop) == (200, 40, 8, 0.25)
    assert hours == pytest.approx(200 * 8 * 2 * 0.25 / 3600, abs=0.06) and 0 < minutes < 30 and mb > 50
    with pytest.raises(UserError, match="no such folder"):
        words(monkeypatch, data.path, "--conf", tmp_path / "none")


def test_new_recipe_fits_its_data(tmp_path):
    data = toy.make(tmp_path, speakers=2, utts=20, seconds=0.4, labelled=False)
    env = {"PATH": "/usr/bin:/bin", "SPKV_PYTHON": sys.executable}
    new = [str(ROOT / "utils/new_recipe.sh"), "mine", "ssl", "--dir", str(tmp_path)]
    done = subprocess.run([*new, "--data", str(data.path)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    recipe = tmp_path / "mine/ssl"
    assert re.search(r"(?m)^num_clusters=3 +# number of pseudo", (recipe / "run.sh").read_text())
    assert yaml.safe_load((recipe / "conf/pretrain.yaml").read_text())["batch_size"] == 8
    assert done.stderr.startswith("warning: corpus: 40 utterances in all. Likely cause: ")
    command = done.stdout.splitlines()[-1].partition("then run: ")[2]
    assert shlex.split(command) == [str(recipe / "run.sh"), "--data", str(tmp_path), "--stage", "2"]
    assert f"rename {data.path} to train" in done.stdout  # run.sh looks for a folder of this name
    done = subprocess.run(
        [*new[:2], "gll", *new[3:], "--data", "none"], env=env, capture_output=True, text=True
    )
    assert done.returncode == 1 and "none" in done.stderr and not (tmp_path / "mine/gll").exists()
    assert not list((tmp_path / "mine").glob(".*"))
