"""Batches of recordings of unlike length: which, and how long."""

from __future__ import annotations

from collections.abc import Sequence

import torch

WINDOW = 8  # batches whose items are sorted by length together
SHAPES = 8  # how many padded lengths a run has, at most


def draw(lengths: Sequence[int], batch: int, step: int, seed: int) -> list[int]:
    """Which items make up the batch of `step`, fixed by the seed and the step alone.

    Items come in epochs of shuffles. Each `WINDOW` batches share their items out by length, in random order of the
    batches: little of a batch is padding then. `lengths` are those of the items.
    """
    window, place = divmod(step, WINDOW)
    first, last = window * WINDOW * batch, (window + 1) * WINDOW * batch
    epochs = range(first // len(lengths), (last - 1) // len(lengths) + 1)
    order = torch.cat([torch.randperm(len(lengths), generator=_generator(seed, 0, epoch)) for epoch in epochs])
    skipped = first - epochs[0] * len(lengths)
    items = sorted(order[skipped:skipped + last - first].tolist(), key=lambda i: lengths[i])
    start = batch * int(torch.randperm(WINDOW, generator=_generator(seed, 1, window))[place])
    return items[start:start + batch]


def padded_length(lengths: Sequence[int], longest: int, unit: int = 1) -> int:
    """The longest of a batch, rounded up to one of `SHAPES` lengths, all multiples of `unit`, up to `longest`."""
    grain = unit * -(-longest // (SHAPES * unit))
    return min(longest, grain * -(-max(lengths) // grain))


def _generator(seed: int, stream: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed((2 * seed + stream) * 1_000_003 + number)
