"""What looking costs: a step with attention recording over one without, and what the other parts of a step add.

    python -m benchmarks.recording [--rounds 40] [--pack 2]

One process, one thread; the variants take turns, step by step, each on the same rows, and a ratio is the median over
the rounds of neighbours' processor times, so that other load on the machine falls on both. A step here is text
encoder, U-Net and objective forwards, and the gradient of the learned rows. The last line is JSON:

    ratio             recorded: the read words' columns in the layers of 16x16, mean over heads and layers, with graph
    ratio_loss        the same with an attention loss on the maps, gradient through them included
    ratio_all_layers  every cross-attention layer as an explicit softmax in place of the fused one, all of it kept
    attnmask          with the loss masked over without; cutting the masks is a look's work
    promptcl          with PromptCL over without
    look              seconds of a look (masks, curve) as a share of the 25 steps that it serves
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.jobs import BASE, JUDGE, endless, scene_jobs, under_way
from benchmarks.provenance import say
from benchmarks.textual_inversion import Stored
from mcpl.learning.batch import draw_rows, pack_rows
from mcpl.learning.step import RowMasks, step
from mcpl.models.cross_attention import cross_attention_layers
from mcpl.objectives.objective import Attention, Contrastive, Denoising
from mcpl.types import Pack

PLAIN = {"denoising": Denoising()}


@contextmanager
def all_layers_stored(unet) -> Iterator[None]:
    """Every cross-attention layer's probabilities computed and kept, as releases do; the processors come back."""
    stored: list[torch.Tensor] = []
    before = {layer: layer.processor for layer in cross_attention_layers(unet).values()}
    for layer in before:
        layer.set_processor(Stored(stored))
    try:
        yield
    finally:
        for layer, processor in before.items():
            layer.set_processor(processor)


def variants(pack: int) -> dict[str, Callable[[], None]]:
    """Name -> one step on the same rows."""
    recipe = endless("combined")
    model, jobs = scene_jobs(recipe, pack)
    drawn = [draw_rows(job, torch.Generator().manual_seed(job.seed), recipe, 1000) for job in jobs]
    batch = pack_rows(Pack(jobs), drawn, model)
    learned = torch.cat([job.initial for job in jobs]).requires_grad_()
    side = model.facts.attention_size
    masks = RowMasks(None, torch.ones(*batch.objects.shape, side, side))
    half = torch.ones(len(batch.latents), 1, *batch.latents.shape[-2:])
    half[..., : half.shape[-1] // 2] = 0

    def stepped(terms, record: bool = False, masks: RowMasks = masks) -> None:
        if record:
            with model.record(batch.positions) as recording:
                output = step(model, batch, learned, masks, terms, len(jobs))
                recording.maps()
        else:
            output = step(model, batch, learned, masks, terms, len(jobs))
        torch.autograd.grad(output.loss.sum(), learned)

    def stored() -> None:
        with all_layers_stored(model._unet):
            stepped(PLAIN)

    return {
        "none": lambda: stepped(PLAIN),
        "recorded": lambda: stepped(PLAIN, record=True),
        "loss": lambda: stepped(PLAIN | {"attention": Attention()}),
        "all_layers": stored,
        "attnmask": lambda: stepped(PLAIN, masks=RowMasks(half, None)),
        "promptcl": lambda: stepped(PLAIN | {"contrastive": Contrastive()}),
    }


def timed(work: Callable[[], None]) -> float:
    """Processor seconds of this process."""
    started = time.process_time()
    work()
    return time.process_time() - started


def compared(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Each variant's time over that of `none` just before and just after it, round by round."""
    ratios: dict[str, list[float]] = {name: [] for name in steps if name != "none"}
    for work in steps.values():
        work()
    for _ in range(rounds):
        before = timed(steps["none"])
        for name in ratios:
            own, after = timed(steps[name]), timed(steps["none"])
            ratios[name].append(2 * own / (before + after))
            before = after
    return ratios


def look_share(pack: int) -> float:
    """Time of a look over that of the steps between two looks, `paper`."""
    recipe = endless("paper")
    model, jobs = scene_jobs(recipe, pack)
    learner = under_way(model, jobs, recipe)
    look = min(timed(learner._look) for _ in range(3))
    step_ = min(timed(learner.advance) for _ in range(5))
    return look / (step_ * recipe.probe_every)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--pack", type=int, default=2, help="pictures in the batch")
    parser.add_argument("--write", type=Path, help="also keep the last line in this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    quartiles = {n: statistics.quantiles(each) for n, each in compared(variants(given.pack), given.rounds).items()}
    ratios = {name: median for name, (_, median, _) in quartiles.items()}
    for name, (low, median, high) in quartiles.items():
        print(f"{name}: {median:.3f} of a step without; half of the rounds lie in {low:.3f} to {high:.3f}")
    say({
        "ratio": round(ratios["recorded"], 4), "ratio_loss": round(ratios["loss"], 4),
        "ratio_all_layers": round(ratios["all_layers"], 4), "attnmask": round(ratios["attnmask"], 4),
        "promptcl": round(ratios["promptcl"], 4),
        "quartiles": {name: [round(each, 4) for each in own] for name, own in quartiles.items()},
        "look": round(look_share(given.pack), 4), "rounds": given.rounds, "pack": given.pack,
    }, "benchmarks.recording", given.write, BASE, JUDGE)  # fmt: skip


if __name__ == "__main__":
    main()
