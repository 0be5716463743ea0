"""docs/recipes.md: its worked examples are run as printed, at toy size."""

import collections
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import toy

from pyspkv.base import config as cfg
from pyspkv.data.datadir import DataDir
from pyspkv.experiments import results
from pyspkv.train.config import TrainConfig

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/recipes.md").read_text()
TOY = "--num-clusters 12 --nj 1 --finetune false"  # arguments that are added to the page's commands


def blocks(heading: str, language: str) -> list[str]:
    """The code blocks of a language under the heading that begins with this text."""
    section = re.search(rf"(?ms)^## {heading}.*?(?=^## |\Z)", PAGE)[0]
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```$", section)


def edited(text: str, diff: str) -> str:
    """A file after the edit that a diff block shows; the old lines must occur exactly once."""
    lines = [(line[:1], line[1:]) for line in diff.splitlines(keepends=True)]
    old = "".join(rest for sign, rest in lines if sign in " -")
    assert text.count(old) == 1, "the page shows lines that the template does not have"
    return text.replace(old, "".join(rest for sign, rest in lines if sign in " +"))


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    """Run a block of the page with bash, where ~ is a folder of the test."""
    home = tmp_path_factory.mktemp("home")
    env = {**os.environ, "HOME": str(home), "OMP_NUM_THREADS": "1", "SPKV_PYTHON": sys.executable}

    def sh(block: str, extra: str = "") -> str:
        block = re.sub(r"(/mine/ssl/run\.sh) ", rf"\1 {TOY} {extra} ", block)
        script = f"set -euo pipefail\nexport SPKV_ROOT={ROOT}\n{block}"
        done = subprocess.run(["bash", "-c", script], env=env, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    sh.home = home
    return sh


@pytest.fixture(scope="module")
def own(shell):
    """Example 1 from its first to its last command: tones of fourteen 'speakers' in folders of WAV."""
    data = toy.make(shell.home, speakers=14, utts=6, seconds=1.2)
    for utt, file in data.wav.items():
        folder = shell.home / "audio" / utt.split("-")[0]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.move(file, folder / f"{utt.split('-')[1]}.wav")
    make, run = blocks("Example 1", "sh")
    shell(make)
    recipe = shell.home / "recipes/mine/ssl"
    for file in (ROOT / "tests/conf").glob("*.yaml"):
        text = file.read_text().replace("batch_size: 16", "batch_size: 8").replace("epochs: 2", "epochs: 1")
        (recipe / "conf" / file.name).write_text(text)
    (script,) = blocks("Example 1", "bash")
    (recipe / "local/data.sh").write_text(script)
    shown = shell(run.splitlines()[0])
    assert not (recipe / "data").exists() and not (recipe / "exp").exists()
    done = shell(run.splitlines()[1])
    return recipe, shown, done


def test_a_corpus_of_ones_own_outside_the_tree(own):
    recipe, shown, done = own
    sets = {name: DataDir.read(recipe / "data" / name) for name in ("train", "dev", "test")}
    speakers = {name: len({u.split("-")[0] for u in d.utts}) for name, d in sets.items()}
    assert speakers == {"train": 6, "dev": 4, "test": 4}
    assert sets["train"].spk == sets["train"].utts and set(sets["dev"].spk) == {"s00", "s01", "s02", "s03"}
    trials = [line.split() for line in (recipe / "data/test/trials").read_text().splitlines()]
    spk = dict(zip(sets["test"].utts, sets["test"].spk))
    assert len(trials) == 24 * 23 / 2 == len({frozenset(t[:2]) for t in trials})
    assert all((spk[a] == spk[b]) == (kind == "target") for a, b, kind in trials)
    assert (recipe / "exp/report.md").is_file() and "results.json" in done.splitlines()[-1]
    commands = [line for line in shown.splitlines() if not line.startswith("==")]
    assert (recipe / "exp/log/commands").read_text().splitlines() == commands


def test_two_lines_in_a_stage(own, shell, tmp_path):
    """Training uses the larger clusters, as with bin.cluster --min-size. A dry run shows the new command."""
    recipe = own[0]
    run_sh = recipe / "run.sh"
    before = run_sh.read_text()
    (diff,) = blocks("Example 2", "diff")
    (command,) = blocks("Example 2", "sh")
    try:
        run_sh.write_text(edited(before, diff))
        shown = shell(command, "--dry-run true")
        shell(command, "--stop-stage 4 --num-rounds 1")
    finally:
        run_sh.write_text(before)
    exp = recipe / "exp_large"
    for r in (1, 2):
        line = f"--spk-list {exp}/round{r}/large {exp}/round{r}/clusters {exp}/round{r}/data"
        assert f"python -m pyspkv.bin.datadir subset {line}" in shown.splitlines()
    clusters, data = (DataDir.read(exp / "round1" / name) for name in ("clusters", "data"))
    size = collections.Counter(clusters.spk)
    assert min(size.values()) < 4 <= max(size.values()), "nothing would be dropped or kept"
    assert dict(zip(data.utts, data.spk)) == {
        u: s for u, s in zip(clusters.utts, clusters.spk) if size[s] >= 4
    }
    assert set((exp / "round1/model/classes.txt").read_text().split()) == set(data.spk)
    call = ["--embeddings", exp / "pretrain/embed/train/embedding.scp", "--data", recipe / "data/train"]
    call += [
        "--out-data",
        tmp_path / "min_size",
        "--num-clusters",
        "12",
        "--whiten",
        "0.5",
        "--min-size",
        "4",
    ]
    subprocess.run([sys.executable, "-m", "pyspkv.bin.cluster", *map(str, call)], check=True, cwd=ROOT)
    by_option = DataDir.read(tmp_path / "min_size")
    assert (by_option.utts, by_option.spk) == (data.utts, data.spk)


def test_another_learning_rate_for_one_round(own, shell):
    recipe = own[0]
    files = {p: p.read_bytes() for p in recipe.glob("*") if p.is_file()}
    files |= {p: p.read_bytes() for p in recipe.glob("conf/*")}
    (command,) = blocks("Example 3", "sh")
    shell(command)
    old, new = recipe / "exp", recipe / "exp_lr"
    configs = [cfg.load(TrainConfig, e / f"round{r}/model/config.yaml") for e in (old, new) for r in (1, 2)]
    rates = [config.optim.lr for config in configs]
    assert rates == [3e-3, 3e-3, 3e-3, 1e-3]
    assert (new / "round1/model").is_symlink() and not (new / "round2/model").is_symlink()
    assert "## Experiments side by side" in (new / "report.md").read_text()
    assert {p: p.read_bytes() for p in files} == files


def test_sync_leaves_an_owners_recipe_alone(tmp_path):
    """A recipe without the template's marker line belongs to its owner and stays; the others are updated."""
    for name in ("utils", "egs/TEMPLATE"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "path.sh", tmp_path)
    own = {}
    for recipe in ("mine/ssl", "mine/newmethod", "synced/ssl"):
        shutil.copytree(ROOT / "egs/mini/ssl", tmp_path / "egs" / recipe, ignore=lambda *_: {"exp", "data"})
        script = tmp_path / "egs" / recipe / "run.sh"
        text = script.read_text().replace('if stage 8 "report"', 'echo mine\nif stage 8 "report"')
        if recipe != "synced/ssl":
            text = re.sub("(?m)^# -- the same in every.*\n", "", text)
            (script.parent / "cmd.sh").write_text("train_cmd=mine cuda_cmd=mine\n")
            own |= {p: p.read_bytes() for p in script.parent.glob("*.sh")}
            own[script] = text.encode()
        script.write_text(text)
    done = subprocess.run([tmp_path / "utils/sync_recipes.sh"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["egs/synced/ssl/run.sh differs from its template"]
    assert {p: p.read_bytes() for p in own} == own
    assert "echo mine" not in (tmp_path / "egs/synced/ssl/run.sh").read_text()


def test_a_recipes_path_sh_may_be_sourced_in_a_shell(tmp_path):
    """run.sh of another recipe still uses its own folder afterwards.

    Outside any repository, the shell does not exit.
    """
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SPKV_")}
    script = "cd egs/mini/ssl && . ./path.sh && ../../librispeech/ssl/run.sh --dry-run true --stop-stage 2"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, env=clean, capture_output=True, text=True)
    assert "egs/librispeech/ssl/data/train" in done.stdout and "egs/mini" not in done.stdout
    shutil.copy(ROOT / "egs/TEMPLATE/path.sh", tmp_path)
    script = ". ./path.sh || echo alive"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=clean, capture_output=True, text=True)
    assert done.stdout == "alive\n" and "set SPKV_ROOT to" in done.stderr


READMES = [ROOT / "README.md", *sorted(ROOT.glob("egs/*/*/README.md"))]


@pytest.mark.parametrize("page", READMES, ids=lambda p: str(p.parent.relative_to(ROOT)))
def test_commands_in_readmes_have_valid_options(page, tmp_path):
    """Every block with a run.sh is started with --dry-run; options must be accepted.

    `cd` in a block holds for the next ones.
    """
    text = page.read_text()
    fenced = re.findall(r"(?ms)^```sh\n(.*?)^```", text)
    found = fenced + re.findall(r"(?m)(?:^    .*\n)+", re.sub(r"(?ms)^```.*?^```", "", text))
    lines = "".join(block for block in found if "run.sh" in block).replace("SPKV_CORPORA=... ", "")
    lines = re.sub(r"(?m)^ *(python|tensorboard|utils/|git ).*\n", "", lines)
    lines = re.sub(r"run\.sh(?=[\s)])", "run.sh --dry-run true", lines)
    assert "run.sh --dry-run true" in lines
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "SPKV_CORPORA": "/corpora",
        "SPKV_ROOT": str(ROOT),
    }
    done = subprocess.run(["bash", "-euc", lines], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "== stage" in done.stdout, done.stderr


HEADINGS = ["Run", "What it makes", "Expected result", "Signs of trouble", "Lab notes"]
FIGURE = r"(?<![\d.])(?<!p = )[-+]?\d+\.\d+ (?:± \d+\.\d+|\([-+.\d]+ \.\. [-+.\d]+\))|(?<![\d.])(?<!p = )\d+\.\d\d+"


@pytest.mark.parametrize("page", READMES[1:], ids=lambda p: str(p.parent.relative_to(ROOT)))
def test_a_recipes_readme_is_short_and_its_figures_are_recorded(page):
    """All have the same headings.

    Every mean, interval and figure with two decimals is in a result row or in RESULTS.md.
    """
    text = page.read_text()
    assert re.findall(r"(?m)^## (.*)", text) == HEADINGS and len(text.split()) <= 600
    section = re.search(r"(?ms)^## Expected result$(.*?)^## ", text)[1]
    linked = [page.parent / name for name in re.findall(r"\]\(([^)\s]*RESULTS\.md)\)", section)]
    runs = [row for file in linked for row in results.read_rows(file.with_suffix(".jsonl"))]
    shown = "\n".join([*(file.read_text() for file in linked), *(f"{row['eer']:.2f}" for row in runs)])
    if runs:  # otherwise the recipe has not been run
        figures = re.findall(FIGURE, section.replace("*", ""))
        lost = [f for f in figures if not re.search(rf"(?<![\d.]){re.escape(f)}(?![\d])", shown)]
        assert figures and not lost


NOTES = sorted(ROOT.glob("docs/experiments/*.md"))


@pytest.mark.parametrize("page", READMES[1:] + NOTES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_of_recipes_and_lab_notes_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s#]+)", page.read_text())
    assert links and not [x for x in links if ":" not in x and not (page.parent / x).exists()]
    if page in NOTES and page.name != "index.md":
        assert f"({page.name})" in (page.parent / "index.md").read_text()
