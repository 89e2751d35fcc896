"""How hard does each term of a recipe pull at the words, beside the denoising loss?

    python -m benchmarks.gradients [--recipes paper,combined] [--pictures 10] [--draws 16] [--write FILE]

At the words' start and at what a recipe learned, for each term with its weight, median and quartiles over pictures of
two lengths, both over that of the denoising loss's gradient on one batch:

    of a batch  its gradient's on the same batch, mean over `--draws` batches (the denoising loss's own is 1)
    steady      what is alike in all batches, without the noise of their rows (mean product of two different batches)

Adam does not see the scale of a loss: in a few steps a term changes what the words become by about "of a batch", in
very many by its "steady" beside the denoising loss's. Masks are cut from one look at the same words, as a recipe's
first are. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.provenance import say
from benchmarks.recipes import examples
from benchmarks.results_follow import BASE
from mcpl.cli.terminal import one_line
from mcpl.config import Placement, Recipe
from mcpl.learning.batch import Rows, draw_rows, pack_rows, probe_rows
from mcpl.learning.step import RowMasks, cut_masks, object_masks, probe, row_mask, step, to_latents
from mcpl.models import catalogue
from mcpl.models.base import BaseModel
from mcpl.orchestration.job import Runner, ends
from mcpl.recipes import adjust, load
from mcpl.scenes.judge import WEIGHTS as JUDGE
from mcpl.seeds import derive_seed
from mcpl.studies import START
from mcpl.types import Job, Pack

OF_A_BATCH, STEADY = "of a batch", "steady"


def masks_of_rows(model: BaseModel, job: Job, words: Tensor, recipe: Recipe) -> Callable[[Rows], RowMasks]:
    """What the rows of a batch are masked with at these words [slots, D]."""
    settings = recipe.looked_mask
    if settings is None:
        return lambda drawn: RowMasks(None, None)
    rows = [probe_rows(job, recipe, len(model.alphas_cumprod))]
    (look,) = probe(model, [job], rows, [words], recipe.batch, settings)
    small = cut_masks(look.mask_maps, job, settings)
    large = to_latents(small, job)

    def masks(drawn: Rows) -> RowMasks:
        loss = torch.stack([row_mask(large, view) for view in drawn.views]).clamp_min(settings.outside)
        objects = torch.stack([object_masks(small, view, len(job.concepts)) for view in drawn.views])
        return RowMasks(loss if settings.on_loss else None, objects)

    return masks


def gradients(
    model: BaseModel, job: Job, words: Tensor, recipe: Recipe, draws: int, number: int = 0
) -> dict[str, Tensor]:
    """Each term's gradient at the words [slots, D], weighted as at step `number`: term -> [draws, slots * D]."""
    masks, found = masks_of_rows(model, job, words, recipe), {name: [] for name in recipe.terms}
    for draw in range(draws):
        generator = torch.Generator().manual_seed(derive_seed(job.seed, "gradients", draw))
        drawn = draw_rows(job, generator, recipe, len(model.alphas_cumprod))
        batch, row_masks = pack_rows(Pack((job,)), [drawn], model), masks(drawn)
        for name, term in recipe.terms.items():
            leaf = words.detach().clone().requires_grad_()
            output = step(model, batch, leaf, row_masks, {name: term}, 1, number)
            found[name].append(torch.autograd.grad(output.loss.sum(), leaf)[0].flatten())
    return {name: torch.stack(own) for name, own in found.items()}


def steady(batches: Tensor) -> float:
    """Length of the mean that gradients [n, d] have in common: noise, which differs between batches, adds nothing."""
    n = len(batches)
    products = batches.sum(dim=0).square().sum() - batches.square().sum()
    return float((products / (n * (n - 1))).clamp_min(0).sqrt())


def pulls(found: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """term -> both lengths over that of the denoising loss's gradient on one batch."""
    held = found["denoising"].norm(dim=1)
    return {
        name: {OF_A_BATCH: float((own.norm(dim=1) / held).mean()), STEADY: steady(own) / float(held.mean())}
        for name, own in found.items()
    }


def quartiles(values: list[float]) -> list[float]:
    """Median, lower and upper quartile."""
    return [round(float(value), 5) for value in np.quantile(values, (0.5, 0.25, 0.75))]


def measure(runner: Runner, set_: str, split: str, pictures: int, draws: int) -> dict[str, dict[str, dict]]:
    """Of the words' start and of what is learned: term -> each ratio as median and quartiles over pictures."""
    told: dict[str, list[dict[str, dict[str, float]]]] = {"start": [], "learned": []}
    for outcome in runner.outcomes(list(examples(set_, split, pictures)), looked_at=False):
        job = outcome.job
        last = max(0, runner.recipe.steps - 1)
        for when, words, number in (("start", job.initial, 0), ("learned", ends(job, outcome.learned), last)):
            told[when].append(pulls(gradients(runner.model, job, words, runner.recipe, draws, number)))
    return {
        when: {
            term: {ratio: quartiles([own[term][ratio] for own in found]) for ratio in found[0][term]}
            for term in sorted(found[0])
        }
        for when, found in told.items()
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--recipes", default="paper,combined")
    options.add_argument("--set", default="unnamed-2")
    options.add_argument("--split", default="dev")
    options.add_argument("--pictures", type=int, default=10)
    options.add_argument("--draws", type=int, default=16, help="training batches")
    options.add_argument("--steps", type=int, help="of learning, instead of the recipe's own")
    options.add_argument("--write", type=Path, help="keep the figures here (JSON)")
    given = options.parse_args()
    recipes = {name: adjust(load(name), **START, steps=given.steps) for name in given.recipes.split(",")}
    if given_masks := [name for name, recipe in recipes.items() if recipe.needs_masks]:
        options.error(f"{given_masks[0]} learns from given masks, and only those that words cut are looked at")
    model, found = catalogue.load(str(BASE)), {}
    for name, recipe in recipes.items():
        runner = Runner(recipe, Placement(pack=given.pictures, samples=0, device="cpu"), model)
        found[name] = measure(runner, given.set, given.split, given.pictures, given.draws)
        print(name, found[name], flush=True)
    say({"found": found}, "benchmarks.gradients", given.write, BASE, JUDGE)


if __name__ == "__main__":
    with one_line("benchmarks.gradients"):
        main()
