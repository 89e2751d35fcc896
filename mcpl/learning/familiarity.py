"""Does the base know what it is asked about? Said before anything is trained, because no step will mend it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from mcpl.diffusion import add_noise, bucket_centres, target
from mcpl.models.base import BaseModel
from mcpl.types import Sentence

BUCKETS = 10
"""time-step buckets of the unconditional loss"""


def unknown_words(sentence: Sentence, model: BaseModel) -> tuple[str, ...]:
    """Ordinary words of a sentence, initialisers included, that are no single token of the base, in reading order.

    Large vocabularies spell rare words in pieces without harm; a base says with `facts.closed_vocabulary` that
    pieces mean nothing to it.
    """
    if not model.facts.closed_vocabulary:
        return ()
    read = (sentence.concepts[w.concept].initializer if w.role == "placeholder" else w.text for w in sentence.words)
    return tuple(dict.fromkeys(word for word in (r.lower() for r in read if r) if not model.knows(word)))


@torch.no_grad()
def strangeness(model: BaseModel, pixels: Tensor) -> dict[str, float]:
    """How far a picture [3, H, W] in -1..1 is from what the base can hold and draw.

    round_trip_psnr: dB between the picture and what the autoencoder makes of it.
    loss: mean squared error of the unconditional prediction over fixed noise, one draw in each of 10 buckets.
    """
    latents = model.encode_pictures(pixels[None])
    again = model.decode_latents(latents)[0].permute(2, 0, 1).float() / 127.5 - 1
    error = float((again - pixels).square().mean()) / 4  # of a range of 1, pixels span 2
    noise = torch.randn((BUCKETS, *latents.shape[1:]), generator=torch.Generator().manual_seed(0))
    noise = noise.to(latents)
    timesteps = bucket_centres(BUCKETS, len(model.alphas_cumprod)).to(model.device)
    rows = latents.expand(BUCKETS, -1, -1, -1)
    empty = model.unconditional()
    empty = type(empty)(empty.hidden.expand(BUCKETS, -1, -1), empty.extra)
    prediction = model.predict(add_noise(rows, noise, timesteps, model.alphas_cumprod), timesteps, empty)
    wanted = target(rows, noise, timesteps, model.alphas_cumprod, model.facts.prediction_type)
    return {
        "round_trip_psnr": -10 * math.log10(max(error, 1e-10)),
        "loss": float((prediction - wanted).float().square().mean()),
    }


def looks_strange(measured: Mapping[str, float], limits: Mapping[str, float]) -> str | None:
    """One sentence saying why a picture is unlike what the base knows; None where it is not.

    limits: `round_trip_psnr` of the worst and `loss` of the hardest percent of the pictures that it was trained on.
    """
    if measured["round_trip_psnr"] < limits["round_trip_psnr"]:
        return (
            f"its autoencoder keeps this picture at {measured['round_trip_psnr']:.1f} dB only "
            f"(pictures that it knows: {limits['round_trip_psnr']:.1f} dB or more)"
        )
    if measured["loss"] > limits["loss"]:
        return (
            f"its denoising error on this picture is {measured['loss']:.2f} "
            f"(pictures that it knows: {limits['loss']:.2f} or less)"
        )
    return None
