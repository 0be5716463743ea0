"""An experiment folder as run.sh leaves it gives results.json, report.md, plots, RESULTS.md."""

import json
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import normalized_mutual_info_score

from pyspkv.base.errors import UserError
from pyspkv.bin import metrics as metrics_cli
from pyspkv.bin import report as report_cli
from pyspkv.experiments import results as recorded
from pyspkv.report import experiment
from pyspkv.score import metrics, scoring

SHIFT = {"pretrain": 1.0, "round1": 1.6, "round2": 2.2, "finetune": 2.4, "supervised": 3.0}


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(folder with exp/ and truth, expected metrics of each phase); scores through the real bin.metrics."""
    root = tmp_path_factory.mktemp("whole")
    rng = np.random.default_rng(0)
    spk = np.repeat(np.arange(8), 4)
    i, j = np.triu_indices(32, 1)
    enrol, test = [f"u{a:02d}" for a in i], [f"u{b:02d}" for b in j]
    target = spk[i] == spk[j]
    write_lines(
        root / "trials", [f"{e} {t} {'target' if y else 'nontarget'}" for e, t, y in zip(enrol, test, target)]
    )
    write_lines(root / "utt2spk", [f"u{k:02d} s{s}" for k, s in enumerate(spk)])
    want = {}
    patch = pytest.MonkeyPatch()
    for phase, shift in SHIFT.items():
        scores = (rng.standard_normal(len(i)) + shift * target).astype(np.float32)
        folder = root / "exp" / phase
        want[phase] = metrics.summary(scores, target)
        scoring.write_scores(folder / "score/test.scores", enrol, test, scores)
        argv = ["metrics", "--scores", str(folder / "score/test.scores"), "--trials", str(root / "trials")]
        patch.setattr("sys.argv", [*argv, "--utt2spk", str(root / "utt2spk"), "--json"])
        with pytest.MonkeyPatch.context() as inner:
            printed = []
            inner.setattr("builtins.print", lambda *a, to=printed: to.append(a[0]))
            metrics_cli.main()
        (folder / "score/test.json").write_text(printed[0])
        epochs = [
            {
                "kind": "epoch",
                "epoch": e,
                "step": 9 * e,
                "loss": 3 / e,
                "audio_seconds": 3600.0 * e,
                "seconds": 60,
            }
            for e in (1, 2, 3)
        ]
        write_lines(
            folder / "model/train.jsonl", [json.dumps(r) for r in epochs] + ['{"kind": "step", "loss": 1}']
        )
    patch.undo()
    truth = {f"t{k:03d}": f"S{k % 10}" for k in range(120)}
    write_lines(root / "truth", [f"{u} {s}" for u, s in sorted(truth.items())])
    for r, wrong in ((1, 40), (2, 10)):
        found = {
            u: (f"c{int(s[1:])}" if k >= wrong else f"c{k % 12}") for k, (u, s) in enumerate(truth.items())
        }
        write_lines(root / f"exp/round{r}/data/utt2spk", [f"{u} {c}" for u, c in sorted(found.items())])
        stability = {"ami": 0.75, "kept": 0.8} if r == 2 else {}
        (root / f"exp/round{r}/report.json").write_text(
            json.dumps({"num_clusters": 12, "stability": stability})
        )
        want[f"nmi{r}"] = normalized_mutual_info_score(list(truth.values()), [found[u] for u in truth])
        want[f"clusters{r}"] = len(set(found.values()))
    return root, want


@pytest.fixture
def exp(whole, tmp_path):
    shutil.copytree(whole[0] / "exp", tmp_path / "exp")
    return tmp_path / "exp"


def report(monkeypatch, capsys, *argv):
    monkeypatch.setattr("sys.argv", ["report", *map(str, argv)])
    report_cli.main()
    return capsys.readouterr()


def test_everything_with_a_truth_file(whole, exp, monkeypatch, capsys):
    root, want = whole
    said = report(monkeypatch, capsys, "--exp", exp, "--truth", root / "truth", "--title", "Toy").out
    assert said.splitlines()[-1] == f"report: {exp}/report.md, results: {exp}/results.json"
    out = json.loads((exp / "results.json").read_text())
    for key, phase in (("pretrain", "pretrain"), ("final", "finetune"), ("supervised", "supervised")):
        for name in ("eer", "min_dcf_0.01", "min_dcf_0.05"):
            assert out[key][name] == pytest.approx(want[phase][name])
    assert [r["round"] for r in out["rounds"]] == [1, 2]
    for r in out["rounds"]:
        assert r["eer"] == pytest.approx(want[f"round{r['round']}"]["eer"])
        assert r["nmi"] == pytest.approx(want[f"nmi{r['round']}"])
        assert r["num_clusters"] == want[f"clusters{r['round']}"]
    text = (exp / "report.md").read_text()
    assert text.startswith("# Toy\n")
    assert f"| finetune | test | {want['finetune']['eer']:.2f} |" in text
    assert f"| 2 | {want['clusters2']} |" in text
    assert f"{want['nmi2']:.3f}" in text
    assert "| round1 | 3 | 3.00, 1.50, 1.00 | - | 3.0 |" in text
    drawn = {p.name for p in (exp / "plots").iterdir()}
    assert drawn == {f"{n}.png" for n in ("eer", "det", "scores", "cluster_sizes", "clusters", "labels")} | {
        f"train_{phase}.png" for phase in SHIFT
    }
    for path in (exp / "plots").iterdir():
        with Image.open(path) as image:
            assert len(image.convert("RGB").getcolors(1 << 20)) > 20
        assert path.name in text


def test_curves_are_of_the_folder_where_the_run_lies_now(exp, monkeypatch, capsys):
    """The run was moved, and another run is in the old place."""
    moved = exp.rename(exp.with_name("moved"))
    report(monkeypatch, capsys, "--exp", moved)
    before = (moved / "plots/det.png").read_bytes()
    for m in moved.glob("*/score/test.json"):
        stored = json.loads(m.read_text())
        m.write_text(json.dumps({**stored, "scores": str(moved / "pretrain/score/test.scores")}))
    report(monkeypatch, capsys, "--exp", moved)
    assert (moved / "plots/det.png").read_bytes() == before


def test_no_truth_no_diagnostics_and_phases_that_do_not_apply(exp, monkeypatch, capsys):
    for name in ("finetune", "supervised", "pretrain"):
        shutil.rmtree(exp / name)
    report(monkeypatch, capsys, "--exp", exp)
    out = json.loads((exp / "results.json").read_text())
    assert out["pretrain"] is None
    assert out["supervised"] is None
    assert [r["nmi"] for r in out["rounds"]] == [None, None]
    assert out["final"]["eer"] == out["rounds"][-1]["eer"]
    text = (exp / "report.md").read_text()
    assert "truth" not in text
    for r in ("round1", "round2"):
        shutil.rmtree(exp / r / "data")
        shutil.rmtree(exp / r / "model")
    shutil.rmtree(exp / "round1")
    (exp / "round2").rename(exp / "pretrain")
    report(monkeypatch, capsys, "--exp", exp)
    out = json.loads((exp / "results.json").read_text())
    assert (out["rounds"], out["final"]) == ([], None)


def test_round_ten_comes_after_round_two_and_an_unscored_phase_is_named(exp, monkeypatch, capsys):
    monkeypatch.setattr(experiment, "draw", lambda *a: [])  # plots are tested above
    shutil.rmtree(exp / "finetune")
    shutil.copytree(exp / "round1", exp / "round10")
    (exp / "round1/score/test.json").unlink()
    said = report(monkeypatch, capsys, "--exp", exp)
    assert "round1 has no score/test.json" in said.err
    out = json.loads((exp / "results.json").read_text())
    assert [r["round"] for r in out["rounds"]] == [2, 10]
    assert out["final"]["eer"] == out["rounds"][1]["eer"]


def test_bad_input_is_a_short_error_and_nothing_is_written(whole, exp, monkeypatch, capsys):
    root, _ = whole

    def fails(says, *argv):
        with pytest.raises(UserError) as err:
            report(monkeypatch, capsys, "--exp", exp, *argv)
        assert says in str(err.value)
        assert len(str(err.value).splitlines()) <= 2
        assert not (exp / "results.json").exists()

    fails("no phase has score/vox.json; there are scores of: test", "--name", "vox")
    write_lines(root / "short", (root / "truth").read_text().splitlines()[:-3])
    fails("has no line for 3 of 120 utterances", "--truth", root / "short")
    (exp / "round1/score/test.json").write_text('{"eer": 1')
    fails("is not JSON")
    (exp / "round1/score/test.json").write_text('{"eer": 1}')
    fails("has no min_dcf_0.01")
    shutil.rmtree(exp)
    exp.mkdir()
    fails("there are no scores at all")


def test_lists_side_by_side_begin_with_the_headline(exp, monkeypatch, capsys):
    for phase in SHIFT:
        found = json.loads((exp / phase / "score/test.json").read_text())
        for x, more in (("E", 1.25), ("O", 0), ("H", 2.5)):
            changed = found | {"eer": found["eer"] + more}
            (exp / phase / f"score/test_{x}.json").write_text(json.dumps(changed))
        (exp / phase / "score/test_E-asnorm.json").write_text(json.dumps(found | {"eer": 0.125}))
    report(monkeypatch, capsys, "--exp", exp)
    out, page = json.loads((exp / "results.json").read_text()), (exp / "report.md").read_text()
    assert list(out["lists"]) == ["O", "E", "H"]
    plain = out["rounds"][1]["eer"]
    assert out["lists"]["H"]["round2"]["eer"] == plain + 2.5 and out["lists"]["O"]["round2"]["eer"] == plain
    assert (
        out["lists"]["E"]["round2"]["eer_asnorm"] == 0.125 and "eer_asnorm" not in out["lists"]["O"]["round2"]
    )
    section = re.search(r"(?ms)^## Lists side by side\n\n(.*?)\n\n", page)[1].splitlines()
    assert section[0].startswith(
        "| system | O: EER % | O: 95 % interval | O: minDCF 0.01 | O: EER % AS-norm | E: EER"
    )
    [row] = [line.split(" | ") for line in section if line.startswith("| round2 ")]
    assert (row[1], row[5], row[9]) == tuple(f"{plain + d:.2f}" for d in (0, 1.25, 2.5)) and row[8] == "0.12"


def test_labels_that_are_speakers_names_have_their_share_of_right_ones(exp, monkeypatch, capsys):
    """GLL's are; clusters have names of their own, and no such share."""
    monkeypatch.setattr(experiment, "draw", lambda *a: [])
    labels = dict(line.split() for line in (exp / "round2/data/utt2spk").read_text().splitlines())
    truth = {u: f"s{k // 3}" for k, u in enumerate(labels)}
    write_lines(exp.parent / "true", [f"{u} {s}" for u, s in truth.items()])
    write_lines(
        exp / "round2/data/utt2spk", [f"{u} {'s0' if k < 5 else truth[u]}" for k, u in enumerate(truth)]
    )
    report(monkeypatch, capsys, "--exp", exp, "--truth", exp.parent / "true")
    first, second = json.loads((exp / "results.json").read_text())["rounds"]
    assert "label_accuracy" not in first
    assert second["label_accuracy"] == pytest.approx(1 - 2 / len(truth))  # the fourth and the fifth are s1's


def test_results_table_over_seeds(whole, exp, monkeypatch, capsys):
    root, want = whole
    monkeypatch.setattr(experiment, "draw", lambda *a: [])
    report(monkeypatch, capsys, "--exp", exp, "--truth", root / "truth")
    file = exp.parent / "RESULTS.jsonl"

    def append(seed, table="Toy corpus"):
        same = {"table": table, "seed": seed, "command": "run.sh", "machine": "m"}
        rows = [same | {"row": n, **recorded.row_of(exp, n)} for n in recorded.systems(exp) if n != "final"]
        recorded.add_rows(file, rows)
        recorded.write_tables(file, {})

    append(0)
    first = json.loads(file.read_text().splitlines()[0])
    assert {"min_dcf_0.01", "eer_ci_low", "eer_ci_over", "machine"} <= set(first) and first[
        "command"
    ] == "run.sh"
    assert (first["row"], first["audio_seconds"], first["wall_seconds"]) == ("pretrain", 10800.0, 180)
    out = json.loads((exp / "results.json").read_text())
    out["final"]["eer"] += 2.0
    (exp / "results.json").write_text(json.dumps(out))
    append(1)
    append(1)  # the same seed again replaces its rows in the table
    text = (exp.parent / "RESULTS.md").read_text()
    line = next(x for x in text.splitlines() if x.startswith("| finetune"))
    assert line.startswith(f"| finetune | 0, 1 | {want['finetune']['eer'] + 1:.2f} ± 1.41 |")
    assert "| 3.0 ± 0.0 | 3.0 ± 0.0 |" in line
    assert "`run.sh`" in text
    assert text.count("| pretrain") == 1
    before = file.read_text()
    file.write_text(before + '{"table": 1}\n')
    with pytest.raises(UserError, match=r"RESULTS\.jsonl:11: a line must be a JSON object"):
        append(2)
    assert file.read_text() == before + '{"table": 1}\n'


def test_a_row_has_the_best_dev_eer_and_the_cost_of_the_phases_that_count(tmp_path):
    """GLL's iterations have several trainings each. A link to one of them is not counted twice."""
    for phase, models in (("round1", "TV"), ("round2", "TL")):
        for k, model in enumerate(models):
            epochs = [
                {"kind": "epoch", "dev_eer": e, "seconds": 30 + k, "audio_seconds": 60 * n}
                for n, e in ((1, 9.0), (2, 7.0), (3, 8.0))
            ]
            write_lines(tmp_path / phase / model / "train.jsonl", map(json.dumps, epochs))
        (tmp_path / phase / "model").symlink_to(models[-1])
    one = {"eer": 10.0, "min_dcf_0.01": 0.5, "num_clusters": 4, "label_accuracy": 0.75}
    rounds = [{"round": r, **one} for r in (1, 2)]
    write_lines(tmp_path / "results.json", [json.dumps({"rounds": rounds, "final": one, "trials": "test"})])
    found = recorded.row_of(tmp_path, "round2")
    assert (found["dev_eer"], found["label_accuracy"], found["num_clusters"]) == (7.0, 0.75, 4)
    assert (found["audio_seconds"], found["wall_seconds"]) == (360, 90 + 93) and "round" not in found
    found = recorded.row_of(tmp_path, "final", ["round1", "round2"])
    assert (found["audio_seconds"], found["wall_seconds"], found["dev_eer"]) == (720, 2 * (90 + 93), 7.0)
    write_lines(
        tmp_path / "round1/L/train.jsonl",
        [json.dumps({"kind": "epoch", "dev_eer": 6.5, "seconds": 1, "audio_seconds": 2})],
    )
    (tmp_path / "round1/model").unlink()
    (tmp_path / "round1/model").symlink_to("L")
    found = recorded.row_of(
        tmp_path, ["round1", "round2"]
    )  # the figures of the one with the lowest dev EER, and the cost of both
    assert (found["dev_eer"], found["wall_seconds"]) == (6.5, 2 * (90 + 93) + 1)
    dev = {"eer": 20.0, "min_dcf_0.01": 0.9, "min_dcf_0.05": 0.8}
    write_lines(tmp_path / "round2/score/dev.json", [json.dumps(dev)])
    found = recorded.row_of(tmp_path, "round2", trials="dev")
    assert (found["eer"], found["min_dcf_0.01"], found["label_accuracy"]) == (20.0, 0.9, 0.75)
    with pytest.raises(UserError, match="has no system 'round3'\n.*it has round1, round2, final"):
        recorded.row_of(tmp_path, "round3")
    for bad in ('{"rounds": 5}', '{"rounds": [{}]}', '{"pretrain": 3}', '{"others": [1]}', "[]"):
        (tmp_path / "results.json").write_text(bad)
        with pytest.raises(UserError, match=r"results\.json"):
            recorded.systems(tmp_path)


def test_a_row_names_the_weights_of_its_trunk(tmp_path):
    """Of the trunk itself, of a model that started from it, of one that started from that; not of another encoder."""
    models = {
        name: tmp_path / "exp" / name / "model"
        for name in ("trunk", "round1", "finetune", "supervised", "pretrain")
    }
    starts = {
        "round1": f"{models['trunk']}",
        "finetune": f"{models['round1']}@best",
        "supervised": f"{models['trunk']}/ckpt-0",
        "pretrain": "",
    }
    for name, folder in models.items():
        record = {"weights_sha256": {"a": "01ab", "b": "23cd"}} if name == "trunk" else {"git": "abc"}
        encoder = {"pretrained": starts[name]} if name in starts else {"name": "trunk"}
        write_lines(folder / "run.json", [json.dumps(record)])
        write_lines(folder / "config.yaml", [json.dumps({"encoder": encoder})])
    assert [recorded.trunk_digest(models[n]) for n in models] == ["01ab 23cd"] * 4 + [None]
    one = {"eer": 10.0, "min_dcf_0.01": 0.5}
    exp, row = tmp_path / "exp", recorded.Row("T")
    whole = {"pretrain": one, "rounds": [{"round": 1, **one}], "final": one, "trials": "test"}
    write_lines(exp / "results.json", [json.dumps(whole)])
    for name in ("pretrain", "round1"):
        row.system = row.row = name
        recorded.add_rows(
            tmp_path / "RESULTS.jsonl", [{"seed": 0} | r for r in recorded.rows_of(exp, row, "T")]
        )
    recorded.write_tables(tmp_path / "RESULTS.jsonl", {})
    assert [r.get("trunk_sha256") for r in recorded.read_rows(tmp_path / "RESULTS.jsonl")] == [
        None,
        "01ab 23cd",
    ]
    assert "SHA-256 of the trunk's weights: `01ab 23cd`" in (tmp_path / "RESULTS.md").read_text()
    write_lines(
        models["round1"] / "config.yaml", [json.dumps({"encoder": {"pretrained": f"{models['round1']}"}})]
    )
    assert recorded.trunk_digest(models["round1"]) is None  # a folder that names itself


def test_queries_to_trainings(tmp_path, monkeypatch, capsys):
    from pyspkv.bin import query

    for name, best, confidence in (("T", 9.5, [0.1, 0.3, 0.2]), ("V", 8.0, [0.2]), ("L", 8.0, [0.2])):
        folder = tmp_path / name
        (folder / "ckpt-3").mkdir(parents=True)
        (folder / "LATEST").write_text("ckpt-3\n")
        (folder / "ckpt-3/state.json").write_text(json.dumps({"best_eer": best}))
        lines = [json.dumps({"kind": "epoch", "confidence": c}) for c in confidence]
        (folder / "train.jsonl").write_text("\n".join(lines) + "\n")

    def ask(*args):
        monkeypatch.setattr("sys.argv", ["query", *map(str, args)])
        query.main()
        return capsys.readouterr().out.strip()

    ask("best", "--link", tmp_path / "model", *(tmp_path / n for n in "TVL"))
    assert os.readlink(tmp_path / "model") == "V", "of equal ones the first"
    ask("best", "--link", tmp_path / "model", tmp_path / "T")
    assert os.readlink(tmp_path / "model") == "T", "made anew"
    with pytest.raises(UserError, match="is not a link"):
        ask("best", "--link", tmp_path / "V", tmp_path / "T")
    out = tmp_path / "threshold.yaml"
    ask("threshold", "--factor", 0.9, "--out", out, tmp_path / "T")
    assert out.read_text() == "objective.gate.threshold: 0.27\n"
    (tmp_path / "T/train.jsonl").write_text('{"kind": "epoch", "loss": 1.0}\n')
    with pytest.raises(UserError, match="no epoch has 'confidence'"):
        ask("threshold", "--out", out, tmp_path / "T")


def test_labels_that_move_while_training(whole, exp, monkeypatch, capsys):
    """The table per epoch of a phase whose objective changes labels: sizes, changes, and weights by the
    truth.
    """
    from safetensors.numpy import save_file

    root, _ = whole
    truth = [line.split()[1] for line in (root / "truth").read_text().splitlines()]
    true = np.unique(truth, return_inverse=True)[1].astype(np.int32)
    folder = exp / "round1/model/rows"
    folder.mkdir()
    start = true.copy()
    start[:12] = (start[:12] + 1) % 10
    weight = np.where(start == true, 0.75, 0.25).astype(np.float32)
    save_file({"label": start, "weight": weight}, folder / "epoch-0001.safetensors")
    save_file({"label": true, "weight": weight}, folder / "epoch-0002.safetensors")
    report(monkeypatch, capsys, "--exp", exp, "--truth", root / "truth")
    lines = (exp / "report.md").read_text().splitlines()
    at = lines.index("## Labels while training: round1")
    assert lines[at + 2].split("|")[1:-1] == [
        f" {k} "
        for k in (
            "epoch",
            "live",
            "effective",
            "changed",
            "nmi",
            "ami",
            "purity",
            "weight_right",
            "weight_wrong",
        )
    ]
    first, second = (line.split(" | ") for line in lines[at + 4 : at + 6])
    assert first[0] == "| 1" and first[1] == "10" and first[3] == "0.000" and first[6] == "0.900"
    assert first[7:] == ["0.750", "0.250 |"]
    assert second[3] == "0.100" and second[4] == second[5] == second[6] == "1.000"
    assert (exp / "plots/labels_round1.png").exists()
    rows = recorded.systems(exp)
    assert (rows["round1"]["live_end"], rows["round1"]["purity_end"]) == (10, 1.0)
    assert "live_end" not in rows["round2"]


def test_other_systems_are_reported_between_the_last_phase_and_supervised(whole, tmp_path, monkeypatch):
    root, want = whole
    shutil.copytree(root / "exp", tmp_path / "exp")
    shutil.copytree(root / "exp/round1/score", tmp_path / "exp/no_gate/score")
    (tmp_path / "exp/plain_folder").mkdir()
    monkeypatch.setattr("sys.argv", ["report", "--exp", str(tmp_path / "exp")])
    report_cli.main()
    out = json.loads((tmp_path / "exp/results.json").read_text())
    assert list(out["others"]) == ["no_gate"]
    assert out["others"]["no_gate"]["eer"] == pytest.approx(want["round1"]["eer"])
    names = list(recorded.systems(tmp_path / "exp"))
    assert names == ["pretrain", "round1", "round2", "finetune", "no_gate", "supervised", "final"]


def test_what_a_gate_makes_of_labels_corrupted_on_purpose(tmp_path):
    """Four utterances, two of them corrupted. The gate rejects one of these and half of a good one."""
    from safetensors.numpy import save_file

    write_lines(tmp_path / "data/utt2spk", ["a s0", "b s0", "c s1", "d s1"])
    write_lines(tmp_path / "corrupted", ["b", "d"])
    (tmp_path / "model/rows").mkdir(parents=True)
    weight = np.array([0.5, 1.0, 1.0, 0.0], np.float32)
    save_file({"weight": weight}, tmp_path / "model/rows/epoch-3.safetensors")
    [found] = experiment.moving_labels(tmp_path, None)
    assert found["noise_recall"] == pytest.approx(1 / 2)
    assert found["noise_precision"] == pytest.approx(1 / 1.5)
    scored = {"corrupted": {"test": {"eer": 9.0}, "test-crops": {"eer": 8.0}}}
    other = experiment.results(scored, {}, "test", {"corrupted": [found]})["others"]["corrupted"]
    assert (other["noise_recall"], other["eer_crops"]) == (found["noise_recall"], 8.0)
    shutil.rmtree(tmp_path / "data")  # a system trained on labels of another one
    assert experiment.moving_labels(tmp_path, None) == []


# -- files that others may have written

SOUND = {"eer": 5.0, "min_dcf_0.01": 0.4, "min_dcf_0.05": 0.3}


def scored(folder, phase="pretrain", **more):
    (folder / phase / "score").mkdir(parents=True, exist_ok=True)
    (folder / phase / "score/test.json").write_text(json.dumps({**SOUND, **more}))
    return folder


@pytest.mark.parametrize(
    "key", ["eer", "min_dcf_0.01", "eer_ci_low", "cllr", "num_target", "eer_difference", "threshold"]
)
@pytest.mark.parametrize("value", ["x", True, [1], {}, float("nan"), float("inf"), 10**30])
def test_a_figure_that_is_not_a_number_is_named(tmp_path, monkeypatch, capsys, key, value):
    scored(tmp_path, **{key: value})
    with pytest.raises(UserError, match=r"test\.json: (.*" + key.replace(".", r"\.") + " is |is not JSON)"):
        report(monkeypatch, capsys, "--exp", tmp_path)
    assert not (tmp_path / "report.md").exists()


@pytest.mark.parametrize(
    "more", [{"eer": None}, {"eer": -5}, {"eer": 101}, {"cllr": -1}, {"eer_ci_over": [1]}, {"trials": 5}]
)
def test_a_figure_out_of_its_range_is_named(tmp_path, monkeypatch, capsys, more):
    scored(tmp_path, **more)
    with pytest.raises(UserError, match=rf"test\.json: {next(iter(more))} is "):
        report(monkeypatch, capsys, "--exp", tmp_path)


def test_null_counts_as_absent(tmp_path, monkeypatch, capsys):
    scored(tmp_path, cllr=None, eer_ci_low=1.0, eer_ci_high=None, eer_difference=1, eer_difference_ci_low=0.5)
    scored(tmp_path, "supervised", eer_ci_low=1.0)
    report(monkeypatch, capsys, "--exp", tmp_path)
    assert "| pretrain | test | 5.00 | - | 0.400 | 0.300 | - | - |" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["{garbage}"], "train.jsonl:1: is not JSON"),
        (['{"kind": "step"}', "3"], "train.jsonl:2: is not a JSON object"),
        (['{"kind": "epoch", "epoch": "1"}'], "train.jsonl:1: epoch is '1'"),
        (['{"kind": "epoch", "epoch": 1, "loss": []}'], "train.jsonl:1: loss is []"),
        (['{"kind": "epoch", "epoch": 1, "loss": NaN}'], "train.jsonl:1: is not JSON"),
        (['{"kind": "epoch", "epoch": 1, "dev_eer": -5}'], "train.jsonl:1: dev_eer is -5"),
        (["\udcff"], "train.jsonl:1: is not UTF-8"),
        (["[" * 100_000], "train.jsonl:1: is not JSON"),
    ],
)
def test_a_log_of_garbage_names_its_line(tmp_path, monkeypatch, capsys, lines, said):
    log = scored(tmp_path) / "pretrain/model/train.jsonl"
    log.parent.mkdir()
    log.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError) as err:
        report(monkeypatch, capsys, "--exp", tmp_path)
    assert said in str(err.value)


def test_a_log_with_gaps_and_a_last_line_that_a_kill_has_cut(tmp_path):
    log = tmp_path / "model/train.jsonl"
    log.parent.mkdir()
    log.write_text(
        '{"kind": "epoch"}\n\n{"kind": "epoch", "epoch": 2, "loss": null, "x": "y"}\n{"kind": "epoch", "ep'
    )
    assert experiment.epochs_of(tmp_path) == [{"kind": "epoch"}, {"kind": "epoch", "epoch": 2}]
    assert experiment.training_table({"a": tmp_path})[-1] == "| a | 2 | -, -, - | - | 0.0 |"
    assert experiment.cost_curve({"round1": tmp_path}) == []


@pytest.mark.parametrize(
    "text", ['{"stability": 5}', '{"stability": {"ami": "x"}}', "[]", "{", '{"stability": {"kept": 7}}']
)
def test_a_rounds_report_of_garbage(tmp_path, monkeypatch, capsys, text):
    scored(tmp_path, "round1")
    write_lines(tmp_path / "round1/data/utt2spk", ["a s0", "b s1"])
    (tmp_path / "round1/report.json").write_text(text)
    with pytest.raises(UserError, match=r"round1/report\.json"):
        report(monkeypatch, capsys, "--exp", tmp_path)


def test_names_are_drawn_and_written_as_they_are(tmp_path, monkeypatch, capsys):
    """matplotlib formulas, HTML, links and undecodable bytes in names of phases, lists and logged figures."""
    exp = tmp_path / "<b>$x^{$"
    names = [
        "$$",
        "a$\\frac{$",
        "<img src=x onerror=alert(1)>",
        "[x](y)",
        "_hidden",
        "a|b",
        "b\nc",
        "d\udcff",
        "\u8bf4",
    ]
    for name in names:
        scored(exp, name, eer_ci_over="<script>|\n\u202e")
    scored(exp, "roundabout")
    write_lines(exp / "roundabout/data/utt2spk", ["a s0", "b s1"])
    write_lines(
        exp / "$$/model/train.jsonl",
        [json.dumps({"kind": "epoch", "epoch": 1, "loss": 1e300, "$\\foo$": 2.5})],
    )
    scored(exp)
    scored(exp, "round1")
    write_lines(exp / "round1/data/utt2spk", ["a s0", "b s1"])
    (exp / "round1/report.json").write_text('{"stability": null}')
    report(monkeypatch, capsys, "--exp", exp)
    text = (exp / "report.md").read_text()
    assert "<img" not in text and "<script" not in text and "<b>" not in text and "\u202e" not in text
    rows = [line for line in text.splitlines() if "| test |" in line]
    assert len(rows) == len(names) + 3 and all(len(re.findall(r"(?<!\\)\|", row)) == 8 for row in rows)
    assert "&lt;img src=x onerror=alert(1)&gt;" in text and "\\[x\\](y)" in text and "| \u8bf4 |" in text
    assert (
        Image.open(exp / "plots/eer.png").size[0] > 300
        and Image.open(exp / "plots/train_$$.png").size[0] > 300
    )
    assert len(json.loads((exp / "results.json").read_text())["others"]) == len(names) + 1


@pytest.mark.parametrize("name", ["report.md", "results.json", "plots", "plots/eer.png"])
def test_nothing_is_written_through_a_link_out_of_the_folder(tmp_path, monkeypatch, capsys, name):
    exp = scored(tmp_path / "exp")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/file").write_text("precious")
    (exp / name).parent.mkdir(exist_ok=True)
    (exp / name).symlink_to(tmp_path / ("elsewhere" if name == "plots" else "elsewhere/file"))
    with pytest.raises(UserError, match="is a link out of"):
        report(monkeypatch, capsys, "--exp", exp)
    assert [p.read_text() for p in (tmp_path / "elsewhere").iterdir()] == ["precious"]


def test_rows_of_strangers(tmp_path):
    """Arrays of other sizes or types belong to other utterances and are ignored; a damaged file is named."""
    from safetensors.numpy import save_file

    write_lines(tmp_path / "data/utt2spk", ["a s0", "b s0", "c s1"])
    (rows := tmp_path / "model/rows").mkdir(parents=True)
    save_file({"label": np.zeros((3, 2), np.int32)}, rows / "epoch-1.safetensors")
    save_file({"label": np.zeros(3, np.float32)}, rows / "epoch-2.safetensors")
    save_file(
        {"label": np.zeros(3, np.int32), "weight": np.zeros(4, np.float32)}, rows / "epoch-3.safetensors"
    )
    save_file({"label": np.zeros(3, np.int32)}, rows / "epoch-x.safetensors")
    assert experiment.moving_labels(tmp_path, None) == []
    save_file({"label": np.zeros(3, np.int32)}, rows / "epoch-4.safetensors")
    assert [e["epoch"] for e in experiment.moving_labels(tmp_path, None)] == [4]
    with pytest.raises(UserError, match="has no line for 2 of 3 utterances"):
        experiment.moving_labels(tmp_path, {"a": "S"}, "truth")
    (rows / "epoch-5.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(UserError, match=r"epoch-5\.safetensors"):
        experiment.moving_labels(tmp_path, None)


def test_gate_curves_and_queries_on_untrusted_trainings(tmp_path, monkeypatch, capsys):
    from pyspkv.bin import query
    from pyspkv.report import gate_curves

    (curve := tmp_path / "c.json").write_text('[{"quantity": 0.5, "quality": NaN}]')
    assert gate_curves.read_curve(curve)[0]["quantity"] == 0.5
    for text in (
        "{}",
        "[1]",
        '[{"quantity": "x"}]',
        '[{"quality": 2}]',
        '[{"quality": Infinity}]',
        '[{"quality": null}]',
    ):
        curve.write_text(text)
        with pytest.raises(UserError, match=r"c\.json"):
            gate_curves.read_curve(curve)
    (record := tmp_path / "run.json").write_text('{"label_hash": 5}')
    with pytest.raises(UserError, match="label_hash is 5"):
        gate_curves.label_hash(record)
    folder = tmp_path / "T"
    (folder / "ckpt-3").mkdir(parents=True)
    (folder / "LATEST").write_text("ckpt-3\n")
    for best in ('"x"', "NaN", "true", "-1", "[]", "null"):
        (folder / "ckpt-3/state.json").write_text(f'{{"best_eer": {best}}}')
        with pytest.raises(UserError):
            query.dev_eer(folder)
    (folder / "ckpt-3/state.json").write_text("{}")
    with pytest.raises(UserError, match="without a dev list"):
        query.dev_eer(folder)
    (folder / "train.jsonl").write_text('{"kind": "epoch", "confidence": "high"}\n')
    for key in ("confidence", "kind"):
        with pytest.raises(UserError, match="no epoch has"):
            query.peak(folder, key)
    monkeypatch.setattr("sys.argv", ["query", "threshold", "--factor", "inf", "--out", "x", str(folder)])
    with pytest.raises(SystemExit):
        query.main()
    assert "finite" in capsys.readouterr().err
