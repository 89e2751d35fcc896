"""Nearest other words, against the plain definition."""

import numpy as np

from mcpl.evaluation import neighbours
from mcpl.evaluation.neighbours import nearest


def test_nearest_words_are_those_of_the_largest_cosine(monkeypatch):
    monkeypatch.setattr(neighbours, "ROWS", 7)
    draw = np.random.default_rng(0)
    words = [draw.normal(size=(1 + i % 3, 6)).astype(np.float32) for i in range(40)]
    means = np.stack([word.mean(axis=0) for word in words]).astype(np.float64)
    cosines = (means @ means.T) / np.outer(*[np.linalg.norm(means, axis=1)] * 2)
    np.fill_diagonal(cosines, -2)
    for word, found in enumerate(nearest(words, 4)):
        assert [i for i, _ in found] == np.argsort(-cosines[word])[:4].tolist()
        np.testing.assert_allclose([c for _, c in found], np.sort(cosines[word])[::-1][:4], atol=1e-6)


def test_words_of_other_bases_and_words_of_nothing_are_near_to_none():
    one, same, other, nothing = np.eye(3)[:1], 2 * np.eye(3)[:1], np.ones((1, 4)), np.zeros((1, 3))
    assert nearest([one, same, other, nothing], 5) == [[(1, 1.0)], [(0, 1.0)], [], []]
    assert nearest([one], 5) == [[]]
    assert nearest([], 5) == []
