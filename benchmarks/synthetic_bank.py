"""A bank of rendered scenes whose words nobody learned: rows of the right shape in milliseconds each, to look at pages
with. Maps are the true masks, blurred; vectors lie near a centre of their word; scores follow from both."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter

from mcpl.data.bank import encode, part_name
from mcpl.data.sources import scenes, write_dataset
from mcpl.data.storage import open_store
from mcpl.prompts import parse
from mcpl.types import BankRow, CurvePoint, Example, LearnedConcept, LearnedConcepts, Provenance

SIDE, WIDTH, PART = 16, 96, 100
"""of maps; of vectors; rows of a part"""


def write(folder: Path, count: int, seed: int = 0) -> tuple[Path, Path]:
    """(bank, dataset) of so many pictures, every 37th of which failed."""
    examples = list(scenes(count, seed, objects=2))
    write_dataset(examples, folder / "dataset")
    store, rows = open_store(folder / "bank"), list(rows_of(examples))
    for part, start in enumerate(range(0, count, PART)):
        store.put(part_name(part), encode(rows[start : start + PART]))
    return folder / "bank", folder / "dataset"


def rows_of(examples: list[Example]) -> Iterator[BankRow]:
    for number, example in enumerate(examples):
        yield _failed(example) if number % 37 == 36 else row(example, number)


def row(example: Example, number: int) -> BankRow:
    """A learned row; the same example and number give the same."""
    draw, sentence = np.random.default_rng(number), parse(example.text)
    quality = float(draw.beta(5, 2))
    words = tuple(_word(concept, example, quality, draw) for concept in sentence.concepts)
    steps = tuple(range(0, 201, 25))
    loss = 0.08 * (0.6 + 0.5 * draw.random())
    gone = [math.exp(-step / 60) for step in steps]
    curve = tuple(
        CurvePoint(step, loss * (1 - 0.25 * quality * (1 - g)), 0.2 + 0.1 * g, 0.9 + 0.2 * (1 - g), 0.7 + 0.2 * g)
        for step, g in zip(steps, gone, strict=True)
    )
    losses = {
        "denoising": tuple((loss * (1 + 0.5 * draw.normal(size=200) ** 2)).tolist()),
        "contrastive": tuple((1 + np.exp(-np.arange(200) / 40)).tolist()),
    }
    metrics = {
        "attention_iou_step0": 0.55 + 0.1 * draw.random(),
        "attention_iou": 0.3 + 0.6 * quality,
        "assignment_step0": 0.5,
        "assignment": float(quality > 0.4),
        "prompt_similarity": 0.95 - 0.5 * quality,
        "fixed_noise_loss_step0": curve[0].fixed_noise_loss,
        "fixed_noise_loss": curve[-1].fixed_noise_loss,
        "sign_collapse": float(quality < 0.35),
        "sign_low_fidelity": float(draw.random() < 0.15),
    }
    learned = LearnedConcepts(example.id, words, curve, losses, 200, 890)
    told = {"metrics": metrics, "seconds": 21.5, "host": "nobody", "learned_at": "2026-01-01T00:00:00+00:00"}
    return BankRow(example.id, example.text, "learned", _provenance(example), learned=learned, **told)


def _word(concept, example: Example, quality: float, draw: np.random.Generator) -> LearnedConcept:
    mask = Image.open(io.BytesIO(example.masks[concept.slug])).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)

    def looked(blur: float, noise: float) -> torch.Tensor:
        map_ = np.asarray(mask.filter(ImageFilter.GaussianBlur(blur)), np.float32) / 255
        map_ = map_ / max(float(map_.max()), 1e-6) + noise * draw.random((SIDE, SIDE)).astype(np.float32)
        return torch.from_numpy(map_ / map_.max())

    centre = np.random.default_rng(int.from_bytes(concept.slug.encode()[:6])).normal(size=WIDTH)
    vectors = torch.from_numpy((centre + 0.5 * draw.normal(size=WIDTH))[None].astype(np.float32) / 10)
    return LearnedConcept(concept, vectors, looked(0.8, 0.6 * (1 - quality)), looked(2.0, 0.5))


def _failed(example: Example) -> BankRow:
    return replace(BankRow(example.id, example.text, "failed", _provenance(example)), reason="the picture is made up")


def _provenance(example: Example) -> Provenance:
    digests = (hashlib.sha256(data).hexdigest() for data in (example.image, example.text.encode()))
    return Provenance("synthetic", "0" * 16, "none", "0" * 16, 0, "none", *digests)
