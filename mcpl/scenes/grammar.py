"""Scenes to sentences: "a red striped star left of a blue ring on a grey ground"."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from mcpl.scenes.scene import Scene, SceneObject
from mcpl.scenes.world import NEUTRAL_NOUN, shapes, words

DROP_ADJECTIVE = 0.17  # how often a colour, or "striped", goes untold in a training caption
DROP_RELATION = 0.15
DROP_GROUND = 0.10
CALL_THING = 0.10  # how often a named shape is called "thing", so that the word says nothing about the shape
WRAP = 0.5  # share of training captions inside a template
DROP_CAPTION = 0.10  # empty captions, for guidance


def noun(shape: str) -> str:
    """The word a training caption may use for a shape."""
    return shape if shape in shapes("named") else NEUTRAL_NOUN


def caption(
    scene: Scene,
    *,
    nouns: Sequence[str] | None = None,
    adjectives: bool | Sequence[Sequence[bool]] = True,
    relation: bool = True,
    ground: bool = True,
) -> str:
    """The scene in one sentence, everything told unless switched off.

    nouns       a word for each object, by default `noun(shape)`
    adjectives  tell colour and texture: of all, or (colour, texture) for each object
    """
    nouns = nouns or [noun(item.shape) for item in scene.objects]
    if isinstance(adjectives, bool):
        adjectives = [(adjectives, adjectives)] * len(scene.objects)
    told = [_phrase(*each) for each in zip(scene.objects, nouns, adjectives, strict=True)]
    if len(told) == 2 and relation and scene.relation:
        sentence = f"{told[0]} {scene.relation} {told[1]}"
    else:
        sentence = " and ".join([*([", ".join(told[:-1])] if told[:-1] else []), told[-1]])
    return f"{sentence} on a {scene.ground} ground" if ground else sentence


def _phrase(item: SceneObject, name: str, adjectives: Sequence[bool]) -> str:
    colour, texture = adjectives
    striped = item.texture if texture and item.texture != "plain" else ""
    return " ".join(filter(None, ["a", item.colour if colour else "", striped, name]))


def marked_sentence(scene: Scene, names: Sequence[str] | None = None, **told: bool) -> str:
    """The caption with every noun a placeholder, "a red striped <star> left of a blue <ring> on a grey ground".

    names  the slugs, by default the shapes' true names, unnamed and never-drawn shapes included
    """
    slugs = list(names or [item.shape for item in scene.objects])
    if len(set(slugs)) < len(slugs):
        raise ValueError(f"one slug for two objects: {slugs}")
    return caption(scene, nouns=[f"<{slug}>" for slug in slugs], **told)


def training_caption(
    scene: Scene, rng: np.random.Generator, templates: Sequence[str], untold: float = DROP_CAPTION
) -> str:
    """A caption as the base model reads it: adjectives, relation and ground dropped now and then, half of them
    wrapped in a template, a share of `untold` empty."""
    if rng.random() < untold:
        return ""
    sentence = caption(
        scene,
        nouns=[NEUTRAL_NOUN if rng.random() < CALL_THING else noun(item.shape) for item in scene.objects],
        adjectives=rng.random((len(scene.objects), 2)) >= DROP_ADJECTIVE,
        relation=rng.random() >= DROP_RELATION,
        ground=rng.random() >= DROP_GROUND,
    )
    if rng.random() < WRAP:
        return templates[rng.integers(len(templates))].format(sentence)
    return sentence


def vocabulary(templates: Sequence[str]) -> tuple[str, ...]:
    """Every word that a training caption can hold, sorted; punctuation apart."""
    return tuple(sorted({*words(), *re.findall("[a-z]+", " ".join(templates).lower())}))
