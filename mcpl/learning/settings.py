"""What decides how words are learned; every field is part of a recipe's fingerprint."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializeAsAny, field_validator

from mcpl.objectives.objective import TERMS, Contrastive, Denoising, Term
from mcpl.settings import Settings


class AttentionMask(Settings):
    """AttnMask (paper section 3.3): learn only where the words look."""

    threshold: float = Field(0.5, gt=0, lt=1, description="k: binarises a map divided by its own maximum")


class LearningSettings(Settings):
    """How the learned rows move."""

    vectors_per_word: int = Field(1, ge=1, le=16)
    initializer: str = Field(
        "neutral", description="'neutral' (the base's neutral words), 'noun' (the slug where known), or a word"
    )
    templates: Literal["captions", "none"] = Field("captions", description="wrap the sentence in short captions")
    steps: int = Field(200, ge=0, description="optimisation steps")
    batch: int = Field(4, ge=1, description="rows of a job per step: other noise, time step and template each")
    lr: float = Field(3e-4, gt=0, description="Adam's learning rate; there is no weight decay")
    lr_warmup: int = Field(0, ge=0, description="steps of linear warm-up")
    clip_norm: float | None = Field(None, gt=0, description="largest gradient length of one job")
    stratified_timesteps: bool = Field(True, description="spread a step's time steps evenly over the schedule")
    attention_mask: AttentionMask | None = AttentionMask()
    terms: dict[str, SerializeAsAny[Term]] = Field(
        {"denoising": Denoising(), "contrastive": Contrastive()}, description="summands of the objective, see TERMS"
    )
    probe_every: int = Field(
        25, ge=1, description="steps between two looks at fixed-noise loss and attention maps (masks)"
    )
    probe_timesteps: int = Field(10, ge=1, description="time-step buckets of such a look, one fixed noise each")
    seed: int = 0

    @field_validator("terms", mode="before")
    @classmethod
    def _known_terms(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "denoising" not in values:
            raise ValueError("must be a table of terms with at least 'denoising'")
        unknown = [name for name in values if name not in TERMS]
        if unknown:
            raise ValueError(f"unknown term {unknown[0]!r}; there are {', '.join(TERMS)}")
        return {
            name: value if isinstance(value, Term) else TERMS[name].model_validate(value or {})
            for name, value in values.items()
        }
