"""What the official release does where it differs from its paper: for the `release` recipe alone.

Every function here is a defect on purpose, named after it, and tested as one. Nothing else may import this module but
the table of terms and the step that the recipe drives.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mcpl.objectives.attention import normalise


def release_mask(maps: Tensor, threshold: float, softmaxes: int = 2) -> Tensor:
    """One job's mask from the maps of its own training rows, [b, P, m, m] -> [m, m] of 0/1.

    Half of the rows only, at their random time steps; each map softmaxed again over its cells, twice; summed over the
    concepts and thresholded once by the sum's maximum. With two softmaxes it is 1 everywhere.
    """
    kept = maps[len(maps) // 2 :].mean(dim=0)
    for _ in range(softmaxes):
        kept = kept.flatten(1).softmax(dim=-1).view_as(kept)
    return (normalise(kept.sum(dim=0)) >= threshold).to(maps.dtype)


def rolled_contrastive(hidden: Tensor, concept_ids: Tensor, job_ids: Tensor, jobs: int, temperature: float) -> Tensor:
    """PromptCL with positives found by rolling an identity matrix by the number of rows, not by concept. [J]

    Members lie row after row, n to a row: the one that is `rows` further on is the same concept only where
    rows mod n = 0. hidden: [B, L, D']; concept_ids: [B, L], -1 for what is no member.
    """
    values = []
    for job in range(jobs):
        row, position = (concept_ids.masked_fill((job_ids != job)[:, None], -1) >= 0).nonzero(as_tuple=True)
        members = F.normalize(hidden[row, position].to(torch.promote_types(hidden.dtype, torch.float32)), dim=-1)
        rows, itself = int((job_ids == job).sum()), torch.eye(len(members), dtype=torch.bool, device=hidden.device)
        positive = torch.roll(itself, rows, dims=1)
        logits = (members @ members.T / temperature).masked_fill(itself, -torch.inf)
        log_probability = logits - logits.logsumexp(dim=1, keepdim=True)
        values.append(-log_probability[positive & ~itself].sum() / max(1, len(members)))
    return torch.stack(values)
