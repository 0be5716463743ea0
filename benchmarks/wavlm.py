"""A WavLM-Base+ MHFA step and extraction: ours beside transformers' own forward pass and the authors' code.

    git clone https://github.com/theolepage/wavlm_ssl_sv /tmp/wavlm_ssl_sv
    OMP_NUM_THREADS=2 python benchmarks/wavlm.py [--authors /tmp/wavlm_ssl_sv] [step extract memory]

`step`: 3 s crops, batch 8, AAM-softmax over 7,500 classes, forward, backward and AdamW on the transformer layers, MHFA
and the classes, convolutions frozen. `extract`: evaluation mode, the same crops. All sides take turns in one process.
`memory`: peak of one of our steps with the gate closed, so that the clean pass of label correction is taken.
"""

import argparse
import resource
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from peer import report, take_turns
from torch.nn import functional as F

from pyspkv import config as cfg
from pyspkv.dataset import Batch
from pyspkv.embed import autocast
from pyspkv.models.wavlm import WavLM
from pyspkv.objectives.objective import Info, margin_logits

BATCH, SAMPLES, CLASSES = 8, 48_240, 7500
CPU = torch.device("cpu")
BASE_PLUS = {  # the cfg of WavLM-Base+.pt, as far as the authors' class has no such default
    "extractor_mode": "default", "encoder_layers": 12, "encoder_embed_dim": 768, "encoder_ffn_embed_dim": 3072,
    "encoder_attention_heads": 12, "activation_fn": "gelu", "dropout": 0.1, "attention_dropout": 0.1,
    "activation_dropout": 0.0, "encoder_layerdrop": 0.05, "dropout_input": 0.1, "dropout_features": 0.1,
    "layer_norm_first": False, "relative_position_embedding": True, "num_buckets": 320, "max_distance": 800,
    "gru_rel_pos": True, "normalize": False,
}  # fmt: skip


class Transformers(WavLM):
    """The same weights under transformers' own forward pass, convolutions frozen its way."""

    def __init__(self, config):
        super().__init__(config)
        self.trunk.freeze_feature_encoder()

    def features(self, wave, lengths):
        return wave, lengths

    def hidden_states(self, wave, mask):
        return self.trunk(wave, output_hidden_states=True).hidden_states


def authors_model(checkout: Path, folder: Path) -> torch.nn.Module:
    sys.path.insert(0, str(checkout))
    from models.Baseline import Spk_Encoder
    from models.Baseline.WavLM import WavLM as Theirs
    from models.Baseline.WavLM import WavLMConfig

    trunk = Theirs(WavLMConfig(BASE_PLUS))
    torch.save({"cfg": BASE_PLUS, "model": trunk.state_dict()}, folder / "base.pt")
    model = Spk_Encoder.MainModel(pretrained_model_path=str(folder / "base.pt"))
    for name, p in model.named_parameters():
        p.requires_grad_(name.startswith(("model.encoder.layers", "backend")))
    return model


class Step:
    """One training step of an encoder called with waves [B, T], in plain torch."""

    def __init__(self, encoder, call):
        self.encoder, self.call = encoder.train(), call
        self.weight = torch.nn.Parameter(0.02 * torch.randn(CLASSES, 256))
        params = [p for p in encoder.parameters() if p.requires_grad]
        fused = True if type(encoder) is WavLM else None  # as our trainer has it
        self.optimiser = torch.optim.AdamW([*params, self.weight], lr=1e-5, fused=fused)

    def __call__(self, wave, label, precision: str) -> None:
        self.optimiser.zero_grad()
        with autocast(CPU, precision):
            z = self.call(self.encoder, wave).float()
        cos = F.linear(F.normalize(z), F.normalize(self.weight))
        F.cross_entropy(30 * margin_logits(cos, label, 0.2), label).backward()
        self.optimiser.step()


def ours(cls=WavLM) -> torch.nn.Module:
    return cls(cfg.resolve("encoder", {"name": "wavlm"}))


def call_ours(encoder, wave):
    return encoder(wave, torch.full((len(wave),), wave.shape[1]))


def sides(args, folder: Path) -> dict:
    """Name -> (encoder, how it is called, precision)."""
    hf, own = ours(Transformers), ours()
    out = {"transformers fp32": (hf, call_ours, "fp32"), "transformers bf16": (hf, call_ours, "bf16")}
    out |= {"ours fp32": (own, call_ours, "fp32"), "ours bf16": (own, call_ours, "bf16")}
    if args.authors:
        theirs = authors_model(args.authors, folder)
        out = {"authors fp32": (theirs, lambda m, wave: m([wave, False]), "fp32"), **out}
    return out


def step(args, folder: Path) -> None:
    wave, label = 0.1 * torch.randn(BATCH, SAMPLES), torch.randint(CLASSES, (BATCH,))
    made, calls = {}, {}
    for name, (encoder, call, precision) in sides(args, folder).items():
        take = made.setdefault(id(encoder), Step(encoder, call))
        calls[name] = lambda take=take, p=precision: take(wave, label, p)
    report("training step", take_turns(calls, args.turns), BATCH, "utterances", next(iter(calls)))


@torch.inference_mode()
def extract(args, folder: Path) -> None:
    wave, calls = 0.1 * torch.randn(BATCH, SAMPLES), {}

    def embed(encoder, call, precision):
        with autocast(CPU, precision):
            return call(encoder, wave)

    for name, side in sides(args, folder).items():
        side[0].eval()
        calls[name] = lambda side=side: embed(*side)
    report("extraction", take_turns(calls, args.turns), BATCH, "utterances", next(iter(calls)))


def memory(args, folder: Path) -> None:
    gate = {"name": "dlg", "start_epoch": 0.0, "correct_epoch": 0.0}
    objective = cfg.build(
        "objective", cfg.resolve("objective", {"name": "margin", "crop_seconds": 3.0, "gate": gate}), ours(),
        Info(BATCH, CLASSES, 1, 1),
    )  # fmt: skip
    objective.gate.tau.fill_(0.0)  # every label is rejected, so every clean crop is embedded
    params = [p for g in objective.optimisers()["main"] for p in g["params"]]
    optimiser = torch.optim.AdamW(params, lr=1e-5)
    rows, none = torch.arange(BATCH), torch.full((BATCH,), -1)
    views = {n: (0.1 * torch.randn(BATCH, SAMPLES), torch.full((BATCH,), SAMPLES)) for n in ("main", "clean")}
    batch = Batch(0, 0, rows, 0 * rows, rows, none, none, 0 * rows, views)
    for _ in range(2):
        optimiser.zero_grad()
        losses = objective.train()(batch)
        total, weight = losses.terms["aam"]
        (total / weight.clamp_min(1)).backward()
        optimiser.step()
    assert np.isfinite(total.item())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"memory: {peak:.2f} GiB at the peak of the process, step of {BATCH} with the clean pass")


PARTS = {"step": step, "extract": extract, "memory": memory}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "parts", nargs="*", choices=[*PARTS, []], help="default: step and extract; memory wants its own run"
    )
    p.add_argument("--authors", type=Path, help="checkout of wavlm_ssl_sv")
    p.add_argument("--turns", type=int, default=3)
    args = p.parse_args()
    torch.manual_seed(0)
    for part in args.parts or ["step", "extract"]:
        with tempfile.TemporaryDirectory() as folder:
            PARTS[part](args, Path(folder))


if __name__ == "__main__":
    main()
