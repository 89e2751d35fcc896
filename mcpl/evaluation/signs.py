"""Signs that a picture's words have failed, from what the learner recorded: one SIGNS table, one line of advice each.

A sign takes a `Scored` picture and says True, False, or None where it does not apply. `check` writes them among the
metrics as `sign_<name>`, 1 or 0, so that a bank's means are how often each sign was seen; `advice` reads them again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations

from mcpl.evaluation.metrics import Scored, assignment, attention_iou, attention_iou_best_permutation
from mcpl.objectives.attention import binarise, iou, sharpness

ALIKE = 0.95
"""Cosine of two words' text-encoder outputs from which they are one word. The small base's own nouns reach .90 in a
sentence, one word standing twice .94 to .99 where no adjective tells the two apart."""
SAME_PLACE = 0.8
"""IoU of two words' maps from which they look at one place."""
EMPTY, EVERYWHERE = 0.01, 0.9
"""Shares of the picture that a mask should lie between."""
DIFFUSE = 1.5
"""Peak over mean below which a map points nowhere."""
SWAP_MARGIN = 0.1
"""IoU that exchanging the words must gain."""
WORSE = 1.05
"""Loss on fixed noise, over that before learning, from which learning has done harm."""
DRIFT = 1.5
"""Growth (or shrinkage) of the rows' length that leaves the vocabulary."""


def collapsed(scored: Scored) -> bool | None:
    """Two words say the same."""
    return scored.learned.kept.prompt_similarity >= ALIKE if len(scored.learned.concepts) > 1 else None


def same_place(scored: Scored) -> bool | None:
    """Two objects' words look at the same place."""
    maps = [word.attention for word in scored.learned.concepts if word.concept.is_object]
    if len(maps) < 2:
        return None
    masks = [binarise(each.float(), 0.5) for each in maps]
    return any(float(iou(a, b)) >= SAME_PLACE for a, b in combinations(masks, 2))


def swapped(scored: Scored) -> bool | None:
    """Words sit on each other's objects; only true masks can tell."""
    assigned, best = assignment(scored), attention_iou_best_permutation(scored)
    if assigned is None or best is None:
        return None
    return assigned < 1 and best - attention_iou(scored) >= SWAP_MARGIN


def empty_mask(scored: Scored) -> bool:
    """The loss saw next to nothing of the picture."""
    return min(point.mask_area for point in scored.learned.curve) < EMPTY


def mask_everywhere(scored: Scored) -> bool | None:
    """The attention mask masks nothing; does not apply where the recipe has none."""
    return scored.learned.curve[-1].mask_area > EVERYWHERE if scored.masked else None


def diffuse(scored: Scored) -> bool:
    """A word's map points nowhere, so that a mask cut from it cannot be right."""
    return any(float(sharpness(word.attention.float())) < DIFFUSE for word in scored.learned.concepts)


def low_fidelity(scored: Scored) -> bool:
    """The words explain the picture worse than those that they started from."""
    return scored.learned.kept.fixed_noise_loss > WORSE * scored.learned.curve[0].fixed_noise_loss


def norm_drift(scored: Scored) -> bool:
    """The rows have left the length of ordinary words."""
    ratio = scored.learned.kept.norm / max(scored.learned.curve[0].norm, 1e-12)
    return not 1 / DRIFT <= ratio <= DRIFT


@dataclass(frozen=True)
class Sign:
    """How to see a failure, and what to do about it."""

    seen: Callable[[Scored], bool | None]
    advice: str


SIGNS: dict[str, Sign] = {
    "collapse": Sign(
        collapsed, "two words say the same: start them from unlike words, or tell them apart in the sentence"
    ),
    "same_place": Sign(
        same_place, "two words look at one place: add the bind-suppress term, or name their adjectives in the sentence"
    ),
    "swapped": Sign(
        swapped, "words sit on each other's objects: tell them apart by an adjective or a side in the sentence"
    ),
    "empty_mask": Sign(empty_mask, "a mask is all but empty: lower attention_mask.threshold"),
    "mask_everywhere": Sign(
        mask_everywhere, "the mask lets everything through: raise attention_mask.threshold, or refine its maps"
    ),
    "diffuse": Sign(
        diffuse, "a word's attention points nowhere: start it from a noun that the base knows, or name its adjective"
    ),
    "low_fidelity": Sign(
        low_fidelity, "the picture is explained worse than before learning: lower lr, or let the loss see outside masks"
    ),
    "norm_drift": Sign(norm_drift, "the words have left the length of ordinary words: lower lr, or set fixed_norm"),
}


def check(scored: Scored) -> dict[str, float]:
    """`sign_<name>` -> 1 or 0, for every sign that applies."""
    found = {name: sign.seen(scored) for name, sign in SIGNS.items()}
    return {f"sign_{name}": float(seen) for name, seen in found.items() if seen is not None}


def advice(metrics: Mapping[str, float]) -> list[str]:
    """One line for every sign that one picture's metrics show."""
    return [f"{name.replace('_', ' ')}: {sign.advice}" for name, sign in SIGNS.items() if metrics.get(f"sign_{name}")]
