"""Dialogue data: sessionize on every format and bad input, directory tools, simulation, contamination,
compactness.
"""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import toy
from hypothesis import given, settings
from hypothesis import strategies as st

from pyspkv.base import foreign
from pyspkv.base.errors import UserError
from pyspkv.data import dialogues
from pyspkv.data.ark import normalize
from pyspkv.data.datadir import DataDir
from pyspkv.data.fix import fix
from pyspkv.dialogue import rank, simulate
from pyspkv.dialogue import sessionize as module
from pyspkv.models.registry import EncoderConfig

ROOT = Path(__file__).resolve().parents[1]
ENV = {**os.environ, "SPKV_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
# device, start, seconds, source: two devices; d1 speaks at 0, 20, (device answers), 200, 230; d2 once, then twice
LOG = [
    ("u1", "d1", 0.0, 2.0, "customer"),
    ("u2", "d1", 20.0, 2.0, "customer"),
    ("a1", "d1", 24.0, 3.0, "device"),
    ("u3", "d1", 200.0, 1.0, "customer"),
    ("u4", "d1", 230.0, 0.3, "customer"),
    ("u5", "d1", 240.0, 1.0, "customer"),
    ("u6", "d2", 5.0, 1.0, "customer"),
    ("u7", "d2", 500.0, 1.0, "customer"),
    ("u8", "d2", 501.5, 1.0, "customer"),
]
WANT = {"u1": "d1-0", "u2": "d1-0", "u3": "d1-200", "u5": "d1-200", "u7": "d2-500", "u8": "d2-500"}


def write(folder: Path, kind: str, log=LOG) -> Path:
    """Write the log in one of the three formats; in csv, column names differ from the defaults."""
    if kind == "kaldi":
        log = sorted(log)
        path = folder / "kaldi"
        path.mkdir(parents=True)
        for name, column in (("utt2device", 1), ("utt2time", 2), ("utt2dur", 3), ("utt2source", 4)):
            (path / name).write_text("".join(f"{row[0]} {row[column]}\n" for row in log))
        (path / "wav.scp").write_text("".join(f"{row[0]} /x/{row[0]}.wav\n" for row in log))
        for name in ("utt2spk", "spk2utt"):
            (path / name).write_text("".join(f"{row[0]} {row[0]}\n" for row in log))
        return path
    names = ("utt", "device", "time", "duration", "source")
    rows = [{**dict(zip(names, row)), "audio": f"{row[0]}.wav"} for row in log]
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "jsonl":
        path = folder / "log.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path
    path = folder / "log.csv"
    with open(path, "w", newline="") as f:
        writer = csv.DictWriter(f, ["utt", "house", "at", "duration", "source", "audio"])
        writer.writeheader()
        for row in rows:
            writer.writerow({"house": row.pop("device"), "at": f"1970-01-01T00:{row['time'] / 60:02.0f}:00Z", **{
                k: row[k] for k in ("utt", "duration", "source", "audio")}})  # fmt: skip
    return path


def sessionize(*args, code=0) -> subprocess.CompletedProcess:
    command = [ROOT / "utils/sessionize.sh", *args]
    done = subprocess.run(list(map(str, command)), env=ENV, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.parametrize("kind", ["kaldi", "jsonl"])
def test_sessionize_makes_a_valid_directory(tmp_path, kind):
    path = write(tmp_path, kind)
    out = tmp_path / "out"
    done = sessionize(path, out, "--plot", tmp_path / "gaps.png")
    found = DataDir.read(out)
    assert found.utt_tables["utt2dialogue"] == WANT
    assert found.dialogue2device == {"d1-0": "d1", "d1-200": "d1", "d2-500": "d2"}
    assert found.spk == found.utts and float(found.utt_tables["utt2time"]["u8"]) == 501.5
    audio = "/x/u1.wav" if kind == "kaldi" else str(tmp_path / "u1.wav")
    assert found.wav["u1"] == audio and (tmp_path / "gaps.png").stat().st_size > 1000
    assert "8 turns of 2 devices; 1 dropped" in done.stdout and "6 of 8 turns in 3 dialogues" in done.stdout
    assert "the largest possible batch" in done.stdout
    counts = dict(re.findall(r"^ +(\S.* s) +([1-9]\d*) #", done.stdout, re.M))
    names = ("< 1 s", "5-10 s", "10-20 s", "20-30 s", "120-300 s", "300-600 s")  # 0.5, 9.7, 18, 29, 178, 494
    assert counts == dict.fromkeys(names, "1")


def test_csv_with_its_own_column_names_and_clock_times(tmp_path):
    log = [
        ("u1", "d1", 0, 2, "me"),
        ("u2", "d1", 60, 2, "me"),
        ("u3", "d1", 120, 2, "it"),
        ("u4", "d1", 600, 1, "me"),
    ]
    path = write(tmp_path, "csv", log)
    fields = module.Fields(device="house", time="at")
    found = module.from_log(path, "csv", fields, "it")
    assert (
        found.data.utts == ["u1", "u2", "u4"] and found.time.tolist() == [0, 60, 600] and found.dropped == 1
    )
    assert found.seconds().tolist() == [2, 2, 1] and found.device == ["d1"] * 3


def test_without_out_only_the_histogram(tmp_path):
    done = sessionize(write(tmp_path, "jsonl"))
    assert "<- --max-gap" in done.stdout and sorted(p.name for p in tmp_path.iterdir()) == ["log.jsonl"]


def test_durations_come_from_the_audio_where_the_log_has_none(tmp_path):
    data = toy.make(tmp_path, speakers=1, utts=3, seconds=0.75)
    path = tmp_path / "log.jsonl"
    rows = [{"utt": u, "audio": f"wav/{u}.wav", "device": "d", "time": k} for k, u in enumerate(data.utts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = module.from_log(path, "jsonl", module.Fields(), "device")
    np.testing.assert_allclose(found.seconds(), 0.75)


def bad(**changes):
    row = {
        "utt": "u1",
        "audio": "a.wav",
        "device": "d",
        "time": 3,
        "duration": 1,
        "source": "customer",
        **changes,
    }
    return json.dumps({k: v for k, v in row.items() if v is not None})


GOOD = bad(utt="u0")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not a JSON object"),
        ("[1]", "not a JSON object"),
        (bad(device=None), "no 'device'"),
        (bad(utt=" "), "no 'utt'"),
        (bad(utt="u 1"), "must not hold a blank"),
        (bad(utt="u\u200b1"), "'u\\u200b1': an id must not hold a blank"),
        (bad(audio="a\nb.wav"), "a path must not contain line ends"),
        (bad(utt="u0"), "u0 is given twice"),
        (bad(time="noon"), "neither seconds nor an ISO 8601 time"),
        (bad(time="2026-01-01T10:00:00"), "some times have a time zone"),
        (bad(duration=-1), "not a duration"),
        (bad(source=None), "'source' is in some lines"),
        (bad(time="20260301180211"), "is thousands of years away"),
        (bad(utt="u\ud800"), "must not hold a blank"),
        ("[" * 100_000, "not a JSON object"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, words):
    path = tmp_path / "log.jsonl"
    path.write_text(f"{GOOD}\n{line}\n")
    done = sessionize(path, tmp_path / "out", code=1)
    assert done.stderr.startswith(f"error: {path}:2: ") and words in done.stderr
    assert not (tmp_path / "out").exists()


def test_bad_tables_and_logs(tmp_path):
    path = write(tmp_path, "kaldi")
    (path / "utt2time").unlink()
    assert "utt2time: no such file" in sessionize(path, tmp_path / "out", code=1).stderr
    path = write(tmp_path / "again", "kaldi")
    before = sorted(p.name for p in path.iterdir())
    assert "OUT must not be LOG" in sessionize(path, path, code=1).stderr
    inside = path / "trials.csv"
    inside.write_text("utt,device,time,audio,duration\nu1,d,1,a.wav,2\n")
    assert "OUT must not be LOG" in sessionize(inside, path, code=1).stderr
    assert "is the same file as LOG" in sessionize(inside, "--plot", inside, code=1).stderr
    inside.unlink()
    assert sorted(p.name for p in path.iterdir()) == before
    (path / "utt2source").write_text("".join(f"{row[0]} device\n" for row in sorted(LOG)))
    assert "no turn remains" in sessionize(path, code=1).stderr
    assert "no turn remains" in sessionize(path, "--drop-source", "Device", code=1).stderr
    sources = [f"{row[0]} {'device' if i % 2 else 'customer'}\n" for i, row in enumerate(sorted(LOG))]
    (path / "utt2source").write_text("".join(sources))
    said = sessionize(path, "--drop-source", "agent", code=1).stderr
    assert "utt2source: no 'source' is 'agent'; there are customer, device" in said
    log = tmp_path / "log.csv"
    log.write_text("utt,device,time,audio,duration\nu1,d,1,a.wav,2\n", encoding="utf-8-sig")
    assert "1 turns of 1 devices" in sessionize(log).stdout
    log.write_bytes(b"utt,device,time,audio\nu\xe9,d,1,a.wav\n")
    assert f"{log}:2: not UTF-8" in sessionize(log, code=1).stderr
    log.write_text("utt,device,time,audio\nu1,d,1,a.wav,more\n")
    assert f"{log}:2: more columns" in sessionize(log, code=1).stderr
    log.write_text("utt,device,time\nu1,d,1\n")
    assert f"{log}:2: there is no 'audio'" in sessionize(log, code=1).stderr
    log.write_text("utt,device,time,audio,duration\nu1,d,1,a.wav,2\n")
    assert "no dialogue meets the options" in sessionize(log, tmp_path / "out", code=1).stderr
    log.write_text("utt,device,time,audio,source\n")
    assert "contains no turn" in sessionize(log, code=1).stderr
    log.write_text("utt,device,time,audio,source\nu1,d,1,a.wav,user\nu2,d,2,a.wav,bot\n")
    assert "no 'source' is 'device'; there are bot, user" in sessionize(log, code=1).stderr


def test_two_logs_of_one_device_keep_their_dialogues_apart(tmp_path):
    for name, start in (("jan", 0.0), ("feb", 3e6)):
        log = [(f"{name}-{u}", d, start + t, s, source) for u, d, t, s, source in LOG]
        sessionize(write(tmp_path / name, "jsonl", log), tmp_path / f"{name}-data")
    subprocess.run(
        [ROOT / "utils/combine_data.sh", tmp_path / "both", tmp_path / "jan-data", tmp_path / "feb-data"],
        env=ENV,
        check=True,
    )
    both = DataDir.read(tmp_path / "both")
    assert len(set(both.utt_tables["utt2dialogue"].values())) == len(both.dialogue2device) == 6
    rows = [
        {"utt": u, "audio": u, "device": d, "time": t, "duration": s, "source": source.upper()}
        for u, d, t, s, source in LOG
    ]
    (tmp_path / "USER.JSONL").write_text("\n\n".join(map(json.dumps, rows)))
    assert "1 dropped by source" in sessionize(tmp_path / "USER.JSONL").stdout


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 300), st.integers(1, 5)), min_size=1, max_size=40),
    st.integers(1, 40),
    st.integers(10, 120),
    st.integers(2, 6),
)
def test_sessionize_keeps_its_thresholds(rows, max_gap, max_span, max_utts):
    device, time, seconds = [f"d{r[0]}" for r in rows], *np.array([r[1:] for r in rows], float).T
    found = module.sessionize(device, time, seconds, max_gap=max_gap, max_span=max_span, max_utts=max_utts)
    parts: dict[str, list[int]] = {}
    for row, name in enumerate(found):
        if name is not None:
            parts.setdefault(name, []).append(row)
    for part in parts.values():
        part.sort(key=lambda r: time[r])
        ends = np.maximum.accumulate((time + seconds)[part])
        assert len({device[r] for r in part}) == 1 and 2 <= len(part) <= max_utts
        assert (time[part][1:] - ends[:-1] <= max_gap).all()
        assert ends[-1] - time[part[0]] <= max_span or len(part) == 1
    # neighboring turns are in different dialogues only for a reason
    order = sorted(range(len(rows)), key=lambda r: (device[r], time[r]))
    for a, b in zip(order, order[1:]):
        if device[a] == device[b] and found[a] is None and found[b] is None:
            alone = (
                time[b]
                - (time + seconds)[[r for r in order if device[r] == device[a] and time[r] <= time[a]]].max()
            )
            assert alone > max_gap or time[b] + seconds[b] - time[a] > max_span


# ---- directory tools ------------------------------------------------------------------------------------------------
@pytest.fixture
def labeled(tmp_path) -> DataDir:
    """Four speakers, three sessions of four words each."""
    utts = [f"s{s}-w{w}-r{r}" for s in range(4) for w in range(4) for r in range(3)]
    return DataDir(
        tmp_path / "in", sorted(utts), [u[:2] for u in sorted(utts)], {u: f"/x/{u}.wav" for u in utts}
    )


def session(data):
    return {u: u[-2:] for u in data.utts}


def key(data):
    return {u: u[3:] for u in data.utts}


def tool(*args, code=0):
    command = [sys.executable, "-m", *map(str, args)]
    done = subprocess.run(
        command, cwd=ROOT, env={**ENV, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_subset_split_copy_and_combine_carry_the_dialogue_files(tmp_path, labeled):
    data = simulate.contaminate(simulate.simulate(labeled, session(labeled), sizes=(2, 2)), 0.5)
    times = {u: str(k) for k, u in enumerate(data.utts)}
    data.utt_tables |= {"utt2time": times, "utt2source": dict.fromkeys(data.utts, "customer")}
    data.write(tmp_path / "all")
    all_files = {p.name for p in (tmp_path / "all").iterdir()}
    cli = "pyspkv.bin.datadir"
    (tmp_path / "list").write_text("s1\ns3\n")
    tool(cli, "subset", "--device-list", tmp_path / "list", tmp_path / "all", tmp_path / "two")
    two = DataDir.read(tmp_path / "two")
    assert (
        set(two.dialogue2device.values()) == {"s1", "s3"}
        and {p.name for p in two.path.iterdir()} == all_files
    )
    assert two.dialogue2mixed == {d: data.dialogue2mixed[d] for d in two.dialogue2device}
    tool(cli, "subset", "--dialogues", tmp_path / "all", 5, tmp_path / "some")
    some = DataDir.read(tmp_path / "some")
    assert len(some.utts) == 6 and all(
        sum(x == d for x in data.utt_tables["utt2dialogue"].values()) == 2 for d in some.dialogue2device
    )
    done = tool(cli, "validate", tmp_path / "all")
    assert "utterances in a dialogue: 2: 24" in done.stdout and "on 4 devices" in done.stdout
    (tmp_path / "list").write_text("s0\ns2\n")
    tool(cli, "subset", "--device-list", tmp_path / "list", tmp_path / "all", tmp_path / "rest")
    overlap = tool(cli, "validate", tmp_path / "some", "--disjoint", tmp_path / "all", code=1)
    assert "are in" in overlap.stderr
    tool(cli, "combine", tmp_path / "again", tmp_path / "two", tmp_path / "rest")
    again = DataDir.read(tmp_path / "again")
    assert again.tables() == DataDir.read(tmp_path / "all").tables()
    for part in (data.write_split(2) / "1", data.write_split(3, per_utt=True) / "2"):
        assert {p.name for p in part.iterdir()} == all_files and DataDir.read(part).dialogue2device
    tool(cli, "copy", "--utt-prefix", "x-", tmp_path / "all", tmp_path / "copy")
    copied = DataDir.read(tmp_path / "copy").utt_tables["utt2dialogue"]
    assert copied["x-" + data.utts[0]] == data.utt_tables["utt2dialogue"][data.utts[0]]
    fields = {**two.tables(), "utt2dialogue": dict.fromkeys(two.utts, "s1-r0-0")}
    broken = DataDir.from_tables(tmp_path / "broken", fields, {})
    (tmp_path / "broken").mkdir()
    broken._write_files(tmp_path / "broken")
    with pytest.raises(UserError, match="is not in utt2dialogue"):
        DataDir.read(tmp_path / "broken")
    fix(tmp_path / "broken")
    assert list(DataDir.read(tmp_path / "broken").dialogue2device) == ["s1-r0-0"]


def test_validate_warns_of_dialogues_without_devices(tmp_path, labeled):
    data = simulate.simulate(labeled, session(labeled), sizes=(2, 2))
    data.dialogue2device = None
    data.write(tmp_path / "all")
    done = tool("pyspkv.bin.datadir", "validate", tmp_path / "all")
    assert "warning: no dialogue2device: each dialogue counts as a device" in done.stdout


def test_subset_by_device_needs_devices(tmp_path, labeled):
    labeled.write(tmp_path / "plain")
    done = tool("pyspkv.bin.datadir", "subset", "--devices", tmp_path / "plain", 3, tmp_path / "x", code=1)
    assert "utt2dialogue: no such file" in done.stderr and "sessionize" in done.stderr


def test_disjoint_directories_pass_and_a_shared_device_does_not(labeled):
    data = simulate.simulate(labeled, session(labeled), sizes=(2, 2), households=True)
    a, b = (data.subset([u for u in data.utts if u[:2] in part]) for part in (("s0", "s1"), ("s2", "s3")))
    homes = [set(x.dialogue2device.values()) for x in (a, b)]
    if homes[0] & homes[1]:
        with pytest.raises(UserError, match="devices are in"):
            dialogues.check_disjoint(a, b)
    else:
        dialogues.check_disjoint(a, b)
    with pytest.raises(UserError, match="utterances are in"):
        dialogues.check_disjoint(a, a)


# ---- simulation -----------------------------------------------------------------------------------------------------
@given(st.integers(1, 60), st.integers(2, 6), st.integers(0, 4), st.integers(0, 9))
def test_dialogue_sizes_stay_in_range_if_possible(n, low, more, seed):
    high = low + more
    sizes = simulate.cut_sizes(n, low, high, np.random.default_rng(seed))
    assert sum(sizes) == n
    if any(k * low <= n <= k * high for k in range(1, n + 1)):
        assert all(low <= s <= high for s in sizes)


def test_dialogues_are_of_one_speaker_and_session(labeled):
    data = simulate.simulate(labeled, session(labeled), sizes=(2, 3), seed=3)
    for utt, name in data.utt_tables["utt2dialogue"].items():
        assert name.startswith(f"{utt[:2]}-{utt[-2:]}-") and data.dialogue2device[name] == utt[:2]
    homes = simulate.simulate(labeled, session(labeled), sizes=(2, 3), households=True, seed=3)
    assert homes.utt_tables["utt2dialogue"] == data.utt_tables["utt2dialogue"]
    people = {}
    for name, home in homes.dialogue2device.items():
        people.setdefault(home, set()).add(name[:2])
    assert [len(p) for p in people.values()] == [2, 2]


@pytest.mark.parametrize("households", [False, True])
def test_contamination_marks_and_mixes_what_it_says(labeled, households):
    clean = simulate.simulate(labeled, session(labeled), sizes=(4, 4), households=households)
    before = None
    for rate in (0.0, 0.25, 0.5, 1.0):
        data = simulate.contaminate(clean, rate, alike=key(labeled), seed=1)
        members = {}
        for utt, spk in zip(data.utts, data.spk):
            members.setdefault(data.utt_tables["utt2dialogue"][utt], []).append((utt, spk))
        mixed = {d for d, v in data.dialogue2mixed.items() if v == "1"}
        assert len(mixed) == round(12 * rate) and (before is None or before <= mixed)
        before = mixed
        for name, rows in members.items():
            speakers = [s for _, s in rows]
            assert len(rows) == 4 and len({u[3:].split("-in-")[0] for u, _ in rows}) == 4, "other words"
            assert (len(set(speakers)) == 2) == (name in mixed)
            assert all(u[-2:] == name.split("-")[1] or f"{name.split('-')[1]}-in-" in u for u, _ in rows)
            if name in mixed:
                own, second = name[:2], next(s for s in speakers if s != name[:2])
                assert 1 <= sum(s == second for s in speakers) <= 2
                if households:
                    home = data.dialogue2device[name]
                    assert second in {d[:2] for d, h in data.dialogue2device.items() if h == home} - {own}
        assert all(data.wav[u] == f"/x/{u.split('-in-')[0]}.wav" for u in data.utts)


def test_a_dialogue_keeps_its_size_where_the_second_speaker_has_said_little(tmp_path):
    utts = [f"a{i:02d}" for i in range(16)] + ["b00", "b01"]
    data = DataDir(tmp_path, utts, [u[0] for u in utts], {u: f"/x/{u}.wav" for u in utts})
    clean = simulate.simulate(data, dict.fromkeys(utts, "0"), sizes=(8, 8))
    mixed = simulate.contaminate(clean, 1.0, seed=0)
    count = [list(mixed.utt_tables["utt2dialogue"].values()).count(d) for d in mixed.dialogue2device]
    assert sorted(count) == [2, 8, 8]


def test_nothing_is_replaced_beside_a_foreign_file_and_an_evaluation_file_costs_no_utterance(
    tmp_path, labeled
):
    labeled.write(tmp_path / "in")
    args = ["--sizes", "2:4", tmp_path / "in", tmp_path / "out"]
    tool("pyspkv.bin.simulate_dialogues", *args)
    (tmp_path / "out/train/notes.txt").write_text("mine")
    truth = tmp_path / "out/train_labeled/dialogue2mixed"
    before = truth.read_text()
    tool("pyspkv.bin.simulate_dialogues", "--mixed-percent", "100", *args, code=1)
    assert truth.read_text() == before
    truth.write_text(before.split("\n", 1)[1])
    assert "lacks some dialogues" in " ".join(fix(tmp_path / "out/train_labeled"))
    assert DataDir.read(tmp_path / "out/train_labeled").utts == labeled.utts and not truth.exists()


def test_the_truth_stays_out_of_the_training_directory(tmp_path, labeled):
    labeled.write(tmp_path / "in")
    args = ["--mixed-percent", "50", "--sizes", "2:4", tmp_path / "in", tmp_path / "out"]
    done = tool("pyspkv.bin.simulate_dialogues", *args)
    assert "with a second speaker" in done.stdout
    train, truth = DataDir.read(tmp_path / "out/train"), DataDir.read(tmp_path / "out/train_labeled")
    assert train.utts == truth.utts == train.spk and train.dialogue2mixed is None
    assert truth.dialogue2mixed and set(truth.spk) == {"s0", "s1", "s2", "s3"}
    lines = (tmp_path / "out/truth/dialogue2mixed").read_text().splitlines()
    assert dict(line.split() for line in lines) == truth.dialogue2mixed
    again = tool(
        "pyspkv.bin.simulate_dialogues",
        "--mixed-percent",
        "50",
        tmp_path / "out/train",
        tmp_path / "x",
        code=1,
    )
    assert "true speakers" in again.stderr


# ---- compactness ----------------------------------------------------------------------------------------------------
@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(2, 8), st.integers(0, 99))
def test_compactness_is_the_mean_and_the_lowest_pair(group, most, seed):
    x = normalize(np.random.default_rng(seed).standard_normal((len(group), 5)).astype(np.float32))
    names, used, mean, low = rank.compactness([f"d{g}" for g in group], x, most)
    want = {}
    for g in sorted(set(group)):
        rows = [i for i, h in enumerate(group) if h == g][:most]
        if len(rows) > 1:
            cos = [float(x[i] @ x[j]) for k, i in enumerate(rows) for j in rows[:k]]
            want[f"d{g}"] = (len(rows), np.mean(cos), min(cos))
    assert names == list(want) and used.tolist() == [w[0] for w in want.values()]
    np.testing.assert_allclose(mean, [w[1] for w in want.values()], atol=1e-6)
    np.testing.assert_allclose(low, [w[2] for w in want.values()], atol=1e-6)


def test_a_shared_channel_is_one_filter_a_dialogue_and_hides_the_band():
    change = rank.shared_channel(["a", "a", "b"])
    wave = np.random.default_rng(0).standard_normal(16000).astype(np.float32) * 0.1
    out = [change(row, wave) for row in range(3)]
    spectrum = [np.log(np.abs(np.fft.rfft(x))[500:2500].reshape(50, -1).mean(1)) for x in out]
    assert np.corrcoef(spectrum[0], spectrum[1])[0, 1] > 0.95 > np.corrcoef(spectrum[0], spectrum[2])[0, 1]
    for x in out:
        power = np.abs(np.fft.rfft(x)) ** 2
        assert power[3700:].sum() < 1e-6 * power.sum() and x.dtype == np.float32
        assert np.mean(x**2) == pytest.approx(np.mean(wave**2), rel=1e-3)
    np.testing.assert_array_equal(out[0], change(0, wave))


def test_score_dialogues_ranks_the_mixed_ones_first(tmp_path):
    """An untrained encoder on voices of very different pitch; the truth only adds figures to the output."""
    import torch

    from pyspkv.base import checkpoint
    from pyspkv.base import config as cfg

    found = toy.make(tmp_path, speakers=4, utts=6)
    data = simulate.contaminate(simulate.simulate(found, dict.fromkeys(found.utts, "r"), sizes=(3, 3)), 0.5)
    data.write_training_set(tmp_path / "set")
    torch.manual_seed(0)
    spec = cfg.validate(EncoderConfig, {"name": "dvector", "hidden": 12, "layers": 1, "embed_dim": 8})
    checkpoint.save_import(tmp_path / "model", cfg.build(spec), spec, {})
    args = ["pyspkv.bin.score_dialogues", "--model", tmp_path / "model", "--data", tmp_path / "set/train"]
    done = tool(*args, "--out", tmp_path / "plain")
    assert "AUC" not in done.stdout
    rows = [line.split() for line in (tmp_path / "plain").read_text().splitlines()]
    mean, weight = ([float(r[k]) for r in rows] for k in (2, 4))
    assert len(rows) == 8 and mean == sorted(mean) and weight == sorted(weight)
    assert np.mean(weight) == pytest.approx(1, abs=1e-3) and all(
        float(r[3]) <= float(r[2]) + 1e-4 for r in rows
    )
    truth = tmp_path / "set/truth/dialogue2mixed"
    done = tool(*args, "--out", tmp_path / "again", "--mixed", truth)
    assert (tmp_path / "again").read_text() == (tmp_path / "plain").read_text()
    mixed = [data.dialogue2mixed[r[0]] == "1" for r in rows]
    pairs = [(a < b) + (a == b) / 2 for a, m in zip(mean, mixed) if m for b, n in zip(mean, mixed) if not n]
    assert f"AUC of the mean cosine {np.mean(pairs):.4f}" in done.stdout
    figures = foreign.read_json(tmp_path / "again.json")
    tool(*args, "--out", tmp_path / "heard", "--mixed", truth, "--shared-channel")
    heard = foreign.read_json(tmp_path / "heard.json")
    assert figures["auc"] == pytest.approx(np.mean(pairs), abs=0.05)
    assert figures["auc_channel"] == heard["auc"] != figures["auc"] and "auc_channel" not in heard
    (tmp_path / "clean").write_text("".join(f"{name} 0\n" for name in data.dialogue2mixed))
    tool(*args, "--out", tmp_path / "none", "--mixed", tmp_path / "clean")
    assert foreign.read_json(tmp_path / "none.json") == {"mixed": 0}, "NaN is no JSON, and report reads it"
    (tmp_path / "short").write_text(f"{sorted(data.dialogue2mixed)[0]} 1\n")
    done = tool(*args, "--out", tmp_path / "x", "--mixed", tmp_path / "short", code=1)
    assert "has no line for 7 dialogues" in done.stderr


def test_only_the_first_utterances_of_a_long_dialogue_are_embedded(tmp_path, monkeypatch):
    import torch

    from pyspkv.objectives.dialogue import DialogueConfig
    from pyspkv.score import extract

    data = toy.make(tmp_path, speakers=2, utts=6)
    data.utt_tables["utt2dialogue"] = dict(zip(data.utts, data.spk))
    seen = []

    def stub(encoder, part, *rest):
        seen.extend(part.utts)
        return extract.Embeddings(
            part.utts, np.eye(len(part.utts), 4, dtype=np.float32), np.arange(len(part.utts) + 1)
        )

    monkeypatch.setattr(extract, "embed", stub)
    rows, _ = rank.rank_dialogues(None, data, torch.device("cpu"), reject=DialogueConfig().reject, most=2)
    assert seen == ["s00-u00", "s00-u01", "s01-u00", "s01-u01"] and [r[1] for r in rows] == [2, 2]
