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


def ddim_step(
    latents: Tensor, prediction: Tensor, here: Tensor, there: Tensor, prediction_type: PredictionType
) -> Tensor:
    """Latents [B, C, h, w] moved from signal share alpha_bar `here` to `there` without noise, DDIM eq. 12 with eta 0.

    Towards less noise it samples, towards more it inverts (DDIM section 4.3).
    """
    wide = torch.promote_types(latents.dtype, torch.float32)
    signal, sigma = here.to(wide).sqrt(), (1 - here.to(wide)).sqrt()
    x, said = latents.to(wide), prediction.to(wide)
    if prediction_type == "epsilon":
        clean, noise = (x - sigma * said) / signal, said
    elif prediction_type == "v_prediction":
        clean, noise = signal * x - sigma * said, sigma * x + signal * said
    else:
        clean, noise = said, (x - signal * said) / sigma
    return (there.to(wide).sqrt() * clean + (1 - there.to(wide)).sqrt() * noise).to(latents.dtype)


def ddim_inverse(
    latents: Tensor, prediction: Tensor, here: Tensor, there: Tensor, prediction_type: PredictionType
) -> Tensor:
    """The latents at signal share `here` from which `ddim_step` with this prediction leads to `latents` at `there`.

    A step is linear in the latents once the prediction stands. A base that predicts x0 leaves nothing to invert where
    `there` is 1.
    """
    pull = ddim_step(torch.zeros_like(prediction), prediction, here, there, prediction_type)
    one = torch.ones((), dtype=torch.promote_types(latents.dtype, torch.float32), device=latents.device)
    return (latents - pull) / ddim_step(one, torch.zeros_like(one), here, there, prediction_type).to(latents.dtype)


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
