#!/usr/bin/env python
"""Publish a bank's learned words as a version of a registered model in MLflow, as `mcpl publish` does.

    python pipelines/publish.py BANK --name NAME [--alias champion] [--tracking-uri URI]

Publishing the same words again makes no second version; it moves the alias. With --better-on right_object,assignment
the alias moves only to a version that is better than the one that has it. Every option may come from the environment
instead, as MCPL_ and its name. Exit codes: 0 done; 1 an error, told in one line; 5 published, but not better.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without installing it

import typer

from mcpl.cli.bank import publish
from mcpl.cli.terminal import run

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command(help=__doc__.split("\n", 1)[0], context_settings={"auto_envvar_prefix": "MCPL"})(publish)

if __name__ == "__main__":
    run(app, "publish")
