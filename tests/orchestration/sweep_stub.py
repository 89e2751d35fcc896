"""A runner that learns nothing and scores by its recipe alone: the nearer lr is to 1e-3, the better."""

from __future__ import annotations

import math
from dataclasses import replace

from mcpl.types import BankRow, Example
from tests.orchestration import stub

NAME = "tests.orchestration.sweep_stub:Runner"


class Runner(stub.Runner):
    def _row(self, example: Example) -> BankRow:
        row = super()._row(example)
        off = abs(math.log10(self.recipe.lr / 1e-3))
        metrics = {
            "right_object": max(0.0, 1 - off), "assignment": max(0.0, 1 - off / 2),
            "fixed_noise_loss_step0": 1.0, "fixed_noise_loss": min(1.0, 0.5 + off / 4),
        }  # fmt: skip
        return replace(row, metrics=metrics if row.learned else {})
