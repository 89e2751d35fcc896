"""Cross-attention maps as masks: normalise by the maximum, threshold, unite (AttnMask, paper section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
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


def covered(masks: Tensor, size: int | tuple[int, int]) -> Tensor:
    """True masks at a smaller size: 1 in cells of which they cover more than half. [..., H, W] -> [..., h, w], float"""
    pooled = F.adaptive_avg_pool2d(masks.float().flatten(0, -3)[:, None], size)[:, 0]
    return (pooled > 0.5).to(pooled).unflatten(0, masks.shape[:-2])


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of 0/1 masks, [..., h, w] -> [...]; two empty masks give 0."""
    intersection = (first * second).sum(dim=(-2, -1))
    return intersection / (first + second - first * second).sum(dim=(-2, -1)).clamp_min(1e-12)


def exclusive(maps: Tensor, masks: Tensor) -> Tensor:
    """Masks [P, m, m] of which a cell keeps only that of the concept whose normalised map is strongest there."""
    strongest = normalise(maps).argmax(dim=0)
    return masks * (strongest[None] == torch.arange(len(maps), device=maps.device)[:, None, None])


def refine(maps: Tensor, affinity: Tensor, times: int) -> Tensor:
    """Maps [B, P, m, m] spread `times` times along self-attention [B, m*m, m*m] (iSeg, ConceptExpress).

    The affinity's rows sum to 1. A cell takes the mean of the cells that it attends to, so that a map fills the object
    that it touches.
    """
    flat = maps.flatten(2)
    for _ in range(times):
        flat = flat @ affinity.to(flat).transpose(-1, -2)
    return flat.view_as(maps)


def sharpness(maps: Tensor) -> Tensor:
    """Peak over mean of maps [..., m, m]: 1 for a flat one, m*m for a single point. [...]"""
    return maps.amax(dim=(-2, -1)) / maps.mean(dim=(-2, -1)).clamp_min(1e-12)


def soft_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU of maps in 0..1 with products for intersections: differentiable. [..., m, m] -> [...]"""
    return iou(first, second)


@dataclass(frozen=True)
class WordMaps:
    """Cross-attention of a batch's words, one map per concept and row; P concepts of the job with most."""

    nouns: Tensor
    """[B, P, m, m] mean over the concept's placeholder positions"""
    adjectives: Tensor
    """[B, P, m, m] mean over the adjectives bound to it"""
    has_noun: Tensor
    """[B, P] bool"""
    has_adjective: Tensor
    """[B, P] bool"""


def member_positions(concept_ids: Tensor) -> Tensor:
    """Where placeholders and bound adjectives stand, rows padded with 0: [B, L] -> [B, M]."""
    member = concept_ids >= 0
    order = torch.argsort((~member).to(torch.uint8), dim=1, stable=True)[:, : int(member.sum(dim=1).max())]
    return order.masked_fill(~member.gather(1, order), 0)


def word_maps(columns: Tensor, positions: Tensor, concept_ids: Tensor, placeholder: Tensor, concepts: int) -> WordMaps:
    """Recorded columns [B, M, m, m] of `member_positions` as one map per concept."""
    group, placed = concept_ids.gather(1, positions), placeholder.gather(1, positions)
    real = torch.arange(positions.shape[1], device=positions.device) < (concept_ids >= 0).sum(dim=1, keepdim=True)
    own = (group[:, None] == torch.arange(concepts, device=group.device)[None, :, None]) & real[:, None]  # [B, P, M]

    def mean(member: Tensor) -> tuple[Tensor, Tensor]:
        count = member.sum(dim=-1)
        share = member.to(columns) / count.clamp_min(1)[..., None].to(columns)
        return torch.einsum("bpk,bkij->bpij", share, columns), count > 0

    nouns, has_noun = mean(own & placed[:, None])
    adjectives, has_adjective = mean(own & ~placed[:, None])
    return WordMaps(nouns, adjectives, has_noun, has_adjective)


def attention_error(maps: Tensor, targets: Tensor, counted: Tensor) -> Tensor:
    """Mean squared error of max-normalised maps against masks (Break-A-Scene, arXiv 2305.16311, eq. 3). [B]

    maps, targets: [B, P, m, m]; counted: [B, P] bool. A row that counts no concept gives 0.
    """
    errors = (normalise(maps) - targets.to(maps)).square().mean(dim=(-2, -1))
    return _mean_where(errors, counted)


def overlap(maps: Tensor, counted: Tensor) -> Tensor:
    """Mean soft IoU of two different concepts' normalised maps (suppress, DisenDiff, arXiv 2403.18551). [B]"""
    scaled = normalise(maps)
    pairs = counted[:, :, None] & counted[:, None] & ~torch.eye(maps.shape[1], dtype=torch.bool, device=maps.device)
    return _mean_where(soft_iou(scaled[:, :, None], scaled[:, None]).flatten(1), pairs.flatten(1))


def unbound(maps: WordMaps, counted: Tensor) -> Tensor:
    """1 - soft IoU of a concept's map with its frozen adjectives' (bind, DisenDiff); no gradient to the latter. [B]"""
    apart = 1 - soft_iou(normalise(maps.nouns), normalise(maps.adjectives.detach()))
    return _mean_where(apart, counted & maps.has_adjective)


def _mean_where(values: Tensor, counted: Tensor) -> Tensor:
    weight = counted.to(values)
    return (values * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1)


def neglect(maps: Tensor) -> Tensor:
    """How little the word that is seen least is seen anywhere: 1 - the least of the peaks (Attend-and-Excite,
    arXiv 2301.13826, eq. 4). [B, P, m, m] shares of attention -> [B]

    Maps are smoothed before, so that a patch counts and not a single cell.
    """
    line = torch.exp(-torch.tensor([-1.0, 0.0, 1.0]).square() / (2 * 0.5**2)).to(maps)
    kernel = torch.outer(line, line) / line.sum().square()
    padded = F.pad(maps, (1, 1, 1, 1), mode="reflect").flatten(0, 1)[:, None]
    smooth = F.conv2d(padded, kernel[None, None]).view_as(maps)
    return 1 - smooth.amax(dim=(-2, -1)).amin(dim=1)
