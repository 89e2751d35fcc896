"""A bank as a page to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mcpl.cli.terminal import Model, console


def report(
    bank: Annotated[str, typer.Argument(help="Bank folder or URI.")],
    dataset: Annotated[str, typer.Option("--dataset", help="The dataset that it was learned from.")],
    out: Annotated[str, typer.Option("--out", "-o", help="Folder or URI for the page.")] = "report",
    samples: Annotated[int, typer.Option(min=0, help="Pictures drawn from each word, and from all together.")] = 0,
    count: Annotated[int | None, typer.Option("--count", "-n", min=1, help="Only so many pictures.")] = None,
    single: Annotated[bool, typer.Option("--single", help="One file that holds it all, to send or to attach.")] = False,
    title: Annotated[str | None, typer.Option(help="Title of the page; else the bank's name.")] = None,
    model: Model = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...: where samples are drawn.")] = "auto",
) -> None:
    """Write a bank as one static page: a gallery that filters and sorts, and everything about each picture."""
    from rich.progress import Progress

    from mcpl.data.storage import byte_size
    from mcpl.orchestration.reporting import write_report

    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("writing", total=None)
        written = write_report(
            bank, dataset, out, samples=samples, count=count, single=single, title=title, base=model, device=device,
            on_picture=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    console.print(
        f"{written.pictures} pictures, {written.words} words, {byte_size(written.bytes)} in {written.files} files.\n"
        f"Open [bold]{Path(out) / 'index.html' if '://' not in out else out + '/index.html'}[/].",
        highlight=False,
    )
