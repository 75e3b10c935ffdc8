"""What decoding returns: the answers, and how they came about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class DecodeResult:
    """Decoded answers, and how they came about; all on the CPU.

    `ids` [B,N]: the answers only, with the pad id beyond each one's own `lengths`. A position whose candidate was the
    mask id itself stays masked, as in the release. `history`: the canvas [B,N] after each step. `decided` [B,N]: the
    step that fixed a position, -1 = given at the start, or never fixed. `confidence` [B,N]: the confidence at that
    step, else NaN. `passes`: how often the denoiser was run; both sides of guidance count as one pass.
    """

    ids: Tensor
    history: Sequence[Tensor]
    decided: Tensor
    confidence: Tensor
    lengths: list[int]
    passes: int = 0


class History(Sequence[Tensor]):
    """The canvas [B,N] after each step, built on access: a position, once fixed, never changes again."""

    def __init__(self, start: Tensor, ids: Tensor, decided: Tensor, steps: int) -> None:
        """`start` [B,N]: the canvas before the first step; `ids`, `decided`: those of the result."""
        self.start, self.ids, self.decided, self.steps = start, ids, decided, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int | slice) -> Tensor | list[Tensor]:
        numbers = range(self.steps)[step]
        return self._after(numbers) if isinstance(numbers, int) else [self._after(n) for n in numbers]

    def _after(self, step: int) -> Tensor:
        return torch.where((self.decided >= 0) & (self.decided <= step), self.ids, self.start)
