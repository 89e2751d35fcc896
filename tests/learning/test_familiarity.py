"""Before anything is trained: words and pictures that the shipped base does not know are named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mcpl.learning.familiarity import looks_strange, strangeness, unknown_words
from mcpl.models.catalogue import ASSETS, load
from mcpl.orchestration.job import to_pixels
from mcpl.prompts import parse
from mcpl.scenes.render import render
from mcpl.scenes.scene import sample_scene


@pytest.fixture(scope="module")
def base():
    return load("scenes-v1", device="cpu")


def test_words_outside_a_closed_vocabulary_are_named(base):
    sentence = parse("a brown <bear> on a rolling red <board>, left of a teapot")
    assert unknown_words(sentence, base) == ("rolling", "teapot")


def test_an_initialiser_that_the_base_does_not_know_is_named_too(base):
    assert unknown_words(parse("a red <heart:thing> beside a <moon:crescent>"), base) == ("beside", "crescent")


def test_an_open_vocabulary_names_none(base, monkeypatch):
    monkeypatch.setattr(base, "facts", replace(base.facts, closed_vocabulary=False))
    assert unknown_words(parse("a zxqv <bear>"), base) == ()


def test_a_base_knows_as_much_by_its_folder_as_by_its_name(base):
    """Whoever trained it anew starts words from `thing` and is told of words that it does not know."""
    again = load(str(ASSETS / "scenes-v1"), device="cpu")
    assert again.facts == replace(base.facts, name=again.facts.name)
    assert (again.facts.neutral_words, again.facts.closed_vocabulary) == (("thing",), True)


def test_its_own_pictures_are_familiar_and_photographs_are_not(base):
    own = [to_pixels(render(sample_scene([123, i]))[0]) for i in range(6)]
    assert [looks_strange(strangeness(base, pixels), base.facts.familiar) for pixels in own] == [None] * 6
    rng = np.random.default_rng(0)
    grain = torch.tensor(rng.uniform(-1, 1, (3, 32, 32)), dtype=torch.float32)
    ramp = torch.linspace(-1, 1, 32)
    photo = torch.stack([ramp[:, None] * ramp, ramp[None].expand(32, 32), (ramp[:, None] * 3).sin() * ramp]).float()
    for strange in (grain, photo):
        assert looks_strange(strangeness(base, strange), base.facts.familiar)
