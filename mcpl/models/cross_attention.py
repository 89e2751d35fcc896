"""Look at a U-Net's attention while it works, and give it back as it was.

    with record(unet, positions, map_size=16) as recording:
        unet(...)
    recording.maps()      # [B, P, 16, 16]

The attention processors, fused kernels included, are left alone: hooks on the query and key projections of the layers
of one size rebuild the columns of the few tokens that are read: their exact shares of the softmax over all tokens.
Maps keep their gradient where one is being recorded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class Recording:
    """Attention of the read tokens, one [B, P, m, m] per layer of the asked size, mean over heads."""

    layers: dict[str, Tensor] = field(default_factory=dict)
    self_layers: dict[str, Tensor] = field(default_factory=dict)
    """self-attention of the same size, one [B, m*m, m*m] per layer, mean over heads; empty unless asked for"""

    def affinity(self) -> Tensor:
        """Mean over the recorded self-attention layers, rows summing to 1. [B, m*m, m*m]"""
        if not self.self_layers:
            raise RuntimeError("no self-attention layer of the asked size ran inside the `with` block")
        return torch.stack(list(self.self_layers.values())).mean(dim=0)

    def maps(self) -> Tensor:
        """Mean over the recorded layers. [B, P, m, m]"""
        if not self.layers:
            raise RuntimeError("no cross-attention layer of the asked size ran inside the `with` block")
        return torch.stack(list(self.layers.values())).mean(dim=0)


def attention_columns(query: Tensor, key: Tensor, positions: Tensor, heads: int, scale: float) -> Tensor:
    """Columns of softmax(q k^T scale), mean over heads: [B, N, H d], [B, L, H d], [B, P] -> [B, N, P]."""
    wide = torch.promote_types(query.dtype, torch.float32)
    q, k = (x.to(wide).unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key))
    shares = ((q * scale) @ k.transpose(-1, -2)).softmax(dim=-1)  # [B, H, N, L]; one pass, cheaper than log-sum-exp
    return shares.gather(-1, positions[:, None, None].expand(-1, heads, query.shape[1], -1)).mean(dim=1)


def self_attention(query: Tensor, key: Tensor, heads: int, scale: float) -> Tensor:
    """softmax(q k^T scale), mean over heads: [B, N, H d] twice -> [B, N, N]."""
    wide = torch.promote_types(query.dtype, torch.float32)
    q, k = (x.to(wide).unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key))
    return (q @ k.transpose(-1, -2) * scale).softmax(dim=-1).mean(dim=1)


def cross_attention_layers(unet: nn.Module) -> dict[str, nn.Module]:
    """Name -> diffusers Attention module of every cross-attention layer."""
    return _attention_layers(unet, cross=True)


def _attention_layers(unet: nn.Module, cross: bool) -> dict[str, nn.Module]:
    return {
        name: module
        for name, module in unet.named_modules()
        if getattr(module, "is_cross_attention", None) is cross and hasattr(module, "to_q")
    }


@contextmanager
def record(unet: nn.Module, positions: Tensor, map_size: int, affinity: bool = False) -> Iterator[Recording]:
    """Record the columns `positions` [B, P] of every cross-attention layer with map_size**2 queries.

    affinity: the self-attention layers of that size too, without gradient.
    """
    recording, handles = Recording(), []

    def watch_itself(name: str, attention: nn.Module) -> None:
        queries: list[Tensor] = []

        def on_query(_module, _inputs, output: Tensor) -> None:
            queries[:] = [output.detach()] if output.shape[1] == map_size**2 else []

        def on_key(_module, _inputs, output: Tensor) -> None:
            if queries:
                recording.self_layers[name] = self_attention(
                    queries.pop(), output.detach(), attention.heads, attention.scale
                )

        handles.append(attention.to_q.register_forward_hook(on_query))
        handles.append(attention.to_k.register_forward_hook(on_key))

    def watch(name: str, attention: nn.Module) -> None:
        queries: list[Tensor] = []

        def on_query(_module, _inputs, output: Tensor) -> None:
            queries[:] = [output] if output.shape[1] == map_size**2 else []

        def on_key(_module, _inputs, output: Tensor) -> None:
            if queries:
                columns = attention_columns(queries.pop(), output, positions, attention.heads, attention.scale)
                recording.layers[name] = columns.transpose(1, 2).unflatten(-1, (map_size, map_size))

        handles.append(attention.to_q.register_forward_hook(on_query))
        handles.append(attention.to_k.register_forward_hook(on_key))

    for name, attention in cross_attention_layers(unet).items():
        watch(name, attention)
    for name, attention in _attention_layers(unet, cross=False).items() if affinity else ():
        watch_itself(name, attention)
    try:
        yield recording
    finally:
        for handle in handles:
            handle.remove()
