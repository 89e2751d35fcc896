"""diffusers' schedulers by a short name. A new one is one line of SCHEDULERS."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

import diffusers
import torch
from diffusers import SchedulerMixin
from torch import Tensor

from mcpl.errors import ConfigError

SCHEDULERS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {}),
    "dpm++-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
"""name -> (class of diffusers, what it is told besides the base's own schedule)"""


def make(name: str, config: Mapping[str, Any], steps: int, device: torch.device) -> SchedulerMixin:
    """A scheduler over the training schedule of `config`, ready for `steps`; from the last trained step on."""
    if name not in SCHEDULERS:
        raise ConfigError(f"scheduler {name!r} is none of {', '.join(SCHEDULERS)}")
    kind, told = SCHEDULERS[name]
    plain = {"timestep_spacing": "trailing", "clip_sample": False, "thresholding": False}
    scheduler = getattr(diffusers, kind).from_config(config, **plain | dict(told))
    trained = scheduler.config.num_train_timesteps
    if not 1 <= steps <= trained:
        raise ConfigError(f"{steps} sampling steps: give 1 to {trained}, as the base was trained with so many")
    scheduler.set_timesteps(steps, device=device)
    return scheduler


def step(scheduler: SchedulerMixin, prediction: Tensor, timestep: Tensor, latents: Tensor, generators: list) -> Tensor:
    """One step; each picture's fresh noise, where a scheduler wants some, from its own generator. [B, C, h, w]"""
    random = {"generator": generators} if "generator" in signature(scheduler.step).parameters else {}
    return scheduler.step(prediction, timestep, latents, **random).prev_sample.to(latents.dtype)
