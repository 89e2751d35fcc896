"""What the judge says of pictures that are rendered, so that the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mcpl.evaluation import judging
from mcpl.evaluation.evaluate import Given, Subject, evaluate
from mcpl.prompts import parse
from mcpl.scenes.judge import matches
from mcpl.scenes.render import render
from mcpl.scenes.scene import Scene, SceneObject
from mcpl.types import Concept, CurvePoint, LearnedConcept, LearnedConcepts

STAR, RING = SceneObject("star", "red", "plain", 8, 16, 12), SceneObject("ring", "blue", "plain", 24, 16, 12)
SCENE = Scene("grey", (STAR, RING), "left of")
TOLD = parse("a red <star> left of a blue <ring> on a grey ground")
BARE = parse("a <star> left of a <ring> on a grey ground")


def pictures(*objects: SceneObject) -> np.ndarray:
    """Each alone on a ground."""
    return np.stack([render(Scene("grey", (item,)))[0] for item in objects])


def read(*objects):
    return judging.judge().read(pictures(*objects))


def of(shape: str, colour: str) -> SceneObject:
    return SceneObject(shape, colour, "plain", 16, 16, 14)


def test_a_colour_that_an_adjective_names_is_not_asked_of_the_word():
    readings = read(of("star", "red"), of("star", "green"), of("ring", "red"), of("star", "blue"))
    (told, _), (bare, _) = TOLD.concepts, BARE.concepts
    assert judging.right(told, STAR, readings) == 0.75 and judging.right(bare, STAR, readings) == 0.25


def test_the_second_judge_sees_the_same_and_reads_no_other_size():
    drawn = pictures(of("star", "red"), of("star", "green"), of("ring", "red"), of("star", "blue"))
    (told, _), (bare, _) = TOLD.concepts, BARE.concepts
    again = judging.second_readings(drawn)
    assert judging.right(told, STAR, again) == 0.75 and judging.right(bare, STAR, again) == 0.25
    assert judging.second_readings(drawn[:, :16]) is None


def test_what_belongs_to_the_other_object_leaks():
    readings = read(of("star", "red"), of("star", "green"), of("ring", "red"), of("star", "blue"))
    (told, _), (bare, _) = TOLD.concepts, BARE.concepts
    assert judging.leak(told, STAR, SCENE, readings) == 0.25, "the ring"
    assert judging.leak(bare, STAR, SCENE, readings) == 0.5, "the ring, and the star in the ring's blue"
    assert judging.leak(bare, STAR, Scene("grey", (STAR,)), readings) is None


def test_words_by_other_names_stand_for_the_objects_in_order():
    named = parse("a red <one> left of a blue <two>")
    assert judging.items(named, SCENE) == {"one": STAR, "two": RING}
    assert judging.items(parse("a red <one>"), SCENE) == {}
    assert judging.items(parse("a red <ring>"), SCENE) == {"ring": RING}


@pytest.mark.parametrize("sentence", [TOLD, BARE])
def test_a_new_scene_says_what_it_asks_for(sentence):
    """Colours are new where adjectives name them, else the words' own and untold; a render of it is right."""
    asked = [judging.new_scene(sentence, SCENE, seed) for seed in range(6)]
    for text, scene in asked:
        assert {c.slug for c in parse(text).concepts} == {"star", "ring"} and text != sentence.text
        assert all((item.colour in text.split()) == (sentence is TOLD) for item in scene.objects)
        assert sentence is TOLD or {item.colour for item in scene.objects} == {"red", "blue"}
        assert scene.relation in ("above", "below")
        assert matches(judging.judge().read(render(scene)[0][None])[0], scene).right
        assert judging.composed(np.stack([render(scene)[0], render(SCENE)[0]]), scene) == 0.5
    assert len({scene for _, scene in asked}) == 6 and judging.new_scene(sentence, SCENE, 3) == asked[3]
    assert judging.new_scene(parse("a red <star>"), SCENE, 0) is None


def test_a_picture_is_scored_without_its_job(tiny):
    """Words alone give what a bank can give later: nothing before learning, a new sentence where it is asked for."""
    width, words = tiny.facts.width, torch.eye(2, tiny.facts.width)
    learned = LearnedConcepts(
        "p",
        tuple(
            LearnedConcept(Concept(slug), words[i : i + 1], torch.eye(4), torch.eye(4))
            for i, slug in enumerate(("star", "ring"))
        ),
        (CurvePoint(0, 0.5, 1.0, 1.0, 0.9),),
        {},
        0,
        0,
    )
    pictures = (Given(TOLD, truth=SCENE.to_json()),)
    plain = evaluate(tiny, Subject(learned, pictures), samples=2)
    assert {"right_object", "leak", "word_similarity"} <= plain.metrics.keys() and plain.alone["star"].shape[0] == 2
    assert not plain.alone_step0 and not {"right_object_step0", "composition"} & plain.metrics.keys()
    before = {"star": torch.ones(1, width), "ring": torch.ones(1, width)}
    more = evaluate(tiny, Subject(learned, pictures, before), samples=2, compose=True)
    assert {"right_object_step0", "leak_step0", "composition"} <= more.metrics.keys()
    assert torch.equal(more.alone["star"], plain.alone["star"]), "the noise depends on nothing else"
    assert torch.equal(more.alone_step0["star"], more.alone_step0["ring"]), "one vector, one noise"
