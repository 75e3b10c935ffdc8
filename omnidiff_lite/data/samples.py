"""The one door through which training takes its samples, be they in memory, in shards on disk or still to be encoded.

Packing needs no more than random access: how many samples there are, how long some of them are, and those themselves.
Nothing here has a state, so a run resumes from the number of its step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol, Union

import numpy as np

from omnidiff_lite.data.encode import EncodedSample


class Samples(Protocol):
    """The samples of one task, by number."""

    lengths: np.ndarray | None  # tokens of every sample; None where a sample must be read to know

    def __len__(self) -> int: ...

    def measure(self, numbers: Sequence[int], pad: int) -> tuple[np.ndarray, np.ndarray]:
        """Of some samples: tokens (at least as many as `fetch` gives; 0 = broken), and whether the pad id is in."""

    def fetch(self, numbers: Sequence[int]) -> list[EncodedSample | None]:
        """Some samples; None for one that turns out broken, which has been logged."""

    def take(self, numbers: np.ndarray) -> Samples:
        """These alone."""

    def fingerprint(self) -> str:
        """Hash of all that decides what the samples are."""


class InMemory(list):
    """A list of `EncodedSample` as `Samples`."""

    def __init__(self, samples: Sequence[EncodedSample]) -> None:
        super().__init__(samples)
        self.lengths = np.array([len(sample.ids) for sample in self], np.int64)

    def measure(self, numbers: Sequence[int], pad: int) -> tuple[np.ndarray, np.ndarray]:
        return self.lengths[np.asarray(numbers, int)], np.array([(self[n].ids == pad).any() for n in numbers], bool)

    def fetch(self, numbers: Sequence[int]) -> list[EncodedSample | None]:
        return [self[number] for number in numbers]

    def take(self, numbers: np.ndarray) -> InMemory:
        return InMemory([self[number] for number in numbers])

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for sample in self:
            for array in (sample.ids, sample.labels, sample.frames):
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]


Given = Union[Samples, Sequence[EncodedSample]]


def as_samples(given: Given) -> Samples:
    """A plain list is in memory."""
    return given if hasattr(given, "fetch") else InMemory(given)
