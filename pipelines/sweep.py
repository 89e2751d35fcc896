#!/usr/bin/env python
"""Search for the best recipe; run the same command again to resume, or with more trials to go on.

    python pipelines/sweep.py --space FILE --trials N [--out URI] [--gpus-per-trial 0.25] [--concurrent K]

FILE says what is searched and on which pictures: infra/sweeps/ has examples, mcpl/orchestration/space.py every field.
At the end OUT holds best.yaml (`train_all --recipe OUT/best.yaml` takes it), report.md, parallel.png, slices.png and
trials.parquet; every trial is a run in MLflow. Every option may come from the environment instead, as MCPL_ and its
name. Exit codes: 0 done; 1 an error, told in one line; 4 stopped by a signal before the end.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without installing it

import typer

from mcpl.cli.terminal import Device, Experiment, Tracker, TrackingUri, run, stoppable
from mcpl.config import Placement, parse

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__.split("\n", 1)[0], context_settings={"auto_envvar_prefix": "MCPL"})
def main(
    space: Annotated[Path, typer.Option(help="YAML: what is searched, on which pictures, what is best")],
    trials: Annotated[int, typer.Option(min=1, help="recipes tried in all, those of earlier starts included")] = 20,
    out: Annotated[
        str, typer.Option(help="a directory or s3://bucket/prefix; default runs/sweeps/NAME of the space")
    ] = "",
    cpus_per_trial: Annotated[float, typer.Option(help="what Ray sets aside for a trial")] = 1,
    gpus_per_trial: Annotated[float, typer.Option(help="may be a fraction; 0 learns on the CPU")] = 0,
    concurrent: Annotated[
        int | None, typer.Option(min=1, help="trials at once; default: what the machines hold")
    ] = None,
    device: Device = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads of a trial")] = None,
    tracker: Tracker = "mlflow",
    tracking_uri: TrackingUri = None,
    experiment: Experiment = "mcpl",
    wait_for_nodes: Annotated[bool, typer.Option("--wait-for-nodes", help="the cluster adds nodes on demand")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="show the trials' logs")] = False,
    runner: Annotated[str, typer.Option(hidden=True, help="what learns, as module:class")] = "",
) -> None:
    from mcpl.orchestration.space import read_space

    searched = read_space(space)
    placement = {"cpus_per_worker": cpus_per_trial, "gpus_per_worker": gpus_per_trial, "device": device}
    placed = parse(Placement, placement | {"threads": threads}, "options")
    with stoppable():
        from mcpl.orchestration import sweep

        summary = sweep.run(
            searched, out or f"runs/sweeps/{space.stem}", trials,
            placement=placed, concurrent=concurrent, tracker=tracker, tracking_uri=tracking_uri, experiment=experiment,
            wait_for_nodes=wait_for_nodes, verbose=verbose, **({"runner": runner} if runner else {}),
        )  # fmt: skip
    print(Path(summary["report"]).read_text() if "://" not in summary["report"] else summary["report"])
    print(json.dumps(summary))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, until the trials begin
    run(app, "sweep")
