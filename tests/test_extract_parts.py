"""bin.extract of several models and data directories, in parts.

The files are the same bytes however the work is divided; nothing unfinished counts as done; a folder has one
writer.
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import toy

from pyspkv.audio import reader
from pyspkv.base import checkpoint
from pyspkv.base import config as cfg
from pyspkv.base.atomic import folder_lock
from pyspkv.base.errors import UserError
from pyspkv.bin import extract
from pyspkv.data.ark import EmbeddingWriter, read_embeddings
from pyspkv.data.datadir import DataDir
from pyspkv.models.registry import EncoderConfig
from pyspkv.score import embedding_folder
from pyspkv.score import extract as embed_module

ROOT = Path(__file__).resolve().parent.parent
ECAPA = {"name": "ecapa", "channels": 16, "mfa_channels": 24, "embed_dim": 8, "se_channels": 4, "n_mels": 40}
WAVLM = {"name": "wavlm", "layers": 1, "dim": 32, "heads": 4, "ffn": 48, "conv_dim": 16, "pos_conv_kernel": 8,
         "pos_conv_groups": 4, "embed_dim": 8, "mhfa_heads": 2, "mhfa_dim": 8}  # fmt: skip
SMALL = {"cpu": 2}  # seconds per batch


def model(folder: Path, seed: int, raw: dict = ECAPA) -> Path:
    torch.manual_seed(seed)
    config = cfg.validate(EncoderConfig, raw)
    checkpoint.save_import(folder, cfg.build(config), config, {})
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two models; data directories `a` and `b` with utterances of many lengths, and `c` with segments."""
    root = tmp_path_factory.mktemp("parts")
    models = [model(root / f"m{seed}/model", seed) for seed in (0, 1)]
    rng = np.random.default_rng(0)
    made = toy.make(root, speakers=3, utts=5, seconds=1.5)
    for file in made.wav.values():
        wave, rate = soundfile.read(file, dtype="int16")
        soundfile.write(file, wave[: int(rng.integers(3000, 24000))], rate)
    recos = {f"r-{utt}": file for utt, file in made.wav.items()}
    segments = {utt: (f"r-{utt}", 0.01, 0.15) for utt in made.utts}
    made.subset(made.utts[2:]).write(root / "a")
    made.subset(made.utts[:9]).write(root / "b")
    DataDir(root / "c", made.utts, made.spk, recos, segments).write(root / "c")
    return root, models, [root / name for name in "abc"]


@pytest.fixture
def run(monkeypatch, capsys):
    """bin.extract in this process, with small batches; returns what it prints."""
    monkeypatch.setattr(embed_module, "BATCH_SECONDS", SMALL)

    def call(*args) -> str:
        monkeypatch.setattr(sys, "argv", ["extract", *map(str, args)])
        extract.main()
        return capsys.readouterr().out

    return call


def process(*args, before: str = "", **options) -> subprocess.Popen:
    """bin.extract in a process of its own, after the statements `before`."""
    code = (
        f"import sys; import pyspkv.score.extract; pyspkv.score.extract.BATCH_SECONDS = {SMALL!r}\n{before}\n"
        "from pyspkv.bin.extract import main; from pyspkv.base.errors import run; run(main)"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def pair(folder: Path) -> tuple[bytes, str]:
    """The bytes of an ark, and its scp without the folder's name."""
    return (folder / "embedding.ark").read_bytes(), (folder / "embedding.scp").read_text().replace(
        f"{folder}/", ""
    )


def leftovers(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if not p.name.startswith(".lock")}


WHOLE = {"embedding.ark", "embedding.scp", "made_by"}


@pytest.mark.parametrize("crops", [[], ["--crops", 3, "--crop-seconds", 0.3]])
def test_the_same_bytes_for_any_number_of_parts(world, run, tmp_path, crops):
    _, (one, _), (data, *_) = world
    what = ["--model", one, "--data", data, *crops]
    run(*what, "--out", tmp_path / "whole")
    assert len(read_embeddings(tmp_path / "whole/embedding.scp").ids) == 13
    for n in (1, 2, 3, 7, 20):  # there are fewer than 20 batches
        out = tmp_path / str(n)
        for k in sorted(range(1, n + 1), key=lambda k: k * 7 % n):  # in any order
            assert f"part {k} of {n}" in run(*what, "--out", out, "--part", f"{k}/{n}")
            assert not (out / "made_by").exists() and not (out / "embedding.scp").exists()
        said = run(*what, "--out", out, "--merge", n)
        assert said.splitlines()[-1] == f"embeddings: {out}/embedding.scp"
        assert pair(out) == pair(tmp_path / "whole") and leftovers(out) == WHOLE
        assert run(*what, "--out", out, "--merge", n) == f"up to date: {out}\n"
        assert run(*what, "--out", out, "--part", f"1/{n}") == f"up to date: {out}\n"
        assert run(*what, "--out", out) == f"up to date: {out}\n"


def test_parts_are_consecutive_whole_and_about_equal(world, monkeypatch):
    _, _, (data, *_) = world
    monkeypatch.setattr(embed_module, "BATCH_SECONDS", {"cpu": 1})
    batches = embed_module.Batches(DataDir.read(data), torch.device("cpu"), 1200)
    cost = dict(zip(map(tuple, batches.plans), batches.costs))
    assert len(cost) > 5
    for n in range(1, 9):
        shares = [batches.share(k, n) for k in range(1, n + 1)]
        assert sum(shares, []) == batches.plans
        sums = [sum(cost[tuple(rows)] for rows in share) for share in shares]
        assert max(sums) <= sum(batches.costs) / n + max(batches.costs)


def test_a_part_can_be_read_and_is_kept(world, run, tmp_path):
    _, (one, two), (data, *_) = world
    what = ["--data", data, "--out", tmp_path / "e"]
    assert "embeddings" in run("--model", one, *what, "--part", "1/2")
    assert len(read_embeddings(tmp_path / "e/part.1-of-2.scp").ids) > 0
    assert run("--model", one, *what, "--part", "1/2") == f"up to date: {tmp_path}/e/part.1-of-2.scp\n"
    assert "embeddings" in run("--model", two, *what, "--part", "1/2")


@pytest.mark.parametrize("part", [[], ["--part", "2/3"]])
def test_killed_in_the_middle_and_run_again(world, run, tmp_path, part):
    _, (one, two), (data, *_) = world
    what = ["--data", data, "--out", tmp_path / "e"]
    run("--model", one, *what, "--out", tmp_path / "whole")
    if part:
        run("--model", one, *what, "--part", "1/3"), run("--model", one, *what, "--part", "3/3")
    run("--model", two, *what, *part)  # files left by another model
    fatal = (
        "import os, signal; from pyspkv.data.ark import EmbeddingWriter as W; call = W.__call__\n"
        "def fatal(self, *a):\n"
        "    call(self, *a); self._ark.flush()\n"
        "    if len(self.place) == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "W.__call__ = fatal"
    )
    killed = process("--model", one, *what, *part, before=fatal)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert [p.name for p in (tmp_path / "e").glob(".*.ark.*")]  # the process was in the middle of its work
    assert not (tmp_path / "e/made_by").exists()
    if part:
        with pytest.raises(UserError, match="part 2 of 3 is missing"):
            run("--model", one, *what, "--merge", 3)
    assert "embeddings" in run("--model", one, *what, *part)
    if part:
        run("--model", one, *what, "--merge", 3)
    assert pair(tmp_path / "e") == pair(tmp_path / "whole") and leftovers(tmp_path / "e") == WHOLE


def test_killed_between_the_files_and_their_record(world, run, monkeypatch, tmp_path):
    _, (one, two), (data, *_) = world
    what = ["--data", data, "--out", tmp_path]
    run("--model", one, *what)
    with monkeypatch.context() as patch, pytest.raises(toy.Killed):

        def killed(*_):
            raise toy.Killed

        patch.setattr(embedding_folder, "_write_record", killed)
        run("--model", two, *what)
    first = pair(tmp_path)
    assert "embeddings" in run("--model", one, *what)  # does not count as the first model's
    assert pair(tmp_path) != first


def test_merging_names_what_is_wrong_and_changes_nothing(world, run, tmp_path):
    root, (one, two), (data, other, _) = world
    out = tmp_path / "e"
    what = ["--data", data, "--out", out]
    run("--model", two, *what)
    stood = pair(out)

    def refused(words, *options, n=3):
        with pytest.raises(UserError, match=words) as err:
            run("--model", one, *what, *options, "--merge", n)
        assert "hint:" in str(err.value) and pair(out) == stood
        assert run("--model", two, *what) == f"up to date: {out}\n"

    refused(r"part\.1-of-3.*part 1 of 3 is missing \(and 2 others: 2, 3\)")
    for k in (1, 3):
        run("--model", one, *what, "--part", f"{k}/3")
    refused("part 2 of 3 is missing")
    refused("part 1 of 2 is missing", n=2)
    run("--model", one, "--data", data, "--out", out, "--precision", "bf16", "--part", "2/3")
    refused("part 2 of 3 was made with another precision")
    run("--model", one, "--data", other, "--out", out, "--part", "2/3")
    refused(r"part 2 of 3 was made with another wav\.scp, audio")
    run("--model", two, "--data", other, "--out", out, "--part", "2/3")
    refused("part 2 of 3 was made with another model, wav")
    run("--model", one, *what, "--part", "2/3")
    with folder_lock(out, ".lock.2-of-3"):
        refused("another process is writing here")
    ark = out / "part.2-of-3.ark"
    whole = ark.read_bytes()
    ark.write_bytes(whole[:-1])
    refused("part 2 of 3 was made with another size")
    ark.write_bytes(whole)
    (out / "part.3-of-3.made_by").write_text("[" * 100_000)
    refused("part 3 of 3 is missing")
    run("--model", one, *what, "--part", "3/3")
    embed_module.BATCH_SECONDS = {"cpu": 1.5}  # as on a machine of another kind; `run` restores it
    (out / "part.1-of-3.scp").unlink()
    run("--model", one, *what, "--part", "1/3")
    refused("its parts were cut differently")


def test_several_models_and_directories_equal_single_calls(world, run, monkeypatch, tmp_path):
    root, models, datas = world
    models = [tmp_path / m.parent.name / "model" for m in models]
    for m in models:
        shutil.copytree(root / m.parent.name / "model", m)
    models.append(model(tmp_path / "m2/model", 2, WAVLM))
    short = DataDir.read(datas[0])
    soundfile.write(
        tmp_path / "click.wav", np.full(800, 0.1), 16000
    )  # above the minimum length of one encoder, below that of the other
    short.wav[short.utts[0]] = str(tmp_path / "click.wav")
    short.write(tmp_path / "short")
    dirs = [tmp_path / "short", *datas[1:]]
    reads: list[str] = []
    read = reader.AudioReader.read
    with monkeypatch.context() as patch:
        patch.setattr(
            reader.AudioReader,
            "read",
            lambda self, row, *a, **k: reads.append(self.data.utts[row]) or read(self, row, *a, **k),
        )
        said = run("--model", f"{models[0]}@last", *models[1:], "--data", dirs[0], "--data", *dirs[1:])
    assert len(reads) == 2 * (13 + 9 + 15)  # two kinds of encoders, not three models
    assert said.count("embeddings: ") == 9
    for m in models:
        for d in dirs:
            run("--model", m, "--data", d, "--out", tmp_path / "one")
            assert pair(tmp_path / "one") == pair(m.parent / "embed" / d.name), (m, d)
    (models[1].parent / "embed/b/embedding.scp").unlink()
    said = run("--model", *models, "--data", *dirs)
    assert said.count("up to date: ") == 8
    assert said.splitlines()[-1] == f"embeddings: {models[1].parent}/embed/b/embedding.scp"
    crops = ["--model", *models, "--data", *dirs, "--crops", 2, "--crop-seconds", 0.1]
    for k in (1, 2):
        run(*crops, "--part", f"{k}/2")
    assert run(*crops, "--merge", 2).count("embeddings: ") == 9
    run("--model", models[2], "--data", dirs[0], "--out", tmp_path / "one", *crops[-4:])
    assert pair(tmp_path / "one") == pair(tmp_path / "m2/embed/short-crops")
    assert read_embeddings(tmp_path / "one/embedding.scp").x.shape == (26, 8)


def test_outputs_that_would_collide_are_refused(world, run, monkeypatch, tmp_path):
    root, (one, two), (data, *_) = world
    shutil.copytree(data, tmp_path / "a")
    for models, dirs in (
        ([one], [data, tmp_path / "a"]),
        ([one, f"{one}@last"], [data]),
        ([one], [data, data]),
    ):
        with pytest.raises(UserError, match="would contain the embeddings of"):
            run("--model", *models, "--data", *dirs)
    for wrong in (["--out", tmp_path / "e", "--data", data, root / "b"], ["--data", data, "--part", "3/2"]):
        with pytest.raises(SystemExit):
            run("--model", one, *wrong)
    assert not (root / "m0/embed").exists()
    monkeypatch.chdir(one)
    shutil.copytree(data, root / "m1/a")
    monkeypatch.chdir(root / "m1/a")
    assert "../embed/a/part.2" in run("--model", "../model", "--data", ".", "--part", "2/2")
    monkeypatch.chdir(root / "m1/model")
    assert (
        embedding_folder.pairs(["."], [str(data)], None, embedding_folder.Options())[0].out
        == root / "m1/embed/a"
    )
    run("--model", ".", "--data", "../a", "--part", "1/2")
    assert len(list((root / "m1/embed/a").glob("part.*.scp"))) == 2


@pytest.mark.parametrize(
    "options",
    [
        ["--crops", "-1"],
        ["--crops", "1001"],
        ["--crops", str(10**12)],
        ["--crops", "9" * 5000],
        ["--crops", "1000", "--crop-seconds", "600"],
        ["--crop-seconds", "601"],
        ["--crop-seconds", "1e9", "--crops", "1000000000"],
        ["--crop-seconds", "nan"],
        ["--crop-seconds", "0"],
        ["--part", "0/2"],
        ["--part", "2"],
        ["--part", "1/1000000000000"],
        ["--part", "1/²"],
        ["--merge", "0"],
        ["--merge", "1e3"],
        ["--merge", "2", "--part", "1/2"],
    ],
)
def test_options_have_bounds(world, run, tmp_path, options, capsys):
    _, (one, _), (data, *_) = world
    with pytest.raises(SystemExit) as stop:
        run("--model", one, "--data", data, "--out", tmp_path / "e", *options)
    assert stop.value.code == 2 and options[0] in capsys.readouterr().err
    assert not (tmp_path / "e").exists()


def test_up_to_date_opens_no_audio_and_loads_no_torch(world, run, tmp_path):
    _, models, (data, *_) = world
    few = DataDir.read(data)
    names = [f"u{i:04d}" for i in range(1000)]
    wav = {}
    for i, name in enumerate(names):
        wav[name] = str(tmp_path / f"{name}.wav")
        shutil.copy(few.wav[few.utts[i % 13]], wav[name])
    DataDir(tmp_path / "many", names, names, wav).write(tmp_path / "many")
    shutil.copytree(models[0], tmp_path / "m/model")
    what = ["--model", tmp_path / "m/model", "--data", tmp_path / "many"]
    assert "1000 utterances x 1 model" in run(*what)
    for name in ("torch", "soundfile", "miniaudio"):
        (tmp_path / "stub").mkdir(exist_ok=True)
        (tmp_path / f"stub/{name}.py").write_text("raise SystemError('imported')\n")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "pyspkv.bin.extract", *map(str, what)],
        env={**os.environ, "PYTHONPATH": f"{tmp_path / 'stub'}:{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == (f"up to date: {tmp_path}/m/embed/many\n", "")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (
        after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1
    )  # CPU time, so a busy machine does not matter
    assert (
        "imported"
        in subprocess.run(  # the stub does stop an extraction that is out of date
            [sys.executable, "-m", "pyspkv.bin.extract", *map(str, what), "--precision", "bf16"],
            env={**os.environ, "PYTHONPATH": f"{tmp_path / 'stub'}:{ROOT}"},
            capture_output=True,
            text=True,
        ).stderr
    )


def test_what_the_embeddings_depend_on_makes_them_stale(world, run, tmp_path):
    _, (one, two), (data, _, segmented) = world
    for name in ("a", "c"):
        made = DataDir.read(data.parent / name)
        for reco, file in made.wav.items():
            made.wav[reco] = shutil.copy(file, tmp_path)
        made.write(tmp_path / name)
    exp = tmp_path / "exp"
    shutil.copytree(one, exp / "model")
    what = ["--model", exp / "model", "--data", tmp_path / "a", tmp_path / "c"]
    run(*what)

    def stale(*names, options=()):
        said = run(*what, *options)
        assert [n for n in "ac" if f"embeddings: {exp}/embed/{n}/" in said] == list(names), said
        assert run(*what, *options).count("up to date") == 2

    made = DataDir.read(tmp_path / "a")
    first, last = made.wav[made.utts[0]], made.wav[made.utts[-1]]
    before = pair(exp / "embed/a")
    time_of = os.stat(first)
    wave, rate = soundfile.read(first, dtype="int16")
    soundfile.write(first, wave[::-1], rate)  # a repaired download with the same length
    stale("a", "c")
    assert pair(exp / "embed/a") != before
    soundfile.write(first, wave[:-9], rate)
    os.utime(first, ns=(time_of.st_atime_ns, time_of.st_mtime_ns))  # the same time, but another length
    stale("a", "c")
    os.utime(last, ns=(1, 1))
    stale("a", "c")
    stale("a", "c", options=["--precision", "bf16"])
    segments = tmp_path / "c/segments"
    segments.write_text(segments.read_text().replace("0.01 0.15", "0.02 0.15"))
    stale("a", "c")  # back from bf16
    segments.write_text(segments.read_text().replace("0.02 0.15", "0.03 0.15"))
    stale("c")
    made.subset(made.utts[1:]).write(tmp_path / "a")
    stale("a")
    shutil.rmtree(exp / "model")
    shutil.copytree(two, exp / "model")
    stale("a", "c")
    for damage in ("embedding.scp", "embedding.ark", "made_by"):
        file = exp / "embed/a" / damage
        file.write_bytes(file.read_bytes()[:-1])
        if damage == "made_by":
            file.write_text("[" * 100_000)
        stale("a")
    shutil.copytree(exp / "embed/a", exp / "copy")  # its scp points into the original folder
    assert "embeddings" in run(*what[:2], "--data", tmp_path / "a", "--out", exp / "copy")
    assert str(exp / "copy") in (exp / "copy/embedding.scp").read_text()


def test_changed_audio_in_archives_and_commands_is_noticed(world, run, tmp_path):
    _, (one, _), (data, *_) = world
    made = DataDir.read(data)
    made = made.subset(made.utts[:3])
    raw = [Path(made.wav[utt]).read_bytes() for utt in made.utts]
    (tmp_path / "x.ark").write_bytes(b"k " + raw[0])
    shutil.copy(made.wav[made.utts[2]], tmp_path / "one:2")  # a file with exactly this name
    made.wav = dict(
        zip(made.utts, (f"{tmp_path}/x.ark:2", f"cat {made.wav[made.utts[1]]} |", f"{tmp_path}/one:2"))
    )
    made.write(tmp_path / "data")
    what = ["--model", one, "--data", tmp_path / "data", "--out", tmp_path / "e"]
    with pytest.raises(UserError, match="wav.scp:2: .*commands are not run"):
        run(*what)
    run(*what, "--allow-pipes")
    assert "up to date" in run(*what)
    for file in (tmp_path / "x.ark", tmp_path / "one:2"):
        os.utime(file, ns=(1, 1))
        with pytest.raises(UserError, match="commands are not run"):
            run(*what)
        assert (tmp_path / "e/made_by").exists()  # found before the old embeddings were removed
        assert "embeddings" in run(*what, "--allow-pipes")


def test_missing_audio_is_found_before_old_embeddings_are_removed(world, run, tmp_path):
    _, (one, _), (_, _, data) = world
    made = DataDir.read(data)
    file = shutil.copy(made.wav["r-s01-u02"], tmp_path)
    made.wav["r-s01-u02"] = file
    made.write(tmp_path / "c")
    what = ["--model", one, "--data", tmp_path / "c", "--out", tmp_path / "e"]
    run(*what)
    os.rename(file, tmp_path / "away")
    with pytest.raises(UserError, match="wav.scp:8: utterance s01-u02: .*does not exist"):
        run(*what)
    os.rename(tmp_path / "away", file)
    assert "up to date" in run(*what)


def test_the_second_of_two_is_refused_and_the_first_one_ends_well(world, run, tmp_path):
    _, (one, two), (data, *_) = world
    run("--model", one, "--data", data, "--out", tmp_path / "alone")
    wait = (
        "from pyspkv.data.ark import EmbeddingWriter as W; call = W.__call__\n"
        "def wait(self, *a):\n"
        "    call(self, *a)\n"
        "    if len(self.place) == 3: print('ready', flush=True); sys.stdin.readline()\n"
        "W.__call__ = wait"
    )
    out = tmp_path / "e"
    first = process("--model", one, "--data", data, "--out", out, before=wait, stdin=subprocess.PIPE)
    while first.stdout.readline() != "ready\n":
        assert first.poll() is None
    for options in ([], ["--merge", 2]):
        with pytest.raises(UserError, match=f"another process is writing here: .*{first.pid}"):
            run("--model", two, "--data", data, "--out", out, *options)
    with pytest.raises(UserError, match="another process is writing here"):
        EmbeddingWriter(out).__enter__()
    assert first.poll() is None
    first.communicate("\n")
    assert first.returncode == 0 and pair(out) == pair(tmp_path / "alone")
    assert "up to date" in run("--model", one, "--data", data, "--out", out)


def test_one_part_at_a_time_and_others_beside_it(world, run, tmp_path):
    _, (one, _), (data, *_) = world
    what = ["--model", one, "--data", data, "--out", tmp_path]
    with folder_lock(tmp_path, ".lock.1-of-2"):
        with pytest.raises(UserError, match="another process is writing here"):
            run(*what, "--part", "1/2")
        run(*what, "--part", "2/2")
        (tmp_path / ".part.1-of-2.ark.x").write_text("of the process that is alive")
        (tmp_path / ".part.1-of-9.ark.x").write_text("of one that was killed")
        run(*what)
        assert leftovers(tmp_path) == WHOLE | {".part.1-of-2.ark.x"}


@pytest.mark.parametrize(
    "part, limit",
    # within the ark; the lock file contains a few words of its own
    [([], 600), (["--part", "1/1"], 600), ([], 3)],
)
def test_a_full_disk_names_the_file_and_keeps_what_stood(world, run, tmp_path, part, limit):
    _, (one, two), (data, *_) = world
    out = tmp_path / "e"
    run("--model", one, "--data", data, "--out", out, *part)
    name = "part.1-of-1" if part else "embedding"
    stood = (out / f"{name}.ark").read_bytes(), (out / f"{name}.scp").read_bytes()
    done = process(
        *("--model", two, "--data", data, "--out", out, *part),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    _, said = done.communicate()
    assert done.returncode == 1 and said.startswith(f"error: {out}/") and said.count("\n") == 1
    assert f"{name}.ark: File too large" in said or limit == 3
    assert ((out / f"{name}.ark").read_bytes(), (out / f"{name}.scp").read_bytes()) == stood
    assert not list(out.glob(f".{name}.*"))


def test_nothing_is_written_through_a_link(world, run, tmp_path):
    _, (one, _), (data, *_) = world
    precious = tmp_path / "precious"
    precious.write_text("precious")
    for name in (".lock", "embedding.ark", "embedding.scp", "made_by", "part.1-of-1.ark", ".lock.1-of-1"):
        out = tmp_path / f"e{name}"
        out.mkdir()
        (out / name).symlink_to(precious)
        part = ["--part", "1/1"] if "1-of-1" in name else []
        with pytest.raises(UserError, match="is a link to .*precious"):
            run("--model", one, "--data", data, "--out", out, *part)
        assert precious.read_text() == "precious"


def test_threads_do_not_spin_unless_asked(world, tmp_path):
    _, (one, _), (data, *_) = world
    code = (
        "import os, sys; from pyspkv.bin import extract; import pyspkv.score.embedding_folder as e\n"
        "e.pairs = lambda *a: print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules) or []\n"
        "extract.main()"
    )
    for given, want in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        env = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
        done = subprocess.run(
            [sys.executable, "-c", code, "--model", one, "--data", data],
            env={**env, "PYTHONPATH": str(ROOT), **given},
            capture_output=True,
            text=True,
        )
        assert done.stdout == f"{want} False\n", done.stderr


def test_the_record_is_plain(world, run, tmp_path):
    _, (one, _), (data, *_) = world
    run("--model", one, "--data", data, "--out", tmp_path, "--crops", 2, "--crop-seconds", 0.5)
    record = json.loads((tmp_path / "made_by").read_text())
    assert record["model"] == checkpoint.digest(one) and record["crops"] == [2, 0.5]
    assert record["segments"] is None and record["precision"] == "fp32"
