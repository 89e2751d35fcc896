"""Change one thing of a picture and leave the rest: Prompt-to-Prompt (arXiv 2208.01626) with learned words.

    original = drawn(model, "a <bear> on a <board>", words, seed=3)        # or: inverted(model, "...", words, pixels)
    edited = edit(model, original, replaced(original.prompt, {"<bear>": "<cat>"}), words)

An original is a whole path of latents, from noise to the picture, whichever way it came about. A real picture's path
is DDIM inversion; while it is edited, the original's own row is put back on that path at every step (Direct Inversion,
arXiv 2310.01506), so that nothing of it is lost: with nothing changed, or outside the mask, the result is the
autoencoder's own picture of it, exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from mcpl.diffusion import ddim_inverse, ddim_step
from mcpl.errors import ConfigError
from mcpl.evaluation.looking import per_word
from mcpl.evaluation.sampling import condition, repeated
from mcpl.generation.change import Change, Mapped, heads, mapped
from mcpl.generation.generate import Drawing, sampling_path
from mcpl.generation.words import LearnedWord, Words, check_base
from mcpl.models.base import BaseModel, guided, joined
from mcpl.models.cross_attention import Recording
from mcpl.objectives.attention import binarise, exclusive, fit_to, refine, sharpness
from mcpl.prompts import said, word_positions
from mcpl.settings import Settings
from mcpl.types import Conditioning, Sentence


class Editing(Settings):
    """How an original is changed. The defaults let a shape become another on the small base (dev split of Scenes-MC);
    for Stable Diffusion cross 0.8 and layout 0.4 are usual."""

    steps: int = Field(20, ge=1, description="DDIM steps, of the original's path too")
    guidance: float = Field(3.0, description="of the changed picture, and of an original that is drawn")
    cross: float = Field(0.2, ge=0, le=1, description="first share of the steps in which words look where the old did")
    layout: float = Field(0.0, ge=0, le=1, description="first share of the steps that keep the self-attention as well")
    local: bool = Field(True, description="let the change show only where its words look; the rest stays as it was")
    threshold: float = Field(0.5, gt=0, lt=1, description="share of its largest value at which a map becomes mask")
    margin: int = Field(1, ge=0, description="cells of the attention maps that the mask is larger by")
    corrections: int = Field(1, ge=0, description="times that each step of an inversion is corrected (fixed point)")


@dataclass(frozen=True)
class Original:
    """A picture as the path that leads to it."""

    prompt: str
    latents: tuple[Tensor, ...] = field(repr=False)
    """from noise to the picture, steps + 1 times [n, C, h, w]"""
    maps: Tensor = field(repr=False)
    """[n, W, m, m] where each of the sentence's words looks, over the whole path"""
    seeds: tuple[int, ...] = ()
    """none for a real picture"""


@dataclass(frozen=True)
class Edited:
    """A picture before and after."""

    original: Tensor = field(repr=False)
    """[n, H, W, 3] uint8; of a real picture what the autoencoder makes of it"""
    pictures: Tensor = field(repr=False)
    """[n, H, W, 3] uint8"""
    mask: Tensor = field(repr=False)
    """[n, h, w] of the latents, 1 where the change may show"""
    original_prompt: str
    prompt: str
    seeds: tuple[int, ...]
    words: tuple[LearnedWord, ...]
    editing: Editing
    base: str
    base_digest: str


def drawn(
    model: BaseModel, text: str, words: Words, seeds: Sequence[int] = (0,), editing: Editing = Editing()
) -> Original:
    """The originals that `generate` draws for these seeds."""
    sentence = said(text)
    given, n = repeated(_conditioning(model, sentence, words), len(seeds)), len(seeds)
    drawing, look = Drawing(steps=editing.steps, guidance=editing.guidance), _Look(model, sentence, words, 2 * n)
    latents = []
    with look.watching():
        for here, _ in sampling_path(model, given, model.unconditional(), seeds, drawing):
            look.take()
            latents.append(here)
    return Original(text, tuple(latents), look.maps()[n:], tuple(seeds))


@torch.no_grad()
def inverted(model: BaseModel, text: str, words: Words, pixels: Tensor, editing: Editing = Editing()) -> Original:
    """Real pictures' path, DDIM run backwards as their sentence says; pixels: [n, 3, H, W] in -1..1.

    A step backwards needs the prediction where it arrives: it is taken where it starts, and corrected (fixed point).
    """
    if model.facts.prediction_type == "sample":
        raise ConfigError(f"base {model.facts.name} predicts pictures, not noise: its steps cannot be run backwards")
    sentence, here = said(text), model.encode_pictures(pixels)
    given = repeated(_conditioning(model, sentence, words), len(here))
    look, latents = _Look(model, sentence, words, len(here)), [here]
    with look.watching():
        for t, above, below in reversed(_schedule(model, editing.steps)):
            there = here
            for _ in range(editing.corrections + 1):
                prediction = model.predict(there, t.expand(len(here)), given)
                there = ddim_inverse(here, prediction, above, below, model.facts.prediction_type)
            look.take()
            latents.append(there)
            here = there
    return Original(text, tuple(reversed(latents)), look.maps())


@torch.no_grad()
def edit(model: BaseModel, original: Original, change: Change, words: Words, editing: Editing = Editing()) -> Edited:
    """The original changed, in as many steps as its path has.

    Raises ConfigError for words that are not there, BankMismatch for those of another base.
    """
    n, steps = len(original.latents[0]), len(original.latents) - 1
    before, after = (_conditioning(model, sentence, words) for sentence in (change.before, change.after))
    rows = joined([repeated(before, n), guided(model.unconditional(), repeated(after, n))])
    control = _Control(mapped(change, model.vocabulary, _lengths(words)), model, editing, steps)
    look = _Look(model, change.after, words, 3 * n)
    old, here = _mask(original.maps, change.before, change.changed[0], editing), original.latents[0]
    with look.watching(), model.rewrite_attention(control):
        for number, (t, above, below) in enumerate(_schedule(model, steps)):
            control.step = number
            noisy = torch.cat([original.latents[number], here, here])
            _, away, towards = model.predict(noisy, t.expand(3 * n), rows).chunk(3)
            look.take()
            guess = away + editing.guidance * (towards - away)
            here = ddim_step(here, guess, above, below, model.facts.prediction_type)
            if editing.local:
                mask = torch.maximum(old, _mask(look.maps()[2 * n :], change.after, change.changed[1], editing))
                allowed = fit_to(mask, here.shape[-2:]) > 0
                here = torch.where(allowed, here, original.latents[number + 1])
    own = dict.fromkeys(concept.slug for sentence in (change.before, change.after) for concept in sentence.concepts)
    return Edited(
        original=model.decode_latents(original.latents[-1]),
        pictures=model.decode_latents(here),
        mask=fit_to(mask if editing.local else torch.ones_like(old), here.shape[-2:])[:, 0].float().cpu(),
        original_prompt=original.prompt,
        prompt=change.after.text,
        seeds=original.seeds,
        words=tuple(words[slug] for slug in own),
        editing=editing,
        base=model.facts.name,
        base_digest=model.facts.digest,
    )


class _Control:
    """Prompt-to-Prompt's rewriting for rows [original, without, changed]: the last looks as the first does."""

    def __init__(self, change: Mapped, model: BaseModel, editing: Editing, steps: int) -> None:
        put = {"device": model.device, "dtype": model.dtype}
        self._take, self._taken, self._weights = (x.to(**put) for x in (change.take, change.taken, change.weights))
        self._cross, self._layout = (round(share * steps) for share in (editing.cross, editing.layout))
        self.step = 0

    def __call__(self, shares: Tensor, cross: bool) -> Tensor:
        original, without, changed = shares.chunk(3)
        if cross:
            if self.step < self._cross:
                changed = changed + self._taken * (original @ self._take - changed)
            changed = changed * self._weights
        elif self.step < self._layout:
            changed = original
        return torch.cat([original, without, changed])


class _Look:
    """Where each word of a sentence looks: a mean over passes, each weighed by how sharp its map is and spread once
    along the self-attention."""

    def __init__(self, model: BaseModel, sentence: Sentence, words: Words, rows: int) -> None:
        lengths = _lengths(words)
        own = word_positions(sentence, model.vocabulary, [lengths[c.slug] for c in sentence.concepts])
        self._model, self._counts = model, [len(each) for each in own]
        self._positions = torch.tensor([p for each in own for p in each], device=model.device).expand(rows, -1)
        self._sum: Tensor | float = 0.0
        self._weight: Tensor | float = 0.0
        self._seen: Recording | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """The base is watched while inside."""
        with self._model.record(self._positions, affinity=True) as self._seen:
            yield

    def take(self) -> None:
        """Count the newest pass, if there was one."""
        if not self._seen.layers:
            return
        maps = refine(per_word(self._seen.maps(), self._counts), self._seen.affinity(), 1)
        weight = sharpness(maps)[..., None, None]
        self._sum, self._weight = self._sum + weight * maps, self._weight + weight

    def maps(self) -> Tensor:
        """[rows, W, m, m]"""
        return self._sum / self._weight


def _mask(maps: Tensor, sentence: Sentence, chosen: Sequence[int], editing: Editing) -> Tensor:
    """Where the chosen words look, and no other thing of the sentence more so: [n, W, m, m] -> [n, m, m] of 0 and 1."""
    if not chosen:
        return torch.zeros_like(maps[:, 0])
    things = list(dict.fromkeys([*chosen, *heads(sentence)]))
    masks = [exclusive(own, binarise(own, editing.threshold))[: len(chosen)].amax(dim=0) for own in maps[:, things]]
    side = 2 * editing.margin + 1
    return F.max_pool2d(torch.stack(masks)[:, None], side, stride=1, padding=editing.margin)[:, 0]


def _schedule(model: BaseModel, steps: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(time step, signal share there, signal share after it) of each step, as diffusers' DDIM takes them."""
    scheduler = model.scheduler("ddim", steps)
    shares, last = scheduler.alphas_cumprod.to(model.device), scheduler.final_alpha_cumprod.to(model.device)
    stride = scheduler.config.num_train_timesteps // steps
    return [(t, shares[t], shares[t - stride] if t >= stride else last) for t in scheduler.timesteps]


def _conditioning(model: BaseModel, sentence: Sentence, words: Words) -> Conditioning:
    own = [words[concept.slug] for concept in sentence.concepts if concept.slug in words]
    check_base(own, model.facts)
    return condition(model, sentence, {word.slug: word.vectors for word in own})


def _lengths(words: Words) -> dict[str, int]:
    return {slug: len(word.vectors) for slug, word in words.items()}
