"""From a sentence and a picture to a Job, and from a Pack to the rows of a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mcpl.diffusion import bucket_centres, stratified_timesteps
from mcpl.errors import ExampleError
from mcpl.learning.settings import LearningSettings
from mcpl.models.base import BaseModel, mean_embedding
from mcpl.packing import join_slots
from mcpl.prompts import TEMPLATES, tokenize
from mcpl.seeds import derive_seed
from mcpl.types import Concept, Job, Pack, PackedBatch, Sentence


def initializer_words(concept: Concept, model: BaseModel, settings: LearningSettings) -> tuple[str, ...]:
    """The ordinary words that a concept starts from: its own mark, else what the settings say."""
    if concept.initializer:
        return (concept.initializer,)
    if settings.initializer == "neutral":
        return model.facts.neutral_words
    if settings.initializer == "noun":
        return (concept.slug,) if model.knows(concept.slug) else model.facts.neutral_words
    return (settings.initializer,)


def initial_rows(concept: Concept, model: BaseModel, settings: LearningSettings) -> Tensor:
    """Learned rows of one concept at step 0. [vectors_per_word, D]

    One word with exactly as many pieces as vectors gives piece by piece; else every vector is the mean.
    """
    words = initializer_words(concept, model, settings)
    n = settings.vectors_per_word
    if len(words) == 1 and len(pieces := model.word_embeddings(words[0])) == n:
        return pieces
    return mean_embedding(model, words).expand(n, -1).clone()


def make_job(model: BaseModel, id: str, sentence: Sentence, pixels: Tensor, settings: LearningSettings) -> Job:
    """Tokenise, encode and seed one picture's job.

    pixels: [3, H, W] in -1..1 at the base's resolution. Raises ExampleError where the sentence does not fit.
    """
    if not sentence.concepts:
        raise ExampleError(f"nothing to learn in {sentence.text!r}")
    stand_ins = {
        c.slug: model.vocabulary.pieces(initializer_words(c, model, settings)[0])[0] for c in sentence.concepts
    }
    templates = TEMPLATES if settings.templates == "captions" else TEMPLATES[:1]
    prompt = tokenize(sentence, model.vocabulary, settings.vectors_per_word, stand_ins, templates)
    initial = torch.cat([initial_rows(c, model, settings) for c in sentence.concepts])
    latents = model.encode_pictures(pixels[None])[0]
    return Job(id, sentence, prompt, latents, initial, derive_seed(settings.seed, id))


@dataclass(frozen=True)
class Rows:
    """What chance decides about some rows of one job; b rows."""

    templates: Tensor
    """[b] int64 index into the job's prompt"""
    timesteps: Tensor
    """[b] int64"""
    noise: Tensor
    """[b, C, h, w] float32"""

    def __getitem__(self, part: slice) -> Rows:
        return Rows(self.templates[part], self.timesteps[part], self.noise[part])


def draw_rows(job: Job, generator: torch.Generator, settings: LearningSettings, total_timesteps: int) -> Rows:
    """The rows of one training step, from the job's own generator in a fixed order: neighbours change nothing.

    Templates are drawn without repetition while they last: two equal prompts would be trivial positives.
    """
    b, templates = settings.batch, len(job.prompt.token_ids)
    order = torch.cat([torch.randperm(templates, generator=generator) for _ in range(-(-b // templates))])[:b]
    uniform = torch.rand(b, generator=generator, dtype=torch.float64)
    if settings.stratified_timesteps:
        timesteps = stratified_timesteps(uniform, total_timesteps)
    else:
        timesteps = (uniform * total_timesteps).long()
    return Rows(order, timesteps, torch.randn((b, *job.latents.shape), generator=generator))


def probe_rows(job: Job, settings: LearningSettings, total_timesteps: int) -> Rows:
    """The job's fixed, never trained-on rows: the bare sentence, bucket centres, one fixed noise each."""
    generator = torch.Generator().manual_seed(derive_seed(job.seed, "probe"))
    n = settings.probe_timesteps
    noise = torch.randn((n, *job.latents.shape), generator=generator)
    return Rows(torch.zeros(n, dtype=torch.long), bucket_centres(n, total_timesteps), noise)


def pack_rows(pack: Pack, rows: Sequence[Rows], model: BaseModel) -> PackedBatch:
    """Join every job's rows into one U-Net batch; rows of a job are neighbours."""
    device, pairs = model.device, list(zip(pack.jobs, rows, strict=True))
    return PackedBatch(
        latents=torch.cat([job.latents.expand(len(r.timesteps), -1, -1, -1) for job, r in pairs]),
        noise=torch.cat([r.noise for _, r in pairs]).to(device, model.dtype),
        timesteps=torch.cat([r.timesteps for _, r in pairs]).to(device),
        token_ids=torch.cat([job.prompt.token_ids[r.templates] for job, r in pairs]).to(device),
        slot_ids=join_slots(
            [job.prompt.slot_ids[r.templates] for job, r in pairs], [len(job.initial) for job, _ in pairs]
        ).to(device),
        concept_ids=torch.cat([job.prompt.concept_ids[r.templates] for job, r in pairs]).to(device),
        placeholder=torch.cat([job.prompt.placeholder[r.templates] for job, r in pairs]).to(device),
        job_ids=torch.arange(len(pairs), device=device).repeat_interleave(len(rows[0].timesteps)),
    )
