"""Diffusion schedule mathematics: noise in, target out. Pure; `alphas_cumprod` [T] is all that it knows of a model."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

PredictionType = Literal["epsilon", "v_prediction", "sample"]


def _coefficients(alphas_cumprod: Tensor, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(alpha_bar) and sqrt(1 - alpha_bar) at each row's time step, shaped to multiply [B, C, h, w]."""
    alpha_bar = alphas_cumprod.to(like.device, torch.promote_types(like.dtype, torch.float32))
    alpha_bar = alpha_bar[timesteps].view(-1, *[1] * (like.ndim - 1))
    return alpha_bar.sqrt().to(like.dtype), (1 - alpha_bar).sqrt().to(like.dtype)  # 1 - a is lost in bfloat16


def add_noise(latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Forward process, DDPM eq. 4: sqrt(a) x0 + sqrt(1 - a) noise. [B, C, h, w]"""
    signal, sigma = _coefficients(alphas_cumprod, timesteps, latents)
    return signal * latents + sigma * noise


def target(
    latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor, prediction_type: PredictionType
) -> Tensor:
    """What the network was trained to predict: noise, v = sqrt(a) noise - sqrt(1 - a) x0 (Salimans & Ho), or x0."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return latents
    signal, sigma = _coefficients(alphas_cumprod, timesteps, latents)
    return signal * noise - sigma * latents


def stratified_timesteps(uniform: Tensor, total: int) -> Tensor:
    """One time step from each of n equal buckets of the schedule, [..., n] draws in 0..1 -> [..., n] int64.

    The mean over a step's rows then covers the whole schedule; each row's marginal stays uniform only if the rows
    are exchangeable, which they are: noise and templates are drawn independently of the bucket.
    """
    n = uniform.shape[-1]
    buckets = torch.arange(n, device=uniform.device, dtype=uniform.dtype)
    return (((buckets + uniform) / n) * total).long().clamp_(0, total - 1)


def bucket_centres(n: int, total: int) -> Tensor:
    """The centres of n equal buckets of the schedule. [n] int64"""
    return stratified_timesteps(torch.full((n,), 0.5, dtype=torch.float64), total)
