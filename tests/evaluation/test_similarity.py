"""Likeness of sets by hand, and against torchmetrics and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mcpl.evaluation.similarity import across, cosines, flattened, kid, mmd, pairwise, silhouette


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_cosines_by_hand_and_against_scikit_learn(rng):
    found = cosines(np.array([[1.0, 0], [3, 4]]), np.array([[2.0, 0], [0, -1], [0, 0]]))
    assert found == pytest.approx(np.array([[1, 0, 0], [0.6, -0.8, 0]]))
    from sklearn.metrics.pairwise import cosine_similarity

    a, b = rng.normal(size=(5, 7)), rng.normal(size=(4, 7))
    assert cosines(a, b) == pytest.approx(cosine_similarity(a, b), abs=1e-6)


def test_pairs_of_one_set_count_once_and_never_with_themselves():
    """1, 0 and -1 apart from each other: (a, b) 0, (a, c) -1, (b, c) 0."""
    assert sorted(pairwise(np.array([[1.0, 0], [0, 1], [-2, 0]]))) == pytest.approx([-1, 0, 0])
    assert len(pairwise(np.ones((1, 3)))) == 0


def test_pictures_of_one_noise_make_no_pair():
    a = np.array([[1.0, 0], [0, 1]])
    assert list(across(a, a)) == [0, 0], "alike only where the noise is the same"
    assert list(across(a[:1], a)) == [1, 0], "of a single picture every pair is taken"
    assert across(np.ones((20, 2)), np.ones((20, 2))).size == 380


def test_mmd_by_hand():
    """D = 1, k = (xy + 1)^3. {0, 1} against {1, 2}: 1 within, 27 within, between (1 + 1 + 8 + 27) / 4."""
    assert mmd(np.array([[0.0], [1]]), np.array([[1.0], [2]])) == pytest.approx(1 + 27 - 2 * 37 / 4)
    assert math.isnan(mmd(np.ones((1, 2)), np.ones((3, 2))))


def test_mmd_is_torchmetrics_kid(rng):
    import torch
    from torchmetrics.image.kid import KernelInceptionDistance

    class AsTheyAre(torch.nn.Module):
        num_features = 6

        def forward(self, values):
            return values

    a, b = rng.normal(size=(40, 6)), rng.normal(0.3, 1.2, size=(40, 6))
    theirs = KernelInceptionDistance(feature=AsTheyAre(), subsets=1, subset_size=40).set_dtype(torch.float64)
    theirs.update(torch.tensor(a), real=True)
    theirs.update(torch.tensor(b), real=False)
    assert mmd(a, b) == pytest.approx(float(theirs.compute()[0]), abs=1e-6)
    assert kid(a, b) == (mmd(a, b), 0.0)
    mean, deviation = kid(a, b, subsets=200, size=20)
    assert mean == pytest.approx(mmd(a, b), abs=3 * deviation / 200**0.5 + 0.05) and deviation > 0
    assert abs(mmd(a[:20], a[20:])) < mmd(a, b), "two halves of one set are nearer than two sets"


def test_silhouette_by_hand():
    """Two words at right angles: 0 from their own, 1 from the other, so all of them sit as well as they can."""
    vectors = np.array([[1.0, 0], [2, 0], [0, 1], [0, 3], [1, 1]])
    labels = ["a", "a", "b", "b", "alone"]
    assert silhouette(vectors, labels) == pytest.approx(1.0)
    assert silhouette(vectors, ["a", "b", "a", "b", "alone"]) < 0
    assert math.isnan(silhouette(vectors, list("aabcd")))


def test_like_vectors_lie_together_on_the_map(rng):
    centres = np.eye(3, 8)
    vectors = np.repeat(centres, 10, axis=0) + rng.normal(0, 0.05, (30, 8))
    at = flattened(vectors).reshape(3, 10, 2)
    within = np.linalg.norm(at - at.mean(axis=1, keepdims=True), axis=-1).max()
    between = np.linalg.norm(at.mean(axis=1)[[0, 0, 1]] - at.mean(axis=1)[[1, 2, 2]], axis=-1).min()
    assert at.shape == (3, 10, 2) and between > within
    assert np.array_equal(flattened(vectors), flattened(vectors))
    assert flattened(vectors[:3]).shape == (3, 2) and flattened(vectors[:1]).shape == (1, 2)
