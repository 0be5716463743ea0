"""bin.evaluate against the single commands, and which files it may keep or must make again."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pyspkv.base import atomic
from pyspkv.base.errors import UserError
from pyspkv.bin import calibrate, evaluate, metrics, score
from pyspkv.data.ark import EmbeddingWriter
from pyspkv.score import calibration

DIM = 6
ROOT = Path(evaluate.__file__).parents[2]
ALL = ["--dev", "data/dev", "--cohort-data", "data/train", "--top-n", "5", "--crops"]


def utts(letter, speakers=8):
    return [f"{letter}{s}-{u}" for s in range(speakers) for u in range(4)]


def make_data(name, enrol_map=False):
    folder, ids = Path("data", name), utts(name[0])
    folder.mkdir(parents=True)
    (folder / "utt2spk").write_text("".join(f"{u} {u[:2]}\n" for u in ids))
    pairs = [(a, b) for k, a in enumerate(ids) for b in ids[k + 1 :]]
    if enrol_map:
        models = {f"m{u[:2]}": [v for v in ids if v[:2] == u[:2]][:2] for u in ids}
        (folder / "enrol_map").write_text("".join(f"{m} {' '.join(us)}\n" for m, us in models.items()))
        pairs += [(m, u) for m in models for u in ids if u not in models[m]]
    same = ["target" if a.removeprefix("m")[:2] == b[:2] else "nontarget" for a, b in pairs]
    (folder / "trials").write_text("".join(f"{a} {b} {w}\n" for (a, b), w in zip(pairs, same)))


def embed(folder, name, seed, shape=(DIM,), letter=None):
    rng = np.random.default_rng(seed)
    center = {}
    with EmbeddingWriter(Path(folder, "embed", name)) as write:
        for u in utts(letter or name[0]):
            voice = center.setdefault(u[:2], rng.standard_normal(DIM))
            write(u, 0.5 + voice + 0.9 * rng.standard_normal(shape))


def make_system(folder, seed):
    for k, name in enumerate(("dev", "test", "other", "train")):
        embed(folder, name, seed + k)
    embed(folder, "test-crops", seed + 9, (3, DIM), "t")
    embed(folder, "other-crops", seed + 8, (3, DIM), "o")
    Path(folder, "model").mkdir()


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Data directories dev, test, other (with enrolment models) and train, and systems a, b and c, in an
    empty folder.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pyspkv.score.metrics.REPLICATES", 40)
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # there are thousands of small files
    for name in ("dev", "test", "other", "train"):
        make_data(name, enrol_map=name == "other")
    for k, system in enumerate("abc"):
        make_system(system, 100 * k)
    return tmp_path


@pytest.fixture
def call(monkeypatch, capsys):
    def run(*argv, main=evaluate.main):
        monkeypatch.setattr("sys.argv", ["x", *map(str, argv)])
        main()
        return capsys.readouterr().out

    return run


def contents(*systems):
    """Path -> bytes of every score file, metrics file and calibration."""
    files = [f for s in systems for f in (*Path(s).glob("score/*.*"), *Path(s).glob("model/*"))]
    return {str(f): f.read_bytes() for f in sorted(files) if f.name != ".lock"}


def one_by_one(call, system, data, name, compare=None):
    """The single commands, in the order in which they depend on each other."""

    def make(data, sets, stem, scoring=(), measuring=()):
        out = f"{system}/score/{stem}"
        enrol_map = [f"--enrol-map={data}/enrol_map"] if Path(data, "enrol_map").exists() else []
        scps = [f"{system}/embed/{s}/embedding.scp" for s in sets]
        call("--trials", f"{data}/trials", "--enrol", *scps, "--test", *scps, "--out", f"{out}.scores",
             *enrol_map, *scoring, main=score.main)  # fmt: skip
        said = call("--scores", f"{out}.scores", "--trials", f"{data}/trials", "--utt2spk", f"{data}/utt2spk",
                    "--json", *enrol_map, *measuring, main=metrics.main)  # fmt: skip
        Path(f"{out}.json").write_text(said)

    train, stored = f"{system}/embed/train/embedding.scp", f"{system}/model/calibration.json"
    make("data/dev", ["dev"], "dev")
    call("--scores", f"{system}/score/dev.scores", "--trials", "data/dev/trials", "--model", f"{system}/model",
         main=calibrate.main)  # fmt: skip
    other = ["--compare", f"{compare}/score/{name}.scores"] if compare else []
    make(data, [name], name, measuring=["--calibration", stored, *other])
    make(data, [name, f"{name}-crops"], f"{name}-crops")
    make(data, [name], f"{name}-mean", ["--mean", train])
    cohort = ["--cohort", train, "--cohort-utt2spk", "data/train/utt2spk", "--top-n", "5"]
    make(data, [name], f"{name}-asnorm", cohort)


def test_the_files_are_those_of_the_single_commands(place, call):
    """Three systems and two lists, one with enrolment models; the others are compared with b."""
    for system in "bac":
        for name in ("test", "other"):
            one_by_one(call, system, f"data/{name}", name, None if system == "b" else "b")
    want = contents(*"abc")
    assert len(want) == 3 * (2 + 1 + 2 * 8)
    for system in "abc":
        for f in (*Path(system, "score").iterdir(), *Path(system, "model").iterdir()):
            f.unlink()
    said = call("--systems", *"abc", "--data", "data/test", "data/other", "--compare", "b", *ALL)
    assert contents(*"abc") == want
    # the table that is made from the files
    table = [line.split() for line in said.splitlines()]
    found = json.loads(Path("c/score/other.json").read_text())
    (row,) = [line for line in table if line[:2] == ["c", "other"]]
    assert row[2] == f"{found['eer']:.2f}" and f"{found['cllr']:.4f}" in row
    assert row[3:6] == [f"{found['eer_ci_low']:.2f}", "..", f"{found['eer_ci_high']:.2f}"]
    assert row[-1] == f"{json.loads(Path('c/score/other-asnorm.json').read_text())['eer']:.2f}"
    assert said.splitlines()[-1] == "scores and metrics are in b/score a/score c/score"


def test_a_dev_list_of_another_name_and_names_of_ones_own(place, call):
    Path("data/dev").rename("data/validation")
    Path("a/embed/dev").rename("a/embed/validation")
    scp = Path("a/embed/validation/embedding.scp")
    scp.write_text(scp.read_text().replace("/embed/dev/", "/embed/validation/"))
    Path("a/embed/test").rename("a/embed/mine")
    scp = Path("a/embed/mine/embedding.scp")
    scp.write_text(scp.read_text().replace("/embed/test/", "/embed/mine/"))
    said = call("--systems", "a/", "--data", "data/test/", "--name", "mine", "--dev", "data/validation/",
                "--cohort-data", "", "--compare", "")  # fmt: skip
    assert {f.name for f in Path("a/score").glob("*.*")} - {".lock"} == {
        "validation.scores", "validation.json", "mine.scores", "mine.json"}  # fmt: skip
    assert "cllr" in json.loads(Path("a/score/mine.json").read_text())
    assert [line for line in said.splitlines() if line.startswith("a ")][0].split()[-1] == "-"


def test_further_lists_are_scored_from_the_same_embeddings(place, call):
    """data/test/trials_E is to give what a data directory of its own with these trials gives."""
    lines = Path("data/test/trials").read_text().splitlines(keepends=True)
    for name, kept in (("trials_E", lines[::2]), ("trials_H", lines[1::3]), ("trials.old", ["no trial\n"])):
        Path("data/test", name).write_text("".join(kept))
    said = call("--systems", "a", "b", "--data", "data/test", *ALL, "--compare", "a")
    assert [line.split()[:2] for line in said.splitlines() if line[:2] == "b "] == [
        ["b", "test"], ["b", "test_E"], ["b", "test_H"]]  # fmt: skip
    one_list = json.loads(Path("b/score/test.json").read_text())
    Path("other/data").mkdir(parents=True)
    for x in "EH":
        own = Path("other/data", f"test_{x}")
        own.mkdir()
        for table, of in (("utt2spk", "utt2spk"), ("trials", f"trials_{x}")):
            (own / table).write_bytes(Path("data/test", of).read_bytes())
    for system in "ab":
        Path("other", system).mkdir()
        for part in ("model", "embed"):
            shutil.copytree(f"{system}/{part}", f"other/{system}/{part}")
        for set_ in ("test", "test-crops"):
            for x in "EH":
                link = Path(f"other/{system}/embed", set_.replace("test", f"test_{x}"))
                link.symlink_to(os.path.abspath(f"{system}/embed/{set_}"))
    lists = [f"other/data/test_{x}" for x in "EH"]
    call("--systems", "other/a", "other/b", "--data", *lists, *ALL, "--compare", "other/a")
    files = sorted(p.name for p in Path("other/b/score").glob("test_*"))
    assert len(files) == 16 and {f"test_{x}-{v}.json" for x in "EH" for v in ("asnorm", "crops", "mean")} < {
        *files
    }
    for file in files:
        ours, theirs = Path("b/score", file).read_text(), Path("other/b/score", file).read_text()
        if file.endswith(".json"):
            ours, theirs = json.loads(ours), json.loads(theirs)
            x = file[5]
            assert ours.pop("trials") == os.path.abspath(f"data/test/trials_{x}") and theirs.pop("trials")
            assert ours.pop("scores") == os.path.abspath(f"b/score/{file[:-5]}.scores") and theirs.pop(
                "scores"
            )
            assert (
                ours["num_target"] + ours["num_nontarget"]
                < one_list["num_target"] + one_list["num_nontarget"]
            )
        assert ours == theirs, file
    assert "up to date" in call("--systems", "a", "b", "--data", "data/test", *ALL, "--compare", "a")
    call("--systems", "a", "b", "--data", "data/test", "--dev", "data/dev")
    assert not list(Path("a/score").glob("test_?-*"))


def state(*systems):
    return {f: f.stat().st_mtime_ns for s in systems for f in Path(s).rglob("*") if f.name != ".lock"}


def rewrite(path, change=lambda text: text):
    """Write other content, or the same content again, with the old time stamp."""
    path, times = Path(path), os.stat(path)
    new = path.with_name("new")
    new.write_bytes(change(path.read_bytes()))
    os.replace(new, path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def flip(raw):
    """Change numbers but not the length: the sign of the last float."""
    return raw[:-1] + bytes([raw[-1] ^ 0x80])


def test_what_is_up_to_date_is_left_alone(place, call):
    args = ["--systems", *"ab", "--data", "data/test", "--compare", "b", *ALL]
    first = call(*args).splitlines()
    before = state(*"ab")
    said = call(*args).splitlines()
    assert said[:2] == ["up to date: b/score", "up to date: a/score"]
    assert said[2:] == first[2:]
    assert state(*"ab") == before
    # Another list leaves both untouched; another system leaves the others untouched.
    call("--systems", *"ab", "--data", "data/other", "--compare", "b", *ALL)
    assert call(*args).splitlines()[:2] == said[:2]
    said = call("--systems", *"abc", "--data", "data/test", "--compare", "b", *ALL)
    assert "up to date: a/score" in said and "up to date: c/score" not in said
    # A folder without write permission is no problem.
    Path("a/score/.lock").unlink()
    assert call(*args).splitlines()[:2] == ["up to date: b/score", "up to date: a/score"]
    assert not Path("a/score/.lock").exists()


def test_up_to_date_is_said_without_loading_numpy(place, call):
    args = ["--systems", "a", "--data", "data/test", *ALL]
    call(*args)
    code = (
        f"import sys; sys.argv = ['evaluate', *{args!r}]\n"
        "from pyspkv.bin import evaluate; evaluate.main(); print('numpy' in sys.modules)"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("up to date: a/score\n")
    assert done.stdout.endswith("\nFalse\n")


CHANGES = {
    "embeddings of the list": lambda: rewrite("a/embed/test/embedding.ark", flip),
    "crops": lambda: rewrite("a/embed/test-crops/embedding.ark", flip),
    "training embeddings": lambda: rewrite("a/embed/train/embedding.ark", flip),
    "dev embeddings": lambda: rewrite("a/embed/dev/embedding.ark", flip),
    "embeddings of the system compared to": lambda: rewrite("b/embed/test/embedding.ark", flip),
    "a list of other arks": lambda: rewrite(
        "a/embed/test/embedding.scp", lambda raw: raw.replace(b"/a/embed/", b"/c/embed/")
    ),
    "trials": lambda: rewrite("data/test/trials", lambda raw: raw[: raw.rindex(b"\n", 0, -1) + 1]),
    "dev trials": lambda: rewrite("data/dev/trials", lambda raw: raw[: raw.rindex(b"\n", 0, -1) + 1]),
    "cohort": lambda: rewrite("data/train/utt2spk", lambda raw: raw.replace(b" t7", b" t6")),
    "enrolment": lambda: Path("data/test/enrol_map").write_text("t0-0 t0-1 t0-2\n"),
    "calibration": lambda: rewrite("a/model/calibration.json", lambda raw: raw.replace(b": 0.5", b": 0.4")),
    "no calibration": lambda: os.unlink("a/model/calibration.json"),
    "scores": lambda: rewrite("a/score/test.scores", lambda raw: raw.replace(b"1", b"2")),
    "a missing variant": lambda: os.unlink("a/score/test-mean.scores"),
    "metrics": lambda: rewrite("a/score/test-asnorm.json", lambda raw: raw.replace(b"1", b"2")),
    "no record": lambda: os.unlink("a/score/made_by"),
    "a damaged record": lambda: Path("a/score/made_by").write_text('{"test": 3'),
    "a record of the wrong form": lambda: Path("a/score/made_by").write_text("[]"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_files_are_made_again_after_any_change(place, call, what):
    args = ["--systems", *"ab", "--data", "data/test", "--compare", "b", *ALL]
    call(*args)
    CHANGES[what]()
    assert "up to date: a/score" not in call(*args)
    got = contents(*"ab")
    for system in "ab":
        for f in (*Path(system, "score").iterdir(), *Path(system, "model").iterdir()):
            f.unlink()
    call(*args)
    assert got == contents(*"ab")
    assert "up to date: a/score" in call(*args)


@pytest.mark.parametrize(
    "change",
    ["--top-n 4", "--compare c", "--compare=", "--cohort-data data/cohort", "--dev data/./dev"],
)
def test_other_options_make_the_files_again(place, call, change):
    args = ["--systems", *"abc", "--data", "data/test", "--compare", "b", *ALL]
    call(*args)
    Path("data/cohort").mkdir()
    Path("data/cohort/utt2spk").write_text("".join(f"{u} s{k % 7}\n" for k, u in enumerate(utts("t"))))
    change = change.split(" ")
    assert "up to date: a/score" not in call(*args, *change)
    got = contents("a")
    for f in (*Path("a/score").iterdir(), *Path("a/model").iterdir()):
        f.unlink()
    call(*args, *change)
    assert contents("a") == got


def test_a_moved_experiment_names_its_new_place(place, call):
    call("--systems", "a", "--data", "data/test")
    os.rename("a", "new")
    for scp in Path("new").rglob("*.scp"):
        scp.write_text(scp.read_text().replace(f"{place}/a/", f"{place}/new/"))
    call("--systems", "new", "--data", "data/test")
    assert json.loads(Path("new/score/test.json").read_text())["scores"] == f"{place}/new/score/test.scores"


def test_variants_that_are_not_asked_for_go_and_come_back(place, call):
    args = ["--systems", "a", "--data", "data/test"]
    call(*args, *ALL)
    full = contents("a")
    Path("a/score/of-mine.json").write_text("{}")
    said = call(*args, "--dev", "data/dev")
    names = {f.name for f in Path("a/score").iterdir()} - {".lock", "made_by"}
    assert names == {"dev.json", "dev.scores", "test.json", "test.scores", "of-mine.json"}
    assert "up to date" in said
    Path("a/score/of-mine.json").unlink()
    call(*args, *ALL)
    assert contents("a") == full


@pytest.mark.parametrize("missing", ["dev", "test", "test-crops", "train"])
def test_missing_embeddings_are_named_with_their_command(place, call, missing):
    os.rename("a", "it's $(touch x) a")
    system = "it's $(touch x) a"
    for scp in Path(system).rglob("*.scp"):
        scp.write_text(scp.read_text().replace(f"{place}/a/", f"{place}/{system}/"))
    args = ["--systems", "b", system, "--data", "data/test", *ALL]
    call(*args)
    before = contents(system)
    Path(system, "embed", missing, "embedding.scp").unlink()
    with pytest.raises(UserError) as err:
        call(*args)
    rule, hint = str(err.value).splitlines()
    assert rule.startswith(f"{system}/embed/{missing}: contains no embeddings")
    words = shlex.split(hint.removeprefix("  hint: "))
    assert Path(words[0]).samefile(ROOT / "steps/extract.sh")
    data = {"test-crops": "test"}.get(missing, missing)
    assert words[-3:] == [f"{system}/model", f"data/{data}", f"{system}/embed/{missing}"]
    assert ("--crops" in words) == (missing == "test-crops")
    assert contents(system) == before


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--systems", "a", "--data", "nowhere"], "nowhere/trials: no such file"),
        (["--systems", "a", "nosuch", "--data", "data/test"], "nosuch: no such folder"),
        (["--systems", "a", "--data", "data/test", "--cohort-data", "none"], "none/utt2spk: no such file"),
        (["--systems", "a", "--data", "data/test", "data/test"], "would be called test.scores"),
        (["--systems", "a", "--data", "data/dev", "--dev", "data/dev"], "would be called dev.scores"),
        (["--systems", "a", "--data", "data/test", "data/other", "--crops", "--name", "test", "test-crops"],
         "would be called test-crops.scores"),
        (["--systems", "a", "--data", "data/test", "--name", "../test"], "cannot be the name"),
        (["--systems", "a", "--data", "data/test", "--name", ""], "cannot be the name"),
        (["--systems", "a", "--data", "data/test", "--compare", "b"], "b/score/test.scores: no such score file"),
    ],
)  # fmt: skip
def test_wrong_calls_write_nothing(place, call, args, says):
    with pytest.raises(UserError) as err:
        call(*args)
    assert says in str(err.value)
    assert not Path("a/score").exists()


@pytest.mark.parametrize(
    "raw", [b"\n", b"t0-0\n", b"", b"t0-0 gone.ark:5\n", b"\xff\xff a.ark:5\n", b"t0-0 a:b:c |\n"]
)
def test_a_damaged_list_of_embeddings_is_an_error_that_names_it(place, call, raw):
    call("--systems", "a", "--data", "data/test")
    before = contents("a")
    Path("a/embed/test/embedding.scp").write_bytes(raw)
    with pytest.raises(UserError, match="a/embed/test/embedding.scp"):
        call("--systems", "a", "--data", "data/test")
    assert contents("a") == before


@pytest.mark.parametrize("number", ["1", "-3", "1_0", "\u0663", "9" * 5000, "ten"])
def test_top_n_is_a_plain_number(place, call, number, capsys):
    with pytest.raises(SystemExit) as end:
        call("--systems", "a", "--data", "data/test", "--top-n", number)
    assert end.value.code == 2
    assert "whole number" in capsys.readouterr().err


def test_compared_to_a_system_that_is_scored_already(place, call):
    call("--systems", "b", "--data", "data/test", *ALL)
    before = contents("b")
    call("--systems", "a", "--data", "data/test", "--compare", "b")
    out = json.loads(Path("a/score/test.json").read_text())
    assert out["eer_other"] == json.loads(Path("b/score/test.json").read_text())["eer"]
    assert contents("b") == before


def test_scores_that_cannot_be_calibrated(place, call, capsys):
    """Swapped labels on dev: a warning, no calibration, and the older one is removed; all other files are
    made.
    """
    args = ["--systems", "a", "--data", "data/test", "--dev", "data/dev"]
    call(*args)
    assert Path("a/model/calibration.json").exists()
    ids = utts("d")
    # each "speaker" now has one utterance of every voice, so targets score lower
    spk = {u: u[-1] for u in ids}
    Path("data/dev/utt2spk").write_text("".join(f"{u} {spk[u]}\n" for u in ids))
    pairs = [(a, b) for k, a in enumerate(ids) for b in ids[k + 1 :]]
    Path("data/dev/trials").write_text(
        "".join(f"{a} {b} {'target' if spk[a] == spk[b] else 'nontarget'}\n" for a, b in pairs)
    )
    for again in (False, True):
        evaluate_args = ["x", *args]
        sys.argv, old = evaluate_args, sys.argv
        evaluate.main()
        sys.argv = old
        out, err = capsys.readouterr()
        assert ("a is scored without calibration" in err and "swapped" in err) != again
        assert ("up to date" in out) == again
        assert not Path("a/model/calibration.json").exists()
        assert "cllr" not in json.loads(Path("a/score/test.json").read_text())


@pytest.mark.parametrize(
    "failure", [UserError("odd"), OSError(28, "No space left"), MemoryError(), KeyboardInterrupt()]
)
def test_any_other_failure_ends_it_and_leaves_the_calibration(place, call, monkeypatch, failure):
    args = ["--systems", "a", "--data", "data/test", "--dev", "data/dev"]
    call(*args)
    before = Path("a/model/calibration.json").read_bytes()
    rewrite("a/embed/dev/embedding.ark", flip)

    def fail(*_):
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr("pyspkv.score.evaluation.fit", fail)
        with pytest.raises(type(failure)):
            call(*args)
        assert Path("a/model/calibration.json").read_bytes() == before
        with pytest.raises(type(failure)):  # it does not count as done
            call(*args)
    call(*args)
    assert Path("a/model/calibration.json").read_bytes() != before


def test_killed_at_any_write_the_next_run_ends_well(place, call, monkeypatch):
    args = ["--systems", *"ab", "--data", "data/test", "--compare", "b", *ALL]
    call(*args)
    want = contents(*"ab")
    for system in "ab":
        for f in (*Path(system, "score").iterdir(), *Path(system, "model").iterdir()):
            f.unlink()
    real, left = os.replace, 0

    def replace(*names):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        real(*names)

    monkeypatch.setattr(atomic.os, "replace", replace)
    deaths = 0
    while True:
        left = 3  # a part has two files, and its record is the third: every run makes progress
        left += deaths % 3
        try:
            call(*args)
            break
        except KeyboardInterrupt:
            deaths += 1
    assert deaths > 4
    assert contents(*"ab") == want
    assert not list(place.glob("*/score/.*.scores.*"))


def test_one_writer_a_folder(place, call):
    args = ["--systems", *"ab", "--data", "data/test"]
    with (
        atomic.folder_lock("b/score"),
        pytest.raises(UserError, match="b/score: another process is writing here"),
    ):
        call(*args)
    assert not contents(*"ab")
    call(*args)
    with atomic.folder_lock("b/score"):
        assert "up to date: b/score" in call(*args)


@pytest.mark.parametrize(
    "name", ["score/test.scores", "score/made_by", "score/.lock", "model/calibration.json"]
)
def test_nothing_is_written_through_a_link(place, call, name):
    Path("precious").write_text("mine")
    Path("a/score").mkdir()
    Path("a", name).symlink_to("../../precious")
    with pytest.raises(UserError, match="is a link") as err:
        call("--systems", "a", "--data", "data/test", "--dev", "data/dev")
    assert Path("precious").read_text() == "mine"
    subprocess.run(str(err.value).splitlines()[1].removeprefix("  hint: "), shell=True, check=True)
    call("--systems", "a", "--data", "data/test", "--dev", "data/dev")


def test_a_cohort_of_fewer_speakers_is_used_whole(place, call):
    args = ["--systems", "a", "--data", "data/test", "--cohort-data", "data/train"]
    said = call(*args, "--top-n", 300)
    assert "data/train/utt2spk has 8 (pseudo-)speakers, all are used" in said
    want = Path("a/score/test-asnorm.scores").read_bytes()
    call(*args, "--top-n", 8)
    assert Path("a/score/test-asnorm.scores").read_bytes() == want


def test_a_system_given_twice_is_scored_once(place, call):
    os.symlink("a", "link")
    said = call("--systems", "a", "./a", "link", "--data", "data/test")
    assert said.splitlines()[-1] == "scores and metrics are in a/score"


def test_older_calibrations_stay_in_use_without_dev(place, call):
    calibration.Calibration(3.0, -1.0, 0.3, 0.5, "x", 9, 9, 0.4).write("a/model/calibration.json")
    call("--systems", "a", "--data", "data/test")
    scores = np.loadtxt("a/score/test.scores", usecols=2)
    target = np.loadtxt("data/test/trials", usecols=2, dtype=str) == "target"
    llr = 3 * scores - 1
    want = (np.log2(1 + np.exp(-llr[target])).mean() + np.log2(1 + np.exp(llr[~target])).mean()) / 2
    assert json.loads(Path("a/score/test.json").read_text())["cllr"] == pytest.approx(want)
    Path("a/model/calibration.json").write_text("[" * 100000)
    with pytest.raises(UserError, match="is not a calibration"):
        call("--systems", "a", "--data", "data/test")
