"""Train the scene judge on renders: all shapes of the world, spoilt pictures, and things that are none of them.

What a diffusion model gets wrong is the table `NONSENSE`: each entry draws one such object, and its kind is "none".
Right objects are spoilt (blur, noise, shade, a slight warp, round trips through the code and the shipped
autoencoder), so that a soft picture of the right shape is still that shape.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from mcpl.scenes.judge import CELL, KINDS, WEIGHTS, Judge, JudgeNet
from mcpl.scenes.render import coverage, render
from mcpl.scenes.scene import Scene, SceneObject, sample_scene
from mcpl.scenes.training.latents import decode, encode
from mcpl.scenes.training.loop import split_optimisers
from mcpl.scenes.world import COLOURS, GRID, GROUNDS, PIXELS, SHAPES, TEXTURES

FIRST = 2**42  # samples far from the base model's
CROWDED, OCCLUDED, WITH_NONSENSE, EMPTY, SPOILT = 0.25, 0.18, 0.5, 0.02, 0.6  # shares of the training pictures
CODED = 0.3  # share of the spoilt that go through the autoencoder, the dear part
ALIKE = 0.72  # intersection over union with a shape from which on nonsense is drawn again: it might be that shape
FUSED = 0.2  # hidden share from which on two objects of one colour and texture are one outline, so none
NONE_WEIGHT = 1.5  # of "none" in the shape's loss: a smear taken for a shape is worse than the reverse
NO_ANSWER = -100  # colour of an object that has two

Told = tuple[int, int, int, int, int]  # kind, colour, texture, x, y of an object; x y in px


def judge_sample(seed: int, index: int) -> tuple[np.ndarray, np.ndarray, list[Told]]:
    """A picture uint8 [H, W, 3], its objects' masks [n, H, W], and what is told of each."""
    rng = np.random.default_rng([seed, index])
    draw, hidden = rng.random(), 0.0
    if draw < CROWDED:
        scene = _crowd(rng)
    elif draw < CROWDED + OCCLUDED:
        hidden = rng.uniform(0.05, 0.5)
        scene = sample_scene(rng, objects=2, pool=tuple(SHAPES), held_out=None, occlusion=hidden)
    else:
        scene = sample_scene(
            rng, objects=int(rng.choice([1, 2, 3], p=[0.4, 0.4, 0.2])), pool=tuple(SHAPES), held_out=None
        )
    if rng.random() < EMPTY:
        scene = Scene(scene.ground, ())
    picture, masks = render(scene)
    told = [_tell(item) for item in scene.objects]
    if hidden and told:
        first, second = scene.objects
        if hidden > FUSED and (first.colour, first.texture) == (second.colour, second.texture):
            middle = ((first.x + second.x) // 2, (first.y + second.y) // 2)
            return picture, masks.any(0)[None], [(KINDS.index("none"), *told[0][1:3], *middle)]
    elif told and rng.random() < WITH_NONSENSE:
        return nonsense(rng, scene, str(rng.choice(list(NONSENSE), p=[often for often, _ in NONSENSE.values()])))
    return picture, masks, told


def _tell(item: SceneObject) -> Told:
    return KINDS.index(item.shape), list(COLOURS).index(item.colour), TEXTURES.index(item.texture), item.x, item.y


def _crowd(rng: np.random.Generator) -> Scene:
    """Two to five small objects with little between them."""
    count, gap = int(rng.choice([2, 3, 4, 5], p=[0.15, 0.15, 0.35, 0.35])), int(rng.integers(0, 3))
    sizes = (8, 10) if count > 3 else (8, 10, 12)
    while True:
        placed: list[tuple[int, int, int]] = []
        for _ in range(20 * count):
            size = int(rng.choice(sizes))
            x, y = (GRID * int(rng.integers(-(-size // 2 // GRID), (PIXELS - size // 2) // GRID + 1)) for _ in range(2))
            if all(max(abs(x - px), abs(y - py)) >= (size + ps) / 2 + gap for px, py, ps in placed):
                placed.append((x, y, size))
            if len(placed) == count:
                break
        if len(placed) == count:
            break
    names = rng.permutation(list(SHAPES))[:count]
    looks = [(str(name), str(rng.choice(list(COLOURS))), str(rng.choice(TEXTURES))) for name in names]
    objects = tuple(SceneObject(*look, *place) for look, place in zip(looks, placed, strict=True))
    return Scene(str(rng.choice(list(GROUNDS))), objects)


def nonsense(rng: np.random.Generator, scene: Scene, kind: str) -> tuple[np.ndarray, np.ndarray, list[Told]]:
    """`scene` with its last object redrawn as a `kind` of `NONSENSE`; as `judge_sample` tells it."""
    item = scene.objects[-1]
    rows, columns = item.box
    share, other = NONSENSE[kind][1](rng, item)
    picture, before = render(Scene(scene.ground, scene.objects[:-1]))
    picture = picture.astype(np.float32)
    colour = item.colour if other is None else str(rng.choice([c for c in COLOURS if c != item.colour]))
    for hue, part in ((item.colour, share), (colour, other)):
        if part is not None:
            square = replace(item, shape="square", colour=hue)
            paint = render(Scene(scene.ground, (square,)))[0][rows, columns]
            picture[rows, columns] += part[:, :, None] * (paint - picture[rows, columns])
    solid = np.zeros((PIXELS, PIXELS), bool)
    solid[rows, columns] = share >= 0.5
    x, y = (round(float(along.mean()) + 0.5) for along in np.nonzero(solid)[::-1])
    told = (KINDS.index("none"), NO_ANSWER if other is not None else _tell(item)[1], _tell(item)[2], x, y)
    masks = np.concatenate([before & ~solid, solid[None]])
    return (picture + 0.5).astype(np.uint8), masks, [*(_tell(item) for item in scene.objects[:-1]), told]


def _blob(rng: np.random.Generator, item: SceneObject) -> np.ndarray:
    """A level set of smooth noise."""
    coarse = torch.from_numpy(rng.normal(size=(1, 1, 5, 5)))
    noise = F.interpolate(coarse, size=(item.size, item.size), mode="bicubic", align_corners=True)[0, 0].numpy()
    at = np.linspace(-1, 1, item.size)
    hill = 1.1 - np.hypot(at[:, None], at[None, :]) ** 2 * 1.6
    return np.clip((0.6 * noise + hill) * 3, 0, 1).astype(np.float32)


def _merge(rng: np.random.Generator, item: SceneObject) -> np.ndarray:
    """Two shapes fused into one outline, about a quarter of the box apart."""
    size = item.size - 2 * int(rng.integers(1, max(2, item.size // 5)))
    share = np.zeros((item.size, item.size), np.float32)
    for name, (top, left) in zip(rng.permutation(list(SHAPES)), _corners(rng, item.size - size), strict=False):
        part = share[top : top + size, left : left + size]
        np.maximum(part, coverage(str(name), size), out=part)
    return share


def _corners(rng: np.random.Generator, room: int) -> list[tuple[int, int]]:
    """Opposite places in a box for something `room` px smaller than it."""
    top, left = [(0, 0), (0, room), (0, room // 2), (room // 2, 0)][rng.integers(4)]
    return [(top, left), (room - top, room - left)]


def _chimera(rng: np.random.Generator, item: SceneObject) -> np.ndarray:
    """Half of one shape joined to half of another."""
    first, second = (coverage(str(name), item.size) for name in rng.permutation(list(SHAPES))[:2])
    half = _half(rng, item.size, 0.15)
    return half * first + (1 - half) * second


def _fragment(rng: np.random.Generator, item: SceneObject) -> np.ndarray:
    """A shape cut off along a line."""
    return coverage(item.shape, item.size) * _half(rng, item.size, 0.3)


def _half(rng: np.random.Generator, size: int, aside: float) -> np.ndarray:
    """About one side of a line through a box, at most `aside` of half a side off its middle, [size, size] in 0..1."""
    angle = np.pi / 4 * rng.integers(8) if rng.random() < 0.6 else rng.uniform(0, 2 * np.pi)
    at = (np.arange(size) + 0.5) / size * 2 - 1
    side = np.cos(angle) * at[None, :] + np.sin(angle) * at[:, None] - rng.uniform(-aside, aside)
    return np.clip(0.5 + side * size / 2, 0, 1).astype(np.float32)


def _unlike_all(draw: Callable, rng: np.random.Generator, item: SceneObject) -> tuple[np.ndarray, None]:
    """Draw until something is there that is no shape of the world."""
    while True:
        share = draw(rng, item)
        if (share >= 0.5).sum() >= 8 and likeness(share) < ALIKE:
            return share, None


def likeness(share: np.ndarray) -> float:
    """Best intersection over union of a drawing [s, s] with any shape of about its extent."""
    rows, columns = (np.nonzero((share >= 0.5).any(axis))[0] for axis in (1, 0))
    if not len(rows):
        return 0.0
    extent = max(np.ptp(rows), np.ptp(columns)) + 1
    best, room = 0.0, len(share) + 4
    wide = np.pad(share, room)
    for size in range(max(4, extent - 1), extent + 2):
        top, left = ((at[0] + at[-1] + 1 - size) // 2 + room for at in (rows, columns))
        part = wide[top : top + size, left : left + size]
        shapes = np.stack([coverage(name, size) for name in SHAPES])
        met = np.minimum(part, shapes).sum((1, 2))
        best = max(best, float((met / (share.sum() + shapes.sum((1, 2)) - met)).max()))
    return best


def _bleeding(rng: np.random.Generator, item: SceneObject) -> tuple[np.ndarray, np.ndarray]:
    """A shape with a second colour on 30 to 70 % of it."""
    share = coverage(item.shape, item.size)
    while True:
        other = share * _half(rng, item.size, 0.3)
        if 0.3 <= other.sum() / share.sum() <= 0.7:
            return share, other


#: kind -> how often, the harder the oftener; what draws it: (generator, object) to the share of the box that it
#: covers and the share in a second colour, or None
NONSENSE: dict[
    str, tuple[float, Callable[[np.random.Generator, SceneObject], tuple[np.ndarray, np.ndarray | None]]]
] = {
    "blob": (0.1, partial(_unlike_all, _blob)),
    "merge": (0.32, partial(_unlike_all, _merge)),
    "chimera": (0.2, partial(_unlike_all, _chimera)),
    "fragment": (0.1, partial(_unlike_all, _fragment)),
    "bleeding": (0.28, _bleeding),
}


@torch.no_grad()
def _spoil(pictures: torch.Tensor, vae: AutoencoderKL, random: torch.Generator) -> torch.Tensor:
    """Warp, blur, noise, shifted shade, and two codes' round trips with noise, each on some; [B, 3, H, W] in 0..1."""

    def some(share: float) -> torch.Tensor:
        return torch.rand(len(pictures), 1, 1, 1, generator=random) < share

    def normal(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=random)

    pictures = torch.where(some(0.3), _warp(pictures, random), pictures)
    code = encode(pictures * 2 - 1)
    code = code + 0.15 * torch.rand(len(code), 1, 1, 1, generator=random) * normal(code)
    pictures = torch.where(some(0.3), decode(code) / 2 + 0.5, pictures)
    chosen = some(CODED).flatten()
    if chosen.any():
        code = vae.encode(pictures[chosen] * 2 - 1).latent_dist.mode()
        code = code + 0.15 * torch.rand(len(code), 1, 1, 1, generator=random) * normal(code)
        pictures[chosen] = vae.decode(code).sample / 2 + 0.5
    blurred = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    weight = torch.rand(len(pictures), 1, 1, 1, generator=random) * 0.8
    pictures = torch.where(some(0.4), pictures + weight * (blurred - pictures), pictures)
    noise = 0.08 * torch.rand(len(pictures), 1, 1, 1, generator=random) * normal(pictures)
    pictures = torch.where(some(0.5), pictures + noise, pictures)
    shade = 0.06 * torch.randn(len(pictures), 3, 1, 1, generator=random)
    return torch.where(some(0.4), pictures + shade, pictures).clamp(0, 1)


def _warp(pictures: torch.Tensor, random: torch.Generator, amount: float = 0.5) -> torch.Tensor:
    """Move every pixel by about `amount` px along a smooth field: an outline drawn by an unsteady hand."""
    rows, side = len(pictures), pictures.shape[-1]
    field = F.interpolate(torch.randn(rows, 2, 5, 5, generator=random), size=side, mode="bicubic", align_corners=True)
    still = F.affine_grid(torch.eye(2, 3).expand(rows, 2, 3), [rows, 3, side, side], align_corners=False)
    moved = still + field.permute(0, 2, 3, 1) * (2 * amount / side)
    return F.grid_sample(pictures, moved, mode="bilinear", padding_mode="border", align_corners=False)


def _loss(net: JudgeNet, pictures: torch.Tensor, told: list) -> torch.Tensor:
    """Soft centre map, and the object's traits at the nine cells around its centre."""
    presence, shape, colour, texture, area = net(pictures)
    side = presence.shape[-1]
    centre = torch.zeros(len(pictures), side, side)
    rows, ys, xs, answers, sizes = [], [], [], [], []
    at = torch.arange(side) * CELL + CELL / 2
    for row, (masks, objects) in enumerate(told):
        for mask, (kind, hue, band, x, y) in zip(masks, objects, strict=True):
            near = torch.exp(-((at[None, :] - x) ** 2 + (at[:, None] - y) ** 2) / (2 * 2.0**2))
            centre[row] = torch.maximum(centre[row], near / near.max())
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    i, j = min(max((y - 1) // CELL + dy, 0), side - 1), min(max((x - 1) // CELL + dx, 0), side - 1)
                    rows.append(row), ys.append(i), xs.append(j)
                    answers.append((kind, hue, band)), sizes.append(max(1.0, float(mask.sum())))
    loss = 20 * F.binary_cross_entropy_with_logits(presence[:, 0], centre)
    if rows:
        kinds, hues, bands = torch.tensor(answers).unbind(1)
        strict = torch.ones(len(KINDS))
        strict[-1] = NONE_WEIGHT
        for head, answer, weight in ((shape, kinds, strict), (colour, hues, None), (texture, bands, None)):
            loss = loss + F.cross_entropy(head[rows, :, ys, xs], answer, weight)
        loss = loss + 0.1 * F.smooth_l1_loss(area[rows, 0, ys, xs], torch.tensor(sizes).log())
    return loss


def train_judge(
    *,
    seed: int = 0,
    steps: int = 1500,
    rows: int = 32,
    lr: float = 4e-3,
    vae: Path = WEIGHTS.parent / "vae",
    report: Callable[[dict[str, Any]], None] = print,
) -> Judge:
    """A judge after `steps` of `rows` fresh pictures, the learning rate falling all the way.

    vae  folder of the autoencoder whose round trips it learns to see through
    """
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    coder = AutoencoderKL.from_pretrained(vae, dtype=torch.float32, local_files_only=True).eval()
    net, started, lost = JudgeNet().train(), time.monotonic(), 0.0
    optimisers = split_optimisers(net.named_parameters(), lr=lr, lr_rest=lr)
    for step in range(steps):
        samples = [judge_sample(seed, FIRST + step * rows + row) for row in range(rows)]
        pictures = torch.from_numpy(np.stack([s[0] for s in samples])).permute(0, 3, 1, 2).float() / 255
        spoilt = torch.rand(rows, 1, 1, 1, generator=random) < SPOILT
        shown = torch.where(spoilt, _spoil(pictures, coder, random), pictures)
        loss = _loss(net, shown, [(s[1], s[2]) for s in samples])
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["full_lr"] * min(1.0, (step + 1) / 30, (steps - step) / steps * 1.3)
            optimiser.step()
        lost += loss.item() / 100
        if (step + 1) % 100 == 0:
            report({"step": step + 1, "loss": lost, "seconds": time.monotonic() - started})
            lost = 0.0
    return Judge(net)
