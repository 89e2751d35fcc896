"""Score one learned picture: draw each word alone and all together, judge what can be judged, fill the metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from torch import Tensor

from mcpl.evaluation.metrics import Scored, score
from mcpl.evaluation.sampling import Sampling, alone, generate
from mcpl.evaluation.signs import check
from mcpl.models.base import BaseModel
from mcpl.seeds import derive_seed
from mcpl.types import Job, LearnedConcepts


@dataclass(frozen=True)
class Evaluation:
    """What scoring found and drew."""

    metrics: dict[str, float]
    alone: dict[str, Tensor] = field(default_factory=dict)
    """slug -> [n, H, W, 3] uint8, pictures of that word and nothing else"""
    alone_step0: dict[str, Tensor] = field(default_factory=dict)
    """the same with the initialiser, before learning"""
    together: Tensor | None = None
    """[n, H, W, 3] uint8, pictures of the whole sentence"""


def evaluate(
    model: BaseModel,
    job: Job,
    learned: LearnedConcepts,
    masks: Mapping[str, Tensor],
    truth: str | None,
    samples: int,
    sampling: Sampling = Sampling(),
    masked: bool = False,
) -> Evaluation:
    """Metrics and failure signs of one picture, and `samples` pictures of each word (none are drawn for 0).

    masks: slug -> [H, W] 0/1; truth: the rendered scene's JSON, where the picture is one: only then is there a judge
    who can say whether a picture shows the right object; masked: whether the recipe masked the loss.
    """
    if not samples:
        return Evaluation(_measured(Scored(learned, masks, masked=masked)))
    now = {c.concept.slug: c.vectors for c in learned.concepts}
    before = dict(zip(now, job.initial.chunk(len(now)), strict=True))
    seed = derive_seed(job.seed, "samples")
    words = {c.concept.slug: alone(c.concept) for c in learned.concepts}
    drawn = {slug: generate(model, words[slug], now, samples, seed, sampling) for slug in now}
    drawn0 = {slug: generate(model, words[slug], before, samples, seed, sampling) for slug in now}
    together = generate(model, job.sentence, now, samples, seed, sampling)
    right, right0 = ({}, {}) if truth is None else _judged(job, truth, (drawn, drawn0))
    return Evaluation(_measured(Scored(learned, masks, right, right0, masked)), drawn, drawn0, together)


def _measured(scored: Scored) -> dict[str, float]:
    return score(scored) | check(scored)


@cache
def _judge():
    """The scene judge, read from disk once."""
    from mcpl.scenes.judge import Judge

    return Judge.load()


def _judged(job: Job, truth: str, drawings: tuple[Mapping[str, Tensor], ...]) -> tuple[dict[str, float], ...]:
    """Share of each word's pictures that show its object and nothing else. A colour that an adjective names is not
    asked of the word."""
    from mcpl.scenes.scene import Scene

    scene, judge = Scene.from_json(truth), _judge()
    by_shape = {item.shape: item for item in scene.objects}
    shares: tuple[dict[str, float], ...] = tuple({} for _ in drawings)
    for position, concept in enumerate(job.sentence.concepts):
        item = by_shape.get(concept.slug) or (
            scene.objects[position] if len(scene.objects) == len(job.sentence.concepts) else None
        )
        if item is None:
            continue
        asks_colour = item.colour not in concept.adjectives
        for share, drawing in zip(shares, drawings, strict=True):
            readings = judge.read(drawing[concept.slug].numpy())
            hits = [
                len(r.objects) == 1
                and r.objects[0].shape == item.shape
                and (not asks_colour or r.objects[0].colour == item.colour)
                for r in readings
            ]
            share[concept.slug] = sum(hits) / len(hits)
    return shares
