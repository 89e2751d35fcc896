"""Pictures from learned words: each alone, and all together in their sentence."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mcpl.errors import ConfigError
from mcpl.models.base import BaseModel
from mcpl.prompts import parse, tokenize, word_positions
from mcpl.settings import Settings
from mcpl.types import Concept, Conditioning, Sentence


class Sampling(Settings):
    """How pictures are drawn: DDIM steps and classifier-free guidance."""

    steps: int = 20
    guidance: float = 3.0


DRAWN = 8
"""pictures drawn at once: bounds the memory"""

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
    noise = torch.randn((n, *model.facts.latent_shape), generator=torch.Generator().manual_seed(seed))
    given, nothing = condition(model, sentence, vectors), model.unconditional()
    drawn = [
        model.decode_latents(model.sample(some, repeated(given, len(some)), nothing, sampling.steps, sampling.guidance))
        for some in noise.split(DRAWN)
    ]
    return torch.cat(drawn)


@torch.no_grad()
def condition(model: BaseModel, sentence: Sentence, vectors: Mapping[str, Tensor]) -> Conditioning:
    """What a sentence says, its placeholders' vectors [k, D] in their places. [1, L, D']

    Raises ConfigError for a word that is not among them, or was learned for another base.
    """
    own = [_vectors_of(concept.slug, vectors, model).to(model.device) for concept in sentence.concepts]
    learned = torch.cat(own) if own else torch.empty(0, model.facts.width, device=model.device)
    prompt = tokenize(sentence, model.vocabulary, [len(rows) for rows in own], templates=("{}",))
    return model.encode_prompts(prompt.token_ids.to(model.device), prompt.slot_ids.to(model.device), learned)


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
    """The same for n pictures: [1, ...] -> [n, ...]."""
    extra = {name: value.expand(n, *value.shape[1:]) for name, value in conditioning.extra.items()}
    return Conditioning(conditioning.hidden.expand(n, -1, -1), extra)


def _vectors_of(slug: str, vectors: Mapping[str, Tensor], model: BaseModel) -> Tensor:
    if slug not in vectors:
        raise ConfigError(f"no vectors are given for <{slug}>; there are {', '.join(sorted(vectors)) or 'none'}")
    if vectors[slug].shape[-1] != model.facts.width:
        raise ConfigError(
            f"<{slug}> is {vectors[slug].shape[-1]} wide, base {model.facts.name} has words {model.facts.width} wide: "
            "use the base that it was learned with"
        )
    return vectors[slug]
