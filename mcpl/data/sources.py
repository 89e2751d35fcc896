"""Where examples come from. A source is a function that lists its rows and one line in LISTINGS (see dataset.py).

A source opens as a `Dataset`: counted, fingerprinted, cut into shards. Iterating over it yields an Example for every
row and a Rejected, with its reason, for whatever else it meets.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from mcpl.data.checks import DatasetInfo, ValidationReport, info, validate
from mcpl.data.dataset import LISTINGS, PARQUET, Dataset, ShardRef
from mcpl.data.listing import Rejected
from mcpl.data.pictures import MAX_BYTES, load_picture, mask_png, picture_png
from mcpl.data.schema import REQUIRED
from mcpl.data.storage import locate
from mcpl.data.writing import MarkReport, WriteReport, build_dataset, checked, mark_dataset, write_dataset
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
    "build_dataset",
    "checked",
    "detect",
    "info",
    "mark_dataset",
    "picture_and_sentence",
    "picture_file",
    "scenes",
    "scenes_mc",
    "validate",
    "write_dataset",
]


SOURCES: dict[str, Callable[[str | os.PathLike], Dataset]] = {
    kind: partial(Dataset.open, kind=kind) for kind in (*PARQUET, *LISTINGS)
}
"""What lies at a place, read as one kind of source"""


def detect(uri: str | os.PathLike) -> str:
    """The name of the source that fits what lies there; ConfigError where none does."""
    return Dataset.open(uri).kind


def picture_file(path: str | os.PathLike) -> tuple[bytes, Image.Image]:
    """A picture file as stored and as seen. ConfigError: no such file; ExampleError naming it: no picture in it."""
    store, name = locate(path)
    if name is None:
        raise ConfigError(f"{path} is a folder; give one picture")
    with store.reader(name) as file:
        data = file.read(MAX_BYTES + 1)  # so much tells that it is too large
    try:
        return data, load_picture(data)
    except ExampleError as fault:
        raise ExampleError(f"{path}: {fault}") from None


def picture_and_sentence(path: str | os.PathLike, text: str) -> Example:
    """One picture file and its sentence; faults as for `picture_file`."""
    return Example(Path(path).stem, picture_file(path)[0], text)


NAMINGS = ("unnamed", "named", "never")


def scenes(count: int, seed: int = 0, objects: int = 2, naming: str = "unnamed", scale: int = 1, **options) -> Dataset:
    """Rendered scenes with exact masks and their truth; the same arguments give the same bytes.

    objects  in each scene
    naming   which shapes: 'unnamed' (drawn but never named while the base was trained: new words), 'named', 'never'
    scale    pixels per pixel of the base's pictures
    options  of `sample_scene`
    """
    from mcpl.scenes.world import shapes

    if naming not in NAMINGS:
        raise ConfigError(f"{naming!r} names no kind of shapes: use {', '.join(NAMINGS)}")
    pool = shapes(naming)
    if not 1 <= objects <= len(pool):
        raise ConfigError(f"objects = {objects}: there are {len(pool)} {naming} shapes ({', '.join(pool)})")
    return _Scenes(count, seed, scale, {"objects": objects, "pool": pool} | options)


class _Scenes(Dataset):
    """Scenes are rendered when they are read."""

    kind = "scenes"
    columns = (*REQUIRED, "masks", "truth")

    def __init__(self, count: int, seed: int, scale: int, options: dict):
        self.count, self._seed, self._scale, self._options = count, seed, scale, options
        self.uri = f"{count} scenes of seed {seed}"
        self.digest = hashlib.sha256(repr((count, seed, scale, sorted(options.items()))).encode()).hexdigest()[:16]
        self.bytes = self.weigh(ShardRef("", 0, 0, count))

    def load(self, ref: ShardRef) -> Iterator[tuple[Example, list[Rejected]]]:
        return ((self._render(index), []) for index in range(ref.start, ref.stop))

    def ids(self) -> list[str]:
        return [self._id(index) for index in range(self.count)]

    def weigh(self, ref: ShardRef) -> int:
        return 4096 * self._scale * ref.rows  # not rendered yet: a guess, the same every time

    def only(self, refs: Sequence[ShardRef]) -> Dataset:
        return self

    def _groups(self) -> Iterator[tuple[str, int, int]]:
        yield "", 0, self.count

    def _id(self, index: int) -> str:
        return f"scene-{self._seed}-{index:06d}"

    def _render(self, index: int) -> Example:
        from PIL import Image

        from mcpl.scenes.grammar import marked_sentence
        from mcpl.scenes.render import render
        from mcpl.scenes.scene import sample_scene

        scene = sample_scene([self._seed, index], **self._options)
        pixels, masks = render(scene, self._scale)
        found = {item.shape: mask_png(mask) for item, mask in zip(scene.objects, masks, strict=True) if mask.any()}
        image = picture_png(Image.fromarray(pixels))
        return Example(self._id(index), image, marked_sentence(scene), found, scene.to_json())


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
