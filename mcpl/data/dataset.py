"""A dataset as training sees it: counted, fingerprinted and cut into shards without reading a picture."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import BinaryIO, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from mcpl.data.listing import (
    Listed,
    Listing,
    Rejected,
    is_hidden,
    is_picture,
    list_folder,
    list_picture,
    load,
)
from mcpl.data.multi_concept import list_multi_concept
from mcpl.data.schema import OPTIONAL, REQUIRED
from mcpl.data.storage import Entry, Store, locate
from mcpl.errors import ConfigError
from mcpl.types import Example

T = TypeVar("T")

UNFINISHED = "_unfinished"
"""An empty object that stands beside a dataset's files while they are written."""


@dataclass(frozen=True)
class ShardRef:
    """Rows that are read together, by where they lie; never crosses a row group."""

    file: str
    """Parquet file below the dataset's root; empty for folders"""
    row_group: int
    start: int
    """first row within the row group"""
    stop: int
    """one past the last row"""

    @property
    def rows(self) -> int:
        return self.stop - self.start


class Dataset:
    """Rows of picture and sentence, in Parquet or in a folder, local or on S3."""

    kind: str
    """name of the source, as in SOURCES"""
    uri: str
    count: int
    """rows"""
    digest: str
    """16 hex digits that change when the rows do; the same wherever the files lie"""
    bytes: int
    """stored size"""
    columns: tuple[str, ...]
    rejected: tuple[Rejected, ...] = ()
    """what became no row, as far as it shows without reading pictures"""

    @staticmethod
    def open(uri: str | os.PathLike) -> Dataset:
        """Look at the files' names and footers; ConfigError where they make no dataset."""
        kind, store, name = recognise(uri)
        if kind == "parquet":
            return ParquetDataset(store, name)
        if kind == "picture":
            return ListedDataset(kind, store, list_picture(store, name))
        return ListedDataset(kind, store, FOLDERS[kind](store))

    def shards(self, size: int) -> list[ShardRef]:
        """The rows in order, cut into pieces of at most `size`."""
        if size < 1:
            raise ConfigError(f"shard size = {size}: must be at least 1")
        return [
            ShardRef(file, group, start, min(start + size, rows))
            for file, group, rows in self._groups()
            for start in range(0, rows, size)
        ]

    def read(self, ref: ShardRef) -> list[Example]:
        """The examples of one shard. What is wrong with a picture shows when it is decoded, not here."""
        raise NotImplementedError

    def examples(self) -> Iterator[Example]:
        """Every example, a row group at a time."""
        return chain.from_iterable(self.read(ref) for ref in self.shards(64))

    def ids(self) -> list[str]:
        """Every row's id, reading nothing else."""
        raise NotImplementedError

    def check_ids(self) -> None:
        """ConfigError naming some ids that stand in several rows or are empty."""
        seen: set[str] = set()
        doubled = [id for id in self.ids() if not id or id in seen or seen.add(id)]
        if doubled:
            some = ", ".join(map(repr, dict.fromkeys(doubled[:5])))
            raise ConfigError(
                f"{self.uri}: {len(doubled)} rows have an image_id that is empty or taken ({some}): each needs its own"
            )

    def _groups(self) -> Iterator[tuple[str, int, int]]:
        """(file, row group, rows) in reading order"""
        raise NotImplementedError


class ListedDataset(Dataset):
    """A folder: its listing is the index, its pictures are read one by one."""

    def __init__(self, kind: str, store: Store, listing: Listing):
        self.kind, self.uri, self._store = kind, store.uri, store
        self._rows: Sequence[Listed] = listing.rows
        self.rejected = listing.rejected
        self.count, self.digest = len(listing.rows), listing.digest
        wanted = {name for row in listing.rows for name in _names(row)}
        self.bytes = sum(entry.size for entry in store.list() if entry.name in wanted)
        self.columns = (*REQUIRED, "masks") if any(row.masks for row in listing.rows) else REQUIRED
        if not self._rows:
            why = "; ".join(f"{r.id}: {r.reason}" for r in self.rejected[:3])
            raise ConfigError(f"{self.uri} holds no picture with a sentence ({why})")

    def read(self, ref: ShardRef) -> list[Example]:
        return [example for example, _ in self.load(ref)]

    def load(self, ref: ShardRef) -> Iterator[tuple[Example, list[Rejected]]]:
        """The examples of a shard, each with what was unusable about its masks."""
        return (load(self._store, row) for row in self._rows[ref.start : ref.stop])

    def ids(self) -> list[str]:
        return [row.id for row in self._rows]

    def _groups(self) -> Iterator[tuple[str, int, int]]:
        yield "", 0, self.count


def _names(row: Listed) -> Iterator[str]:
    yield row.picture
    if row.text_file:
        yield row.text_file
    for files in row.masks.values():
        yield from (file.name for file in files)


@dataclass(frozen=True)
class _File:
    """A Parquet file's footer, read once."""

    name: str
    size: int
    groups: tuple[int, ...]
    """rows of each row group"""
    digest: str
    columns: tuple[str, ...]


class ParquetDataset(Dataset):
    """Parquet files with `image` (struct of bytes and path, or plain bytes), `image_id`, `text`."""

    kind = "parquet"

    def __init__(self, store: Store, name: str | None):
        self.uri, self._store = (store.join(name) if name else store.uri), store
        entries = store.list(name or "")
        if any(entry.name == UNFINISHED for entry in entries):
            raise ConfigError(f"{self.uri}: building this dataset did not finish; run the same build command again")
        files = [entry for entry in entries if entry.name == name] if name else parquet_files(entries)
        with ThreadPoolExecutor(8) as pool:
            self._files = list(pool.map(self._footer, files))
        self.count = sum(sum(file.groups) for file in self._files)
        self.bytes = sum(file.size for file in self._files)
        self.columns = tuple(dict.fromkeys(chain.from_iterable(file.columns for file in self._files)))
        content = "\n".join(f"{file.name}\t{file.size}\t{file.digest}" for file in self._files)
        self.digest = hashlib.sha256(content.encode()).hexdigest()[:16]
        self._last: tuple[tuple[str, int], pa.Table] | None = None
        if not self.count:
            raise ConfigError(f"{self.uri}: the dataset has no rows")

    def read(self, ref: ShardRef) -> list[Example]:
        place = (ref.file, ref.row_group)
        if self._last is None or self._last[0] != place:
            self._last = (place, self._row_group(*place))
        return [_example(record) for record in self._last[1].slice(ref.start, ref.rows).to_pylist()]

    def ids(self) -> list[str]:
        def read(parquet: pq.ParquetFile, _) -> list:
            return parquet.read(["image_id"], use_threads=False)["image_id"].to_pylist()

        return ["" if id is None else str(id) for file in self._files for id in self._opened(file.name, read)]

    def _groups(self) -> Iterator[tuple[str, int, int]]:
        for file in self._files:
            for group, rows in enumerate(file.groups):
                yield file.name, group, rows

    def _row_group(self, name: str, group: int) -> pa.Table:
        def read(parquet: pq.ParquetFile, _) -> pa.Table:
            wanted = [column for column in (*REQUIRED, *OPTIONAL) if column in parquet.schema_arrow.names]
            return parquet.read_row_group(group, wanted)

        return self._opened(name, read)

    def _footer(self, entry: Entry) -> _File:
        where = self._store.join(entry.name)

        def look(parquet: pq.ParquetFile, stored: BinaryIO) -> _File:
            check_columns(parquet.schema_arrow, where)
            rows = tuple(parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups))
            stored.seek(entry.size - 8)
            length = int.from_bytes(stored.read(4), "little")
            stored.seek(entry.size - 8 - length)
            digest = hashlib.sha256(stored.read(length)).hexdigest()
            return _File(entry.name, entry.size, rows, digest, tuple(parquet.schema_arrow.names))

        return self._opened(entry.name, look)

    def _opened(self, name: str, use: Callable[[pq.ParquetFile, BinaryIO], T]) -> T:
        """What `use` reads of a file; ConfigError naming the file where it is damaged."""
        with self._store.reader(name) as stored:
            try:
                return use(pq.ParquetFile(stored, pre_buffer=True), stored)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as fault:
                if isinstance(fault, ConnectionError | FileNotFoundError):
                    raise
                reason = str(fault).splitlines()[0]
                raise ConfigError(f"{self._store.join(name)} is cut short or damaged: {reason}") from None


def check_columns(schema: pa.Schema, where: str) -> None:
    """ConfigError naming what is missing and what is there, unless a schema has a dataset's columns and types."""
    missing = [column for column in REQUIRED if column not in schema.names]
    if missing:
        raise ConfigError(
            f"{where} lacks the columns {', '.join(missing)}; it has {', '.join(schema.names) or 'none'};"
            " a dataset has image (struct of bytes and path), image_id and text"
        )
    image, text = schema.field("image").type, schema.field("text").type
    if pa.types.is_struct(image):
        image = next((field.type for field in image if field.name == "bytes"), None)
    if image is None or not (pa.types.is_binary(image) or pa.types.is_large_binary(image)):
        raise ConfigError(f"{where}: column image is {schema.field('image').type}, not a struct of bytes and path")
    if not (pa.types.is_string(text) or pa.types.is_large_string(text)):
        raise ConfigError(f"{where}: column text is {text}, not string")


def _example(record: dict) -> Example:
    """A Parquet row as an example; a null picture is empty bytes and a null sentence an empty one."""
    image, id = record["image"], record["image_id"]
    stored = image.get("bytes") if isinstance(image, dict) else image
    masks = {mask["word"]: mask["png"] for mask in record.get("masks") or ()}
    id, text = "" if id is None else str(id), record["text"] or ""
    return Example(id, stored or b"", text, masks, record.get("truth"), record.get("group"))


def parquet_files(entries: Sequence[Entry]) -> list[Entry]:
    """The Parquet files of a listing, hidden and underscored ones left out."""
    return [
        entry
        for entry in entries
        if entry.name.endswith(".parquet")
        and not is_hidden(entry.name)
        and not any(part.startswith("_") for part in entry.name.split("/"))
    ]


FOLDERS: dict[str, Callable[[Store], Listing]] = {
    "folder": list_folder,
    "multi-concept-dataset": list_multi_concept,
}


def recognise(uri: str | os.PathLike) -> tuple[str, Store, str | None]:
    """(source, store, name of the one object or None); ConfigError where nothing there is a source."""
    store, name = locate(uri)
    if name is not None:
        if name.endswith(".parquet"):
            return "parquet", store, name
        if is_picture(name):
            return "picture", store, name
        raise ConfigError(f"{uri} is neither Parquet nor a picture that mcpl reads")
    entries = store.list()
    names = [entry.name for entry in entries]
    if parquet_files(entries):
        return "parquet", store, None
    if any("unmasked" in name.split("/")[:-1] for name in names):
        return "multi-concept-dataset", store, None
    if any(is_picture(name) for name in names):
        return "folder", store, None
    some = ", ".join(names[:3]) or "nothing"
    raise ConfigError(
        f"{uri} holds no dataset: neither Parquet nor pictures with metadata.jsonl or .txt files (it holds {some})"
    )
