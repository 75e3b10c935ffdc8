"""Packing: samples side by side in rows of one length (appendix A of the paper), as an endless repeatable stream.

The stream has no state: what `batch(step)` holds follows from the data, the mix, the seed and the step. A resumed run
asks for its next step and gets what an uninterrupted run would have got; `position` saves it the search. Each of
several processes builds its own rows of a step, and all agree which these are.
"""

from __future__ import annotations

import functools
import warnings
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from omnidiff_lite.chat import IGNORE
from omnidiff_lite.data.encode import EncodedSample
from omnidiff_lite.data.samples import Given, Samples, as_samples

WINDOW = 1024  # draws packed together: enough that a window's half-filled last row costs little


class PackingError(ValueError):
    """No row can be packed from the given samples, tasks or shares."""


@dataclass(frozen=True)
class PackedRow:
    """Several samples in one row of `length` tokens; the rest is padding that no token sees."""

    input_ids: np.ndarray  # int64 [length]
    labels: np.ndarray  # int64 [length]; -100 where nothing is predicted
    segment_ids: np.ndarray  # int64 [length]; 0, 1, ... by sample, -1 on padding
    position_ids: np.ndarray  # int64 [length]; from 0 in each sample, 0 on padding
    frames: np.ndarray  # float16 [k, dim]: speech frames of all samples, in order
    frame_positions: np.ndarray  # int64 [k]: where they stand
    tasks: tuple[str, ...]  # task of each segment

    @property
    def tokens(self) -> int:
        """Tokens that belong to samples."""
        return int((self.segment_ids >= 0).sum())


@dataclass(frozen=True)
class Draw:
    """One sample of the stream: entry `index` of its task's data, with `pads` tail pads; `tokens` long in all."""

    task: str
    index: int
    pads: int
    tokens: int


def efficiency(rows: Sequence[PackedRow]) -> float:
    """Share of the positions that hold samples, 0..1."""
    return sum(row.tokens for row in rows) / sum(len(row.input_ids) for row in rows)


def first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put each item into the first row with room. Returns the item numbers of each row.

    Raises `PackingError` for an item longer than `capacity`.
    """
    rows: list[list[int]] = []
    room = np.zeros(len(lengths), dtype=np.int64)
    for item, length in enumerate(lengths):
        if length > capacity:
            raise PackingError(f"a sample of {length} tokens does not fit a row of {capacity}; raise training.length")
        row = int(np.argmax(room[: len(rows)] >= length)) if rows else 0
        if not rows or room[row] < length:
            row = len(rows)
            rows.append([])
            room[row] = capacity
        rows[row].append(item)
        room[row] -= length
    return rows


def pack_row(samples: Sequence[EncodedSample], pads: Sequence[int], length: int, *, pad: int,
             context_of_audio: int) -> PackedRow:
    """One row from these samples. Sample i gets `pads[i]` tail pads: real tokens that are predicted (section 3.3)."""
    ids, labels = np.full(length, pad, np.int64), np.full(length, IGNORE, np.int64)
    segments, positions = np.full(length, -1, np.int64), np.zeros(length, np.int64)
    start = 0
    for number, (sample, tail) in enumerate(zip(samples, pads, strict=True)):
        text, stop = slice(start, start + len(sample.ids)), start + len(sample.ids) + tail
        ids[text], labels[text] = sample.ids, sample.labels
        labels[text.stop:stop] = pad
        segments[start:stop], positions[start:stop] = number, np.arange(stop - start)
        start = stop
    frames = np.concatenate([sample.frames for sample in samples]) if samples else np.zeros((0, 0), np.float16)
    places = np.flatnonzero(ids == context_of_audio)
    if len(places) != len(frames):
        raise PackingError(f"{len(places)} places for speech frames but {len(frames)} frames in a row of "
                           f"{', '.join(sample.task for sample in samples)}: the data were encoded with another "
                           "vocabulary; encode them again")
    return PackedRow(ids, labels, segments, positions, frames, places, tuple(sample.task for sample in samples))


def draw_pads(holds_pad: Sequence[bool], maximum: int, rng: np.random.Generator) -> list[int]:
    """How many tail pads each sample gets: uniform in 1..`maximum`, none if it holds the pad id (as in the release)."""
    if maximum < 1:
        return [0] * len(holds_pad)
    drawn = rng.integers(1, maximum + 1, len(holds_pad)).tolist()
    return [0 if held else count for held, count in zip(holds_pad, drawn)]


def pack_all(samples: Sequence[EncodedSample], length: int, seed: int, *, pad: int, context_of_audio: int,
             max_tail_pads: int = 16) -> list[PackedRow]:
    """Every sample once, with tail pads as in training: for validation."""
    holds_pad = [(sample.ids == pad).any() for sample in samples]
    pads = draw_pads(holds_pad, max_tail_pads, np.random.default_rng(seed))
    rows = first_fit([len(sample.ids) + tail for sample, tail in zip(samples, pads)], length)
    return [pack_row([samples[i] for i in row], [pads[i] for i in row], length, pad=pad,
                     context_of_audio=context_of_audio) for row in rows]


class PackedStream:
    """Rows for every step of a training run, mixed from several tasks.

    The stream proceeds in windows of about `WINDOW` draws. Each window takes every task's share of it from an endless
    sequence of that task's samples, reshuffled each epoch, so that no sample comes twice within an epoch; then it
    packs them first-fit, long ones first, and shuffles the rows. Finding the window of a row needs the row counts of
    the windows before it: some 10 ms per window, once.
    """

    def __init__(self, datasets: dict[str, Given], mix: dict[str, float], length: int, rows: int,
                 seed: int, *, pad: int, context_of_audio: int, max_tail_pads: int = 16) -> None:
        """`datasets`: by task, in memory or any other `Samples`. `mix`: share of the samples by task, scaled to sum 1.
        `rows`: rows per step.

        Each draw gets 1..`max_tail_pads` tail pads, or none if the sample already holds the pad id (as in the release).
        Samples that cannot fit are left out with a warning that counts them (the released code drops them silently);
        those whose length is known only when they are drawn are left out then.
        Raises `PackingError` if a task of the mix has no sample that fits.
        """
        self.length, self.rows, self.seed, self.max_tail_pads = length, rows, seed, max_tail_pads
        self.pad, self.context_of_audio = pad, context_of_audio
        self.shares = _shares(mix)
        self.tasks = tuple(self.shares)
        self.data = {task: self._fitting(task, as_samples(datasets.get(task, []))) for task in self.tasks}
        self._epoch = 1 + max(int(len(self.data[task]) / (WINDOW * share))  # windows
                              for task, share in self.shares.items())
        self._first, self._rows_until = 0, [0]  # from window `_first` on: the rows in the windows before each
        self._window = functools.lru_cache(maxsize=4)(self._plan)
        self._order = functools.lru_cache(maxsize=2 * len(self.tasks))(self._permutation)

    def batch(self, step: int, own: Sequence[int] | None = None) -> list[PackedRow]:
        """The rows of step `step` (0, 1, ...), or those with the numbers `own` of 0..`rows`-1."""
        numbers = range(self.rows) if own is None else own
        return self._build([self._locate(step * self.rows + number) for number in numbers])

    def draws(self, step: int) -> list[Draw]:
        """The draws that make up a step's rows, row after row."""
        return [draw for number in range(step * self.rows, (step + 1) * self.rows) for draw in self._locate(number)]

    def repeats(self, steps: int) -> dict[str, float]:
        """How often the first `steps` steps show each sample of a task, on average: below 1 if some are not seen."""
        window, row = self._place(steps * self.rows)
        drawn = Counter(draw.task for draws in self._window(window)[:row] for draw in draws)
        return {task: (int(window * WINDOW * share) + drawn[task]) / len(self.data[task])
                for task, share in self.shares.items()}

    def position(self, step: int) -> dict[str, int]:
        """Where a step begins: its window, and the rows before that window. For `resume`, in a later process."""
        window, row = self._place(step * self.rows)
        return {"window": window, "rows": step * self.rows - row}

    def window(self, number: int) -> list[list[Draw]]:
        """The rows of a window, as draws."""
        return self._window(number)

    def resume(self, window: int, rows: int) -> None:
        """Start looking for rows at a `position`: only the time to the first row changes."""
        self._first, self._rows_until = window, [rows]

    def _build(self, rows: Sequence[Sequence[Draw]]) -> list[PackedRow]:
        """Rows with their samples; each sample is fetched once, those of a task together. Broken ones leave gaps."""
        found: dict[tuple[str, int], EncodedSample | None] = {}
        for task in self.tasks:
            wanted = sorted({draw.index for row in rows for draw in row if draw.task == task})
            if wanted:
                found |= zip(((task, index) for index in wanted), self.data[task].fetch(wanted), strict=True)
        whole = [[draw for draw in row if found[draw.task, draw.index] is not None] for row in rows]
        return [pack_row([found[draw.task, draw.index] for draw in row], [draw.pads for draw in row], self.length,
                         pad=self.pad, context_of_audio=self.context_of_audio) for row in whole]

    def _locate(self, number: int) -> list[Draw]:
        window, row = self._place(number)
        return self._window(window)[row]

    def _place(self, number: int) -> tuple[int, int]:
        """Window of a row, and its number there."""
        if number < self._rows_until[0]:
            self._first, self._rows_until = 0, [0]
        while self._rows_until[-1] <= number:
            planned = self._window(self._first + len(self._rows_until) - 1)
            self._rows_until.append(self._rows_until[-1] + len(planned))
            if len(self._rows_until) > self._epoch and self._rows_until[-1] == self._rows_until[-1 - self._epoch]:
                raise PackingError(f"none of the samples of {', '.join(self.tasks)} fits a row of {self.length} "
                                   "tokens: a whole epoch made no row; raise training.length")
        window = bisect_right(self._rows_until, number) - 1
        return self._first + window, number - self._rows_until[window]

    def _plan(self, window: int) -> list[list[Draw]]:
        """The rows of one window, as draws."""
        rng = np.random.default_rng([self.seed, window])
        indices = {task: self._indices(task, int(window * WINDOW * share), int((window + 1) * WINDOW * share))
                   for task, share in self.shares.items()}
        chosen = [(task, index) for task in indices for index in indices[task]]
        tokens, holds_pad = (np.concatenate(part) for part in
                             zip(*(self.data[task].measure(indices[task], self.pad) for task in indices)))
        pads = draw_pads(holds_pad, self.max_tail_pads, rng)
        draws = [Draw(*chosen[i], pads[i], int(tokens[i]) + pads[i]) for i in rng.permutation(len(chosen)) if tokens[i]]
        draws = [draw for draw in draws if draw.tokens <= self.length]
        draws.sort(key=lambda draw: draw.tokens, reverse=True)  # long ones first leave short ones to fill the gaps
        packed = first_fit([draw.tokens for draw in draws], self.length)
        return [[draws[i] for i in packed[row]] for row in rng.permutation(len(packed))]

    def _indices(self, task: str, start: int, stop: int) -> list[int]:
        """Entries `start..stop-1` of a task's endless sequence: one permutation of its data after another."""
        size = len(self.data[task])
        return [int(self._order(task, i // size)[i % size]) for i in range(start, stop)]

    def _permutation(self, task: str, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, *task.encode(), epoch]).permutation(len(self.data[task]))

    def _fitting(self, task: str, samples: Samples) -> Samples:
        """The samples that fit a row, as far as their lengths are known."""
        if not len(samples):
            raise PackingError(f"task {task!r} is in the mix but it has no samples; give them, or take it out of the "
                               "mix")
        if samples.lengths is None:
            return samples
        fitting = np.flatnonzero(samples.lengths + self.max_tail_pads <= self.length)
        if not len(fitting):
            raise PackingError(f"task {task!r} is in the mix but none of its {len(samples)} samples fits a row of "
                               f"{self.length} tokens (shortest: {samples.lengths.min()} and up to "
                               f"{self.max_tail_pads} pads); raise training.length")
        if len(fitting) == len(samples):
            return samples
        warnings.warn(f"{task}: {len(samples) - len(fitting)} of {len(samples)} samples are longer than a row of "
                      f"{self.length} tokens and are left out", stacklevel=3)
        return samples.take(fitting)


def _shares(mix: dict[str, float]) -> dict[str, float]:
    total = sum(mix.values())
    if total <= 0 or min(mix.values()) < 0:
        raise PackingError(f"the mix {mix} needs shares of at least 0 with a positive sum")
    return {task: share / total for task, share in sorted(mix.items()) if share > 0}


@dataclass(frozen=True)
class ReleasedRow:
    """What the released packing returns for a finished row (golden data: packing.json)."""

    input_ids: list[int]
    labels: list[int]
    position_ids: list[int]  # 0 begins a sample; the tail continues the last one
    attention_mask: list[int]  # 0 on the tail: its queries are masked, its keys are not
    cu_seq_lens: list[int]  # where samples begin and end; the tail belongs to the last one

    @property
    def max_seq_len(self) -> int:
        return max(b - a for a, b in zip(self.cu_seq_lens, self.cu_seq_lens[1:]))


def pack_released(samples: Iterable[tuple[int, EncodedSample]], length: int, pad: int) -> Iterator[ReleasedRow | None]:
    """The released packing, with what it loses: (source, sample) in, after each one a finished row or None.

    Each source file fills its own row. A sample over `length` is dropped; one that does not fit emits the row as it is
    and begins the next; what is left at the end is never trained on (dataset_qwen2.py).
    """
    open_rows: dict[int, list[EncodedSample]] = {}
    for source, sample in samples:
        row = open_rows.setdefault(source, [])
        if len(sample.ids) > length:
            yield None
        elif sum(len(s.ids) for s in row) + len(sample.ids) > length:
            open_rows[source] = [sample]
            yield _released_row(row, length, pad)
        else:
            row.append(sample)
            yield None


def _released_row(samples: list[EncodedSample], length: int, pad: int) -> ReleasedRow:
    ids = [int(i) for s in samples for i in s.ids]
    labels = [int(i) for s in samples for i in s.labels]
    tail = length - len(ids)
    starts = np.cumsum([0] + [len(s.ids) for s in samples[:-1]]).tolist() + [length]
    positions = [p for a, b in zip(starts, starts[1:]) for p in range(b - a)]
    return ReleasedRow(ids + [pad] * tail, labels + [IGNORE] * tail, positions, [1] * len(ids) + [0] * tail, starts)
