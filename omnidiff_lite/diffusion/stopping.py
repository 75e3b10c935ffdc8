"""Early stop: an answer is over when nothing that is still masked can be read any more."""

from __future__ import annotations

import torch
from torch import Tensor


def finished(canvas: Tensor, masked: Tensor, given: Tensor, ends: Tensor) -> bool:
    """Do all remaining masks of one answer lie behind a decided end?

    `canvas` [N] ids, `masked` and `given` (there from the start) bool [N], `ends` [E] ids. An end closes its own
    stretch, up to the next token given: text that ends early says nothing of the speech after its marker.
    """
    ended = torch.isin(canvas, ends) & ~given & ~masked
    place = torch.arange(len(canvas))
    border = place.masked_fill(~given, -1).cummax(0).values  # the last given token up to each place
    last = place.masked_fill(~ended, -1).cummax(0).values  # the last end up to each place
    return bool((last > border)[masked].all())
