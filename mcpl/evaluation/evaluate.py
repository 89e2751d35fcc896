"""Score a learned picture or group: draw each word alone and all together, judge what can be judged, fill metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from torch import Tensor

from mcpl.evaluation.metrics import Scored, score
from mcpl.evaluation.sampling import Sampling, alone, generate
from mcpl.evaluation.signs import check
from mcpl.models.base import BaseModel
from mcpl.seeds import derive_seed
from mcpl.types import Job, LearnedConcepts

if TYPE_CHECKING:
    from mcpl.scenes.scene import SceneObject


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
    further: Sequence[tuple[Mapping[str, Tensor], str | None]] = (),
) -> Evaluation:
    """Metrics and failure signs of one picture, and `samples` pictures of each word (none are drawn for 0).

    Of a group, a metric is the mean over the pictures where it applies, and a sign is seen where one of them shows it.

    masks: slug -> [H, W] 0/1; truth: the rendered scene's JSON, where the picture is one: only then is there a judge
    who can say whether a picture shows the right object; masked: whether the recipe masked the loss; further: masks
    and truth of a group's other pictures, in order.
    """
    masks_of, truths = zip((masks, truth), *further, strict=True)
    if not samples:
        return Evaluation(_measured(learned, masks_of, masked))
    now = {c.concept.slug: c.vectors for c in learned.concepts}
    before = dict(zip(now, job.initial.chunk(len(now)), strict=True))
    seed = derive_seed(job.seed, "samples")
    words = {c.concept.slug: alone(c.concept) for c in learned.concepts}
    drawn = {slug: generate(model, words[slug], now, samples, seed, sampling) for slug in now}
    drawn0 = {slug: generate(model, words[slug], before, samples, seed, sampling) for slug in now}
    together = generate(model, job.sentence, now, samples, seed, sampling)
    right, right0 = _judged(job, truths, (drawn, drawn0)) if any(truths) else ({}, {})
    return Evaluation(_measured(learned, masks_of, masked, right, right0), drawn, drawn0, together)


def signs(learned: LearnedConcepts, masked: bool) -> dict[str, float]:
    """The failure signs that can be told without true masks, also of words that are still being learned."""
    pictures = range(max(1, len(learned.by_picture)))
    return _together((check(Scored(learned.of_picture(n), masked=masked)) for n in pictures), max)


def _measured(
    learned: LearnedConcepts,
    masks: Sequence[Mapping[str, Tensor]],
    masked: bool,
    right: Mapping[str, float] | None = None,
    right0: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Every metric and sign that applies, over the pictures of a job."""
    seen = [Scored(learned.of_picture(n), own, right or {}, right0 or {}, masked) for n, own in enumerate(masks)]
    if len(seen) == 1:
        return score(seen[0]) | check(seen[0])
    return _together(map(score, seen), _mean) | _together(map(check, seen), max)


def _together(found: Iterable[Mapping[str, float]], join: Callable[[Sequence[float]], float]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for one in found:
        for name, value in one.items():
            values.setdefault(name, []).append(value)
    return {name: join(each) for name, each in values.items()}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


@cache
def _judge():
    """The scene judge, read from disk once."""
    from mcpl.scenes.judge import Judge

    return Judge.load()


def _judged(
    job: Job, truths: Sequence[str | None], drawings: tuple[Mapping[str, Tensor], ...]
) -> tuple[dict[str, float], ...]:
    """Share of each word's pictures that show its object and nothing else. A colour that an adjective names is not
    asked of the word."""
    judge, items = _judge(), _items(job, truths)
    shares: tuple[dict[str, float], ...] = tuple({} for _ in drawings)
    for index, item in items.items():
        concept = job.concepts[index]
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


def _items(job: Job, truths: Sequence[str | None]) -> dict[int, SceneObject]:
    """Concept -> its object in the first picture whose truth shows it: that of its name, else that of its place."""
    from mcpl.scenes.scene import Scene

    found: dict[int, SceneObject] = {}
    for look, truth in zip(job.looks, truths, strict=True):
        scene = Scene.from_json(truth) if truth else None
        names = dict.fromkeys(word.concept for word in look.sentence.words if word.role == "placeholder")
        for place, index in enumerate(names if scene else ()):
            by_shape = {item.shape: item for item in scene.objects}
            by_place = scene.objects[place] if len(scene.objects) == len(names) else None
            if item := by_shape.get(job.concepts[index].slug) or by_place:
                found.setdefault(index, item)
    return found
