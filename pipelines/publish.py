#!/usr/bin/env python
"""Publish a bank's learned words as a version of a registered model in MLflow.

    python pipelines/publish.py BANK --name NAME [--alias champion] [--tracking-uri URI]

Publishing the same words again makes no second version; it moves the alias. With --better-on right_object,assignment
the alias moves only to a version that is better than the one that has it. Every option may come from the environment
instead, as MCPL_ and its name. Exit codes: 0 done; 1 an error, told in one line; 3 published, but not better.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without installing it

import typer

from mcpl.cli.terminal import TrackingUri, run

EXIT_NOT_BETTER = 3

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__.split("\n", 1)[0], context_settings={"auto_envvar_prefix": "MCPL"})
def main(
    bank: Annotated[str, typer.Argument(help="a bank: a directory or s3://bucket/prefix")],
    name: Annotated[str, typer.Option(help="registered model; made on first use")],
    alias: Annotated[str, typer.Option(help="what NAME@ALIAS will mean from now on; empty for none")] = "champion",
    tracking_uri: TrackingUri = None,
    dataset: Annotated[str, typer.Option(help="what the bank was learned from, for the version's tags")] = "",
    better_on: Annotated[str, typer.Option(help="comma-separated scores that guard the alias; none: it moves")] = "",
) -> None:
    from mcpl.orchestration.record import publish_bank
    from mcpl.tracking.registry import NotPromoted

    guarded = [metric.strip() for metric in better_on.split(",") if metric.strip()]
    try:
        published = publish_bank(bank, name, alias or None, tracking_uri, dataset, guarded)
    except NotPromoted as refused:
        print(refused, file=sys.stderr)
        raise typer.Exit(EXIT_NOT_BETTER) from None
    typer.echo(f"name     {published.name}")
    typer.echo(f"version  {published.version}")
    typer.echo(f"alias    {', '.join(published.aliases) or '-'}")
    typer.echo(f"load     {published.load_line}")


if __name__ == "__main__":
    run(app, "publish")
