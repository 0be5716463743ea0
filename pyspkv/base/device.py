"""Where and how precisely to compute: the device of a single process, bf16 where it is fast."""

import os

import torch

from pyspkv.base.errors import UserError


def device() -> torch.device:
    """The first GPU, else the CPU, for a single process. UserError: `--ngpu` is given but there is no GPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if int(os.environ.get("SPKV_NGPU") or 0) > 0:
        raise UserError(
            "--ngpu: torch sees no GPU here",
            hint="look at nvidia-smi; the CPU build of torch sees no GPU (SPKV_TORCH in setup_env.sh)",
        )
    return torch.device("cpu")


def choose_precision(asked: str, device: torch.device) -> str:
    """`auto` -> bf16 where the hardware multiplies it fast, else fp32: GPUs since Ampere, CPUs with AMX, and AMD's with
    AVX-512 BF16, which multiply it twice as fast as fp32 (Intel's do not: benchmarks/RESULTS.md)."""
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    has = torch.cpu.get_capabilities()
    amd = str(has.get("cpu_name", "")).startswith("AMD")
    return "bf16" if has.get("amx_bf16") or (amd and has.get("avx512_bf16")) else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
