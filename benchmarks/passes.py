"""In how many U-Net passes does a recipe explain its picture as well as `paper` ever does?

    python -m benchmarks.passes [--recipes plain,best] [--sets unnamed-2,...] [--every 5] [--quick] [--write FILE]

Pictures of Scenes-MC, starts and seeds are those of `benchmarks.recipes`; nothing is drawn. The loss on fixed noise is
looked at every few steps by looks that only measure and change no word. Passes are the rows of all steps and of the
looks that masks are cut from ("passes for masks included"); those that only measure, which every recipe takes alike and
`benchmarks.recipes` counts for all, are not among them. For each set and recipe, over pictures and seeds:

    to_least           passes until the loss is as low as `paper` ever has it, over those that `paper` needs until then:
                       this is the bar. Pictures that `paper` never explains better than their words' start does
                       (`paper_least_at_start`, a share) have no such passes and are left out
    of_all             the same passes over all that `paper` takes, all pictures
    .._quarter         share of pictures where that is at most 1/4: mean, 95 % interval

to_least and of_all are [median, lower, upper quartile], each a value that was seen; a loss that is never reached takes
for ever and is told as null. What is done is kept in OUT, and the same command goes on.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.provenance import say
from benchmarks.recipes import NAMED, REFERENCE, SETS, Row, by_picture, paired, passes_to, run, variants
from benchmarks.results_follow import BASE
from mcpl.cli.terminal import one_line
from mcpl.config import Placement, Recipe
from mcpl.errors import ConfigError
from mcpl.evaluation.statistics import interval
from mcpl.learning.batch import probe_rows
from mcpl.learning.learner import Learner
from mcpl.learning.step import probe
from mcpl.models.stable_diffusion import files_digest
from mcpl.orchestration.job import Runner, commit, ends
from mcpl.types import Example, Pack

QUARTER = 0.25
WAYS = ("to_least", "of_all")


def paid(recipe: Recipe, step: int) -> int:
    """U-Net passes that words after so many steps have cost; a look for masks comes before the step that needs it."""
    looks = math.ceil(step / recipe.probe_every) if recipe.looked_mask else 0
    return step * recipe.batch + looks * recipe.probe_timesteps


def curve(learner: Learner, every: int) -> list[list[float]]:
    """All steps of a learner, with each job's loss on fixed noise before learning and after each `every` of them; what
    is learned is the same without these looks."""
    model, jobs, recipe = learner.model, learner.pack.jobs, learner.settings
    rows = [probe_rows(job, recipe, len(model.alphas_cumprod)) for job in jobs]
    found = [probe(model, jobs, rows, [job.initial for job in jobs], recipe.batch)]

    def measure(step: int) -> None:
        if step % every == 0:
            words = [ends(job, learned) for job, learned in zip(jobs, learner.so_far(), strict=True)]
            found.append(probe(model, jobs, rows, words, recipe.batch))

    learner.run(on_step=measure)
    return [[look.fixed_noise_loss for look in looks] for looks in zip(*found, strict=True)]


def looked_at(label: str, name: str, runner: Runner, pack: Sequence[Example], every: int) -> list[Row]:
    """A pack's curves, as rows like those of `benchmarks.recipes`."""
    recipe, jobs = runner.recipe, tuple(map(runner.prepare, pack))
    told = {
        "set": name,
        "recipe": label,
        "seed": recipe.seed,
        "recipe_fingerprint": recipe.fingerprint,
        "base_digest": runner.base_digest,
        "commit": commit(),
        "curve_passes": [paid(recipe, step) for step in range(0, recipe.steps + 1, every)],
    }
    losses = curve(Learner(runner.model, Pack(jobs), recipe), every)
    return [told | {"id": job.id, "curve_losses": own} for job, own in zip(jobs, losses, strict=True)]


def check(recipes: Mapping[str, Recipe], every: int) -> None:
    """Raises ConfigError for a recipe whose jobs stop by themselves, or whose last step is not looked at."""
    for label, recipe in recipes.items():
        if recipe.stop or recipe.steps % every:
            raise ConfigError(f"{label}: give looks that divide its {recipe.steps} steps, and no `stop`")


def ratios(own: Row, reference: Row) -> dict[str, float | None]:
    """`to_least` and `of_all` of one picture and seed: infinite where the reference's least loss is never reached, no
    `to_least` where that is its start's."""
    goal = min(reference["curve_losses"])
    hit, needed = passes_to(goal, own), passes_to(goal, reference)
    passes = math.inf if hit is None else hit
    return {"to_least": passes / needed if needed else None, "of_all": passes / reference["curve_passes"][-1]}


def summary(rows: Iterable[Row], label: str) -> dict[str, object]:
    """One recipe against `paper`: both ratios with their quartiles, and the share of pictures within a quarter."""
    found = [{"id": own["id"], **ratios(own, reference)} for own, reference in paired(rows, label, REFERENCE)]
    told: dict[str, object] = {"paper_least_at_start": float(np.mean([one["to_least"] is None for one in found]))}
    for way in WAYS:
        seen = [one for one in found if one[way] is not None]
        if seen:
            at = np.quantile([one[way] for one in seen], (0.5, 0.25, 0.75), method="inverted_cdf")
            told[way] = [None if math.isinf(value) else round(float(value), 4) for value in at]
            shares = by_picture([{"id": one["id"], "in": one[way] <= QUARTER} for one in seen], "in")
            told[f"{way}_quarter"] = [round(value, 4) for value in interval(list(shares.values()))]
    return told


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--recipes", default="plain,best", help="what is compared with `paper`")
    options.add_argument("--sets", default=",".join(SETS))
    options.add_argument("--split", choices=("dev", "test"), default="test")
    options.add_argument("--pictures", type=int, help="of each set (default: all)")
    options.add_argument("--seeds", type=int, default=1)
    options.add_argument("--every", type=int, default=5, help="steps between two looks that measure")
    options.add_argument("--quick", action="store_true", help="2 pictures, 10 steps: only to see that it runs")
    options.add_argument("--pack", type=int, default=10)
    options.add_argument("--out", type=Path, default=Path("runs/passes"))
    options.add_argument("--write", type=Path, help="keep the figures here (JSON)")
    given = options.parse_args()
    if given.quick:
        given.sets, given.pictures, given.every = "unnamed-2", 2, 5
    labels, sets = given.recipes.split(","), given.sets.split(",")
    recipes = variants(
        [*labels, REFERENCE], [], initializer=NAMED, initializer_length="words", steps=10 if given.quick else None
    )
    check(recipes, given.every)
    given.out.mkdir(parents=True, exist_ok=True)
    every_row = run(
        recipes, sets, given.split, given.pictures, given.seeds,
        Placement(pack=given.pack, samples=0, device="cpu"), given.out / f"raw-{given.split}-{given.every}.jsonl",
        learn=partial(looked_at, every=given.every),
    )  # fmt: skip
    found = {}
    for name in sets:
        rows = [row for row in every_row if row["set"] == name]
        about = {"pictures": len({row["id"] for row in rows}), "learned_at": sorted({row["commit"] for row in rows})}
        found[name] = about | {label: summary(rows, label) for label in labels}
        print(name, found[name], flush=True)
    say({"found": found, "base_digest": files_digest(BASE)}, "benchmarks.passes", given.write)


if __name__ == "__main__":
    with one_line("benchmarks.passes"):
        main()
