"""Change what a U-Net attends to while it works, and give it back as it was.

    with rewriting(unet, rewrite, most_queries=32**2):
        unet(...)

Recording (`cross_attention`) leaves the processors alone; a softmax can only be changed from inside, so here the
processors are exchanged, of the small layers only, and put back when the block is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

Rewrite = Callable[[Tensor, bool], Tensor]
"""(attention [B, heads, queries, keys], is it cross-attention?) -> the same, changed; rows sum to what they are to"""


class _Rewriting:
    """A processor of the attention inside transformer blocks: softmax spelt out, rewritten, applied."""

    def __init__(self, original: Any, rewrite: Rewrite, most_queries: int) -> None:
        self._original, self._rewrite, self._most = original, rewrite, most_queries

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, attention_mask=None, **rest
    ) -> Tensor:
        if hidden_states.ndim != 3 or hidden_states.shape[1] > self._most:
            return self._original(attn, hidden_states, encoder_hidden_states, attention_mask, **rest)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        query, key, value = (attn.head_to_batch_dim(part) for part in (query, key, value))
        shares = attn.get_attention_scores(query, key, attention_mask).unflatten(0, (len(hidden_states), attn.heads))
        shares = self._rewrite(shares, encoder_hidden_states is not None)
        return attn.to_out[1](attn.to_out[0](attn.batch_to_head_dim(shares.flatten(0, 1) @ value)))


@contextmanager
def rewriting(unet: nn.Module, rewrite: Rewrite, most_queries: int) -> Iterator[None]:
    """Pass the attention of every layer with at most `most_queries` queries through `rewrite` while inside."""
    layers = [module for module in unet.modules() if hasattr(module, "to_q") and hasattr(module, "set_processor")]
    originals = [layer.processor for layer in layers]
    try:
        for layer, original in zip(layers, originals, strict=True):
            layer.set_processor(_Rewriting(original, rewrite, most_queries))
        yield
    finally:
        for layer, original in zip(layers, originals, strict=True):
            layer.set_processor(original)
