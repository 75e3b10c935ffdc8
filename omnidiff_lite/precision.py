"""The dtype of matrix products: bfloat16 where the hardware supports it, float32 where it would be emulated.

A CPU without AMX or AVX-512's bfloat16 emulates it in a slow loop: one thread of an AMD EPYC with only AVX2
reached 65 GFLOP/s in float32 and 1.3 in bfloat16 ([1344, 256] x [256, 768]); a step of the `cpu` preset took a minute.
"""

from __future__ import annotations

import platform
from functools import cache

import torch


def matrix_dtype(precision: str, device: str | torch.device) -> torch.dtype:
    """bfloat16 if requested ("bf16") and the device multiplies it, else float32, which rounds less."""
    return torch.bfloat16 if precision == "bf16" and multiplies_bf16(torch.device(device).type) else torch.float32


@cache
def multiplies_bf16(device: str) -> bool:
    """Whether a device type ("cpu", "cuda") has instructions for bfloat16 products; other types are trusted to."""
    if device == "cuda" and torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device != "cpu":
        return True
    if platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
