"""The blind look at learned words' drawings: on rendered pictures, so that every verdict is known."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from benchmarks import eye_check_words as module
from mcpl.errors import ConfigError
from mcpl.scenes.render import render
from mcpl.scenes.scene import Scene, SceneObject

STAR = Scene("grey", (SceneObject("star", "red", "plain", 16, 16, 14),))
ASKED = [
    module.Drawing("plain", "a", "star", None),
    module.Drawing("plain", "a", "star", "red"),
    module.Drawing("best", "b", "star", "blue"),
    module.Drawing("best", "b", "ring", None),
]
"""right, right, wrong and wrong, of a picture of a red star"""


@pytest.fixture
def folder(tmp_path):
    grid = np.zeros((32, module.COLUMNS * 32, 3), np.uint8)
    grid[:, : 4 * 32] = np.concatenate([render(STAR)[0]] * 4, axis=1)
    Image.fromarray(grid).save(tmp_path / module.GRID)
    drawn = {"plain": {"n": 10, "judge": 5, "second_judge": 4}, "best": {"n": 10, "judge": 0, "second_judge": 1}}
    (tmp_path / module.ASKED).write_text(json.dumps({"drawn": drawn, "asked": [asdict(one) for one in ASKED]}))
    return tmp_path


def test_rates_are_mended_by_what_the_eye_says(folder):
    """Of two that the judge calls right the eye keeps one, of two that it calls wrong it takes one up."""
    (folder / module.FORM).write_text("number,right\n0,yes\n1,no\n2,no\n3,yes\n")
    found = module.compare(*module.read(folder))
    assert [found[key]["mean"] for key in ("judge_right", "judge_wrong", "second_right", "second_wrong")] == [0.5] * 4
    assert found["recipes"]["plain"].items() >= {"n": 10, "judge": 0.5, "second_judge": 0.4, "eye": 0.5}.items()
    assert found["recipes"]["plain"]["eye_low"] <= 0.5 <= found["recipes"]["plain"]["eye_high"]
    (folder / module.FORM).write_text("number,right\n0,yes\n1,yes\n2,no\n3,yes\n")
    found = module.compare(*module.read(folder))
    assert found["recipes"]["plain"]["eye"] == 0.75 and found["recipes"]["best"]["eye"] == 0.5


def test_a_form_with_a_gap_is_refused(folder):
    (folder / module.FORM).write_text("number,right\n0,yes\n1,\n2,no\n3,yes\n")
    with pytest.raises(ConfigError, match="yes or no for each of 4"):
        module.read(folder)


def test_half_of_the_chosen_are_such_as_the_judge_calls_right():
    right = np.arange(400) % 3 == 0
    some = module.chosen(right)
    assert len(set(some)) == module.CHOSEN and right[some].mean() == 0.5 and some == module.chosen(right)
    assert not right[some[:50]].all() and right[some[:50]].any(), "shuffled"
