"""Device and precision of a single process."""

import os

import torch

from pyspkv.base.errors import UserError


def device() -> torch.device:
    """The first GPU, or the CPU when there is none. UserError when `--ngpu` is given but there is no GPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if int(os.environ.get("SPKV_NGPU") or 0) > 0:
        raise UserError(
            "--ngpu: torch sees no GPU here",
            hint="look at nvidia-smi; the CPU build of torch sees no GPU (SPKV_TORCH in setup_env.sh)",
        )
    return torch.device("cpu")


def choose_precision(asked: str, device: torch.device) -> str:
    """Turn the option `auto` into bf16 where the hardware multiplies it fast, else into fp32.

    Fast are GPUs since Ampere, CPUs with AMX, and AMD CPUs with AVX-512 BF16, which multiply bf16 twice as
    fast as fp32 (Intel's AVX-512 BF16 does not: benchmarks/RESULTS.md). Any other option is returned as it
    is.
    """
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    has = torch.cpu.get_capabilities()
    amd = str(has.get("cpu_name", "")).startswith("AMD")
    return "bf16" if has.get("amx_bf16") or (amd and has.get("avx512_bf16")) else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Context for mixed precision, which is off unless `precision` is bf16."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
