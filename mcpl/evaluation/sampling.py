"""Pictures from learned words: each alone, and all together in their sentence."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mcpl.models.base import BaseModel
from mcpl.prompts import parse, tokenize
from mcpl.settings import Settings
from mcpl.types import Concept, Conditioning, Sentence


class Sampling(Settings):
    """How pictures are drawn: DDIM steps and classifier-free guidance."""

    steps: int = 20
    guidance: float = 3.0


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

    vectors: slug -> [k, D], the same k for every word of the sentence; noise comes from `seed` alone, so two words
    are compared on the same noise.
    """
    noise = torch.randn((n, *model.facts.latent_shape), generator=torch.Generator().manual_seed(seed))
    own = [vectors[concept.slug].to(model.device) for concept in sentence.concepts]
    learned = torch.cat(own) if own else torch.empty(0, model.facts.width, device=model.device)
    per_word = len(own[0]) if own else 1
    prompt = tokenize(sentence, model.vocabulary, per_word, templates=("{}",))
    conditioning = model.encode_prompts(prompt.token_ids.to(model.device), prompt.slot_ids.to(model.device), learned)
    rows = Conditioning(conditioning.hidden.expand(n, -1, -1), conditioning.extra)
    return model.decode_latents(model.sample(noise, rows, model.unconditional(), sampling.steps, sampling.guidance))
