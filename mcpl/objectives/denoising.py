"""The denoising loss of Textual Inversion (arXiv 2208.01618, eq. 2), masked as MCPL's AttnMask asks (section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from mcpl.packing import mean_by_job


def masked_denoising(
    prediction: Tensor, target: Tensor, mask: Tensor | None, job_ids: Tensor, jobs: int, area_normalised: bool = True
) -> Tensor:
    """Mean squared error inside the mask, one number per job. [J]

    prediction, target: [B, C, h, w]; mask: [B, 1, h, w] in 0..1 or None for the whole picture.
    Multiplying both sides by the mask before squaring is the paper's form; `area_normalised` divides by the mask's
    area, so that a small object is not a small step (method: our deviation, the raw mean is the switch).
    An empty mask gives 0.
    """
    wide = torch.promote_types(prediction.dtype, torch.float32)
    squared = (prediction.to(wide) - target.to(wide)).square().mean(dim=1, keepdim=True)
    if mask is None:
        rows = squared.mean(dim=(1, 2, 3))
    else:
        mask = mask.to(wide)
        masked = (squared * mask.square()).sum(dim=(1, 2, 3))
        area = mask.sum(dim=(1, 2, 3)) if area_normalised else mask[0].numel()
        rows = masked / (area.clamp_min(1e-12) if area_normalised else area)
    return mean_by_job(rows, job_ids, jobs)
