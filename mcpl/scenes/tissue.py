"""Grey pictures such as a scanner makes, unlike anything that the base model saw: grain, shading, irregular outlines.

A tissue scene is told by the same grammar as a scene of the world: its tones are "white" and "black", which the small
base knows as grounds only ("bright" and "dark" are no words to it), on "a grey ground". The names of its kinds are in
no vocabulary: they are there to be learned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mcpl.scenes.scene import sample_scene
from mcpl.scenes.world import PIXELS, Field

TONES = {"white": 235.0, "black": 22.0}
GROUND = 128.0
SHADING = 14  # most that the ground's slow shading adds or takes
GRAIN = 7  # most of each of the four draws that a pixel's grain is the sum of (standard deviation 8.6)
SUPERSAMPLING = 4

Paint = tuple[Field, Field]  # signed outline (below 0 inside); tone there, 1 the object's own, 0 the ground's


def _blob(rng: np.random.Generator, x: Field, y: Field, radius: float, rough: float) -> Field:
    """A closed outline whose radius wavers with the angle."""
    angle, outline = np.arctan2(y, x), np.full(np.broadcast(x, y).shape, radius)
    for waves in (2, 3, 5):
        outline += rough / waves * np.cos(waves * angle + rng.uniform(0, 2 * np.pi))
    return np.hypot(x, y) - outline


def _lesion(rng: np.random.Generator, x: Field, y: Field) -> Paint:
    """A solid ragged spot."""
    outline = _blob(rng, x, y, 0.68, 0.4)
    return outline, np.ones_like(outline)


def _nodule(rng: np.random.Generator, x: Field, y: Field) -> Paint:
    """A round spot of coarse speckles."""
    outline = _blob(rng, x, y, 0.88, 0.1)
    speckles = (rng.permutation(64).reshape(8, 8) % 2).astype(float)
    rows, columns = (np.clip((at + 1) * 4, 0, 7).astype(int) for at in (y, x))
    return outline, speckles[rows, columns]


def _vessel(rng: np.random.Generator, x: Field, y: Field) -> Paint:
    """A bent tube from edge to edge of its box."""
    turn, bend = rng.uniform(0, np.pi), rng.choice((-1, 1)) * rng.uniform(0.3, 0.6)
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    wall = abs(across - bend * (1 - 2 * along**2)) - 0.24 * np.sqrt(1 + 8 * (bend * along) ** 2)
    outline = np.maximum(wall, np.maximum(abs(x), abs(y)) - 1)
    return outline, np.ones_like(outline)


def _cyst(rng: np.random.Generator, x: Field, y: Field) -> Paint:
    """A wall around a hollow of the other tone."""
    outline = _blob(rng, x, y, 0.9, 0.1)
    return outline, np.where(outline < -0.38, -0.6, 1.0)


#: kind -> its outline and its paint. A new kind is one function and one line here.
TISSUES: dict[str, Callable[[np.random.Generator, Field, Field], Paint]] = {
    "lesion": _lesion,
    "nodule": _nodule,
    "vessel": _vessel,
    "cyst": _cyst,
}


@dataclass(frozen=True)
class TissueObject:
    """One kind in a tone, its box centred on pixel corner (x, y), `size` px wide; `seed` fixes its own outline."""

    shape: str
    colour: str
    x: int
    y: int
    size: int
    seed: int
    texture: ClassVar[str] = "plain"


@dataclass(frozen=True)
class TissueScene:
    """Two objects, where the first lies as seen from the second, and the seed of shading and grain."""

    objects: tuple[TissueObject, ...]
    relation: str
    seed: int
    ground: ClassVar[str] = "grey"


def sample_tissue(seed: int) -> TissueScene:
    """Two different kinds where two objects of the world would lie."""
    rng = np.random.default_rng(seed)
    boxes = sample_scene(rng, objects=2)
    kinds, tones = rng.permutation(list(TISSUES)), list(TONES)
    objects = tuple(
        TissueObject(str(kind), tones[rng.integers(len(tones))], box.x, box.y, box.size, int(rng.integers(2**31)))
        for kind, box in zip(kinds, boxes.objects, strict=False)
    )
    return TissueScene(objects, boxes.relation, int(rng.integers(2**31)))


def render_tissue(scene: TissueScene) -> tuple[np.ndarray, np.ndarray]:
    """The picture, uint8 [H, H, 3] with three equal channels, and each object's mask, bool [n, H, H]."""
    rng = np.random.default_rng(scene.seed)
    canvas = GROUND + _slow(rng.integers(-SHADING, SHADING + 1, (4, 4)))
    masks = np.zeros((len(scene.objects), PIXELS, PIXELS), bool)
    for index, item in enumerate(scene.objects):
        half = item.size // 2
        box = slice(item.y - half, item.y + half), slice(item.x - half, item.x + half)
        at = ((np.arange(item.size * SUPERSAMPLING) + 0.5) / SUPERSAMPLING - half) / half
        outline, tone = TISSUES[item.shape](np.random.default_rng(item.seed), at[None, :], at[:, None])
        inside, tone = _pixels(outline < 0), _pixels((outline < 0) * tone)
        canvas[box] += tone * (TONES[item.colour] - GROUND)
        masks[index][box] = inside >= 0.5
    canvas += rng.integers(-GRAIN, GRAIN + 1, (4, PIXELS, PIXELS)).sum(0)
    return np.repeat(np.clip(canvas + 0.5, 0, 255).astype(np.uint8)[:, :, None], 3, 2), masks


def _pixels(fine: np.ndarray) -> np.ndarray:
    """Means over each pixel's samples."""
    side = len(fine) // SUPERSAMPLING
    return fine.reshape(side, SUPERSAMPLING, side, SUPERSAMPLING).mean((1, 3))


def _slow(coarse: np.ndarray) -> np.ndarray:
    """A coarse square of values stretched over the picture, straight lines between them."""
    at, knots = np.linspace(0, len(coarse) - 1, PIXELS), np.arange(len(coarse))
    rows = np.stack([np.interp(at, knots, row) for row in coarse])
    return np.stack([np.interp(at, knots, column) for column in rows.T], axis=1)
