"""Scenes and where their objects lie: the nouns, the seeded sampler, JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from mcpl.scenes.world import COLOURS, GRID, GROUNDS, HELD_OUT, PIXELS, RELATIONS, SHAPES, SIZES, TEXTURES, shapes


@dataclass(frozen=True)
class SceneObject:
    """One object: a shape in a colour and a texture, its box centred on pixel corner (x, y), `size` px wide."""

    shape: str
    colour: str
    texture: str
    x: int
    y: int
    size: int

    def __post_init__(self) -> None:
        known = self.shape in SHAPES and self.colour in COLOURS and self.texture in TEXTURES
        half = self.size // 2
        inside = half <= min(self.x, self.y) and max(self.x, self.y) <= PIXELS - half
        if not known or self.size % 2 or not inside:
            raise ValueError(f"not an object of this world: {self}")

    @property
    def box(self) -> tuple[slice, slice]:
        """Rows and columns of the picture that the object's box covers."""
        half = self.size // 2
        return slice(self.y - half, self.y + half), slice(self.x - half, self.x + half)


@dataclass(frozen=True)
class Scene:
    """A ground and its objects, in the order they are drawn (later ones hide earlier ones) and told.

    `relation` is where the first object lies as seen from the second; None where there are not two, or where the
    two overlap so far that no word fits.
    """

    ground: str
    objects: tuple[SceneObject, ...]
    relation: str | None = None

    def __post_init__(self) -> None:
        if self.ground not in GROUNDS or (self.relation is not None and self.relation not in RELATIONS):
            raise ValueError(f"not a scene of this world: ground {self.ground!r}, relation {self.relation!r}")

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Scene:
        record = json.loads(text)
        return Scene(record["ground"], tuple(SceneObject(**o) for o in record["objects"]), record["relation"])


COUNTS = {1: 0.2, 2: 0.6, 3: 0.2}  # how often a training scene has so many objects; two are what is hard
UNNAMED_SHARE = 0.2  # of the objects drawn while the base is trained
STRIPED_SHARE = 0.3
GAP = 2  # px between two boxes


def sample_scene(
    seed: int | Sequence[int] | np.random.Generator,
    *,
    objects: int | None = None,
    pool: Sequence[str] | None = None,
    held_out: bool | None = False,
    relation: str | None = None,
    occlusion: float = 0.0,
    ground: str | None = None,
) -> Scene:
    """Draw a scene; the same seed and options give the same scene.

    objects    how many, up to the most of `SIZES`; by default 1, 2 or 3 as in training
    pool       shapes to draw from without repeats; by default the named ones, and an unnamed one now and then
    held_out   False: never a held-out combination (as in training); True: the first object is one; None: as it falls
    relation   of the first object to the second; by default any
    occlusion  two objects only: the share of the first that the second hides, met within 0.05 where the shapes allow
    """
    rng = np.random.default_rng(seed)
    count = objects or int(rng.choice(list(COUNTS), p=list(COUNTS.values())))
    if count not in SIZES:
        raise ValueError(f"objects = {count}: a picture has room for {min(SIZES)} to {max(SIZES)}")
    names = _draw_shapes(rng, count, pool)
    if held_out:
        names[0], first_colour = sorted(HELD_OUT)[rng.integers(len(HELD_OUT))]
        while names[0] in names[1:]:
            names[1:] = _draw_shapes(rng, count - 1, pool)
    looks = []
    for index, name in enumerate(names):
        colours = [c for c in COLOURS if held_out is None or (name, c) not in HELD_OUT]
        colour = colours[rng.integers(len(colours))]
        texture = TEXTURES[int(rng.random() < STRIPED_SHARE)]
        looks.append((name, first_colour if held_out and index == 0 else colour, texture))
    ground = ground or list(GROUNDS)[rng.integers(len(GROUNDS))]
    if count == 2:
        relation = relation or list(RELATIONS)[rng.integers(len(RELATIONS))]
        places = _hide(rng, looks, relation, occlusion) if occlusion else _side_by_side(rng, relation)
    else:
        relation, places = None, _scatter(rng, count)
    return Scene(ground, tuple(SceneObject(*look, *place) for look, place in zip(looks, places, strict=True)), relation)


def _draw_shapes(rng: np.random.Generator, count: int, pool: Sequence[str] | None) -> list[str]:
    if pool is not None:
        return [pool[i] for i in rng.permutation(len(pool))[:count]]
    named, unnamed = list(rng.permutation(shapes("named"))), list(rng.permutation(shapes("unnamed")))
    return [str((unnamed if rng.random() < UNNAMED_SHARE else named).pop()) for _ in range(count)]


Place = tuple[int, int, int]  # x, y, size


def _on_grid(rng: np.random.Generator, low: float, high: float) -> int:
    """A multiple of GRID between low and high, both ends included."""
    return GRID * int(rng.integers(-(-low // GRID), high // GRID + 1))


def _side_by_side(rng: np.random.Generator, relation: str) -> list[Place]:
    """Two boxes apart along the relation's axis and nearly level across it; the first on the named side."""
    axis = 0 if RELATIONS[relation][0] else 1
    near, far = (int(rng.choice(SIZES[2])) for _ in range(2))
    edge = GRID * -(-far // (2 * GRID))  # closest to the border that the far box's centre can lie
    apart = (near + far) / 2 + GAP
    start = _on_grid(rng, near / 2, PIXELS - edge - apart)
    end = _on_grid(rng, start + apart, PIXELS - edge)
    level = _on_grid(rng, max(near, far) / 2, PIXELS - max(near, far) / 2)
    other = int(np.clip(level + GRID * rng.integers(-2, 3), edge, PIXELS - edge))
    pair = [(start, level, near), (end, other, far)]
    if axis == 1:
        pair = [(y, x, size) for x, y, size in pair]
    return pair if RELATIONS[relation][axis] < 0 else pair[::-1]


def _scatter(rng: np.random.Generator, count: int) -> list[Place]:
    """Boxes anywhere, GAP apart; starts over when the last one finds no room."""
    sizes = SIZES[count]
    while True:
        placed: list[Place] = []
        for _ in range(count):
            for _ in range(20):
                size = int(rng.choice(sizes))
                x, y = (_on_grid(rng, size / 2, PIXELS - size / 2) for _ in range(2))
                if all(max(abs(x - px), abs(y - py)) >= (size + ps) / 2 + GAP for px, py, ps in placed):
                    placed.append((x, y, size))
                    break
        if len(placed) == count:
            return placed


def _hide(rng: np.random.Generator, looks: list, relation: str, share: float) -> list[Place]:
    """Slide the second object over the first along the relation, a little aside if need be, until it hides `share`."""
    from mcpl.scenes.render import coverage

    size, step = int(rng.choice(SIZES[2])), np.array(RELATIONS[relation])
    first, second = (coverage(look[0], size) >= 0.5 for look in looks)
    field = np.zeros((3 * size, 3 * size), bool)
    field[size : 2 * size, size : 2 * size] = first

    def miss(away: tuple[int, int]) -> float:
        """How far from the asked share it hides when it lies `away` (x, y) from the first."""
        left, top = size + away[0], size + away[1]
        return abs(field[top : top + size, left : left + size][second].sum() / first.sum() - share)

    places = [(forth, aside) for aside in (0, 2, -2, 3, -3) for forth in range(size - 1, abs(aside), -1)]
    aways = [tuple(int(a) for a in -forth * step + aside * step[::-1]) for forth, aside in places]
    away = min(aways, key=miss)
    x, y = (_on_grid(rng, size // 2 - min(0, d), PIXELS - size // 2 - max(0, d)) for d in away)
    return [(x, y, size), (x + away[0], y + away[1], size)]
