"""One optimisation step of a pack, and one look (probe) at where each of its jobs stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from mcpl.diffusion import add_noise, target
from mcpl.learning.batch import Rows, pack_rows
from mcpl.learning.settings import AttentionMask, ReleaseMask
from mcpl.models.base import BaseModel
from mcpl.objectives.attention import (
    WordMaps,
    binarise,
    exclusive,
    fit_to,
    refine,
    sharpness,
    word_maps,
)
from mcpl.objectives.objective import StepContext, Term, objective
from mcpl.objectives.release import release_mask
from mcpl.prompts import named
from mcpl.types import Conditioning, Job, Pack, PackedBatch, StepOutput, View


@dataclass(frozen=True)
class RowMasks:
    """What the rows of a step are masked with."""

    loss: Tensor | None
    """[B, 1, h, w] union of the row's objects, or None for the whole picture"""
    objects: Tensor | None
    """[B, P, m, m] each concept's own mask at the maps' size, or None where masks are off"""


def step(
    model: BaseModel,
    batch: PackedBatch,
    learned: Tensor,
    masks: RowMasks,
    terms: Mapping[str, Term],
    jobs: int,
    number: int = 0,
    release: ReleaseMask | None = None,
) -> StepOutput:
    """Noise, predict, objective. `learned` [S, D] carries the gradient; number: of the step, for schedules."""
    maps, area, mask = None, None, masks.loss
    if release or any(term.reads_maps for term in terms.values()):
        with model.record(batch.positions) as recording:
            conditioning, prediction, wanted = _denoise(model, batch, learned)
        concepts = batch.objects.shape[1]
        maps = word_maps(recording.maps(), batch.positions, batch.concept_ids, batch.placeholder, concepts)
    else:
        conditioning, prediction, wanted = _denoise(model, batch, learned)
    if release:
        mask, area = _released_masks(maps, batch, jobs, release)
    context = StepContext(
        prediction=prediction,
        target=wanted,
        mask=mask,
        hidden=conditioning.hidden,
        concept_ids=batch.concept_ids,
        placeholder=batch.placeholder,
        job_ids=batch.job_ids,
        jobs=jobs,
        objects=batch.objects,
        members=batch.members,
        maps=maps,
        object_masks=masks.objects,
    )
    return replace(objective(terms, context, number), mask_area=area)


def _released_masks(maps: WordMaps, batch: PackedBatch, jobs: int, settings: ReleaseMask) -> tuple[Tensor, Tensor]:
    """([B, 1, h, w], [J] areas): the official release's masks, from this step's own maps."""
    per_job = []
    for job in range(jobs):
        rows = batch.job_ids == job
        named_here = maps.has_noun[rows].any(dim=0)  # the pack may hold jobs with more concepts
        nouns = maps.nouns[rows][:, named_here].detach()
        per_job.append(release_mask(nouns, settings.threshold, settings.softmaxes))
    mask = fit_to(torch.stack(per_job), tuple(batch.latents.shape[-2:])).to(batch.latents)
    return mask[batch.job_ids], mask.mean(dim=(1, 2, 3))


def _denoise(model: BaseModel, batch: PackedBatch, learned: Tensor) -> tuple[Conditioning, Tensor, Tensor]:
    """(conditioning, prediction, target) of a batch's rows."""
    conditioning = _encode(model, batch, learned)
    noisy = add_noise(batch.latents, batch.noise, batch.timesteps, model.alphas_cumprod)
    wanted = target(batch.latents, batch.noise, batch.timesteps, model.alphas_cumprod, model.facts.prediction_type)
    return conditioning, model.predict(noisy, batch.timesteps, conditioning), wanted


def _encode(model: BaseModel, batch: PackedBatch, learned: Tensor) -> Conditioning:
    """Every different prompt once, handed to all rows that say it."""
    if len(batch.distinct) == len(batch.token_ids):
        return model.encode_prompts(batch.token_ids, batch.slot_ids, learned)
    once = model.encode_prompts(batch.token_ids[batch.distinct], batch.slot_ids[batch.distinct], learned)
    extra = {name: value[batch.prompt_ids] for name, value in once.extra.items()}
    return Conditioning(once.hidden[batch.prompt_ids], extra)


@dataclass(frozen=True)
class Look:
    """What a probe saw of one job; N pictures, P concepts."""

    fixed_noise_loss: float
    """mean squared error over the whole picture, on noise and time steps that training never uses"""
    maps: Tensor
    """[N, P, m, m] each concept's cross-attention, mean over layers, heads, its vectors and time-step buckets; zeros
    where a picture's sentence does not name it"""
    mask_maps: Tensor
    """[N, P, m, m] the same as masks are cut from: refined and weighted as the recipe asks"""
    prompt_similarity: float
    """largest cosine similarity between two concepts' text-encoder outputs; 0 for one concept"""
    errors: Tensor
    """[N, h, w] the squared errors that make the loss, mean over channels and time steps: its mean is the loss"""


@torch.no_grad()
def probe(
    model: BaseModel,
    jobs: Sequence[Job],
    rows: Sequence[Sequence[Rows]],
    learned: Sequence[Tensor],
    rows_at_once: int,
    settings: AttentionMask | None = None,
) -> list[Look]:
    """Look at every job of a pack on its fixed `probe_rows`; learned[j]: [slots, D] of job j.

    rows_at_once: rows per job and U-Net call; with the training batch's number a look needs no more memory than a
    step. Nothing here depends on which jobs share the pack.
    """
    seen: list[list[_Sight]] = [[] for _ in jobs]
    for look in range(max(map(len, rows))):
        with_it = [j for j, own in enumerate(rows) if look < len(own)]
        sights = _sights(
            model,
            [jobs[j] for j in with_it],
            [jobs[j].looks[look] for j in with_it],
            [rows[j][look] for j in with_it],
            torch.cat([learned[j] for j in with_it]),
            rows_at_once,
            settings,
        )
        for j, sight in zip(with_it, sights, strict=True):
            seen[j].append(sight)
    return [
        Look(
            sum(sight.loss for sight in sights) / len(sights),
            torch.stack([sight.maps for sight in sights]),
            torch.stack([sight.mask_maps for sight in sights]),
            max(sight.similarity for sight in sights),
            torch.stack([sight.errors for sight in sights]),
        )
        for sights in seen
    ]


@dataclass(frozen=True)
class _Sight:
    """A look at one picture of one job."""

    loss: float
    maps: Tensor
    mask_maps: Tensor
    similarity: float
    errors: Tensor


def _sights(model, jobs, views, rows, learned, rows_at_once, settings: AttentionMask | None) -> list[_Sight]:
    """One picture of every job at once."""
    losses, errors, columns, refined, hidden = [], [], [], [], []
    pack, times = Pack(tuple(jobs)), settings.refine if settings else 0
    for start in range(0, len(rows[0].timesteps), rows_at_once):
        batch = pack_rows(pack, [r[start : start + rows_at_once] for r in rows], model)
        positions = _slot_positions(jobs, views).to(batch.job_ids)[batch.job_ids]
        with model.record(positions, affinity=times > 0) as recording:
            conditioning, prediction, wanted = _denoise(model, batch, learned)
        squared = (prediction - wanted).to(torch.promote_types(prediction.dtype, torch.float32)).square()
        losses.append(squared.mean(dim=(1, 2, 3)).unflatten(0, (len(jobs), -1)))
        errors.append(squared.mean(dim=1).unflatten(0, (len(jobs), -1)))
        maps = recording.maps()
        columns.append(maps.unflatten(0, (len(jobs), -1)))
        if times:
            refined.append(refine(maps, recording.affinity(), times).unflatten(0, (len(jobs), -1)))
        hidden.append(conditioning.hidden.unflatten(0, (len(jobs), -1))[:, 0])
    loss = torch.cat(losses, dim=1).mean(dim=1).tolist()  # [J]
    by_time = torch.cat(columns, dim=1)  # [J, t, slots, m, m], padded to the longest job
    maps = by_time.mean(dim=1).cpu()  # from here on job by job, which only the host is quick at
    by_time = (torch.cat(refined, dim=1) if times else by_time).cpu()
    states, by_place = hidden[0].cpu(), torch.cat(errors, dim=1).mean(dim=1).cpu()  # [J, h, w]
    sights = []
    for j, (job, view) in enumerate(zip(jobs, views, strict=True)):
        own = _by_concept(maps[j], job, view)
        looked = settings is not None and (times > 0 or settings.sharp)
        mask_maps = _over_time(by_time[j], job, view, settings.sharp) if looked else own
        sights.append(_Sight(loss[j], own, mask_maps, _largest_similarity(states[j], view), by_place[j]))
    return sights


def _by_concept(maps: Tensor, job: Job, view: View) -> Tensor:
    """Slot maps [..., slots, m, m] as concept maps [..., P, m, m]: mean over vectors, zeros for what is not named."""
    own = maps[..., : len(job.initial), :, :].unflatten(-3, (len(job.concepts), -1)).mean(dim=-3)
    absent = [c for c in range(len(job.concepts)) if c not in named(view.sentence)]
    if absent:
        own[..., absent, :, :] = 0
    return own


def _over_time(by_time: Tensor, job: Job, view: View, sharp: bool) -> Tensor:
    """Mean over time steps [t, slots, m, m] -> [P, m, m]; `sharp`: by peak over mean rather than equally."""
    own = _by_concept(by_time, job, view)
    if not sharp:
        return own.mean(dim=0)
    weight = sharpness(own)
    weight = weight / weight.sum(dim=0).clamp_min(1e-12)
    return (own * weight[..., None, None]).sum(dim=0)


def cut_masks(maps: Tensor, job: Job, settings: AttentionMask) -> Tensor:
    """Each concept's mask from its map of each picture: [N, P, m, m] of 0/1."""
    masks = torch.stack([binarise(own, settings.threshold) for own in maps])
    for n, look in enumerate(job.looks):
        absent = [c for c in range(len(job.concepts)) if c not in named(look.sentence)]
        if absent:
            masks[n, absent] = 0
        if settings.exclusive:
            objects = list(look.objects)
            masks[n, objects] = exclusive(maps[n, objects], masks[n, objects])
    return masks


def to_latents(masks: Tensor, job: Job) -> Tensor:
    """Masks [N, P, m, m] at the latents' resolution, [N, P, h, w]."""
    return torch.stack([fit_to(own, tuple(job.latents.shape[-2:]))[:, 0] for own in masks]).to(job.latents.dtype)


def row_mask(masks: Tensor, view: View) -> Tensor:
    """Union of the view's objects, mirrored where its picture is: [N, P, h, w] -> [1, h, w].

    Only objects count; where a sentence learns none (MCPL-all on relation words alone), every word does.
    """
    united = torch.stack([masks[view.look, concept] for concept in view.objects]).amax(dim=0, keepdim=True)
    return united.flip(-1) if view.mirrored else united


def object_masks(masks: Tensor, view: View, concepts: int) -> Tensor:
    """Each concept's mask for one row, padded to `concepts`: [N, P, m, m] -> [concepts, m, m]."""
    own = masks[view.look].flip(-1) if view.mirrored else masks[view.look]
    return torch.cat([own, own.new_zeros(concepts - len(own), *own.shape[1:])])


def _slot_positions(jobs: Sequence[Job], views: Sequence[View]) -> Tensor:
    """Where each job's slots stand in a bare sentence, first occurrence. [J, most slots], 0 for what is not there."""
    positions = torch.zeros(len(jobs), max(len(job.initial) for job in jobs), dtype=torch.long)
    for j, (job, view) in enumerate(zip(jobs, views, strict=True)):
        bare = view.prompt.slot_ids[0]
        for slot in range(len(job.initial)):
            if len(found := (bare == slot).nonzero()):
                positions[j, slot] = found[0, 0]
    return positions


def _largest_similarity(hidden: Tensor, view: View) -> float:
    """Largest cosine between the mean outputs of two concepts' placeholders; hidden: [L, D'] of the bare sentence."""
    concept_ids, placed, present = view.prompt.concept_ids[0], view.prompt.placeholder[0], named(view.sentence)
    if len(present) < 2:
        return 0.0
    means = torch.stack([hidden[placed & (concept_ids == c)].mean(dim=0) for c in present])
    cosine = F.normalize(means.to(torch.promote_types(means.dtype, torch.float32)), dim=-1)
    same = torch.eye(len(present), dtype=torch.bool)
    return float((cosine @ cosine.T).masked_fill(same, -1).max())
