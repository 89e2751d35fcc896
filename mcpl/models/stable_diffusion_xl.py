"""Stable Diffusion XL: two text encoders side by side, a pooled sentence and the picture's size as added conditions."""

from __future__ import annotations

from types import MappingProxyType

import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor

from mcpl.errors import ConfigError
from mcpl.models.placeholders import learned_rows
from mcpl.models.stable_diffusion import ClipVocabulary, StableDiffusion
from mcpl.types import Conditioning


class StableDiffusionXL(StableDiffusion):
    """Adapter of a frozen StableDiffusionXLPipeline. A learned row [D] is both encoders' input embeddings in turn."""

    PIPELINE = StableDiffusionXLPipeline
    OPTIONS = MappingProxyType({"add_watermarker": False})
    TEXTS = ("text_encoder", "text_encoder_2")

    def _vocabulary(self, pipeline: DiffusionPipeline) -> ClipVocabulary:
        if pipeline.tokenizer.get_vocab() != pipeline.tokenizer_2.get_vocab():
            raise ConfigError(f"the two tokenizers of {pipeline.config._name_or_path} spell words differently")
        self._pads = (pipeline.tokenizer.pad_token_id, pipeline.tokenizer_2.pad_token_id)
        self._zeros_for_nothing = bool(pipeline.config.force_zeros_for_empty_prompt)
        return ClipVocabulary(pipeline.tokenizer)

    def _architecture(self) -> str:
        return "stable-diffusion-xl-v1-base"

    def encode_prompts(self, token_ids: Tensor, slot_ids: Tensor, learned: Tensor) -> Conditioning:
        """Hidden states before the last layer of both encoders, and the second's pooled sentence."""
        hidden = []
        for text, pad, rows in zip(self._texts, self._pads, learned.split(self._widths, dim=1), strict=True):
            with learned_rows(text.get_input_embeddings(), slot_ids, rows):
                said = text(input_ids=_padded(token_ids, self.vocabulary.end, pad), output_hidden_states=True)
            hidden.append(said.hidden_states[-2])
        extra = {"text_embeds": said.text_embeds, "time_ids": self._size_ids(len(token_ids))}
        return Conditioning(torch.cat(hidden, dim=-1), extra)

    def _size_ids(self, rows: int) -> Tensor:
        """Original size, corner of the crop, target size, in pixels: the whole picture at its own size. [rows, 6]"""
        side = self.facts.resolution
        return torch.tensor([[side, side, 0, 0, side, side]] * rows, device=self.device, dtype=self._text.dtype)

    @torch.no_grad()
    def unconditional(self) -> Conditioning:
        """What XL was trained with for no text: zeros, where its configuration says so."""
        nothing = super().unconditional()
        if not self._zeros_for_nothing:
            return nothing
        pooled = torch.zeros_like(nothing.extra["text_embeds"])
        return Conditioning(torch.zeros_like(nothing.hidden), {**nothing.extra, "text_embeds": pooled})

    def _predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        added = dict(conditioning.extra)
        return self._unet(noisy, timesteps, encoder_hidden_states=conditioning.hidden, added_cond_kwargs=added).sample


def _padded(token_ids: Tensor, end: int, pad: int) -> Tensor:
    """The same sentences with everything behind their first end token turned into this encoder's padding. [B, L]"""
    ends = (token_ids == end).int()
    return torch.where(ends.cumsum(dim=1) - ends > 0, pad, token_ids)
