"""Shared fixtures: a tiny base in Stable Diffusion's layout with random weights, built once per session, offline."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import numpy as np
import pytest
import torch

from mcpl.models.catalogue import load
from mcpl.prompts import TEMPLATES


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Small matrices on shared cores: two threads are slower than one."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_base_dir(tmp_path_factory):
    """Directory of a random base: 16 px pictures, 8x8x4 latents, text width 16, two U-Net levels."""
    from diffusers import StableDiffusionPipeline

    from mcpl.scenes.grammar import vocabulary
    from mcpl.scenes.training.networks import (
        Shape,
        build_scheduler,
        build_text_encoder,
        build_unet,
        build_vae,
    )
    from mcpl.scenes.training.tokenizer import build_tokenizer

    torch.manual_seed(0)
    shape = Shape(pixels=16, width=16, text_heads=2, channels=(8, 16), heads=(2, 2), attend=(True, True))
    tokenizer = build_tokenizer(vocabulary(TEMPLATES))
    text_encoder = build_text_encoder(shape, len(tokenizer))
    with torch.no_grad():  # transformers' small initial scale would leave every word alike
        text_encoder.get_input_embeddings().weight.normal_(0, 1)
    pipeline = StableDiffusionPipeline(
        vae=build_vae(shape),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=build_unet(shape),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    directory = tmp_path_factory.mktemp("tiny-base")
    pipeline.save_pretrained(directory, safe_serialization=True)
    return directory


@pytest.fixture(scope="session")
def tiny(tiny_base_dir):
    """The tiny base in float64: equalities can be asked to 1e-9."""
    return load(str(tiny_base_dir), precision="float64", device="cpu")


@pytest.fixture
def passes(tiny, monkeypatch):
    """Grows by the rows of every U-Net call while a test runs; `sum(passes)` is the cost."""
    rows, original = [], tiny.predict

    def counting(noisy, *rest):
        rows.append(len(noisy))
        return original(noisy, *rest)

    monkeypatch.setattr(tiny, "predict", counting)
    return rows


@pytest.fixture(scope="session")
def pixels():
    """Deterministic smooth pictures, [n, 3, 16, 16] in -1..1."""

    def make(n: int) -> torch.Tensor:
        rng = np.random.default_rng(0)
        coarse = torch.tensor(rng.uniform(-1, 1, (n, 3, 4, 4)))
        return torch.nn.functional.interpolate(coarse, size=16, mode="bilinear")

    return make


@pytest.fixture(scope="session")
def base_dir(tmp_path_factory):
    """kind ('sd1', 'sd2', 'sdxl' ...) -> directory of a tiny base of that kind, built once."""
    import tiny_bases

    made = {}

    def directory(kind: str):
        if kind not in made:
            made[kind] = tiny_bases.save(kind, tmp_path_factory.mktemp(kind))
        return made[kind]

    return directory
