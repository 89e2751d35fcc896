"""How often can a word draw its shape at all? One word for each shape, learned from many pictures together.

    python -m benchmarks.word_ceiling [--sets unnamed-2,named-2] [--vectors 1,4] [--seeds 1] [--write FILE.json]

A shape that has a name is bounded by that name (`alone` of `benchmarks.ceilings`); one that was drawn but never named
is bounded by nothing that is known before learning. So its word is learned here from every development picture that
shows it, by the denoising loss alone, with more rows than a recipe has: from one picture no word can be expected to
learn more. The named shapes, learned in the same way, tell whether it is the way of learning that falls short, or the
base.
What is found is what this learning reaches: nearly a ceiling, and not a proof of one.

Of each set, number of vectors and seed of learning:

    pictures, steps, loss_before, loss   the loss on fixed noise, mean over the pictures
    before, learned                      what "a WORD" draws where all words start, and as they are learned: `judge` and
                                         `second`, the share of the drawings that show one object of the shape and
                                         nothing else, over all words, and `shapes`, the same by the judge for each

Intervals are Wilson's over drawings: of these words, not of words that others would learn. `--write` also draws a sheet
beside the file: a row for each learned word, the same noise below each other.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.drawing import interval
from benchmarks.jobs import BASE, JUDGE
from benchmarks.provenance import say
from benchmarks.recipes import examples
from mcpl.config import Placement, Recipe
from mcpl.evaluation import judging
from mcpl.evaluation.sampling import alone, generate
from mcpl.learning.learner import Learner
from mcpl.models import catalogue
from mcpl.models.base import BaseModel
from mcpl.orchestration.job import Runner, beginnings
from mcpl.recipes import adjust, load
from mcpl.seeds import derive_seed
from mcpl.studies import START
from mcpl.types import Group, Pack

SHOWN, ZOOM = 16, 2
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
    first, *_ = job.concepts
    start = generate(model, alone(first), beginnings(job), drawings, seed).numpy()  # one start for all words
    after = {
        word.concept.slug: generate(
            model, alone(word.concept), {word.concept.slug: word.vectors}, drawings, seed
        ).numpy()
        for word in learned.concepts
    }
    found = {
        "pictures": len(seen),
        "steps": learned.steps,
        "loss_before": learned.curve[0].fixed_noise_loss,
        "loss": learned.curve[-1].fixed_noise_loss,
        "before": verdicts(dict.fromkeys(after, start)),
        "learned": verdicts(after),
    }
    return found, after


def verdicts(drawn: Pictures) -> dict[str, Any]:
    """Shares of drawings that show one object of the asked shape and nothing else."""
    first, second = (
        {shape: [judging.shows(seen, shape, None) for seen in read(pictures)] for shape, pictures in drawn.items()}
        for read in (judging.judge().read, judging.second_readings)
    )
    shapes = {shape: interval(values) for shape, values in first.items()}
    return {"judge": interval([*chain(*first.values())]), "second": interval([*chain(*second.values())]),
            "shapes": shapes}  # fmt: skip


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
    options.add_argument("--seeds", type=int, default=1)
    options.add_argument("--drawings", type=int, default=48, help="of each word")
    options.add_argument("--write", type=Path, help="keep the figures here (JSON), and sheets of drawings beside them")
    given = options.parse_args()
    model, found = catalogue.load(str(BASE)), {}
    for name in given.sets.split(","):
        for vectors in map(int, given.vectors.split(",")):
            for seed in range(given.seeds):
                recipe = adjust(
                    load("plain"), **START, vectors_per_word=vectors, seed=seed, steps=given.steps, batch=given.batch,
                    lr=given.lr, lr_decay=0.5, probe_every=max(1, given.steps),
                )  # fmt: skip
                key = f"{name}, {vectors} vectors, seed {seed}"
                found[key], drawn = measure(model, name, given.pictures, recipe, given.drawings)
                print(key, {what: found[key][what]["judge"]["mean"] for what in ("before", "learned")}, flush=True)
                if given.write and seed == 0:
                    given.write.parent.mkdir(parents=True, exist_ok=True)
                    sheet(drawn, given.write.with_name(f"{given.write.stem}-{name}-{vectors}.png"))
    say({"found": found}, "benchmarks.word_ceiling", given.write, BASE, JUDGE)


if __name__ == "__main__":
    main()
