"""The networks of the small base, each in its stock diffusers or transformers class."""

from __future__ import annotations

from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from pydantic import BaseModel, ConfigDict
from transformers import CLIPTextConfig, CLIPTextModel

from mcpl.scenes.training.tokenizer import MAX_TOKENS

LATENTS = 4  # channels of a latent picture, C


class Shape(BaseModel):
    """The size of the networks; what `model_index.json` and the hand-over checkpoint record."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pixels: int = 32  # side of a picture; the latents are half as wide
    width: int = 96  # of a text token
    text_layers: int = 2
    text_heads: int = 4
    channels: tuple[int, ...] = (64, 96, 128)  # of the U-Net's levels, finest first
    layers: int = 1  # residual blocks a level
    heads: tuple[int, ...] = (4, 4, 4)  # attention heads of each level
    attend: tuple[bool, ...] = (True, True, False)  # which levels read the text, besides the middle


def build_text_encoder(shape: Shape, tokens: int) -> CLIPTextModel:
    """A causal CLIP text encoder over `tokens` token ids, the last of which ends a sentence."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=tokens,
            hidden_size=shape.width,
            intermediate_size=4 * shape.width,
            projection_dim=shape.width,
            num_hidden_layers=shape.text_layers,
            num_attention_heads=shape.text_heads,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokens - 2,
            eos_token_id=tokens - 1,
            pad_token_id=tokens - 1,
        )
    )


def build_unet(shape: Shape) -> UNet2DConditionModel:
    """A U-Net over latents [B, 4, h, w] that reads text states [B, L, width]."""
    down = tuple("CrossAttnDownBlock2D" if reads else "DownBlock2D" for reads in shape.attend)
    up = tuple("CrossAttnUpBlock2D" if reads else "UpBlock2D" for reads in reversed(shape.attend))
    return UNet2DConditionModel(
        sample_size=shape.pixels // 2,
        in_channels=LATENTS,
        out_channels=LATENTS,
        down_block_types=down,
        up_block_types=up,
        block_out_channels=shape.channels,
        layers_per_block=shape.layers,
        norm_num_groups=8,
        cross_attention_dim=shape.width,
        attention_head_dim=shape.heads,  # diffusers means the number of heads
    )


def build_vae(shape: Shape) -> AutoencoderKL:
    """An autoencoder that halves each side: pictures [B, 3, 2h, 2w] in -1..1 to latents [B, 4, h, w]."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 32),
        layers_per_block=1,
        latent_channels=LATENTS,
        norm_num_groups=8,
        sample_size=shape.pixels,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def build_scheduler(prediction: str = "v_prediction", schedule: str = "squaredcos_cap_v2") -> DDIMScheduler:
    """Cosine schedule, because pictures this small lose their content at little noise; v target, so that it may end at
    zero SNR."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule=schedule,
        prediction_type=prediction,
        rescale_betas_zero_snr=prediction == "v_prediction",
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        clip_sample=False,
        steps_offset=1,
    )
