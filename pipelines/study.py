#!/usr/bin/env python
"""Run one of the studies; run the same command again to resume.

    python pipelines/study.py --list
    python pipelines/study.py NAME [--quick] [--out URI] [--seeds N] [--pictures N] [--split dev]

What each study compares is in mcpl/studies.py. At the end OUT holds raw.parquet (every picture, seed and cell),
report.md and its figures; an MLflow run holds the same, with a run below it for each cell. --split test is noted in
OUT/test-split.md. Every option may come from the environment instead, as MCPL_ and its name. Exit codes: 0 done; 1 an
error, told in one line; 3 some cells failed, and the report is of the others; 4 stopped by a signal before the end.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Annotated, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without installing it

import typer

from mcpl.cli.terminal import EXIT_TOO_MANY_FAILED, Device, Experiment, Tracker, TrackingUri, run, stoppable
from mcpl.config import Placement, parse
from mcpl.errors import MCPLError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__.split("\n", 1)[0], context_settings={"auto_envvar_prefix": "MCPL"})
def main(
    name: Annotated[str, typer.Argument(help="which study; --list tells them")] = "",
    listed: Annotated[bool, typer.Option("--list", help="tell the studies, and stop")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="2 pictures, 1 seed, 10 steps: to see that it runs")] = False,
    out: Annotated[str, typer.Option(help="a directory or s3://bucket/prefix; default runs/studies/NAME")] = "",
    split: Annotated[Literal["dev", "test"], typer.Option(help="of Scenes-MC; each use of test is noted")] = "dev",
    pictures: Annotated[int | None, typer.Option(min=1, help="of each set; default: all")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="times that each picture is learned; default: 5")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="of every recipe, instead of its own")] = None,
    samples: Annotated[int | None, typer.Option(min=0, help="pictures drawn of each word; default: 4")] = None,
    pack: Annotated[
        int | None, typer.Option(min=1, help="pictures learned and kept together; default: 6, a GPU wants more")
    ] = None,
    base: Annotated[str | None, typer.Option(help="base model; default: the recipes' own")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="learned instead of Scenes-MC, where the study compares recipes alone")
    ] = None,
    known: Annotated[
        list[str] | None,
        typer.Option(help="folder of another study: what it learned as this one would is taken; may be given again"),
    ] = None,
    cpus_per_cell: Annotated[float, typer.Option(help="what Ray sets aside for a cell")] = 1,
    gpus_per_cell: Annotated[float, typer.Option(help="may be a fraction; 0 learns on the CPU")] = 0,
    concurrent: Annotated[
        int | None, typer.Option(min=1, help="cells at once; default: what the machines hold")
    ] = None,
    device: Device = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads of a cell")] = None,
    tracker: Tracker = "mlflow",
    tracking_uri: TrackingUri = None,
    experiment: Experiment = "mcpl",
    wait_for_nodes: Annotated[bool, typer.Option("--wait-for-nodes", help="the cluster adds nodes on demand")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="show the cells' logs")] = False,
    runner: Annotated[str, typer.Option(hidden=True, help="what learns, as module:class")] = "",
) -> None:
    from mcpl.studies import FULL, QUICK, STUDIES, build

    if listed or not name:
        for each, make in STUDIES.items():
            study = make()
            print(f"{each:16s} {len(study.cells):3d} cells  {study.question}")
        if not listed:
            raise MCPLError("name a study")
        return
    given = {"pictures": pictures, "seeds": seeds, "steps": steps, "samples": samples, "pack": pack}
    size = (QUICK if quick else FULL).model_copy(update={k: v for k, v in given.items() if v is not None})
    chosen = build(name, size, split, base, dataset)
    placement = {"cpus_per_worker": cpus_per_cell, "gpus_per_worker": gpus_per_cell, "device": device}
    placed = parse(Placement, placement | {"threads": threads}, "options")
    default = f"runs/studies/{name}{'-quick' if quick else ''}{'-test' if split == 'test' else ''}"
    with stoppable():
        from mcpl.orchestration import study

        summary = study.run(
            chosen, out or default,
            placement=placed, concurrent=concurrent, tracker=tracker, tracking_uri=tracking_uri, experiment=experiment,
            known=known or (), wait_for_nodes=wait_for_nodes, verbose=verbose, **({"runner": runner} if runner else {}),
        )  # fmt: skip
    print(Path(summary["report"]).read_text() if "://" not in summary["report"] else summary["report"])
    print(json.dumps(summary))
    for cell, reason in summary["failed"].items():
        print(f"study: {cell} failed: {reason}", file=sys.stderr)
    if summary["failed"]:
        raise typer.Exit(EXIT_TOO_MANY_FAILED)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, until the trials begin
    run(app, "study")
