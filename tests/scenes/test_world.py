"""The rendered world: the same seed gives the same scene, masks are exact, and the held-out stays held out."""

import numpy as np
import pytest

from mcpl.prompts import TEMPLATES
from mcpl.scenes.grammar import caption, marked_sentence, training_caption, vocabulary
from mcpl.scenes.render import coverage, render
from mcpl.scenes.scene import Scene, SceneObject, sample_scene
from mcpl.scenes.world import COLOURS, GROUNDS, HELD_OUT, RELATIONS, SHAPES, shapes

STAR = SceneObject("star", "red", "striped", 8, 16, 14)
RING = SceneObject("ring", "blue", "plain", 24, 16, 14)
PAIR = Scene("grey", (STAR, RING), "left of")


def test_same_seed_same_scene_picture_and_caption():
    for seed in range(20):
        first, second = sample_scene(seed), sample_scene(seed)
        assert first == second
        assert np.array_equal(render(first)[0], render(second)[0])
        told = [training_caption(first, np.random.default_rng(seed), TEMPLATES) for _ in range(2)]
        assert told[0] == told[1]
    assert len({sample_scene(seed) for seed in range(20)}) == 20


def test_masks_of_a_hand_worked_pair_of_squares():
    below, above = SceneObject("square", "red", "plain", 10, 12, 8), SceneObject("square", "blue", "plain", 14, 12, 8)
    picture, masks = render(Scene("white", (below, above), "left of"))
    expected = np.zeros((2, 32, 32), bool)
    expected[0, 8:16, 6:10] = True  # columns 10..13 lie under the second square
    expected[1, 8:16, 10:18] = True
    assert np.array_equal(masks, expected)
    assert (picture[masks[0]] == COLOURS["red"]).all() and (picture[masks[1]] == COLOURS["blue"]).all()
    assert (picture[~masks.any(0)] == GROUNDS["white"]).all()


def test_stripes_shade_every_other_pair_of_rows():
    picture, _ = render(Scene("white", (SceneObject("square", "yellow", "striped", 16, 16, 16),)))
    rows = picture[8:24, 16].astype(int).sum(1)
    assert (rows[[0, 1, 4, 5]] > rows[[2, 3, 6, 7]]).all()


def test_a_larger_scale_draws_the_same_scene():
    small, large = render(PAIR), render(PAIR, 2)
    assert large[0].shape == (64, 64, 3)
    shrunk = large[0].reshape(32, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(shrunk - small[0]).mean() < 2
    assert (large[1][:, ::2, ::2] == small[1]).mean() > 0.98


def test_shapes_are_distinct_at_the_smallest_size():
    solid = [coverage(name, 12) >= 0.5 for name in SHAPES]
    for i, first in enumerate(solid):
        assert 0.2 < first.mean() <= 1
        for second in solid[:i]:
            assert (first & second).sum() / (first | second).sum() < 0.8


def test_colours_and_grounds_are_far_apart():
    all_of = np.array([*COLOURS.values(), *GROUNDS.values()], float)
    apart = np.linalg.norm(all_of[:, None] - all_of[None], axis=-1) + 1e3 * np.eye(len(all_of))
    assert apart.min() > 100


def test_training_scenes_hold_no_held_out_pair_and_no_shape_that_is_never_drawn():
    items = [item for seed in range(1000) for item in sample_scene(seed).objects]
    assert not {(item.shape, item.colour) for item in items} & HELD_OUT
    assert {item.shape for item in items} == set(shapes("named", "unnamed"))


def test_held_out_scenes_are_drawn_when_asked_for():
    for seed in range(100):
        first = sample_scene(seed, held_out=True, pool=shapes("named"), objects=2).objects[0]
        assert (first.shape, first.colour) in HELD_OUT


def test_unnamed_shapes_are_never_named_while_the_base_trains():
    kept = {*shapes("unnamed"), *shapes("never")}
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        told = training_caption(sample_scene(rng), rng, TEMPLATES)
        assert not kept & set(told.replace(",", " ").split())
    assert not kept & set(vocabulary(TEMPLATES))


def test_objects_of_training_scenes_lie_apart_and_on_the_told_side():
    for seed in range(300):
        scene = sample_scene(seed)
        masks = render(scene)[1]
        assert masks.any((1, 2)).all() and masks.sum(0).max() == 1
        assert len({item.shape for item in scene.objects}) == len(scene.objects)
        if scene.relation:
            first, second = scene.objects
            step = np.array(RELATIONS[scene.relation])
            apart = np.array([first.x - second.x, first.y - second.y])
            assert apart @ step >= 12 > np.abs(apart[step == 0]).max()


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_occlusion_hides_the_asked_share(share):
    hidden = []
    for seed in range(40):
        scene = sample_scene(seed, objects=2, occlusion=share)
        visible, whole = render(scene)[1][0].sum(), render(Scene(scene.ground, scene.objects[:1]))[1][0].sum()
        hidden.append(1 - visible / whole)
    assert abs(np.mean(hidden) - share) < 0.05
    assert np.quantile(np.abs(np.array(hidden) - share), 0.75) < 0.05  # a star cannot hide half of a moon


def test_captions():
    assert caption(PAIR) == "a red striped star left of a blue ring on a grey ground"
    assert caption(PAIR, adjectives=False, ground=False) == "a star left of a ring"
    assert caption(PAIR, relation=False) == "a red striped star and a blue ring on a grey ground"
    three = Scene("white", (STAR, RING, SceneObject("heart", "green", "plain", 16, 8, 10)))
    assert caption(three) == "a red striped star, a blue ring and a green thing on a white ground"


def test_marked_sentences():
    assert marked_sentence(PAIR) == "a red striped <star> left of a blue <ring> on a grey ground"
    assert marked_sentence(PAIR, ["foo", "bar"], adjectives=False) == "a <foo> left of a <bar> on a grey ground"
    unnamed = Scene("white", (SceneObject("heart", "green", "plain", 16, 8, 10),))
    assert marked_sentence(unnamed) == "a green <heart> on a white ground"
    with pytest.raises(ValueError, match="one slug for two objects"):
        marked_sentence(Scene("white", (STAR, STAR)))


def test_scene_json_round_trip():
    for seed in range(50):
        scene = sample_scene(seed)
        assert Scene.from_json(scene.to_json()) == scene


def test_what_is_not_of_this_world_is_refused():
    with pytest.raises(ValueError, match="not an object"):
        SceneObject("blob", "red", "plain", 16, 16, 12)
    with pytest.raises(ValueError, match="not an object"):
        SceneObject("star", "red", "plain", 4, 16, 12)  # sticks out on the left
    with pytest.raises(ValueError, match="not a scene"):
        Scene("purple", ())
