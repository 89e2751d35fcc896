"""Pictures of a sentence with learned words: any scheduler, seeds, a negative sentence, guidance of the attention.

    generate(model, "a <bear> next to a <board>", words, seeds=(0, 1, 2, 3))

A picture follows from its seed alone, whatever else is drawn beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from pydantic import Field
from torch import Tensor

from mcpl.errors import ConfigError
from mcpl.evaluation.sampling import Sampling, condition, repeated
from mcpl.generation.words import LearnedWord, Words, check_base
from mcpl.models import schedulers
from mcpl.models.base import BaseModel, guided
from mcpl.objectives.attention import neglect
from mcpl.prompts import said, word_positions
from mcpl.types import Conditioning, Sentence


class Drawing(Sampling):
    """How pictures are drawn."""

    scheduler: str = Field("ddim", description="by its name in mcpl.models.schedulers.SCHEDULERS")
    negative: str = Field("", description="a sentence to keep away from, learned words allowed")
    attend: float = Field(
        0.0, ge=0, description="how far, in shares of the latents' own size, the first steps are moved towards every "
        "learned word being seen somewhere (Attend-and-Excite); 0 is off, 0.1 is too much for the small base"
    )  # fmt: skip
    at_once: int = Field(8, ge=1, description="pictures drawn together; changes none of them")


ATTENDED = 0.5
"""share of the steps in which the attention is guided: later the layout stands"""


@dataclass(frozen=True)
class Generated:
    """Pictures and what they were made from."""

    pictures: Tensor = field(repr=False)
    """[n, H, W, 3] uint8"""
    prompt: str
    seeds: tuple[int, ...]
    """one for each picture"""
    words: tuple[LearnedWord, ...]
    """the learned words of the sentences"""
    drawing: Drawing
    base: str
    base_digest: str


def generate(
    model: BaseModel,
    text: str,
    words: Words = {},  # noqa: B006 (never changed)
    seeds: Sequence[int] = (0,),
    drawing: Drawing = Drawing(),
    attended: Sequence[str] = (),
) -> Generated:
    """A picture for each seed.

    attended: the words that `drawing.attend` looks after, ordinary ones as well; the learned ones unless given.
    Raises ExampleError for a sentence that cannot be read, ConfigError for a word that is not among `words`,
    BankMismatch for one of another base.
    """
    sentence, negative = said(text), said(drawing.negative) if drawing.negative.strip() else None
    used = tuple(dict.fromkeys(c.slug for each in (sentence, negative) if each for c in each.concepts))
    own = {slug: words[slug] for slug in used if slug in words}
    check_base(own.values(), model.facts)
    vectors = {slug: word.vectors for slug, word in own.items()}
    given = condition(model, sentence, vectors)
    without = condition(model, negative, vectors) if negative else model.unconditional()
    watched = watched_positions(model, sentence, vectors, attended) if drawing.attend else None
    pictures = []
    for first in range(0, len(seeds), drawing.at_once):
        some = seeds[first : first + drawing.at_once]
        latents = list(sampling_path(model, repeated(given, len(some)), without, some, drawing, watched))[-1][0]
        pictures.append(model.decode_latents(latents))
    facts = model.facts
    return Generated(torch.cat(pictures), text, tuple(seeds), tuple(own.values()), drawing, facts.name, facts.digest)


def watched_positions(
    model: BaseModel, sentence: Sentence, vectors: Mapping[str, Tensor], attended: Sequence[str] = ()
) -> list[range]:
    """Token positions of each word that attention guidance looks after."""
    wanted = {word.lower() for word in attended}
    chosen = [
        number
        for number, word in enumerate(sentence.words)
        if (word.text.lower() in wanted if wanted else word.role == "placeholder")
    ]
    if not chosen:
        raise ConfigError(f"nothing to attend to in {sentence.text!r}: there is no learned word in it")
    lengths = [len(vectors[concept.slug]) for concept in sentence.concepts]
    positions = word_positions(sentence, model.vocabulary, lengths)
    return [positions[number] for number in chosen]


def noise_of(model: BaseModel, seeds: Sequence[int]) -> tuple[Tensor, list[torch.Generator]]:
    """([n, C, h, w], the generators, for what a scheduler draws later): each picture's from its own seed."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = torch.cat([torch.randn((1, *model.facts.latent_shape), generator=own) for own in generators])
    return noise.to(model.device, model.dtype), generators


@torch.no_grad()
def sampling_path(
    model: BaseModel,
    given: Conditioning,
    without: Conditioning,
    seeds: Sequence[int],
    drawing: Drawing,
    watched: Sequence[range] | None = None,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """(latents [n, C, h, w], the time step that leads away from them) from pure noise to the picture, None at its end.

    given: [n, ...]; without: [1, ...]; watched: token positions of the words that attention guidance looks after.
    """
    scheduler, both = model.scheduler(drawing.scheduler, drawing.steps), guided(without, given)
    noise, generators = noise_of(model, seeds)
    latents = noise * scheduler.init_noise_sigma
    for number, t in enumerate(scheduler.timesteps):
        yield latents, t
        if watched and number < ATTENDED * len(scheduler.timesteps):
            fading = drawing.attend * (1 - number / len(scheduler.timesteps))
            latents = _attend(model, scheduler, latents, t, given, watched, fading)
        scaled = scheduler.scale_model_input(latents, t)
        away, towards = model.predict(torch.cat([scaled, scaled]), t.expand(2 * len(seeds)), both).chunk(2)
        latents = schedulers.step(scheduler, away + drawing.guidance * (towards - away), t, latents, generators)
    yield latents, None


def _attend(model, scheduler, latents: Tensor, t: Tensor, given: Conditioning, watched, strength: float) -> Tensor:
    """Latents moved by `strength` of their size down the gradient of the most neglected word's attention.

    Attention is shared among the tokens behind the start token, which most of it falls on.
    """
    flat = torch.tensor([0, *(position for own in watched for position in own)], device=latents.device)
    with torch.enable_grad():
        moved = latents.detach().requires_grad_()
        with model.record(flat.expand(len(latents), -1)) as recording:
            model.predict(scheduler.scale_model_input(moved, t), t.expand(len(latents)), given)
        start, *columns = recording.maps().unbind(dim=1)
        shares = iter(columns)
        seen = torch.stack([sum(next(shares) for _ in own) / (1 - start).clamp_min(1e-6) for own in watched], dim=1)
        (gradient,) = torch.autograd.grad(neglect(seen).sum(), moved)
    axes = (1, 2, 3)
    size, slope = (x.float().square().mean(dim=axes, keepdim=True).sqrt() for x in (latents, gradient))
    return (latents - strength * size * gradient / slope.clamp_min(1e-12)).to(latents.dtype)
