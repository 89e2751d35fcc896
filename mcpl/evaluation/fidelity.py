"""The paper's protocol: how near learned words are to the estimated ground truth, and their pictures to its pictures.

The ground truth of a word is what Textual Inversion learns from its masked object alone (recipe `masked-inversion`).

    prompt fidelity     cosine of the text encoder's outputs, each word alone in one template
    image fidelity      cosine of pictures drawn from the word against pictures drawn from the ground truth, in a
                        feature space: every picture against every one of other noise, as many pairs as the paper's
                        (10 seeds x 20 pictures)^2 where there are so many
    another word        the same against the ground truth of the picture's other words: what chance gives
    ceiling             the ground truth against itself, learned with another seed

A word's pairs are averaged, then a picture's words; how sure that is, pictures tell (`statistics`). Numbers only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from mcpl.evaluation.similarity import across, cosines, pairwise

Vectors = Mapping[str, np.ndarray]
"""word -> its vectors [n, D] in one space, of one picture learned with one seed"""
Meet = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""two words' vectors [n, D], [m, D] -> the cosines of their pairs"""


def of_outputs(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of the text encoder's outputs: every pair."""
    return cosines(first, second).ravel()


def of_pictures(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of pictures, the first of each drawn on the first noise, and so on: every pair of unequal noise."""
    return across(first, second)


def of_means(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of means of unit vectors: as they are, their product is the mean cosine over all pairs that they stand for."""
    return (first @ second.T).ravel()


@dataclass(frozen=True)
class Pairs:
    """Cosines of many pairs, of which only what is reported is kept."""

    count: int
    mean: float
    """over words, each the mean of its pairs"""
    deviation: float
    """of all pairs together: the paper's error bars"""

    @staticmethod
    def of(words: Sequence[np.ndarray]) -> Pairs | None:
        """Pairs of each word; None where there are none."""
        own = [values for values in words if len(values)]
        if not own:
            return None
        together = np.concatenate(own)
        return Pairs(len(together), float(np.mean([values.mean() for values in own])), float(together.std()))


def fidelity(learned: Sequence[Vectors], truth: Sequence[Vectors], meet: Meet) -> Pairs | None:
    """One picture's words, each by seed, against the same words of the ground truth, each by seed."""
    return Pairs.of([np.concatenate(list(_every(learned, truth, w, w, meet))) for w in _common(learned, truth)])


def to_another(learned: Sequence[Vectors], truth: Sequence[Vectors], meet: Meet) -> Pairs | None:
    """The same against the ground truth of every other word of the picture."""
    words = _common(learned, truth)
    return Pairs.of(
        [
            np.concatenate([pairs for w in words if w != word for pairs in _every(learned, truth, word, w, meet)])
            for word in (words if len(words) > 1 else ())
        ]
    )


def ceiling(truth: Sequence[Vectors], meet: Meet) -> Pairs | None:
    """The ground truth against itself: of every two seeds, or, where there is one, its pictures of unequal noise."""
    words = _common(truth, truth)
    if len(truth) > 1:
        return Pairs.of([np.concatenate([meet(a[w], b[w]) for a, b in combinations(truth, 2)]) for w in words])
    return Pairs.of([pairwise(one[w]) for one in truth for w in words]) if meet is of_pictures else None


def _common(first: Sequence[Vectors], second: Sequence[Vectors]) -> list[str]:
    """Words that all of them have, in the first's order; none where either side has no seed."""
    return [word for word in (first[0] if first and second else ()) if all(word in one for one in (*first, *second))]


def _every(
    learned: Sequence[Vectors], truth: Sequence[Vectors], word: str, other: str, meet: Meet
) -> Iterator[np.ndarray]:
    return (meet(a[word], b[other]) for a in learned for b in truth)
