"""What a study keeps of each word: what is asked in new sentences, and the columns themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mcpl.config import Placement, Recipe
from mcpl.data.pictures import mask_png
from mcpl.data.sources import scenes
from mcpl.learning.settings import AttentionMask
from mcpl.orchestration.job import Runner
from mcpl.orchestration.measures import MEASURES, sentences
from mcpl.prompts import parse, said
from mcpl.recipes import adjust
from mcpl.scenes.grammar import marked_sentence
from mcpl.scenes.scene import sample_scene
from mcpl.scenes.world import shapes


def test_new_sentences_ask_for_what_they_say():
    scene = sample_scene(3, objects=2, pool=shapes("unnamed"))
    first, second = (item.shape for item in scene.objects)
    asked = dict(sentences(parse(marked_sentence(scene)), scene, 5))
    shown = {name: [item.shape for item in wanted.objects] for name, (_, wanted) in asked.items()}
    assert sorted(shown["composition"]) == sorted([first, second])
    assert shown["beside_known"] == [first, "disc"] and shown["one_more"] == [first, second, "disc"]
    assert shown["one_twice"] == [second, second]
    for text, wanted in asked.values():
        told = [(w.text.strip("<>"), said(text).words[at - 1].text) for at, w in enumerate(said(text).words)]
        for item in wanted.objects:
            before = "striped" if item.texture == "striped" else item.colour
            assert (item.shape, before) in told, text


def test_columns_of_a_learned_picture(tiny):
    recipe = Recipe(steps=1, probe_timesteps=2, precision="float64")
    runner = Runner(recipe, Placement(pack=1, samples=2, device="cpu"), tiny)
    (example,) = scenes(1, seed=1).examples()
    (outcome,) = runner.outcomes([example])
    found = {name: value for measure in MEASURES.values() for name, value in measure(runner, example, outcome).items()}
    slugs = [c.slug for c in outcome.job.concepts]
    assert found["slugs"] == found["words"] == slugs and len(slugs) == 2
    assert np.shape(found["states"]) == (2, 16) and np.shape(found["features"]) == (2, 128)
    assert np.linalg.norm(found["features"], axis=1).max() <= 1 + 1e-4
    assert np.max(found["maps"]) == np.max(found["maps_step0"]) == 1 and np.min(found["maps"]) >= 0
    assert 0 <= found["one_twice"] <= 1 and 0 <= found["composition"] <= 1


def test_loss_by_place_is_the_loss_on_fixed_noise_taken_apart(tiny):
    recipe = Recipe(steps=2, lr=0.1, vectors_per_word=2, probe_timesteps=3, batch=2, precision="float64")
    runner = Runner(recipe, Placement(pack=1, samples=0, device="cpu"), tiny)
    (example,) = scenes(1, seed=1).examples()
    (outcome,) = runner.outcomes([example])
    measure = MEASURES["loss by place"]
    found = measure(runner, example, outcome)
    given = adjust(recipe, attention_mask=AttentionMask(source="given"))
    share = float(Runner(given, runner.placement, tiny).prepare(example).masks[0].amax(dim=0).mean())
    assert 0 < share < 1
    for when, point in (("_step0", outcome.learned.curve[0]), ("", outcome.learned.kept)):
        whole = share * found["object_loss" + when] + (1 - share) * found["ground_loss" + when]
        assert whole == pytest.approx(point.fixed_noise_loss, rel=1e-6)
    assert found["object_loss"] != found["object_loss_step0"]
    first, second = example.masks
    assert measure(runner, replace(example, masks={first: example.masks[first]}), outcome) == {}
    dot = np.zeros((32, 32), bool)
    dot[0, 0] = True
    small = replace(example, masks={first: mask_png(dot), second: mask_png(dot)})
    assert set(measure(runner, small, outcome)) == {"ground_loss", "ground_loss_step0"}
