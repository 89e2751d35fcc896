"""Cross-attention maps as masks: normalise by the maximum, threshold, unite (AttnMask, paper section 3.3)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def normalise(maps: Tensor) -> Tensor:
    """Each map divided by its own maximum: [..., m, m] in 0..1. A map of zeros stays zeros."""
    return maps / maps.amax(dim=(-2, -1), keepdim=True).clamp_min(1e-12)


def binarise(maps: Tensor, threshold: float) -> Tensor:
    """1 where a map reaches `threshold` of its own maximum, else 0. [..., m, m] of the maps' type"""
    return (normalise(maps) >= threshold).to(maps.dtype)


def union(masks: Tensor) -> Tensor:
    """Union over the concepts of one job: [P, m, m] -> [m, m]. Each was binarised by its own maximum before."""
    return masks.amax(dim=0)


def fit_to(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks [B, m, m] at the latents' resolution, [B, 1, h, w]; nearest, so that they stay 0 or 1."""
    if tuple(masks.shape[-2:]) == tuple(size):
        return masks[:, None]
    return F.interpolate(masks[:, None], size=size, mode="nearest-exact")


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of 0/1 masks, [..., h, w] -> [...]; two empty masks give 0."""
    intersection = (first * second).sum(dim=(-2, -1))
    return intersection / (first + second - first * second).sum(dim=(-2, -1)).clamp_min(1e-12)
