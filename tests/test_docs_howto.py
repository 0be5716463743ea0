"""docs/howto/*.md and docs/python.md: their worked examples are run as printed, on toy data."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import toy

from pyspkv.bin.datadir import parser_for
from pyspkv.data.ark import EmbeddingWriter
from pyspkv.data.datadir import DataDir
from pyspkv.models.registry import EncoderConfig

ROOT = Path(__file__).resolve().parent.parent
TREE = ("pyspkv", "utils", "steps", "egs/TEMPLATE", "egs/mini/ssl/conf")


def files(page: str) -> dict[str, tuple[str, str]]:
    """Name -> (language, text) of the page's files: blocks after a line that is the name in backticks."""
    text = (ROOT / "docs" / page).read_text()
    found = re.findall(r"(?ms)^`([\w./-]+)`:\n\n```(\w+)\n(.*?)^```$", text)
    return {name: (language, body) for name, language, body in found}


def commands(page: str, language: str = "sh") -> list[str]:
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```$", (ROOT / "docs" / page).read_text())


def edited(text: str, diff: str) -> str:
    """A file after the edit that a diff block shows; the old lines must occur exactly once."""
    lines = [(line[:1], line[1:]) for line in diff.splitlines(keepends=True)]
    old = "".join(rest for sign, rest in lines if sign in " -")
    assert text.count(old) == 1, "the page shows lines that the file does not have"
    return text.replace(old, "".join(rest for sign, rest in lines if sign in " +"))


def write(root: Path, page: str) -> None:
    """The page's files and edits in a tree."""
    for name, (language, body) in files(page).items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(edited(file.read_text(), body) if language == "diff" else body)
        if file.suffix == ".sh":
            file.chmod(0o755)


def sh(root: Path, script: str) -> str:
    env = {**os.environ, "HOME": str(root), "OMP_NUM_THREADS": "1", "SPKV_PYTHON": sys.executable}
    env |= {"PYTHONPATH": str(root), "CUDA_VISIBLE_DEVICES": ""}
    env.pop("SPKV_ROOT", None)  # the tree of the checkout that runs the tests
    call = ["bash", "-c", f"set -euo pipefail\n{script}"]
    done = subprocess.run(call, env=env, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def published(root: Path) -> None:
    """Stand-ins for the corpora and downloads of start_from_published_weights.md: true names, small sizes."""
    import test_wavlm
    import torch

    rng, data = np.random.default_rng(0), {}
    for corpus, speakers, first in (("vox1", 6, 10001), ("vox2", 5, 1)):
        read = toy.make(root / "made" / corpus, speakers=speakers, utts=4, seconds=1.1, seed=first)
        data[corpus] = []
        for utt in read.utts:
            spk, k = (int(part[1:]) for part in utt.split("-"))
            name = f"id{first + spk:05d}/video{k // 2}/{k:05d}.wav"
            file = root / "corpora" / corpus / "dev/wav" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(read.wav[utt], file)
            data[corpus].append(name)
    named = [name for name in data["vox1"] if name < "id10005"]
    pairs = [(a, b) for k, a in enumerate(named) for b in named[k + 1 :]]
    lines = [f"{int(a[:7] == b[:7])} {a} {b}\n" for a, b in pairs]
    (root / "corpora/veri_test2.txt").write_text("".join(lines))
    for kind in ("musan/noise", "musan/speech", "musan/music", "rirs"):
        (root / "corpora" / kind).mkdir(parents=True)
        soundfile.write(root / f"corpora/{kind}/a.wav", 0.1 * rng.standard_normal(16000), 16000)
    (root / "downloads").mkdir()
    test_wavlm.foreign(root / "downloads", "authors", test_wavlm.build(layers=12))
    center = rng.standard_normal((6, 512))
    vectors = {name: center[[int(name[2:7])]] + 0.3 * rng.standard_normal((1, 512)) for name in data["vox2"]}
    torch.save({name: torch.tensor(v).float() for name, v in vectors.items()}, root / "downloads/dino.pt")
    labels = "".join(f"{7 * int(name[2:7])} {name}\n" for name in data["vox2"])
    (root / "downloads/pseudo_labels.txt").write_text(labels)


@pytest.fixture
def tree(tmp_path):
    """A copy of the repository with data/train, six toy voices."""
    for name in TREE:
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("path.sh", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "toy").mkdir()
    toy.make(tmp_path / "toy", speakers=6, utts=4, seconds=0.9).write(tmp_path / "data/train")
    return tmp_path


def test_add_a_loss(tree):
    write(tree, "howto/add_a_loss.md")
    (script,) = commands("howto/add_a_loss.md")
    assert "[100%]" in sh(tree, script)
    log = [json.loads(line) for line in (tree / "exp/supcon/train.jsonl").read_text().splitlines()]
    ends = [record["loss"] for record in log if record["kind"] == "epoch"]
    assert len(ends) == 2 and np.isfinite(ends).all()
    assert (tree / "exp/supcon/LATEST").exists()


def test_add_an_encoder(tree):
    write(tree, "howto/add_an_encoder.md")
    (script,) = commands("howto/add_an_encoder.md")
    assert "[100%]" in sh(tree, script)
    assert len((tree / "exp/gru/embed/embedding.scp").read_text().splitlines()) == 24


def test_add_a_step(tree):
    write(tree, "howto/add_a_step.md")
    data = DataDir.read(tree / "data/train")
    rng = np.random.default_rng(0)
    with EmbeddingWriter(tree / "exp/embed") as add:
        for utt in data.utts:
            add(utt, rng.standard_normal(8).astype(np.float32))
    (script,) = commands("howto/add_a_step.md")
    out = sh(tree, script)
    assert "[100%]" in out and "12 of 24 utterances" in out
    trimmed = DataDir.read(tree / "data/trimmed")
    assert {s: trimmed.spk.count(s) for s in set(data.spk)} == dict.fromkeys(data.spk, 2)
    recipe = tree / "egs/mini/ssl"
    for name in ("TEMPLATE/ssl/run.sh", "TEMPLATE/path.sh", "TEMPLATE/cmd.sh"):
        shutil.copy(tree / "egs" / name, recipe)
    (recipe / "local").mkdir()
    shutil.copy(tree / "egs/TEMPLATE/data.sh", recipe / "local")
    shown = sh(tree, "egs/mini/ssl/run.sh --dry-run true")
    assert "steps/trim.sh" in shown and "pyspkv.bin.trim --keep 0.9" in shown


def test_add_a_corpus(tree):
    calls, rows = tree / "calls", ["file,start,end,speaker"]
    calls.mkdir()
    for i, file in enumerate(sorted((tree / "toy/wav").glob("*.wav"))):
        shutil.copy(file, calls / f"call{i:02d}.wav")
        who = "" if i < 8 else file.name.split("-")[0]
        rows += [f"call{i:02d}.wav,0.00,0.40,{who}", f"call{i:02d}.wav,0.40,0.90,{who}"]
    (calls / "turns.csv").write_text("\n".join(rows) + "\n")
    make, run = commands("howto/add_a_corpus.md")
    sh(tree, make)
    recipe = tree / "recipes/calls/ssl"
    write(recipe, "howto/add_a_corpus.md")
    data_sh = recipe / "local/data.sh"
    data_sh.write_text(data_sh.read_text().replace("num_dev_spk=4", "num_dev_spk=2"))
    shown, run = run.splitlines()
    out = sh(tree, f"export SPKV_ROOT=$PWD\n{shown}\ntest ! -e {recipe}/data\n{run}")
    assert "turns.py" in out
    sets = {name: DataDir.read(recipe / "data" / name) for name in ("train", "dev", "test")}
    assert {n: len(d.utts) for n, d in sets.items()} == {"train": 16, "dev": 16, "test": 16}
    assert sets["train"].spk == sets["train"].utts and set(sets["dev"].spk) == {"s02", "s03"}
    assert sets["test"].segments["call18-0000040"] == ("call18", 0.4, 0.9)
    assert len(sets["test"].trials["trials"]) == 16 * 15 / 2
    rows[2] = "call01.wav,0,end,"
    (calls / "turns.csv").write_text("\n".join(rows) + "\n")
    wrong = f"! python {recipe}/local/turns.py {calls} {tree}/again 2>&1"
    assert "turns.csv:3: the rule is" in sh(tree, f". ./path.sh\n{wrong}")


def test_python_page(tmp_path, monkeypatch):
    import torch

    from pyspkv.base import checkpoint
    from pyspkv.base import config as cfg

    torch.manual_seed(0)
    size = {"channels": 8, "mfa_channels": 12, "embed_dim": 6, "se_channels": 4, "n_mels": 20}
    config = cfg.validate(EncoderConfig, {"name": "ecapa", **size})
    checkpoint.save_import(tmp_path / "exp/finetune/model", cfg.build(config), config, {})
    data = toy.make(tmp_path, speakers=4, utts=1)
    for name, path in zip("abcd", data.wav.values()):
        shutil.copy(path, tmp_path / f"{name}.wav")
    utts = [f"u{i:02d}" for i in range(40)]
    DataDir(None, utts, utts, {u: f"/x/{u}.wav" for u in utts}).write(tmp_path / "data/train")
    with EmbeddingWriter(tmp_path / "embed") as writer:
        for u, x in zip(utts, np.random.default_rng(0).normal(size=(40, 6))):
            writer(u, x)
    monkeypatch.chdir(tmp_path)
    space: dict = {}
    for block in commands("python.md", "python"):
        exec(compile(block, "docs/python.md", "exec"), space)
    assert -1 <= space["found"].score <= 1 and space["found"].llr is None
    assert len(set(DataDir.read(tmp_path / "round1/data").spk)) == space["report"]["num_clusters"] == 20
    assert sorted(set(space["labels"].tolist())) == [0, 1] and space["one"].shape == (6,)


def test_your_own_audio(tmp_path):
    """The page's commands on noise of 22 speakers, except those that need a model."""
    page, rng = "howto/use_your_own_audio.md", np.random.default_rng(0)
    for s, session, u in np.ndindex(22, 2, 2):
        file = tmp_path / f"audio/spk{s:02d}/day{session}/{u}.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(file, rng.uniform(-0.1, 0.1, 3200), 16000)
    _, _, _, folder, look, test, voxceleb, assess = commands(page)
    assert "assess" in assess
    as_installed = f'pyspkv() {{ "{sys.executable}" -m pyspkv.bin.main "$@"; }}\nexport PYTHONPATH={ROOT}\n'
    shown = sh(tmp_path, as_installed + folder + look + test)
    assert "88 utterances, 22 speakers" in shown and "warning: 88 of 88 utterances are shorter" in shown
    assert (
        DataDir.read(tmp_path / "data/test").trials
        and len(set(DataDir.read(tmp_path / "data/train").spk)) == 2
    )
    sh(tmp_path, "cp -r data/train data/vox1")
    spk = sorted(set(DataDir.read(tmp_path / "data/vox1").spk))
    (tmp_path / "veri_test2.txt").write_text(f"0 {spk[0]}/day0/0.wav {spk[1]}/day1/1.wav\n")
    sh(tmp_path, as_installed + voxceleb)
    [line] = DataDir.read(tmp_path / "data/vox1").trials["trials"]
    assert line == f"{spk[0]}-day0-0 {spk[1]}-day1-1 nontarget"


PUBLISHED = "howto/start_from_published_weights.md"


@pytest.fixture
def vox(tree):
    """A copy of the repository with egs/voxceleb/trunk_ssl at a small size, and the page's corpora and downloads."""
    shutil.copytree(ROOT / "local", tree / "local")
    shutil.copytree(ROOT / "egs/voxceleb/trunk_ssl", tree / "egs/voxceleb/trunk_ssl",
                    ignore=shutil.ignore_patterns("conf", "data", "exp"))  # fmt: skip
    shutil.copytree(ROOT / "tests/conf/wavlm", tree / "egs/voxceleb/trunk_ssl/conf")
    published(tree)
    return tree


def test_published_files_by_single_commands(vox):
    import torch

    _, model, _, embeddings, _, labels = commands(PUBLISHED)
    tensors = torch.load(vox / "downloads/model000000018.model", weights_only=True)
    assert len(tensors) == 259 and {k.split(".")[0] for k in tensors} == {"__S__", "__L__"}
    python = "unset SPKV_ROOT; . ./path.sh\nv=corpora; d=egs/voxceleb/trunk_ssl/data\n"
    data = "python local/voxceleb.py --trials $v/veri_test2.txt $v/vox1 $v/vox2 $d > /dev/null\n"
    said = sh(vox, python + data + model + embeddings + labels)
    assert "12 layers of 32, with its MHFA" in said and "20 embeddings of 512 dimensions" in said
    got = DataDir.read(vox / "data/round1")
    want = {
        utt: str(7 * int(utt[2:7])) for utt in DataDir.read(vox / "egs/voxceleb/trunk_ssl/data/train").utts
    }
    assert dict(zip(got.utts, got.spk)) == want and len(want) == 20


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_published_files_through_the_recipe(vox):
    model, _, embeddings, _, labels, _ = commands(PUBLISHED)
    more = " --nj 1 --crops 1 --num-clusters 5"
    shown = sh(vox, model.replace("--num-cohort 20000", "--nj 1 --crops 1 --num-cohort 12"))
    assert "stage 3" not in shown and "bin.train" not in shown
    assert "12 has 12 (pseudo-)speakers" in shown.replace("/utt2spk", "")
    report = (vox / "exp/published/report.md").read_text()
    for name in ("test", "test-crops", "test-asnorm"):
        assert f"| published | {name} |" in report
    for block, exp in ((embeddings, "from_embeddings"), (labels, "from_labels")):
        block = block.replace("--trunk downloads/WavLM-Base+.pt ", "")  # the student here is an ECAPA
        shown = sh(vox, block.rstrip() + more + " --finetune false")
        assert "pretrain/model" not in shown
        (found,) = json.loads((vox / "exp" / exp / "results.json").read_text())["rounds"]
        assert (
            found["nmi"] == pytest.approx(1) and found["eer"] is not None
        )  # stand-ins without a wrong label


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_published_model_on_three_lists_with_asnorm(vox):
    """O, E and H of stand-ins, as the page tells. AS-norm is computed again from the embeddings, in float64."""
    import kaldiio

    audio = sorted((vox / "corpora/vox1/dev/wav").glob("*/*/*.wav"))
    names = ["/".join(file.parts[-3:]) for file in audio]
    pairs = [(a, b) for k, a in enumerate(names) for b in names[k + 1 :]]
    lists = {
        "list_test_all2": pairs,
        "list_test_hard2": [p for p in pairs if p[0][:7] == p[1][:7] or p[1] < "id10004"],
    }
    for name, chosen in lists.items():  # E names all speakers, so that dev speakers come from VoxCeleb2
        lines = [f"{int(a[:7] == b[:7])} {a} {b}\n" for a, b in chosen]
        (vox / f"corpora/{name}.txt").write_text("".join(lines))
    make, score = commands(PUBLISHED)[0].replace("\\\n", "").strip().splitlines()
    three = " ".join(f"corpora/{name}.txt" for name in ("veri_test2", *lists))
    sh(vox, make.replace("--trials corpora/veri_test2.txt", f'--trials "{three}" --num-dev-spk 2'))
    sh(vox, score.replace("--num-cohort 20000", "--nj 1 --crops 1 --num-cohort 12"))
    exp = vox / "exp/published"
    vector = {}
    for part in ("test", "cohort12"):
        loaded = kaldiio.load_scp(str(exp / f"published/embed/{part}/embedding.scp"))
        x = {utt: np.asarray(loaded[utt], dtype=float).reshape(-1) for utt in loaded}
        vector[part] = {utt: v / np.linalg.norm(v) for utt, v in x.items()}
    cohort = np.stack(list(vector["cohort12"].values()))
    assert cohort.shape[0] == 12 and not any(utt < "id10000" for utt in vector["test"])
    sizes = {}
    for end in ("", "_O", "_E", "_H"):
        found = np.loadtxt(exp / f"published/score/test{end}-asnorm.scores", dtype=str)
        sizes[end] = len(found)
        for a, b, shown in found[:: max(1, len(found) // 40)]:
            e, t = vector["test"][a], vector["test"][b]
            z = [(e @ t - (cohort @ side).mean()) / (cohort @ side).std() for side in (e, t)]
            assert float(shown) == pytest.approx(sum(z) / 2, abs=2e-3 * max(map(abs, z)) + 2e-3)
    assert sizes == {"": 120, "_O": 120, "_E": 276, "_H": len(lists["list_test_hard2"])}
    report = (exp / "report.md").read_text()
    for end in ("", "_O", "_E", "_H"):
        for kind in ("", "-crops", "-asnorm"):
            assert f"test{end}{kind} |" in report, (end, kind)


def own_recipe(tree, audio: Path, speakers: int, *more: str) -> dict:
    """The page's six commands, run in a copy of the repository on a folder of <speaker>/... ; results.json."""
    shutil.rmtree(tree / "data")
    (tree / "audio").symlink_to(audio)
    for name in ("path.sh", "cmd.sh"):
        assert (tree / "egs/TEMPLATE" / name).exists()
    six = commands("howto/use_your_own_audio.md")[0].replace(
        "--num-speakers 20", f"--num-speakers {speakers}"
    )
    lines = six.splitlines()
    assert len(lines) == 6
    lines[-1] += "".join(f" {word}" for word in more)
    out = sh(tree, "unset SPKV_ROOT; . ./path.sh\n" + "\n".join(lines))
    report = (tree / "egs/mine/ssl/exp/report.md").read_text()
    assert "## Signs of trouble" in report and "results.json" in out.splitlines()[-1] and "trainings" in out
    return json.loads((tree / "egs/mine/ssl/exp/results.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_six_commands_on_synthetic_speech(tree, tmp_path):
    """10 voices of egs/mini's maker, 6 of them in training: a result, and enough steps."""
    made = "--num-train-spk 6 --num-dev-spk 4 --num-test-spk 4 --sessions 2 --utts-per-session 3 --nj 1"
    made += " --eval-utts-per-session 3"
    sh(ROOT, f'"{sys.executable}" local/mini.py {made} {tmp_path}/made')
    for part in ("train_labeled", "test"):
        data = DataDir.read(tmp_path / "made" / part)
        for utt, spk in zip(data.utts, data.spk):
            folder = tmp_path / "voices" / spk
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(data.wav[utt], folder / f"{utt}{Path(data.wav[utt]).suffix}")
    results = own_recipe(tree, tmp_path / "voices", 4)
    assert 0 <= results["final"]["eer"] <= 100 and [r["round"] for r in results["rounds"]] == [1, 2]
    assert "few_steps" not in {w["kind"] for w in results["warnings"] if w["where"] == "pretrain"}


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_six_commands_on_speechocean762(tree, corpora):
    results = own_recipe(tree, corpora / "speechocean762/train", 20, "--num-rounds", "1")
    assert 0 < results["final"]["eer"] < 45 and results["pretrain"]["eer"] < 45
    assert not {"few_steps", "chance_loss", "two_clusters"} & {w["kind"] for w in results["warnings"]}


def test_the_commands_of_the_table_of_lists():
    text = (ROOT / "docs/howto/use_your_own_audio.md").read_text()
    found = re.findall(r"^\| .* \| `pyspkv datadir (.*)` \|$", text, re.M)
    assert len(found) == 8
    for words in map(shlex.split, found):
        args = parser_for(words).parse_args(words)
        assert args.out == "data/all"
