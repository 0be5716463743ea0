"""Strict configs: differences in, everything resolved out, anything else refused by name."""

import pytest
import yaml

from pyspkv import config as cfg
from pyspkv.errors import UserError
from pyspkv.trainer import TrainConfig

MINIMAL = "encoder: {name: ecapa, channels: 32}\nobjective: {name: margin}\n"


def load(tmp_path, text=MINIMAL, overrides=()):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return cfg.load(TrainConfig, path, list(overrides))


def test_differences_are_merged_with_defaults(tmp_path):
    c = load(tmp_path, MINIMAL + "optim: {lr: 1e-2, schedule: {warmup_epochs: 2}}\n")
    assert (c.encoder.channels, c.encoder.embed_dim) == (32, 192)
    assert (c.optim.lr, c.optim.schedule.warmup_epochs, c.optim.clip_norm) == (0.01, 2.0, 5.0)


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
        ("encoder=ecapa", "must be a mapping with a 'name'"),
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
