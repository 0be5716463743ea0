"""On a GPU, losses, embeddings and labels equal the CPU's, and a killed run ends with the same digits."""

import json

import numpy as np
import pytest
import test_trainer
import test_wavlm
import torch
import toy

from pyspkv.base import distributed
from pyspkv.clustering.kmeans import kmeans
from pyspkv.clustering.pipeline import ahc
from pyspkv.models.registry import EncoderConfig
from pyspkv.score.extract import embed
from pyspkv.train.trainer import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
CPU, GPU = torch.device("cpu"), torch.device("cuda")
# no dropout, because the devices draw other random numbers
STILL = {
    "objective.spec_augment": {"max_time_mask": 0},
    "augment.rir_bank": 0,
    "log_every_steps": 1,
    "epochs": 2,
}
WAVLM = {"encoder": {**test_wavlm.SMALL, "dropout": 0.0, "attention_dropout": 0.0, "layerdrop": 0.0}}
SYSTEMS = {
    "margin": {},
    "contrastive": test_trainer.CONTRASTIVE,
    "dino": test_trainer.DINO,
    "reflective": test_trainer.REFLECTIVE,
    "dlg": test_trainer.DLG,
    "wavlm": WAVLM,
    "checkpointing": {"encoder": {**WAVLM["encoder"], "gradient_checkpointing": True}},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return toy.make(tmp_path_factory.mktemp("toy"))


def losses(exp) -> list[float]:
    records = [json.loads(line) for line in (exp / "train.jsonl").read_text().splitlines()]
    return [r["loss"] for r in records if r["kind"] == "step"]


@pytest.mark.parametrize("name", SYSTEMS)
def test_losses_are_the_cpus(tmp_path, data, name, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    c = test_trainer.config(tmp_path, **SYSTEMS[name], **STILL)
    Trainer(c, data, tmp_path / "gpu").run()
    monkeypatch.setattr(distributed, "init", lambda: CPU)
    Trainer(c, data, tmp_path / "cpu").run()
    found, wanted = losses(tmp_path / "gpu"), losses(tmp_path / "cpu")
    assert len(found) == len(wanted) == 12
    np.testing.assert_allclose(found[:3], wanted[:3], rtol=1e-4)  # rounding errors grow from step to step
    np.testing.assert_allclose(found, wanted, rtol=0.02)


@pytest.mark.parametrize("name", ["dlg", "reflective", "wavlm"])
def test_a_killed_run_ends_with_the_same_digits(tmp_path, data, name):
    c = test_trainer.config(tmp_path, **SYSTEMS[name], precision="bf16")
    Trainer(c, data, tmp_path / "whole").run()
    toy.killed_at([5], lambda: Trainer(c, data, tmp_path / "killed").run())
    test_trainer.assert_same(test_trainer.final(tmp_path / "killed"), test_trainer.final(tmp_path / "whole"))


TRUNKS = [
    {"name": "trunk", "family": family, "arch": arch}
    for family, arch in (
        ("whisper", {"d_model": 384}),
        ("wav2vec2", {"num_hidden_layers": 2}),
        ("wavlm", {"num_hidden_layers": 2, "feat_extract_norm": "layer", "do_stable_layer_norm": True}),
        ("w2v_bert", {"num_hidden_layers": 2}),
    )
]


@pytest.mark.parametrize(
    "encoder", [{"name": "ecapa"}, {"name": "dvector"}, {"name": "wavlm", "layers": 3}, *TRUNKS]
)
def test_embeddings_are_the_cpus(tmp_path, encoder, monkeypatch):
    """The utterances differ in length, so that there is padding."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    data = toy.make(tmp_path, speakers=2, utts=2, seconds=1.0)
    longer = toy.make(tmp_path / "longer", speakers=1, utts=2, seconds=1.37, seed=1)
    data.wav[data.utts[1]] = longer.wav[longer.utts[0]]
    model = test_wavlm.cfg.build(test_wavlm.cfg.validate(EncoderConfig, encoder)).eval()
    wanted = embed(model, data, CPU, "fp32").x
    model.to(GPU)
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    np.testing.assert_allclose(unit(embed(model, data, GPU, "fp32").x), unit(wanted), atol=2e-4)
    assert (unit(embed(model, data, GPU, "bf16").x) * unit(wanted)).sum(1).min() > 0.999


def test_labels_are_the_cpus():
    rng = np.random.default_rng(0)
    x = np.repeat(rng.standard_normal((300, 32)), 10, 0) + 0.3 * rng.standard_normal((3000, 32))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    for device in ("cuda", "cpu"):
        labels = kmeans(x, 200, 0, 20, device=device)[0]
        trees = [ahc(x, 300, linkage=kind, metric=metric, device=device)
                 for kind, metric in (("ward", "euclidean"), ("average", "cosine"))]  # fmt: skip
        if device == "cuda":
            found = [labels, *trees]
    for a, b in zip(found, [labels, *trees]):
        assert np.mean(a == b) > 0.999
