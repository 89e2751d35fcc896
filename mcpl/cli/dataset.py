"""Image-sentence datasets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mcpl.cli.terminal import Words, adjusted_recipe, bar, console
from mcpl.errors import ConfigError, ExampleError

if TYPE_CHECKING:
    from mcpl.data.sources import Rejected
    from mcpl.report.preview import PreviewRow
    from mcpl.types import Example

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
        str | None,
        typer.Option(
            "--model", help="Base whose text encoder every sentence must fit; without, scenes-v1 only counts."
        ),
    ] = None,
    bad: Annotated[int, typer.Option("--bad", min=0, help="Bad rows that are listed one by one.")] = 20,
) -> None:
    """Read every row; report bad ones with their reasons. Exit code 1 where there is one."""
    from mcpl.config import Recipe
    from mcpl.data.sources import Dataset, validate
    from mcpl.models import catalogue
    from mcpl.prompts import TEMPLATES, parse, token_count

    words = adjusted_recipe("paper", words=words).words
    dataset = Dataset.open(uri)  # refuses what is none before a model is loaded
    counter = model or Recipe().base
    vocabulary = catalogue.load(counter, device="cpu").vocabulary
    with bar("rows", dataset.count) as advance:
        report = validate(
            dataset,
            words,
            token_length=lambda text: token_count(parse(text, words), vocabulary, templates=TEMPLATES[:1]),
            token_limit=vocabulary.length if model else None,
            tokenizer=counter,
            on_row=advance,
        )
    console.print(report, highlight=False)
    for place, reason in report.bad_rows(bad):
        console.print(f"bad        {place}: {reason}", highlight=False, markup=False, soft_wrap=True)
    if not report.ok:
        raise typer.Exit(1)


@dataset_app.command("preview")
def dataset_preview(
    uri: str,
    out: Annotated[Path, typer.Option("--out", help="The page; one file, which needs no network.")],
    count: Annotated[int, typer.Option("-n", "--rows", min=1, help="Rows, evenly over the dataset.")] = 24,
    words: Words = None,
) -> None:
    """Draw some rows as a page: pictures, outlined masks, sentences with coloured words, and what is wrong."""
    from mcpl.data.sources import Dataset
    from mcpl.report.preview import preview

    dataset = Dataset.open(uri)
    words = adjusted_recipe("paper", words=words).words
    rows = [_preview_row(*item, words) for ref in dataset.spread(count) for item in dataset.load(ref)]
    facts = {"rows": f"{dataset.count}, {len(rows)} shown", "source": dataset.kind, "digest": dataset.digest}
    facts |= {"left out or repaired": str(len(dataset.rejected))} if dataset.rejected else {}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(preview(dataset.uri, facts, rows), encoding="utf-8")
    console.print(out, highlight=False, soft_wrap=True)


def _preview_row(example: Example, told: list[Rejected], words: str) -> PreviewRow:
    from mcpl.data.pictures import aligned_mask, load_picture
    from mcpl.prompts import parse
    from mcpl.report.preview import PreviewRow

    picture, sentence, masks, faults = None, None, {}, [fault.reason for fault in told]
    try:
        sentence = parse(example.text, words)
    except ExampleError as fault:
        faults.append(str(fault))
    try:
        picture = load_picture(example.image)
        for word, png in example.masks.items():
            try:
                masks[word] = aligned_mask(png, picture)
            except ExampleError as fault:
                faults.append(f"unusable mask of {word!r}: {fault}")
    except ExampleError as fault:
        faults.append(str(fault))
    return PreviewRow(example.id, example.text, sentence, picture, masks, faults)


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
