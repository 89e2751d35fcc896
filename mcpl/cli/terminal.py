"""What commands and pipelines share: options that mean the same everywhere, the console, how errors are told."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from mcpl.errors import MCPLError

console = Console()

Model = Annotated[
    str | None, typer.Option("--model", help="Base model: catalogue name, directory, or hub id (owner/name@revision).")
]
Words = Annotated[str | None, typer.Option("--words", help="What is learned: marked, all, or list:FILE of nouns.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda ...")]
Tracker = Annotated[str, typer.Option(help="who is told: mlflow or none")]
Experiment = Annotated[str, typer.Option(help="MLflow experiment")]
TrackingUri = Annotated[
    str | None,
    typer.Option(
        help="MLflow server or database; else MLFLOW_TRACKING_URI, else SQLite beside the output (or in --home), and in"
        " the working directory where that is s3://"
    ),
]
Home = Annotated[Path, typer.Option(help="Where the default MLflow database lies.")]
Alias = Annotated[str, typer.Option(help="what NAME@ALIAS will mean once it is published; empty for none")]
BetterOn = Annotated[
    str, typer.Option(help="comma-separated scores that guard the alias: it moves to a better version only")
]
EXIT_TOO_MANY_FAILED, EXIT_STOPPED, EXIT_NOT_BETTER = 3, 4, 5
"""of every command: some, or too many, failed; a signal stopped it before its end; published, but the alias stays where
it was. 1 is an error, told in one line"""


def listed(names: str) -> tuple[str, ...]:
    """What an option names, commas between."""
    return tuple(name.strip() for name in names.split(",") if name.strip())


@contextlib.contextmanager
def one_line(name: str, code: int = 1) -> Iterator[None]:
    """An error that somebody can act on is one line on stderr, after the command's name, and the exit code `code`;
    anything else shows its traceback."""
    try:
        yield
    except (MCPLError, OSError) as error:  # OSError: a full disk, a folder without rights, a store that is away
        line = " ".join(str(error).split())
        Console(stderr=True).print(f"{name}: {line}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(code)


def run(app: typer.Typer, name: str, code: int = 1) -> None:
    """Run a command line, its errors told by `one_line`."""
    with one_line(name, code):
        app(standalone_mode=True)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """What a signal stopped ends with one line and exit code 4."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):  # Ray, while it starts, answers SIGTERM with the latter
        print("stopped: run the same command again to go on", file=sys.stderr)
        raise typer.Exit(EXIT_STOPPED) from None


def adjusted_recipe(name: str, **changes: object):
    """The named recipe, or a YAML file's, with what the command line changes (None: nothing)."""
    from mcpl.recipes import adjust, load

    return adjust(load(name), **changes)


@contextlib.contextmanager
def bar(what: str, total: int) -> Iterator[Callable[..., None]]:
    """A progress bar on stderr where a person is watching; called with the number of steps done (1)."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    there = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=there, disable=not there.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda steps=1: progress.advance(task, steps)


def print_metrics(metrics) -> None:
    """Every score, before learning beside after it."""
    table = Table(show_header=True, title="how well", title_justify="left")
    for column, justify in (("metric", "left"), ("before", "right"), ("after", "right")):
        table.add_column(column, justify=justify)
    for name, value in metrics.items():
        if not name.endswith("_step0") and not name.startswith("sign_"):
            before = metrics.get(f"{name}_step0")
            table.add_row(name.replace("_", " "), "" if before is None else f"{before:.3f}", f"{value:.3f}")
    console.print(table)
