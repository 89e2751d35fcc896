"""What decides how words are learned; every field is part of a recipe's fingerprint."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from mcpl.objectives.objective import TERMS, Contrastive, Denoising, Term
from mcpl.settings import Settings

CUT_OUT = {"objects-on-black": -1.0, "masked-objects": 0.0}
"""`sentences` that show each object alone -> what surrounds it, of pixels in -1..1"""


class AttentionMask(Settings):
    """AttnMask (paper section 3.3): learn only where the words look."""

    source: Literal["looks", "given"] = Field(
        "looks", description="cut from a look's own maps, or the example's masks (for the baselines)"
    )
    threshold: float = Field(0.5, gt=0, lt=1, description="k: binarises a map divided by its own maximum")
    start: int = Field(0, ge=0, description="first step at which the loss is masked")
    on_loss: bool = Field(True, description="False: masks serve the attention terms alone, the loss sees it all")
    outside: float = Field(0.0, ge=0, le=1, description="what the loss's mask lets through outside of it")
    refine: int = Field(0, ge=0, le=8, description="times that a map is spread along self-attention before it is cut")
    sharp: bool = Field(False, description="weigh time steps by how sharp the map is, not equally")
    momentum: float = Field(0.0, ge=0, lt=1, description="share of the earlier looks in a running mean of maps")
    exclusive: bool = Field(False, description="a cell belongs to the concept that is strongest there, to no other")


class ReleaseMask(Settings):
    """AttnMask as the official release computes it, in the step itself (see mcpl.objectives.release)."""

    source: Literal["release"]
    threshold: float = Field(0.3, gt=0, lt=1)
    softmaxes: int = Field(2, ge=0, description="further softmaxes over a map that is one already")


class EarlyStop(Settings):
    """A job stops by itself on its loss on fixed noise (DVAR, arXiv 2302.04841) and keeps its best look's rows."""

    patience: int = Field(3, ge=1, description="looks without improvement after which a job stops")
    min_gain: float = Field(1e-3, ge=0, description="share of the best loss that counts as an improvement")


class LearningSettings(Settings):
    """How the learned rows move."""

    vectors_per_word: int = Field(1, ge=1, le=16)
    initializer: str = Field(
        "neutral",
        description="'neutral' (the base's neutral words), 'noun' (the slug where known), 'adjective' (those bound to "
        "it), or words, comma-separated, whose mean it is",
    )
    initialize: Literal["every", "first"] = Field(
        "every", description="'first': only the first word starts from it, the others at random (as the release does)"
    )
    initializer_length: Literal["mean", "words"] = Field(
        "mean", description="length of a mean of several words: as it falls, or the mean of the words' own (longer)"
    )
    fixed_norm: bool = Field(False, description="hold each row at the length that it started with (DTI)")
    sentences: Literal["whole", "one-word", "objects-on-black", "masked-objects"] = Field(
        "whole",
        description="train on the sentence; on each word alone (Textual Inversion); or so on each object cut out, on "
        "black as the authors' dataset has it, or on mid-grey",
    )
    templates: Literal["captions", "none"] = Field("captions", description="wrap the sentence in short captions")
    union_sampling: int | None = Field(
        None, ge=2, description="from so many objects on, rows name a random few of them only (Break-A-Scene)"
    )
    flips: Literal["never", "safe", "always"] = Field(
        "never", description="mirror half of the rows; 'safe': not where the sentence says left or right"
    )
    steps: int = Field(100, ge=0, description="optimisation steps")
    batch: int = Field(4, ge=1, description="rows of a job per step: other noise, time step and template each")
    lr: float = Field(1e-2, gt=0, description="Adam's learning rate")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's; shrinks the rows, so none but for `release`")
    lr_warmup: int = Field(0, ge=0, description="steps of linear warm-up")
    lr_decay: float = Field(
        0.0, ge=0, le=1, description="share of the steps, the last, over which it falls to 0 in a line"
    )
    clip_norm: float | None = Field(None, gt=0, description="largest gradient length of one job")
    stratified_timesteps: bool = Field(True, description="spread a step's time steps evenly over the schedule")
    attention_mask: AttentionMask | ReleaseMask | None = AttentionMask()
    stop: EarlyStop | None = Field(None, description="stop each job by its own loss on fixed noise")
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

    @model_validator(mode="after")
    def _masks_for_terms(self) -> LearningSettings:
        if "attention" in self.terms and not isinstance(self.attention_mask, AttentionMask):
            raise ValueError("term 'attention' needs masks: set attention_mask (on_loss: false leaves the loss whole)")
        return self

    def lr_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        rise = min(1.0, (step + 1) / (self.lr_warmup + 1))
        falling = self.lr_decay * self.steps
        return self.lr * rise * (min(1.0, (self.steps - step) / falling) if falling else 1.0)

    @property
    def needs_masks(self) -> bool:
        """True for the baselines that learn from given masks."""
        given = isinstance(self.attention_mask, AttentionMask) and self.attention_mask.source == "given"
        return given or self.sentences in CUT_OUT

    @property
    def looked_mask(self) -> AttentionMask | None:
        """AttnMask where it comes from looks or is given, not from the step itself."""
        return self.attention_mask if isinstance(self.attention_mask, AttentionMask) else None

    @property
    def masks_loss(self) -> bool:
        """True where AttnMask cuts the loss."""
        return isinstance(self.attention_mask, ReleaseMask) or bool(self.looked_mask and self.looked_mask.on_loss)
