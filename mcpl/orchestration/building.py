"""Datasets built on Ray: the parts of `data.writing.build_dataset`, each written by whichever worker is free."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

import ray
from ray.exceptions import RayTaskError

from mcpl.data.writing import Each, Part, Written
from mcpl.errors import ConfigError
from mcpl.orchestration.fanout import cluster

ATTEMPTS = 3
"""Times that a part is begun again after its worker died; one that kills every worker stops the build"""


@contextlib.contextmanager
def workers(count: int) -> Iterator[Each]:
    """`map` over Ray tasks of one CPU each, at most `count` at a time, in the order in which they end.

    Only parts travel, never pictures: a worker reads its rows and commits its file by itself.
    """
    if count < 1:
        raise ConfigError(f"--workers {count}: at least 1")
    with cluster():
        yield lambda write, parts: _map(write, parts, count)


def _map(write: Callable[[Part], Written], parts: Iterable[Part], count: int) -> Iterator[Written]:
    task = ray.remote(num_cpus=1, max_retries=ATTEMPTS)(lambda part: write(part))
    running: list[ray.ObjectRef] = []
    for part in parts:
        if len(running) == count:
            yield _ended(running)
        running.append(task.remote(part))
    while running:
        yield _ended(running)


def _ended(running: list[ray.ObjectRef]) -> Written:
    """Wait for one task and take it out; an error of ours comes back as itself, without Ray's report around it."""
    (done, *_), _ = ray.wait(running, num_returns=1)
    running.remove(done)
    try:
        return ray.get(done)
    except RayTaskError as error:
        raise error.cause from None
