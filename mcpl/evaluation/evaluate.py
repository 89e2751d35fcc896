"""Score one learned picture: draw each word alone and all together, judge what can be judged, fill the metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from mcpl.evaluation.metrics import Scored, score
from mcpl.evaluation.sampling import Sampling, alone, generate
from mcpl.evaluation.signs import check
from mcpl.models.base import BaseModel
from mcpl.prompts import parse
from mcpl.seeds import derive_seed
from mcpl.types import LearnedConcepts, Sentence


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
    sentence: Sentence,
    learned: LearnedConcepts,
    *,
    before: Mapping[str, Tensor] | None = None,
    masks: Mapping[str, Tensor] | None = None,
    truth: str | None = None,
    samples: int = 0,
    seed: int = 0,
    sampling: Sampling = Sampling(),
    masked: bool = False,
    compose: bool = False,
) -> Evaluation:
    """Metrics and failure signs of one picture, and `samples` pictures of each word (none are drawn for 0).

    before: slug -> [k, D] that the words started from, where it is known; masks: slug -> [H, W] 0/1; truth: the
    rendered scene's JSON, where the picture is one: only then is there a judge who can say whether a picture shows the
    right object; seed: of the noise, the same for every word; masked: whether the recipe masked the loss; compose: draw
    the words together in a new sentence too, for the judge.
    """
    masks = masks or {}
    if not samples:
        return Evaluation(_measured(Scored(learned, masks, masked=masked)))
    now = {c.concept.slug: c.vectors for c in learned.concepts}
    words = {c.concept.slug: alone(c.concept) for c in learned.concepts}

    def drawn(vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {slug: generate(model, words[slug], vectors, samples, seed, sampling) for slug in vectors}

    after, start = drawn(now), drawn(before or {})
    together = generate(model, sentence, now, samples, seed, sampling)
    judged = {} if not truth else _judged(sentence, truth, after, start)
    if truth and compose:
        judged |= _composed(model, sentence, truth, now, samples, seed, sampling)
    return Evaluation(_measured(Scored(learned, masks, masked=masked, **judged)), after, start, together)


def _measured(scored: Scored) -> dict[str, float]:
    return score(scored) | check(scored)


def _judged(sentence: Sentence, truth: str, after: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> dict:
    """What the judge says of each word's pictures, as fields of `Scored`."""
    from mcpl.evaluation import judging
    from mcpl.scenes.scene import Scene

    scene = Scene.from_json(truth)
    concepts = {concept.slug: concept for concept in sentence.concepts}
    found: dict[str, dict[str, float]] = {}
    for suffix, drawing in (("", after), ("_step0", start)):
        right, leak = found[f"right_object{suffix}"], found[f"leak{suffix}"] = {}, {}
        for slug, item in judging.items(sentence, scene).items():
            if slug in drawing:
                readings = judging.judge().read(drawing[slug].numpy())
                right[slug] = judging.right(concepts[slug], item, readings)
                share = judging.leak(concepts[slug], item, scene, readings)
                leak |= {} if share is None else {slug: share}
    return found


def _composed(model: BaseModel, sentence: Sentence, truth: str, now, samples: int, seed: int, sampling) -> dict:
    from mcpl.evaluation import judging
    from mcpl.scenes.scene import Scene

    asked = judging.new_scene(sentence, Scene.from_json(truth), derive_seed(seed, "composition"))
    if asked is None:
        return {}
    text, scene = asked
    pictures = generate(model, parse(text), now, samples, seed, sampling)
    return {"composition": judging.composed(pictures.numpy(), scene)}
