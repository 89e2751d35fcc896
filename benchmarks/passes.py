"""In how many U-Net passes does a recipe explain its picture as well as `paper` ever does?

    python -m benchmarks.passes [--recipes plain,best] [--sets unnamed-2,...] [--every 5] [--quick] [--write FILE]

Pictures of Scenes-MC, starts and seeds are those of `benchmarks.recipes`; nothing is drawn. The loss on fixed noise is
looked at every few steps by looks that only measure: they change no word, and are not counted. What is counted are
the rows of all steps, and of the looks that a recipe's masks are cut from. For each set and recipe, over pictures:

    to_least   passes until the loss is as low as `paper` ever has it, over those that `paper` needs to get there
    of_all     the same passes over all those that `paper` takes
    quarter    share of pictures with `to_least` of at most 1/4, with its 95 % interval, and so for `of_all`

Medians, with quartiles; a loss that is never reached takes for ever, told as null. A picture with several seeds has
their mean share, and each seed its own place in the medians. What is done is kept in OUT, and the same command goes on.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.provenance import say
from benchmarks.recipes import NAMED, REFERENCE, SETS, Row, by_picture, examples, record, recorded, variants
from benchmarks.results_follow import BASE
from mcpl.config import Placement, Recipe
from mcpl.evaluation.statistics import interval
from mcpl.learning.batch import probe_rows
from mcpl.learning.learner import Learner
from mcpl.learning.step import probe
from mcpl.models import catalogue
from mcpl.models.base import BaseModel
from mcpl.orchestration.job import Runner, ends
from mcpl.packing import chunks
from mcpl.recipes import adjust
from mcpl.scenes.judge import WEIGHTS as JUDGE
from mcpl.types import Job, Pack

QUARTER = 0.25
WAYS = ("to_least", "of_all")


def paid(recipe: Recipe, step: int) -> int:
    """U-Net passes of a row that words after so many steps have cost, without looks that only measure."""
    looks = min(step, recipe.steps - 1) // recipe.probe_every + 1 if recipe.looked_mask or recipe.stop else 0
    return step * recipe.batch + looks * recipe.probe_timesteps


def curves(model: BaseModel, jobs: Sequence[Job], recipe: Recipe, every: int) -> list[list[float]]:
    """Each job's loss on fixed noise before learning and after each `every` steps; learned as without these looks."""
    learner = Learner(model, Pack(tuple(jobs)), recipe)
    rows = [probe_rows(job, recipe, len(model.alphas_cumprod)) for job in jobs]
    found = [probe(model, jobs, rows, [job.initial for job in jobs], recipe.batch)]

    def measure(step: int) -> None:
        if step % every == 0:
            words = [ends(job, learned) for job, learned in zip(jobs, learner.so_far(), strict=True)]
            found.append(probe(model, jobs, rows, words, recipe.batch))

    learner.run(on_step=measure)
    return [[look.fixed_noise_loss for look in looks] for looks in zip(*found, strict=True)]


def ratios(own: Row, reference: Row) -> dict[str, float]:
    """`to_least` and `of_all` of one picture and seed; infinite where the reference's least loss is never reached."""
    goal = min(reference["losses"])
    needed = reference["passes"][reference["losses"].index(goal)]
    hit = next((p for p, loss in zip(own["passes"], own["losses"], strict=True) if loss <= goal), math.inf)
    return {"to_least": hit / needed, "of_all": hit / reference["passes"][-1]}


def run(
    recipes: Mapping[str, Recipe], name: str, split: str, pictures: int | None, seeds: int, every: int, pack: int,
    raw: Path,
) -> list[Row]:  # fmt: skip
    """Every curve of a set, those that `raw` has not yet learned now."""
    model = catalogue.load(next(iter(recipes.values())).base)
    known = {_key(row): row for row in recorded(raw)}
    asked, rows = list(examples(name, split, pictures)), []
    for seed in range(seeds):
        for label, recipe in recipes.items():
            own = adjust(recipe, seed=seed)
            runner = Runner(own, Placement(pack=pack, samples=0, device="cpu"), model)
            told = {"recipe": label, "set": name, "seed": seed, "fingerprint": own.fingerprint, "every": every,
                    "base_digest": model.facts.digest}  # fmt: skip
            new = [example for example in asked if _key(told | {"id": example.id}) not in known]
            for some in chunks(new, pack):
                losses = curves(model, [runner.prepare(example) for example in some], own, every)
                fresh = [told | {"id": e.id, "losses": own} for e, own in zip(some, losses, strict=True)]
                record(raw, *fresh)
                known |= {_key(row): row for row in fresh}
                print(f"{name} seed {seed} {label}: {len(some)}", flush=True)
            passes = [paid(own, step) for step in range(0, own.steps + 1, every)]
            rows += [known[_key(told | {"id": example.id})] | {"passes": passes} for example in asked]
    return rows


def _key(row: Row) -> tuple:
    return row["fingerprint"], row["base_digest"], row["every"], row["id"]


def summary(rows: Iterable[Row], label: str) -> dict[str, object]:
    """Both ways of counting for one recipe against `paper`: median and quartiles, share within a quarter."""
    runs = {which: {(r["id"], r["seed"]): r for r in rows if r["recipe"] == which} for which in (label, REFERENCE)}
    found = [{"id": key[0], **ratios(own, runs[REFERENCE][key])} for key, own in runs[label].items()]
    told: dict[str, object] = {}
    for way in WAYS:
        at = np.quantile([one[way] for one in found], (0.5, 0.25, 0.75), method="inverted_cdf")
        shares = by_picture([{"id": one["id"], "in": one[way] <= QUARTER} for one in found], "in")
        told[way] = [None if math.isinf(value) else round(float(value), 4) for value in at]
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
        given.sets, given.pictures = "unnamed-2", 2
    labels = given.recipes.split(",")
    recipes = variants(
        [*labels, REFERENCE], [], initializer=NAMED, initializer_length="words", steps=10 if given.quick else None
    )
    given.out.mkdir(parents=True, exist_ok=True)
    found = {}
    for name in given.sets.split(","):
        raw = given.out / f"raw-{name}-{given.split}.jsonl"
        rows = run(recipes, name, given.split, given.pictures, given.seeds, given.every, given.pack, raw)
        pictures = len({row["id"] for row in rows})
        found[name] = {"pictures": pictures} | {label: summary(rows, label) for label in labels}
        print(name, found[name], flush=True)
    say({"found": found}, "benchmarks.passes", given.write, BASE, JUDGE)


if __name__ == "__main__":
    main()
