"""How full the rows of a stage are, packed by the stream that training uses, from the lengths of table 4's samples.

Three pictures of a user turn are 3,078 tokens and so never share one of the paper's rows of 3,072: where they make up
most of a stage, no packing fills its rows. So an upper bound over all packings is computed as well.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from omnidiff_lite.config import Preset
from omnidiff_lite.data.encode import EncodedSample
from omnidiff_lite.data.packing import PackedStream, PackingError
from omnidiff_lite.plan.data import sample_tokens, sources
from omnidiff_lite.training.trainer import stage_config

SAMPLES = 4096  # of each task, its sources in the proportions of table 4
WINDOWS = 4  # packed


@dataclass(frozen=True)
class Filled:
    """Shares of row positions that hold samples, 0..1: `share` as packed, `most` that any packing of them reaches."""

    share: float
    most: float


class _Lengths:
    """Samples of which only the length is known (a `Samples`)."""

    def __init__(self, lengths: np.ndarray) -> None:
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def measure(self, numbers: Sequence[int], pad: int) -> tuple[np.ndarray, np.ndarray]:
        return self.lengths[np.asarray(numbers, int)], np.zeros(len(numbers), bool)

    def fetch(self, numbers: Sequence[int]) -> list[EncodedSample | None]:
        return [None] * len(numbers)

    def take(self, numbers: np.ndarray) -> _Lengths:
        return _Lengths(self.lengths[numbers])

    def fingerprint(self) -> str:
        return ""


def filled_rows(preset: Preset, stage: int, length: int | None = None, seed: int = 0) -> Filled:
    """Pack `WINDOWS` windows of a stage's mix; `length` of a row: the preset's unless given."""
    length = length or preset.training.length
    mix = stage_config(preset, stage).mix
    stream = PackedStream({task: _task(preset, task, stage) for task in mix}, mix, length, 1, seed, pad=0,
                          context_of_audio=1, max_tail_pads=preset.training.max_tail_pads)
    rows = [[draw.tokens for draw in row] for window in range(WINDOWS) for row in stream.window(window)]
    tokens = [count for row in rows for count in row]
    return Filled(sum(tokens) / (len(rows) * length), sum(tokens) / (fewest_rows(tokens, length) * length))


def filled_text(preset: Preset) -> str:
    """How full the rows of each stage's own mix are, as text; without a number if a row does not hold every sample of
    table 4."""
    length = preset.training.length
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # samples left out
            stages = [filled_rows(preset, stage) for stage in (1, 2, 3)]
    except (PackingError, UserWarning):
        return f"Rows of {length:,} tokens do not hold every sample of table 4: how full they are is not planned."
    share, most = (_percents([getattr(filled, name) for filled in stages]) for name in ("share", "most"))
    return (f"Rows of {length:,} tokens, packed as in training, are filled to {share} % in stages 1 to 3 of the "
            f"preset's own mix;\nno packing fills more than {most} %.")


def _percents(shares: Sequence[float]) -> str:
    *first, last = (f"{100 * share:.0f}" for share in shares)
    return f"{', '.join(first)} and {last}"


def fewest_rows(tokens: Sequence[int], length: int) -> int:
    """A lower bound on the number of rows that hold samples of these lengths.

    By their sum; and for each k by those longer than a (k + 1)-th of a row, of which no row holds more than k.
    """
    counts = np.asarray(tokens)
    most = [math.ceil(int((counts * (k + 1) > length).sum()) / k) for k in range(1, 5)]
    return max(math.ceil(counts.sum() / length), *most)


def _task(preset: Preset, task: str, stage: int) -> _Lengths:
    """Lengths from table 4's sources of a task in this stage, or from all if the paper's stage lacks the task."""
    found = [s for s in sources(stage) if s.task == task] or [s for s in sources() if s.task == task]
    pads = (1 + preset.training.max_tail_pads) / 2 if preset.training.max_tail_pads else 0  # the stream adds its own
    lengths = [math.ceil(sample_tokens(task, preset, s.clip_seconds).total - pads) for s in found]
    shares = np.array([s.count for s in found]) / sum(s.count for s in found)
    return _Lengths(np.repeat(lengths, np.maximum(1, np.round(shares * SAMPLES)).astype(int)))
