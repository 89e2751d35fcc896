"""What a study keeps of each learned picture beside its scores, as columns of its raw table.

A measure takes the runner that learned, the example and the outcome, and gives columns. A new one is a function and one
line of `MEASURES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mcpl.evaluation import judging
from mcpl.evaluation.sampling import Wish, generate_all, spoken
from mcpl.learning.batch import probe_rows
from mcpl.learning.step import probe
from mcpl.objectives.attention import covered, union
from mcpl.orchestration.job import Outcome, Runner, ends, masks_of
from mcpl.prompts import said
from mcpl.scenes.grammar import caption
from mcpl.scenes.scene import Scene, sample_scene
from mcpl.scenes.world import shapes
from mcpl.seeds import derive_seed
from mcpl.types import Example, Sentence


def maps(learn: Runner, example: Example, outcome: Outcome) -> dict[str, Any]:
    """Where each object's word looks, before and after: slugs, and [words, m, m] in 0..1; of the first seed."""
    if learn.recipe.seed:
        return {}
    concepts = [c for c in outcome.learned.concepts if c.concept.is_object]
    return {
        "slugs": [c.concept.slug for c in concepts],
        "maps": [_rounded(c.attention) for c in concepts],
        "maps_step0": [_rounded(c.attention_step0) for c in concepts],
    }


def states(learn: Runner, example: Example, outcome: Outcome) -> dict[str, Any]:
    """What each object's word is to the text encoder, and the mean of its pictures' features, each of length 1.

    The features are the scene judge's, the only ones that are there offline. Two such means multiplied are the mean
    cosine over all pairs of pictures.
    """
    words = [c for c in outcome.learned.concepts if c.concept.is_object]
    vectors = {c.concept.slug: c.vectors for c in words}
    found = {
        "words": list(vectors),
        "states": [_rounded(spoken(learn.model, c.concept, vectors), 5) for c in words],
    }
    if drawn := outcome.evaluation.alone:
        features = [functional.normalize(judging.judge().features(drawn[slug].numpy()), dim=-1) for slug in vectors]
        found["features"] = [_rounded(own.mean(dim=0), 5) for own in features]
    return found


def loss_by_place(learn: Runner, example: Example, outcome: Outcome) -> dict[str, Any]:
    """The loss on fixed noise inside the true masks of the words' objects, united as a masked loss would have them, and
    outside of them, before and after: what such a loss is for, and what it leaves alone.

    Nothing where an object has no mask; neither place where it has no cell of the latents.
    """
    job, learned = outcome.job, outcome.learned
    masks = masks_of(example, learn.model.facts.resolution)
    slugs = [c.concept.slug for c in learned.concepts if c.concept.is_object]
    if not slugs or not all(slug in masks for slug in slugs):
        return {}
    each = covered(torch.stack([masks[slug] for slug in slugs]), tuple(job.latents.shape[-2:]))
    inside = union(each) > 0
    places = {"object_loss": inside, "ground_loss": ~inside}
    rows = probe_rows(job, learn.recipe, len(learn.model.alphas_cumprod))
    found = {}
    for when, words in (("_step0", job.initial), ("", ends(job, learned))):
        (look,) = probe(learn.model, [job], [rows], [words], learn.recipe.batch)
        found |= {name + when: float(look.errors[0][place].mean()) for name, place in places.items() if place.any()}
    return found


def new_sentences(learn: Runner, example: Example, outcome: Outcome) -> dict[str, Any]:
    """Share of pictures of sentences in which the words were not learned that show exactly what is asked for."""
    samples = learn.placement.samples
    if not example.truth or not samples:
        return {}
    vectors = {c.concept.slug: c.vectors for c in outcome.learned.concepts}
    seed = derive_seed(example.id, "new sentences")  # the same sentences and noise in every cell
    asked = dict(sentences(outcome.job.sentence, Scene.from_json(example.truth), seed))
    wishes = [Wish(said(text), vectors, seed) for text, _ in asked.values()]
    drawn = generate_all(learn.model, wishes, samples)
    return {
        name: judging.composed(pictures.numpy(), scene)
        for (name, (_, scene)), pictures in zip(asked.items(), drawn, strict=True)
    }


def sentences(sentence: Sentence, scene: Scene, seed: int) -> Iterator[tuple[str, tuple[str, Scene]]]:
    """New sentences with a picture's words, and the scene that each asks for; none for fewer than two words."""
    if (both := judging.new_scene(sentence, scene, seed)) is None:
        return
    yield "composition", both
    slugs = {item.shape: slug for slug, item in judging.items(sentence, scene).items()}
    first, second = list(slugs)[:2]
    known = next(shape for shape in shapes("named") if shape not in slugs)
    rows = {"beside_known": (first, known), "one_twice": (second, second), "one_more": (first, second, known)}
    for place, (name, chosen) in enumerate(rows.items()):
        drawn = sample_scene(derive_seed(seed, place), objects=len(chosen), pool=shapes("named"))
        objects = tuple(replace(item, shape=shape) for item, shape in zip(drawn.objects, chosen, strict=True))
        nouns = [f"<{slugs[shape]}>" if shape in slugs else shape for shape in chosen]
        asked = replace(drawn, objects=objects)
        yield name, (caption(asked, nouns=nouns), asked)


def _rounded(values: Tensor, digits: int = 3) -> list:
    return np.round(values.double().cpu().numpy(), digits).tolist()


MEASURES: Mapping[str, Callable[[Runner, Example, Outcome], dict[str, Any]]] = {
    "maps": maps,
    "states": states,
    "loss by place": loss_by_place,
    "new sentences": new_sentences,
}
