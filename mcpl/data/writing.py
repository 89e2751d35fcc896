"""Datasets written: examples to Parquet, plain captions to marked ones."""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from mcpl.data.dataset import UNFINISHED, Dataset, parquet_files
from mcpl.data.listing import Rejected
from mcpl.data.pictures import load_picture
from mcpl.data.schema import DATASET, ROW_GROUP
from mcpl.data.storage import Store, open_store
from mcpl.errors import ConfigError, ExampleError
from mcpl.types import Example

if TYPE_CHECKING:
    from rich.text import Text

KEPT = 1000  # faults that a report keeps word for word; it counts them all


@dataclass
class Faults:
    """What was rejected or repaired: every kind counted, the first ones kept."""

    kinds: Counter[str] = field(default_factory=Counter)
    first: list[Rejected] = field(default_factory=list)
    lost: int = 0
    """rejected, repaired ones not counted"""

    def add(self, fault: Rejected) -> None:
        self.kinds[fault.kind] += 1
        self.lost += not fault.repaired
        if len(self.first) < KEPT:
            self.first.append(fault)

    def lines(self) -> list[tuple[str, str]]:
        """(label, text) for people: a line per kind, its count and its first place."""
        first: dict[str, Rejected] = {}
        for fault in self.first:
            first.setdefault(fault.kind, fault)
        return [
            (
                "repaired" if kind in first and first[kind].repaired else "rejected",
                f"{count} x {kind}{_place(first, kind)}",
            )
            for kind, count in self.kinds.most_common()
        ]


def _place(first: dict[str, Rejected], kind: str) -> str:
    return f" (first: {first[kind].id})" if kind in first else ""


@dataclass(frozen=True)
class WriteReport:
    """What became of the examples."""

    uri: str
    rows: int
    files: int
    bytes: int
    faults: Faults


def checked(items: Iterable[Example | Rejected]) -> Iterator[Example | Rejected]:
    """The same items; an example whose picture cannot be decoded or whose sentence is empty is rejected."""
    for item in items:
        if isinstance(item, Example):
            try:
                load_picture(item.image)
                if not item.text.strip():
                    raise ExampleError("empty sentence")
            except ExampleError as fault:
                item = Rejected(item.id, str(fault))
        yield item


def write_dataset(
    items: Iterable[Example | Rejected],
    uri: str | os.PathLike,
    row_group: int = ROW_GROUP,
    rows_per_file: int = 16 * ROW_GROUP,
) -> WriteReport:
    """Write examples as `data-00000.parquet`, ...; the same examples give the same bytes.

    Rows whose id was there before are rejected. A location that holds exactly this dataset is left as it is and one
    where this very build was interrupted is completed; any other content is a ConfigError.
    """
    store, faults = open_store(uri), Faults()
    rows = (item for item in _kept(items, faults))
    present = store.list()
    finished = bool(present) and not any(entry.name == UNFINISHED for entry in present)
    foreign = [e.name for e in present if e.name != UNFINISHED and e not in parquet_files(present)]
    if foreign:
        raise ConfigError(f"{store.uri} holds other files ({', '.join(foreign[:3])}); give an empty place")
    written: dict[str, int] = {}
    count = 0
    while batch := list(islice(rows, rows_per_file)):
        if not written and not finished:
            store.put(UNFINISHED, b"")
        name, data = f"data-{len(written):05d}.parquet", encode_examples(batch, row_group)
        _commit(store, name, data, finished)
        written[name] = len(data)
        count += len(batch)
    if not count:
        why = "; ".join(f"{f.id}: {f.reason}" for f in faults.first[:3])
        raise ConfigError(f"nothing to write to {store.uri}: no usable example ({why or 'the source is empty'})")
    extra = [entry.name for entry in parquet_files(store.list()) if entry.name not in written]
    if extra:
        raise ConfigError(f"{store.uri} holds another, larger dataset ({', '.join(extra[:3])}); give an empty place")
    store.delete(UNFINISHED)
    return WriteReport(store.uri, count, len(written), sum(written.values()), faults)


def _commit(store: Store, name: str, data: bytes, finished: bool) -> None:
    """Write one file, or find it there with the same bytes."""
    if not finished and store.put_if_absent(name, data):
        return
    try:
        same = store.get(name) == data
    except FileNotFoundError:
        same = False
    if not same:
        raise ConfigError(f"{store.uri} holds another dataset ({name} differs); give an empty place")


def _kept(items: Iterable[Example | Rejected], faults: Faults) -> Iterator[Example]:
    seen: set[str] = set()
    for item in items:
        if isinstance(item, Rejected):
            faults.add(item)
        elif not item.id or item.id in seen:
            faults.add(Rejected(item.id, "its image_id is empty or taken"))
        else:
            seen.add(item.id)
            yield item


def encode_examples(examples: Sequence[Example], row_group: int = ROW_GROUP) -> bytes:
    """The examples as one Parquet file, its content's hash in the footer so that a dataset's digest covers it.

    Without groups there is no column for them: such files stay what they were before groups were known, byte for byte.
    """
    schema = DATASET
    if not any(example.group for example in examples):
        schema = schema.remove(schema.get_field_index("group"))
    records, content = [], hashlib.sha256()
    for example in examples:
        masks = [{"word": word, "png": png} for word, png in sorted(example.masks.items())]
        for part in (example.id.encode(), example.text.encode(), example.image, *(m["png"] for m in masks)):
            content.update(len(part).to_bytes(8, "little") + part)
        if example.group:
            content.update(example.group.encode())
        image = {"bytes": example.image, "path": None}
        records.append(
            {
                "image": image,
                "image_id": example.id,
                "text": example.text,
                "masks": masks or None,
                "truth": example.truth,
                "group": example.group,
            }
        )
    schema = schema.with_metadata({"mcpl.dataset.version": "1", "mcpl.dataset.content": content.hexdigest()})
    buffer = io.BytesIO()
    pq.write_table(
        pa.Table.from_pylist(records, schema=schema),
        buffer,
        row_group_size=row_group,
        compression="zstd",
        compression_level=1,
        use_dictionary=False,
        write_statistics=["image_id", "text"],
    )
    return buffer.getvalue()


@dataclass(frozen=True)
class MarkReport:
    """What marking found and missed."""

    uri: str
    """of the dataset that was written, else of the one that was read"""
    rows: int
    faults: Faults
    marked: int
    """rows with at least one word to learn"""
    found: Counter[str]
    """noun -> rows where it was marked"""
    missed: tuple[str, ...]
    """nouns that no caption has"""
    unmarked: tuple[str, ...]
    """ids of rows without any of the nouns, the first ones"""

    def __str__(self) -> str:
        lines = [f"{self.marked} of {self.rows} rows have a word to learn: {self.uri}"]
        lines += [f"{count:6d} x <{noun}>" for noun, count in self.found.most_common()]
        lines += [f"never found: {', '.join(self.missed)}"] if self.missed else []
        lines += [f"without any of them: {', '.join(self.unmarked[:5])} ..."] if self.unmarked else []
        lines += [f"{label}: {text}" for label, text in self.faults.lines()]
        return "\n".join(lines)

    def __rich__(self) -> Text:
        from rich.text import Text

        return Text(str(self))


def mark_dataset(uri: str | os.PathLike, nouns: Sequence[str], out_uri: str | os.PathLike | None = None) -> MarkReport:
    """Write the dataset again with these nouns in angle brackets; rows without any stay as they are.

    Without `out_uri` nothing is written, and the report says what would be.
    """
    from mcpl.prompts import mark

    nouns = list(dict.fromkeys(noun.strip().lower() for noun in nouns if noun.strip()))
    if not nouns:
        raise ConfigError("no nouns to mark: give a file with one noun a line")
    dataset = Dataset.open(uri)
    found: Counter[str] = Counter()
    marked, unmarked = 0, []

    def rows() -> Iterator[Example | Rejected]:
        nonlocal marked
        yield from dataset.rejected
        for example in dataset.examples():
            try:
                text, slugs = mark(example.text, nouns)
            except ExampleError as fault:
                yield Rejected(example.id, str(fault))
                continue
            found.update(slugs)
            marked += bool(slugs)
            if not slugs and len(unmarked) < KEPT:
                unmarked.append(example.id)
            yield replace(example, text=text)

    if out_uri is None:
        place, faults = dataset.uri, Faults()
        count = sum(1 for _ in _kept(rows(), faults))
    else:
        written = write_dataset(rows(), out_uri)
        place, count, faults = written.uri, written.rows, written.faults
    missed = tuple(noun for noun in nouns if not found[noun])
    return MarkReport(place, count, faults, marked, found, missed, tuple(unmarked))
