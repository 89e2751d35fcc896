"""A runner whose words are invented, not learned: for tests of what comes after learning, in no time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from mcpl.config import Placement, Recipe
from mcpl.models.stable_diffusion import files_digest
from mcpl.prompts import parse
from mcpl.seeds import derive_seed
from mcpl.types import BankRow, CurvePoint, Example, LearnedConcept, LearnedConcepts, Provenance

NAME = "tests.orchestration.invented:Runner"
WIDTH = 16
"""of a word of the tests' tiny base"""


class Runner:
    def __init__(self, recipe: Recipe, placement: Placement):
        self.recipe, self.base_digest = recipe, files_digest(Path(recipe.base))

    def __call__(self, examples: Sequence[Example], on_done: Callable[[BankRow], None] | None = None) -> list[BankRow]:
        return [self._row(example) for example in examples]

    def _row(self, example: Example) -> BankRow:
        """Words, maps and losses that follow from the picture's id and the recipe alone."""
        draw = torch.Generator().manual_seed(derive_seed(example.id, self.recipe.fingerprint))

        def looks() -> torch.Tensor:
            levels = torch.rand(8, 8, generator=draw)
            return torch.round(255 * levels / levels.max()) / 255  # as a bank keeps them

        words = tuple(
            LearnedConcept(concept, torch.randn(1, WIDTH, generator=draw), looks(), looks())
            for concept in parse(example.text).concepts
        )
        points = tuple(CurvePoint(step, *torch.rand(4, generator=draw).tolist()) for step in (0, 1))
        return BankRow(
            id=example.id,
            text=example.text,
            status="learned",
            provenance=Provenance(
                recipe=self.recipe.name,
                recipe_fingerprint=self.recipe.fingerprint,
                base="tiny",
                base_digest=self.base_digest,
                seed=self.recipe.seed,
                commit="none",
                picture_sha256=hashlib.sha256(example.image).hexdigest(),
                sentence_sha256=hashlib.sha256(example.text.encode()).hexdigest(),
            ),
            learned=LearnedConcepts(example.id, words, points, {"denoising": (1.0, 0.5)}, 1, 8),
            metrics={"kept_step": 0.0, "fixed_noise_loss": points[0].fixed_noise_loss},
        )
