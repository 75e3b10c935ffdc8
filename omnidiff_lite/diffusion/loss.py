"""Masked cross-entropy (equation 1) with the next-token shift of the released code."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from omnidiff_lite.chat import IGNORE


def scored_positions(labels: Tensor, mask: Tensor | None = None, shift: bool = True) -> tuple[Tensor, Tensor]:
    """Where logits are needed, and their targets: (bool [B,L], targets [M] in row-major order).

    A label counts if it is not -100 and, given `mask` [B,L], if its input was masked. With `shift`, label j is scored
    with the logits of j-1 (ForCausalLMLoss in the released code; the label of position 0 cannot be scored).
    `model(ids, logits_positions=positions).logits` is then in the targets' order, and the vocabulary projection, most
    of the work at 176,264 ids, is done for scored positions only.
    """
    chosen = labels != IGNORE if mask is None else (labels != IGNORE) & mask
    if not shift:
        return chosen, labels[chosen]
    chosen = F.pad(chosen[:, 1:], (1, 0))
    return F.pad(chosen[:, 1:], (0, 1)), labels[chosen]


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p(target) of each row, float32 [M], from logits [M,V] and targets [M]. Group them to log a loss per task."""
    return F.cross_entropy(logits.float(), targets, reduction="none")


def masked_cross_entropy(logits: Tensor, labels: Tensor, mask: Tensor | None = None, shift: bool = True,
                         reduction: Literal["mean", "sum", "none"] = "mean") -> Tensor:
    """Cross-entropy of the masked answer tokens: logits [B,L,V], labels [B,L] (-100 = not scored), mask [B,L].

    "sum" is equation 1, "mean" over the scored tokens is the released code, "none" gives float32 [B,L] with each
    token's loss at its own position and 0 elsewhere. None has a 1/t weight (nor has the paper; training can use
    `corruption.bound_weight`). Rows without any scored token give 0, not NaN.
    """
    positions, targets = scored_positions(labels, mask, shift)
    losses = token_losses(logits[positions], targets)
    if reduction == "sum":
        return losses.sum()
    if reduction == "mean":
        return losses.sum() / max(len(losses), 1)
    if reduction != "none":
        raise ValueError(f"reduction {reduction!r} is none of 'mean', 'sum', 'none'")
    places = F.pad(positions[:, :-1], (1, 0)) if shift else positions
    return torch.zeros(places.shape, device=losses.device).masked_scatter(places, losses)
