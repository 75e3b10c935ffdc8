"""Fréchet distance between two sets of pictures, on a judge's features.

The quantity is known as FID when the features are Inception's; on other features it is another number, so it is
named after its judge and never set beside a published FID. Few pictures give a larger distance than many would (the
covariances are estimated): compare at the same n, and with a floor of real pictures against other real ones.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from omnidiff_lite.evaluation.statistics import LEVEL, Estimate


def frechet_distance(a: NDArray, b: NDArray) -> float:
    """|mean a - mean b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2) of features [n, dim] and [m, dim], at least 0.

    Float64; A and B are the covariances (divided by n - 1). Both roots are symmetric and taken through eigenvalues, so
    fewer pictures than dimensions are no obstacle and nothing is added to the diagonals; eigenvalues that rounding puts
    below 0 count as 0. Raises `ValueError` for other shapes and for fewer than two pictures.
    """
    a, b = _features(a), _features(b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"features of {a.shape[1]} and of {b.shape[1]} numbers: take both from one judge")
    first, second = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    root = _root(first)
    common = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(min=0)).sum()
    apart = ((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum()
    return max(0.0, float(apart + np.trace(first) + np.trace(second) - 2 * common))


def frechet_interval(a: NDArray, reference: NDArray, *, samples: int = 1000, level: float = LEVEL, seed: int = 0
                     ) -> Estimate:
    """The distance of `a` from `reference`, with an interval from resampling both sets; n counts `a`.

    Drawing with replacement raises the distance just as having few pictures does (`_spread`): the interval is for the
    distance at this n.
    """
    rng = np.random.default_rng(seed)
    value = frechet_distance(a, reference)
    draws = [frechet_distance(_redrawn(a, rng), _redrawn(reference, rng)) for _ in range(samples)]
    low, high = _spread(value, draws, level)
    return Estimate(value, max(0.0, low), high, len(a))


def frechet_difference(a: NDArray, b: NDArray, reference: NDArray, *, samples: int = 1000, level: float = LEVEL,
                       seed: int = 0) -> Estimate:
    """How much farther `a` lies from `reference` than `b` does: pictures of the same prompts, drawn together."""
    if len(a) != len(b):
        raise ValueError(f"{len(a)} pictures against {len(b)}: a difference is of pictures of the same prompts")
    rng = np.random.default_rng(seed)
    value, draws = frechet_distance(a, reference) - frechet_distance(b, reference), []
    for _ in range(samples):
        chosen, real = rng.integers(len(a), size=len(a)), _redrawn(reference, rng)
        draws.append(frechet_distance(a[chosen], real) - frechet_distance(b[chosen], real))
    return Estimate(value, *_spread(value, draws, level), len(a))


def _spread(value: float, draws: list[float], level: float) -> tuple[float, float]:
    """The middle `level` of the draws, moved so that their mean is the value.

    The draws' mean lies above the value by about as much as the value lies above the distance for endless pictures;
    left where they are, the interval would not even contain the value.
    """
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail]) - np.mean(draws) + value
    return min(float(low), value), max(float(high), value)


def _redrawn(features: NDArray, rng: np.random.Generator) -> NDArray:
    return features[rng.integers(len(features), size=len(features))]


def _root(matrix: NDArray) -> NDArray:
    """The symmetric square root of a covariance."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


def _features(given: NDArray) -> NDArray:
    features = np.asarray(given, dtype=np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features of shape {features.shape}: give [n, dim] of at least two pictures")
    return features
