"""Tiny bases with random weights in the layouts of real ones: real text widths, a vocabulary of a few words."""

from __future__ import annotations

from pathlib import Path

import torch

from mcpl.prompts import TEMPLATES

CLIP = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 40}


def tokenizer(pad: str = "<|endoftext|>"):
    """A CLIP tokenizer of the rendered world's words; SD 2 and the second of SD XL pad with '!'."""
    from mcpl.scenes.grammar import vocabulary
    from mcpl.scenes.training.tokenizer import build_tokenizer

    made = build_tokenizer(vocabulary(TEMPLATES))
    made.pad_token = pad
    return made


def text_encoder(width: int, words: int, projected: bool = False, **config):
    """A CLIP text encoder whose words differ as much as those of a trained one."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    settings = CLIP | {
        "vocab_size": words, "hidden_size": width, "projection_dim": width,
        "bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": words - 1,
    }  # fmt: skip
    made = (CLIPTextModelWithProjection if projected else CLIPTextModel)(CLIPTextConfig(**settings | config))
    with torch.no_grad():
        made.get_input_embeddings().weight.normal_(0, 1)
    return made


def vae(scaling_factor: float, levels: int = 2):
    """An autoencoder that makes pictures smaller by 2 ** (levels - 1)."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels, norm_num_groups=4, latent_channels=4, scaling_factor=scaling_factor,
    )  # fmt: skip


def unet(width: int, **config):
    """Two levels at 8x8 latents; both read the text."""
    from diffusers import UNet2DConditionModel

    settings = {
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "norm_num_groups": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (8, 16), "cross_attention_dim": width, "attention_head_dim": (2, 2),
    }  # fmt: skip
    return UNet2DConditionModel(**settings | config)


SCHEDULE = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
    "set_alpha_to_one": False, "steps_offset": 1,
}  # fmt: skip


def stable_diffusion_1():
    """As SD 1.5: width 768, epsilon, PNDM."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    schedule = {k: v for k, v in SCHEDULE.items() if k != "clip_sample"}
    return StableDiffusionPipeline(
        vae(0.18215), text_encoder(768, len(tokenizer())), tokenizer(), unet(768),
        PNDMScheduler(skip_prk_steps=True, **schedule), None, None, requires_safety_checker=False,
    )  # fmt: skip


def stable_diffusion_2():
    """As SD 2.1: OpenCLIP's width 1024 and activation, padding with '!', v-prediction, linear projections."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    words = tokenizer("!")
    return StableDiffusionPipeline(
        vae(0.18215), text_encoder(1024, len(words), hidden_act="gelu", pad_token_id=words.pad_token_id), words,
        unet(1024, use_linear_projection=True), DDIMScheduler(prediction_type="v_prediction", **SCHEDULE),
        None, None, requires_safety_checker=False,
    )  # fmt: skip


def stable_diffusion_xl(eos_token_id: int | None = 2):
    """As SD XL: two encoders, pooled text and size ids, no text at the finest level; `eos_token_id: 2` as published."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    first, second = tokenizer(), tokenizer("!")
    ends = {} if eos_token_id is None else {"eos_token_id": eos_token_id}
    schedule = {k: SCHEDULE[k] for k in ("beta_start", "beta_end", "beta_schedule", "steps_offset")}
    network = unet(
        768 + 1280,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=1280 + 6 * 8,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae(0.13025), text_encoder(768, len(first)),
        text_encoder(1280, len(second), projected=True, hidden_act="gelu", **ends), first, second,
        network, EulerDiscreteScheduler(**schedule), add_watermarker=False,
    )  # fmt: skip


def latent_diffusion():
    """As the paper's own base: BERT-like encoder of width 1280, BERT's tokenizer, DDIM."""
    from diffusers import DDIMScheduler, LDMTextToImagePipeline
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
    from transformers import BertTokenizer

    from mcpl.scenes.grammar import vocabulary

    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + c for c in letters)]
    words = list(dict.fromkeys([*pieces, *sorted(vocabulary(TEMPLATES))]))
    bert = LDMBertModel(
        LDMBertConfig(
            vocab_size=len(words), max_position_embeddings=77, encoder_layers=2, encoder_ffn_dim=16,
            encoder_attention_heads=2, head_dim=8, d_model=1280,
        )
    )  # fmt: skip
    with torch.no_grad():
        bert.get_input_embeddings().weight.normal_(0, 1)
    words = BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    autoencoder = vae(0.18215, levels=4)  # this pipeline takes a factor of 8 for granted
    return LDMTextToImagePipeline(autoencoder, bert, words, unet(1280), DDIMScheduler(**SCHEDULE))


PIPELINES = {
    "sd1": stable_diffusion_1,
    "sd2": stable_diffusion_2,
    "sdxl": stable_diffusion_xl,
    "ldm": latent_diffusion,
}


def save(kind: str, directory: Path) -> Path:
    """A pipeline of a kind with weights from a fixed seed, in diffusers' layout."""
    torch.manual_seed(0)
    PIPELINES[kind]().save_pretrained(directory, safe_serialization=True)
    return directory
