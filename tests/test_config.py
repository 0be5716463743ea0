"""Strict configs: a file lists differences from the defaults, all keys are resolved, unknown ones are
refused.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal, get_args

import pytest
import yaml
from pydantic import Field

from pyspkv.base import config as cfg
from pyspkv.base.errors import UserError
from pyspkv.batches.sampler import SamplerConfig
from pyspkv.models.ecapa import ECAPAConfig
from pyspkv.models.registry import EncoderConfig
from pyspkv.objectives.confidence_gates import ConfidenceGateConfig
from pyspkv.objectives.loss_gates import GateConfig
from pyspkv.objectives.registry import ObjectiveConfig
from pyspkv.train.config import TrainConfig, load_config

ROOT = Path(__file__).resolve().parent.parent
MINIMAL = "encoder: {name: ecapa, channels: 32}\nobjective: {name: aam}\n"


def load(tmp_path, text=MINIMAL, overrides=()):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return cfg.load(TrainConfig, path, list(overrides))


def test_differences_are_merged_with_defaults(tmp_path):
    c = load(tmp_path, MINIMAL + "optim: {lr: 1e-2, lr_schedule: {warmup_epochs: 2}}\n")
    assert (c.encoder.channels, c.encoder.embed_dim) == (32, 192)
    assert (c.optim.lr, c.optim.lr_schedule.warmup_epochs, c.optim.grad_clip_norm) == (0.01, 2.0, 5.0)


def test_exponent_without_point_is_a_number(tmp_path):
    assert load(tmp_path, overrides=["optim.lr=3e-4"]).optim.lr == 3e-4


def test_lists_fill_tuples(tmp_path):
    assert tuple(load(tmp_path, overrides=["augment.noise_snr=[1, 2]"]).augment.noise_snr) == (1, 2)


def test_resolved_config_loads_to_itself(tmp_path):
    c = load(tmp_path, overrides=["objective.gate={name: lgl, threshold: 2}"])
    again = load(tmp_path, cfg.to_yaml(c))
    assert cfg.dump(again) == cfg.dump(c)
    assert yaml.safe_load(cfg.to_yaml(c))["objective"]["gate"]["threshold"] == 2


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.learning_rate=1", "unknown config key 'optim.learning_rate'"),
        ("encoder.width=3", "unknown config key 'encoder.width'"),
        ("batch_size=many", "config key 'batch_size'"),
        ("batch_size=1.5", "config key 'batch_size'"),
        ("optim.name=adagrad", "config key 'optim.name'"),
        ("encoder={name: ecapo}", "no encoder is called 'ecapo'"),
        ("encoder=ecapa", "config key 'encoder' must be a mapping"),
        ("objective.gate={name: lgl, treshold: 1}", "treshold"),
        ("seed", "expected key=value"),
        ("seed.x=1", "config key 'seed'"),
        ("optim.lr=[1", "not YAML"),
        ("objective.margin_warmup_epochs=[1]", "margin_warmup_epochs"),
    ],
)
def test_wrong_keys_and_types_are_named(tmp_path, override, words):
    with pytest.raises(UserError) as err:
        load(tmp_path, overrides=[override])
    assert words in str(err.value)


@pytest.mark.parametrize("text", ["- a\n", "a: [\n", "seed: 1\nseed: 2\n", "\x00"])
def test_broken_yaml_names_the_file(tmp_path, text):
    with pytest.raises(UserError, match=r"c\.yaml"):
        load(tmp_path, text)


def test_missing_section_is_named(tmp_path):
    with pytest.raises(UserError, match="objective"):
        load(tmp_path, "encoder: {name: ecapa}\n")


HOSTILE = {
    "a list as key": "? [1, 2]\n: 3\n",
    "a mapping as key": "? {a: 1}\n: 3\n",
    "a number as key": "1: 3\n",
    "a date as key": "2020-01-01: 3\n",
    "binary": "a: !!binary aGVsbG8=\n",
    "a set": "a: !!set {x, y}\n",
    "pairs": "a: !!pairs [x: 1]\n",
    "a recursive anchor": "a: &x [*x]\n",
    "an alias": "a: &x 1\nb: *x\n",
    "no date": "a: 2020-99-99\n",
    "no time zone": "a: 2001-12-14 21:59:43+99:99\n",
    "no int": "a: !!int x\n",
    "an empty int": "a: !!int ''\n",
    "no bool": "a: !!bool x\n",
    "no float": "a: !!float x\n",
    "no timestamp": "a: !!timestamp x\n",
    "no mapping": "a: !!map x\n",
    "an object": "a: !!python/object/apply:os.system [x]\n",
    "0b_": "a: 0b_\n",
    "digits": f"a: {'9' * 5000}\n",
    "hexadecimal digits": f"a: 0x{'f' * 200}\n",
    "base 60": f"a: 1{':1' * 5000}\n",
    "beyond 64 bits": "a: 99999999999999999999\n",
    "brackets": f"a: {'[' * 20000}{']' * 20000}\n",
    "dashes": f"{'- ' * 20000}x\n",
    "braces": "{a: " * 51 + "1" + "}" * 51,
    "no character": 'a: "\\U00110000"\n',
    "half a pair": 'a: "\\ud800"\n',
    "a version": f"%YAML 1.{'1' * 5000}\n---\na: 1\n",
    "many values": f"a: [{'1,' * 100_000}]\n",
    "two documents": "a: 1\n---\nb: 1\n",
    "zero": "0\n",
    "an empty list": "[]\n",
    "NUL": "a: \0\n",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_yaml_of_strangers_names_file_and_line(tmp_path, text):
    (path := tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError) as err:
        cfg.read(path)
    assert str(err.value).startswith((f"{path}:1: cannot", f"{path}:2: cannot", f"{path}: a config must"))
    assert len(str(err.value)) < 500
    value = text.partition("a: ")[2].strip()
    if text.startswith("a: ") and "\n" not in value and "\0" not in value:
        with pytest.raises(UserError, match=r"--set .*value is not YAML"):
            cfg.load(TrainConfig, None, [f"seed={value}"])
    path.write_text(text.replace("a:", "encoder:", 1))
    with pytest.raises(UserError, match=r"c\.yaml"):
        cfg.read_section(path, "encoder", EncoderConfig)


def test_an_error_names_the_line_of_the_fault(tmp_path):
    (path := tmp_path / "c.yaml").write_text("seed: 1\n# x\noptim:\n  lr: 1e-3\n  name: !!int x\n")
    with pytest.raises(UserError, match=r"c\.yaml:5: .*'x' is not a valid int"):
        cfg.read(path)


def test_nesting_that_is_allowed_and_deep_names(tmp_path):
    (path := tmp_path / "c.yaml").write_text("{a: " * 49 + "1" + "}" * 49)
    found = cfg.read(path)
    for _ in range(49):
        found = found["a"]
    assert found == 1
    with pytest.raises(UserError, match="nested deeper"):
        cfg.load(TrainConfig, None, ["a." * 10_000 + "b=1"])


def test_too_large_files_and_missing_files(tmp_path):
    (path := tmp_path / "c.yaml").write_text("# " + "x" * 1_000_001)
    with pytest.raises(UserError, match="longer than 1,000,000 bytes"):
        cfg.read(path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="not a plain file"):
        cfg.read(tmp_path / "pipe")
    path.write_bytes(b"seed: 1\n# \xff\n")
    with pytest.raises(UserError, match=r"c\.yaml:2: is not UTF-8"):
        cfg.read(path)


def test_yaml_aliases_that_expand_to_a_billion_values_are_refused(tmp_path):
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    (tmp_path / "c.yaml").write_text("\n".join(lines))
    code = (
        "import resource, sys\nfrom pyspkv.base import config\nfrom pyspkv.base.errors import UserError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: config.read(sys.argv[1])\nexcept UserError as err: print(err)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "c.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    said, kilobytes = done.stdout.splitlines()
    assert "c.yaml:2: cannot be read as YAML: an alias (*a0)" in said
    assert int(kilobytes) < 50_000


@pytest.mark.parametrize("field", ["channels: 10000000", "n_mels: 1001", "scale: 2000"])
def test_an_encoder_of_absurd_size_is_refused(tmp_path, field):
    key = field.split(":")[0]
    with pytest.raises(
        UserError, match=rf"c.yaml: config key 'encoder\.{key}': .* less than or equal to \d+, got \d+"
    ):
        load(tmp_path, f"encoder: {{name: ecapa, {field}}}\nobjective: {{name: aam}}\n")


# -- several files


def write(tmp_path, *texts):
    paths = [tmp_path / f"{k}.yaml" for k in range(len(texts))]
    for path, text in zip(paths, texts):
        path.write_text(text)
    return paths


def test_of_several_files_a_later_one_wins_key_by_key(tmp_path):
    base = MINIMAL + "optim: {lr: 0.5, lr_schedule: {warmup_epochs: 2}}\nseed: 1\nbatch_size: 8\n"
    files = write(tmp_path, base, "optim: {lr_schedule: {warmup_epochs: 3}}\nseed: 2\n", "seed: 3\n")
    c = cfg.load(TrainConfig, files, ["batch_size=4"])
    assert (c.optim.lr, c.optim.lr_schedule.warmup_epochs, c.seed, c.batch_size) == (0.5, 3.0, 3, 4)
    assert cfg.dump(cfg.load(TrainConfig, files[:1])) == cfg.dump(cfg.load(TrainConfig, files[0]))
    assert c.encoder.channels == 32


def test_a_section_of_another_name_replaces_the_one_before(tmp_path):
    gated = "encoder: {name: ecapa, channels: 32}\n"
    gated += "objective: {name: aam, scale: 20, gate: {name: lgl, threshold: 2}}\n"
    same = "encoder: {name: ecapa, embed_dim: 8}\nobjective: {margin: 0.1, gate: {threshold: 3}}\n"
    c = cfg.load(TrainConfig, write(tmp_path, gated, same))
    assert (c.encoder.channels, c.encoder.embed_dim) == (32, 8)
    assert (c.objective.scale, c.objective.margin, c.objective.gate.threshold) == (20, 0.1, 3)
    other = "encoder: {name: dvector}\nobjective: {gate: {name: none}}\n"
    c = cfg.load(TrainConfig, write(tmp_path, gated, other))
    assert (c.encoder.name, c.objective.gate.name, c.objective.scale) == ("dvector", "none", 20)
    assert not hasattr(c.encoder, "channels"), "the fields of the class before are gone"


def test_values_that_a_section_of_another_name_takes_away_are_told(tmp_path):
    """Only where the new class has the field too, and no later file and no --set gives it a value."""
    base = "encoder: {name: wavlm, l2_sp_weight: 0.01, ffn: 3072, embed_dim: 256}\n"
    base += "objective: {name: aam, gate: {name: dlg, start_epoch: 7}}\n"
    files = write(tmp_path, base, "encoder: {name: trunk}\n", "seed: 1\n")
    told: list[str] = []
    assert cfg.load(TrainConfig, files, (), told.append).encoder.l2_sp_weight == 0
    (line,) = told  # ffn is no field of a trunk, and embed_dim has the same value by default
    assert "encoder.l2_sp_weight=0.01 was lost" in line and f"{files[1]} chose encoder.name: trunk" in line
    for more in ("encoder: {l2_sp_weight: 0.0}\n", "encoder.l2_sp_weight: 0.5\n"):
        files[2].write_text(more)
        cfg.load(TrainConfig, files, (), told.append)
    cfg.load(TrainConfig, files[:2], ["encoder.l2_sp_weight=0.1"], told.append)
    cfg.load(TrainConfig, files[:1], (), told.append)
    assert len(told) == 1
    files[1].write_text("objective: {gate: {name: lgl}}\n")
    cfg.load(TrainConfig, files[:2], (), told.append)
    assert "objective.gate.start_epoch=7 was lost" in told[1]
    # By a --set, and with a later file that only adds to the section: who chose the name is named.
    cfg.load(TrainConfig, files[:1], ["encoder={name: trunk, layers: 3}"], told.append)
    assert "encoder.l2_sp_weight=0.01 was lost when --set encoder chose encoder.name: trunk" in told[2]
    files[1].write_text("encoder: {name: trunk}\n")
    files[2].write_text("encoder: {layers: 3}\n")
    cfg.load(TrainConfig, files, (), told.append)
    assert f"was lost when {files[1]} chose" in told[3] and len(told) == 4


def test_known_overrides_are_those_of_the_chosen_classes(tmp_path):
    items = [
        "encoder.pretrained=a b",
        "encoder.frozen_epochs=0",
        "seed=3",
        "objective.gate.threshold=1",
        "x.y=1",
    ]
    for encoder, want in (("ecapa", [2]), ("wavlm", [0, 2]), ("trunk", [0, 1, 2])):
        config = load(tmp_path, f"encoder: {{name: {encoder}}}\nobjective: {{name: aam}}\n")
        assert cfg.known(config, items) == [items[k] for k in want]
    for bad in ("seed", "=3"):
        with pytest.raises(UserError, match="expected key=value"):
            load_config([tmp_path / "c.yaml"], where_known=[bad])
    assert load_config([tmp_path / "c.yaml"], ["seed=1"], ["seed=2", "epochs=2"]).seed == 1


def test_lists_and_single_values_replace(tmp_path):
    lists = write(tmp_path, MINIMAL + "augment: {noise_snr: [1, 2]}\n", "augment: {noise_snr: [3, 4]}\n")
    assert tuple(cfg.load(TrainConfig, lists).augment.noise_snr) == (3, 4)
    with pytest.raises(UserError, match=r"1\.yaml: config key 'optim'"):
        cfg.load(TrainConfig, write(tmp_path, MINIMAL + "optim: {lr: 1}\n", "optim: 3\n"))


@pytest.mark.parametrize(
    ("texts", "sets", "where"),
    [
        ((MINIMAL + "optim: {lrr: 1}\n", "seed: 1\n"), [], "0.yaml: unknown config key 'optim.lrr'"),
        ((MINIMAL, "optim: {lrr: 1}\n"), [], "1.yaml: unknown config key 'optim.lrr'"),
        (
            (MINIMAL, "objective: {gate: {name: lgl, tresh: 1}}\n"),
            [],
            "1.yaml: unknown config key 'objective.gate.tresh'",
        ),
        ((MINIMAL + "seed: 1\n", "seed: x\n"), [], "1.yaml: config key 'seed'"),
        ((MINIMAL + "seed: x\n", "epochs: 1\n"), [], "0.yaml: config key 'seed'"),
        ((MINIMAL, "encoder: {name: ecapo}\n"), [], "1.yaml: encoder.name: no encoder"),
        ((MINIMAL, "seed: 1\n"), ["seed=x"], "--set seed: config key 'seed'"),
        (("encoder: {name: ecapa}\n", "seed: 1\n"), [], "objective"),
        ((MINIMAL, "a: [\n"), [], "1.yaml:2: cannot be read"),
    ],
)
def test_an_error_names_the_file_that_the_key_came_from(tmp_path, texts, sets, where):
    with pytest.raises(UserError) as err:
        cfg.load(TrainConfig, write(tmp_path, *texts), sets)
    assert where in str(err.value)


# -- docs/config.md


def page_maker():
    spec = importlib.util.spec_from_file_location("make_config_doc", ROOT / "utils/make_config_doc.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_all_settings_is_that_of_the_classes():
    assert (ROOT / "docs/config.md").read_text() == page_maker().page(), "run utils/make_config_doc.py"


def every_config(cls, found):
    """All config classes below a field's annotation."""
    if isinstance(cls, type) and issubclass(cls, cfg.Config):
        found.add(cls)
        for field in cls.model_fields.values():
            every_config(field.annotation, found)
    for inner in get_args(cls):
        every_config(inner, found)
    return found


def test_every_setting_says_what_it_is_and_every_class_has_its_name_once():
    classes = every_config(TrainConfig, set())
    assert len(classes) > 30
    for cls in classes:
        assert cls.__doc__, cls
        for name, field in cls.model_fields.items():
            picks = name == "name" and len(get_args(field.annotation)) == 1
            assert picks or len(field.description or "") > 15, f"{cls.__name__}.{name}"
    for union in (EncoderConfig, ObjectiveConfig, SamplerConfig, GateConfig, ConfidenceGateConfig):
        members = get_args(get_args(union)[0])
        names = [member.model_fields["name"].default for member in members]
        assert len(set(names)) == len(names)
        for member, name in zip(members, names):
            assert type(cfg.validate(union, {"name": name})) is member


def test_a_config_is_immutable(tmp_path):
    with pytest.raises(ValueError, match="frozen"):
        load(tmp_path).optim.lr = 1.0


def test_the_error_for_an_unknown_key_lists_the_known_ones(tmp_path):
    for override, known in (
        ("objective.gate={name: lgl, tresh: 1}", "known here: name, threshold, start_epoch"),
        ("optim.lr_schedule.warmup=1", "known here: name, warmup_epochs, final_factor"),
        ("sed=1", "known here: encoder, objective, sampler"),
    ):
        with pytest.raises(UserError, match=known):
            load(tmp_path, overrides=[override])


def test_a_class_may_be_called_as_one_of_its_keys(tmp_path):
    class Inner(cfg.Config):
        name: Literal["aam"] = "aam"
        aam: cfg.Positive = 1.0

    class Outer(cfg.Config):
        inner: Annotated[Inner | ECAPAConfig, Field(discriminator="name")]

    with pytest.raises(UserError, match=r"config key 'inner\.aam': input should be greater than 0, got 0"):
        cfg.validate(Outer, {"inner": {"name": "aam", "aam": 0}})
    with pytest.raises(UserError, match=r"config key 's\.aam': "):
        cfg.validate(Inner, {"name": "aam", "aam": 0}, "s")
