"""How many threads a process should compute with on a CPU, where nobody said so."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from mcpl.models.base import BaseModel

SMALL_S = 0.2
"""processor seconds of a small forward pass with one thread, under which more threads are not even tried: the small
base takes about 0.02, and two threads slow it down"""
GAIN = 1.3
"""how much faster all threads must be to be taken: a waiting thread still occupies its core"""
SIDE = 16
"""of the latents of that pass; a larger picture gains more by threads, never less"""


def fitted(load: Callable[[], BaseModel], told: int | None = None) -> BaseModel:
    """The base that `load` gives, and this process set to as many threads as serve it: `told`, or what is measured."""
    most = torch.get_num_threads()
    torch.set_num_threads(told or 1)
    model = load()
    if told is None:
        torch.set_num_threads(choose(model, most))
    return model


def choose(model: BaseModel, most: int) -> int:
    """1 for a small base; for a large one `most` where they are measured to be faster."""
    if most == 1 or model.device.type != "cpu":
        return 1
    forward, before = _forward(model), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        forward()
        if _seconds(forward, time.process_time) < SMALL_S:
            return 1
        alone = _seconds(forward, time.perf_counter)
        torch.set_num_threads(most)
        forward()
        together = min(_seconds(forward, time.perf_counter) for _ in range(2))
    finally:
        torch.set_num_threads(before)
    return most if alone > GAIN * together else 1


def _forward(model: BaseModel) -> Callable[[], object]:
    """One prediction for one row of small latents."""
    channels, height, width = model.facts.latent_shape
    noisy = torch.zeros(1, channels, min(height, SIDE), min(width, SIDE), dtype=model.dtype)
    timesteps, nothing = torch.zeros(1, dtype=torch.long), model.unconditional()

    @torch.no_grad()
    def forward() -> object:
        return model.predict(noisy, timesteps, nothing)

    return forward


def _seconds(work: Callable[[], object], clock: Callable[[], float]) -> float:
    started = clock()
    work()
    return clock() - started
