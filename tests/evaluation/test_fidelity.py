"""The paper's protocol on vectors of two numbers: every pair can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mcpl.evaluation.fidelity import ceiling, fidelity, of_means, of_outputs, of_pictures, to_another

EAST, NORTH, BETWEEN = np.array([[1.0, 0]]), np.array([[0, 2.0]]), np.array([[3.0, 3]])
HALF = 0.5**0.5


def test_prompts_of_every_two_seeds_are_paired():
    """a: east, 45 degrees (1 and .71); b: at right angles to its truth, and on it (0 and 1). Words count alike."""
    learned = [{"a": EAST, "b": EAST}, {"a": BETWEEN, "b": NORTH}]
    found = fidelity(learned, [{"a": EAST, "b": NORTH}], of_outputs)
    assert found.count == 4 and found.mean == pytest.approx(((1 + HALF) / 2 + 0.5) / 2)
    assert found.deviation == pytest.approx(np.std([1, HALF, 0, 1]))
    assert fidelity(learned, [{"c": EAST}], of_outputs) is None
    assert fidelity(learned, [], of_outputs) is None and to_another(learned, [], of_outputs) is None


def test_another_word_is_what_chance_gives():
    learned, truth = [{"a": EAST, "b": NORTH}], [{"a": EAST, "b": BETWEEN}]
    assert to_another(learned, truth, of_outputs).mean == pytest.approx((HALF + 0) / 2)
    assert to_another([{"a": EAST}], [{"a": EAST}], of_outputs) is None, "one word has no other"


def test_pictures_of_one_noise_are_not_paired():
    """Two pictures each, alike where the noise is: only what the words have in common counts."""
    drawn = np.concatenate([EAST, NORTH])
    found = fidelity([{"a": drawn}], [{"a": drawn}], of_pictures)
    assert (found.count, found.mean) == (2, 0.0)


def test_means_of_unit_vectors_stand_for_all_their_pairs():
    rng = np.random.default_rng(0)
    drawn = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in rng.normal(size=(2, 5, 3))]
    first, second = ({"a": vectors.mean(axis=0, keepdims=True)} for vectors in drawn)
    assert fidelity([first], [second], of_means).mean == pytest.approx((drawn[0] @ drawn[1].T).mean())


def test_as_many_pairs_as_the_paper():
    rng = np.random.default_rng(0)
    seeds = [{"a": rng.normal(size=(20, 8))} for _ in range(10)]
    assert fidelity(seeds, seeds, of_pictures).count == 10 * 10 * 20 * 19
    assert fidelity(seeds, seeds, of_outputs).count == 40_000


def test_the_ceiling_is_the_truth_under_another_seed():
    one, other = {"a": EAST}, {"a": BETWEEN}
    assert ceiling([one, other], of_outputs).mean == pytest.approx(HALF)
    assert ceiling([one], of_outputs) is None, "a word is always itself"
    drawn = {"a": np.concatenate([EAST, NORTH, BETWEEN])}
    assert ceiling([drawn], of_pictures).mean == pytest.approx((0 + HALF + HALF) / 3)
