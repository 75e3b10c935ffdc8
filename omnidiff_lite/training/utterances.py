"""Training recordings: which form a batch, its padded length, and how they are varied against over-fitting."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from omnidiff_lite.media import Waveform

Utterance = tuple[Waveform, str]  # a recording and its words

WINDOW = 8  # batches whose items are sorted by length together
SHAPES = 8  # the most padded lengths in a run
SPEED = 0.12  # a recording is played faster or slower by up to this share
BANDS, BAND = 2, 0.15  # how many bands of mel bins are hidden, each up to this share of all bins
STRETCH = 0.2  # the most seconds hidden


def draw(lengths: Sequence[int], batch: int, step: int, seed: int) -> list[int]:
    """The items in the batch of `step`, determined by the seed and the step alone.

    Items are shuffled anew in each epoch. Every `WINDOW` batches distribute their items by length, in random batch
    order, so that little of a batch is padding. `lengths` are those of the items.
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
    """A batch's longest length, rounded up to one of `SHAPES` lengths, all multiples of `unit`, up to `longest`."""
    grain = unit * -(-longest // (SHAPES * unit))
    return min(longest, grain * -(-max(lengths) // grain))


def vary_speed(utterances: Iterable[Utterance], seed: int) -> Iterator[Utterance]:
    """Every recording at another speed, and so another pitch and timbre: more voices than were recorded.

    Ko et al., 2015. The samples stay; only their stated rate changes.
    """
    rng = np.random.default_rng(seed)
    return ((Waveform(wave.samples, round(wave.rate * rng.uniform(1 - SPEED, 1 + SPEED))), text)
            for wave, text in utterances)


def shown(batch: int, time: int, mels: int, rate: float, step: int, seed: int) -> Tensor:
    """SpecAugment (Park et al., 2019): which of the features [batch, time, mels] stay, 1.0 or 0.0.

    Bands of mel bins and one stretch of time are hidden in every item; `rate` is in frames per second.
    """
    generator = _generator(seed, 2, step)
    keep = ~_spans(batch, time, round(STRETCH * rate), generator)[:, :, None]
    for _ in range(BANDS):
        keep = keep & ~_spans(batch, mels, round(BAND * mels), generator)[:, None]
    return keep.float()


def _spans(batch: int, length: int, longest: int, generator: torch.Generator) -> Tensor:
    """One random span of 0 to `longest` places in each row, bool [batch, length]."""
    size = torch.rand(batch, 1, generator=generator) * (longest + 1)
    start = torch.rand(batch, 1, generator=generator) * (length - size.floor()).clamp_min(0)
    place = torch.arange(length)
    return (place >= start.floor()) & (place < start.floor() + size.floor())


def _generator(seed: int, stream: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed((3 * seed + stream) * 1_000_003 + number)
