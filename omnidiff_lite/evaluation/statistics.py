"""Bootstrap intervals over test items: means, ratios such as corpus WER, any function of sums, differences.

Every metric of the kit is a function of per-item sums (errors and words; true and false positives; n-gram matches),
so one resampler serves them all: draw items with replacement, add up their rows, apply the metric to the sums.

Where all items are alike every draw is the same, and resampling says nothing: 0 of 8 right is not [0, 0]. For means
of items with known bounds the exact binomial bound then stands in (see `mean_interval`); else there is no interval.
Nor does it say much about two systems that differ on a handful of right-or-wrong items (see `paired_difference`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
ALIKE = "no interval: all items are alike"
FEW = 10  # pairs of right and wrong: with fewer, draws differ too little
_CELLS = 4_000_000  # resampling counts held at once: 32 MB

Statistic = Callable[[NDArray], NDArray]  # sums [..., k] -> values [...]


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; `n` items were measured. Without an interval both ends are None and `reason` says
    why."""

    value: float
    low: float | None
    high: float | None
    n: int
    reason: str = ""

    def mapped(self, function: Callable[[float], float]) -> Estimate:
        """The same under an increasing function."""
        value, low, high = (None if x is None else function(x) for x in (self.value, self.low, self.high))
        return replace(self, value=value, low=low, high=high)

    def scaled(self, factor: float) -> Estimate:
        """The same in another unit (100 for percent)."""
        return self.mapped(lambda x: x * factor)


def bootstrap_interval(items: ArrayLike, statistic: Statistic, *, groups: Sequence | None = None,
                       strata: Sequence | None = None, samples: int = 1000, level: float = LEVEL,
                       seed: int = 0) -> Estimate:
    """Percentile bootstrap of `statistic(items.sum(0))`.

    items: [n, k], one row per item. `groups` [n]: items that share a picture or a speaker are drawn together.
    `strata` [n]: the number of items (or groups) in each stratum is kept (MME's subtasks). Draws in which the
    statistic is undefined (NaN) are left out. With fewer than about 20 items the interval is too narrow, as with any
    bootstrap; if all draws are equal there is none (`ALIKE`). Raises `ValueError` where there are no
    items or the statistic is undefined on them.
    """
    rows = np.asarray(items, dtype=np.float64)
    if rows.ndim != 2 or not len(rows):
        raise ValueError(f"items must be a non-empty [n, k] array, got shape {rows.shape}")
    count, labels = len(rows), np.zeros(len(rows)) if strata is None else np.asarray(strata)
    if groups is not None:
        rows, labels = _grouped(rows, labels, np.asarray(groups))
    value = float(statistic(rows.sum(axis=0)))
    if np.isnan(value):
        raise ValueError("the statistic is undefined on these items (a zero denominator?)")
    draws = statistic(_resampled_sums(rows, labels, samples, np.random.default_rng(seed)))
    draws = draws[~np.isnan(draws)]
    if np.allclose(draws, value, rtol=1e-9, atol=1e-12):
        return Estimate(value, None, None, count, ALIKE)
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Estimate(value, min(float(low), value), max(float(high), value), count)


def ratio(sums: NDArray) -> NDArray:
    """sums[..., 0] / sums[..., 1]; NaN where the denominator is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(sums[..., 1] > 0, sums[..., 0] / sums[..., 1], np.nan)


def ratio_interval(numerators: ArrayLike, denominators: ArrayLike, **how: object) -> Estimate:
    """Ratio of sums over items: corpus WER from errors and words per item. `how` as in `bootstrap_interval`."""
    return bootstrap_interval(np.column_stack([numerators, denominators]), ratio, **how)


def mean_interval(values: ArrayLike, bounds: tuple[float, float] | None = None, **how: object) -> Estimate:
    """Mean over items. `how` as in `bootstrap_interval`.

    `bounds`: the least and the greatest value an item can have; (0, 1) where all are 0 or 1. If all n items
    (groups, where given) have one value v, at most a share p = 1 - 0.025^(1/n) of all that could be drawn differs, by
    the exact binomial bound (Clopper-Pearson), and the mean lies in v - p (v - least) .. v + p (greatest - v): 0 of 8
    reads [0, 0.37]. Without bounds such items have no interval.
    """
    values = np.asarray(values, dtype=np.float64)
    estimate = ratio_interval(values, np.ones(len(values)), **how)
    if bounds is None and np.isin(values, (0, 1)).all():
        bounds = (0, 1)
    return _exact(estimate, bounds, np.ones(len(values), bool), **how) if bounds else estimate


def proportion_interval(right: ArrayLike, among: ArrayLike | None = None, **how: object) -> Estimate:
    """Share of items that are right, out of those `among` (bool [n]) if given. `n` counts all items.

    With the exact binomial bound where all are right, or none is (see `mean_interval`).
    """
    right = np.asarray(right, dtype=bool)
    among = np.ones(len(right), bool) if among is None else np.asarray(among, dtype=bool)
    return _exact(ratio_interval(right & among, among, **how), (0, 1), among, **how)


def _exact(estimate: Estimate, bounds: tuple[float, float], counted: NDArray, level: float = LEVEL,
           groups: Sequence | None = None, **_: object) -> Estimate:
    """The binomial bound where `estimate` has no interval; `counted` [n]: the items that it rests on."""
    if estimate.low is not None:
        return estimate
    trials = counted.sum() if groups is None else len(set(np.asarray(groups)[counted]))
    share = 1 - ((1 - level) / 2) ** (1 / trials)
    value, (least, greatest) = estimate.value, bounds
    return replace(estimate, low=float(value - share * (value - least)),
                   high=float(value + share * (greatest - value)), reason="")


def paired_difference(a: ArrayLike, b: ArrayLike, words_a: ArrayLike | None = None, words_b: ArrayLike | None = None,
                      **how: object) -> Estimate:
    """mean(a) - mean(b) over the same items, or the difference of two ratios where `words_*` are given.

    Paired bootstrap: both systems are resampled with the same draws, so what the items have in common cancels. An
    interval that excludes 0 is a difference at the level asked. Where items are 0 or 1, drawn singly, and fewer than
    `FEW` of them differ, the interval would end at 0 whenever all of these point one way; Bonett and Price's adjusted
    interval stands in.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    sides = [np.column_stack([x, np.ones(len(x)) if words is None else words])
             for x, words in ((a, words_a), (b, words_b))]
    estimate = difference_interval(*sides, ratio, **how)
    plain = words_a is None and words_b is None and np.isin([a, b], (0, 1)).all()
    groups = how.get("groups")
    if plain and (groups is None or len(set(groups)) == len(a)) and (a != b).sum() < FEW:
        return _adjusted_wald(estimate, a, b, how.get("level", LEVEL))
    return _exact(estimate, (-1, 1), np.ones(len(a), bool), **how) if plain else estimate


def _adjusted_wald(estimate: Estimate, a: NDArray, b: NDArray, level: float) -> Estimate:
    """A difference of two paired shares, as if one more pair of each kind had been seen (D. Bonett and R. Price,
    2012, "Adjusted Wald confidence interval for a difference of binomial proportions based on paired data")."""
    count = len(a) + 2
    up, down = ((a > b).sum() + 1) / count, ((a < b).sum() + 1) / count
    reach = NormalDist().inv_cdf((1 + level) / 2) * np.sqrt((up + down - (up - down) ** 2) / count)
    return replace(estimate, low=max(-1.0, float(up - down - reach)), high=min(1.0, float(up - down + reach)),
                   reason="")


def difference_interval(a: ArrayLike, b: ArrayLike, statistic: Statistic, **how: object) -> Estimate:
    """statistic(sums of `a`) - statistic(sums of `b`) over the same items, [n, k] each; as in `paired_difference`."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"paired items differ in number: {len(a)} and {len(b)}")
    width = a.shape[1]
    return bootstrap_interval(np.hstack([a, b]), lambda sums: statistic(sums[..., :width]) -
                              statistic(sums[..., width:]), **how)


def median_interval(values: ArrayLike, *, samples: int = 1000, level: float = LEVEL, seed: int = 0) -> Estimate:
    """Median, for timings: one slow run does not move it.

    The interval is a percentile bootstrap; for two to five values it is their range, which contains the median in
    1 - 2 ** (1 - n) of all cases: 75 % at n = 3, 94 % at n = 5. One value has none.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) == 1:
        return Estimate(float(values[0]), None, None, 1, "no interval: timed once")
    if len(values) < 6:
        return Estimate(float(np.median(values)), float(values.min()), float(values.max()), len(values))
    draws = np.random.default_rng(seed).choice(values, size=(samples, len(values)))
    tail = (1 - level) / 2
    low, high = np.quantile(np.median(draws, axis=1), [tail, 1 - tail])
    return Estimate(float(np.median(values)), float(low), float(high), len(values))


def seed_interval(values: ArrayLike, level: float = LEVEL) -> Estimate:
    """Mean over runs with different seeds, Student's t: a handful of runs is too few to resample."""
    from scipy import stats

    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        raise ValueError("an interval over seeds needs at least two runs")
    reach = stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return Estimate(float(values.mean()), float(values.mean() - reach), float(values.mean() + reach), len(values))


def _grouped(rows: NDArray, labels: NDArray, groups: NDArray) -> tuple[NDArray, NDArray]:
    """One row per group: the sum of its items, with the stratum of its first."""
    _, first, member = np.unique(groups, return_index=True, return_inverse=True)
    summed = np.zeros((len(first), rows.shape[1]))
    np.add.at(summed, member, rows)
    return summed, labels[first]


def _resampled_sums(rows: NDArray, labels: NDArray, samples: int, rng: np.random.Generator) -> NDArray:
    """Sums over `samples` draws with replacement, [samples, k]; drawn as counts, so a draw is one matrix product."""
    total = np.zeros((samples, rows.shape[1]))
    for label in np.unique(labels):
        members = rows[labels == label]
        chances = np.full(len(members), 1 / len(members))
        for start in range(0, samples, step := max(1, _CELLS // len(members))):
            stop = min(samples, start + step)
            total[start:stop] += rng.multinomial(len(members), chances, size=stop - start) @ members
    return total
