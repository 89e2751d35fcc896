"""Where examples come from. A source is one function and one line in SOURCES.

A source yields an Example for every row and a Rejected, with its reason, for whatever else it meets. `Dataset`
opens the same places for training: counted, fingerprinted, cut into shards.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from mcpl.data.checks import DatasetInfo, ValidationReport, info, validate
from mcpl.data.dataset import FOLDERS, Dataset, ShardRef, recognise
from mcpl.data.listing import Listing, Rejected, list_picture, load
from mcpl.data.pictures import load_picture, mask_png, picture_png
from mcpl.data.storage import Store, locate, open_store
from mcpl.data.writing import MarkReport, WriteReport, checked, mark_dataset, write_dataset
from mcpl.errors import ConfigError, ExampleError
from mcpl.types import Example

__all__ = [
    "SOURCES",
    "Dataset",
    "DatasetInfo",
    "MarkReport",
    "Rejected",
    "ShardRef",
    "ValidationReport",
    "WriteReport",
    "checked",
    "detect",
    "info",
    "mark_dataset",
    "picture_and_sentence",
    "scenes",
    "scenes_mc",
    "validate",
    "write_dataset",
]

Items = Iterator[Example | Rejected]


def parquet(uri: str | os.PathLike) -> Items:
    """A Parquet file, or every Parquet file of a directory or S3 prefix."""
    yield from Dataset.open(uri).examples()


def folder(uri: str | os.PathLike) -> Items:
    """Pictures with a metadata.jsonl or with .txt files beside them."""
    yield from _listed(open_store(uri), FOLDERS["folder"])


def multi_concept_dataset(uri: str | os.PathLike) -> Items:
    """The authors' Multi-Concept-Dataset, or any part of it that holds `unmasked` folders."""
    yield from _listed(open_store(uri), FOLDERS["multi-concept-dataset"])


def picture(uri: str | os.PathLike, text: str | None = None) -> Items:
    """One picture; its sentence given or in a .txt of the same name."""
    store, name = locate(uri)
    if name is None:
        raise ConfigError(f"{uri} is a folder, not a picture")
    yield from _listed(store, lambda store: list_picture(store, name, text))


SOURCES: dict[str, Callable[[str], Items]] = {
    "parquet": parquet,
    "folder": folder,
    "multi-concept-dataset": multi_concept_dataset,
    "picture": picture,
}


def detect(uri: str | os.PathLike) -> str:
    """The name of the source that fits what lies there; ConfigError where none does."""
    return recognise(uri)[0]


def _listed(store: Store, list_rows: Callable[[Store], Listing]) -> Items:
    listing = list_rows(store)
    yield from listing.rejected
    for row in listing.rows:
        example, faults = load(store, row)
        yield from faults
        yield example


def picture_and_sentence(path: str | os.PathLike, text: str) -> Example:
    """One picture file and its sentence. ConfigError: no such file; ExampleError naming it: no picture in it."""
    store, name = locate(path)
    if name is None:
        raise ConfigError(f"{path} is a folder; give one picture")
    example = Example(Path(name).stem, store.get(name), text)
    try:
        load_picture(example.image)
    except ExampleError as fault:
        raise ExampleError(f"{path}: {fault}") from None
    return example


NAMINGS = ("unnamed", "named", "never")


def scenes(
    count: int, seed: int = 0, objects: int = 2, naming: str = "unnamed", scale: int = 1, **options
) -> Iterator[Example]:
    """Rendered scenes with exact masks and their truth; the same arguments give the same bytes.

    objects  in each scene
    naming   which shapes: 'unnamed' (drawn but never named while the base was trained: new words), 'named', 'never'
    scale    pixels per pixel of the base's pictures
    options  of `sample_scene`
    """
    from PIL import Image

    from mcpl.scenes.grammar import marked_sentence
    from mcpl.scenes.render import render
    from mcpl.scenes.scene import sample_scene
    from mcpl.scenes.world import shapes

    if naming not in NAMINGS:
        raise ConfigError(f"{naming!r} names no kind of shapes: use {', '.join(NAMINGS)}")
    pool = shapes(naming)
    if not 1 <= objects <= len(pool):
        raise ConfigError(f"objects = {objects}: there are {len(pool)} {naming} shapes ({', '.join(pool)})")
    for index in range(count):
        scene = sample_scene([seed, index], objects=objects, pool=pool, **options)
        pixels, masks = render(scene, scale)
        found = {item.shape: mask_png(mask) for item, mask in zip(scene.objects, masks, strict=True) if mask.any()}
        image = picture_png(Image.fromarray(pixels))
        yield Example(f"scene-{seed}-{index:06d}", image, marked_sentence(scene), found, scene.to_json())


def scenes_mc(name: str, split: str) -> Iterator[Example]:
    """A set of the benchmark Scenes-MC, always the same; ConfigError where the world's code no longer makes it."""
    from PIL import Image

    from mcpl.scenes.benchmark import check_frozen, rows, truth

    shown = list(rows(name, split))
    check_frozen(name, split, shown)
    for row in shown:
        masks = {slug: mask_png(mask) for slug, mask in row.masks.items()}
        image = picture_png(Image.fromarray(row.picture))
        yield Example(row.id, image, row.text, masks, truth(row) or None, row.group)
