"""How sure a number is: by hand, against scipy, and how often an interval holds what it should."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from mcpl.evaluation import statistics
from mcpl.evaluation.statistics import (
    by_picture,
    difference,
    exchange_test,
    holm,
    interval,
    least_chance,
    rank_correlation,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_pictures_count_alike_however_many_seeds_they_have():
    assert by_picture([("x", 0.0), ("x", 1.0), ("y", 1.0)]) == {"x": 0.5, "y": 1.0}


def test_the_interval_is_that_of_the_mean():
    """400 pictures, half of them right: 1.96 * .5 / 20 = .049 to either side."""
    mean, low, high = interval([0.0, 1.0] * 200)
    assert mean == 0.5 and (high - low) / 2 == pytest.approx(0.049, abs=0.004)
    assert interval([0.3]) == (0.3, 0.3, 0.3)
    assert str(interval([0.25, 0.75] * 8)) == "0.500 [0.375, 0.625]" and str(interval([])) == "-"
    assert str(interval([0.25, 0.25])) == "0.250 [all alike]" and interval([0.0] * 9).signed == "+0.000 [all alike]"


def test_it_is_scipys_percentile_bootstrap_further_out(rng):
    """Of 40 pictures: 95.9 %, since Student's 2.02 x sqrt(40 / 39) is as far out for a normal distribution."""
    values = rng.exponential(size=40)
    level = 1 - 2 * stats.norm.cdf(stats.t.ppf(0.025, 39) * (40 / 39) ** 0.5)
    assert level == pytest.approx(0.959, abs=0.001)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, confidence_level=level, method="percentile", rng=1)
    ours, theirs = interval(values), theirs.confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_memory_is_bounded_and_the_same_comes_out(rng, monkeypatch):
    values = rng.normal(size=101)
    whole = interval(values)
    monkeypatch.setattr(statistics, "CHUNK", 1000)
    assert interval(values) == whole
    monkeypatch.setattr(statistics, "MANY", 100)
    assert interval(values) == pytest.approx(whole, abs=0.02)


@pytest.mark.parametrize("pictures", [6, 10, 60])
def test_the_interval_holds_the_truth_nineteen_times_of_twenty(rng, pictures):
    """Also of few pictures, where plain percentiles hold it 86 and 90 times of 100."""
    held = [low <= 0 <= high for _, low, high in (interval(rng.normal(size=pictures)) for _ in range(400))]
    assert 0.92 <= np.mean(held) <= 0.98


def test_a_difference_is_paired_by_picture():
    """Every picture gains exactly .1, whatever it scores: no width, and of 2^9 exchanges only two go as far."""
    first, second = ({f"p{i}": i / 10 + gain for i in range(9)} for gain in (0.1, 0.0))
    found = difference(first | {"alone": 9.0}, second)
    assert found.interval == pytest.approx((0.1, 0.1, 0.1)) and found.pictures == 9
    assert found.p == pytest.approx(2 / 2**9)
    nothing = difference({"a": 1.0}, {"b": 1.0})
    assert math.isnan(nothing.mean) and math.isnan(nothing.p) and nothing.pictures == 0


def test_the_exchange_test_is_scipys(rng):
    for count in (9, 30):
        gains = rng.normal(0.4, 1, count)
        drawn = {"permutation_type": "samples", "n_resamples": 20_000, "rng": 2}
        theirs = stats.permutation_test((gains,), np.mean, vectorized=True, **drawn)
        assert exchange_test(gains) == pytest.approx(theirs.pvalue, abs=0.012)
    assert exchange_test([0.0] * 5) == exchange_test([0.0] * 20) == 1.0


def test_no_chance_is_below_the_least():
    for count in (1, 4, 12, 40):
        assert exchange_test([1.0] * count) == least_chance(count)
    assert exchange_test([1.0] * 13) >= least_chance(13)
    assert least_chance(0) == 1.0


def test_holm_by_hand():
    """.01 x 3, then .02 x 2, then .9 x 1, none below the one before."""
    given = {"a": 0.02, "b": 0.01, "c": 0.9, "none": float("nan")}
    found = holm(given)
    assert [found[name] for name in "abc"] == pytest.approx([0.04, 0.03, 0.9]) and math.isnan(found["none"])
    assert holm({"a": 0.5, "b": 0.6}) == {"a": 1.0, "b": 1.0}


def test_rank_correlation_by_hand_and_against_scipy(rng):
    """1 2 3 4 against 1 2 4 3: 1 - 6 * 2 / (4 * 15) = .8; of 24 orders eight are as strong (four each way)."""
    assert rank_correlation(dict(zip("abcd", (1, 2, 3, 4), strict=True)), dict(zip("abcd", (1, 2, 9, 5), strict=True)))[
        :2
    ] == pytest.approx((0.8, 8 / 24))
    for count in (7, 20):
        a, b = rng.integers(0, 5, count), rng.integers(0, 5, count) * 1.0
        found = rank_correlation(dict(enumerate(a)), dict(enumerate(b)))
        theirs = stats.spearmanr(a, b)
        assert found.rho == pytest.approx(theirs.statistic, abs=1e-12)
        assert found.p == pytest.approx(theirs.pvalue, abs=0.1) and found.names == count
    assert math.isnan(rank_correlation({"a": 1, "b": 1, "c": 1}, {"a": 1, "b": 2, "c": 3}).rho)
    assert math.isnan(rank_correlation({}, {}).p)
