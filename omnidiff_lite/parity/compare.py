"""One comparison of the kit with the released implementation, and the report row it gives."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from omnidiff_lite.parity.golden import GOLDEN, Golden

RELEASED, OWN = "released", "own loop"
Pairs = Iterable[tuple[Any, Any]]  # what the kit gives, and what it should give


@dataclass(frozen=True)
class Row:
    """What one case reached: the largest `error` if there is a tolerance, else `equal` of `total` things.

    `against`: the source of the reference numbers; only those of the released implementation show parity.
    """

    part: str
    case: str
    compared: str
    tolerance: float
    error: float
    equal: int
    total: int
    against: str = RELEASED
    failure: str = ""  # the exception that ended the case

    @property
    def passed(self) -> bool:
        return self.total > 0 and (self.error <= self.tolerance if self.tolerance else self.equal == self.total)

    @property
    def reached(self) -> str:
        if self.failure:
            return self.failure
        return f"{self.error:.1e}" if self.tolerance else f"{self.equal:,} of {self.total:,} equal"


@dataclass(frozen=True)
class Case:
    """`check(golden)` yields pairs. `tolerance` 0: each pair must be equal; else each pair of tensors must be within
    it, by the largest absolute difference, or, `relative`, by the norm of the difference over the norm."""

    part: str
    name: str
    compared: str
    tolerance: float
    check: Callable[[Golden], Pairs]
    relative: bool = False
    against: str = RELEASED

    def __str__(self) -> str:
        return f"{self.part}: {self.name}"

    def run(self, golden: Golden = GOLDEN) -> Row:
        """Raises `ParityError` if a reference file is missing, and whatever the check raises."""
        pairs = list(self.check(golden))
        error, equal = 0.0, 0
        if self.tolerance:
            error = max((_distance(found, wanted, self.relative) for found, wanted in pairs), default=math.inf)
        else:
            equal = sum(found == wanted for found, wanted in pairs)
        return Row(self.part, self.name, self.compared, self.tolerance, error, equal, len(pairs), self.against)

    def failed(self, error: Exception) -> Row:
        """The row of a case that ended with an exception."""
        name = f"{type(error).__name__}: {error}".splitlines()[0]
        return Row(self.part, self.name, self.compared, self.tolerance, math.inf, 0, 0, self.against, name)


def each(found: Iterable[Any] | Tensor, wanted: Iterable[Any] | Tensor) -> Iterator[tuple[Any, Any]]:
    """Entry by entry, for tensors number by number; a difference in length counts too."""
    sides = (side.flatten().tolist() if isinstance(side, Tensor) else side for side in (found, wanted))
    return itertools.zip_longest(*sides)


def _distance(found: Tensor, wanted: Tensor, relative: bool) -> float:
    if found.shape != wanted.shape:
        return math.inf
    difference = found.detach().double() - wanted.double()
    error = float(difference.norm() / wanted.double().norm() if relative else difference.abs().max())
    return error if math.isfinite(error) else math.inf
