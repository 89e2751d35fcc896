"""Pictures that share their words (MCPL-diverse): which rows of a dataset make one job, and where they lie.

A row without a group is a job by itself, called by its `image_id`. Rows of one `group`, wherever they stand, are one
job called by the group's name; it lies where its first picture lies, and is never cut.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate

from mcpl.data.dataset import Dataset, ShardRef
from mcpl.errors import ConfigError
from mcpl.types import Example, Group


def jobs(dataset: Dataset, size: int) -> Iterator[tuple[tuple[ShardRef, ...], list[str]]]:
    """(what to read, names of the jobs that begin there) for every `size` rows of a dataset; a group's other rows are
    read with its first. Raises ConfigError where a group is called like somebody else's picture.
    """
    shards, ids = dataset.shards(size), dataset.ids()
    groups = dataset.groups()
    if not any(groups):
        rows = iter(ids)
        yield from (((shard,), [next(rows) for _ in range(shard.rows)]) for shard in shards)
        return
    _check_names(dataset, ids, groups)
    rows_of: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        if group:
            rows_of.setdefault(group, []).append(row)
    starts = [0, *accumulate(shard.rows for shard in shards)]

    def place(row: int) -> ShardRef:
        shard = bisect_right(starts, row) - 1
        start = shards[shard].start + row - starts[shard]
        return replace(shards[shard], start=start, stop=start + 1)

    for shard, start, stop in zip(shards, starts, starts[1:], strict=False):
        first = [row for row in range(start, stop) if not groups[row] or rows_of[groups[row]][0] == row]
        later = (row for one in first if groups[one] for row in rows_of[groups[one]] if row >= stop)
        if first:
            yield (shard, *map(place, sorted(later))), [groups[row] or ids[row] for row in first]


def places(dataset: Dataset) -> dict[str, tuple[ShardRef, ...]]:
    """Where each job lies, in order."""
    return {name: refs for refs, (name,) in jobs(dataset, 1)}


def read(dataset: Dataset, refs: Iterable[ShardRef]) -> list[Example | Group]:
    """The jobs of which something lies there; of a group that much."""
    rows = (row for ref in refs for row in dataset.read(ref))
    return gathered(rows) if "group" in dataset.columns else list(rows)


def every(dataset: Dataset) -> Iterator[Example | Group]:
    """Every job, read when it is asked for."""
    if "group" not in dataset.columns:
        yield from dataset.examples()
    else:
        yield from (read(dataset, refs)[0] for refs in places(dataset).values())


def spread(dataset: Dataset, count: int) -> list[Example | Group]:
    """`count` jobs (all, where there are fewer), evenly over the dataset."""
    if "group" not in dataset.columns:
        return [dataset.read(ref)[0] for ref in dataset.spread(count)]
    known = list(places(dataset).values())
    count = min(count, len(known))
    return [read(dataset, known[place * len(known) // count])[0] for place in range(count)]


def gathered(examples: Iterable[Example]) -> list[Example | Group]:
    """The jobs that some rows make, in the order of their first rows."""
    found: dict[tuple[bool, str], list[Example]] = {}
    for example in examples:
        found.setdefault((bool(example.group), example.group or example.id), []).append(example)
    return [Group(name, tuple(own)) if grouped else own[0] for (grouped, name), own in found.items()]


def sizes(dataset: Dataset) -> Counter[str]:
    """Group -> its pictures."""
    return Counter(group for group in dataset.groups() if group)


def _check_names(dataset: Dataset, ids: Sequence[str], groups: Sequence[str | None]) -> None:
    names = {group for group in groups if group}
    taken = next((id for id, group in zip(ids, groups, strict=True) if id in names and group != id), None)
    if taken:
        raise ConfigError(
            f"{dataset.uri}: {taken!r} is both a group and a picture outside it: a group's row in the bank is called"
            " as the group is, so give one of them another name"
        )
