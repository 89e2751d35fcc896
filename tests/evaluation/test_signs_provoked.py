"""Failure signs on words that really failed, on the shipped base: as a wrong recipe, sentence or mask does it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from mcpl.config import Placement, Recipe
from mcpl.data.sources import scenes
from mcpl.evaluation.signs import SIGNS
from mcpl.models.catalogue import load
from mcpl.orchestration.job import Runner
from mcpl.types import Example

RECIPE = Recipe(name="test", initializer="noun", steps=0)
SEED = 9_100_002


@pytest.fixture(scope="module")
def base():
    return load("scenes-v1", device="cpu")


@pytest.fixture(scope="module")
def scene() -> Example:
    """Two named objects, told by the base's own nouns: right words by construction."""
    return scenes(1, seed=SEED, objects=2, naming="named").read(scenes(1, seed=SEED).shards(1)[0])[0]


def speck() -> bytes:
    """A mask of one latent."""
    mask, buffer = np.zeros((32, 32), np.uint8), io.BytesIO()
    mask[4:6, 4:6] = 255
    Image.fromarray(mask).save(buffer, "PNG")
    return buffer.getvalue()


def seen(base, scene: Example, told: str, recipe: Recipe, **changes) -> set[str]:
    """The signs that learning this scene shows; `told` has {a} and {b} for the objects' names."""
    a, b = scene.masks
    masks = {a: speck(), b: speck()} if changes.pop("specks", False) else scene.masks
    example = Example(scene.id, scene.image, told.format(a=a, b=b), masks)
    (row,) = Runner(recipe.model_validate(recipe.model_dump() | changes), Placement(device="cpu"), base)([example])
    assert row.status == "learned", row.reason
    return {name for name in SIGNS if row.metrics.get(f"sign_{name}")}


RIGHT = "a <{a}> and a <{b}>"
PROVOKED = {
    "collapse": ("a <{a}:{a}> and a <{b}:{a}>", {}),
    "same_place": ("a <{a}:ground> and a <{b}:ground>", {}),
    "swapped": ("a <{a}:{b}> and a <{b}:{a}>", {}),
    "empty_mask": (RIGHT, {"attention_mask": {"source": "given"}, "specks": True}),
    "mask_everywhere": (RIGHT, {"attention_mask": {"threshold": 0.001}}),
    "diffuse": ("a <{a}:a> and a <{b}:on>", {}),
    "low_fidelity": (
        "a green <{a}> above a yellow <{b}> on a white ground",
        {"lr": 10.0, "steps": 2, "probe_every": 2},
    ),
    "norm_drift": (RIGHT, {"lr": 3.0, "steps": 4, "probe_every": 2}),
}


def test_right_words_show_none(base, scene):
    assert seen(base, scene, RIGHT, RECIPE) == set()


@pytest.mark.parametrize("name", SIGNS)
def test_a_sign_is_seen_where_learning_failed_so(base, scene, name):
    told, changes = PROVOKED[name]
    assert name in seen(base, scene, told, RECIPE, **changes)
