"""Gradients through a network in half precision: scaled up where they enter it, down again where they leave it.

A denoising loss is a mean over thousands of latent values, so its gradients are about 1e-4 and smaller, where half
precision has few digits and soon none. The scaling is seen by nobody outside the network.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mcpl.types import Conditioning

SCALE = 1024.0
"""a power of two, so that scaling rounds nothing"""


class _GradientTimes(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return value.view_as(value)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


def entering(conditioning: Conditioning) -> Conditioning:
    """float32 conditions as a half-precision network takes them; their gradients come back unscaled, in float32."""

    def halved(value: Tensor) -> Tensor:
        return _GradientTimes.apply(value, 1 / SCALE).to(torch.float16)

    return Conditioning(
        halved(conditioning.hidden), {name: halved(value) for name, value in conditioning.extra.items()}
    )


def leaving(prediction: Tensor) -> Tensor:
    """A half-precision prediction in float32, its gradient scaled on the way in."""
    return _GradientTimes.apply(prediction.to(torch.float32), SCALE)
