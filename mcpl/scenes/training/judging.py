"""Train the scene judge on renders: all shapes of the world, spoilt pictures, and things that are none of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from mcpl.scenes.judge import CELL, KINDS, Judge, JudgeNet
from mcpl.scenes.render import render
from mcpl.scenes.scene import Scene, sample_scene
from mcpl.scenes.training.latents import decode, encode
from mcpl.scenes.training.loop import split_optimisers
from mcpl.scenes.world import COLOURS, PIXELS, SHAPES, TEXTURES

FIRST = 2**42  # samples far from the base model's
OCCLUDED, NONSENSE, EMPTY, SPOILT = 0.15, 0.2, 0.02, 0.6  # shares of the training pictures


def judge_sample(seed: int, index: int) -> tuple[np.ndarray, np.ndarray, list[tuple[int, ...]]]:
    """A picture uint8 [H, W, 3], its objects' masks [n, H, W], and (kind, colour, texture, x, y) of each, x y in px."""
    rng = np.random.default_rng([seed, index])
    count = int(rng.choice([1, 2, 3, 4], p=[0.35, 0.4, 0.2, 0.05]))
    options = {"objects": 2, "occlusion": rng.uniform(0.05, 0.5)} if rng.random() < OCCLUDED else {"objects": count}
    scene = sample_scene(rng, pool=tuple(SHAPES), held_out=None, **options)
    if rng.random() < EMPTY:
        scene = Scene(scene.ground, ())
    picture, masks = render(scene)
    kinds = [KINDS.index(item.shape) for item in scene.objects]
    if kinds and rng.random() < NONSENSE:
        picture, masks = _nonsense(rng, scene, picture, masks)
        kinds[-1] = KINDS.index("none")
    told = [
        (kind, list(COLOURS).index(item.colour), TEXTURES.index(item.texture), item.x, item.y)
        for kind, item in zip(kinds, scene.objects, strict=True)
    ]
    return picture, masks, told


def _nonsense(
    rng: np.random.Generator, scene: Scene, picture: np.ndarray, masks: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Redraw the last object as a blob: a level set of smooth noise inside its box, in its own paint."""
    item = scene.objects[-1]
    rows, columns = item.box
    coarse = torch.from_numpy(rng.normal(size=(1, 1, 5, 5)))
    noise = F.interpolate(coarse, size=(item.size, item.size), mode="bicubic", align_corners=True)[0, 0].numpy()
    at = np.linspace(-1, 1, item.size)
    hill = 1.1 - np.hypot(at[:, None], at[None, :]) ** 2 * 1.6
    share = np.clip((0.6 * noise + hill) * 3, 0, 1)[:, :, None]
    without, before = render(Scene(scene.ground, scene.objects[:-1]))
    paint = render(Scene(scene.ground, (replace(item, shape="square"),)))[0]
    blob = without.astype(np.float32)
    blob[rows, columns] += share * (paint[rows, columns] - blob[rows, columns])
    solid = np.zeros((PIXELS, PIXELS), bool)
    solid[rows, columns] = share[:, :, 0] >= 0.5
    return (blob + 0.5).astype(np.uint8), np.concatenate([before & ~solid, solid[None]])


def _spoil(pictures: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Blur, noise, shifted shade, and the code's round trip with noise, each on some rows; [B, 3, H, W] in 0..1."""

    def some(share: float) -> torch.Tensor:
        return torch.rand(len(pictures), 1, 1, 1, generator=random) < share

    def normal(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=random)

    code = encode(pictures * 2 - 1)
    coded = decode(code + 0.15 * torch.rand(len(code), 1, 1, 1, generator=random) * normal(code)) / 2 + 0.5
    pictures = torch.where(some(0.4), coded, pictures)
    blurred = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    weight = torch.rand(len(pictures), 1, 1, 1, generator=random) * 0.8
    pictures = torch.where(some(0.4), pictures + weight * (blurred - pictures), pictures)
    noise = 0.08 * torch.rand(len(pictures), 1, 1, 1, generator=random) * normal(pictures)
    pictures = torch.where(some(0.5), pictures + noise, pictures)
    shade = 0.06 * torch.randn(len(pictures), 3, 1, 1, generator=random)
    return torch.where(some(0.4), pictures + shade, pictures).clamp(0, 1)


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
        for head, answer in ((shape, kinds), (colour, hues), (texture, bands)):
            loss = loss + F.cross_entropy(head[rows, :, ys, xs], answer)
        loss = loss + 0.1 * F.smooth_l1_loss(area[rows, 0, ys, xs], torch.tensor(sizes).log())
    return loss


def train_judge(
    *,
    seed: int = 0,
    steps: int = 1500,
    rows: int = 32,
    lr: float = 4e-3,
    report: Callable[[dict[str, Any]], None] = print,
) -> Judge:
    """A judge after `steps` of `rows` fresh pictures, the learning rate falling all the way."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    net, started, lost = JudgeNet().train(), time.monotonic(), 0.0
    optimisers = split_optimisers(net.named_parameters(), lr=lr, lr_rest=lr)
    for step in range(steps):
        samples = [judge_sample(seed, FIRST + step * rows + row) for row in range(rows)]
        pictures = torch.from_numpy(np.stack([s[0] for s in samples])).permute(0, 3, 1, 2).float() / 255
        spoilt = torch.rand(rows, 1, 1, 1, generator=random) < SPOILT
        loss = _loss(net, torch.where(spoilt, _spoil(pictures, random), pictures), [(s[1], s[2]) for s in samples])
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
