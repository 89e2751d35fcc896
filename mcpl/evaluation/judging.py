"""What the scene judge says of pictures drawn from learned words, where the truth is a rendered scene."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from mcpl.scenes.grammar import marked_sentence
from mcpl.scenes.judge import Judge, Reading, matches
from mcpl.scenes.scene import Scene, SceneObject, sample_scene
from mcpl.scenes.second_judge import TemplateJudge
from mcpl.scenes.world import PIXELS, RELATIONS
from mcpl.types import Concept, Sentence

Items = Mapping[str, SceneObject]
"""slug -> the object that its word stands for"""


@cache
def judge(device: str = "cpu") -> Judge:
    """The judge that ships with the package, read from disk once for each device."""
    return Judge.load().to(device)


def second_readings(pictures: np.ndarray) -> list[Reading] | None:
    """What the second judge sees in pictures, uint8 [B, H, W, 3]; None for other sizes than the world's own, which are
    all that it reads."""
    return TemplateJudge().read(pictures) if pictures.shape[1:3] == (PIXELS, PIXELS) else None


def items(sentence: Sentence, scene: Scene) -> dict[str, SceneObject]:
    """The object of each word: that of its name, else that of its place where all objects are told in order. Of a
    group's sentence, whose concepts are the group's, only what it names itself."""
    told = dict.fromkeys(word.concept for word in sentence.words if word.role == "placeholder")
    by_shape = {item.shape: item for item in scene.objects}
    in_order = scene.objects if len(scene.objects) == len(told) else ()
    found = {}
    for place, concept in enumerate(sentence.concepts[index] for index in told):
        item = by_shape.get(concept.slug) or (in_order[place] if in_order else None)
        if item is not None:
            found[concept.slug] = item
    return found


def holds_colour(concept: Concept, item: SceneObject) -> bool:
    """Whether the word has to hold its object's colour: a colour that an adjective names is not asked of it."""
    return item.colour not in concept.adjectives


def asked_colour(concept: Concept, item: SceneObject) -> str | None:
    """The colour that a picture of the word has to show; None where any will do."""
    return item.colour if holds_colour(concept, item) else None


def shows(reading: Reading, shape: str, colour: str | None) -> bool:
    """Whether a picture shows one object of the shape, and of the colour where one is asked, and nothing else."""
    seen = reading.objects
    return len(seen) == 1 and seen[0].shape == shape and colour in (None, seen[0].colour)


def right(concept: Concept, item: SceneObject, readings: Sequence[Reading]) -> float:
    """Share of a word's pictures that show its object and nothing else."""
    colour = asked_colour(concept, item)
    return sum(shows(reading, item.shape, colour) for reading in readings) / len(readings)


def leak(concept: Concept, item: SceneObject, scene: Scene, readings: Sequence[Reading]) -> float | None:
    """Share of a word's pictures that show what belongs to another object of the scene: its shape, or its colour
    where the word should hold one of its own. None where the scene has nothing that could leak."""
    shapes = {other.shape for other in scene.objects} - {item.shape}
    colours = {other.colour for other in scene.objects if holds_colour(concept, item)} - {item.colour}
    if not shapes | colours:
        return None
    hits = [any(seen.shape in shapes or seen.colour in colours for seen in r.objects) for r in readings]
    return sum(hits) / len(hits)


def new_scene(sentence: Sentence, scene: Scene, seed: int) -> tuple[str, Scene] | None:
    """A sentence that puts the picture's first two words together anew, and what it asks for: one above the other where
    they were side by side, colours drawn anew where adjectives name them, the words' own where the words hold them.
    None for fewer than two words."""
    known = items(sentence, scene)
    words = {known[c.slug].shape: c for c in sentence.concepts if c.slug in known}
    if len(words) < 2:
        return None
    other = [r for r in RELATIONS if scene.relation is None or _axis(r) != _axis(scene.relation)]
    drawn = sample_scene(seed, objects=2, pool=list(words)[:2], relation=other[seed % len(other)])
    asked, told = [], []
    for item in drawn.objects:
        own = known[words[item.shape].slug]
        kept = holds_colour(words[item.shape], own)
        asked.append(replace(item, colour=own.colour, texture=own.texture) if kept else item)
        told.append((not kept, not kept))
    composed = replace(drawn, objects=tuple(asked))
    return marked_sentence(composed, [words[item.shape].slug for item in asked], adjectives=told), composed


def _axis(relation: str) -> bool:
    """Whether it is one of left and right, rather than above and below."""
    return RELATIONS[relation][0] != 0


def composed(pictures: np.ndarray, asked: Scene) -> float:
    """Share of pictures that show all of a new scene, and nothing else."""
    verdicts = [matches(reading, asked).right for reading in judge().read(pictures)]
    return sum(verdicts) / len(verdicts)
