"""One optimisation step of a pack, and one look (probe) at where each of its jobs stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mcpl.diffusion import add_noise, target
from mcpl.learning.batch import Rows, pack_rows
from mcpl.models.base import BaseModel
from mcpl.objectives.attention import binarise, fit_to, union
from mcpl.objectives.objective import StepContext, Term, objective
from mcpl.types import Conditioning, Job, Pack, PackedBatch, StepOutput


def step(
    model: BaseModel, batch: PackedBatch, learned: Tensor, mask: Tensor | None, terms: Mapping[str, Term], jobs: int
) -> StepOutput:
    """Noise, predict, objective. `learned` [S, D] carries the gradient; mask: [B, 1, h, w] or None."""
    conditioning, prediction, wanted = _denoise(model, batch, learned)
    context = StepContext(
        prediction=prediction,
        target=wanted,
        mask=mask,
        hidden=conditioning.hidden,
        concept_ids=batch.concept_ids,
        placeholder=batch.placeholder,
        job_ids=batch.job_ids,
        jobs=jobs,
    )
    return objective(terms, context)


def _denoise(model: BaseModel, batch: PackedBatch, learned: Tensor) -> tuple[Conditioning, Tensor, Tensor]:
    """(conditioning, prediction, target) of a batch's rows."""
    conditioning = model.encode_prompts(batch.token_ids, batch.slot_ids, learned)
    noisy = add_noise(batch.latents, batch.noise, batch.timesteps, model.alphas_cumprod)
    wanted = target(batch.latents, batch.noise, batch.timesteps, model.alphas_cumprod, model.facts.prediction_type)
    return conditioning, model.predict(noisy, batch.timesteps, conditioning), wanted


@dataclass(frozen=True)
class Look:
    """What a probe saw of one job."""

    fixed_noise_loss: float
    """mean squared error over the whole picture, on noise and time steps that training never uses"""
    maps: Tensor
    """[P, m, m] each concept's cross-attention, mean over layers, heads, its vectors and time-step buckets"""
    prompt_similarity: float
    """largest cosine similarity between two concepts' text-encoder outputs; 0 for one concept"""


@torch.no_grad()
def probe(model: BaseModel, pack: Pack, rows: Sequence[Rows], learned: Tensor, rows_at_once: int) -> list[Look]:
    """Look at every job of a pack on its fixed `probe_rows`.

    rows_at_once: rows per job and U-Net call; with the training batch's number a look needs no more memory than a
    step. Nothing here depends on which jobs share the pack.
    """
    errors, columns, hidden = [], [], []
    for start in range(0, len(rows[0].timesteps), rows_at_once):
        batch = pack_rows(pack, [r[start : start + rows_at_once] for r in rows], model)
        positions = _slot_positions(pack).to(batch.job_ids)[batch.job_ids]
        with model.record(positions) as recording:
            conditioning, prediction, wanted = _denoise(model, batch, learned)
        squared = (prediction - wanted).to(torch.promote_types(prediction.dtype, torch.float32)).square()
        errors.append(squared.mean(dim=(1, 2, 3)).unflatten(0, (len(pack.jobs), -1)))
        columns.append(recording.maps().unflatten(0, (len(pack.jobs), -1)))
        hidden.append(conditioning.hidden.unflatten(0, (len(pack.jobs), -1))[:, 0])
    loss = torch.cat(errors, dim=1).mean(dim=1)  # [J]
    maps = torch.cat(columns, dim=1).mean(dim=1)  # [J, slots, m, m], padded to the longest job
    return [
        Look(
            float(loss[j]),
            maps[j, : len(job.initial)].unflatten(0, (len(job.sentence.concepts), -1)).mean(dim=1),
            _largest_similarity(hidden[0][j], job),
        )
        for j, job in enumerate(pack.jobs)
    ]


def attention_mask(look: Look, job: Job, threshold: float) -> Tensor:
    """AttnMask of one job at the latents' resolution, [1, h, w] of 0/1: union of per-concept masks.

    Only objects count; where a sentence learns none (MCPL-all on relation words alone), every word does.
    """
    concepts = job.sentence.concepts
    objects = [i for i, concept in enumerate(concepts) if concept.is_object] or list(range(len(concepts)))
    mask = union(binarise(look.maps[objects], threshold))
    return fit_to(mask[None], tuple(job.latents.shape[-2:]))[0].to(job.latents)


def _slot_positions(pack: Pack) -> Tensor:
    """Where each job's slots stand in its bare sentence, first occurrence. [J, most slots], padded with 0."""
    positions = torch.zeros(len(pack.jobs), max(len(job.initial) for job in pack.jobs), dtype=torch.long)
    for j, job in enumerate(pack.jobs):
        bare = job.prompt.slot_ids[0]
        for slot in range(len(job.initial)):
            positions[j, slot] = (bare == slot).nonzero()[0, 0]
    return positions


def _largest_similarity(hidden: Tensor, job: Job) -> float:
    """Largest cosine between the mean outputs of two concepts' placeholders; hidden: [L, D'] of the bare sentence."""
    concept_ids, placed = job.prompt.concept_ids[0], job.prompt.placeholder[0]
    count = len(job.sentence.concepts)
    if count < 2:
        return 0.0
    means = torch.stack([hidden[(placed & (concept_ids == c)).to(hidden.device)].mean(dim=0) for c in range(count)])
    cosine = F.normalize(means.to(torch.promote_types(means.dtype, torch.float32)), dim=-1)
    return float((cosine @ cosine.T).masked_fill(torch.eye(count, dtype=torch.bool, device=hidden.device), -1).max())
