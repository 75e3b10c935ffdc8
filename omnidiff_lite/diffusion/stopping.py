"""Early stop: an answer is over when none of its remaining masks would be read."""

from __future__ import annotations

import torch
from torch import Tensor


def finished(canvas: Tensor, masked: Tensor, given: Tensor, ends: Tensor) -> bool:
    """Whether all remaining masks of one answer lie after a decided end.

    `canvas` [N] ids, `masked` and `given` (there from the start) bool [N], `ends` [E] ids. An end closes only its own
    stretch, up to the next given token: text that ends early says nothing about the speech after its marker.
    """
    ended = torch.isin(canvas, ends) & ~given & ~masked
    place = torch.arange(len(canvas))
    border = place.masked_fill(~given, -1).cummax(0).values  # the last given token up to each position
    last = place.masked_fill(~ended, -1).cummax(0).values  # the last end up to each position
    return bool((last > border)[masked].all())
