"""The work that timings share: scenes of Scenes-MC (dev), the shipped base, a recipe, a learner under way."""

from __future__ import annotations

import torch

from mcpl.config import Placement, Recipe
from mcpl.learning.learner import Learner
from mcpl.models.base import BaseModel
from mcpl.models.catalogue import ASSETS
from mcpl.orchestration.job import Runner
from mcpl.recipes import adjust, load
from mcpl.types import Job, Pack

BASE = ASSETS / "scenes-v1"
JUDGE = BASE / "judge.safetensors"
SET = "unnamed-2"
SEEN = 10
"""its first development pictures, on which most of `best` was chosen (one rate of two on all thirty)"""


def scene_jobs(recipe: Recipe, count: int, model: BaseModel | None = None) -> tuple[BaseModel, tuple[Job, ...]]:
    """A base and the jobs of the first `count` scenes; this process keeps the threads that it has."""
    from benchmarks.recipes import examples

    runner = Runner(recipe, Placement(threads=torch.get_num_threads()), model)
    return runner.model, tuple(runner.prepare(example) for example in examples(SET, "dev", count))


def endless(name: str, **changes: object) -> Recipe:
    """A named recipe whose jobs never stop by themselves, so that every timed step has all of its rows."""
    return adjust(load(name), steps=10**6, **changes).model_copy(update={"stop": None})


def under_way(model: BaseModel, jobs: tuple[Job, ...], recipe: Recipe, steps: int = 2) -> Learner:
    """A learner that has had its first look and some steps."""
    learner = Learner(model, Pack(jobs), recipe)
    for _ in range(steps):
        learner.advance()
    return learner
