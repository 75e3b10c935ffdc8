"""The one interface through which training gets its samples, whether in memory, in shards on disk or still to be
encoded.

Packing only needs random access: how many samples there are, how long some of them are, and those samples themselves.
Nothing here has state, so a run resumes from its step number.
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
        """For some samples: tokens (at least as many as `fetch` gives; 0 = broken), and whether the pad id occurs."""

    def fetch(self, numbers: Sequence[int]) -> list[EncodedSample | None]:
        """Some samples; None for one that turns out to be broken, which is then logged."""

    def take(self, numbers: np.ndarray) -> Samples:
        """Only the samples with these numbers."""

    def fingerprint(self) -> str:
        """Hash of everything that decides what the samples are."""


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
    """`given` as `Samples`; a plain list becomes `InMemory`."""
    return given if hasattr(given, "fetch") else InMemory(given)
