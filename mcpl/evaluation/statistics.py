"""How sure a number is: intervals by bootstrap over pictures and seeds, paired differences, rank correlation.

Pictures count alike, however many seeds each was learned with: a value is first averaged over a picture's seeds
(`by_picture`), and it is pictures that are drawn again. Everything is deterministic: the same values give the same
interval. Numbers only; nothing here knows what they measure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import permutations, product
from typing import NamedTuple, TypeVar

import numpy as np

RESAMPLES = 4000
SIDE = 0.025
"""chance that an interval leaves to either side"""
CHUNK = 1 << 22
"""values drawn at once: bounds the memory"""
MANY = 10_000
"""values from which the bootstrap's own limit, a normal distribution, takes its place"""
EXACT_SIGNS, EXACT_RANKS = 12, 8
"""sizes up to which a test goes through every exchange of signs (4,096) or order of ranks (40,320)"""
EXCHANGES = 10_000
"""drawn at random where there are more"""
SURE = 0.05
"""corrected chance of luck below which a table sets a difference in bold"""

K = TypeVar("K")
"""names of tests that are made together; of one kind, so that they have an order"""


class Interval(NamedTuple):
    """A mean and its 95 % interval; all not-a-number where there is nothing to average."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return self.told("")

    @property
    def signed(self) -> str:
        """As a difference is told: with its sign."""
        return self.told("+")

    def told(self, sign: str) -> str:
        """Values that are all the same say nothing of how they vary."""
        if np.isnan(self.mean):
            return "-"
        if self.high - self.low < 1e-12:
            return f"{self.mean:{sign}.3f} [all alike]"
        return f"{self.mean:{sign}.3f} [{self.low:{sign}.3f}, {self.high:{sign}.3f}]"


class Difference(NamedTuple):
    """first - second over the pictures that both have, its 95 % interval, and the chance of one as large by luck."""

    mean: float
    low: float
    high: float
    p: float
    """two-sided, by exchanging the two at random picture by picture; not-a-number without pictures"""
    pictures: int

    @property
    def interval(self) -> Interval:
        return Interval(self.mean, self.low, self.high)


class Correlation(NamedTuple):
    """Spearman's rank correlation, and the chance of one as strong where the orders have nothing to do with each other.

    Both are not-a-number for fewer than three names, or where one side does not vary.
    """

    rho: float
    p: float
    """two-sided, by exchanging ranks"""
    names: int


def by_picture(values: Iterable[tuple[str, float]]) -> dict[str, float]:
    """(picture, value), one for each seed -> the mean of each picture."""
    own: dict[str, list[float]] = {}
    for picture, value in values:
        own.setdefault(picture, []).append(float(value))
    return {picture: float(np.mean(each)) for picture, each in own.items()}


def interval(values: Sequence[float], seed: int = 0) -> Interval:
    """Mean of one value a picture, and its interval by bootstrap over pictures (percentiles of 4,000 means).

    The percentiles lie as far out as Student's distribution does beyond a normal one for so many pictures: plain ones
    hold the truth 90 and not 95 times of 100 for ten (Hesterberg, The American Statistician 69, 2015, section 5.3).
    They end at the least and the largest value, so that of fewer than six pictures they hold it less often.
    """
    array = np.asarray(values, float)
    if not len(array):
        return Interval(*(float("nan"),) * 3)
    if len(array) > MANY:
        half = 1.959964 * array.std() / len(array) ** 0.5
        return Interval(float(array.mean()), float(array.mean() - half), float(array.mean() + half))
    generator = np.random.default_rng(seed)
    means = [
        array[generator.integers(len(array), size=(rows, len(array)))].mean(axis=1)
        for rows in _portions(RESAMPLES, len(array))
    ]
    return Interval(float(array.mean()), *_between(np.concatenate(means), len(array)))


def difference(first: Mapping[str, float], second: Mapping[str, float], seed: int = 0) -> Difference:
    """first - second, picture by picture (see `by_picture`); a picture that only one of them has does not count."""
    gains = [first[picture] - second[picture] for picture in sorted(first.keys() & second.keys())]
    return Difference(*interval(gains, seed), exchange_test(gains, seed), len(gains))


def exchange_test(gains: Sequence[float], seed: int = 0) -> float:
    """Chance that a mean gain as far from 0 comes from exchanging signs: the paired permutation test (Fisher, 1935).

    Exact for up to twelve pictures, else over 10,000 exchanges drawn at random, the given one counted among them.
    """
    array = np.asarray(gains, float)
    if not len(array):
        return float("nan")
    found = abs(array.sum()) - 1e-12 * np.abs(array).sum()
    if len(array) <= EXACT_SIGNS:
        signs = np.array(list(product((1.0, -1.0), repeat=len(array))))
        return float((np.abs(signs @ array) >= found).mean())
    generator = np.random.default_rng(seed)
    as_far = sum(
        int((np.abs((2.0 * generator.integers(2, size=(rows, len(array))) - 1) @ array) >= found).sum())
        for rows in _portions(EXCHANGES, len(array))
    )
    return (as_far + 1) / (EXCHANGES + 1)


def least_chance(pictures: int) -> float:
    """The smallest chance that `exchange_test` can find with so many pictures; 1 without any."""
    return min(1.0, 2.0 ** (1 - pictures)) if pictures <= EXACT_SIGNS else 1 / (EXCHANGES + 1)


def corrected(found: Mapping[K, Difference]) -> dict[K, Difference]:
    """Differences that are tested together, with chances corrected for their number (`holm`)."""
    chances = holm({key: one.p for key, one in found.items()})
    return {key: one._replace(p=chances[key]) for key, one in found.items()}


def holm(chances: Mapping[K, float]) -> dict[K, float]:
    """Chances of several tests made together, corrected so that one false find in all of them is as rare (Holm, 1979).

    Those that are not numbers stay so and count for nothing.
    """
    order = sorted((p, name) for name, p in chances.items() if not np.isnan(p))
    corrected, least = dict(chances), 0.0
    for place, (p, name) in enumerate(order):
        least = max(least, min(1.0, (len(order) - place) * p))
        corrected[name] = least
    return corrected


def rank_correlation(first: Mapping[str, float], second: Mapping[str, float], seed: int = 0) -> Correlation:
    """How far two lists of values, by name, are in one order (Spearman; ties share their mean rank)."""
    from scipy.stats import rankdata

    names = sorted(first.keys() & second.keys())
    a, b = (rankdata([side[name] for name in names]) if names else np.zeros(0) for side in (first, second))
    a, b = a - a.mean() if len(a) else a, b - b.mean() if len(b) else b
    scale = float(np.sqrt((a @ a) * (b @ b)))
    if len(names) < 3 or not scale:
        return Correlation(float("nan"), float("nan"), len(names))
    rho = float(a @ b) / scale
    if len(names) <= EXACT_RANKS:
        others = np.array(list(permutations(b))) @ a / scale
        return Correlation(rho, float((np.abs(others) >= abs(rho) - 1e-12).mean()), len(names))
    generator = np.random.default_rng(seed)
    others = generator.permuted(np.tile(b, (EXCHANGES, 1)), axis=1) @ a / scale
    return Correlation(rho, float(((np.abs(others) >= abs(rho) - 1e-12).sum() + 1) / (EXCHANGES + 1)), len(names))


def _between(means: np.ndarray, pictures: int) -> tuple[float, float]:
    """Where 95 % of means of so many pictures lie."""
    from scipy.special import ndtr, stdtrit

    side = 0.0
    if pictures > 1:
        side = float(ndtr(stdtrit(pictures - 1, SIDE) * (pictures / (pictures - 1)) ** 0.5))
    low, high = np.quantile(means, (side, 1 - side))
    return float(low), float(high)


def _portions(rows: int, width: int) -> Iterator[int]:
    """`rows` in portions of at most CHUNK values of `width` each."""
    most = max(1, CHUNK // width)
    for start in range(0, rows, most):
        yield min(most, rows - start)
