"""The paper's own base: latent diffusion text-to-image at 256 pixels, with a BERT-like text encoder."""

from __future__ import annotations

from types import MappingProxyType

from diffusers import DiffusionPipeline, LDMTextToImagePipeline

from mcpl.models.stable_diffusion import ClipVocabulary, StableDiffusion


class BertVocabulary(ClipVocabulary):
    """How a BERT tokenizer spells words; its sentences stand between [CLS] and [SEP]."""

    def __init__(self, tokenizer, length: int) -> None:
        super().__init__(tokenizer)
        self.start, self.end, self.length = tokenizer.cls_token_id, tokenizer.sep_token_id, length


class LatentDiffusion(StableDiffusion):
    """Adapter of a frozen LDMTextToImagePipeline whose autoencoder is an AutoencoderKL, as the published one is."""

    PIPELINE = LDMTextToImagePipeline
    OPTIONS = MappingProxyType({})
    TEXTS = ("bert",)
    VAE = "vqvae"

    def _vocabulary(self, pipeline: DiffusionPipeline) -> BertVocabulary:
        return BertVocabulary(pipeline.tokenizer, pipeline.bert.config.max_position_embeddings)

    def _architecture(self) -> str:
        return "latent-diffusion"
