"""What a dataset would take, from a few of its pictures learned here: time, accelerator hours, storage."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from mcpl.config import Placement, Recipe
from mcpl.data import groups
from mcpl.data.bank import encode
from mcpl.data.sources import Dataset
from mcpl.errors import ConfigError
from mcpl.orchestration.compaction import TARGET_BYTES
from mcpl.orchestration.job import Runner

START_SECONDS = 15.0
"""Ray Train's own start, measured on two busy cores; loading the base comes on top"""


@dataclass(frozen=True)
class Measured:
    """A few pictures learned on one device, by a process of its own."""

    pictures: int
    """how many were learned for the measurement, in whole packs"""
    failed: int
    """of these, how many gave no words: their time counts as it was"""
    pack: int
    """most pictures that shared a batch"""
    seconds_per_picture: float
    bytes_per_picture: float
    """of the bank; all but the first kilobytes of a file are the vectors and maps"""
    load_seconds: float
    """for the frozen base"""
    device: str

    @property
    def on_gpu(self) -> bool:
        return not self.device.startswith("cpu")


@dataclass(frozen=True)
class Estimate:
    """What the whole set takes with so many workers."""

    workers: int
    hours: float
    """wall time, start-up included"""
    device_hours: float
    """GPU-hours, or core-hours without one: what is paid for"""


@dataclass(frozen=True)
class Plan:
    """A measurement and what follows from it."""

    dataset: str
    rows: int
    shard_size: int
    measured: Measured
    estimates: tuple[Estimate, ...]

    @property
    def parts(self) -> int:
        return -(-self.rows // self.shard_size)

    @property
    def bank_bytes(self) -> float:
        return self.rows * self.measured.bytes_per_picture

    @property
    def files(self) -> int:
        """after compaction"""
        return max(1, round(self.bank_bytes / TARGET_BYTES))

    def plain(self) -> dict:
        """The same as values for JSON."""
        named = {"parts": self.parts, "bank_bytes": round(self.bank_bytes), "compact_files": self.files}
        return asdict(self) | named


def estimate(uri: str, recipe: Recipe, placement: Placement, pictures: int, workers: Sequence[int]) -> Plan:
    """Learn `pictures` spread over the dataset, more where a pack is larger, after one that only warms up, and reckon
    the rest for each number of workers that could all have something to do.

    Raises ConfigError where not one of them can be learned.
    """
    dataset = Dataset.open(uri)
    measured = measure(dataset, pictures, recipe, placement)
    if measured.failed == measured.pictures:
        raise ConfigError(
            f"{uri}: not one of {measured.pictures} pictures could be learned: mcpl dataset validate {uri}"
        )
    rows = len(groups.places(dataset)) if "group" in dataset.columns else dataset.count
    shards = -(-rows // placement.shard_size)
    return Plan(
        dataset=dataset.uri,
        rows=rows,
        shard_size=placement.shard_size,
        measured=measured,
        estimates=tuple(
            reckoned(rows, shards, measured, placement, count)
            for count in workers
            if count <= shards or count == min(workers)
        ),
    )


def measure(dataset: Dataset, pictures: int, recipe: Recipe, placement: Placement) -> Measured:
    """Learn so many, in whole packs, as a worker would, and look at the clock and at what would be stored."""
    placement = placement.model_copy(update={"threads": placement.worker_threads})
    started = time.monotonic()
    runner = Runner(recipe, placement)
    loaded = time.monotonic()
    shard = groups.spread(dataset, placement.shard_size)
    pack = min(runner.pack_size(shard), len(shard))
    examples = groups.spread(dataset, math.ceil(pictures / pack) * pack)
    few = recipe.model_copy(update={"steps": min(2, recipe.steps)})
    Runner(few, placement.model_copy(update={"pack": 1}), runner.model)(examples[:1])
    warm = time.monotonic()
    rows = [row for at in range(0, len(examples), pack) for row in runner(examples[at : at + pack])]
    done = time.monotonic()
    return Measured(
        pictures=len(rows),
        failed=sum(row.status != "learned" for row in rows),
        pack=min(len(rows), pack, runner.most or pack),
        seconds_per_picture=(done - warm) / len(rows),
        bytes_per_picture=len(encode(rows)) / len(rows),
        load_seconds=loaded - started,
        device=device_name(runner.model.device),
    )


def reckoned(rows: int, shards: int, measured: Measured, placement: Placement, workers: int) -> Estimate:
    """Time and cost with so many workers that do not slow each other down. More than there are shards do nothing."""
    busy = min(workers, shards)
    learning = rows * measured.seconds_per_picture / busy
    hours = (START_SECONDS + measured.load_seconds + learning) / 3600
    share = (placement.gpus_per_worker or 1) if measured.on_gpu else placement.worker_threads
    return Estimate(workers, hours, busy * hours * share)


def device_name(device: torch.device) -> str:
    """What a person calls it: the GPU's model, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
