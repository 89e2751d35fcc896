"""How often can a word draw its shape at all? One word for each shape, learned from many pictures together.

    python -m benchmarks.word_ceiling [--sets unnamed-2,named-2] [--vectors 1,4] [--pictures N] [--write FILE.json]

Shapes that were drawn but never named have no name that would bound their words. So a word for each is learned here
from all development pictures of a set, by the denoising loss alone, with twelve times the rows of a recipe: what it
draws is a lower bound of what a word can. The named shapes, learned in the same way and drawn by their names on the
same noise, tell how far this learning comes where the base has a word. `--initializer neutral` starts all words from
the base's own neutral one: the mean of the named shapes' words, where benchmarks start, holds a share of each name.

Of each set, number of vectors and seed of learning:

    pictures              shape -> pictures that show it
    steps, loss_before, loss   of the loss on fixed noise the mean over the pictures
    before, learned, names     what "a WORD" draws: where all words start, as they are learned, and by true names (null
                               for shapes without one). Of each, `judge` and `second`, by both judges: the share of the
                               drawings that show one object of the asked shape and nothing else (before: of any of the
                               shapes), and `drawn`: shape -> the shape that the judge sees alone -> drawings

All words draw from the same noise; intervals are bootstrapped over it: of these words, not of words that others would
learn. `--write` also draws a sheet beside the file: a row for each learned word.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from benchmarks.drawing import interval
from benchmarks.jobs import BASE, JUDGE
from benchmarks.provenance import say
from benchmarks.recipes import examples
from mcpl.cli.terminal import one_line
from mcpl.config import Placement, Recipe
from mcpl.evaluation import judging
from mcpl.evaluation.sampling import alone, generate
from mcpl.learning.learner import Learner
from mcpl.models import catalogue
from mcpl.models.base import BaseModel
from mcpl.orchestration.job import Runner, beginnings
from mcpl.prompts import said
from mcpl.recipes import adjust, load
from mcpl.scenes.benchmark import find
from mcpl.scenes.judge import Reading
from mcpl.seeds import derive_seed
from mcpl.studies import START
from mcpl.types import Group, Pack, Sentence

SHOWN, ZOOM = 16, 2
NOTHING, BEFORE = "none or several", "a word before learning"
Pictures = Mapping[str, np.ndarray]
"""shape -> its drawings, uint8 [N, H, W, 3]"""


def measure(
    model: BaseModel, name: str, pictures: int | None, recipe: Recipe, drawings: int
) -> tuple[dict[str, Any], Pictures]:
    """(figures, what the learned words draw) of one set with one recipe."""
    seen = tuple(examples(name, "dev", pictures))
    job = Runner(recipe, Placement(threads=1), model).prepare(Group(name, seen))
    learned = Learner(model, Pack((job,)), recipe).run()[0]
    seed = derive_seed(recipe.seed, name, "samples")

    def draw(sentence: Sentence, vectors: Mapping[str, Tensor]) -> np.ndarray:
        return generate(model, sentence, vectors, drawings, seed).numpy()

    concepts = {concept.slug: concept for concept in job.concepts}
    first, *_ = job.concepts
    start = draw(alone(first), beginnings(job))  # one start for all words
    vectors = {word.concept.slug: word.vectors for word in learned.concepts}
    after = {slug: draw(alone(concept), vectors) for slug, concept in concepts.items()}
    named = find(name).pool == "named"
    found = {
        "pictures": {slug: sum(slug in example.masks for example in seen) for slug in concepts},
        "steps": learned.steps,
        "loss_before": learned.curve[0].fixed_noise_loss,
        "loss": learned.curve[-1].fixed_noise_loss,
        "before": verdicts({BEFORE: start}, {BEFORE: set(concepts)}),
        "learned": verdicts(after),
        "names": verdicts({slug: draw(said(f"a {slug}"), {}) for slug in concepts}) if named else None,
    }
    return found, after


def verdicts(drawn: Pictures, asked: Mapping[str, Collection[str]] | None = None) -> dict[str, Any]:
    """Shares of drawings that show one object of an asked shape (its own) and nothing else, and what they show."""
    told, asked = {}, asked or {name: {name} for name in drawn}
    for judge, read in (("second", judging.second_readings), ("judge", judging.judge().read)):
        seen = {name: [_alone(reading) for reading in read(pictures)] for name, pictures in drawn.items()}
        hits = [shape in asked[name] for name, shapes in seen.items() for shape in shapes]
        noise = [number for shapes in seen.values() for number in range(len(shapes))]
        told[judge] = interval(hits, clusters=noise)
    return told | {"drawn": {name: dict(Counter(shapes).most_common()) for name, shapes in seen.items()}}


def _alone(reading: Reading) -> str:
    """The shape of the only object that a judge sees."""
    return reading.objects[0].shape if len(reading.objects) == 1 else NOTHING


def sheet(drawn: Pictures, file: Path) -> None:
    """A row for each word."""
    rows = np.concatenate([np.concatenate(pictures[:SHOWN], axis=1) for pictures in drawn.values()])
    Image.fromarray(rows).resize((rows.shape[1] * ZOOM, rows.shape[0] * ZOOM), Image.NEAREST).save(file, optimize=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sets", default="unnamed-2,named-2")
    options.add_argument("--vectors", default="1,4", help="of each word")
    options.add_argument("--pictures", type=int, help="of each set (default: all of the development split)")
    options.add_argument("--steps", type=int, default=300)
    options.add_argument("--batch", type=int, default=16, help="rows of a step")
    options.add_argument("--lr", type=float, default=1e-2, help="falling over the second half")
    options.add_argument("--initializer", default=START["initializer"], help="words whose mean all start from")
    options.add_argument("--seeds", type=int, default=1)
    options.add_argument("--drawings", type=int, default=48, help="of each word")
    options.add_argument("--write", type=Path, help="keep the figures here (JSON), and sheets of drawings beside them")
    given = options.parse_args()
    model, found = catalogue.load(str(BASE)), {}
    for name in given.sets.split(","):
        for vectors in map(int, given.vectors.split(",")):
            for seed in range(given.seeds):
                recipe = adjust(
                    load("plain"), **{**START, "initializer": given.initializer}, vectors_per_word=vectors, seed=seed,
                    steps=given.steps, batch=given.batch, lr=given.lr, lr_decay=0.5, probe_every=max(1, given.steps),
                )  # fmt: skip
                key = f"{name}, {vectors} vectors, seed {seed}"
                found[key], drawn = measure(model, name, given.pictures, recipe, given.drawings)
                print(key, {what: found[key][what]["judge"]["mean"] for what in ("before", "learned")}, flush=True)
                if given.write and seed == 0:
                    given.write.parent.mkdir(parents=True, exist_ok=True)
                    sheet(drawn, given.write.with_name(f"{given.write.stem}-{name}-{vectors}.png"))
    say({"found": found}, "benchmarks.word_ceiling", given.write, BASE, JUDGE)


if __name__ == "__main__":
    with one_line("benchmarks.word_ceiling"):
        main()
