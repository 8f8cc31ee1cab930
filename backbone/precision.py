"""In which numbers answers are computed: bfloat16 where the machine computes in it, float32 elsewhere."""

from __future__ import annotations

import functools
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
    if precision not in ("auto", "bfloat16", "float32"):
        raise ValueError(f"unknown precision {precision!r}: auto, bfloat16 or float32")
    kind = torch.device(device).type
    return torch.autocast(
        kind, torch.bfloat16, enabled=has_bfloat16(kind) if precision == "auto" else precision == "bfloat16"
    )


@functools.cache
def has_bfloat16(kind: str) -> bool:
    """Whether devices of this kind ("cpu", "cuda", "mps") compute in bfloat16; emulated, it would be slower than float32."""
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind == "cpu":
        return any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return False
