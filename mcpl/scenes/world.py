"""The rendered world: which shapes, colours, textures and grounds exist, and which are kept from the base model.

Everything is a table. A new shape is one function and one line of `SHAPES`; the sampler, the grammar, the renderer
and the judge read the tables. Shape functions take x and y in units of half the object's size (x right, y down) and
give a signed value: below 0 inside, near the true distance at the outline.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

Field = np.ndarray
PIXELS = 32  # side of a picture
GRID = 2  # px; centres lie on multiples of it, so that every outline falls on latent pixels the same way


def _polygon(points: tuple[tuple[float, float], ...]) -> Callable[[Field, Field], Field]:
    """Signed distance to a closed polygon: distance to the nearest edge, sign by crossing number."""

    def field(x: Field, y: Field) -> Field:
        nearest, inside = np.full(np.broadcast(x, y).shape, np.inf), np.zeros(np.broadcast(x, y).shape, bool)
        for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1], strict=True):
            ex, ey = bx - ax, by - ay
            along = np.clip(((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey), 0.0, 1.0)
            nearest = np.minimum(nearest, np.hypot(x - ax - along * ex, y - ay - along * ey))
            if ey != 0.0:
                inside ^= ((ay > y) != (by > y)) & (x < ax + (y - ay) * ex / ey)
        return np.where(inside, -nearest, nearest)

    return field


def _star_points(spikes: int, inner: float) -> tuple[tuple[float, float], ...]:
    angles = np.pi * np.arange(2 * spikes) / spikes
    radii = np.where(np.arange(2 * spikes) % 2 == 0, 1.08, 1.08 * inner)
    return tuple(zip((radii * np.sin(angles)).tolist(), (0.1 - radii * np.cos(angles)).tolist(), strict=True))


def _disc(x: Field, y: Field) -> Field:
    return np.hypot(x, y) - 1.0


def _square(x: Field, y: Field) -> Field:
    return np.maximum(abs(x), abs(y)) - 1.0


def _ring(x: Field, y: Field) -> Field:
    return abs(np.hypot(x, y) - 0.75) - 0.25


def _cross(x: Field, y: Field) -> Field:
    across, up = np.maximum(abs(x) - 1.0, abs(y) - 0.34), np.maximum(abs(x) - 0.34, abs(y) - 1.0)
    return np.minimum(across, up)


def _heart(x: Field, y: Field) -> Field:
    lobes = np.minimum(np.hypot(x - 0.5, y + 0.4), np.hypot(x + 0.5, y + 0.4)) - 0.52
    point = np.maximum((abs(x) + 0.85 * (y + 0.25) - 1.0) / 1.31, -y - 0.45)
    return np.minimum(lobes, point)


def _moon(x: Field, y: Field) -> Field:
    return np.maximum(np.hypot(x, y) - 1.0, 0.85 - np.hypot(x - 0.55, y))


def _hourglass(x: Field, y: Field) -> Field:
    return np.maximum(abs(y) - 1.0, (abs(x) - 0.9 * abs(y) - 0.1) / 1.35)


def _arch(x: Field, y: Field) -> Field:
    bend, legs = abs(np.hypot(x, y + 0.0) - 0.75) - 0.25, abs(abs(x) - 0.75) - 0.25
    return np.where(y < 0, bend, np.maximum(legs, y - 1.0))


Naming = Literal["named", "unnamed", "never"]

#: shape -> (signed field, how the base model meets it). "named": drawn and named; "unnamed": drawn, but only ever
#: called "thing" (the new nouns a learner has to find); "never": not drawn at all while the base is trained.
SHAPES: dict[str, tuple[Callable[[Field, Field], Field], Naming]] = {
    "disc": (_disc, "named"),
    "square": (_square, "named"),
    "triangle": (_polygon(((0.0, -1.0), (1.0, 0.95), (-1.0, 0.95))), "named"),
    "ring": (_ring, "named"),
    "cross": (_cross, "named"),
    "star": (_polygon(_star_points(5, 0.45)), "named"),
    "heart": (_heart, "unnamed"),
    "moon": (_moon, "unnamed"),
    "hourglass": (_hourglass, "unnamed"),
    "arrow": (_polygon(((-1, -0.35), (0.0, -0.35), (0.0, -1), (1, 0), (0.0, 1), (0.0, 0.35), (-1, 0.35))), "never"),
    "arch": (_arch, "never"),
}

#: colour -> sRGB 0..255, near the corners of the colour cube so that no two are alike
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 30, 40),
    "green": (30, 165, 50),
    "blue": (35, 55, 225),
    "yellow": (250, 225, 40),
    "pink": (245, 90, 215),
    "cyan": (40, 215, 230),
}

#: ground -> sRGB; no object has one of these colours
GROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (250, 250, 250),
    "grey": (130, 130, 130),
    "black": (15, 15, 20),
    "brown": (115, 75, 45),
}

TEXTURES = ("plain", "striped")
STRIPE = 2  # px, width of one band; bands lie on the picture's rows
STRIPE_SHADE = 0.45  # the darker band is the colour times this

#: relation -> unit step from the second object to the first
RELATIONS: dict[str, tuple[int, int]] = {
    "left of": (-1, 0),
    "right of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
}

NEUTRAL_NOUN = "thing"

#: (shape, colour) pairs never drawn while the base is trained: the test of unseen combinations
HELD_OUT = frozenset(
    {("disc", "green"), ("square", "pink"), ("triangle", "blue"), ("ring", "yellow"), ("cross", "cyan")}
)

#: number of objects -> sizes in px (even, so that a box on the grid has whole corners)
SIZES: dict[int, tuple[int, ...]] = {1: (16, 18, 20), 2: (12, 14), 3: (10, 12), 4: (10, 12), 5: (8, 10)}


def shapes(*naming: Naming) -> tuple[str, ...]:
    """Names of the shapes that the base meets in one of these ways, in table order."""
    return tuple(name for name, (_, how) in SHAPES.items() if how in naming)


def words() -> tuple[str, ...]:
    """Every word of a training caption, sorted: the world's half of the vocabulary (templates are the other)."""
    told = [*shapes("named"), NEUTRAL_NOUN, *COLOURS, *TEXTURES, *GROUNDS, *RELATIONS, "a and on ground"]
    return tuple(sorted({word for phrase in told for word in phrase.split()}))
