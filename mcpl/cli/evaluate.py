"""Scores of learned words, found without learning them again."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from mcpl.cli.terminal import EXIT_STOPPED, EXIT_TOO_MANY_FAILED, Device, Model, console

if TYPE_CHECKING:
    from mcpl.config import Placement
    from mcpl.orchestration.evaluating import Asked

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
    model: Model = None,
    device: Device = "auto",
    shard_size: Annotated[int, typer.Option(min=1, help="Pictures committed together; the first run fixes it.")] = 16,
    max_failed_share: Annotated[
        float, typer.Option(min=0, max=1, help="A larger share of failed pictures gives exit code 3.")
    ] = 0.1,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Score recorded failures again.")] = False,
) -> None:
    """Add scores to banks, and compare them: with each other, and with a ground truth. Resumes where it stopped."""
    from mcpl.config import Placement
    from mcpl.evaluation.features import named
    from mcpl.evaluation.sampling import Sampling
    from mcpl.orchestration.evaluating import Asked

    sampling = Sampling(steps=steps, guidance=guidance)
    raise typer.Exit(
        score(
            banks,
            against or (),
            Asked(dataset, named(features), samples, seed, sampling, model),
            Placement(
                shard_size=shard_size, device=device, max_failed_share=max_failed_share, retry_failed=retry_failed
            ),
            out,
            _say,
            inline=True,
        )
    )


def score(
    banks: Sequence[str],
    against: Sequence[str],
    asked: Asked,
    placement: Placement,
    out: str | None,
    say: Callable[[str], None],
    **how: object,
) -> int:
    """Score banks, compare them, and say with the exit code how it went; `how` goes to `fanout.run`."""
    from mcpl.orchestration import comparing, progress
    from mcpl.orchestration.evaluating import evaluate_banks

    with progress.shown(what="scoring") as show:
        done, stopped = evaluate_banks([*banks, *against], asked, placement, say, on_progress=show, **how)
    if stopped:
        print("stopped: run the same command again to go on", file=sys.stderr)
        return EXIT_STOPPED
    failed = [bank for bank in done if len(bank.failures) > placement.max_failed_share * len(bank.keys)]
    if not failed or all(bank.metrics() for bank in done):  # else there is nothing to compare
        found = comparing.compare(done[: len(banks)], done[len(banks) :])
        say(comparing.table(found))
        if out:
            say(f"written to {out}: {', '.join(comparing.write(found, out, 'Learned words compared'))}")
    for bank in failed:
        print(
            f"{len(bank.failures)} of {len(bank.keys)} pictures of {bank.bank} could not be scored, more than"
            f" --max-failed-share {placement.max_failed_share:g}; --retry-failed scores them again",
            file=sys.stderr,
        )
    return EXIT_TOO_MANY_FAILED if failed else 0


def _say(line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
