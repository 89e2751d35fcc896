"""What the learner may ask of a base model. Each foreign model gets a thin adapter with these few verbs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from mcpl.diffusion import PredictionType
from mcpl.models.attention_rewriting import Rewrite
from mcpl.models.cross_attention import Recording
from mcpl.prompts import Vocabulary
from mcpl.types import Conditioning


@dataclass(frozen=True)
class Facts:
    """What is constant about a base model."""

    name: str
    digest: str
    """16 hex digits of the sha256 over configuration and weights"""
    architecture: str
    """ModelSpec architecture of embedding files made with it"""
    width: int
    """D of a learned row"""
    latent_shape: tuple[int, int, int]
    """C, h, w"""
    resolution: int
    """pixels of a side"""
    attention_size: int
    """m: side of the cross-attention maps that are read (the 16x16-ish layers)"""
    prediction_type: PredictionType
    neutral_words: tuple[str, ...]
    """words whose mean embedding is the neutral initialiser"""
    closed_vocabulary: bool = False
    """True where a word spelt in several pieces means nothing to the base"""
    familiar: Mapping[str, float] | None = None
    """limits of what its own pictures measure, see mcpl.learning.familiarity; None where nobody measured"""


class BaseModel(Protocol):
    """A frozen text-to-image diffusion model."""

    facts: Facts
    vocabulary: Vocabulary
    alphas_cumprod: Tensor
    """[T] of the training schedule"""
    device: torch.device
    dtype: torch.dtype

    def to(self, device: torch.device) -> BaseModel:
        """The same model on another device."""
        ...

    def save_memory(self) -> None:
        """From now on trade time for memory; what is learned stays the same."""
        ...

    def word_embeddings(self, word: str) -> Tensor:
        """Input embeddings of a word's token pieces. [pieces, D]"""
        ...

    def knows(self, word: str) -> bool:
        """True where a word is one piece of the vocabulary."""
        ...

    def encode_pictures(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] in -1..1 -> scaled latents [B, C, h, w], the mean of the encoder."""
        ...

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Scaled latents [B, C, h, w] -> pictures [B, H, W, 3] uint8."""
        ...

    def encode_prompts(self, token_ids: Tensor, slot_ids: Tensor, learned: Tensor) -> Conditioning:
        """Text encoding with learned rows [S, D] in place of input embeddings where slot_ids [B, L] >= 0."""
        ...

    def unconditional(self) -> Conditioning:
        """Text encoding of the empty sentence. [1, L, D']"""
        ...

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The U-Net's output, of `facts.prediction_type`. [B, C, h, w]"""
        ...

    def record(self, positions: Tensor, affinity: bool = False) -> AbstractContextManager[Recording]:
        """Record the cross-attention columns of token positions [B, P] while inside the `with` block; with `affinity`
        the self-attention of the same size too."""
        ...

    def rewrite_attention(self, rewrite: Rewrite) -> AbstractContextManager[None]:
        """Inside the `with` block attention of up to twice `attention_size` a side passes through `rewrite`."""
        ...

    def scheduler(self, name: str, steps: int) -> Any:
        """One of diffusers' schedulers by its name in SCHEDULERS, set to so many steps over the base's schedule."""
        ...

    def sample(
        self, noise: Tensor, conditioning: Conditioning, unconditional: Conditioning, steps: int, guidance: float
    ) -> Tensor:
        """Latents made from noise [B, C, h, w] with classifier-free guidance. [B, C, h, w]"""
        ...


def joined(conditionings: Sequence[Conditioning]) -> Conditioning:
    """Several as one batch, in their order."""
    extra = {name: torch.cat([one.extra[name] for one in conditionings]) for name in conditionings[0].extra}
    return Conditioning(torch.cat([one.hidden for one in conditionings]), extra)


def guided(unconditional: Conditioning, conditioning: Conditioning) -> Conditioning:
    """Both as one batch for classifier-free guidance, the unconditional [1, ...] first. [2B, ...]"""

    def both(without: Tensor, given: Tensor) -> Tensor:
        return torch.cat([without.expand_as(given), given])

    extra = {name: both(unconditional.extra[name], given) for name, given in conditioning.extra.items()}
    return Conditioning(both(unconditional.hidden, conditioning.hidden), extra)


def mean_embedding(model: BaseModel, words: Sequence[str]) -> Tensor:
    """Mean over words of the mean over their pieces. [D]"""
    return torch.stack([model.word_embeddings(word).mean(dim=0) for word in words]).mean(dim=0)
