"""What the benchmarks share: a base opened with its judge, its pictures of prompts, and intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from mcpl.scenes.judge import WEIGHTS, Judge
from mcpl.scenes.training.latents import tensor_to_pictures
from mcpl.scenes.training.preview import sample_latents

STEPS, GUIDANCE = 20, 3.0
ROWS = 50  # pictures generated at once


def open_base(base: Path) -> tuple[StableDiffusionPipeline, Judge]:
    """The base in a directory, and its own judge where it has one, else the shipped one."""
    pipe = StableDiffusionPipeline.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    return pipe, Judge.load(judge_of(base))


def judge_of(base: Path) -> Path:
    """The weights of the judge that belongs to a base."""
    own = base / "judge.safetensors"
    return own if own.exists() else WEIGHTS


@torch.no_grad()
def draw(
    pipe: StableDiffusionPipeline,
    prompts: Sequence[str],
    *,
    seed: int,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
) -> np.ndarray:
    """A picture for each prompt, uint8 [B, H, W, 3]; its noise is fixed by the seed and the prompt's number."""
    pictures = []
    for first in range(0, len(prompts), ROWS):
        scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
        latents = sample_latents(
            pipe.unet, pipe.text_encoder, pipe.tokenizer, scheduler, prompts[first : first + ROWS],
            seed=seed + first, steps=steps, guidance=guidance,
        )  # fmt: skip
        pictures.append(tensor_to_pictures(pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample))
    return np.concatenate(pictures)


def interval(values: Sequence[float], *, resamples: int = 2000) -> dict[str, float | int]:
    """Mean and its 95 % bootstrap interval."""
    data = np.asarray(values, float)
    if not len(data):
        return {"mean": float("nan"), "low": float("nan"), "high": float("nan"), "n": 0}
    means = data[np.random.default_rng(0).integers(len(data), size=(resamples, len(data)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975]).tolist()
    return {"mean": round(float(data.mean()), 4), "low": round(low, 4), "high": round(high, 4), "n": len(data)}
