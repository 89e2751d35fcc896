#!/usr/bin/env python
"""Learn every picture of a dataset; run the same command again to resume or after the dataset has grown.

    python pipelines/train_all.py --dataset URI --output URI [--recipe NAME|FILE] [--workers N] [--pack K]
    ray job submit --working-dir . -- python pipelines/train_all.py --dataset URI --output URI
    ray job submit --working-dir . --runtime-env-json '{"env_vars": {"MCPL_DATASET": ..., "MCPL_OUTPUT": ...}}' \\
        pipelines/train_all.py

Every option may come from the environment instead, as MCPL_ and its name: MCPL_DATASET, MCPL_WORKERS, MCPL_PACK ...
Exit codes: 0 done; 1 an error, told in one line; 3 more pictures failed than --max-failed-share; 4 stopped by a
signal before the end; 5 published, but not better than the version that keeps the alias.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without installing it

import typer

from mcpl.cli.terminal import (
    EXIT_NOT_BETTER,
    EXIT_STOPPED,
    EXIT_TOO_MANY_FAILED,
    Alias,
    BetterOn,
    Device,
    Experiment,
    Tracker,
    TrackingUri,
    listed,
    run,
)
from mcpl.config import Placement, RunConfig, fitted, pack_size, parse, worker_counts
from mcpl.errors import ConfigError
from mcpl.recipes import RECIPES, adjust, load
from mcpl.settings import DEFAULT_RECIPE

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__.split("\n", 1)[0], context_settings={"auto_envvar_prefix": "MCPL"})
def main(
    dataset: Annotated[str, typer.Option(help="Parquet, a folder of pictures or one of the other sources")] = "",
    output: Annotated[str, typer.Option(help="where the bank goes: a directory or s3://bucket/prefix")] = "",
    recipe: Annotated[str, typer.Option(help=f"a YAML file, or one of {', '.join(RECIPES)}")] = DEFAULT_RECIPE,
    workers: Annotated[
        str, typer.Option(help="processes that learn at once; 2:8 begins with two and grows with the cluster")
    ] = "1",
    pack: Annotated[str, typer.Option(help="pictures that share a U-Net batch; auto: what the device holds")] = "4",
    shard_size: Annotated[int, typer.Option(help="pictures committed together; the first run fixes it")] = 16,
    threads: Annotated[int | None, typer.Option(help="CPU threads of a worker")] = None,
    device: Device = "auto",
    gpus_per_worker: Annotated[float, typer.Option(help="may be a fraction; 0 learns on the CPU")] = 0,
    cpus_per_worker: Annotated[float, typer.Option(help="what Ray sets aside for a worker")] = 1,
    max_failed_share: Annotated[float, typer.Option(help="a larger share of failed pictures gives exit code 3")] = 0.1,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="learn recorded failures again")] = False,
    samples: Annotated[int, typer.Option(help="pictures drawn from each word to score it")] = 0,
    vram: Annotated[
        int | None,
        typer.Option(help="GB of a device, 8, 12 or 24: sets pack, memory saving and precision"),
    ] = None,
    words: Annotated[str | None, typer.Option(help="marked, all, or list:FILE of nouns")] = None,
    model: Annotated[str | None, typer.Option(help="base: catalogue name, directory, or owner/name@revision")] = None,
    steps: Annotated[int | None, typer.Option(help="optimisation steps instead of the recipe's")] = None,
    seed: Annotated[int | None, typer.Option(help="seed instead of the recipe's")] = None,
    publish: Annotated[
        str, typer.Option(help="registered model that the bank becomes a version of, unless too many pictures failed")
    ] = "",
    alias: Alias = "champion",
    better_on: BetterOn = "",
    tracker: Tracker = "mlflow",
    tracking_uri: TrackingUri = None,
    experiment: Experiment = "mcpl",
    inline: Annotated[bool, typer.Option("--inline", help="learn in this process, without Ray")] = False,
    wait_for_nodes: Annotated[bool, typer.Option("--wait-for-nodes", help="the cluster adds nodes on demand")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="show the workers' logs")] = False,
    runner: Annotated[str, typer.Option(hidden=True, help="what learns, as module:class")] = "",
) -> None:
    if not dataset or not output:
        raise ConfigError("--dataset and --output are needed, or MCPL_DATASET and MCPL_OUTPUT in the environment")
    placement = {
        **worker_counts(workers),
        "pack": pack_size(pack),
        "shard_size": shard_size,
        "threads": threads,
        "device": device,
        "gpus_per_worker": gpus_per_worker,
        "cpus_per_worker": cpus_per_worker,
        "max_failed_share": max_failed_share,
        "samples": samples,
        "retry_failed": retry_failed,
    }
    chosen = adjust(load(recipe), words=words, base=model, steps=steps, seed=seed)
    chosen, placed = fitted(chosen, parse(Placement, placement, "options"), vram)
    if vram:
        print(f"--vram {vram}: precision {chosen.precision}, so the recipe's fingerprint is {chosen.fingerprint}")
    config = RunConfig(
        dataset=dataset,
        output=output,
        recipe=chosen,
        placement=placed,
        tracking_uri=tracking_uri,
        experiment=experiment,
    )
    how = {"tracker": tracker, "inline": inline, "wait_for_nodes": wait_for_nodes, "verbose": verbose}
    raise typer.Exit(train_all(config, publish, alias, better_on, **how, **({"runner": runner} if runner else {})))


def train_all(config: RunConfig, publish: str = "", alias: str = "champion", better_on: str = "", **how: object) -> int:
    """Learn, tell, and say with the exit code how it went."""
    from mcpl.orchestration import progress, record
    from mcpl.tracking.registry import NotPromoted

    guard = listed(better_on)
    if guard and not (publish and alias):
        raise ConfigError("--better-on needs --publish NAME, and an --alias that may move")
    record.check_guard(guard)
    with progress.shown() as show:
        summary = record.learn_dataset(config, on_progress=show, **how)
    report(summary)
    if summary.stopped:
        print("stopped: run the same command again to go on", file=sys.stderr)
        return EXIT_STOPPED
    if summary.failed_share > config.placement.max_failed_share:
        print(
            f"{summary.failed} of {summary.rows} pictures failed, more than --max-failed-share"
            f" {config.placement.max_failed_share:g}; their reasons are in the bank"
            + ("; nothing is published" if publish else ""),
            file=sys.stderr,
        )
        return EXIT_TOO_MANY_FAILED
    if publish and summary.learned:
        try:
            published = record.publish_bank(config.output, publish, alias or None, config.tracking_uri, better_on=guard)
            print(f"published as {published.name} version {published.version}: {published.load_line}")
        except NotPromoted as refused:
            print(refused, file=sys.stderr)
            return EXIT_NOT_BETTER
    return 0


def report(summary) -> None:
    """A table of counts, and a last line that says it all."""
    from rich.console import Console
    from rich.table import Table

    from mcpl.orchestration.progress import duration

    console = Console(highlight=False, soft_wrap=True)
    for note in summary.notes:
        console.print(f"note: {note}")
    table = Table("pictures", "learned", "failed", "skipped", "this time", "before", "lost workers")
    counts = (summary.rows, summary.learned, summary.failed, summary.skipped, summary.new, summary.resumed)
    table.add_row(*map(str, (*counts, summary.lost_workers)))
    console.print(table)
    if summary.new == 0 and not summary.stopped:
        console.print(f"nothing to do: all {summary.rows} pictures are in {summary.bank_uri}")
    else:
        console.print(
            f"{summary.new} pictures in {duration(summary.seconds)} ({summary.pictures_per_minute:.3g}/min):"
            f" {summary.learned + summary.failed + summary.skipped} of {summary.rows} are in {summary.bank_uri}"
        )


def leave(code: int | None) -> None:
    """End now: after a stop, a worker thread may still be learning, and nobody wants its result."""
    sys.stdout.flush()
    sys.stderr.flush()
    if code == EXIT_STOPPED:
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    try:
        run(app, "train_all")
    except SystemExit as ended:
        leave(ended.code)
