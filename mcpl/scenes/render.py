"""Scenes to pictures and exact visible masks."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from mcpl.scenes.scene import Scene
from mcpl.scenes.world import COLOURS, GROUNDS, PIXELS, SHAPES, STRIPE, STRIPE_SHADE

SUPERSAMPLING = 8  # samples a pixel is judged by, along each axis


@lru_cache(maxsize=1024)
def coverage(shape: str, size: int) -> np.ndarray:
    """Share of each pixel of a `size` x `size` box that the shape covers, float32 [size, size] in 0..1."""
    at = (np.arange(size * SUPERSAMPLING) + 0.5) / SUPERSAMPLING
    x = (at - size / 2) / (size / 2)
    inside = SHAPES[shape][0](x[None, :], x[:, None]) < 0
    shares = inside.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING).mean((1, 3), dtype=np.float32)
    shares.setflags(write=False)  # shared by every caller of the cache
    return shares


@lru_cache
def _paint(colour: str, texture: str, scale: int) -> np.ndarray:
    """Colour of every row of a picture, float32 [PIXELS * scale, 1, 3]."""
    full = np.broadcast_to(np.float32(COLOURS[colour]), (PIXELS * scale, 1, 3))
    light = (np.arange(PIXELS * scale) // (STRIPE * scale) % 2 == 0)[:, None, None]
    return full if texture == "plain" else np.where(light, full, full * np.float32(STRIPE_SHADE))


def render(scene: Scene, scale: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The picture, uint8 [H, H, 3], and each object's visible mask, bool [n, H, H]; H = PIXELS * scale.

    A pixel is an object's where that object covers at least half of it and no later object does.
    """
    side = PIXELS * scale
    canvas = np.broadcast_to(np.float32(GROUNDS[scene.ground]), (side, side, 3)).copy()
    masks = np.zeros((len(scene.objects), side, side), bool)
    for index, item in enumerate(scene.objects):
        rows, columns = (slice(edge.start * scale, edge.stop * scale) for edge in item.box)
        share = coverage(item.shape, item.size * scale)
        patch = canvas[rows, columns]
        patch += share[:, :, None] * (_paint(item.colour, item.texture, scale)[rows] - patch)
        solid = share >= 0.5
        masks[:index, rows, columns] &= ~solid
        masks[index, rows, columns] = solid
    return (canvas + 0.5).astype(np.uint8), masks
