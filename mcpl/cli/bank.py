"""Learned words: look them up, show them, describe them, publish them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from mcpl.cli.terminal import Model, console, print_metrics
from mcpl.errors import ConfigError

bank_app = typer.Typer(no_args_is_help=True, help="Look learned words up, show them, describe them.")


@bank_app.command("info")
def bank_info(bank: Annotated[str, typer.Argument(help="Bank folder, file or URI.")]) -> None:
    """Counts, recipes, bases and mean scores of a bank."""
    from mcpl.data.bank import Bank
    from mcpl.data.storage import byte_size

    opened = Bank.open(bank)
    summary, table = opened.summary(), Table(show_header=False, title=escape(bank), title_justify="left")
    counts = ", ".join(f"{count} {status}" for status, count in summary.status.items())
    table.add_row("pictures", f"{summary.rows} ({counts})")
    table.add_row("words", f"{summary.words}: " + _list([f"{w} x{n}" for w, n in opened.words().most_common()]))
    table.add_row("size", f"{byte_size(summary.bytes)} in {summary.parts} parts")
    table.add_row("learning time", f"{summary.seconds:.1f} s")
    for label, counted in (("recipe", summary.recipes), ("base", summary.bases), ("reason", summary.reasons)):
        for name, count in counted.items():
            table.add_row(label, escape(f"{name} ({count})"))
    signs = {n.removeprefix("sign_").replace("_", " "): v for n, v in summary.metrics.items() if n.startswith("sign_")}
    if any(signs.values()):
        table.add_row("signs of failure", _list([f"{name} {share:.0%}" for name, share in signs.items() if share]))
    console.print(table)
    print_metrics(summary.metrics)


def _list(items: list[str], most: int = 12) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


@bank_app.command("show")
def bank_show(
    bank: Annotated[str, typer.Argument(help="Bank folder or URI.")],
    dataset: Annotated[str, typer.Option("--dataset", help="The dataset that it was learned from.")],
    picture: Annotated[Path, typer.Option("--picture", help="PNG file to make.")] = Path("words.png"),
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Pictures to show.")] = 12,
    samples: Annotated[int, typer.Option(min=0, help="Pictures drawn from each word.")] = 1,
    model: Model = None,
) -> None:
    """A table of pictures and words, and one PNG: where each word looks and what it draws."""
    from mcpl.data.bank import Bank
    from mcpl.data.sources import Dataset
    from mcpl.models import catalogue
    from mcpl.orchestration.showing import shown_rows
    from mcpl.report.figures import results_sheet

    opened = Bank.open(bank)
    base = catalogue.load(model or next(opened.rows()).provenance.base, device="cpu") if samples else None
    shown = list(shown_rows(opened, Dataset.open(dataset), count, base, samples))
    if not shown:
        raise ConfigError(f"{bank}: no picture of {dataset} was learned; `mcpl bank info {bank}` says why")
    picture.parent.mkdir(parents=True, exist_ok=True)
    results_sheet(shown, score="attention_iou").save(picture)
    table = Table(title=f"{len(shown)} pictures of {bank}", title_justify="left")
    scores = [name for name in SHOWN_SCORES if any(name in one.metrics for one in shown)]
    for column in ("picture", "sentence", *(name.replace("_", " ") for name in scores)):
        table.add_column(column, justify="left" if column in ("picture", "sentence") else "right", overflow="fold")
    for one in shown:
        values = ("" if name not in one.metrics else f"{one.metrics[name]:.2f}" for name in scores)
        table.add_row(escape(one.id), escape(one.sentence.text), *values)
    console.print(table)
    console.print(f"Look at [bold]{picture}[/].", highlight=False)


SHOWN_SCORES = ("attention_iou_step0", "attention_iou", "assignment", "right_object_step0", "right_object")


@bank_app.command("search")
def bank_search(
    word: Annotated[str, typer.Argument(help="Learned word; * and ? match as in file names.")],
    bank: Annotated[str | None, typer.Option("--bank", help="Bank folder, file or URI.")] = None,
    registry: Annotated[str | None, typer.Option("--registry", help="NAME, NAME@alias or NAME/version.")] = None,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow server; default MLFLOW_TRACKING_URI.")] = None,
    home: Annotated[Path, typer.Option(help="Where the default MLflow database lies.")] = Path("."),
) -> None:
    """Every picture in which a word was learned, from a bank or from the registry."""
    if (bank is None) == (registry is None):
        raise ConfigError("give either --bank URI or --registry NAME@alias")
    table = Table("word", "picture", "sentence", "width", "norm")
    if bank:
        from mcpl.data.bank import Bank

        for hit in Bank.open(bank).search(word):
            table.add_row(hit.slug, escape(hit.id), escape(hit.text), str(hit.vectors.shape[-1]), f"{hit.norm:.3f}")
    else:
        from mcpl.tracking.registry import lookup

        found = lookup(registry, word=word, tracking_uri=tracking_uri, home=home)
        for hit in found.itertuples():
            table.add_row(
                hit.word, escape(hit.image_id), escape(hit.sentence), str(len(hit.vectors[0])), f"{hit.norm:.3f}"
            )
    console.print(table if table.row_count else f"no picture taught the word {word!r}", highlight=False)


@bank_app.command("card")
def bank_card(
    bank: Annotated[str, typer.Argument(help="Bank folder or URI.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Markdown file to write; else it is printed.")] = None,
) -> None:
    """What was learned, on which base, how well and how to use it: a model card in Markdown."""
    from mcpl.data.bank import Bank
    from mcpl.data.card import card

    text = card(Bank.open(bank).rows())
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text)
    else:
        sys.stdout.write(text)


@bank_app.command("compact")
def bank_compact(
    bank: Annotated[str, typer.Argument(help="Bank folder or URI of a run, finished or under way.")],
    megabytes: Annotated[
        float, typer.Option("--megabytes", min=1, help="About how large a file becomes; the first time fixes it.")
    ] = 256,
) -> None:
    """Join a run's many small parts into few large files. Safe at any time, and to repeat after a crash."""
    from mcpl.orchestration.compaction import compact

    done = compact(bank, round(megabytes * 1e6))
    console.print(
        f"{done.joined} parts joined into {done.files} new files, {done.deleted} deleted; {done.left} parts are left"
        f" ({done.shards_per_file} share a file)",
        highlight=False,
    )


def publish(
    bank: Annotated[str, typer.Argument(help="Bank folder or URI.")],
    name: Annotated[str, typer.Option("--name", help="Registered model name.")],
    alias: Annotated[str | None, typer.Option("--alias", help="Alias to set, such as champion.")] = "champion",
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow server; default MLFLOW_TRACKING_URI.")] = None,
) -> None:
    """Publish a bank as a version of a registered model."""
    from mcpl.orchestration.record import publish_bank

    published = publish_bank(bank, name, alias, tracking_uri)
    console.print(f"{published.name} version {published.version}: {published.load_line}", highlight=False)
