#!/usr/bin/env python
"""Score banks that were learned, and compare them; run the same command again to resume or after a bank has grown.

    python pipelines/evaluate_all.py --bank URI [--bank URI ...] [--against URI ...] [--dataset URI] [--out URI]
    ray job submit --working-dir . -- python pipelines/evaluate_all.py --bank URI --workers N ...

The MLflow run of a bank whose learning is done is told the scores too: means, and the table of pictures.
Every option may come from the environment instead, as MCPL_ and its name; several banks stand in one variable with
spaces between. Exit codes: 0 done; 1 an error, told in one line; 3 more pictures failed than --max-failed-share; 4
stopped by a signal before the end.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without installing it

import typer

from mcpl.cli.evaluate import score
from mcpl.cli.terminal import EXIT_STOPPED, Device, Model, Tracker, TrackingUri, run
from mcpl.config import Placement, parse, worker_counts
from mcpl.errors import ConfigError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__.split("\n", 1)[0], context_settings={"auto_envvar_prefix": "MCPL"})
def main(
    bank: Annotated[list[str] | None, typer.Option(help="what to score; may be given again")] = None,
    against: Annotated[list[str] | None, typer.Option(help="bank of the ground truth; may be given again")] = None,
    dataset: Annotated[str | None, typer.Option(help="what they were learned from: masks, truth, likeness")] = None,
    features: Annotated[str, typer.Option(help="judge, clip, dinov1, dinov2, or NAME=DIRECTORY, by commas")] = "judge",
    samples: Annotated[int, typer.Option(help="pictures drawn of each word; the paper draws 20")] = 4,
    seed: Annotated[int, typer.Option(help="of the noise that they are drawn from")] = 0,
    steps: Annotated[int, typer.Option(help="of drawing")] = 20,
    guidance: Annotated[float, typer.Option(help="classifier-free")] = 3.0,
    out: Annotated[str, typer.Option(help="folder or bucket for comparison.md, raw.parquet and figures")] = "",
    model: Model = None,
    workers: Annotated[str, typer.Option(help="processes that score at once; 2:8 grows with the cluster")] = "1",
    shard_size: Annotated[int, typer.Option(help="pictures committed together; the first run fixes it")] = 64,
    threads: Annotated[int | None, typer.Option(help="CPU threads of a worker")] = None,
    device: Device = "auto",
    gpus_per_worker: Annotated[float, typer.Option(help="may be a fraction; 0 scores on the CPU")] = 0,
    cpus_per_worker: Annotated[float, typer.Option(help="what Ray sets aside for a worker")] = 1,
    max_failed_share: Annotated[float, typer.Option(help="a larger share of failed pictures gives exit code 3")] = 0.1,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="score recorded failures again")] = False,
    tracker: Tracker = "mlflow",
    tracking_uri: TrackingUri = None,
    inline: Annotated[bool, typer.Option("--inline", help="score in this process, without Ray")] = False,
    wait_for_nodes: Annotated[bool, typer.Option("--wait-for-nodes", help="the cluster adds nodes on demand")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="show the workers' logs")] = False,
) -> None:
    if not bank:
        raise ConfigError("--bank is needed, or MCPL_BANK in the environment")
    placement = {
        **worker_counts(workers),
        "shard_size": shard_size,
        "threads": threads,
        "device": device,
        "gpus_per_worker": gpus_per_worker,
        "cpus_per_worker": cpus_per_worker,
        "max_failed_share": max_failed_share,
        "retry_failed": retry_failed,
    }
    placed = parse(Placement, placement, "options")
    from mcpl.evaluation.features import named
    from mcpl.evaluation.sampling import Sampling
    from mcpl.orchestration import fanout
    from mcpl.orchestration.evaluating import Asked

    asked = Asked(dataset, named(features), samples, seed, Sampling(steps=steps, guidance=guidance), model)
    how = {"inline": inline, "wait_for_nodes": wait_for_nodes, "verbose": verbose}
    with contextlib.nullcontext() if inline else fanout.cluster(verbose):
        code = score(bank, against or (), asked, placed, out, print, **how)
    if code != EXIT_STOPPED:
        from mcpl.orchestration.record import tell_scores

        for told in dict.fromkeys([*bank, *(against or ())]):
            if tell_scores(told, tracker, tracking_uri):
                print(f"{told}: its MLflow run has the scores")
    raise typer.Exit(code)


if __name__ == "__main__":
    try:
        run(app, "evaluate_all")
    except SystemExit as ended:
        sys.stdout.flush()
        sys.stderr.flush()
        if ended.code == EXIT_STOPPED:  # a worker thread may still be scoring, and nobody wants its result
            os._exit(EXIT_STOPPED)
        raise
