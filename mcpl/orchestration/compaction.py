"""Joins a run's parts into few large files, while workers go on and whatever dies in between.

Which shards share a file is fixed once, as a part's rows are: a compact file has one possible name and content, and
is committed put-if-absent. Its parts are deleted only when it is in storage; from then on they count for nothing, so
a crash between the two, or a zombie that commits one of them again, changes no count and doubles no row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from mcpl.data.bank import AHEAD, ahead, compact_name, decode_ids, joined, part_name, shards_of
from mcpl.data.storage import Store, open_store
from mcpl.errors import ConfigError
from mcpl.orchestration.plan import COMPACT, Plan, read_plan

TARGET_BYTES = 256_000_000


@dataclass(frozen=True)
class Compacted:
    """What one compaction did."""

    files: int
    """compact files made"""
    joined: int
    """parts whose rows went into them"""
    deleted: int
    """parts deleted, those that an earlier compaction or a zombie left included"""
    left: int
    """parts that stay parts: the files that they belong to are not complete yet"""
    shards_per_file: int


def compact(output: str, target_bytes: int = TARGET_BYTES) -> Compacted:
    """Join every group of parts that is complete; `target_bytes` is about the size of a file, fixed the first time.

    Raises ConfigError where there is no run, or where a part does not hold the rows that were planned.
    """
    store = open_store(output)
    plan = read_plan(store)
    parts = {shards_of(entry.name)[0]: entry for entry in store.list("part-") if len(shards_of(entry.name)) == 1}
    made = {entry.name for entry in store.list("part-compact-")}
    size = _shards_per_file(store, [entry.size for entry in parts.values()], target_bytes)
    new, deleted = [], 0
    for shards in groups(plan, size):
        name = compact_name(shards)
        if name not in made:
            if not parts.keys() >= set(shards) or not _join(store, plan, shards, name):
                continue
            new.append(shards)
        gone = sorted(parts.keys() & set(shards))
        deleted += sum(1 for _ in ahead(lambda shard: store.delete(part_name(shard)), gone, AHEAD))
        for shard in gone:
            del parts[shard]
    return Compacted(len(new), sum(map(len, new)), deleted, len(parts), size)


def groups(plan: Plan, size: int) -> Iterator[range]:
    """The shards of each compact file: `size` of one generation, fewer at its end, never one alone."""
    for generation in plan.generations:
        numbers = generation.numbers
        yield from (group for at in range(0, len(numbers), size) if len(group := numbers[at : at + size]) > 1)


def _join(store: Store, plan: Plan, shards: range, name: str) -> bool:
    """Commit the group's file. False where another compaction was quicker and has deleted parts already."""
    try:
        store.put_if_absent(name, joined(_checked(store, plan, shards)))
    except FileNotFoundError:
        return False
    return True


def _checked(store: Store, plan: Plan, shards: range) -> Iterator[tuple[int, bytes]]:
    contents = ahead(lambda shard: store.get(part_name(shard)), shards, AHEAD)
    for shard, data in zip(shards, contents, strict=True):
        if decode_ids(data, part_name(shard)) != list(plan.shard(shard).ids):
            raise ConfigError(
                f"{store.join(part_name(shard))} holds other rows than were planned; delete it and run train_all again"
            )
        yield shard, data


def _shards_per_file(store: Store, sizes: list[int], target_bytes: int) -> int:
    """How many shards share a file: what was fixed the first time, else as many of these parts as make the target."""
    if sizes:
        shards = max(1, round(target_bytes * len(sizes) / sum(sizes)))
        store.put_if_absent(COMPACT, json.dumps({"shards": shards}).encode())
    try:
        return json.loads(store.get(COMPACT))["shards"]
    except FileNotFoundError:
        raise ConfigError(f"{store.uri} holds no parts yet, so there is nothing to join") from None
