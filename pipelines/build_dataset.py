#!/usr/bin/env python
"""Build a Parquet dataset of pictures and sentences, on disk or S3.

    python pipelines/build_dataset.py scenes --n 64 --out data/scenes
    python pipelines/build_dataset.py scenes-mc --split test --out data/scenes-mc
    python pipelines/build_dataset.py folder photos/ --out s3://bucket/photos --workers 8
    python pipelines/build_dataset.py webdataset s3://bucket/tars --out s3://bucket/pictures --workers 8
    python pipelines/build_dataset.py hugging-face downloaded/data --out data/captions
    python pipelines/build_dataset.py multi-concept Multi-Concept-Dataset/ --out data/authors
    python pipelines/build_dataset.py parquet old.parquet --out data/new

The files are the same, byte for byte, whatever --workers says; the same command again goes on where one was killed.

Ends with one line on stdout. Exit code 0: written; 1: written, but some rows were rejected and --strict was given;
2: wrong input, nothing to write.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from a checkout, installed or not

import typer

from mcpl.cli.terminal import bar, run

if TYPE_CHECKING:
    from mcpl.data.sources import Dataset

app = typer.Typer(
    help=__doc__.split("\n\n")[0], no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)

Out = Annotated[str, typer.Option(help="directory or s3://bucket/prefix; must be empty or hold this very dataset")]
Source = Annotated[str, typer.Argument(help="directory, file or s3://bucket/prefix")]
Check = Annotated[bool, typer.Option(help="decode every picture and leave out those that cannot be")]
Strict = Annotated[bool, typer.Option(help="exit code 1 where rows were rejected")]
RowGroup = Annotated[int, typer.Option(min=1, help="pictures per Parquet row group")]
Workers = Annotated[
    int, typer.Option(min=1, help="1: in this process; more: Ray tasks, on RAY_ADDRESS or this machine")
]


@app.command()
def scenes(
    out: Out,
    n: Annotated[int, typer.Option(min=1, help="pictures")] = 64,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    objects: Annotated[int, typer.Option(min=1, max=5, help="objects in each picture")] = 2,
    shapes: Annotated[
        str, typer.Option(help="unnamed: drawn but never named while the base was trained; named; never: never drawn")
    ] = "unnamed",
    scale: Annotated[int, typer.Option(min=1, help="pixels per pixel of the base's pictures")] = 1,
    row_group: RowGroup = 64,
    workers: Workers = 1,
) -> None:
    """Rendered scenes with exact masks: by default their shapes are new words to the base."""
    from mcpl.data import sources

    _build(sources.scenes(n, seed, objects, shapes, scale), out, row_group, workers, check=False, strict=False)


class Split(StrEnum):
    dev = "dev"
    test = "test"


@app.command("scenes-mc", no_args_is_help=True)
def scenes_mc(
    split: Annotated[Split, typer.Option(help="dev: for tuning, and for nothing else; test: for what is reported")],
    out: Annotated[str, typer.Option(help="directory or s3://bucket/prefix; each set is a dataset OUT/SET")],
    only: Annotated[list[str] | None, typer.Option(help="this set alone; may be given several times")] = None,
    sheet: Annotated[Path | None, typer.Option(help="also draw eight pictures of each set here (PNG)")] = None,
    freeze: Annotated[bool, typer.Option(help="record the sets anew: the world changed on purpose")] = False,
    row_group: RowGroup = 64,
) -> None:
    """The frozen benchmark Scenes-MC: sets of rendered pictures with exact masks.

    named-2, -3, -4, -5 and unnamed-2, -3 hold as many objects; -bare sets are the same pictures told without
    adjectives; occluded-0, -10, -25, -50 hide so much of the first object; unseen-2 shows combinations that the base
    never saw; the diverse sets hold groups of four pictures of the same two objects; tissue-2 is another world, in
    grey. Named shapes are those that the base can name; unnamed ones it drew, but only ever as a "thing".
    """
    from mcpl.data import sources
    from mcpl.data.pictures import load_picture
    from mcpl.data.storage import byte_size
    from mcpl.prompts import parse
    from mcpl.report.figures import dataset_sheet
    from mcpl.scenes import benchmark

    names = only or list(benchmark.SETS)
    specs = {name: benchmark.find(name) for name in names}
    if freeze:
        benchmark.freeze(names, split.value)
    sets = {name: list(sources.scenes_mc(name, split.value)) for name in names}  # all are checked before any is written
    typer.echo(f"{'set':16} {'pictures':>8} {'words':>5}  {'adjectives':10} {'shapes':8} shows")
    stored = 0
    for name, spec in specs.items():
        report = sources.write_dataset(sets[name], f"{out.rstrip('/')}/{name}", row_group)
        told = "told" if spec.adjectives else "untold"
        typer.echo(f"{name:16} {report.rows:8} {spec.objects:5}  {told:10} {spec.pool:8} {spec.shows}")
        stored += report.bytes
    if sheet:
        shown = {
            f"{name}: {spec.shows}": [(load_picture(e.image), parse(e.text)) for e in sets[name][:8]]
            for name, spec in specs.items()
        }
        dataset_sheet(shown).save(sheet)
    rows = sum(map(len, sets.values()))
    typer.echo(f"{rows} rows in {len(sets)} set(s), {split.value} split, {byte_size(stored)}: {out}")


CONVERTED = {
    "folder": ("folder", "A folder with metadata.jsonl (file_name, text), or with a .txt beside each picture."),
    "webdataset": (
        "webdataset",
        "Tars: 000012.jpg with 000012.txt or .json (text, caption), masks as 000012.mask.WORD.png.",
    ),
    "hugging-face": ("hugging-face", "Parquet as Hugging Face stores it: image, text or caption; ids are made."),
    "multi-concept": ("multi-concept-dataset", "The authors' Multi-Concept-Dataset, or a part of it."),
    "parquet": ("parquet", "Parquet with image, image_id and text, cut into new row groups."),
}
"""Command -> the source that it reads, and what it says of it"""


def _converting(source: str, about: str):
    def convert(
        path: Source,
        out: Out,
        check: Check = True,
        strict: Strict = False,
        row_group: RowGroup = 64,
        workers: Workers = 1,
    ) -> None:
        from mcpl.data.sources import SOURCES

        _build(SOURCES[source](path), out, row_group, workers, check, strict)

    convert.__doc__ = about
    return convert


for name, (source, about) in CONVERTED.items():
    app.command(name)(_converting(source, about))


def _build(source: Dataset, out: str, row_group: int, workers: int, check: bool, strict: bool) -> None:
    from mcpl.data.sources import build_dataset
    from mcpl.data.storage import byte_size

    with _each(workers) as each, bar("pictures", source.count) as advance:
        report = build_dataset(
            source, out, check, row_group, each=each, on_part=lambda part: advance(part.rows + part.faults.lost)
        )
    for label, text in report.faults.lines():
        typer.echo(f"{label}: {text}", err=True)
    size = byte_size(report.bytes)
    typer.echo(f"{report.rows} rows in {report.files} file(s), {size}, {report.faults.lost} rejected: {report.uri}")
    if strict and report.faults.lost:
        raise typer.Exit(1)


@contextlib.contextmanager
def _each(workers: int) -> Iterator:
    """What applies a function to every part of the build."""
    if workers == 1:
        yield map
        return
    from mcpl.orchestration.building import workers as on_ray

    with on_ray(workers) as each:
        yield each


if __name__ == "__main__":
    run(app, "build_dataset", code=2)
