"""docs/: the site builds without warnings, links work, and sample files have the documented form."""

import ast
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pyspkv.data.datadir import DataDir
from pyspkv.data.tables import read_table
from pyspkv.data.trials import read_trials
from pyspkv.experiments import results

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    p
    for pattern in ("*.md", "docs/**/*.md", "egs/README.md", "egs/*/*/README.md")
    for p in ROOT.glob(pattern)
)
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """The anchors that mkdocs makes of a page's headings."""
    heads = re.findall(r"^#+ +(.+?) *$", page.read_text(), re.M)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", h).strip().lower()) for h in heads}


def broken(page: Path) -> list[str]:
    """Links of a page to files or headings that do not exist."""
    out = []
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text())
    for link in LINK.findall(text):
        if re.match(r"https?:|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            out.append(link)
    return out


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert not broken(page)


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "a.md").write_text("# A b\n[x](b.md) [y](#a-b) [z](#c) [w](https://d.org)\n")
    assert broken(tmp_path / "a.md") == ["b.md", "#c"]


def build(root: Path, out: Path) -> subprocess.CompletedProcess:
    if any(importlib.util.find_spec(name) is None for name in ("mkdocs", "material", "pymdownx")):
        pytest.skip("mkdocs is not installed: python -m pip install -r requirements-docs.txt")
    env = {**os.environ, "SPKV_PYTHON": sys.executable}
    command = [root / "utils/build_docs.sh", "--out", out]
    return subprocess.run(command, env=env, capture_output=True, text=True)


def test_the_site_builds_strictly_and_a_wrong_link_or_anchor_ends_it(tmp_path):
    for name in ("docs", "utils"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("mkdocs.yml", "path.sh"):
        shutil.copy(ROOT / name, tmp_path)
    for name in re.findall(r"\]\((?:\.\./)+([^)#]+)", "".join(p.read_text() for p in PAGES)):
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
        elif (ROOT / name).is_dir():
            (tmp_path / name).mkdir(parents=True, exist_ok=True)
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    assert "arithmatex" in (tmp_path / "site/systems/gll.html").read_text()
    page = tmp_path / "docs/glossary.md"
    text = page.read_text()
    for wrong in ("[x](nowhere.md)", "[x](resume.md#nowhere)", "[x](../egs/nowhere/README.md)"):
        page.write_text(f"{text}\n{wrong}\n")
        done = build(tmp_path, tmp_path / "site")
        assert done.returncode != 0 and "nowhere" in done.stderr, wrong


# ---- docs/formats.md ---------------------------------------------------------------------------------------------
FORMATS = (ROOT / "docs/formats.md").read_text()


def sample(name: str, language: str = "text") -> str:
    """The first code block after a heading, or after a line that begins with the file's name."""
    found = re.search(rf"(?ms)^(?:### |`){re.escape(name)}\b.*?^```{language}\n(.*?)^```$", FORMATS)
    return found[1]


def test_the_samples_are_a_data_directory(tmp_path):
    names = ("wav.scp", "segments", "utt2spk", "spk2utt", "utt2dialogue", "dialogue2device")
    for name in (*names, "trials", "enrol_map"):
        (tmp_path / name).write_text(sample(name))
    data = DataDir.read(tmp_path)
    assert data.spk == ["anna", "anna", "ben", "call3-a"] and data.segments["call1-b"] == ("call1", 4.1, -1)
    enrol, _, target = read_trials(tmp_path / "trials")
    assert enrol == ["anna", "anna", "call3-a"] and target.tolist() == [True, False, False]
    lines = re.findall(r"^\| `((?:utt|reco|spk)2\w+)`.*?\| `([^`]+)`", FORMATS, re.M)
    assert len(lines) > 3
    for name, line in lines:
        (tmp_path / name).write_text(line + "\n")
        read_table(tmp_path / name, "rest")


def test_rttm_becomes_a_data_directory(tmp_path):
    rttm = "SPEAKER m 1 12.34 2.50 <NA> <NA> anna <NA> <NA>\nSPEAKER m 1 15.00 1.00 <NA> <NA> ben <NA> <NA>\n"
    (tmp_path / "meeting.rttm").write_text(rttm)
    (tmp_path / "recordings").mkdir()
    soundfile.write(
        tmp_path / "recordings/m.wav", np.random.default_rng(0).uniform(-0.1, 0.1, 16 * 16000), 16000
    )
    words = shlex.split(re.search(r"`pyspkv (datadir from-rttm [^`]*)`", FORMATS)[1])
    call = [sys.executable, "-m", "pyspkv.bin.main", *words]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(call, check=True, cwd=tmp_path, capture_output=True, env=env)
    data = DataDir.read(tmp_path / "data/all")
    assert data.spk == ["m-anna", "m-ben"]
    assert list(data.segments.values()) == [("m", 12.34, 14.84), ("m", 15.0, 16.0)]


def test_the_samples_of_results(tmp_path):
    (tmp_path / "RESULTS.jsonl").write_text(sample("RESULTS.jsonl", "json"))
    rows = results.read_rows(tmp_path / "RESULTS.jsonl")
    recorded = results.read_rows(ROOT / "egs/mini/ssl/RESULTS.jsonl")
    assert len(rows) == 3 and all(any(row.items() <= r.items() for r in recorded) for row in rows)
    experiment = json.loads(sample("results.json", "json"))
    assert {"pretrain", "rounds", "final", "supervised", "others", "trials"} == experiment.keys()
    row = next(r for r in recorded if r["row"] == "pretrain" and r["seed"] == 0)
    assert experiment["pretrain"].items() <= row.items()


# ---- docs/architecture.md ----------------------------------------------------------------------------------------
FILES = sorted(ROOT.glob("pyspkv/*/**/[a-z]*.py"))


def imported(file: Path, types: bool = True) -> set[str]:
    """All that a file imports from pyspkv, at its top or within functions: modules, and names in them.

    types: include imports for type checkers only.
    """
    found, todo = set(), [ast.parse(file.read_text())]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not types:
            continue
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{name.name}" for name in node.names}
        todo += ast.iter_child_nodes(node)
    return {name for name in found if name.startswith("pyspkv.")}


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT / "pyspkv").with_suffix("").parts)


def upward(floor: dict[str, int], arrows: dict[str, set[str]]) -> list[str]:
    """Arrows between packages that do not go downwards. arrows: "package.module" -> what it imports."""
    out = []
    for module, names in arrows.items():
        own = module.split(".")[0]
        others = {name.split(".")[1] for name in names} & floor.keys() - {own}
        out += [f"{module} imports {other}" for other in sorted(others) if floor[other] >= floor[own]]
    return out


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle; [] if there is none."""
    graph = {}
    for module, names in arrows.items():
        whole = {name.removeprefix("pyspkv.") for name in names}
        ends = whole | {name.rpartition(".")[0] for name in whole}
        graph[module] = {end for end in ends if end in arrows and end != module}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as err:
        return err.args[1]
    return []


ARROWS = {module_of(file): imported(file) for file in FILES}


def test_imports_go_down_the_layers_of_the_architecture_page():
    page = (ROOT / "docs/architecture.md").read_text()
    floor = {
        name: int(number)
        for number, names in re.findall(r"^\| (\d) \| (.*?) \|", page, re.M)
        for name in re.findall(r"`(\w+)`", names)
    }
    assert floor.keys() == {module.split(".")[0] for module in ARROWS}
    assert not upward(floor, ARROWS)
    runs = {module_of(file): imported(file, types=False) for file in FILES}
    assert not circle(runs)
    lazy = {**ARROWS, "base.errors": {"pyspkv.data.tables.read_table"}}
    assert upward(floor, lazy) == ["base.errors imports data"]
    assert set(circle(runs | {"base.errors": lazy["base.errors"]})) == {"base.errors", "data.tables"}


def test_commands_are_thin():
    """bin only parses, calls and prints: no file has more than 150 lines, and none imports another."""
    for file in (ROOT / "pyspkv/bin").glob("*.py"):
        assert file.read_text().count("\n") <= 150, file.name
        assert not {name for name in imported(file) if name.startswith("pyspkv.bin")}, file.name
