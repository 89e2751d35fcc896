"""The total objective: a table of terms, each one number per job, weighted and summed.

A new regulariser is one class here (its settings, and how they turn a step into [J]) and one line in TERMS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from mcpl.objectives.attention import WordMaps, attention_error, overlap, unbound
from mcpl.objectives.contrastive import prompt_contrastive
from mcpl.objectives.denoising import masked_denoising
from mcpl.objectives.release import rolled_contrastive
from mcpl.packing import mean_by_job
from mcpl.settings import Settings
from mcpl.types import StepOutput


@dataclass(frozen=True)
class StepContext:
    """What a term may look at."""

    prediction: Tensor
    """[B, C, h, w]"""
    target: Tensor
    """[B, C, h, w]"""
    mask: Tensor | None
    """[B, 1, h, w] 0/1, or None where masks are off"""
    hidden: Tensor
    """[B, L, D'] text-encoder outputs"""
    concept_ids: Tensor
    """[B, L] local to the job, -1 elsewhere; adjectives carry the concept that they are bound to"""
    placeholder: Tensor
    """[B, L] bool"""
    job_ids: Tensor
    """[B]"""
    jobs: int
    objects: Tensor
    """[B, P] bool: concepts of the row that are objects"""
    members: Tensor | None = None
    """[2, n] row and position where concept_ids >= 0, where the caller knows them"""
    maps: WordMaps | None = None
    """this pass's own cross-attention, with gradient; recorded only where a term `reads_maps`"""
    object_masks: Tensor | None = None
    """[B, P, m, m] 0/1: each concept's mask at the maps' size, without gradient; None before the first look"""


class Term(Settings):
    """One summand of the objective."""

    reads_maps: ClassVar[bool] = False
    """True where the term needs `StepContext.maps`"""

    weight: float = Field(1.0, ge=0)
    start: int = Field(0, ge=0, description="first step at which the term counts")
    ramp: int = Field(0, ge=0, description="steps over which its weight then grows from 0 in a line")

    def weight_at(self, step: int) -> float:
        """The weight of one step of the schedule."""
        if step < self.start:
            return 0.0
        return self.weight * min(1.0, (step - self.start + 1) / (self.ramp + 1))

    def __call__(self, step: StepContext) -> Tensor:
        """The unweighted value of the term for every job. [J]"""
        raise NotImplementedError


class Denoising(Term):
    """Textual Inversion's loss inside the attention mask (paper eq. 2 and section 3.3)."""

    area_normalised: bool = Field(True, description="divide by the mask's area, not by the picture's")

    def __call__(self, step: StepContext) -> Tensor:
        return masked_denoising(step.prediction, step.target, step.mask, step.job_ids, step.jobs, self.area_normalised)


class Contrastive(Term):
    """PromptCL, with Bind adj as a switch (paper sections 3.2 and 3.4)."""

    weight: float = Field(7.5e-4, ge=0, description="gamma")
    temperature: float = Field(0.3, gt=0, description="tau, of cosine similarities")
    bind_adjectives: bool = Field(True, description="an adjective joins its noun's positive group")

    def __call__(self, step: StepContext) -> Tensor:
        groups = step.concept_ids
        if not self.bind_adjectives:
            groups = groups.masked_fill(~step.placeholder, -1)
        return prompt_contrastive(step.hidden, groups, step.job_ids, step.jobs, self.temperature, step.members)


class BindAdjectives(Term):
    """Bind adj with a weight and a schedule of its own: PromptCL whose positives are a noun and an adjective of it.

    Beside a `contrastive` term with `bind_adjectives: false`; that switch gives adjectives PromptCL's own weight.
    """

    weight: float = Field(7.5e-4, ge=0)
    temperature: float = Field(0.3, gt=0, description="tau, of cosine similarities")

    def __call__(self, step: StepContext) -> Tensor:
        groups, members = step.concept_ids, step.members
        return prompt_contrastive(
            step.hidden, groups, step.job_ids, step.jobs, self.temperature, members, nouns=step.placeholder
        )


class Attention(Term):
    """Attention drawn to each concept's mask (Break-A-Scene eq. 3): a gradient where AttnMask has none."""

    reads_maps: ClassVar[bool] = True
    weight: float = Field(1e-2, ge=0)

    def __call__(self, step: StepContext) -> Tensor:
        counted = step.objects & step.maps.has_noun
        return mean_by_job(attention_error(step.maps.nouns, step.object_masks, counted), step.job_ids, step.jobs)


class BindSuppress(Term):
    """Two concepts' maps apart, each on its adjectives' (DisenDiff's bind and suppress)."""

    reads_maps: ClassVar[bool] = True
    weight: float = Field(1e-2, ge=0)
    bind: float = Field(1.0, ge=0, description="share of a word's map lying beside its adjectives'")
    suppress: float = Field(1.0, ge=0, description="share of two words' maps lying on each other")

    def __call__(self, step: StepContext) -> Tensor:
        counted = step.objects & step.maps.has_noun
        rows = self.suppress * overlap(step.maps.nouns, counted) + self.bind * unbound(step.maps, counted)
        return mean_by_job(rows, step.job_ids, step.jobs)


class ReleaseContrastive(Contrastive):
    """PromptCL as the official release computes it: positives by a rolled identity. Only for `release`."""

    detached: bool = Field(False, description="rebuilt from a detached tensor, as its MCPL-diverse branch does")

    def __call__(self, step: StepContext) -> Tensor:
        groups = step.concept_ids if self.bind_adjectives else step.concept_ids.masked_fill(~step.placeholder, -1)
        hidden = step.hidden.detach() if self.detached else step.hidden
        return rolled_contrastive(hidden, groups, step.job_ids, step.jobs, self.temperature)


TERMS: dict[str, type[Term]] = {
    "denoising": Denoising,
    "contrastive": Contrastive,
    "bind-adjectives": BindAdjectives,
    "attention": Attention,
    "bind-suppress": BindSuppress,
    "release-contrastive": ReleaseContrastive,
}


def objective(terms: Mapping[str, Term], context: StepContext, step: int = 0) -> StepOutput:
    """Weighted sum of the terms at a step of their schedules, one number per job; `loss.sum()` is what is minimised."""
    values = {name: term(context) for name, term in terms.items()}
    weighted = [terms[name].weight_at(step) * value for name, value in values.items()]
    return StepOutput(sum(weighted[1:], start=weighted[0]), {name: value.detach() for name, value in values.items()})
