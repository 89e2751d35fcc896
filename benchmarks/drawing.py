"""What the benchmarks share: a base opened with its judge, its pictures of prompts, and intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from mcpl.digests import check_files
from mcpl.scenes.judge import WEIGHTS, Judge
from mcpl.scenes.training.latents import tensor_to_pictures
from mcpl.scenes.training.preview import sample_latents

STEPS, GUIDANCE = 20, 3.0
ROWS = 50  # pictures generated at once


def open_base(base: Path) -> tuple[StableDiffusionPipeline, Judge]:
    """The base in a directory, with its own judge or the shipped one. ConfigError where its files were altered."""
    check_files(base)
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


def interval(
    values: Sequence[float], *, clusters: Sequence[int] | None = None, resamples: int = 2000
) -> dict[str, float | int]:
    """Mean of `n` values and its 95 % interval: Wilson's score interval for shares, else the bootstrap's.

    Shares are values that are all 0 or 1, of which the bootstrap would make nothing where all are alike (Wilson 1927).
    clusters  one number a value: values of one cluster hang together, and clusters are resampled instead of values
    """
    data = np.asarray(values, float)
    if not len(data):
        return {"mean": float("nan"), "low": float("nan"), "high": float("nan"), "n": 0}
    if clusters is None and np.isin(data, (0, 1)).all():
        low, high = _wilson(float(data.mean()), len(data))
    else:
        _, own = np.unique(np.arange(len(data)) if clusters is None else clusters, return_inverse=True)
        sums, sizes = np.bincount(own, data), np.bincount(own)
        rows = np.random.default_rng(0).integers(len(sums), size=(resamples, len(sums)))
        low, high = np.quantile(sums[rows].sum(1) / sizes[rows].sum(1), [0.025, 0.975]).tolist()
    return {"mean": round(float(data.mean()), 4), "low": round(low, 4), "high": round(high, 4), "n": len(data)}


def _wilson(share: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a share of n trials."""
    middle, half = share + z**2 / (2 * n), z * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    return (middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)
