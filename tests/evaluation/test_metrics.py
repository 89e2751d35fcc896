"""Every metric by hand on 4x4 maps: these are the published numbers."""

from __future__ import annotations

import pytest
import torch

from mcpl.evaluation.metrics import METRICS, Scored, score
from mcpl.types import Concept, CurvePoint, LearnedConcept, LearnedConcepts


def block(rows: slice, columns: slice, side: int = 4) -> torch.Tensor:
    mask = torch.zeros(side, side)
    mask[rows, columns] = 1
    return mask


LEFT, RIGHT = block(slice(None), slice(0, 2)), block(slice(None), slice(2, 4))
CORNER = block(slice(0, 2), slice(0, 2))


def learned(after: dict[str, torch.Tensor], before: dict[str, torch.Tensor]) -> LearnedConcepts:
    words = tuple(
        LearnedConcept(Concept(slug), torch.zeros(1, 2), attention, before[slug]) for slug, attention in after.items()
    )
    curve = (CurvePoint(0, 0.5, 1.0, 1.0, 0.9), CurvePoint(10, 0.25, 1.0, 1.0, 0.3))
    return LearnedConcepts("p", words, curve, {}, 10, 50)


def test_right_words_after_swapped_ones_before():
    found = score(
        Scored(learned({"a": LEFT, "b": RIGHT}, {"a": RIGHT, "b": LEFT}), {"a": LEFT, "b": RIGHT}, {"a": 1.0, "b": 0.5},
               right_object_second_judge={"a": 0.5, "b": 0.0})
    )  # fmt: skip
    assert found == {
        "fixed_noise_loss_step0": 0.5,
        "fixed_noise_loss": 0.25,
        "attention_iou_step0": 0.0,
        "attention_iou": 1.0,
        "attention_iou_best_permutation": 1.0,
        "assignment_step0": 0.0,
        "assignment": 1.0,
        "pointing_game": 1.0,
        "right_object": 0.75,
        "right_object_second_judge": 0.25,
        "word_similarity": 0.0,
        "prompt_similarity": 0.3,
    }


def test_swapped_words_have_a_perfect_permutation_and_no_assignment():
    swapped = learned({"a": RIGHT, "b": LEFT}, {"a": LEFT, "b": RIGHT})
    found = score(Scored(swapped, {"a": LEFT, "b": RIGHT}))
    assert (found["attention_iou"], found["attention_iou_best_permutation"]) == (0.0, 1.0)
    assert (found["assignment"], found["assignment_step0"]) == (0.0, 1.0)
    assert found["pointing_game"] == 0.0


def test_iou_of_a_quarter_in_a_half():
    """The map covers 4 of the object's 8 cells and nothing else: 4 / 8."""
    found = score(Scored(learned({"a": CORNER}, {"a": LEFT}), {"a": LEFT}))
    assert (found["attention_iou"], found["attention_iou_step0"]) == (0.5, 1.0)
    assert "assignment" not in found, "one object cannot be mistaken for another"


def test_a_tie_is_no_assignment():
    both = torch.ones(4, 4)
    found = score(Scored(learned({"a": both, "b": both}, {"a": both, "b": both}), {"a": LEFT, "b": RIGHT}))
    assert found["assignment"] == 0.0


def test_the_strongest_point_decides_the_pointing_game():
    map_ = LEFT.clone()
    map_[3, 3] = 5.0
    found = score(Scored(learned({"a": map_}, {"a": map_}), {"a": LEFT}))
    assert found["pointing_game"] == 0.0


def test_maps_are_read_at_half_of_their_own_maximum():
    weak = 0.02 * LEFT + 0.009 * RIGHT
    found = score(Scored(learned({"a": weak}, {"a": weak}), {"a": LEFT}))
    assert found["attention_iou"] == 1.0


def test_masks_of_another_size_are_averaged_down():
    large = torch.nn.functional.interpolate(LEFT[None, None], scale_factor=8)[0, 0]
    assert score(Scored(learned({"a": LEFT}, {"a": LEFT}), {"a": large}))["attention_iou"] == 1.0


def test_iou_agrees_with_torchmetrics():
    from torchmetrics.functional.classification import binary_jaccard_index

    torch.manual_seed(0)
    for _ in range(20):
        attention, mask = torch.rand(16, 16), (torch.rand(16, 16) > 0.6).float()
        ours = score(Scored(learned({"a": attention}, {"a": attention}), {"a": mask}))["attention_iou"]
        binary = (attention >= 0.5 * attention.max()).int()
        assert ours == pytest.approx(float(binary_jaccard_index(binary, mask.int())), abs=1e-6)


def test_words_are_compared_by_the_means_of_their_vectors():
    """(1, 0) and (1, 1) / 2: 45 degrees apart, however long they are."""
    words = (
        LearnedConcept(Concept("a"), torch.tensor([[3.0, 0]]), LEFT, LEFT),
        LearnedConcept(Concept("b"), torch.tensor([[2.0, 0], [0, 2]]), LEFT, LEFT),
    )
    one = CurvePoint(0, 0.5, 1.0, 1.0, 0.9)
    found = score(Scored(LearnedConcepts("p", words, (one,), {}, 0, 0), leak={"a": 0.5, "b": 0.0}, composition=0.25))
    assert found["word_similarity"] == pytest.approx(0.5**0.5)
    assert (found["leak"], found["composition"]) == (0.25, 0.25)


def test_what_does_not_apply_is_left_out():
    found = score(Scored(learned({"a": LEFT}, {"a": LEFT})))
    assert set(found) == {"fixed_noise_loss_step0", "fixed_noise_loss"} and set(found) < set(METRICS)
