"""Scores of learned words, found without learning them again."""

from __future__ import annotations

from typing import Annotated

import typer

from mcpl.cli.terminal import Device, console

Banks = Annotated[list[str], typer.Argument(help="Bank folders or URIs: seeds of a recipe, or several recipes.")]


def evaluate(
    banks: Banks,
    against: Annotated[
        list[str] | None,
        typer.Option("--against", help="Bank of the ground truth (recipe masked-inversion); may be given again."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="What they were learned from: for masks, truth and likeness.")
    ] = None,
    features: Annotated[
        str, typer.Option(help="Spaces to compare pictures in: judge, clip, dinov1, dinov2, or NAME=DIRECTORY.")
    ] = "judge",
    samples: Annotated[int, typer.Option(min=0, help="Pictures drawn of each word; the paper draws 20.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of the noise that they are drawn from.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Steps of drawing.")] = 20,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance.")] = 3.0,
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="Folder for comparison.md, raw.parquet and figures.")
    ] = None,
    device: Device = "auto",
    shard_size: Annotated[int, typer.Option(min=1, help="Pictures committed together; the first run fixes it.")] = 16,
) -> None:
    """Add scores to banks, and compare them: with each other, and with a ground truth. Resumes where it stopped."""
    from mcpl.config import Placement
    from mcpl.evaluation.features import named
    from mcpl.evaluation.sampling import Sampling
    from mcpl.orchestration import comparing, progress
    from mcpl.orchestration.evaluating import Asked, evaluate_banks

    asked = Asked(dataset, named(features), samples, seed, Sampling(steps=steps, guidance=guidance))
    placement = Placement(shard_size=shard_size, device=device)
    with progress.shown(what="scoring") as show:
        done, stopped = evaluate_banks(
            [*banks, *(against or ())], asked, placement, _say, on_progress=show, inline=True
        )  # fmt: skip
    if stopped:
        _say("stopped: run the same command again to go on")
        raise typer.Exit(4)
    found = comparing.compare(done[: len(banks)], done[len(banks) :])
    console.print(comparing.table(found), markup=False, highlight=False, soft_wrap=True)
    if out:
        names = comparing.write(found, out, "Learned words compared")
        _say(f"written to {out}: {', '.join(names)}")


def _say(line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
