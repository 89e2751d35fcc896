"""Training batches, rendered when they are needed and never twice: sample i of seed s is the same everywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from transformers import CLIPTokenizer

from mcpl.prompts import TEMPLATES
from mcpl.scenes.grammar import DROP_CAPTION, training_caption
from mcpl.scenes.render import render
from mcpl.scenes.scene import COUNTS, Scene, sample_scene
from mcpl.scenes.training.latents import pictures_to_tensor
from mcpl.scenes.world import PIXELS

SHARES = tuple(COUNTS.values())


def scene_and_caption(
    seed: int, index: int, shares: Sequence[float] = SHARES, untold: float = DROP_CAPTION
) -> tuple[Scene, str]:
    """Sample `index`; `shares` says how often a scene has one, two, three objects, `untold` how often no caption."""
    rng = np.random.default_rng([seed, index])
    scene = sample_scene(rng, objects=1 + int(rng.choice(len(shares), p=shares)))
    return scene, training_caption(scene, rng, TEMPLATES, untold)


def batch(
    seed: int,
    indices: Iterable[int],
    tokenizer: CLIPTokenizer,
    pixels: int = PIXELS,
    shares: Sequence[float] = SHARES,
    untold: float = DROP_CAPTION,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures of `pixels` a side, float [B, 3, H, W] in -1..1, and the token ids of their captions, [B, L]."""
    pairs = [scene_and_caption(seed, index, shares, untold) for index in indices]
    pictures = np.stack([render(scene, pixels // PIXELS)[0] for scene, _ in pairs])
    ids = tokenizer([caption for _, caption in pairs], padding="max_length", truncation=True, return_tensors="pt")
    return pictures_to_tensor(pictures), ids.input_ids
