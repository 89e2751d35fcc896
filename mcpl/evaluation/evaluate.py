"""Score a learned picture or group: draw each word alone and all together, judge what can be judged, fill metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from mcpl.evaluation.metrics import Scored, score
from mcpl.evaluation.sampling import Sampling, Wish, alone, generate_all
from mcpl.evaluation.signs import check
from mcpl.models.base import BaseModel
from mcpl.prompts import parse
from mcpl.seeds import derive_seed
from mcpl.types import LearnedConcepts, Sentence

if TYPE_CHECKING:
    from mcpl.scenes.scene import Scene


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


@dataclass(frozen=True)
class Subject:
    """Words to be scored, and what their scores need."""

    learned: LearnedConcepts
    pictures: tuple[Given, ...]
    """what they were learned from; of a group all of its pictures, in order"""
    before: Mapping[str, Tensor] = field(default_factory=dict)
    """slug -> [k, D] that the words started from, where it is known"""
    seed: int = 0
    """of the noise, the same for every word"""
    masked: bool = False
    """whether the recipe masked the loss"""


def evaluate(
    model: BaseModel, subject: Subject, samples: int = 0, sampling: Sampling = Sampling(), compose: bool = False
) -> Evaluation:
    """`evaluate_all` of one."""
    return evaluate_all(model, [subject], samples, sampling, compose)[0]


def evaluate_all(
    model: BaseModel,
    subjects: Sequence[Subject],
    samples: int = 0,
    sampling: Sampling = Sampling(),
    compose: bool = False,
    together: bool = True,
) -> list[Evaluation]:
    """Metrics and failure signs of each, and `samples` pictures of each word (none are drawn for 0).

    Of a group, a metric is the mean over the pictures where it applies, and a sign is seen where one of them shows it.
    Only where a picture's truth is a rendered scene is there a judge who can say whether a drawn one shows the right
    object. compose: draw the words together in a new sentence too, for the judge; together: draw them in their own
    sentence, which only a person looks at.
    """
    if not samples:
        return [Evaluation(_measured(subject)) for subject in subjects]
    drawings = [_Drawings(subject, compose, together) for subject in subjects]
    wishes = [wish for each in drawings for wish in each.wishes.values()]
    drawn = iter(generate_all(model, wishes, samples, sampling))
    device = str(model.device)
    return [each.scored({name: next(drawn) for name in each.wishes}, device) for each in drawings]


class _Drawings:
    """What is drawn of a subject, by name, and what the drawn pictures say of it."""

    def __init__(self, subject: Subject, compose: bool, together: bool) -> None:
        self._subject = subject
        first, learned = subject.pictures[0], subject.learned
        now = {c.concept.slug: c.vectors for c in learned.concepts}
        words = {c.concept.slug: alone(c.concept) for c in learned.concepts}
        self._new = _new_scene(first, subject.seed) if compose else None
        asked = {("after", slug): (words[slug], now) for slug in now}
        asked |= {("start", slug): (words[slug], subject.before) for slug in subject.before}
        if together:
            asked["together", ""] = first.sentence, now
        if self._new:
            asked["new", ""] = parse(self._new[0]), now
        self.wishes = {name: Wish(sentence, vectors, subject.seed) for name, (sentence, vectors) in asked.items()}

    def scored(self, pictures: Mapping[tuple[str, str], Tensor], device: str) -> Evaluation:
        """pictures: [n, H, W, 3] uint8 of every wish; device: the judge's."""
        after, start = (
            {slug: own for (which, slug), own in pictures.items() if which == wanted} for wanted in ("after", "start")
        )
        judged = _judged(self._subject.pictures, after, start, device)
        if self._new:
            judged |= {"composition": _composed(pictures["new", ""], self._new[1])}
        return Evaluation(_measured(self._subject, judged), after, start, pictures.get(("together", "")))


def signs(learned: LearnedConcepts, masked: bool) -> dict[str, float]:
    """The failure signs that can be told without true masks, also of words that are still being learned."""
    pictures = range(max(1, len(learned.by_picture)))
    return _together((check(Scored(learned.of_picture(n), masked=masked)) for n in pictures), max)


def _measured(subject: Subject, judged: Mapping[str, dict[str, float]] = {}) -> dict[str, float]:
    """Every metric and sign that applies, over the pictures of a job."""
    seen = [
        Scored(subject.learned.of_picture(n), own.masks, masked=subject.masked, **judged)
        for n, own in enumerate(subject.pictures)
    ]
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


def _judged(
    pictures: Sequence[Given], after: Mapping[str, Tensor], start: Mapping[str, Tensor], device: str
) -> dict[str, dict[str, float]]:
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
    second: dict[str, float] = {}
    found = {"right_object_second_judge": second}
    for suffix, drawing in (("", after), ("_step0", start)):
        right, leak = found[f"right_object{suffix}"], found[f"leak{suffix}"] = {}, {}
        for slug, (concept, item, scene) in asked.items():
            if slug in drawing:
                drawn = drawing[slug].numpy()
                readings = judging.judge(device).read(drawn)
                right[slug] = judging.right(concept, item, readings)
                if not suffix and (again := judging.second_readings(drawn)) is not None:
                    second[slug] = judging.right(concept, item, again)
                share = judging.leak(concept, item, scene, readings)
                leak |= {} if share is None else {slug: share}
    return found


def _new_scene(given: Given, seed: int) -> tuple[str, Scene] | None:
    """A new sentence with the words, and the scene that it asks for; None where no truth is known, or one word."""
    if not given.truth:
        return None
    from mcpl.evaluation import judging
    from mcpl.scenes.scene import Scene

    return judging.new_scene(given.sentence, Scene.from_json(given.truth), derive_seed(seed, "composition"))


def _composed(pictures: Tensor, scene: Scene) -> float:
    from mcpl.evaluation import judging

    return judging.composed(pictures.numpy(), scene)
