"""How many pictures a device holds at once, asked by learning one step of one picture and of two."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mcpl.config import Placement
from mcpl.errors import PackTooLarge
from mcpl.learning.learner import Learner
from mcpl.learning.settings import LearningSettings
from mcpl.models.base import BaseModel
from mcpl.types import Job, Pack

SHARE = 0.8
"""of the free memory that packs may fill; the rest is for what the allocator cannot use, and for drawing samples"""


class Alive(TorchDispatchMode):
    """Adds up the storages that are alive at once while inside, and remembers the most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and id(tensor.untyped_storage()) not in given:
                self._born(tensor.untyped_storage())
        return result

    def _born(self, storage) -> None:
        if id(storage) not in self._seen:
            self._seen.add(id(storage))
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._died, id(storage), storage.nbytes())

    def _died(self, identity: int, size: int) -> None:
        self._seen.discard(identity)
        self.now -= size


def probed_pack(model: BaseModel, job: Job, settings: LearningSettings, placement: Placement) -> int:
    """Pictures like this job's that fit the model's device at once."""
    one, two = (step_bytes(model, [job] * count, settings) for count in (1, 2))
    return fitting_pack(one, two, free_bytes(model.device, placement))


def fitting_pack(one: int, two: int, free: int) -> int:
    """The same from bytes: what a step needs for one picture and for two, and what there is. One is always tried."""
    return 1 + max(0, int(SHARE * free) - one) // max(1, two - one)


def step_bytes(model: BaseModel, jobs: Sequence[Job], settings: LearningSettings) -> int:
    """Bytes on top of the model that the first look and step of these jobs hold at their peak."""
    learner = Learner(model, Pack(tuple(jobs)), settings)
    if model.device.type != "cuda":
        with Alive() as alive:
            learner.advance()
        return alive.peak
    torch.cuda.reset_peak_memory_stats(model.device)
    before = torch.cuda.memory_allocated(model.device)
    try:
        learner.advance()
    except torch.OutOfMemoryError:
        if len(jobs) == 1:
            raise PackTooLarge(
                f"one picture does not fit {model.device}: lower the recipe's batch or precision"
            ) from None
        return 1 << 60  # two do not fit: one at a time
    return torch.cuda.max_memory_allocated(model.device) - before


def free_bytes(device: torch.device, placement: Placement) -> int:
    """What a worker may use of its device: its share of a GPU, or of the machine's memory beside the other workers."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        part = placement.gpus_per_worker if 0 < placement.gpus_per_worker < 1 else 1
        return int(min(free + idle, part * total - torch.cuda.memory_allocated(device)))
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // placement.workers
