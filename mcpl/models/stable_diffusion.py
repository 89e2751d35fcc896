"""Stable Diffusion 1.x, 2.x and everything in their layout, the small scenes base included."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, SchedulerMixin, StableDiffusionPipeline
from torch import Tensor, nn

from mcpl.errors import ConfigError
from mcpl.models import schedulers
from mcpl.models.attention_rewriting import Rewrite, rewriting
from mcpl.models.base import Facts, guided
from mcpl.models.cross_attention import Recording, record
from mcpl.models.half_precision import entering, leaving
from mcpl.models.placeholders import learned_rows
from mcpl.types import Conditioning

_PARTS = (
    "unet", "text_encoder", "text_encoder_2", "bert", "vae", "vqvae", "tokenizer", "tokenizer_2", "scheduler",
)  # fmt: skip
"""folders of a model directory that its digest covers, where they are"""


NEUTRAL = ("object", "thing")
"""words that say of anything no more than that it is one; a base's neutral word is the first that it knows"""
FEW_PIECES = 10_000
"""a smaller vocabulary is the words of one small world, where CLIP has 49,408 and BERT 30,522 pieces"""


class ClipVocabulary:
    """How a CLIP tokenizer spells words."""

    def __init__(self, tokenizer) -> None:
        self._tokenizer = tokenizer
        self.start = tokenizer.bos_token_id
        self.end = tokenizer.eos_token_id
        self.pad = tokenizer.pad_token_id
        self.length = tokenizer.model_max_length
        self.size = len(tokenizer)
        self._cache: dict[str, tuple[int, ...]] = {}

    def pieces(self, word: str) -> tuple[int, ...]:
        if word not in self._cache:
            self._cache[word] = tuple(self._tokenizer(word, add_special_tokens=False).input_ids)
        return self._cache[word]

    def text(self, token_id: int) -> str:
        return self._tokenizer.convert_ids_to_tokens(int(token_id))


class StableDiffusion:
    """Adapter of a frozen StableDiffusionPipeline; see BaseModel for the verbs."""

    PIPELINE: type[DiffusionPipeline] = StableDiffusionPipeline
    OPTIONS: Mapping[str, object] = {
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    """what loading such a pipeline is told"""
    TEXTS: tuple[str, ...] = ("text_encoder",)
    """parts that encode text; a learned row is their input embeddings side by side"""
    VAE = "vae"

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        name: str,
        digest: str,
        familiar: Mapping[str, float] | None = None,
    ) -> None:
        self._unet, self._vae = pipeline.unet, getattr(pipeline, self.VAE)
        self._texts = tuple(getattr(pipeline, part) for part in self.TEXTS)
        self._widths = [text.config.hidden_size for text in self._texts]
        for network in self._networks:
            network.requires_grad_(False).eval()
        if self.dtype == torch.float16:  # the published autoencoders overflow, text encoders lose small gradients
            for network in (self._vae, *self._texts):
                network.to(torch.float32)
        # latents are not pictures: DDIM's defaults would clip them, where the base's own scheduler does not say
        self._scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False, thresholding=False)
        self.vocabulary = self._vocabulary(pipeline)
        self.alphas_cumprod = self._scheduler.alphas_cumprod.to(self.device)
        side = self._unet.config.sample_size
        factor = 2 ** (len(self._vae.config.block_out_channels) - 1)
        self.facts = Facts(
            name=name,
            digest=digest,
            architecture=self._architecture(),
            width=sum(self._widths),
            latent_shape=(self._unet.config.in_channels, side, side),
            resolution=side * factor,
            attention_size=min(_attended_sides(self._unet.config), key=lambda size: abs(size - 16)),
            prediction_type=self._scheduler.config.prediction_type,
            neutral_words=next(((word,) for word in NEUTRAL if self.knows(word)), NEUTRAL[:1]),
            closed_vocabulary=self.vocabulary.size < FEW_PIECES,
            familiar=familiar,
        )

    def _vocabulary(self, pipeline: DiffusionPipeline) -> ClipVocabulary:
        return ClipVocabulary(pipeline.tokenizer)

    def _architecture(self) -> str:
        if self._widths == [1024]:
            at_768 = self._scheduler.config.prediction_type == "v_prediction"
            return "stable-diffusion-v2-768-v" if at_768 else "stable-diffusion-v2-512"
        return "stable-diffusion-v1"

    @property
    def _networks(self) -> tuple[nn.Module, ...]:
        return (self._unet, self._vae, *self._texts)

    @property
    def _text(self) -> nn.Module:
        """The first, and mostly the only, text encoder."""
        return self._texts[0]

    @property
    def device(self) -> torch.device:
        return self._unet.device

    @cached_property
    def dtype(self) -> torch.dtype:
        return self._unet.dtype  # which walks through every module, each time

    def to(self, device: torch.device) -> StableDiffusion:
        """The same model, moved."""
        for network in self._networks:
            network.to(device)
        self.alphas_cumprod = self.alphas_cumprod.to(device)
        return self

    def save_memory(self) -> None:
        """Compute the U-Net's activations again in the backward pass, and pictures one by one; same results."""
        self._unet.enable_gradient_checkpointing()
        self._vae.enable_slicing()

    def word_embeddings(self, word: str) -> Tensor:
        pieces = self.vocabulary.pieces(word)
        if not pieces:
            raise ConfigError(f"the tokenizer of {self.facts.name} makes nothing of {word!r}")
        tables = [text.get_input_embeddings().weight for text in self._texts]
        return torch.cat([table[list(pieces)] for table in tables], dim=1).detach().clone()

    def knows(self, word: str) -> bool:
        return len(self.vocabulary.pieces(word)) == 1

    @torch.no_grad()
    def encode_pictures(self, pixels: Tensor) -> Tensor:
        latents = self._vae.encode(pixels.to(self.device, self._vae.dtype)).latent_dist.mode()
        return ((latents - self._shift) * self._vae.config.scaling_factor).to(self.dtype)

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        pictures = self._vae.decode(latents.to(self._vae.dtype) / self._vae.config.scaling_factor + self._shift).sample
        return ((pictures.float() / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu()

    @property
    def _shift(self) -> float:
        return self._vae.config.get("shift_factor") or 0.0

    def encode_prompts(self, token_ids: Tensor, slot_ids: Tensor, learned: Tensor) -> Conditioning:
        with learned_rows(self._text.get_input_embeddings(), slot_ids, learned):
            return Conditioning(self._text(input_ids=token_ids).last_hidden_state)

    @torch.no_grad()
    def unconditional(self) -> Conditioning:
        v = self.vocabulary
        empty = torch.full((1, v.length), v.pad, device=self.device)
        empty[0, 0], empty[0, 1] = v.start, v.end
        nothing = torch.empty(0, self.facts.width, device=self.device)
        return self.encode_prompts(empty, torch.full_like(empty, -1), nothing)

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        if self.dtype != torch.float16:
            return self._predict(noisy, timesteps, conditioning)
        return leaving(self._predict(noisy, timesteps, entering(conditioning)))

    def _predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        return self._unet(noisy, timesteps, encoder_hidden_states=conditioning.hidden).sample

    def record(self, positions: Tensor, affinity: bool = False) -> AbstractContextManager[Recording]:
        return record(self._unet, positions, self.facts.attention_size, affinity)

    def rewrite_attention(self, rewrite: Rewrite) -> AbstractContextManager[None]:
        return rewriting(self._unet, rewrite, (2 * self.facts.attention_size) ** 2)

    def scheduler(self, name: str, steps: int) -> SchedulerMixin:
        return schedulers.make(name, self._scheduler.config, steps, self.device)

    @torch.no_grad()
    def sample(
        self, noise: Tensor, conditioning: Conditioning, unconditional: Conditioning, steps: int, guidance: float
    ) -> Tensor:
        scheduler = self.scheduler("ddim", steps)
        both = guided(unconditional, conditioning)
        latents = noise.to(self.device, self.dtype) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(latents, t)
            without, given = self.predict(torch.cat([scaled, scaled]), t.expand(2 * len(noise)), both).chunk(2)
            latents = scheduler.step(without + guidance * (given - without), t, latents).prev_sample.to(self.dtype)
        return latents

    def state_digest(self) -> str:
        """sha256 over the weights as they are in memory now: proof that a model is unchanged."""
        digest = hashlib.sha256()
        for network in self._networks:
            for name, value in network.state_dict().items():
                digest.update(name.encode())
                digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()[:16]


def _attended_sides(unet) -> list[int]:
    """Side of the latent at every level that reads the text."""
    levels = enumerate(unet.down_block_types)
    return [unet.sample_size >> i for i, block in levels if "CrossAttn" in block] or [unet.sample_size]


def files_digest(directory: Path) -> str:
    """16 hex digits over the names and contents of the files that make up a model directory.

    Variants that are not loaded (`*.fp16.safetensors` and the like) do not count. Raises FileNotFoundError for none.
    """
    files = sorted(
        path
        for part in _PARTS
        for path in (directory / part).glob("*")
        if path.suffix in {".json", ".txt", ".safetensors"} and path.name.count(".") == 1
    )
    if not files:
        raise FileNotFoundError(f"{directory} holds no model files")
    digest = hashlib.sha256()
    for path in files:
        digest.update(str(path.relative_to(directory)).encode())
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]
