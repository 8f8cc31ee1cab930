"""In which numbers answers are computed: bfloat16 where the machine computes in it, float32 elsewhere."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["auto", "bfloat16", "float32"]


def mixed(device: torch.device | str, precision: Precision = "auto") -> torch.autocast:
    """The context in which a model answers: convolutions and matrix products in bfloat16, or everything as it is.

    Args:
        device: where the model is.
        precision: "bfloat16", "float32", or "auto" for bfloat16 on GPUs and CPUs that have instructions for it (NVIDIA's since
            Ampere; AVX512_BF16 or AMX), where it takes about half the time. Coordinates stay float32 in any case.

    Raises:
        ValueError: an unknown precision.
    """
    kind, numbers = torch.device(device).type, computed_in(device, precision)
    return torch.autocast(kind, torch.bfloat16, enabled=numbers == torch.bfloat16)


def computed_in(device: torch.device | str, precision: Precision = "auto") -> torch.dtype:
    """bfloat16 or float32: the numbers of convolutions and matrix products under `mixed`; arguments and errors as there."""
    if precision not in ("auto", "bfloat16", "float32"):
        raise ValueError(f"unknown precision {precision!r}: auto, bfloat16 or float32")
    half = has_bfloat16(device) if precision == "auto" else precision == "bfloat16"
    return torch.bfloat16 if half else torch.float32


def has_bfloat16(device: torch.device | str) -> bool:
    """Whether this very device computes in bfloat16; emulated, it would be slower than float32."""
    device = torch.device(device)
    if device.type == "cuda" and torch.cuda.is_available():
        with torch.cuda.device(device):  # torch answers for the current one, and there may be GPUs of several kinds
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return False
