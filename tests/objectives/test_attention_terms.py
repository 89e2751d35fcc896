"""The attention terms and better masks by hand; word maps against a loop."""

from __future__ import annotations

import pytest
import torch

from mcpl.objectives.attention import (
    WordMaps,
    attention_error,
    exclusive,
    member_positions,
    overlap,
    refine,
    sharpness,
    unbound,
    word_maps,
)

LEFT = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
RIGHT = 1 - LEFT


def test_members_and_their_maps_by_a_loop():
    """Row 0 names concept 0 in two vectors with an adjective; row 1 names concept 1 only."""
    ids = torch.tensor([[-1, 0, -1, 0, 0, -1], [-1, -1, -1, -1, 1, -1]])
    placed = torch.tensor([[0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 1, 0]], dtype=torch.bool)
    positions = member_positions(ids)
    assert positions.tolist() == [[1, 3, 4], [4, 0, 0]]
    torch.manual_seed(0)
    full = torch.rand(2, 6, 2, 2)
    maps = word_maps(torch.stack([full[b, positions[b]] for b in range(2)]), positions, ids, placed, 2)
    assert torch.allclose(maps.nouns[0, 0], (full[0, 3] + full[0, 4]) / 2)
    assert torch.allclose(maps.adjectives[0, 0], full[0, 1])
    assert torch.allclose(maps.nouns[1, 1], full[1, 4])
    assert maps.has_noun.tolist() == [[True, False], [False, True]]
    assert maps.has_adjective.tolist() == [[True, False], [False, False]]


def test_attention_error_by_hand():
    """A map of the right shape at any scale is perfect; the opposite one is wrong everywhere."""
    maps = torch.stack([0.03 * LEFT, 0.5 * LEFT])[None]
    counted = torch.tensor([[True, True]])
    assert attention_error(maps, torch.stack([LEFT, LEFT])[None], counted).item() == 0
    assert attention_error(maps, torch.stack([LEFT, RIGHT])[None], counted).item() == 0.5
    assert attention_error(maps, torch.stack([LEFT, RIGHT])[None], torch.tensor([[True, False]])).item() == 0


def test_suppress_and_bind_by_hand():
    both, one = torch.tensor([[True, True]]), torch.tensor([[True, False]])
    assert overlap(torch.stack([LEFT, RIGHT])[None], both).item() == 0
    assert overlap(torch.stack([LEFT, 0.1 * LEFT])[None], both).item() == 1
    assert overlap(torch.stack([LEFT, LEFT])[None], one).item() == 0, "one word cannot overlap another"
    maps = WordMaps(torch.stack([LEFT, LEFT])[None], torch.stack([LEFT, RIGHT])[None], both, both)
    assert unbound(maps, both).item() == 0.5 and unbound(maps, one).item() == 0


@pytest.mark.parametrize("function", ["error", "overlap", "bind"])
def test_gradients_are_finite_where_a_concept_is_missing(function):
    maps = torch.rand(1, 3, 4, 4)
    maps[:, 2] = 0
    maps.requires_grad_()
    counted = torch.tensor([[True, True, False]])
    words = WordMaps(maps, maps.detach().flip(-1), counted, counted)
    value = {
        "error": lambda: attention_error(maps, torch.ones(1, 3, 4, 4), counted),
        "overlap": lambda: overlap(maps, counted),
        "bind": lambda: unbound(words, counted),
    }[function]()
    value.sum().backward()
    assert torch.isfinite(maps.grad).all() and maps.grad[:, :2].abs().sum() > 0


def test_refinement_spreads_a_point_over_the_cells_that_attend_to_it():
    """Cells 0 and 1 attend to each other alike, 2 and 3 to themselves: a point at 0 becomes a half at 0 and 1."""
    affinity = torch.tensor([[[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 1.0, 0], [0, 0, 0, 1.0]]])
    point = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    assert refine(point, affinity, 1).flatten().tolist() == [0.5, 0.5, 0, 0]
    assert torch.equal(refine(point, affinity, 0), point)


def test_a_cell_keeps_the_strongest_concept():
    """The second map is weaker in all of its cells, but not by its own maximum."""
    maps = torch.stack([torch.tensor([[1.0, 0.6]]), torch.tensor([[0.05, 0.1]])])
    assert exclusive(maps, torch.ones(2, 1, 2)).tolist() == [[[1, 0]], [[0, 1]]]


def test_sharpness_of_a_point_and_of_nothing_in_particular():
    point = torch.zeros(4, 4)
    point[1, 2] = 0.3
    assert sharpness(point).item() == pytest.approx(16) and sharpness(torch.ones(4, 4)).item() == 1
