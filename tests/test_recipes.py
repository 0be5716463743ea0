"""Small recipes from end to end: what run.sh promises for any corpus, and runs that are killed again and
again.
"""

import argparse
import importlib
import json
import os
import random
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pyspkv.base import config as cfg
from pyspkv.data.datadir import DataDir
from pyspkv.models.registry import EncoderConfig
from pyspkv.objectives.registry import ObjectiveConfig
from pyspkv.train.config import TrainConfig, load_config

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted(p.parent for p in ROOT.glob("egs/*/*/run.sh") if p.parent.parent.name != "TEMPLATE")
TEMPLATES = sorted(ROOT.glob("egs/TEMPLATE/*/run.sh"))
MINI = [
    "--num-train-spk=8",
    "--num-dev-spk=4",
    "--num-test-spk=4",
    "--nj=1",
    "--num-rounds=2",
    "--num-clusters=10",
]
SMALL = ["--mini-opts", "--sessions 2 --utts-per-session 3 --eval-utts-per-session 3"]
ONE_ROUND = [*MINI[:3], "--num-rounds=1", "--num-clusters=10", "--finetune=false", *SMALL]


def each_recipe(argument):
    return pytest.mark.parametrize(argument, RECIPES, ids=lambda p: f"{p.parent.name}/{p.name}")


def command(recipe, folder, *options) -> list[str]:
    return [str(ROOT / "egs" / recipe / "run.sh"), "--conf", str(ROOT / "tests/conf"),
            "--exp", str(folder / "exp"), "--data", str(folder / "data"), *options]  # fmt: skip


def env(**more) -> dict:
    own = {k: v for k, v in os.environ.items() if k not in ("SPKV_ROOT", "SPKV_RECIPE")}
    return {**own, "OMP_NUM_THREADS": "1", "SPKV_PYTHON": sys.executable, **more}


def run(*args, **more) -> subprocess.CompletedProcess:
    done = subprocess.run(command(*args), env=env(**more), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done


def call(script, *options, code=0, **more) -> subprocess.CompletedProcess:
    words = [str(x) for x in (script, *options)]
    done = subprocess.run(words, env=env(**more), capture_output=True, text=True)
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-2000:]
    return done


def figures(folder) -> tuple[dict, dict[str, str]]:
    """results.json, and the bytes of everything that must not depend on kills."""
    labels = {str(p.relative_to(folder)): p.read_text() for p in folder.glob("exp/round*/data/utt2spk")}
    scores = {str(p.relative_to(folder)): p.read_text() for p in folder.glob("exp/*/score/*.scores")}
    return json.loads((folder / "exp/results.json").read_text()), {**labels, **scores}


# ---- commands in sight ------------------------------------------------------------------------------------------
def python_commands(text: str) -> list[list[str]]:
    """The words after `python` in every Python command that a dry run prints."""
    out = []
    for line in text.splitlines():
        words = shlex.split(line) if not line.startswith("==") else []
        if "python" in words:
            out.append(words[words.index("python") + 1 :])
    return out


class Parsed(Exception):
    pass


def parse(words: list[str], monkeypatch) -> None:
    """Give a command's words to its own parser. SystemExit: the parser refuses them."""
    words = [word.replace("SPKV_JOB", "1") for word in words]
    if words[:3] == ["-m", "pyspkv.bin.launch", "--nproc"]:
        words = ["-m", *words[4:]]
    real = argparse.ArgumentParser.parse_args

    def parse_args(self, *args, **kwargs):
        real(self, *args, **kwargs)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    if words[0] == "-m":
        main, rest = importlib.import_module(words[1]).main, words[2:]
    else:
        monkeypatch.syspath_prepend(str(Path(words[0]).parent))
        main, rest = runpy.run_path(words[0])["main"], words[1:]
    monkeypatch.setattr(sys, "argv", ["command", *rest])
    with pytest.raises(Parsed):
        main(rest) if words[0].endswith("mini.py") else main()


VARIANTS = {
    "ssl": [[], ["--ngpu", "2", "--nj", "1", "--crops", "3", "--num-pretrain", "2", "--ensemble", "true"],
            ["--reuse", "/x", "--stage", "4", "--allow-pipes", "true", "--compare-with", "/y /z"],
            ["--also-test", "far near", "--versus", "pretrain", "--crops", "3"]],
    "ssrl": [[], ["--round-opts", "objective.queue_length=1", "--dev-curve", "true", "--reuse", "/x"]],
    "trunk_ssl": [[], ["--trunk", "/t", "--labels-from", "trunk", "--label-noise", "0.2", "--student", "/s.yaml"],
                  ["--embeddings", "/e.pt", "--qmf", "true"], ["--labels", "/l"]],
    "supervised": [[], ["--init", "/x", "--use-dev", "true", "--finetune", "false"], ["--also-test", "far near"]],
    "dialogue": [[], ["--mode", "household", "--mixed-percent", "50", "--num-labeled-spk", "4"], ["--joint", "true"]],
    "gll": [[], ["--baseline", "fixmatch", "--threshold-from", "/x"], ["--label-noise", "0.3"],
            ["--baseline", "supervised", "--use-labels", "only", "--start-from", "scratch"]],
}  # fmt: skip


@each_recipe("recipe")
def test_a_dry_run_shows_commands_that_their_own_parsers_take(recipe, tmp_path, monkeypatch):
    """Without data, .venv and network, in under 3 s, and nothing is written."""
    corpora = {"SPKV_CORPORA": "/corpora"}  # a folder that does not exist
    for options in VARIANTS[recipe.name]:
        before = sorted(p for p in recipe.rglob("*"))
        start = time.perf_counter()
        clean = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), **corpora}
        words = [recipe / "run.sh", "--dry-run", "true", "--exp", tmp_path / "exp", *options]
        done = subprocess.run(list(map(str, words)), env=clean, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert time.perf_counter() - start < 3
        assert done.stderr == "" and not (tmp_path / "exp").exists()
        assert sorted(p for p in recipe.rglob("*")) == before
        monkeypatch.chdir(ROOT)
        commands = python_commands(done.stdout)
        assert len(commands) > 3
        assert "--layers 0" not in done.stdout  # an import refuses it, but its parser does not
        for words in commands:
            parse(words, monkeypatch)
            monkeypatch.undo()


@pytest.mark.parametrize("method", ["ssl", "supervised"])
def test_further_test_sets_are_extracted_and_scored_as_test_is(method, tmp_path):
    """Each with its own name, and in ssl with paired differences from the phase that --versus names."""
    words = ["--also-test", "far near", *(["--versus", "round1"] if method == "ssl" else [])]
    shown = run(f"mini/{method}", tmp_path, *words, "--dry-run", "true").stdout
    shown = shown.replace(f"{tmp_path}/", "")
    extract, *scores = [
        w for w in python_commands(shown) if w[1] in ("pyspkv.bin.extract", "pyspkv.bin.evaluate")
    ][-4:]
    assert extract[extract.index("--data") :][2:5] == ["data/dev", "data/test", "data/far"], extract
    for name, score in zip(("test", "far", "near"), scores, strict=True):
        assert score[score.index("--data") + 1] == f"data/{name}" and score[score.index("--name") + 1] == name
        assert ("--compare" in score) is (method == "ssl")
        assert method != "ssl" or score[score.index("--compare") + 1] == "exp/round1"


@each_recipe("recipe")
def test_a_recipe_is_whole_and_short(recipe):
    for name in (
        "run.sh",
        "cmd.sh",
        "path.sh",
        "local/data.sh",
        "README.md",
        "RESULTS.md",
        "conf/encoder.yaml",
    ):
        assert (recipe / name).is_file() and not (recipe / name).is_symlink(), name
    for path in (recipe / "run.sh", recipe / "local/data.sh"):
        lines = path.read_text().splitlines()
        assert len(lines) <= 160 and max(map(len, lines)) <= 120
    sourced = re.findall(r"(?m)^\. (\S+)", (recipe / "run.sh").read_text())
    assert sourced == ['"$recipe/path.sh"', '"$recipe/cmd.sh"', "parse_options.sh"]


def test_shipped_recipes_equal_their_templates(tmp_path):
    """Stages 2 to 8, and names and help of the options, line by line. utils/sync_recipes.sh copies changes of
    a template.
    """
    call(ROOT / "utils/sync_recipes.sh", "--check", "true")
    for recipe in RECIPES:
        template = ROOT / "egs/TEMPLATE" / recipe.name / "run.sh"
        ours, theirs = (
            (p.read_text()).split("# -- the same in every")[1] for p in (recipe / "run.sh", template)
        )
        assert ours == theirs
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("utils", "egs", "path.sh"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tree / name)
    template = tree / "egs/TEMPLATE/ssl/run.sh"
    text = template.read_text()
    text = text.replace("crops=0 ", "crops=7 ", 1).replace("nj=2 ", "news=1             # new\nnj=2 ", 1)
    template.write_text(text.replace('if stage 8 "report"', 'echo more\nif stage 8 "report"'))
    told = call(tree / "utils/sync_recipes.sh", "--check", "true", code=1).stdout
    assert "egs/librispeech/ssl/run.sh differs" in told and "ssrl" not in told
    call(tree / "utils/sync_recipes.sh")
    call(tree / "utils/sync_recipes.sh", "--check", "true")
    new = (tree / "egs/librispeech/ssl/run.sh").read_text()
    assert "echo more" in new and "news=1" in new and "librispeech=$" in new
    assert "crops=0 " in new and "num_pretrain=6 " in new, "a recipe keeps its own values"


def test_stages_are_numbered_alike():
    for template in TEMPLATES:
        stages = [int(n) for n in re.findall(r"\bstage (\d) \"", template.read_text())]
        assert stages == sorted(stages) and {1, 2, 4, 6, 7, 8} <= set(stages) and max(stages) == 8


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    """egs/mini/ssl at toy size, without interruption; every start of Python is noted in `started`."""
    folder = tmp_path_factory.mktemp("mini")
    note = folder / "python"
    note.write_text(
        f'#!/bin/bash\nprintf "%q " "$@" >> {folder}/started\necho >> {folder}/started\nexec {sys.executable} "$@"\n'
    )
    note.chmod(0o755)
    done = run("mini/ssl", folder, *MINI, *SMALL, SPKV_PYTHON=str(note))
    return folder, done.stdout


def test_what_ran_is_what_the_dry_run_shows(mini):
    folder, output = mini
    shown = run("mini/ssl", folder, *MINI, *SMALL, "--dry-run", "true").stdout
    started = [shlex.split(line) for line in (folder / "started").read_text().splitlines()]
    assert started == python_commands(shown)
    commands = [line for line in shown.splitlines() if not line.startswith("==")]
    assert (folder / "exp/log/commands").read_text().splitlines() == commands
    assert [line for line in output.splitlines() if line in commands] == commands


def test_mini_ends_with_results(mini):
    folder, output = mini
    results, _ = figures(folder)
    assert [r["round"] for r in results["rounds"]] == [1, 2]
    for entry in (results["pretrain"], *results["rounds"], results["final"]):
        assert 0 <= entry["eer"] <= 100 and 0 <= entry["min_dcf_0.01"] <= 1
    assert all(0 <= r["nmi"] <= 1 and r["num_clusters"] == 10 for r in results["rounds"])
    assert results["supervised"] is None
    assert "results.json" in output.splitlines()[-1]
    assert [f"== stage {i}" for i in range(1, 9)] == [
        x[:10] for x in output.splitlines() if x.startswith("== stage")
    ]


def test_a_rounds_data_is_a_data_directory_of_clusters(mini):
    folder, _ = mini
    train, found = DataDir.read(folder / "data/train"), DataDir.read(folder / "exp/round1/data")
    assert found.utts == train.utts and len(set(found.spk)) == 10
    assert train.spk == train.utts, "training data must not carry the truth"


def test_rerunning_does_nothing_and_an_edited_round_is_refused(mini, tmp_path):
    folder, _ = mini
    before = {p: p.stat().st_mtime_ns for p in folder.glob("exp/*/model/LATEST")}
    run("mini/ssl", folder, *MINI, "--stage", "3", "--stop-stage", "5")
    assert {p: p.stat().st_mtime_ns for p in before} == before
    shutil.copytree(folder / "exp", tmp_path / "exp")
    round2 = DataDir.read(tmp_path / "exp/round2/data")
    round2.with_speakers(["x" if s == round2.spk[0] else s for s in round2.spk]).write(
        tmp_path / "exp/round2/data"
    )
    words = ["--data", str(folder / "data"), "--stage", "4", "--stop-stage", "4", "--round", "2"]
    done = subprocess.run(
        command("mini/ssl", tmp_path, *MINI, *words), env=env(), capture_output=True, text=True
    )
    assert done.returncode == 1 and "other utterances or labels" in done.stderr
    assert "edited by hand" in done.stdout


def test_several_pre_trainings_give_labels_side_by_side(mini, tmp_path):
    """The first round clusters the joined embeddings of both pre-trainings, the second round also those of
    round 1.
    """
    words = ["--data", mini[0] / "data", "--num-pretrain=2", "--ensemble=true", "--stage=3", "--stop-stage=4"]
    run("mini/ssl", tmp_path, *MINI, *map(str, words), "--reuse", str(mini[0] / "exp"))
    assert (tmp_path / "exp/pretrain/model").is_symlink()
    exp = tmp_path / "exp"
    seeds = [
        yaml.safe_load((exp / p / "model/config.yaml").read_text())["seed"] for p in ("pretrain", "pretrain2")
    ]
    assert seeds == [0, 2000]
    for number, phases in ((1, ["pretrain", "pretrain2"]), (2, ["round1", "pretrain", "pretrain2"])):
        out = tmp_path / f"by_hand{number}"
        scps = [x for p in phases for x in ("--embeddings", str(exp / p / "embed/train/embedding.scp"))]
        more = ["--previous", str(exp / "round1/data")] if number == 2 else []
        call = [sys.executable, "-m", "pyspkv.bin.cluster", *scps, "--data", str(mini[0] / "data/train")]
        call += ["--out-data", str(out), "--num-clusters=10", "--seed=0", "--whiten=0.5", *more]
        subprocess.run(call, check=True, env=env(), capture_output=True)
        assert (out / "utt2spk").read_text() == (exp / f"round{number}/data/utt2spk").read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--stag", "3"], "unknown option --stag"),
        (["--ensemble", "yes"], "true or false"),
        (["--nj"], "needs a value"),
        (["--nj", "abc"], "--nj is a number from 1"),
        (["--num-rounds", "0"], "--num-rounds is a number from 1"),
        (["--round", "3"], "comes after --num-rounds 2"),
        (["--seed", "-1"], "--seed is a number from 0"),
        (["--labels", "2"], "unknown option --labels"),
    ],
)
def test_wrong_options_stop_at_once(tmp_path, options, words):
    done = subprocess.run(command("mini/ssl", tmp_path, *options), env=env(), capture_output=True, text=True)
    assert done.returncode != 0 and words in done.stderr and not (tmp_path / "exp").exists()


@each_recipe("recipe")
def test_every_config_of_every_recipe_loads(recipe):
    """Each is loaded after the config of the encoder; GLL's gates and baselines after the config that they
    change.
    """
    conf = recipe / "conf"
    encoders = ("encoder.yaml", "small_wavlm.yaml", "trunk.yaml", "dvector.yaml")
    stacks = [[p] for p in sorted(conf.glob("*.yaml")) if p.name not in encoders]
    stacks += [[p, conf / "dvector.yaml"] for [p] in stacks if (conf / "dvector.yaml").exists()]
    stacks += [[conf / "semi.yaml", p] for p in sorted(conf.glob("*/*.yaml"))]
    for student in ("small_wavlm.yaml", "trunk.yaml"):
        stacks += [[conf / "round.yaml", p] for p in sorted(conf.glob(student))]
    assert stacks
    for stack in stacks:
        told: list[str] = []
        config = cfg.load(TrainConfig, [conf / "encoder.yaml", *stack], (), told.append)
        assert not told, "a config takes values away that it does not set"
        again = cfg.validate(TrainConfig, yaml.safe_load(cfg.to_yaml(config)))  # as a resumed run reads it
        assert cfg.dump(again) == cfg.dump(config)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kill_minus_nine_at_ten_random_moments(mini, tmp_path):
    """One run is killed ten times, later each time, and then completed."""
    folder, _ = mini
    want = figures(folder)
    start = time.perf_counter()
    run("mini/ssl", tmp_path / "timed", *MINI, *SMALL)
    whole = time.perf_counter() - start
    assert figures(tmp_path / "timed") == want
    rng = random.Random(1)
    victim = tmp_path / "killed"
    for i in range(10):
        process = subprocess.Popen(command("mini/ssl", victim, *MINI, *SMALL), env=env(), start_new_session=True,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        time.sleep(whole * rng.uniform(0.03, 0.25))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (victim / "exp/results.json").exists() or i > 3
    run("mini/ssl", victim, *MINI, *SMALL)
    assert figures(victim) == want


def test_librispeech_recipe_on_real_speech(corpora, tmp_path):
    """Stages 1 and 2 on LibriSpeech in its own layout, with a relative path: counts as in the README of the
    corpus.
    """
    run("librispeech/ssl", tmp_path, "--stop-stage", "2", SPKV_CORPORA=os.path.relpath(corpora))
    train, test = DataDir.read(tmp_path / "data/train"), DataDir.read(tmp_path / "data/test")
    assert len(train.wav) == 251 - 30 and train.spk == train.utts and len(test.utts) == 100


def test_new_recipe_is_a_whole_folder_that_runs_anywhere(tmp_path, mini):
    """Made outside the tree, refused a second time, run on egs/mini's data with a local/data.sh of one
    command.
    """
    new = ROOT / "utils/new_recipe.sh"
    for method in ("ssrl", "trunk_ssl", "gll", "dialogue", "supervised", "ssl"):
        call(new, "mine", method, "--dir", tmp_path)
        recipe = tmp_path / "mine" / method
        assert (recipe / "conf/encoder.yaml").is_file() and os.access(recipe / "run.sh", os.X_OK)
        assert "mini" not in (text := (recipe / "run.sh").read_text()) and "CORPUS" not in text
        call(recipe / "run.sh", "--dry-run", "true", SPKV_ROOT=str(ROOT))
        first = call(recipe / "run.sh", code=1, SPKV_ROOT=str(ROOT))
        assert "to be written" in first.stderr
    assert "already exists" in call(new, "mine", "ssl", "--dir", tmp_path, code=1).stderr
    assert "set SPKV_ROOT to" in call(recipe / "run.sh", code=1).stderr
    script = recipe / "local/data.sh"
    lines = script.read_text().splitlines()
    script.write_text("\n".join(lines[:-1] + [f'log_run cp -r {mini[0]}/data "$data"']) + "\n")
    options = ["--conf", ROOT / "tests/conf", "--stop-stage", "3", "--nj", "1"]
    link = tmp_path / "a link"
    link.symlink_to(recipe)
    call(link / "run.sh", *options, SPKV_ROOT=str(ROOT))
    assert (recipe / "exp/pretrain/model/LATEST").exists()
    # a copy like the one that sbatch makes of run.sh; it runs in the folder where sbatch was called
    copy = tmp_path / "slurm_script"
    shutil.copy(recipe / "run.sh", copy)
    words = [str(copy), "--dry-run", "true", "--stop-stage", "3"]
    done = subprocess.run(words, cwd=recipe, env=env(SPKV_ROOT=str(ROOT)), capture_output=True, text=True)
    assert done.returncode == 0 and f"{recipe}/exp/pretrain/model" in done.stdout
    assert "set SPKV_RECIPE" in call(copy, code=1).stderr


def test_reuse_links_what_is_finished_and_refuses_what_differs(mini, tmp_path):
    """Embeddings and scores are made in the new experiment; nothing is written to the old one."""
    old = mini[0] / "exp"
    before = {p: p.stat().st_mtime_ns for p in old.rglob("*") if p.is_file()}
    given = ["--conf", ROOT / "tests/conf", "--data", mini[0] / "data", *MINI]
    recipe, new = ROOT / "egs/mini/ssl/run.sh", tmp_path / "new"
    call(recipe, *given, "--exp", new, "--reuse", old, "--stage", 5, "--finetune-opts", "optim.lr=1e-4")
    assert (new / "round2/model").is_symlink() and not (new / "finetune/model").is_symlink()
    assert (new / "round2/data").is_symlink() and not (new / "round2/embed").is_symlink()
    lr = [cfg.load(TrainConfig, e / "finetune/model/config.yaml").optim.lr for e in (old, new)]
    assert lr == [3e-3, 1e-4]
    other = json.loads((new / "results.json").read_text())
    assert other["rounds"] == json.loads((old / "results.json").read_text())["rounds"]
    words = ["--reuse", old, "--stage", 3, "--stop-stage", 3, "--pretrain-opts", "epochs=3"]
    told = call(recipe, *given, "--exp", tmp_path / "other", *words, code=1).stderr
    assert "epochs was 2, now 3" in told
    assert {p: p.stat().st_mtime_ns for p in old.rglob("*") if p.is_file()} == before


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_commands_in_wav_scp_pass_a_whole_recipe_only_where_they_are_allowed(mini, tmp_path):
    """Same results as without commands, in a folder whose name is difficult for shells and patterns."""
    folder = tmp_path / "a [b] * \\c;$(touch hacked)"
    shutil.copytree(mini[0] / "data", folder / "data")
    for part in ("train", "dev", "test"):
        wav = folder / "data" / part / "wav.scp"
        lines = [line.split(" ", 1) for line in wav.read_text().splitlines()]
        wav.write_text("".join(f"{utt} cat {path} |\n" for utt, path in lines))
    refused = subprocess.run(
        command("mini/ssl", folder, *MINI, "--stage", "3"), env=env(), capture_output=True, text=True
    )
    assert refused.returncode != 0 and "allow_pipes" in refused.stderr
    run("mini/ssl", folder, *MINI, "--stage", "3", "--allow-pipes", "true", "--exp", str(folder / "exp2"))
    results = json.loads((folder / "exp2/results.json").read_text())
    assert results == json.loads((mini[0] / "exp/results.json").read_text())
    assert not list(tmp_path.rglob("hacked")) and not (ROOT / "hacked").exists()


def test_a_second_run_of_one_experiment_is_refused(tmp_path):
    """A second run.sh with the same --exp is refused while the first one works."""
    (tmp_path / "exp/log").mkdir(parents=True)
    holder = subprocess.Popen(["flock", str(tmp_path / "exp/log/.lock"), "sleep", "60"])
    try:
        while subprocess.run(["flock", "-n", str(tmp_path / "exp/log/.lock"), "true"]).returncode == 0:
            time.sleep(0.01)
        done = subprocess.run(command("mini/ssl", tmp_path), env=env(), capture_output=True, text=True)
        assert done.returncode == 1 and "another run.sh works in" in done.stderr
    finally:
        holder.kill()
        holder.wait()


def test_the_end_of_run_sh_is_the_end_of_its_children(tmp_path):
    """SIGTERM to run.sh alone ends the Python process that it started; the run can be resumed."""
    note = tmp_path / "python"
    note.write_text(f"#!/bin/bash\necho $$ > {tmp_path}/pid\nexec sleep 60\n")
    note.chmod(0o755)
    victim = subprocess.Popen(command("mini/ssl", tmp_path), env=env(SPKV_PYTHON=str(note)),
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
        time.sleep(0.02)
    victim.terminate()
    assert victim.wait(timeout=10) == 143
    pid = (tmp_path / "pid").read_text().strip()
    assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]


def trunk_run(folder, data, *options, stop=8) -> subprocess.CompletedProcess:
    given = [
        "--conf",
        ROOT / "tests/conf/wavlm",
        "--exp",
        folder / "exp",
        "--data",
        data,
        "--nj",
        1,
        "--num-rounds",
        1,
    ]
    given += ["--num-clusters", 10, "--stage", 3, "--stop-stage", stop, *options]
    recipe = ROOT / "egs/mini/trunk_ssl/run.sh"
    return subprocess.run([recipe, *map(str, given)], env=env(), capture_output=True, text=True)


def test_the_trunk_for_another_trunk_has_what_wavlm_has():
    """Pull, rates, dropout and layer drop of the paper are not lost with `name: trunk`."""
    conf = ROOT / "egs/voxceleb/trunk_ssl/conf"
    wavlm, trunk = (
        cfg.load(TrainConfig, [conf / "encoder.yaml", conf / "round.yaml", *more]).encoder
        for more in ([], [conf / "trunk.yaml"])
    )
    same = (
        "l2_sp_weight",
        "pull_form",
        "trunk_lr_scale",
        "layerwise_lr_growth",
        "freeze",
        "mhfa_heads",
        "mhfa_dim",
    )
    for key in (
        *same,
        "dropout",
        "attention_dropout",
        "layerdrop",
        "embed_dim",
        "pooling",
        "embedding_batchnorm",
    ):
        assert getattr(trunk, key) == getattr(wavlm, key), key


def trained(dry_run: str, monkeypatch) -> dict:
    """Config that each training of a dry run would have, by its model folder; that of the check by ''."""
    from pyspkv.bin import train

    found, warnings = {}, []
    for words in python_commands(dry_run):
        if words[:2] == ["-m", "pyspkv.bin.train"]:
            monkeypatch.setattr(sys, "argv", words[1:])
            args = train.parse()
            phase = Path(args.exp).parent.name if args.exp else ""
            found[phase] = load_config(args.config, args.set, args.set_known, warnings.append)
    assert not warnings
    return found


@pytest.mark.parametrize(
    ("corpus", "student", "start", "frozen"),
    [
        ("mini", None, False, None),
        ("librispeech", "{name: wavlm, embed_dim: 192}", True, None),
        ("voxceleb", None, True, None),
        ("voxceleb", "{name: ecapa, channels: 64}", False, None),
        ("voxceleb", "{name: trunk, l2_sp_weight: 0.01, frozen_epochs: 3}", True, 3),
        ("speechocean762", "{\n  embed_dim: 192,\n  name:   ecapa}  # not name: trunk", False, None),
        ("mini", "\n  embed_dim: 128\n  name: 'trunk'\n", True, 0),
    ],
)
def test_a_student_starts_from_the_trunk_where_the_merged_config_has_one(
    tmp_path, monkeypatch, corpus, student, start, frozen
):
    """Not where only conf/encoder.yaml has one. Stage 5, whose head is not new, freezes the trunk in no epoch."""
    words = ["--trunk", "/a trunk", "--stage", 3, "--num-rounds", 1, "--finetune", "true", "--stop-stage", 5]
    if student:
        (tmp_path / "s.yaml").write_text(f"encoder: {student}\n")
        words += ["--student", tmp_path / "s.yaml"]
    recipe = ROOT / f"egs/{corpus}/trunk_ssl/run.sh"
    shown = call(recipe, "--dry-run", "true", "--exp", tmp_path / "an exp", *words, SPKV_CORPORA="/c").stdout
    assert shown.index("--check") < shown.index("pretrain/model")
    monkeypatch.chdir(ROOT)
    configs = trained(shown, monkeypatch)
    assert list(configs) == ["", "pretrain", "round1", "finetune"]
    assert not getattr(configs["pretrain"].encoder, "pretrained", "")
    for phase in ("", "round1", "finetune"):
        encoder = configs[phase].encoder
        assert getattr(encoder, "pretrained", "") == (f"{tmp_path}/an exp/trunk_mhfa/model" if start else "")
        want = 0 if frozen and phase == "finetune" else frozen
        assert getattr(encoder, "frozen_epochs", None) == want


def test_trunk_recipe_trains_a_small_wavlm_on_dinos_labels(mini, tmp_path):
    folder, _ = mini
    done = trunk_run(
        tmp_path, folder / "data", "--student", ROOT / "egs/mini/trunk_ssl/conf/small_wavlm.yaml", stop=4
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (
        cfg.read_section(tmp_path / "exp/pretrain/model/config.yaml", "encoder", EncoderConfig).name
        == "ecapa"
    )
    assert (
        cfg.read_section(tmp_path / "exp/round1/model/config.yaml", "encoder", EncoderConfig).name == "wavlm"
    )
    assert len(set(DataDir.read(tmp_path / "exp/round1/data").spk)) == 10


def small_trunk(kind: str, folder: Path) -> str:
    """A random model in Hugging Face's layout, and the student that starts from it."""
    import torch

    from pyspkv.base.guarded import transformers

    torch.manual_seed(0)
    if kind == "trunk":
        sizes = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 48}
        ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
        rest = {"num_mel_bins": 20, "decoder_layers": 1, "decoder_attention_heads": 4, "vocab_size": 60}
        hf = transformers()
        hf.WhisperModel(hf.WhisperConfig(**sizes, **rest, **ends)).save_pretrained(folder)
        return (
            "encoder: {name: trunk, l2_sp_weight: 0.01, embed_dim: 16, frozen_epochs: 1, layerdrop: 0.05}\n"
        )
    from pyspkv.models.wavlm import WavLM, WavLMConfig

    small = {
        "layers": 2,
        "dim": 32,
        "heads": 4,
        "ffn": 48,
        "conv_dim": 16,
        "pos_conv_kernel": 8,
        "pos_conv_groups": 4,
    }
    WavLM(WavLMConfig(**small)).trunk.save_pretrained(folder)
    fields = ", ".join(f"{k}: {v}" for k, v in small.items())
    return f"encoder: {{name: wavlm, {fields}, l2_sp_weight: 0.01}}\n"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["wavlm", "trunk"])
def test_trunk_recipe_to_its_end_with_an_imported_trunk(mini, tmp_path, kind):
    """Labels from the trunk's pooled embeddings, a student that starts from the trunk, crops in scoring."""
    folder, _ = mini
    student = tmp_path / "student.yaml"
    student.write_text(small_trunk(kind, tmp_path / "hf"))
    options = ["--labels-from", "trunk", "--trunk", tmp_path / "hf", "--student", student]
    done = trunk_run(tmp_path, folder / "data", *options, "--label-noise", "0.25")
    assert done.returncode == 0, done.stderr[-2000:]
    systems = {p.parent.parent.name for p in tmp_path.glob("exp/*/score/test-crops.json")}
    assert systems == {"pretrain", "trunk", "round1", "finetune"}
    assert len((tmp_path / "exp/round1/corrupted").read_text().split()) == 12  # a quarter of 48
    for phase, frozen in (("round1", 1), ("finetune", 0)):
        exp = tmp_path / "exp" / phase / "model"
        encoder = cfg.read_section(exp / "config.yaml", "encoder", EncoderConfig)
        assert encoder.name == kind and encoder.pretrained.endswith("trunk_mhfa/model")
        assert getattr(encoder, "frozen_epochs", frozen) == frozen
        records = [json.loads(line) for line in (exp / "train.jsonl").read_text().splitlines()]
        epochs = [r for r in records if r["kind"] == "epoch"]
        moved = [r["drift/layer1"] > 0 for r in epochs]
        assert moved == ([False, True] if kind == "trunk" and frozen else [True] * len(epochs))
        assert all("pull" in r for r in epochs)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "method, stage",
    [("trunk_ssl", stage) for stage in ("pretrain", "round", "finetune")]
    + [("ssl", stage) for stage in ("pretrain", "early_round", "round", "finetune")]
    + [("supervised", stage) for stage in ("train", "finetune")],
)
def test_full_size_configs_take_a_step_on_random_audio(tmp_path, method, stage):
    """Recipes of egs/voxceleb at their true model size; only the batch and the noise lists are small."""
    import numpy as np
    import soundfile
    import torch

    from pyspkv.base import checkpoint
    from pyspkv.train.trainer import Trainer

    rng = np.random.default_rng(0)
    wav = {}
    for i in range(4):
        wav[f"u{i}"] = str(tmp_path / f"u{i}.wav")
        soundfile.write(wav[f"u{i}"], 0.1 * rng.standard_normal(6 * 16000), 16000)
    data = DataDir(tmp_path / "data", list(wav), [f"s{i}" for i in range(4)], wav)
    conf = ROOT / "egs/voxceleb" / method / "conf"
    small = ["batch_size=4", "epochs=1", "num_workers=0", "augment.rir_bank=2", "log_every_steps=1"]
    starts_from_trunk = method == "trunk_ssl" and stage != "pretrain"
    if starts_from_trunk:
        torch.manual_seed(0)
        encoder = cfg.build(cfg.validate(EncoderConfig, {"name": "wavlm"}))
        checkpoint.save_import(tmp_path / "trunk", encoder, encoder.config, {})
        small.append(f"encoder.pretrained={tmp_path / 'trunk'}")
    config = cfg.load(TrainConfig, [conf / "encoder.yaml", conf / f"{stage}.yaml"], small)
    Trainer(config, data, tmp_path / "exp").run()
    records = [json.loads(line) for line in (tmp_path / "exp/train.jsonl").read_text().splitlines()]
    last = records[-1]
    assert last["kind"] == "epoch" and np.isfinite(last["loss"])
    assert ("pull" in last) is starts_from_trunk


def test_ssrl_recipe_changes_labels_and_an_ssl_recipe_reuses_its_pretraining(mini, tmp_path):
    """The comparison, plain rounds from the same pre-trained model, is an ssl experiment that reuses that
    model.
    """
    folder, _ = mini
    conf = tmp_path / "conf"
    conf.mkdir()
    for name in ("encoder", "pretrain", "round"):
        shutil.copy(ROOT / f"tests/conf/{name}.yaml", conf)
    shutil.copy(ROOT / "tests/conf/round.yaml", conf / "offline.yaml")
    moving = "{name: ssrl, student_seconds: 1.0, teacher_seconds: 1.5, fixed_epochs: 1, queue_length: 3}"
    text = (conf / "round.yaml").read_text()
    (conf / "round.yaml").write_text(re.sub("objective:.*", f"objective: {moving}", text))
    given = ["--conf", conf, "--data", folder / "data", "--nj", 1, "--num-clusters", 10, "--stop-stage", 4]
    call(ROOT / "egs/mini/ssrl/run.sh", *given, "--exp", tmp_path / "exp", "--stage", 3)
    start, found = (DataDir.read(tmp_path / "exp/round1" / name) for name in ("data", "data_out"))
    assert found.utts == start.utts and set(found.spk) <= set(start.spk)
    more = ["--reuse", tmp_path / "exp", "--stage", 4, "--num-rounds", 1, "--cluster-opts", "--method kmeans"]
    more += ["--round-config", conf / "offline.yaml"]
    call(ROOT / "egs/mini/ssl/run.sh", *given, *more, "--exp", tmp_path / "other")
    same = (tmp_path / "other/pretrain/model/LATEST").resolve()
    assert same == (tmp_path / "exp/pretrain/model/LATEST").resolve()
    labels = [(tmp_path / e / "round1/data/utt2spk").read_text() for e in ("exp", "other")]
    assert labels[0] == labels[1]
    assert (
        cfg.read_section(tmp_path / "other/round1/model/config.yaml", "objective", ObjectiveConfig).name
        == "aam"
    )


def dialogue_run(folder, *options, code=0) -> subprocess.CompletedProcess:
    """egs/mini/dialogue on the corpus in folder/data, with four labeled speakers."""
    corpus = "--num-rooms 3 --num-noises 4 " + SMALL[1]
    given = [
        "--conf",
        ROOT / "tests/conf/dialogue",
        "--exp",
        folder / "exp",
        "--data",
        folder / "data",
        "--nj",
        1,
    ]
    given += ["--mini-opts", corpus, "--num-train-spk", 8, "--num-dev-spk", 4, "--num-test-spk", 4]
    given += ["--num-labeled-spk", 4, *options]
    recipe = ROOT / "egs/mini/dialogue/run.sh"
    done = subprocess.run([recipe, *map(str, given)], env=env(), capture_output=True, text=True)
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-2000:]
    return done


HOUSEHOLDS = ["--mode", "household", "--mixed-percent", 50]


def test_dialogue_recipe_makes_dialogues_without_their_truth(tmp_path):
    done = dialogue_run(tmp_path, *HOUSEHOLDS, "--stop-stage", 2)
    assert "on 4 devices (the largest possible batch)" in done.stdout
    again = dialogue_run(tmp_path, *HOUSEHOLDS, "--stop-stage", 1)
    assert f"up to date: {tmp_path}/data/household-50" in again.stdout
    other = ["--dialogue-opts", "--share 0.4:0.5", "--stop-stage", 1]
    assert "was made with another share" in dialogue_run(tmp_path, *HOUSEHOLDS, *other, code=1).stderr
    data = DataDir.read(tmp_path / "data/household-50/train")
    assert data.spk == data.utts and data.dialogue2mixed is None and len(data.dialogue2device) == 16
    assert len(set(DataDir.read(tmp_path / "data/labeled-4").spk)) == 4
    words = dialogue_run(tmp_path, "--mode", "family", code=1).stderr
    assert "--mode is random or household" in words


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_dialogue_recipe_to_its_results_and_again(tmp_path):
    done = dialogue_run(tmp_path, *HOUSEHOLDS)
    assert "AUC of the mean cosine" in done.stdout
    exp = tmp_path / "exp"
    ranked = [line.split()[0] for line in (exp / "pretrain/dialogues").read_text().splitlines()]
    assert set(ranked) == set(DataDir.read(tmp_path / "data/household-50/train").dialogue2device)
    results = json.loads((exp / "results.json").read_text())
    assert all(0 <= results[k]["eer"] <= 100 for k in ("pretrain", "final"))
    scores = {p: p.read_text() for p in exp.glob("*/score/test.scores")}
    assert len(scores) == 2
    before = {p: p.stat().st_mtime_ns for p in exp.glob("*/model/LATEST")}
    shutil.rmtree(exp / "finetune/embed")
    dialogue_run(tmp_path, *HOUSEHOLDS)  # resumed from the existing files, to the same digits
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert {p: p.read_text() for p in scores} == scores
    conf = ROOT / "tests/conf/dialogue"
    words = [
        "--conf",
        conf,
        "--train",
        conf / "scratch.yaml",
        "--data",
        tmp_path / "data",
        "--nj",
        1,
        "--stage",
        4,
    ]
    words += ["--train-set", "labeled-4", "--use-dev", "true", "--finetune", "false"]
    call(ROOT / "egs/mini/supervised/run.sh", *words, "--exp", tmp_path / "scratch", "--compare-with", exp)
    assert json.loads((tmp_path / "scratch/results.json").read_text())["supervised"]["eer"] >= 0


def gll_command(exp, data, *options) -> list[str]:
    given = [
        "--conf",
        ROOT / "tests/conf/gll",
        "--exp",
        exp,
        "--data",
        data,
        "--labels-per-spk",
        1,
        "--nj",
        1,
        *options,
    ]
    return [str(ROOT / "egs/mini/gll/run.sh"), *map(str, given)]


def gll_run(*args, code=0) -> subprocess.CompletedProcess:
    return call(*gll_command(*args), code=code)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_gll_recipe_to_its_end_and_a_variant_and_a_baseline(mini, tmp_path):
    """Stage I, two iterations of C, T, V, L; corrupted labels; the fixed threshold from FixMatch's confidence."""
    data, exp = mini[0] / "data", tmp_path / "gll"
    rates = ["--num-rounds", 2, "--phase-rates", "0.001 0.0002"]
    gll_run(exp, data, "--stage", 3, *rates)
    files = [*(exp / f"round1/{s}/model/config.yaml" for s in "TVL")]
    found_rates = [cfg.load(TrainConfig, file).optim.lr for file in files]
    assert found_rates == [0.001, 0.0002, 3e-3]
    results = json.loads((exp / "results.json").read_text())
    assert [r["round"] for r in results["rounds"]] == [1, 2]
    labeled, unlabeled = (DataDir.read(exp / "split" / n) for n in ("labeled", "unlabeled"))
    for r in (1, 2):
        found = DataDir.read(exp / f"round{r}/data")
        assert found.utts == unlabeled.utts and set(found.spk) <= set(labeled.spk)
        assert (exp / f"round{r}/model").resolve().parent.name in "TVL"
    out = DataDir.read(exp / "round2/data_out")
    assert out.utts == sorted(labeled.utts + unlabeled.utts)
    assert dict(zip(labeled.utts, labeled.spk)).items() <= dict(zip(out.utts, out.spk)).items()
    epochs = json.loads((exp / "plots/gates.json").read_text())
    assert list(dict.fromkeys(e["run"] for e in epochs)) == [f"round{r}/{s}" for r in (1, 2) for s in "TVL"]
    assert all(e["quantity"] == 1 for e in epochs if e["run"].endswith("T"))
    before = {p: p.stat().st_mtime_ns for p in exp.glob("round*/*/model/LATEST")}
    gll_run(exp, data, "--stage", 3, "--stop-stage", 4, *rates)
    assert {p: p.stat().st_mtime_ns for p in before} == before, "a rerun does nothing"
    told = gll_run(exp, data, "--stage", 4, *rates, "--learn-opts", "optim.weight_decay=0.1", code=1).stderr
    assert "started with another config" in told
    go_on = ["--stage", 4, "--reuse", exp]
    gll_run(tmp_path / "fixmatch", data, *go_on, "--baseline", "fixmatch")
    threshold = ["--threshold-from", tmp_path / "fixmatch/baseline/model"]
    gll_run(
        tmp_path / "fixed", data, *go_on, "--phases", "T F", "--num-rounds", 1, "--stop-stage", 4, *threshold
    )
    config = cfg.load(TrainConfig, tmp_path / "fixed/round1/F/model/config.yaml")
    assert 0.9 / 8 < config.objective.gate.threshold < 0.9
    gll_run(tmp_path / "few", data, *go_on, "--baseline", "supervised", "--use-labels", "only")
    config = cfg.load(TrainConfig, tmp_path / "few/baseline/model/config.yaml")  # 8 labeled, 40 unlabeled
    assert (config.batch_size, config.sampler.steps) == (
        8,
        4,
    )  # batches of 16 with 6 labeled have 10 of the 40
    gll_run(tmp_path / "noisy", data, *go_on, "--num-rounds", 1, "--label-noise", 0.3)
    noisy = json.loads((tmp_path / "noisy/plots/gates.json").read_text())
    assert noisy[0]["corrupted_passed"] == noisy[0]["others_passed"] == 1, "T rejects nothing"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_gll_killed_again_and_again_ends_the_same(mini, tmp_path):
    folder, _ = mini
    options = ["--stage", 3, "--stop-stage", 4, "--num-rounds", 2, "--phase-epochs", "1 1 1"]
    start = time.perf_counter()
    gll_run(tmp_path / "whole", folder / "data", *options)
    whole = time.perf_counter() - start
    rng = random.Random(2)
    for _ in range(6):
        command = gll_command(tmp_path / "killed", folder / "data", *options)
        process = subprocess.Popen(command, env=env(), start_new_session=True, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)  # fmt: skip
        time.sleep(whole * rng.uniform(0.1, 0.3))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    gll_run(tmp_path / "killed", folder / "data", *options)

    def found(exp):
        files = [p for pattern in ("data*/utt2spk", "*/model/best", "report*.json") for p in
                 exp.glob(f"round*/{pattern}")]  # fmt: skip
        weights = {p.parent / "model.safetensors" for p in exp.glob("round*/[TVL]/model/ckpt-*/state.json")}
        kept = {str(p.relative_to(exp)): p.read_bytes() for p in [*files, *weights]}
        return {k: re.sub(rb'"seconds": [0-9.]+', b"", v) for k, v in kept.items()}

    assert found(tmp_path / "killed") == found(tmp_path / "whole")


@each_recipe("recipe")
def test_help_lists_the_common_options_once(recipe):
    text = call(recipe / "run.sh", "--help").stdout
    listed = re.findall(r"^  --(\S+)", text, re.M)
    assert len(set(listed)) == len(listed)
    assert {"stage", "stop-stage", "nj", "ngpu", "seed", "exp", "reuse", "dry-run"} <= set(listed)
    assert "recipe" not in listed and "po-files" not in listed
