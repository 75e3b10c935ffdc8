"""The Fréchet distance: cases worked by hand, its bias at few pictures, and an interval that covers."""

import numpy as np
import pytest

from omnidiff_lite.evaluation.frechet import frechet_difference, frechet_distance, frechet_interval


def exact(mean, covariance, n: int = 40, seed: int = 0) -> np.ndarray:
    """Points whose sample mean and covariance are exactly these."""
    points = np.random.default_rng(seed).normal(size=(n, len(mean)))
    points -= points.mean(axis=0)
    white = points @ np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(points, rowvar=False)))).T
    return white @ np.linalg.cholesky(np.asarray(covariance, float)).T + mean


def test_of_two_gaussians_on_a_line():
    """Means 1 and 4, deviations 2 and 5: 3^2 + (5 - 2)^2."""
    assert frechet_distance(exact([1], [[4]]), exact([4], [[25]], seed=1)) == pytest.approx(18)


def test_of_covariances_that_commute():
    """Means (0, 0) and (3, 4): 25; deviations (1, 2) and (2, 5): 1 + 9."""
    a, b = exact([0, 0], np.diag([1, 4])), exact([3, 4], np.diag([4, 25]), n=60, seed=1)
    assert frechet_distance(a, b) == pytest.approx(35) == pytest.approx(frechet_distance(b, a))


def test_of_covariances_that_do_not_commute():
    """A = diag(1, 4), B = [[2, 1], [1, 2]]. A^1/2 B A^1/2 = [[2, 2], [2, 8]], whose root has the trace
    sqrt(tr + 2 sqrt(det)) = sqrt(10 + 2 sqrt(12)); so 5 + 4 - 2 sqrt(10 + 2 sqrt(12))."""
    a, b = exact([0, 0], np.diag([1, 4])), exact([0, 0], [[2, 1], [1, 2]], seed=1)
    assert frechet_distance(a, b) == pytest.approx(9 - 2 * np.sqrt(10 + 2 * np.sqrt(12)))


def test_of_a_set_and_itself_and_of_one_moved():
    """Fewer points than dimensions: the covariance has no inverse, and needs none."""
    points = np.random.default_rng(0).normal(size=(5, 16))
    assert frechet_distance(points, points) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(points, points[::-1] + 0.5) == pytest.approx(16 * 0.25)


def test_what_is_no_set_of_pictures_is_told():
    points = np.zeros((4, 3))
    for a, b, words in ((points[:1], points, "at least two pictures"), (points[0], points, "give .n, dim."),
                        (points, points[:, :2], "of 3 and of 2 numbers")):
        with pytest.raises(ValueError, match=words):
            frechet_distance(a, b)
    with pytest.raises(ValueError, match="4 pictures against 3"):
        frechet_difference(points, points[:3], points)


def sets(rng: np.random.Generator, *shifts: float, n: int = 40, dim: int = 3) -> list[np.ndarray]:
    return [rng.normal(size=(n, dim)) + shift for shift in shifts]


def test_the_interval_covers_what_this_many_pictures_give_on_average():
    """Two Gaussians apart by 1 in each of three directions: 3, and a little more of 40 points."""
    many = [frechet_distance(*sets(np.random.default_rng(i), 1, 0)) for i in range(2000)]
    expected, hits = np.mean(many), 0
    assert 3 < expected < 3.5
    for trial in range(150):
        a, b = sets(np.random.default_rng(10_000 + trial), 1, 0)
        found = frechet_interval(a, b, samples=200, seed=trial)
        assert found.low <= found.value <= found.high and found.n == 40
        hits += found.low <= expected <= found.high
    assert 0.88 <= hits / 150 <= 0.99


def test_a_paired_difference_sees_what_both_have_in_common():
    """`b` is `a` a little farther off: certain in pairs, not by two intervals."""
    a, reference = sets(np.random.default_rng(0), 1, 0)
    b = a + 0.1
    apart = frechet_difference(b, a, reference, samples=200)
    alone = [frechet_interval(x, reference, samples=200) for x in (a, b)]
    assert 0 < apart.low < apart.value < apart.high and alone[1].low < alone[0].high
    same = frechet_difference(a, a, reference, samples=50)
    assert (same.value, same.low, same.high) == (0, 0, 0)
