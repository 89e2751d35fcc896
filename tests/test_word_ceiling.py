"""The benchmark of what a word learned from many pictures draws: its verdicts, and one small run."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import word_ceiling
from benchmarks.jobs import BASE
from mcpl.models import catalogue
from mcpl.recipes import adjust, load
from mcpl.scenes.render import render
from mcpl.scenes.scene import sample_scene
from mcpl.studies import START


def scenes_of(shape: str, count: int) -> np.ndarray:
    """Pictures of one object of the shape each."""
    scenes = (sample_scene(seed, objects=1, pool=[shape]) for seed in range(count))
    return np.stack([render(scene)[0] for scene in scenes])


def test_only_the_asked_shape_alone_is_right():
    two = sample_scene(7, objects=2, pool=["heart", "moon"])
    hearts = np.concatenate([scenes_of("heart", 5), scenes_of("moon", 4), render(two)[0][None]])
    found = word_ceiling.verdicts({"heart": hearts, "moon": scenes_of("moon", 10)})
    assert found["judge"] == found["second"]
    assert (found["judge"]["mean"], found["judge"]["n"]) == (0.75, 20)
    assert found["drawn"] == {"heart": {"heart": 5, "moon": 4, word_ceiling.NOTHING: 1}, "moon": {"moon": 10}}
    either = word_ceiling.verdicts({"start": hearts}, asked={"start": {"heart", "moon"}})
    assert (either["judge"]["mean"], either["judge"]["n"]) == (0.9, 10)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "named"), [("unnamed-2", False), ("named-2", True)])
def test_words_of_many_pictures_are_learned_together_and_drawn(tmp_path, name, named):
    model = catalogue.load(str(BASE))
    recipe = adjust(load("plain"), **START, steps=2, batch=2, probe_every=2)
    found, drawn = word_ceiling.measure(model, name, 2, recipe, drawings=1)
    assert found["steps"] == 2 and sum(found["pictures"].values()) == 4
    assert set(drawn) == set(found["learned"]["drawn"]) == set(found["pictures"])
    assert found["before"]["judge"]["n"] == 1 and found["learned"]["judge"]["n"] == len(drawn)
    assert (found["names"] is not None) == named
    word_ceiling.sheet(drawn, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").exists()
