"""Score a learned picture or group: draw each word alone and all together, judge what can be judged, fill metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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
class Given:
    """A picture that words were learned from, as far as scores need it."""

    sentence: Sentence
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    """slug -> [H, W] 0/1"""
    truth: str | None = None
    """the rendered scene as JSON"""


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
    further: Sequence[Given] = (),
) -> Evaluation:
    """Metrics and failure signs of one picture, and `samples` pictures of each word (none are drawn for 0).

    Of a group, a metric is the mean over the pictures where it applies, and a sign is seen where one of them shows it.

    before: slug -> [k, D] that the words started from, where it is known; masks: slug -> [H, W] 0/1; truth: the
    rendered scene's JSON, where the picture is one: only then is there a judge who can say whether a picture shows the
    right object; seed: of the noise, the same for every word; masked: whether the recipe masked the loss; compose: draw
    the words together in a new sentence too, for the judge; further: a group's other pictures, in order.
    """
    pictures = (Given(sentence, masks or {}, truth), *further)
    if not samples:
        return Evaluation(_measured(learned, pictures, masked))
    now = {c.concept.slug: c.vectors for c in learned.concepts}
    words = {c.concept.slug: alone(c.concept) for c in learned.concepts}

    def drawn(vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {slug: generate(model, words[slug], vectors, samples, seed, sampling) for slug in vectors}

    after, start = drawn(now), drawn(before or {})
    together = generate(model, sentence, now, samples, seed, sampling)
    judged = _judged(pictures, after, start)
    if truth and compose:
        judged |= _composed(model, sentence, truth, now, samples, seed, sampling)
    return Evaluation(_measured(learned, pictures, masked, judged), after, start, together)


def signs(learned: LearnedConcepts, masked: bool) -> dict[str, float]:
    """The failure signs that can be told without true masks, also of words that are still being learned."""
    pictures = range(max(1, len(learned.by_picture)))
    return _together((check(Scored(learned.of_picture(n), masked=masked)) for n in pictures), max)


def _measured(
    learned: LearnedConcepts, pictures: Sequence[Given], masked: bool, judged: Mapping[str, dict[str, float]] = {}
) -> dict[str, float]:
    """Every metric and sign that applies, over the pictures of a job."""
    seen = [Scored(learned.of_picture(n), own.masks, masked=masked, **judged) for n, own in enumerate(pictures)]
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


def _judged(pictures: Sequence[Given], after: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> dict:
    """What the judge says of each word's pictures, as fields of `Scored`; of several pictures of the training set the
    first that shows a word's object says what it is. Nothing where no truth is known."""
    if not any(given.truth for given in pictures):
        return {}
    from mcpl.evaluation import judging
    from mcpl.scenes.scene import Scene

    asked: dict[str, tuple] = {}
    for given in pictures:
        if given.truth:
            scene, concepts = Scene.from_json(given.truth), {c.slug: c for c in given.sentence.concepts}
            for slug, item in judging.items(given.sentence, scene).items():
                asked.setdefault(slug, (concepts[slug], item, scene))
    found: dict[str, dict[str, float]] = {}
    for suffix, drawing in (("", after), ("_step0", start)):
        right, leak = found[f"right_object{suffix}"], found[f"leak{suffix}"] = {}, {}
        for slug, (concept, item, scene) in asked.items():
            if slug in drawing:
                readings = judging.judge().read(drawing[slug].numpy())
                right[slug] = judging.right(concept, item, readings)
                share = judging.leak(concept, item, scene, readings)
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
