"""Learned words as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from mcpl.cli.terminal import console

concepts_app = typer.Typer(no_args_is_help=True, help="Learned words as files: to other programs, and from them.")


@concepts_app.command("export")
def concepts_export(
    bank: Annotated[str, typer.Argument(help="Bank folder or URI.")],
    out: Annotated[str, typer.Option("--out", "-o", help="Folder or URI for the files and their README.md.")],
    word: Annotated[list[str] | None, typer.Option("--word", help="Learned word, * and ? match; else all.")] = None,
    id: Annotated[list[str] | None, typer.Option("--id", help="Picture id; else all.")] = None,
    file_format: Annotated[str, typer.Option("--format", help="safetensors, or a1111 (a pickle).")] = "safetensors",
) -> None:
    """Write each word as a file of its own, which diffusers and other programs load."""
    from mcpl.data import concepts
    from mcpl.data.bank import Bank

    for path in concepts.export(Bank.open(bank), out, id or (), word or (), file_format):
        console.print(path, highlight=False, markup=False, soft_wrap=True)


@concepts_app.command("import")
def concepts_import(
    files: Annotated[list[Path], typer.Argument(help="Files of diffusers, kohya, OneTrainer, A1111, MCPL's release.")],
    base: Annotated[str, typer.Option("--base", help="Base that they belong to: catalogue name or directory.")],
    out: Annotated[str, typer.Option("--out", "-o", help="Folder or URI for concepts/<word>/...")],
    word: Annotated[
        list[str] | None, typer.Option("--word", help="New name, one for each word in the order of the files.")
    ] = None,
) -> None:
    """Bring other programs' words into our layout. No file is ever executed."""
    from mcpl.data import concepts
    from mcpl.models import catalogue

    table = Table("word", "vectors", "width", "fits", "written by", "from", "file")
    for one in concepts.import_files(files, out, base, catalogue.word_width(base), word or ()):
        row = (f"<{one.slug}>", str(one.vectors), str(one.width), one.fits, one.layout, one.source, one.path)
        table.add_row(*map(escape, row))
    console.print(table)
