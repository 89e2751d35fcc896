"""Train the autoencoder: its encoder to give the analytic code, its decoder to invert it with the neighbours' help."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from mcpl.prompts import TEMPLATES
from mcpl.scenes.grammar import vocabulary
from mcpl.scenes.training.data import batch
from mcpl.scenes.training.latents import encode
from mcpl.scenes.training.loop import split_optimisers
from mcpl.scenes.training.networks import Shape, build_vae
from mcpl.scenes.training.tokenizer import build_tokenizer

LOG_VARIANCE = -8.0  # of the posterior: the code is all but exact
JITTER = 0.05  # noise on the codes that the decoder trains on, as a generated latent is never exact
FIRST = 2**41  # samples far from the U-Net's


def train_vae(
    shape: Shape,
    *,
    seed: int = 0,
    steps: int = 1500,
    rows: int = 8,
    lr: float = 4e-3,
    report: Callable[[dict[str, Any]], None] = print,
) -> AutoencoderKL:
    """An autoencoder after `steps` of `rows` fresh scenes each, the learning rate falling over the last third."""
    torch.manual_seed(seed)
    vae = build_vae(shape)
    optimisers = split_optimisers(vae.named_parameters(), lr=lr, lr_rest=lr / 2)
    tokenizer, started = build_tokenizer(vocabulary(TEMPLATES)), time.monotonic()
    for step in range(steps):
        pictures, _ = batch(seed, range(FIRST + step * rows, FIRST + (step + 1) * rows), tokenizer, shape.pixels)
        code = encode(pictures)
        mean, log_variance = vae._encode(pictures).chunk(2, 1)
        again = vae.decode(code + JITTER * torch.rand(rows, 1, 1, 1) * torch.randn_like(code)).sample
        told = F.mse_loss(mean, code)
        drawn = F.mse_loss(again, pictures)
        loss = told + 0.01 * F.mse_loss(log_variance, torch.full_like(log_variance, LOG_VARIANCE)) + 4 * drawn
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        pace = min(1.0, (step + 1) / 50, (steps - step) / (steps / 3))
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["full_lr"] * pace
            optimiser.step()
        if (step + 1) % 100 == 0:
            report(
                {
                    "step": step + 1,
                    "code_mse": told.item(),
                    "psnr": 10 * math.log10(4 / drawn.item()),
                    "seconds": time.monotonic() - started,
                }
            )
    return vae.eval()


@torch.no_grad()
def round_trip(vae: AutoencoderKL, pictures: torch.Tensor) -> torch.Tensor:
    """Pictures [B, 3, H, W] in -1..1 to latents and back, as the pipeline does it (mean of the posterior)."""
    return vae.decode(vae.encode(pictures).latent_dist.mode()).sample.clamp(-1, 1)


def psnr(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each pair of pictures in -1..1, in dB: [B, 3, H, W] twice to [B]."""
    return 10 * torch.log10(4 / (first - second).square().mean((1, 2, 3)).clamp_min(1e-10))
