"""What a learned word is worth, as numbers: one METRICS table, one function and one line for each.

A metric takes a `Scored` picture and returns one number, or None where it does not apply (no masks, no samples).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import permutations

import torch
from torch import Tensor

from mcpl.evaluation.similarity import pairwise
from mcpl.objectives.attention import binarise, covered, iou
from mcpl.types import LearnedConcepts

THRESHOLD = 0.5
"""Maps are binarised here for scoring, whatever the recipe's own threshold was."""
MAX_PERMUTED = 6
"""Concepts up to which the best permutation is searched (720 orders)."""


@dataclass(frozen=True)
class Scored:
    """One learned picture with what there is to judge it by."""

    learned: LearnedConcepts
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    """slug -> [H, W] 0/1 true mask of its object"""
    right_object: Mapping[str, float] = field(default_factory=dict)
    """slug -> share of its own pictures that show its object and nothing else, by a judge"""
    right_object_step0: Mapping[str, float] = field(default_factory=dict)
    right_object_second_judge: Mapping[str, float] = field(default_factory=dict)
    """what the second judge, of which nothing is learned, says of the same pictures"""
    leak: Mapping[str, float] = field(default_factory=dict)
    """slug -> share of its own pictures that show what belongs to another object, by a judge"""
    leak_step0: Mapping[str, float] = field(default_factory=dict)
    composition: float | None = None
    """share of pictures of two words in a new sentence that show both as asked, by a judge"""
    masked: bool = False
    """whether the recipe masked the loss"""


def _true_masks(scored: Scored) -> tuple[list[int], Tensor] | None:
    """Concepts that have a mask, and those masks at the maps' resolution. [n, m, m]"""
    concepts = scored.learned.concepts
    with_mask = [i for i, c in enumerate(concepts) if c.concept.slug in scored.masks]
    if not with_mask:
        return None
    side = concepts[0].attention.shape[-1]
    masks = torch.stack([covered(scored.masks[concepts[i].concept.slug][None], side)[0] for i in with_mask])
    return with_mask, masks


def _overlaps(scored: Scored, which: str) -> Tensor | None:
    """IoU of every word's binarised map (rows) with every true mask (columns). [n, n]"""
    found = _true_masks(scored)
    if found is None:
        return None
    with_mask, masks = found
    maps = torch.stack([getattr(scored.learned.concepts[i], which).float() for i in with_mask])
    return iou(binarise(maps, THRESHOLD)[:, None], masks[None])


def _own(overlaps: Tensor | None) -> float | None:
    return None if overlaps is None else float(overlaps.diagonal().mean())


def _assignment(overlaps: Tensor | None) -> float | None:
    """Share of words whose own object overlaps their map most; a tie or no overlap at all is no hit."""
    if overlaps is None or len(overlaps) < 2:
        return None
    others = overlaps.masked_fill(torch.eye(len(overlaps), dtype=torch.bool), -1).amax(dim=1)
    return float((overlaps.diagonal() > others).float().mean())


def attention_iou(scored: Scored) -> float | None:
    """Mean IoU of each word's map (>= half of its maximum) with its own object's mask, after learning."""
    return _own(_overlaps(scored, "attention"))


def attention_iou_step0(scored: Scored) -> float | None:
    """The same before learning: adjectives leak their position, so the gain is what counts."""
    return _own(_overlaps(scored, "attention_step0"))


def attention_iou_best_permutation(scored: Scored) -> float | None:
    """Mean IoU under the assignment of words to objects that suits them best: high with swapped words."""
    overlaps = _overlaps(scored, "attention")
    if overlaps is None or len(overlaps) > MAX_PERMUTED:
        return None
    rows = torch.arange(len(overlaps))
    return max(float(overlaps[rows, list(order)].mean()) for order in permutations(range(len(overlaps))))


def assignment(scored: Scored) -> float | None:
    """Share of words that sit on their own object rather than on another one; needs two objects."""
    return _assignment(_overlaps(scored, "attention"))


def assignment_step0(scored: Scored) -> float | None:
    """The same before learning."""
    return _assignment(_overlaps(scored, "attention_step0"))


def pointing_game(scored: Scored) -> float | None:
    """Share of words whose strongest point lies inside their own object (Zhang et al., 2016)."""
    found = _true_masks(scored)
    if found is None:
        return None
    with_mask, masks = found
    hits = [
        mask.flatten()[scored.learned.concepts[i].attention.flatten().argmax()]
        for i, mask in zip(with_mask, masks, strict=True)
    ]
    return float(torch.stack(hits).mean())


def _mean(values: Mapping[str, float]) -> float | None:
    return sum(values.values()) / len(values) if values else None


def right_object(scored: Scored) -> float | None:
    """Share of pictures made from each word alone that show its object and nothing else."""
    return _mean(scored.right_object)


def right_object_step0(scored: Scored) -> float | None:
    """The same with the initialiser alone, before learning."""
    return _mean(scored.right_object_step0)


def right_object_second_judge(scored: Scored) -> float | None:
    """The same pictures after learning, as the second judge sees them: nothing of it is learned, and it is stricter."""
    return _mean(scored.right_object_second_judge)


def leak(scored: Scored) -> float | None:
    """Share of pictures made from each word alone that show another object's shape, or a colour of another's."""
    return _mean(scored.leak)


def leak_step0(scored: Scored) -> float | None:
    """The same with the initialiser alone."""
    return _mean(scored.leak_step0)


def composition(scored: Scored) -> float | None:
    """Share of pictures of a new sentence with two of the words that show all it says and nothing else."""
    return scored.composition


def fixed_noise_loss(scored: Scored) -> float | None:
    """Denoising loss of the training picture on fixed noise that training never used, of the words that were kept."""
    return scored.learned.kept.fixed_noise_loss


def fixed_noise_loss_step0(scored: Scored) -> float | None:
    """The same before learning."""
    return scored.learned.curve[0].fixed_noise_loss


def prompt_similarity(scored: Scored) -> float | None:
    """Largest cosine similarity of two words' text-encoder outputs: near 1 means that they collapsed."""
    return scored.learned.kept.prompt_similarity if len(scored.learned.concepts) > 1 else None


def word_similarity(scored: Scored) -> float | None:
    """Mean cosine similarity of every two words' own vectors (their means), before any text encoder: 0 is best."""
    words = [word.vectors.float().mean(dim=0) for word in scored.learned.concepts]
    return float(pairwise(torch.stack(words).numpy()).mean()) if len(words) > 1 else None


def kept_step(scored: Scored) -> float | None:
    """The look whose words were kept, where a recipe keeps its best look."""
    step = scored.learned.kept_step
    return None if step is None else float(step)


METRICS: dict[str, Callable[[Scored], float | None]] = {
    metric.__name__: metric
    for metric in (
        fixed_noise_loss_step0,
        fixed_noise_loss,
        attention_iou_step0,
        attention_iou,
        attention_iou_best_permutation,
        assignment_step0,
        assignment,
        pointing_game,
        right_object_step0,
        right_object,
        right_object_second_judge,
        leak_step0,
        leak,
        composition,
        word_similarity,
        prompt_similarity,
        kept_step,
    )
}


def score(scored: Scored) -> dict[str, float]:
    """Every metric that applies."""
    values = {name: metric(scored) for name, metric in METRICS.items()}
    return {name: value for name, value in values.items() if value is not None}
