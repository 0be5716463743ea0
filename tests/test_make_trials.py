"""Trials by rules, lists in other forms, blind lists, disjoint speakers, and the summary of a directory."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pyspkv.base.errors import UserError
from pyspkv.bin.datadir import main
from pyspkv.data.ark import EmbeddingWriter
from pyspkv.data.datadir import DataDir
from pyspkv.data.summary import quiet_share
from pyspkv.data.trials import read_pairs, read_trials

SPEAKERS = {"a": 5, "b": 4, "c": 3, "d": 1}


def directory(path: Path, **more) -> DataDir:
    """Speakers with 5, 4, 3 and 1 utterances, two per session; a and c are female."""
    spk = {f"{s}{k}": s for s, n in SPEAKERS.items() for k in range(n)}
    data = DataDir(path, list(spk), list(spk.values()), {u: f"/x/{s}/v/{u}.wav" for u, s in spk.items()})
    data.utt_tables["utt2session"] = {u: f"{u[0]}s{int(u[1]) // 2}" for u in spk}
    data.spk_tables["spk2gender"] = {s: "f" if s in "ac" else "m" for s in SPEAKERS}
    data.write(path)
    return data


def dd(*words) -> None:
    main([str(w) for w in words])


def fails(*words) -> str:
    with pytest.raises(UserError) as err:
        dd(*words)
    return str(err.value)


def trials(path) -> list[tuple[str, str, bool]]:
    return list(zip(*read_trials(path)))


def test_all_pairs(tmp_path):
    directory(tmp_path / "d")
    dd("make-trials", tmp_path / "d")
    made = trials(tmp_path / "d/trials")
    assert len(made) == 13 * 12 // 2 and sum(t for *_, t in made) == 10 + 6 + 3
    assert all((e[0] == t[0]) == target for e, t, target in made)
    DataDir.read(tmp_path / "d")


def test_counts_per_speaker(tmp_path):
    directory(tmp_path / "d")
    dd("make-trials", tmp_path / "d", "--targets-per-speaker", "3", "--nontargets-per-speaker", "5")
    made = trials(tmp_path / "d/trials")
    of = Counter(e[0] for e, _, target in made if target)
    assert of == {"a": 3, "b": 3, "c": 3}
    non = [(e, t) for e, t, target in made if not target]
    assert len(non) <= 20 and len({frozenset(p) for p in non}) == len(non), "an unordered pair once"
    assert all(n <= 5 for n in Counter(e[0] for e, _ in non).values())


def test_sessions_and_gender(tmp_path):
    data = directory(tmp_path / "d")
    session = data.utt_tables["utt2session"]
    for more in ([], ["--targets-per-speaker", "99"]):
        out = tmp_path / f"t{len(more)}/trials"
        dd("make-trials", tmp_path / "d", "--cross-session", "--same-gender", "--out", out, *more)
        made = trials(out)
        assert all(session[e] != session[t] for e, t, target in made if target)
        assert sum(target for *_, target in made) == (10 - 2) + (6 - 2) + (3 - 1)
        assert {frozenset((e[0], t[0])) for e, t, target in made if not target} == {
            frozenset("ac"),
            frozenset("bd"),
        }
        assert sum(not target for *_, target in made) == 5 * 3 + 4 * 1
    table = tmp_path / "utt2gender"
    table.write_text("".join(f"{u} {'m' if u[0] in 'ab' else 'f'}\n" for u in data.utts))
    dd("make-trials", tmp_path / "d", "--same-gender", table, "--out", tmp_path / "u")
    assert {frozenset((e[0], t[0])) for e, t, x in trials(tmp_path / "u") if not x} == {
        frozenset("ab"),
        frozenset("cd"),
    }
    table.write_text("a0 m\na1 f\n")
    assert "with m and with f" in fails(
        "make-trials", tmp_path / "d", "--same-gender", table, "--out", tmp_path / "v"
    )
    (tmp_path / "d/utt2session").unlink()
    assert "no such file" in fails("make-trials", tmp_path / "d", "--cross-session")


@pytest.mark.parametrize("seed", range(5))
def test_enrolment_models(tmp_path, seed):
    data = directory(tmp_path / "d")
    session = data.utt_tables["utt2session"]
    dd("make-trials", tmp_path / "d", "--enrol-utts", "2", "--cross-session", "--seed", seed)
    found = DataDir.read(tmp_path / "d")
    models = {m: us.split() for m, us in found.enrol_map.items()}
    assert set(models) == {"a", "b", "c"} and all(len(us) == 2 for us in models.values()), (
        "d has one utterance"
    )
    assert all({u[0] for u in us} == {m} for m, us in models.items())
    assert all({u[1] for u in us} not in ({"1", "3"}, {"0", "2"}) for us in models.values()), "whole sessions"
    for model, test, target in trials(tmp_path / "d/trials"):
        assert test not in models[model] and (model == test[0]) == target
        assert not target or session[test] not in {session[u] for u in models[model]}
        assert all(test not in us for us in models.values()), "what enrols anybody tests nobody"
    assert {t for _, t, _ in trials(tmp_path / "d/trials")} >= {"d0"}


def test_the_seed_decides_and_existing_trials_are_kept(tmp_path):
    directory(tmp_path / "d")
    words = ["make-trials", tmp_path / "d", "--enrol-utts", 1, "--nontargets-per-speaker", 2]
    dd(*words)
    before = (tmp_path / "d/trials").read_bytes()
    dd(*words)
    assert (
        "exists and has other lines" in fails(*words, "--seed", 1)
        and (tmp_path / "d/trials").read_bytes() == before
    )
    dd(*words, "--seed", 1, "--out", tmp_path / "e/trials")
    assert (tmp_path / "e/trials").read_bytes() != before


def test_a_directory_without_speakers_has_no_trials(tmp_path):
    data = directory(tmp_path / "d")
    data.with_speakers(data.utts).write(tmp_path / "d")
    assert "has no speakers" in fails("make-trials", tmp_path / "d")
    data.with_speakers(["x"] * len(data.utts)).write(tmp_path / "d")
    assert "one speaker" in fails("make-trials", tmp_path / "d", "--enrol-utts", 1)


# -- lists of others


def test_voxceleb_lists(tmp_path):
    directory(tmp_path / "d")
    (tmp_path / "l").write_text("1 a/v/a0.wav a/v/a1.wav\r\n0 v/a0.wav b0\r\n")
    dd("make-trials", tmp_path / "d", "--from-list", tmp_path / "l")
    assert trials(tmp_path / "d/trials") == [("a0", "a1", True), ("a0", "b0", False)]
    for text, part in (("1 a/v/a0.wav q.wav\n", "l:1: 'q.wav' is not an utterance"), ("\n", "contains no trial"),
                       ("1 a0 a1\n2 a0 a1\n", "the line must be"), ("a0 a1\na0\n", "l:1: the line must")):  # fmt: skip
        (tmp_path / "l").write_text(text)
        assert part in fails("make-trials", tmp_path / "d", "--from-list", tmp_path / "l")
    data = DataDir.read(tmp_path / "d")
    data.wav = {u: f"/x/{u[0]}/{u[1]}.wav" for u in data.utts}
    data.write(tmp_path / "d")
    (tmp_path / "l").write_text("1 0.wav 1.wav\n")
    assert "nor the path of exactly one" in fails(
        "make-trials", tmp_path / "d", "--from-list", tmp_path / "l"
    )


def test_blind_trials_are_scored_and_not_measured(tmp_path):
    data = directory(tmp_path / "d")
    (tmp_path / "l").write_text("a/v/a0.wav b/v/b0.wav\na0 a1\n")
    assert "--out FILE" in fails("make-trials", tmp_path / "d", "--from-list", tmp_path / "l")
    dd("make-trials", tmp_path / "d", "--from-list", tmp_path / "l", "--out", tmp_path / "blind")
    assert read_pairs(tmp_path / "blind") == (["a0", "a0"], ["b0", "a1"])
    x = np.random.default_rng(0).standard_normal((len(data.utts), 4)).astype(np.float32)
    with EmbeddingWriter(tmp_path / "embed", "embedding") as writer:
        for utt, row in zip(data.utts, x):
            writer(utt, row)
    scp = str(tmp_path / "embed/embedding.scp")

    def run(name: str, *words) -> subprocess.CompletedProcess:
        call = [
            sys.executable,
            "-m",
            f"pyspkv.bin.{name}",
            "--trials",
            str(tmp_path / "blind"),
            *map(str, words),
        ]
        return subprocess.run(call, capture_output=True, text=True)

    done = run("score", "--enrol", scp, "--test", scp, "--out", tmp_path / "s")
    assert done.returncode == 0, done.stderr
    found = {
        tuple(line.split()[:2]): float(line.split()[2]) for line in (tmp_path / "s").read_text().splitlines()
    }
    unit = dict(zip(data.utts, x / np.linalg.norm(x, axis=1, keepdims=True)))
    assert found == {pair: pytest.approx(float(unit[pair[0]] @ unit[pair[1]]), abs=1e-5) for pair in found}
    done = run("metrics", "--scores", tmp_path / "s")
    assert done.returncode == 1 and "can be scored, but there is no EER" in done.stderr


# -- speakers parted


def test_split_speakers(tmp_path, capsys):
    directory(tmp_path / "d")
    dd(
        "split-speakers",
        tmp_path / "d",
        tmp_path / "test",
        tmp_path / "train",
        "--num-speakers",
        2,
        "--seed",
        3,
    )
    parts = [DataDir.read(tmp_path / name, need_wav=False) for name in ("test", "train")]
    assert [len(set(p.spk)) for p in parts] == [2, 2] and not set(parts[0].spk) & set(parts[1].spk)
    assert sorted(parts[0].utts + parts[1].utts) == DataDir.read(tmp_path / "d").utts
    assert f"{tmp_path}/test: {len(parts[0].utts)} utterances, 2 speakers" in capsys.readouterr().out
    dd(
        "split-speakers",
        tmp_path / "d",
        tmp_path / "one",
        tmp_path / "train",
        "--fraction",
        0.25,
        "--seed",
        3,
    )
    assert set(DataDir.read(tmp_path / "one").spk) < set(parts[0].spk), "fewer are a part of more"
    for words in (["--num-speakers", 4], ["--num-speakers", 0], ["--fraction", 1]):
        assert "cannot draw" in fails(
            "split-speakers", tmp_path / "d", tmp_path / "x", tmp_path / "y", *words
        )
    assert "three folders" in fails(
        "split-speakers", tmp_path / "d", tmp_path / "x", tmp_path / "x", "--num-speakers", 1
    )


# -- the summary


def summary(path, capsys, *words) -> dict:
    capsys.readouterr()
    dd("summary", path, "--json", *words)
    return json.loads(capsys.readouterr().out)


def test_summary_by_hand(tmp_path, capsys):
    rng = np.random.default_rng(0)
    waves = {f"a{k}": 0.1 * rng.standard_normal(16000 * (k + 1)) for k in range(3)}
    waves |= {"b0": waves["a0"], "b1": np.zeros(16000), "c0": 0.1 * rng.standard_normal(8000)}
    waves["a1"][:320] = 1.0  # 1 % of 32000 samples
    waves["a2"][16000:] *= 1e-4  # two of three seconds are quiet
    for utt, wave in waves.items():
        soundfile.write(tmp_path / f"{utt}.wav", wave, 8000 if utt == "c0" else 16000, subtype="FLOAT")
    (tmp_path / "d1.wav").write_bytes(b"x")
    utts = sorted([*waves, "d1"])
    DataDir(tmp_path / "d", utts, [u[0] for u in utts], {u: str(tmp_path / f"{u}.wav") for u in utts}).write(
        tmp_path / "d"
    )
    facts = summary(tmp_path / "d", capsys)
    assert facts["utterances"] == 7 and facts["speakers"] == 4 and facts["without_speaker"] == 0
    assert facts["hours"] * 3600 == pytest.approx(1 + 2 + 3 + 1 + 1)
    assert facts["sample_rates"] == {"8000": 1, "16000": 4}
    assert (
        facts["clipped"] == ["a1"] and set(facts["silent"]) == {"b1"} and set(facts["unreadable"]) == {"d1"}
    )
    assert facts["duplicates"] == [["a0", "b0"]] and facts["speakers_with_one_utterance"] == 2
    counts = {b["from"]: b["utterances"] for b in facts["histogram"] if b["utterances"]}
    assert counts == {1.0: 3, 2.0: 1, 3.0: 1}
    assert facts["quiet_share"] == pytest.approx((2 / 3) / 5, abs=0.01)
    text = "\n".join(facts["warnings"])
    for part in ("3 of 5 utterances are shorter than the crops of 1.5 s", "1 at 8000 Hz", "no signal (b1)",
                 "cannot be read (d1)", "1 of 7 utterances have more than 0.1% clipped", "a0 = b0",
                 "1 of 1 groups have several speakers"):  # fmt: skip
        assert part in text
    assert "shorter than the crops" not in "\n".join(
        summary(tmp_path / "d", capsys, "--crop-seconds", 1)["warnings"]
    )
    dd("summary", tmp_path / "d")
    shown = capsys.readouterr().out
    assert "      1 -     2 s         3  " + "#" * 40 in shown and shown.count("warning: ") == len(
        facts["warnings"]
    )


def test_a_good_directory_gets_no_warning(tmp_path, capsys):
    rng = np.random.default_rng(0)
    utts = [f"{s}{k}" for s in "ab" for k in range(3)]
    for utt in utts:
        soundfile.write(tmp_path / f"{utt}.wav", 0.1 * rng.standard_normal(32000), 16000)
    DataDir(tmp_path / "d", utts, [u[0] for u in utts], {u: str(tmp_path / f"{u}.wav") for u in utts}).write(
        tmp_path / "d"
    )
    assert summary(tmp_path / "d", capsys, "--nj", 2)["warnings"] == []


def test_quiet_share():
    loud, quiet = np.full(3200, 0.5, np.float32), np.full(9600, 0.5 * 10 ** (-41 / 20), np.float32)
    assert quiet_share(np.concatenate([loud, quiet])) == 0.75
    assert quiet_share(np.concatenate([loud, quiet * 10 ** (2 / 20)])) == 0
    assert quiet_share(loud[:100]) == 0 and quiet_share(np.zeros(640, np.float32)) == 1
