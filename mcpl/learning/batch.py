"""From sentences and pictures to a Job, and from a Pack to the rows of a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from math import comb

import torch
from torch import Tensor
from torch.nn import functional as F

from mcpl.diffusion import bucket_centres, stratified_timesteps
from mcpl.errors import ExampleError
from mcpl.learning.settings import CUT_OUT, LearningSettings
from mcpl.models.base import BaseModel, mean_embedding
from mcpl.objectives.attention import covered, member_positions
from mcpl.packing import join_slots
from mcpl.prompts import TEMPLATES, about, fitting, named, share_concepts, tokenize
from mcpl.seeds import derive_seed
from mcpl.types import Concept, Job, Pack, PackedBatch, Sentence, View

SIDES = frozenset({"left", "right"})
"""Words that a mirrored picture makes untrue."""
MAX_UNITED = 6
"""Objects up to which union sampling is offered: 63 sentences."""


def initializer_words(concept: Concept, model: BaseModel, settings: LearningSettings) -> tuple[str, ...]:
    """The ordinary words that a concept starts from: its own mark, else what the settings say."""
    if concept.initializer:
        return (concept.initializer,)
    if settings.initializer == "neutral":
        return model.facts.neutral_words
    if settings.initializer == "noun":
        return (concept.slug,) if model.knows(concept.slug) else model.facts.neutral_words
    if settings.initializer == "adjective":
        return tuple(filter(model.knows, concept.adjectives)) or model.facts.neutral_words
    return tuple(word.strip() for word in settings.initializer.split(",") if word.strip())


def initial_rows(concept: Concept, model: BaseModel, settings: LearningSettings) -> Tensor:
    """Learned rows of one concept at step 0. [vectors_per_word, D]

    One word with exactly as many pieces as vectors gives piece by piece; else every vector is the mean, as short as a
    mean of unlike words is, or brought to the mean length of their pieces.
    """
    words = initializer_words(concept, model, settings)
    n = settings.vectors_per_word
    if len(words) == 1 and len(pieces := model.word_embeddings(words[0])) == n:
        return pieces
    rows = mean_embedding(model, words).expand(n, -1).clone()
    if settings.initializer_length == "mean":
        return rows
    length = torch.cat([model.word_embeddings(word) for word in words]).norm(dim=-1).mean()
    return F.normalize(rows, dim=-1) * length


def make_job(
    model: BaseModel,
    id: str,
    sentence: Sentence,
    pixels: Tensor,
    settings: LearningSettings,
    masks: Mapping[str, Tensor] | None = None,
) -> Job:
    """Tokenise, encode and seed one picture's job.

    pixels: [3, H, W] in -1..1 at the base's resolution; masks: slug -> [H, W] 0/1, for recipes that `needs_masks`.
    Raises ExampleError where the sentence does not fit, or a mask is missing.
    """
    return make_shared_job(model, id, [sentence], pixels[None], settings, [masks or {}])


def templates_of(sentences: Sequence[Sentence], model: BaseModel, settings: LearningSettings) -> tuple[str, ...]:
    """What the sentences of a job are wrapped in: the settings' templates that all of them fit."""
    chosen = TEMPLATES if settings.templates == "captions" else TEMPLATES[:1]
    return fitting(sentences, model.vocabulary, settings.vectors_per_word, chosen)


def make_shared_job(
    model: BaseModel,
    id: str,
    sentences: Sequence[Sentence],
    pixels: Tensor,
    settings: LearningSettings,
    masks: Sequence[Mapping[str, Tensor]] = (),
) -> Job:
    """One job of N pictures [N, 3, H, W] with a sentence each; equal slugs are one word (MCPL-diverse)."""
    sentences = share_concepts(sentences)
    concepts = sentences[0].concepts
    if not concepts:
        raise ExampleError(f"nothing to learn in {sentences[0].text!r}")
    seed = derive_seed(settings.seed, id)
    stand_ins = {c.slug: model.vocabulary.pieces(initializer_words(c, model, settings)[0])[0] for c in concepts}
    templates = templates_of(sentences, model, settings)

    def view(sentence: Sentence, look: int, picture: int | None = None) -> View:
        prompt = tokenize(sentence, model.vocabulary, settings.vectors_per_word, stand_ins, templates)
        present = named(sentence)
        objects = tuple(c for c in present if concepts[c].is_object) or present
        return View(sentence, prompt, look if picture is None else picture, look, objects)

    looks = [view(sentence, look) for look, sentence in enumerate(sentences)]
    given = None  # [looks, P, H, W]
    if settings.needs_masks:
        given = torch.stack(
            [_given_masks(look, own) for look, own in zip(looks, masks or [{}] * len(looks), strict=True)]
        )
    pictures, views = _trained_on(looks, list(pixels), given, settings, view)
    return Job(
        id=id,
        latents=torch.stack([model.encode_pictures(picture[None])[0] for picture in pictures]),
        looks=tuple(looks),
        views=tuple(views),
        initial=_initial(concepts, model, settings, seed),
        seed=seed,
        masks=None if given is None else covered(given, model.facts.latent_shape[-2:]),
    )


MakeView = Callable[..., View]
"""(sentence, look, picture = the look's) -> View"""


def _trained_on(
    looks: Sequence[View], pictures: list[Tensor], given: Tensor | None, settings: LearningSettings, view: MakeView
) -> tuple[list[Tensor], list[View]]:
    """All pictures of a job, the given ones first, and the views that training rows are drawn from."""
    views = list(looks)
    if settings.sentences == "one-word":
        views = [view(about(v.sentence, [c], False), v.look) for v in looks for c in named(v.sentence)]
    elif settings.sentences in CUT_OUT:
        views, ground = [], CUT_OUT[settings.sentences]
        for v in looks:
            for c in v.objects:
                views.append(view(about(v.sentence, [c], False), v.look, len(pictures)))
                mask = given[v.look, c].to(pictures[0])
                pictures.append(pictures[v.picture] * mask + ground * (1 - mask))
    elif settings.union_sampling:
        views = [one for v in looks for one in _united(v, settings.union_sampling, view)]
    if settings.flips == "always" or (settings.flips == "safe" and not any(_says_side(v.sentence) for v in looks)):
        views += [replace(v, picture=v.picture + len(pictures), mirrored=True) for v in views]
        pictures = pictures + [picture.flip(-1) for picture in pictures]
    return pictures, views


def _initial(concepts: Sequence[Concept], model: BaseModel, settings: LearningSettings, seed: int) -> Tensor:
    """[slots, D] rows of all concepts at step 0."""
    rows = [initial_rows(concept, model, settings) for concept in concepts]
    if settings.initialize == "first":
        generator = torch.Generator().manual_seed(derive_seed(seed, "random rows"))
        rows[1:] = [torch.rand(row.shape, generator=generator).to(row) for row in rows[1:]]
    return torch.cat(rows)


def _given_masks(look: View, masks: Mapping[str, Tensor]) -> Tensor:
    """Masks of one picture, zeros for what it does not show. [P, H, W] float"""
    concepts = look.sentence.concepts
    if missing := [concepts[c].slug for c in look.objects if concepts[c].slug not in masks]:
        raise ExampleError(f"this recipe learns from given masks, and there is none of <{missing[0]}>")
    side = next(iter(masks.values())).shape
    shown = {c: masks[concepts[c].slug].float() for c in look.objects}
    return torch.stack([shown.get(c, torch.zeros(side)) for c in range(len(concepts))])


def _united(look: View, least: int, view: MakeView) -> list[View]:
    """The look, and one view for every other set of its objects: every number of objects equally often."""
    n = len(look.objects)
    if n < least or n > MAX_UNITED:
        return [look]
    some = [
        replace(view(about(look.sentence, chosen), look.look), share=1 / comb(n, k))
        for k in range(1, n)
        for chosen in combinations(look.objects, k)
    ]
    return [look, *some]


def _says_side(sentence: Sentence) -> bool:
    return any(word.text.lower().strip("<>") in SIDES for word in sentence.words)


@dataclass(frozen=True)
class Rows:
    """What chance decides about some rows of one job; b rows."""

    views: tuple[View, ...]
    """what each row shows and says"""
    templates: Tensor
    """[b] int64 index into the view's prompt"""
    timesteps: Tensor
    """[b] int64"""
    noise: Tensor
    """[b, C, h, w] float32"""

    def __getitem__(self, part: slice) -> Rows:
        return Rows(self.views[part], self.templates[part], self.timesteps[part], self.noise[part])


def draw_rows(job: Job, generator: torch.Generator, settings: LearningSettings, total_timesteps: int) -> Rows:
    """The rows of one training step, from the job's own generator in a fixed order: neighbours change nothing.

    Templates are drawn without repetition while they last: two equal prompts would be trivial positives.
    """
    b, templates = settings.batch, len(job.looks[0].prompt.token_ids)
    views = _draw_views(job, generator, b)
    order = _permuted(templates, b, generator)
    uniform = torch.rand(b, generator=generator, dtype=torch.float64)
    if settings.stratified_timesteps:
        timesteps = stratified_timesteps(uniform, total_timesteps)
    else:
        timesteps = (uniform * total_timesteps).long()
    return Rows(views, order, timesteps, torch.randn((b, *job.latents.shape[1:]), generator=generator))


def _draw_views(job: Job, generator: torch.Generator, b: int) -> tuple[View, ...]:
    """Views of b rows: without repetition while they last, or by their shares where these differ."""
    if len(job.views) == 1:
        return job.views * b
    shares = torch.tensor([view.share for view in job.views], dtype=torch.float64)
    if (shares == shares[0]).all():
        chosen = _permuted(len(job.views), b, generator)
    else:
        chosen = torch.multinomial(shares, b, replacement=True, generator=generator)
    return tuple(job.views[i] for i in chosen.tolist())


def _permuted(n: int, b: int, generator: torch.Generator) -> Tensor:
    """b of n indices, each at most once more than any other. [b]"""
    return torch.cat([torch.randperm(n, generator=generator) for _ in range(-(-b // n))])[:b]


def probe_rows(job: Job, settings: LearningSettings, total_timesteps: int) -> tuple[Rows, ...]:
    """Each look's fixed, never trained-on rows: the bare sentence, bucket centres, one fixed noise each."""
    generator = torch.Generator().manual_seed(derive_seed(job.seed, "probe"))
    n, shape = settings.probe_timesteps, job.latents.shape[1:]
    return tuple(
        Rows(
            (look,) * n,
            torch.zeros(n, dtype=torch.long),
            bucket_centres(n, total_timesteps),
            torch.randn((n, *shape), generator=generator),
        )
        for look in job.looks
    )


def pack_rows(pack: Pack, rows: Sequence[Rows], model: BaseModel) -> PackedBatch:
    """Join every job's rows into one U-Net batch; rows of a job are neighbours."""
    pairs, most = list(zip(pack.jobs, rows, strict=True)), range(max(len(job.concepts) for job in pack.jobs))

    def prompts(which: str) -> list[Tensor]:
        return [_prompts(r, which) for r in rows]

    objects = torch.tensor([[c in view.objects for c in most] for r in rows for view in r.views])
    concept_ids = torch.cat(prompts("concept_ids"))
    distinct, prompt_ids = _said(rows)
    there = partial(sent, device=model.device)
    return PackedBatch(
        latents=torch.cat([_shown(job, r) for job, r in pairs]),
        noise=there(torch.cat([r.noise for _, r in pairs]).to(model.dtype)),
        timesteps=there(torch.cat([r.timesteps for _, r in pairs])),
        token_ids=there(torch.cat(prompts("token_ids"))),
        slot_ids=there(join_slots(prompts("slot_ids"), [len(job.initial) for job in pack.jobs])),
        concept_ids=there(concept_ids),
        placeholder=there(torch.cat(prompts("placeholder"))),
        job_ids=there(torch.arange(len(pairs)).repeat_interleave(len(rows[0].timesteps))),
        objects=there(objects),
        members=there((concept_ids >= 0).nonzero().T.contiguous()),
        positions=there(member_positions(concept_ids)),
        distinct=there(distinct),
        prompt_ids=there(prompt_ids),
    )


def _prompts(rows: Rows, which: str) -> Tensor:
    """One field of the rows' prompts. [b, L]"""
    if len({id(view) for view in rows.views}) == 1:
        return getattr(rows.views[0].prompt, which)[rows.templates]
    return torch.stack(
        [getattr(view.prompt, which)[t] for view, t in zip(rows.views, rows.templates.tolist(), strict=True)]
    )


def _shown(job: Job, rows: Rows) -> Tensor:
    """The latents of the rows' pictures. [b, C, h, w]"""
    if len(job.latents) == 1:
        return job.latents.expand(len(rows.views), -1, -1, -1)
    return torch.stack([job.latents[view.picture] for view in rows.views])


def _said(rows: Sequence[Rows]) -> tuple[Tensor, Tensor]:
    """The first row of every different prompt [U], and which of these each row says [B]."""
    said: dict[tuple[int, int, int], int] = {}
    keys = [
        (job, id(view.prompt), template)
        for job, own in enumerate(rows)
        for view, template in zip(own.views, own.templates.tolist(), strict=True)
    ]
    prompt_ids = [said.setdefault(key, len(said)) for key in keys]
    first = {key: row for row, key in reversed(list(enumerate(keys)))}
    return torch.tensor([first[key] for key in said]), torch.tensor(prompt_ids)


def sent(values: Tensor, device: torch.device) -> Tensor:
    """On the device; nobody waits for a copy to a GPU."""
    pinned = device.type == "cuda" and values.device.type == "cpu"
    return values.pin_memory().to(device, non_blocking=True) if pinned else values.to(device)
