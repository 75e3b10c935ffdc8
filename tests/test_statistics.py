"""Intervals: they cover, they are repeatable, they keep together what belongs together."""

import numpy as np
import pytest

from omnidiff_lite.evaluation.statistics import (ALIKE, bootstrap_interval, mean_interval, median_interval,
                                                 paired_difference, proportion_interval, ratio_interval, seed_interval)


def coverage(simulate, truth: float, trials: int = 300) -> float:
    """Share of simulated test sets whose 95 % interval holds the truth."""
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(trials):
        estimate = simulate(rng, trial)
        hits += estimate.low <= truth <= estimate.high
    return hits / trials


def test_the_interval_of_a_mean_covers():
    assert 0.91 <= coverage(lambda rng, s: mean_interval(rng.random(100) < 0.3, samples=400, seed=s), 0.3) <= 0.985


def test_the_interval_of_a_corpus_wer_covers():
    def simulate(rng, seed):
        words = rng.integers(3, 20, size=100)
        return ratio_interval(rng.binomial(words, 0.2), words, samples=400, seed=seed)

    assert 0.91 <= coverage(simulate, 0.2) <= 0.985


def test_grouping_widens_the_interval_where_items_hang_together():
    """Five questions a picture that are all right or all wrong are 60 facts, not 300."""
    def simulate(rng, seed, grouped):
        right = np.repeat(rng.random(60) < 0.5, 5)
        return mean_interval(right, groups=np.repeat(np.arange(60), 5) if grouped else None, samples=400, seed=seed)

    assert coverage(lambda rng, s: simulate(rng, s, False), 0.5, trials=100) < 0.8
    assert coverage(lambda rng, s: simulate(rng, s, True), 0.5, trials=100) > 0.88


def test_corpus_wer_is_errors_over_words_not_a_mean_of_rates():
    estimate = ratio_interval([1, 0], [1, 9])
    assert estimate.value == pytest.approx(0.1) and estimate.n == 2


def test_the_same_seed_repeats_and_another_differs():
    values = np.random.default_rng(1).random(50)
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3)
    assert mean_interval(values, seed=3) != mean_interval(values, seed=4)


def test_large_sets_are_resampled_in_pieces_with_the_right_spread():
    values = np.random.default_rng(2).normal(size=20_000)
    estimate = mean_interval(values, samples=500)
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 / np.sqrt(20_000), rel=0.15)


def test_strata_keep_their_sizes():
    """Without strata the share of the second kind would vary; with them this statistic is a constant."""
    items = np.column_stack([np.ones(20), np.repeat([0, 1], 10)])
    share = lambda sums: sums[..., 1] / sums[..., 0]  # noqa: E731
    free = bootstrap_interval(items, share)
    kept = bootstrap_interval(items, share, strata=items[:, 1])
    assert free.low < 0.5 < free.high and (kept.low, kept.high, kept.reason) == (None, None, ALIKE)


REACH = 1 - 0.025 ** (1 / 8)  # what 8 items without an exception leave open


@pytest.mark.parametrize("interval", [mean_interval, proportion_interval])
def test_all_wrong_still_has_an_upper_bound(interval):
    for items in ([0] * 8, [False] * 8, [0.0] * 8):
        estimate = interval(items)
        assert (estimate.value, estimate.low, estimate.reason) == (0, 0, "") and estimate.high == pytest.approx(REACH)
    assert interval([True] * 8).low == pytest.approx(1 - REACH) and interval([True] * 8).high == 1
    pairs = interval([0] * 16, groups=np.repeat(np.arange(8), 2))
    assert pairs.high == pytest.approx(REACH), "two questions about a picture are one trial"


def test_the_bound_covers_rare_events():
    """Of 30 items, right once in 50, most test sets show none: the bootstrap alone would be wrong every time."""
    assert coverage(lambda rng, s: mean_interval(rng.random(30) < 0.02, samples=200, seed=s), 0.02) >= 0.95


def test_the_bound_of_a_mean_is_in_its_own_unit():
    """0..200 points a picture, all of them 0, 200 or 50."""
    low, middle, high = (mean_interval([points] * 8, bounds=(0, 200)) for points in (0.0, 50.0, 200.0))
    assert (low.low, low.high) == (0, pytest.approx(200 * REACH))
    assert (middle.low, middle.high) == (pytest.approx(50 - 50 * REACH), pytest.approx(50 + 150 * REACH))
    assert (high.low, high.high) == (pytest.approx(200 - 200 * REACH), 200)


def test_a_share_among_some_rests_on_those():
    right, among = [False] * 20, [True] * 8 + [False] * 12
    estimate = proportion_interval(right, among)
    assert estimate.high == pytest.approx(REACH) and estimate.n == 20
    assert proportion_interval([True] * 4 + [False] * 16, among).value == 0.5


def test_what_has_no_bound_has_no_interval():
    """No errors in eight sentences: a word error rate may be anything."""
    for estimate in (mean_interval([0.3] * 8), ratio_interval([0] * 8, [5] * 8)):
        assert (estimate.low, estimate.high, estimate.reason) == (None, None, ALIKE)
        assert estimate.scaled(100).low is None


def test_a_difference_of_two_that_are_all_wrong_is_not_known_to_be_nothing():
    difference = paired_difference([0] * 8, [0] * 8)
    assert difference.value == 0 and difference.high == pytest.approx(-difference.low) and 0.2 < difference.high < 0.4
    assert paired_difference([0.3] * 8, [0.3] * 8).reason == ALIKE


def test_few_differing_answers_prove_nothing():
    """Of 66 answers some are mended and none spoilt: by resampling alone four would do to show a difference."""
    base = np.array([0] * 20 + [1] * 46)
    ends = [paired_difference(np.where(np.arange(66) < mended, 1, base), base).low for mended in range(12)]
    assert ends == sorted(ends) and ends[5] < 0 < ends[6]
    five = np.where(np.arange(66) < 5, 1, base)
    assert paired_difference(five, base, groups=range(66)).low == ends[5], "a group of one is no group"


def test_the_interval_of_a_rare_difference_covers():
    """Of 60 items one in 40 is mended and one in 100 spoilt: resampling alone covers this in 86 of 100 tries."""
    def interval(rng, seed):
        kind = rng.choice(3, size=60, p=(0.965, 0.025, 0.01))
        return paired_difference(kind == 1, kind == 2, samples=200, seed=seed)
    assert coverage(interval, 0.015) >= 0.95


def test_a_paired_difference_finds_what_separate_intervals_hide():
    rng = np.random.default_rng(5)
    hard = rng.normal(size=200)  # items differ far more than the systems do
    a, b = hard + 0.1 + 0.1 * rng.normal(size=200), hard
    difference = paired_difference(a, b)
    assert difference.low > 0 and difference.value == pytest.approx(np.mean(a - b))
    assert mean_interval(a).low < mean_interval(b).high


def test_a_paired_difference_of_rates():
    words = np.array([2, 8])
    assert paired_difference([1, 1], [0, 0], words, words).value == pytest.approx(0.2)
    with pytest.raises(ValueError, match="differ in number"):
        paired_difference([1, 2], [1])


def test_a_median_ignores_one_slow_run():
    assert median_interval([1.0, 1.1, 1.2, 1.1, 60.0]).value == pytest.approx(1.1)


def test_one_timing_has_no_interval():
    estimate = median_interval([3.0])
    assert (estimate.value, estimate.low, estimate.high) == (3.0, None, None) and "timed once" in estimate.reason


def test_a_median_of_few_has_their_range():
    estimate = median_interval([3.0, 1.0, 2.0])
    assert (estimate.low, estimate.value, estimate.high) == (1.0, 2.0, 3.0)


def test_seeds_use_students_t():
    estimate = seed_interval([1.0, 2.0, 3.0])
    assert estimate.value == 2 and estimate.high - 2 == pytest.approx(4.303 / np.sqrt(3), rel=1e-3)
    with pytest.raises(ValueError, match="two runs"):
        seed_interval([1.0])


def test_undefined_statistics_are_refused_not_guessed():
    with pytest.raises(ValueError, match="undefined"):
        ratio_interval([0, 0], [0, 0])
    with pytest.raises(ValueError, match="non-empty"):
        bootstrap_interval([], lambda sums: sums)
    assert ratio_interval([1, 0], [1, 0], samples=50).value == 1  # draws of the second item alone are left out
