"""Learned words: look them up, show them, describe them, publish them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from mcpl.cli.terminal import (
    EXIT_NOT_BETTER,
    Alias,
    BetterOn,
    Home,
    Model,
    TrackingUri,
    console,
    listed,
    print_metrics,
)
from mcpl.errors import ConfigError

bank_app = typer.Typer(no_args_is_help=True, help="Look learned words up, show them, describe them.")


@bank_app.command("info")
def bank_info(bank: Annotated[str, typer.Argument(help="Bank folder, file or URI.")]) -> None:
    """Counts, recipes, bases and mean scores of a bank."""
    from mcpl.data.scores import ScoredBank
    from mcpl.data.storage import byte_size

    opened = ScoredBank.open(bank)
    summary, table = opened.summary(), Table(show_header=False, title=escape(bank), title_justify="left")
    counts = ", ".join(f"{count} {status}" for status, count in summary.status.items())
    table.add_row("pictures", f"{summary.rows} ({counts})")
    if summary.groups:
        table.add_row("groups", f"{summary.groups} of these are groups of pictures that share their words")
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
    from mcpl.data.scores import ScoredBank
    from mcpl.data.sources import Dataset
    from mcpl.models import catalogue
    from mcpl.orchestration.showing import shown_rows
    from mcpl.report.figures import results_sheet

    opened = ScoredBank.open(bank)
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
    word: Annotated[str | None, typer.Argument(help="Learned word; in a --bank * and ? match.")] = None,
    bank: Annotated[str | None, typer.Option("--bank", help="Bank folder, file or URI.")] = None,
    registry: Annotated[str | None, typer.Option("--registry", help="NAME, NAME@alias or NAME/version.")] = None,
    id: Annotated[str | None, typer.Option("--id", help="The words of this picture.")] = None,
    near: Annotated[str | None, typer.Option("--near", help="Learned words nearest to PICTURE/WORD.")] = None,
    like: Annotated[str | None, typer.Option("--like", help="Learned words nearest to this word of the base.")] = None,
    clusters: Annotated[int | None, typer.Option("--clusters", min=1, help="So many groups of like words.")] = None,
    base: Annotated[str | None, typer.Option("--base", help="Base that the words must belong to.")] = None,
    min_iou: Annotated[float | None, typer.Option("--min-iou", help="Least attention IoU of the picture.")] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Nearest words to find.")] = 10,
    out: Annotated[str | None, typer.Option("--out", "-o", help="Folder or URI: write the hits as files.")] = None,
    tracking_uri: TrackingUri = None,
    home: Home = Path("."),
) -> None:
    """Learned words of a bank or of the registry: by word, by picture, by likeness, or in groups of like words."""
    asked = [option for option in (word or id, near, like, clusters) if option]
    if (bank is None) == (registry is None):
        raise ConfigError("give either --bank URI or --registry NAME@alias")
    if len(asked) != 1:
        raise ConfigError("ask for one thing: a word (or --id, or both), --near, --like or --clusters")
    if bank and (near or like or clusters or base):
        raise ConfigError("a --bank is searched by word and --id; for likeness publish it, and give --registry")
    if clusters and (min_iou is not None or out):
        raise ConfigError("--clusters groups every word and finds no hits: leave --min-iou and --out out")
    if clusters:
        return _show_clusters(registry, clusters, base, tracking_uri, home)
    found = _in_bank(bank, word, id, min_iou) if bank else _in_registry(
        registry, word, id, near, like, base, min_iou, count, tracking_uri, home
    )  # fmt: skip
    table = Table(*(["cosine"] if near or like else []), "word", "picture", "sentence", "vectors", "norm", "IoU")
    for hit in found:
        iou = hit["metrics"].get("attention_iou")
        table.add_row(
            *([f"{hit['similarity']:.3f}"] if near or like else []), hit["word"], escape(hit["image_id"]),
            escape(hit["sentence"]), f"{len(hit['vectors'])} x {len(hit['vectors'][0])}", f"{hit['norm']:.3f}",
            "" if iou is None else f"{iou:.2f}",
        )  # fmt: skip
    console.print(table if found else f"no picture taught {_told(word, id)}", highlight=False)
    if out and found:
        from mcpl.data.concepts import write_hits

        for path in write_hits(found, out):
            console.print(path, highlight=False, markup=False, soft_wrap=True)


def _told(word: str | None, id: str | None) -> str:
    parts = [f"the word {word!r}" if word else "a word", f"from picture {id!r}" if id else ""]
    return " ".join(filter(None, parts)) + " that is wanted"


def _in_bank(bank: str, word: str | None, id: str | None, min_iou: float | None) -> list[dict]:
    """Hits as plain values, from a bank's own rows."""
    from mcpl.data.bank import Bank

    return [
        {
            "word": hit.slug, "image_id": hit.id, "sentence": hit.text, "vectors": hit.vectors, "norm": hit.norm,
            "metrics": hit.metrics, "base": hit.base, "base_digest": hit.base_digest,
        }
        for hit in Bank.open(bank).search(word or "*", id)
        if min_iou is None or hit.metrics.get("attention_iou", -1) >= min_iou
    ]  # fmt: skip


def _in_registry(registry, word, id, near, like, base, min_iou, count, tracking_uri, home) -> list[dict]:
    """Hits as plain values, from a published version."""
    from mcpl.tracking import registry as published

    where = {"tracking_uri": tracking_uri, "home": home}
    told = published.manifest(registry, **where)
    if near:
        picture, _, named = near.rpartition("/")
        if not picture:
            raise ConfigError(f"--near {near}: give PICTURE/WORD, as the picture's id and the word are called")
        found = published.nearest(registry, like=(picture, named), k=count, base=base, min_iou=min_iou, **where)
    elif like:
        vectors = _of_base(like, told)
        found = published.nearest(registry, vectors=vectors, k=count, base=base, min_iou=min_iou, **where)
    else:
        found = published.lookup(registry, word=word, image_id=id, base=base, min_iou=min_iou, **where)
    return [hit | {"base": told["base"], "base_digest": told["base_digest"]} for hit in found.to_dict(orient="records")]


def _of_base(word: str, told) -> list:
    """An ordinary word's own vectors in the base that the bank was learned with."""
    from mcpl.models import catalogue

    return catalogue.load(told["base"], expect_digest=told["base_digest"]).word_embeddings(word).tolist()


def _show_clusters(registry, count, base, tracking_uri, home) -> None:
    from mcpl.tracking.registry import clusters

    table = Table("pictures", "words", "called", "likeness", "for example")
    for group in clusters(registry, count=count, base=base, tracking_uri=tracking_uri, home=home).itertuples():
        called = ", ".join(f"{name} x{n}" for name, n in group.names.items())
        table.add_row(
            str(group.pictures), str(group.words), called, f"{group.likeness:.3f}", escape(", ".join(group.examples))
        )
    console.print(table if table.row_count else "no word was learned from two pictures or more", highlight=False)


@bank_app.command("card")
def bank_card(
    bank: Annotated[str, typer.Argument(help="Bank folder or URI.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Markdown file to write; else it is printed.")] = None,
) -> None:
    """What was learned, on which base, how well and how to use it: a model card in Markdown."""
    from mcpl.data.card import card
    from mcpl.data.scores import ScoredBank

    text = card(ScoredBank.open(bank).rows())
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
    name: Annotated[str, typer.Option("--name", help="Registered model; made on first use.")],
    alias: Alias = "champion",
    better_on: BetterOn = "",
    dataset: Annotated[str, typer.Option(help="What the bank was learned from; default: as its run says.")] = "",
    tracking_uri: TrackingUri = None,
) -> None:
    """Publish a bank as a version of a registered model. Exit code 5: published, but not better."""
    from mcpl.orchestration.record import publish_bank
    from mcpl.tracking.registry import NotPromoted

    try:
        published = publish_bank(bank, name, alias or None, tracking_uri, dataset, listed(better_on))
    except NotPromoted as refused:
        print(refused, file=sys.stderr)
        raise typer.Exit(EXIT_NOT_BETTER) from None
    typer.echo(f"name     {published.name}")
    typer.echo(f"version  {published.version}")
    typer.echo(f"alias    {', '.join(published.aliases) or '-'}")
    typer.echo(f"load     {published.load_line}")
