"""Image-sentence datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mcpl.cli.terminal import Words, adjusted_recipe, console
from mcpl.errors import ConfigError

dataset_app = typer.Typer(no_args_is_help=True, help="Look at, check and mark image-sentence datasets.")


@dataset_app.command("info")
def dataset_info(uri: str) -> None:
    """Counts and sizes, from metadata alone."""
    from mcpl.data.sources import info

    console.print(info(uri), highlight=False)


@dataset_app.command("validate")
def dataset_validate(
    uri: str,
    words: Words = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Base whose text encoder every sentence must fit; not asked without.")
    ] = None,
) -> None:
    """Read every row; report bad ones with their reasons. Exit code 1 where there is one."""
    from mcpl.data.sources import validate

    words = adjusted_recipe("paper", words=words).words
    fits = {}
    if model:
        from mcpl.models import catalogue
        from mcpl.prompts import parse, token_count

        vocabulary = catalogue.load(model, device="cpu").vocabulary
        fits = {
            "token_length": lambda text: token_count(parse(text, words), vocabulary),
            "token_limit": vocabulary.length,
        }
    report = validate(uri, words, **fits)
    console.print(report, highlight=False)
    if not report.ok:
        raise typer.Exit(1)


@dataset_app.command("mark")
def dataset_mark(
    uri: str,
    nouns: Annotated[Path, typer.Option("--nouns", help="Text file, one noun a line.")],
    out: Annotated[
        str | None, typer.Option("--out", help="Where the marked dataset goes; only a report without.")
    ] = None,
) -> None:
    """Put listed nouns of plain captions in <angle brackets>; report what was found and missed."""
    from mcpl.data.sources import mark_dataset
    from mcpl.recipes import nouns_in

    if not nouns.is_file():
        raise ConfigError(f"--nouns {nouns}: no such file")
    console.print(mark_dataset(uri, nouns_in(nouns), out), highlight=False)
