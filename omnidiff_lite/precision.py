"""Which numbers matrix products run in: bfloat16 where the hardware multiplies it, float32 where it is emulated.

A CPU without AMX or AVX-512's bfloat16 multiplies it in a loop of its own: one thread of an AMD EPYC with AVX2 alone
made 65 GFLOP/s in float32 and 1.3 in bfloat16 ([1344, 256] x [256, 768]), and a step of the `cpu` preset took a minute.
"""

from __future__ import annotations

import platform
from functools import cache

import torch


def matrix_dtype(precision: str, device: str | torch.device) -> torch.dtype:
    """bfloat16 if that was asked for ("bf16") and the device multiplies it, else float32, which rounds less."""
    return torch.bfloat16 if precision == "bf16" and multiplies_bf16(torch.device(device).type) else torch.float32


@cache
def multiplies_bf16(device: str) -> bool:
    """Whether a type of device ("cpu", "cuda") has instructions for bfloat16 products; of others it is taken on trust."""
    if device == "cuda" and torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device != "cpu":
        return True
    if platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
