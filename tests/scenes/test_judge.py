"""The judge reads fresh renders, held-out ones and spoilt ones, and its verdicts are what a person would say."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from mcpl.scenes.judge import WEIGHTS, Judge, Reading, SeenObject, matches
from mcpl.scenes.render import render
from mcpl.scenes.scene import Scene, SceneObject, sample_scene
from mcpl.scenes.training.autoencoder import psnr, round_trip
from mcpl.scenes.training.judging import judge_sample
from mcpl.scenes.training.latents import decode, encode, pictures_to_tensor, tensor_to_pictures
from mcpl.scenes.world import SHAPES, shapes

STAR = SceneObject("star", "red", "striped", 8, 16, 14)
RING = SceneObject("ring", "blue", "plain", 24, 16, 14)
PAIR = Scene("grey", (STAR, RING), "left of")


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load()


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    folder = WEIGHTS.parent / "vae"
    return AutoencoderKL.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()


def _scenes(seed: int, count: int = 200, **options) -> list[Scene]:
    return [sample_scene([seed, i], objects=1 + i % 3, **options) for i in range(count)]


def _right(judge: Judge, pictures: np.ndarray, scenes: list[Scene]) -> float:
    return float(np.mean([matches(r, s).right for r, s in zip(judge.read(pictures), scenes, strict=True)]))


@pytest.mark.parametrize("options", [{"pool": tuple(SHAPES), "held_out": None}, {"held_out": True}])
def test_fresh_renders_are_read_right(judge, options):
    scenes = _scenes(901, **options)
    assert _right(judge, np.stack([render(s)[0] for s in scenes]), scenes) >= 0.97


def test_round_trips_through_the_shipped_autoencoder_are_read_right(judge, vae):
    scenes = _scenes(902, pool=tuple(SHAPES), held_out=None)
    pictures = pictures_to_tensor(np.stack([render(s)[0] for s in scenes]))
    again = round_trip(vae, pictures)
    assert psnr(pictures, again).mean() >= 30
    assert _right(judge, tensor_to_pictures(again), scenes) >= 0.95


def test_blobs_are_none_of_the_shapes(judge):
    samples = [judge_sample(903, i) for i in range(600)]
    blobs = [s for s in samples if len(s[2]) == 1 and s[2][0][0] == len(SHAPES)]
    readings = judge.read(np.stack([s[0] for s in blobs]))
    taken = [item.shape in shapes("named") and item.confidence > 0.5 for r in readings for item in r.objects]
    assert len(blobs) > 20 and np.mean(taken) < 0.1


def test_a_bare_ground_shows_nothing(judge):
    assert judge.read(render(Scene("grey", ()))[0][None]) == [Reading(())]


def test_features_tell_scenes_apart(judge):
    pictures = np.stack([render(s)[0] for s in _scenes(904, 4)])
    features = judge.features(pictures)
    assert features.shape == (4, 128)
    assert torch.equal(features, judge.features(pictures)) and torch.pdist(features).min() > 0


def _seen(item: SceneObject, **changes) -> SeenObject:
    traits = {"shape": item.shape, "colour": item.colour, "texture": item.texture, "x": item.x, "y": item.y}
    return SeenObject(**{**traits, "area": 90.0, "confidence": 0.9, **changes})


def test_verdicts_by_hand():
    star, ring = _seen(STAR), _seen(RING)
    right = matches(Reading((ring, star)), PAIR)
    assert right.right and right.shape and right.colour and right.texture and right.count and right.relation
    swapped = matches(Reading((_seen(STAR, colour="blue"), _seen(RING, colour="red"))), PAIR)
    assert swapped.shape and swapped.colour and not swapped.right  # both colours are there, on the wrong objects
    crossed = matches(Reading((_seen(STAR, x=24), _seen(RING, x=8))), PAIR)
    assert crossed.shape and crossed.relation is False and not crossed.right
    alone = matches(Reading((star,)), PAIR)
    assert not alone.count and not alone.shape and alone.relation is False and not alone.right
    extra = matches(Reading((star, ring, _seen(RING, shape="none", x=16, y=28))), PAIR)
    assert extra.shape and extra.relation and not extra.count and not extra.right
    assert matches(Reading((star,)), Scene("grey", (STAR,))).relation is None


def test_the_analytic_code_is_undone_up_to_the_detail_it_drops():
    pictures = pictures_to_tensor(np.stack([render(s)[0] for s in _scenes(905, 20)]))
    assert psnr(pictures, decode(encode(pictures)).clamp(-1, 1)).mean() > 24
    flat = torch.full((1, 3, 4, 4), 0.3)
    assert torch.allclose(decode(encode(flat)), flat, atol=1e-6)
