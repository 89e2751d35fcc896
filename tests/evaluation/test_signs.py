"""Every failure sign is provoked, and is silent on words that are well."""

from __future__ import annotations

import pytest
import torch

from mcpl.evaluation.metrics import Scored
from mcpl.evaluation.signs import SIGNS, advice, check
from mcpl.types import Concept, CurvePoint, LearnedConcept, LearnedConcepts

LEFT = torch.cat([torch.ones(4, 2), torch.zeros(4, 2)], dim=1)
RIGHT, FLAT = 1 - LEFT, torch.ones(4, 4)


def scored(maps=(LEFT, RIGHT), masks=(LEFT, RIGHT), similarity=0.5, area=0.4, loss=0.2, norm=1.0) -> Scored:
    words = tuple(LearnedConcept(Concept(s), torch.ones(1, 2), m, m) for s, m in zip("ab", maps, strict=True))
    curve = (CurvePoint(0, 0.25, 0.4, 1.0, 0.9), CurvePoint(10, loss, area, norm, similarity))
    return Scored(LearnedConcepts("p", words, curve, {}, 10, 50), dict(zip("ab", masks, strict=True)), masked=True)


PROVOKED = {
    "collapse": {"similarity": 0.995},
    "same_place": {"maps": (LEFT, LEFT), "masks": (LEFT, LEFT)},
    "swapped": {"maps": (RIGHT, LEFT)},
    "empty_mask": {"area": 0.0},
    "mask_everywhere": {"area": 1.0},
    "diffuse": {"maps": (FLAT, RIGHT)},
    "low_fidelity": {"loss": 0.4},
    "norm_drift": {"norm": 0.3},
}


def test_words_that_are_well_show_no_sign():
    found = check(scored())
    assert set(found) == {f"sign_{name}" for name in SIGNS} and not any(found.values())
    assert advice(found) == []


@pytest.mark.parametrize("name", SIGNS)
def test_each_sign_is_provoked_and_alone(name):
    found = check(scored(**PROVOKED[name]))
    assert {n for n, seen in found.items() if seen} == {f"sign_{name}"}
    (line,) = advice(found)
    assert line.startswith(name.replace("_", " ") + ": ") and "\n" not in line


def test_what_cannot_be_told_is_left_out():
    """One word, no masks, no AttnMask."""
    one = LearnedConcept(Concept("a"), torch.ones(1, 2), LEFT, LEFT)
    learned = LearnedConcepts("p", (one,), (CurvePoint(0, 0.2, 1.0, 1.0, 0.0),), {}, 0, 10)
    found = check(Scored(learned))
    assert not {"sign_collapse", "sign_same_place", "sign_swapped", "sign_mask_everywhere"} & set(found)
    assert not any(found.values())
