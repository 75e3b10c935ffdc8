"""How many tokens each decoding step fixes, and where."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Step:
    """One step in the block [start, stop) of the answer: fix `share` of its masks, or all if it is the `last` step."""

    start: int
    stop: int
    share: float
    last: bool

    @property
    def places(self) -> slice:
        return slice(self.start, self.stop)

    def count(self, masks: int) -> int:
        """How many of the block's `masks` to fix: truncated in float32, as in the release, and at least 1."""
        return max(masks if self.last else int(np.float32(masks) * np.float32(self.share)), 1)


def plan(length: int, masks: int, steps: int, eps: float = 1e-3, block_length: int | None = None,
         spread: bool = False, schedule: str = "linear") -> list[Step]:
    """All steps of one answer of `length` tokens, `masks` of which are undecided at the start.

    Time runs in equal strides from 1 to `eps` within each block; a stride from t to s fixes the share 1 - s/t of what
    is left, so each step fixes about the same number of tokens. Blocks get their proportional part of `steps`:
    truncated in float32, as in the release, which loses the remainder and may leave a block masked; or, with `spread`,
    so that all steps are used, and at least one in each block. As many blocks are visited as `masks` fill. `schedule`
    "cosine": time is the cosine of a quarter turn in equal strides (MaskGIT), so that few tokens are fixed while little
    is known, and many at the end.
    """
    block = length if block_length is None else block_length
    steps = min(steps, length)
    result = []
    for start in range(0, math.ceil(masks / block) * block, block):
        stop = min(start + block, length)
        if spread:
            here = max(1, stop * steps // length - start * steps // length)
        else:
            here = int(np.float32(max(stop - start, 0)) / np.float32(length) * np.float32(steps))
        times = torch.linspace(1, eps, here + 1)
        if schedule == "cosine":
            times = eps + (1 - eps) * (torch.linspace(0, 1, here + 1) * torch.pi / 2).cos()
        shares = (1 - times[1:] / times[:-1]).tolist()
        result += [Step(start, stop, share, i == here - 1) for i, share in enumerate(shares)]
    return result
