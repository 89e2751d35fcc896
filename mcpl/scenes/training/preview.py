"""A sheet of sample pictures, to see by eye how far a base model has come."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

from mcpl.scenes.training.networks import LATENTS

PROMPTS = (
    "a red disc on a white ground",
    "a blue square on a grey ground",
    "a yellow triangle on a black ground",
    "a green ring on a white ground",
    "a pink cross on a brown ground",
    "a cyan star on a black ground",
    "a red striped square on a white ground",
    "a cyan thing on a grey ground",
    "a red star left of a blue ring on a white ground",
    "a green cross above a yellow disc on a black ground",
    "a pink triangle right of a cyan square on a grey ground",
    "a yellow striped disc below a red cross on a brown ground",
    "a blue star and a green triangle on a white ground",
    "a photo of a pink disc left of a red triangle",
    "a red ring, a blue disc and a green square on a white ground",
    "a pink ring above a blue cross on a black ground",
)


@torch.no_grad()
def sample_latents(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    scheduler: DDIMScheduler,
    prompts: Sequence[str],
    *,
    seed: int = 0,
    steps: int = 20,
    guidance: float = 3.0,
) -> torch.Tensor:
    """Latents [B, 4, h, w] for `prompts` by DDIM with classifier-free guidance; row i starts from noise (seed, i)."""
    device, side = unet.device, unet.config.sample_size

    def told(texts: Sequence[str]) -> torch.Tensor:
        ids = tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt").input_ids
        return text_encoder(input_ids=ids.to(device)).last_hidden_state

    states = torch.cat([told([""]).expand(len(prompts), -1, -1), told(prompts)])
    noises = [torch.randn(LATENTS, side, side, generator=_generator(seed, i)) for i in range(len(prompts))]
    latents = torch.stack(noises).to(device)
    scheduler.set_timesteps(steps)
    for at in scheduler.timesteps:
        without, with_text = unet(latents.repeat(2, 1, 1, 1), at, states).sample.chunk(2)
        latents = scheduler.step(without + guidance * (with_text - without), at, latents).prev_sample
    return latents


def _generator(seed: int, row: int) -> torch.Generator:
    return torch.Generator().manual_seed(int(np.random.SeedSequence([seed, row]).generate_state(1)[0]))


def sheet(pictures: np.ndarray, path: Path, *, columns: int = 4, zoom: int = 4) -> None:
    """Save uint8 pictures [B, H, W, 3] as one PNG, row by row, each pixel `zoom` wide."""
    rows = -(-len(pictures) // columns)
    padded = np.concatenate([pictures, np.zeros((rows * columns - len(pictures), *pictures.shape[1:]), np.uint8)])
    padded = np.pad(padded, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=200)
    _, high, wide, _ = padded.shape
    joined = padded.reshape(rows, columns, high, wide, 3).swapaxes(1, 2).reshape(rows * high, columns * wide, 3)
    part = path.with_suffix(".part.png")
    Image.fromarray(joined).resize((columns * wide * zoom, rows * high * zoom), Image.Resampling.NEAREST).save(part)
    part.replace(path)
