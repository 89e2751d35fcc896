"""A runner that learns nothing and scores by its recipe alone: the nearer lr is to 1e-3, the better.

Its settings may also hold `refuse`: initializers with which it raises ExampleError.
"""

from __future__ import annotations

import math
from dataclasses import replace

from mcpl.errors import ExampleError
from mcpl.types import BankRow, Example
from tests.orchestration import stub

NAME = "tests.orchestration.sweep_stub:Runner"


class Runner(stub.Runner):
    def __call__(self, examples, on_done=None):
        if self.recipe.initializer in self.settings.get("refuse", ()):
            raise ExampleError(f"the stub was told to refuse {self.recipe.initializer}")
        return super().__call__(examples, on_done)

    def _row(self, example: Example) -> BankRow:
        row = super()._row(example)
        off = abs(math.log10(self.recipe.lr / 1e-3))
        metrics = {
            "right_object": max(0.0, 1 - off), "assignment": max(0.0, 1 - off / 2),
            "fixed_noise_loss_step0": 1.0, "fixed_noise_loss": min(1.0, 0.5 + off / 4),
        }  # fmt: skip
        return replace(row, metrics=metrics if row.learned else {})
