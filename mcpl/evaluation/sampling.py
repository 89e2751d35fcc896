"""Pictures from learned words: each alone, and all together in their sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mcpl.errors import ConfigError
from mcpl.models.base import BaseModel
from mcpl.packing import chunks, join_slots
from mcpl.prompts import parse, tokenize, word_positions
from mcpl.settings import Settings
from mcpl.types import Concept, Conditioning, Sentence


class Sampling(Settings):
    """How pictures are drawn: DDIM steps and classifier-free guidance."""

    steps: int = 20
    guidance: float = 3.0


DRAWN = 8
"""pictures of a sentence drawn at once: bounds the memory"""
CELLS = 2**16
"""latent cells of several sentences' pictures drawn at once, on a device that smaller batches leave idle: 256 pictures
of 16x16, 16 of 64x64"""

ALONE = "a <{slug}>"
"""The sentence in which a word stands alone."""


def alone(concept: Concept) -> Sentence:
    """The sentence that asks for one word and nothing else."""
    return parse(ALONE.format(slug=concept.slug))


@torch.no_grad()
def generate(
    model: BaseModel,
    sentence: Sentence,
    vectors: Mapping[str, Tensor],
    n: int,
    seed: int,
    sampling: Sampling = Sampling(),
) -> Tensor:
    """n pictures [n, H, W, 3] uint8 of a sentence whose placeholders are learned words.

    vectors: slug -> [k, D], k may differ from word to word; noise comes from `seed` alone, so two words are compared
    on the same noise. Raises ConfigError for a word that is not among them, or was learned for another base.
    """
    noise = _noise(model, n, seed)
    given, nothing = condition(model, sentence, vectors), model.unconditional()
    drawn = [
        model.decode_latents(model.sample(some, repeated(given, len(some)), nothing, sampling.steps, sampling.guidance))
        for some in noise.split(DRAWN)
    ]
    return torch.cat(drawn)


@dataclass(frozen=True)
class Wish:
    """A sentence to be drawn."""

    sentence: Sentence
    vectors: Mapping[str, Tensor]
    """slug -> [k, D]"""
    seed: int


def generate_all(model: BaseModel, wishes: Sequence[Wish], n: int, sampling: Sampling = Sampling()) -> list[Tensor]:
    """`generate` for every wish, n pictures [n, H, W, 3] each.

    An accelerator draws them together. A CPU gains nothing by that, and draws each by itself: its last bits then do not
    depend on what else is drawn.
    """
    _, height, width = model.facts.latent_shape
    at_once = max(DRAWN, CELLS // (height * width))
    if model.device.type == "cpu" or n > at_once:
        return _one_by_one(model, wishes, n, sampling)
    drawn: list[Tensor] = []
    for some in chunks(wishes, at_once // n):
        try:
            drawn += drawn_together(model, some, n, sampling)
        except torch.OutOfMemoryError:  # what could be learned can be drawn, if not together
            drawn += _one_by_one(model, some, n, sampling)
    return drawn


def _one_by_one(model: BaseModel, wishes: Sequence[Wish], n: int, sampling: Sampling) -> list[Tensor]:
    return [generate(model, wish.sentence, wish.vectors, n, wish.seed, sampling) for wish in wishes]


@torch.no_grad()
def drawn_together(model: BaseModel, wishes: Sequence[Wish], n: int, sampling: Sampling) -> tuple[Tensor, ...]:
    """`generate` for every wish, in one batch."""
    noise = torch.cat([_noise(model, n, wish.seed) for wish in wishes])
    given = repeated(conditions(model, [(wish.sentence, wish.vectors) for wish in wishes]), n)
    latents = model.sample(noise, given, model.unconditional(), sampling.steps, sampling.guidance)
    return torch.cat([model.decode_latents(some) for some in latents.split(DRAWN)]).split(n)  # decoding needs most


def _noise(model: BaseModel, n: int, seed: int) -> Tensor:
    return torch.randn((n, *model.facts.latent_shape), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def condition(model: BaseModel, sentence: Sentence, vectors: Mapping[str, Tensor]) -> Conditioning:
    """What a sentence says, its placeholders' vectors [k, D] in their places. [1, L, D']

    Raises ConfigError for a word that is not among them, or was learned for another base.
    """
    return conditions(model, [(sentence, vectors)])


@torch.no_grad()
def conditions(model: BaseModel, asked: Sequence[tuple[Sentence, Mapping[str, Tensor]]]) -> Conditioning:
    """`condition` of several sentences, in one batch. [S, L, D']"""
    own = [[_vectors_of(c.slug, vectors, model) for c in sentence.concepts] for sentence, vectors in asked]
    prompts = [
        tokenize(sentence, model.vocabulary, [len(rows) for rows in words], templates=("{}",))
        for (sentence, _), words in zip(asked, own, strict=True)
    ]
    slots = join_slots([prompt.slot_ids for prompt in prompts], [sum(map(len, words)) for words in own])
    there = model.device
    learned = [rows.to(there) for words in own for rows in words] or [torch.empty(0, model.facts.width, device=there)]
    token_ids = torch.cat([prompt.token_ids for prompt in prompts])
    return model.encode_prompts(token_ids.to(there), slots.to(there), torch.cat(learned))


@torch.no_grad()
def spoken(model: BaseModel, concept: Concept, vectors: Mapping[str, Tensor]) -> Tensor:
    """What the text encoder makes of a word by itself, in `ALONE`: the mean over its vectors' places of the last layer,
    which is what the U-Net attends to. [D'] float32"""
    sentence = alone(concept)
    hidden = condition(model, sentence, vectors).hidden[0]
    (at,) = (
        places
        for word, places in zip(
            sentence.words, word_positions(sentence, model.vocabulary, len(vectors[concept.slug])), strict=True
        )
        if word.role == "placeholder"
    )
    return hidden[list(at)].mean(dim=0).float().cpu()


def repeated(conditioning: Conditioning, n: int) -> Conditioning:
    """Each for n pictures, one after the other: [S, ...] -> [S n, ...]."""
    extra = {name: value.repeat_interleave(n, dim=0) for name, value in conditioning.extra.items()}
    return Conditioning(conditioning.hidden.repeat_interleave(n, dim=0), extra)


def _vectors_of(slug: str, vectors: Mapping[str, Tensor], model: BaseModel) -> Tensor:
    if slug not in vectors:
        raise ConfigError(f"no vectors are given for <{slug}>; there are {', '.join(sorted(vectors)) or 'none'}")
    if vectors[slug].shape[-1] != model.facts.width:
        raise ConfigError(
            f"<{slug}> is {vectors[slug].shape[-1]} wide, base {model.facts.name} has words {model.facts.width} wide: "
            "use the base that it was learned with"
        )
    return vectors[slug]
