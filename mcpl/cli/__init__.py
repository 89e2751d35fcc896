"""mcpl learn photo.png "a brown <bear> on a rolling <board>", and everything around it.

Each group of commands is a module; heavy imports stay inside the commands: `mcpl --help` must not wait for torch.
"""

from __future__ import annotations

import os

import typer

from mcpl.cli.bank import bank_app, publish
from mcpl.cli.concepts import concepts_app
from mcpl.cli.dataset import dataset_app
from mcpl.cli.edit import edit
from mcpl.cli.evaluate import evaluate
from mcpl.cli.generate import generate
from mcpl.cli.learn import explain, learn
from mcpl.cli.plan import plan
from mcpl.cli.report import report
from mcpl.cli.show import show
from mcpl.cli.terminal import run

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

COMMANDS = (learn, explain, generate, edit, show, evaluate, report, plan, publish)
GROUPS = {"dataset": dataset_app, "bank": bank_app, "concepts": concepts_app}

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__.splitlines()[0]
)
for command in COMMANDS:
    app.command()(command)
for name, group in GROUPS.items():
    app.add_typer(group, name=name)


def main() -> None:
    """Entry point."""
    run(app, "mcpl")
