"""One scene told in several ways, right and wrong: what the studies of adjectives and of sentences learn from.

A telling takes a scene and gives its marked sentence; a new one is a function and one line of `TELLINGS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mcpl.scenes.grammar import marked_sentence
from mcpl.scenes.scene import Scene
from mcpl.scenes.world import COLOURS


def right(scene: Scene) -> str:
    """Every object with its own colour and texture."""
    return marked_sentence(scene)


def without(scene: Scene) -> str:
    """No adjective at all."""
    return marked_sentence(scene, adjectives=False)


def swapped(scene: Scene) -> str:
    """Every object with the adjectives of the next one: what they say is in the picture, but elsewhere."""
    others = scene.objects[1:] + scene.objects[:1]
    objects = (
        replace(item, colour=other.colour, texture=other.texture)
        for item, other in zip(scene.objects, others, strict=True)
    )
    return marked_sentence(replace(scene, objects=tuple(objects)))


def wrong(scene: Scene) -> str:
    """Every object in a colour that no object of the picture has, each in another one."""
    free = [colour for colour in COLOURS if colour not in {item.colour for item in scene.objects}]
    first = list(COLOURS).index(scene.objects[0].colour) % len(free)
    objects = (replace(item, colour=free[(first + place) % len(free)]) for place, item in enumerate(scene.objects))
    return marked_sentence(replace(scene, objects=tuple(objects)))


TELLINGS: dict[str, Callable[[Scene], str]] = {
    "right": right,
    "none": without,
    "swapped": swapped,
    "wrong": wrong,
}


def many_coloured(scene: Scene) -> bool:
    """No two objects have one colour, so that exchanged adjectives are wrong ones."""
    colours = [item.colour for item in scene.objects]
    return len(set(colours)) == len(colours)


KINDS: dict[str, Callable[[Scene], bool]] = {"many-coloured": many_coloured}
"""Scenes that a study may restrict itself to."""
