"""Regression guard, `make bench`: counted work and ratios of a step against their limits; no seconds.

    python -m benchmarks.guard

Counts are exact and their limits tight. The two ratios of times compare neighbours in one process by processor time, so
that other load falls on both, and their limits are wide. Exit code 1 where something is over its limit; a limit that a
change moves on purpose is moved in the same commit, with the reason. The last line is JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.jobs import BASE, JUDGE, endless, scene_jobs, under_way
from benchmarks.provenance import provenance
from benchmarks.recording import compared, timed, variants
from benchmarks.roofline import Operations, counted
from mcpl.learning.learner import Learner

PACK = 4
LIMITS = {
    "gflop_per_row": 1.36,
    "mb_kept_per_row": 9.6,
    "operators_of_a_step": 2050,
    "operators_packed_over_alone": 1.12,
    "prompts_encoded_by_a_look": PACK,
    "recording_operations": 1.004,
    "recording_time": 1.08,
    "packed_time_over_alone": 0.95,
}
"""name -> the most that it may be"""


class Operators(TorchDispatchMode):
    """Counts what PyTorch is asked to do."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def operators(work: Callable[[], object]) -> int:
    """How many operators `work` runs."""
    with Operators() as seen:
        work()
    return seen.count


def encoded(learner: Learner) -> int:
    """Rows that the text encoder sees in a look, at most in one call."""
    rows: list[int] = []
    handle = learner.model._text.register_forward_hook(
        lambda _module, _inputs, output: rows.append(len(output.last_hidden_state))
    )
    learner._look()
    handle.remove()
    return max(rows)


def packed_over_alone(alone: Learner, packed: Learner, rounds: int = 7) -> float:
    """Processor time of a packed step over that of as many steps alone; median over neighbours."""
    ratios = []
    for _ in range(rounds):
        separate = sum(timed(alone.advance) for _ in range(PACK))
        ratios.append(timed(packed.advance) / separate)
    return statistics.median(ratios)


def measured() -> dict[str, float]:
    """Every name of LIMITS."""
    recipe = endless("paper")
    model, jobs = scene_jobs(recipe, PACK)
    alone, packed = under_way(model, jobs[:1], recipe), under_way(model, jobs, recipe)
    count = counted(packed)
    steps = variants(1)
    recorded = compared({name: steps[name] for name in ("none", "recorded")}, 15)["recorded"]
    single, together = operators(alone.advance), operators(packed.advance)
    return {
        "gflop_per_row": count.operations / (PACK * recipe.batch) / 1e9,
        "mb_kept_per_row": count.kept_bytes / (PACK * recipe.batch) / 1e6,
        "operators_of_a_step": single,
        "operators_packed_over_alone": together / single,
        "prompts_encoded_by_a_look": encoded(packed),
        "recording_operations": _operations(steps["recorded"]) / _operations(steps["none"]),
        "recording_time": statistics.median(recorded),
        "packed_time_over_alone": packed_over_alone(alone, packed),
    }


def _operations(work: Callable[[], object]) -> int:
    with Operations() as seen:
        work()
    return seen.total


def main() -> int:
    torch.set_num_threads(1)
    found = measured()
    over = [name for name, value in found.items() if value > LIMITS[name]]
    for name, value in found.items():
        print(f"{'OVER ' if name in over else 'ok   '} {name}: {value:.4g} (limit {LIMITS[name]:g})")
    told = {"over": over, "found": {name: round(value, 4) for name, value in found.items()}, "limits": LIMITS}
    print(json.dumps(told | provenance("benchmarks.guard", BASE, JUDGE)))
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
