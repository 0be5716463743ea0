"""A step and extraction of a trunk with MHFA: ours beside transformers' own encoder.

    OMP_NUM_THREADS=1 python benchmarks/trunks.py [--size tiny base] [--turns 3] [--batch 8] [step extract]
    OMP_NUM_THREADS=1 python benchmarks/trunks.py --family wav2vec2 --size small

`step`: 3 s crops, AAM-softmax over 1,000 classes, forward, backward and AdamW on the layers, MHFA and the classes,
convolutions frozen. `extract`: evaluation mode, the same crops. Weights are random. The sizes of all families are those
of OpenAI's models; `small` is the Base of the other families.

All sides take turns in one process and start from the waveform: theirs with transformers' feature extractor. Whisper
has two of theirs. `30 s` is how transformers demands it: the log-mel of 30 s, of which the pooling takes the crop's
frames. `crop` is the encoder with its number of positions set to the crop's; the other families always run at that
length.
"""

import argparse

import torch
from peer import report, take_turns
from torch.nn import functional as F

from pyspkv.base import config as cfg
from pyspkv.base.device import autocast
from pyspkv.base.guarded import transformers
from pyspkv.fast.packed_linear import packed
from pyspkv.models.registry import EncoderConfig
from pyspkv.models.trunk_arch import ARCHS
from pyspkv.models.trunks import Trunk, TrunkConfig
from pyspkv.objectives.aam import margin_logits

BASE = "transformers crop"
SAMPLES, CLASSES, CPU = 48_000, 1000, torch.device("cpu")
SIZES = {  # width, layers, heads of OpenAI's models
    "tiny": (384, 4, 6),
    "base": (512, 6, 8),
    "small": (768, 12, 12),
}


class Transformers(Trunk):
    """The same weights under transformers' own front end and forward pass."""

    def __init__(self, config: TrunkConfig):
        super().__init__(config)
        hf, bert = transformers(), config.family == "w2v_bert"
        self.extract = (
            hf.SeamlessM4TFeatureExtractor() if bert else hf.Wav2Vec2FeatureExtractor(do_normalize=True)
        )
        if not bert:
            self.trunk.feature_extractor._freeze_parameters()  # transformers' way: no graph of the convolutions

    def features(self, wave, lengths):
        found = self.extract(list(wave.numpy()), sampling_rate=16000, return_tensors="pt")
        return found.get("input_values", found.get("input_features")), lengths

    def hidden_states(self, feats, lengths):
        out = self.trunk(feats, output_hidden_states=True)
        states = [*out.hidden_states[:-1], out.last_hidden_state]
        return states, torch.full_like(lengths, states[0].shape[1])


class TransformersWhisper(Trunk):
    """The same of Whisper; `seconds`: what the audio is padded to."""

    def __init__(self, config: TrunkConfig, seconds: float):
        super().__init__(config)
        self.samples = round(16000 * seconds)
        self.extract = transformers().WhisperFeatureExtractor()
        positions = self.samples // 320
        self.trunk.config.max_source_positions = positions
        weight = self.trunk.embed_positions.weight[:positions].clone()
        self.trunk.embed_positions = torch.nn.Embedding.from_pretrained(weight)

    def features(self, wave, lengths):
        how = {"sampling_rate": 16000, "return_tensors": "pt", "max_length": self.samples}
        return self.extract(list(wave.numpy()), **how).input_features, lengths // 160

    def hidden_states(self, feats, lengths):
        return list(self.trunk(feats, output_hidden_states=True).hidden_states), lengths // 2


def config_of(family: str, size: str) -> TrunkConfig:
    dim, layers, heads = SIZES[size]
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    if family == "whisper":
        names = ("d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim")
    arch = dict(zip(names, (dim, layers, heads, 4 * dim)))
    return cfg.validate(EncoderConfig, {"name": "trunk", "family": family, "arch": arch})


def sides(family: str, size: str) -> dict[str, torch.nn.Module]:
    """The encoders, with the same weights."""
    config = config_of(family, size)
    own = Trunk(config)
    if family != "whisper":
        theirs = Transformers(config)
        theirs.load_state_dict(own.state_dict())
        return {BASE: theirs, "ours": own}
    crop, whole = TransformersWhisper(config, SAMPLES / 16000), TransformersWhisper(config, 30.0)
    state = {k: v for k, v in own.state_dict().items() if "embed_positions" not in k}
    table = own.trunk.embed_positions.weight
    for theirs in (crop, whole):
        theirs.load_state_dict(state, strict=False)
        theirs.trunk.embed_positions.weight.data.copy_(table[: len(theirs.trunk.embed_positions.weight)])
    return {"transformers 30 s": whole, BASE: crop, "ours": own}


class Step:
    """One training step in plain torch."""

    def __init__(self, encoder: torch.nn.Module):
        self.encoder = encoder.train()
        self.weight = torch.nn.Parameter(0.02 * torch.randn(CLASSES, encoder.embed_dim))
        params = [p for p in encoder.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW([*params, self.weight], lr=1e-5, fused=True)

    def __call__(self, wave: torch.Tensor, label: torch.Tensor, precision: str) -> None:
        self.optimizer.zero_grad()
        with autocast(CPU, precision):
            z = self.encoder(wave, torch.full((len(wave),), SAMPLES)).float()
        cos = F.linear(F.normalize(z), F.normalize(self.weight))
        F.cross_entropy(30 * margin_logits(cos, label, 0.2), label).backward()
        self.optimizer.step()


def step(family: str, size: str, args) -> None:
    wave, label = 0.1 * torch.randn(args.batch, SAMPLES), torch.randint(CLASSES, (args.batch,))
    steps = {name: Step(encoder) for name, encoder in sides(family, size).items()}
    for precision in args.precision:
        calls = {name: lambda s=s, p=precision: s(wave, label, p) for name, s in steps.items()}
        told = f"{family} {size}, training step, {precision}"
        report(told, take_turns(calls, args.turns), args.batch, "utterances", BASE)


@torch.inference_mode()
def extract(family: str, size: str, args) -> None:
    wave, lengths = 0.1 * torch.randn(args.batch, SAMPLES), torch.full((args.batch,), SAMPLES)
    encoders = {name: encoder.eval() for name, encoder in sides(family, size).items()}
    found = {name: encoder(wave, lengths) for name, encoder in encoders.items()}
    gap = (found["ours"] - found[BASE]).norm() / found["ours"].norm()
    print(f"{family} {size}: relative distance of ours to transformers at the crop {gap:.1e}")
    for precision in args.precision:

        def embed(encoder, precision=precision):
            with autocast(CPU, precision):
                return encoder(wave, lengths)

        with packed(encoders["ours"], CPU, precision):  # as extraction does
            calls = {name: lambda e=encoder: embed(e) for name, encoder in encoders.items()}
            seconds = take_turns(calls, args.turns)
        report(f"{family} {size}, extraction, {precision}", seconds, args.batch, "utterances", BASE)


PARTS = {"step": step, "extract": extract}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    p.add_argument("--family", choices=ARCHS, default="whisper")
    p.add_argument("--size", nargs="+", choices=SIZES, default=["tiny", "base"])
    p.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32"])
    p.add_argument("--turns", type=int, default=3)
    p.add_argument("--batch", type=int, default=8)
    args = p.parse_args()
    torch.manual_seed(0)
    for size in args.size:
        for part in args.parts or PARTS:
            PARTS[part](args.family, size, args)


if __name__ == "__main__":
    main()
