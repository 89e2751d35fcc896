"""How hard does each term of a recipe pull at the words, beside the denoising loss?

    python -m benchmarks.gradients [--recipes paper,best] [--pictures 10] [--draws 8] [--write FILE]

At the words' start and at what a recipe learned, for each term with its weight, median and quartiles over pictures:

    of a batch  length of its gradient over that of the denoising loss on the same rows, mean over `--draws` batches
    of means    the same of the gradients' means over the batches: what is left when the noise of rows averages out
    cosine      between these means

Adam does not see the scale of a loss, so the ratios say what a term can change. Masks are cut from one look at the same
words, as a recipe's first are. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from benchmarks.provenance import say
from benchmarks.recipes import examples
from benchmarks.results_follow import BASE
from mcpl.config import Placement, Recipe
from mcpl.learning.batch import draw_rows, pack_rows, probe_rows
from mcpl.learning.step import RowMasks, cut_masks, object_masks, probe, row_mask, step, to_latents
from mcpl.models import catalogue
from mcpl.models.base import BaseModel
from mcpl.orchestration.job import Runner
from mcpl.recipes import adjust, load
from mcpl.scenes.judge import WEIGHTS as JUDGE
from mcpl.seeds import derive_seed
from mcpl.studies import START
from mcpl.types import Job, Pack

MEASURES = ("of a batch", "of means", "cosine")


def gradients(model: BaseModel, job: Job, words: Tensor, recipe: Recipe, seed: int) -> dict[str, Tensor]:
    """Each term's gradient, weighted, at the words [slots, D] on one training batch."""
    total, settings = len(model.alphas_cumprod), recipe.looked_mask
    drawn = draw_rows(job, torch.Generator().manual_seed(seed), recipe, total)
    batch, loss, objects = pack_rows(Pack((job,)), [drawn], model), None, None
    if settings:
        (look,) = probe(model, [job], [probe_rows(job, recipe, total)], [words], recipe.batch, settings)
        small = cut_masks(look.mask_maps, job, settings)
        objects = torch.stack([object_masks(small, view, len(job.concepts)) for view in drawn.views])
        if settings.on_loss:
            loss = torch.stack([row_mask(to_latents(small, job), view) for view in drawn.views])
    found = {}
    for name, term in recipe.terms.items():
        leaf = words.detach().clone().requires_grad_()
        output = step(model, batch, leaf, RowMasks(loss, objects), {name: term}, 1)
        (found[name],) = torch.autograd.grad(output.loss.sum(), leaf)
    return found


def pulls(model: BaseModel, job: Job, words: Tensor, recipe: Recipe, draws: int) -> dict[str, tuple[float, ...]]:
    """term -> `MEASURES`."""
    batches = [gradients(model, job, words, recipe, derive_seed(job.seed, "gradients", draw)) for draw in range(draws)]
    stacked = {name: torch.stack([found[name].flatten() for found in batches]) for name in recipe.terms}
    held = stacked.pop("denoising")
    return {
        name: (
            float((own.norm(dim=1) / held.norm(dim=1)).mean()),
            float(own.mean(dim=0).norm() / held.mean(dim=0).norm()),
            float(cosine_similarity(own.mean(dim=0), held.mean(dim=0), dim=0)),
        )
        for name, own in stacked.items()
    }


def quartiles(values: list[float]) -> list[float]:
    """Median, lower and upper quartile."""
    return [round(float(value), 5) for value in np.quantile(values, (0.5, 0.25, 0.75))]


def measure(runner: Runner, set_: str, split: str, pictures: int, draws: int) -> dict[str, dict[str, dict]]:
    """Of the words' start and of what is learned: term -> each of `MEASURES` as median and quartiles over pictures."""
    told: dict[str, list[dict[str, tuple[float, ...]]]] = {"start": [], "learned": []}
    for outcome in runner.outcomes(list(examples(set_, split, pictures)), looked_at=False):
        job = outcome.job
        kept = torch.cat([concept.vectors for concept in outcome.learned.concepts]).to(job.initial)
        for when, words in (("start", job.initial), ("learned", kept)):
            told[when].append(pulls(runner.model, job, words, runner.recipe, draws))
    return {
        when: {
            term: {what: quartiles([own[term][place] for own in found]) for place, what in enumerate(MEASURES)}
            for term in found[0]
        }
        for when, found in told.items()
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--recipes", default="paper,best")
    options.add_argument("--set", default="unnamed-2")
    options.add_argument("--split", default="dev")
    options.add_argument("--pictures", type=int, default=10)
    options.add_argument("--draws", type=int, default=16, help="training batches")
    options.add_argument("--steps", type=int, help="of learning, instead of the recipe's own")
    options.add_argument("--write", type=Path, help="keep the figures here (JSON)")
    given = options.parse_args()
    model, found = catalogue.load(str(BASE)), {}
    for name in given.recipes.split(","):
        recipe = adjust(load(name), **START, steps=given.steps)
        runner = Runner(recipe, Placement(pack=given.pictures, samples=0, device="cpu"), model)
        found[name] = measure(runner, given.set, given.split, given.pictures, given.draws)
        print(name, found[name], flush=True)
    say({"found": found}, "benchmarks.gradients", given.write, BASE, JUDGE)


if __name__ == "__main__":
    main()
