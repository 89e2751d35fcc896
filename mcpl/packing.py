"""Which jobs share a U-Net batch; how their rows are joined and their numbers split again. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")


def chunks(items: Iterable[Item], size: int) -> Iterator[tuple[Item, ...]]:
    """Neighbouring items in packs of at most `size`."""
    iterator = iter(items)
    while pack := tuple(islice(iterator, size)):
        yield pack


def join_slots(slot_ids: Sequence[Tensor], slots: Sequence[int]) -> Tensor:
    """Rows of several jobs with local slot ids -> one [B, L] with ids into the pack's S rows; -1 stays -1.

    slot_ids[j]: [b, L] local to job j;  slots[j]: how many learned rows job j owns.
    """
    joined, before = torch.cat(tuple(slot_ids)), torch.tensor(slots).cumsum(0) - torch.tensor(slots)
    offsets = before.repeat_interleave(torch.tensor([len(local) for local in slot_ids]))[:, None]
    return torch.where(joined >= 0, joined + offsets, joined)


def mean_by_job(values: Tensor, job_ids: Tensor, jobs: int) -> Tensor:
    """Mean of one number per row over each job's rows: [B], [B] -> [J]."""
    total = values.new_zeros(jobs).index_add(0, job_ids, values)
    count = values.new_zeros(jobs).index_add(0, job_ids, torch.ones_like(values))
    return total / count


def halve(items: Sequence[Item]) -> tuple[Sequence[Item], Sequence[Item]]:
    """Two packs out of one that was too large."""
    middle = (len(items) + 1) // 2
    return items[:middle], items[middle:]
