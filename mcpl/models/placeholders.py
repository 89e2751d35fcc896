"""Learned rows take the place of input embeddings; tokenizer and weights are never edited."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def fill_slots(embedded: Tensor, slot_ids: Tensor, learned: Tensor) -> Tensor:
    """Rows of `embedded` [B, L, D] replaced by learned[slot] [S, D] where slot_ids [B, L] >= 0."""
    if learned.shape[0] == 0:
        return embedded
    # row 0 is nobody's: the gradient passes it by, where indexing would add up zeros for every ordinary token
    rows = F.embedding(slot_ids + 1, F.pad(learned, (0, 0, 1, 0)), padding_idx=0)
    return torch.where((slot_ids >= 0)[..., None], rows.to(embedded.dtype), embedded)


@contextmanager
def learned_rows(token_embedding: nn.Embedding, slot_ids: Tensor, learned: Tensor) -> Iterator[None]:
    """While inside, the embedding layer answers with learned rows at the slots; the layer itself is untouched."""
    handle = token_embedding.register_forward_hook(
        lambda _module, _inputs, output: fill_slots(output, slot_ids, learned)
    )
    try:
        yield
    finally:
        handle.remove()
