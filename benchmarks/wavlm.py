"""Compare the speed of WavLM-Base+ with MHFA: ours, transformers' own forward pass, and the authors' code.

    git clone https://github.com/theolepage/wavlm_ssl_sv /tmp/wavlm_ssl_sv
    OMP_NUM_THREADS=2 python benchmarks/wavlm.py [--authors /tmp/wavlm_ssl_sv] [step extract memory]
    python benchmarks/wavlm.py --device cuda --batch 120 --authors /tmp/wavlm_ssl_sv

`step`: 3 s crops, batch 8 (`--batch`), AAM-softmax over 7,500 classes; forward, backward and AdamW on the
transformer layers, MHFA and the classes, with frozen convolutions. `extract`: evaluation mode, the same
crops. All sides alternate in one process.

Both also print the floating-point operations of one utterance and, on a GPU, each side's share of the bf16
peak, which is measured with products of 8,192 x 8,192 matrices.
`memory`: peak memory of one of our steps with a closed gate, so that label correction makes its clean pass.
"""

import argparse
import copy
import resource
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from peer import report, take_turns
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from pyspkv.base import config as cfg
from pyspkv.base.device import autocast
from pyspkv.batches.dataset import Batch
from pyspkv.fast.packed_linear import packed
from pyspkv.models.registry import EncoderConfig
from pyspkv.models.wavlm import WavLM
from pyspkv.objectives.aam import margin_logits
from pyspkv.objectives.base import RunInfo
from pyspkv.objectives.registry import ObjectiveConfig

SAMPLES, CLASSES = 48_240, 7500
BASE_PLUS = {  # cfg of WavLM-Base+.pt, where it differs from the defaults of the authors' class
    "extractor_mode": "default", "encoder_layers": 12, "encoder_embed_dim": 768, "encoder_ffn_embed_dim": 3072,
    "encoder_attention_heads": 12, "activation_fn": "gelu", "dropout": 0.1, "attention_dropout": 0.1,
    "activation_dropout": 0.0, "encoder_layerdrop": 0.05, "dropout_input": 0.1, "dropout_features": 0.1,
    "layer_norm_first": False, "relative_position_embedding": True, "num_buckets": 320, "max_distance": 800,
    "gru_rel_pos": True, "normalize": False,
}  # fmt: skip


class Transformers(WavLM):
    """The same weights with transformers' own forward pass and its way to freeze convolutions."""

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
    """One training step, in plain torch, of an encoder that takes waves [B, T]."""

    def __init__(self, encoder, call, device: torch.device):
        self.encoder, self.call, self.device = encoder.to(device).train(), call, device
        self.weight = torch.nn.Parameter(0.02 * torch.randn(CLASSES, 256, device=device))
        params = [p for p in encoder.parameters() if p.requires_grad]
        fused = True if type(encoder) is WavLM else None  # as in our trainer
        self.optimizer = torch.optim.AdamW([*params, self.weight], lr=1e-5, fused=fused)

    def __call__(self, wave, label, precision: str) -> None:
        self.optimizer.zero_grad()
        with autocast(self.device, precision):
            z = self.call(self.encoder, wave).float()
        cos = F.linear(F.normalize(z), F.normalize(self.weight))
        F.cross_entropy(30 * margin_logits(cos, label, 0.2), label).backward()
        self.optimizer.step()


def ours(cls=WavLM) -> torch.nn.Module:
    return cls(cfg.validate(EncoderConfig, {"name": "wavlm"}))


def call_ours(encoder, wave):
    return encoder(wave, torch.full((len(wave),), wave.shape[1], device=wave.device))


def sides(args, folder: Path) -> dict:
    """Name -> (encoder, function that calls it, precision)."""
    hf, own = ours(Transformers), ours()
    out = {f"transformers {p}": (hf, call_ours, p) for p in ("fp32", "bf16")}
    out |= {f"ours {p}": (own, call_ours, p) for p in ("fp32", "bf16")}
    if args.authors:
        theirs = authors_model(args.authors, folder)
        out = {f"authors {p}": (theirs, lambda m, wave: m([wave, False]), p) for p in ("fp32", "bf16")} | out
    return out


def synchronized(call, device: torch.device):
    """Wrap `call` so that it returns only when the GPU has finished."""
    if device.type == "cpu":
        return call

    def wait() -> None:
        call()
        torch.cuda.synchronize(device)

    return wait


def peak(device: torch.device) -> float:
    """Floating-point operations per second in large bf16 products of random matrices."""
    a, b = torch.randn(2, 8192, 8192, device=device, dtype=torch.bfloat16)
    product = synchronized(lambda: [a @ b for _ in range(10)], device)
    return 10 * 2 * 8192**3 / take_turns({"peak": product}, 5)["peak"]


def compare(what: str, calls: dict, one, args) -> None:
    """Time the calls, and print them with the operations of one utterance, which are counted in one().

    The base is the authors' code: in fp32 on a CPU, as they run it, and in bf16 too on a GPU.
    """
    with FlopCounterMode(display=False) as flops:
        one()
    count, cuda = flops.get_total_flops(), args.device.type == "cuda"
    seconds = take_turns({name: synchronized(call, args.device) for name, call in calls.items()}, args.turns)
    report(what, seconds, args.batch, "utterances", list(calls)[cuda])
    print(f"  {count / 1e9:.1f} GFLOP an utterance")
    if cuda:
        most = peak(args.device)
        print(f"  bf16 peak, measured: {most / 1e12:.0f} TFLOP/s")
        for name, s in seconds.items():
            rate = args.batch * count / s
            print(f"  {name:<18} {rate / 1e12:6.1f} TFLOP/s, {rate / most:.0%} of it")


def step(args, folder: Path) -> None:
    wave = 0.1 * torch.randn(args.batch, SAMPLES, device=args.device)
    label = torch.randint(CLASSES, (args.batch,), device=args.device)
    made, calls = {}, {}
    for name, (encoder, call, precision) in sides(args, folder).items():
        take = made.setdefault(id(encoder), Step(encoder, call, args.device))
        calls[name] = lambda take=take, p=precision: take(wave, label, p)
    cpu = Step(ours(), call_ours, torch.device("cpu"))
    compare("training step", calls, lambda: cpu(wave[:1].cpu(), label[:1].cpu(), "fp32"), args)


@torch.inference_mode()
def extract(args, folder: Path) -> None:
    wave, calls = 0.1 * torch.randn(args.batch, SAMPLES, device=args.device), {}

    def embed(encoder, call, precision):
        with autocast(args.device, precision):
            return call(encoder, wave)

    found = sides(args, folder)
    for name, side in found.items():
        side[0].eval().to(args.device)
        calls[name] = lambda side=side: embed(*side)
    own = copy.deepcopy(found["ours bf16"][0])  # its weights are packed once, as in extraction
    calls["ours bf16"] = lambda: embed(own, call_ours, "bf16")
    cpu = ours().eval()
    with packed(own, args.device, "bf16"):
        compare("extraction", calls, lambda: call_ours(cpu, wave[:1].cpu()), args)


def memory(args, folder: Path) -> None:
    gate = {"name": "dlg", "start_epoch": 0.0, "label_correction_epoch": 0.0}
    objective = cfg.build(
        cfg.validate(ObjectiveConfig, {"name": "aam", "crop_seconds": 3.0, "gate": gate}), ours(),
        RunInfo(args.batch, CLASSES, 1, 1),
    )  # fmt: skip
    objective.gate.tau.fill_(0.0)  # every label is rejected, so every clean crop is embedded
    params = [p for g in objective.optimizers()["main"] for p in g["params"]]
    optimizer = torch.optim.AdamW(params, lr=1e-5)
    rows, none = torch.arange(args.batch), torch.full((args.batch,), -1)
    views = {
        n: (0.1 * torch.randn(args.batch, SAMPLES), torch.full((args.batch,), SAMPLES))
        for n in ("main", "clean")
    }
    batch = Batch(0, 0, rows, 0 * rows, rows, none, none, 0 * rows, views)
    for _ in range(2):
        optimizer.zero_grad()
        losses = objective.train()(batch)
        total, weight = losses.terms["aam"]
        (total / weight.clamp_min(1)).backward()
        optimizer.step()
    assert np.isfinite(total.item())
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"memory: {most:.2f} GiB at the peak of the process, step of {args.batch} with the clean pass")


PARTS = {"step": step, "extract": extract, "memory": memory}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "parts", nargs="*", choices=[*PARTS, []], help="default: step and extract; memory wants its own run"
    )
    p.add_argument("--authors", type=Path, help="checkout of wavlm_ssl_sv")
    p.add_argument("--turns", type=int, default=3)
    p.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu or cuda")
    p.add_argument("--batch", type=int, default=8)
    args = p.parse_args()
    torch.manual_seed(0)
    for part in args.parts or ["step", "extract"]:
        with tempfile.TemporaryDirectory() as folder:
            PARTS[part](args, Path(folder))


if __name__ == "__main__":
    main()
