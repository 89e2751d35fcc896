"""The total objective: a table of terms, each one number per job, weighted and summed.

A new regulariser is one class here (its settings, and how they turn a step into [J]) and one line in TERMS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import Field
from torch import Tensor

from mcpl.objectives.contrastive import prompt_contrastive
from mcpl.objectives.denoising import masked_denoising
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


class Term(Settings):
    """One summand of the objective."""

    weight: float = Field(1.0, ge=0)

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
        return prompt_contrastive(step.hidden, groups, step.job_ids, step.jobs, self.temperature)


TERMS: dict[str, type[Term]] = {"denoising": Denoising, "contrastive": Contrastive}


def objective(terms: Mapping[str, Term], step: StepContext) -> StepOutput:
    """Weighted sum of the terms, one number per job; `loss.sum()` is what is minimised."""
    values = {name: term(step) for name, term in terms.items()}
    weighted = [terms[name].weight * value for name, value in values.items()]
    return StepOutput(sum(weighted[1:], start=weighted[0]), {name: value.detach() for name, value in values.items()})
