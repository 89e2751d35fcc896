"""A dataset as training sees it: counted, fingerprinted and cut into shards without reading a picture."""

from __future__ import annotations

import copy
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
from mcpl.data.schema import OPTIONAL, REQUIRED, is_masks, is_words, undamaged
from mcpl.data.storage import Entry, Store, byte_size, locate
from mcpl.data.tars import is_tar, list_webdataset
from mcpl.errors import ConfigError
from mcpl.types import Example

T = TypeVar("T")

UNFINISHED = "_unfinished"
"""An object that stands beside a dataset's files while they are written; what it says decides the files' bytes."""

TEXT_COLUMNS = ("text", "caption")
"""What a Parquet file may call its sentences, the preferred name first"""

FILES_AT_ONCE = 8
"""Parquet files whose footers or small columns are read at one time"""
ROW_GROUP_BYTES = 2 << 30
"""A row group is read as one; a larger one is refused before it fills the memory"""


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
    def open(uri: str | os.PathLike, kind: str | None = None) -> Dataset:
        """Look at the files' names and footers; ConfigError where they make no dataset.

        kind  the source to read it as; without, what fits
        """
        store, name = locate(uri)
        kind = kind or recognise(store, name)
        if name is not None and kind in ("folder", "multi-concept-dataset"):
            raise ConfigError(f"{uri} is one file; give the folder that holds the pictures")
        if name is None and kind == "picture":
            raise ConfigError(f"{uri} is a folder, not a picture")
        if kind in PARQUET:
            return ParquetDataset(store, name)
        listing = LISTINGS[kind](store, name)
        return ListedDataset(kind, store.join(name) if name else store.uri, listing)

    def shards(self, size: int) -> list[ShardRef]:
        """The rows in order, cut into pieces of at most `size`."""
        if size < 1:
            raise ConfigError(f"shard size = {size}: must be at least 1")
        return [
            ShardRef(file, group, start, min(start + size, rows))
            for file, group, rows in self._groups()
            for start in range(0, rows, size)
        ]

    def spread(self, count: int) -> list[ShardRef]:
        """`count` single rows (all, where there are fewer), evenly over the dataset."""
        count = min(count, self.count)
        wanted = [row * self.count // count for row in range(count)]
        found: list[ShardRef] = []
        before = 0
        for file, group, rows in self._groups():
            here = [row - before for row in wanted[len(found) :] if row < before + rows]
            found += [ShardRef(file, group, row, row + 1) for row in here]
            before += rows
        return found

    def read(self, ref: ShardRef) -> list[Example]:
        """The examples of one shard. What is wrong with a picture shows when it is decoded, not here."""
        return [example for example, _ in self.load(ref)]

    def load(self, ref: ShardRef) -> Iterator[tuple[Example, list[Rejected]]]:
        """The examples of a shard, each with what of it was unusable or read otherwise."""
        raise NotImplementedError

    def examples(self) -> Iterator[Example]:
        """Every example, a row group at a time."""
        return chain.from_iterable(self.read(ref) for ref in self.shards(64))

    def __iter__(self) -> Iterator[Example | Rejected]:
        """All there is: what became no row, then every example after what was unusable of it."""
        yield from self.rejected
        for ref in self.shards(64):
            for example, faults in self.load(ref):
                yield from faults
                yield example

    def weigh(self, ref: ShardRef) -> int:
        """Stored bytes of a shard, about: known without reading it, and the same every time."""
        raise NotImplementedError

    def only(self, refs: Sequence[ShardRef]) -> Dataset:
        """This dataset knowing no more than these neighbouring shards: small enough to be sent to a worker."""
        raise NotImplementedError

    def ids(self) -> list[str]:
        """Every row's id, reading nothing else."""
        raise NotImplementedError

    def groups(self) -> list[str | None]:
        """Every row's group, None where it has none, reading nothing else."""
        return [None] * self.count

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
    """A folder, or tars: the listing is the index, pictures are read one by one."""

    def __init__(self, kind: str, uri: str, listing: Listing):
        self.kind, self.uri, self._store = kind, uri, listing.store
        self._rows: Sequence[Listed] = listing.rows
        self._first = 0  # number of the first row of `_rows`
        self.rejected = listing.rejected
        self.count, self.digest = len(listing.rows), listing.digest
        self.bytes = sum(row.bytes for row in listing.rows)
        has = {"masks": any(row.masks for row in listing.rows), "group": any(row.group for row in listing.rows)}
        self.columns = (*REQUIRED, *(name for name, there in has.items() if there))
        if not self._rows:
            why = "; ".join(f"{r.id}: {r.reason}" for r in self.rejected[:3])
            raise ConfigError(f"{self.uri} holds no picture with a sentence ({why})")

    def load(self, ref: ShardRef) -> Iterator[tuple[Example, list[Rejected]]]:
        return (load(self._store, row) for row in self._listed(ref))

    def ids(self) -> list[str]:
        return [row.id for row in self._rows]

    def groups(self) -> list[str | None]:
        return [row.group or None for row in self._rows]

    def weigh(self, ref: ShardRef) -> int:
        return sum(row.bytes for row in self._listed(ref))

    def only(self, refs: Sequence[ShardRef]) -> Dataset:
        small = copy.copy(self)
        small._first, small.rejected = refs[0].start, ()
        small._store = copy.copy(self._store)  # a tar that it holds open is read by it alone
        small._rows = self._rows[refs[0].start - self._first : refs[-1].stop - self._first]
        return small

    def _listed(self, ref: ShardRef) -> Sequence[Listed]:
        return self._rows[ref.start - self._first : ref.stop - self._first]

    def _groups(self) -> Iterator[tuple[str, int, int]]:
        yield "", 0, self.count


@dataclass(frozen=True)
class _File:
    """A Parquet file's footer, read once."""

    name: str
    size: int
    groups: tuple[int, ...]
    """rows of each row group"""
    weights: tuple[int, ...]
    """stored bytes of each row group"""
    digest: str
    columns: tuple[str, ...]


class ParquetDataset(Dataset):
    """Parquet files with `image` (struct of bytes and path, or plain bytes), `image_id`, `text`.

    Hugging Face's habits are understood: the sentence may be called `caption`, and a row without an id is called
    after its place, FILE/000012.
    """

    def __init__(self, store: Store, name: str | None):
        self.uri, self._store = (store.join(name) if name else store.uri), store
        entries = store.list(name or "")
        if any(entry.name == UNFINISHED for entry in entries):
            raise ConfigError(f"{self.uri}: building this dataset did not finish; run the same build command again")
        files = [entry for entry in entries if entry.name == name] if name else parquet_files(entries)
        if not files:
            raise ConfigError(f"{self.uri} holds no Parquet file")
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            self._files = {file.name: file for file in pool.map(self._footer, files)}
        self.count = sum(sum(file.groups) for file in self._files.values())
        self.bytes = sum(file.size for file in self._files.values())
        self.columns = tuple(dict.fromkeys(chain.from_iterable(file.columns for file in self._files.values())))
        self.kind = (
            "parquet" if all({*REQUIRED} <= {*file.columns} for file in self._files.values()) else "hugging-face"
        )
        content = "\n".join(f"{file.name}\t{file.size}\t{file.digest}" for file in self._files.values())
        self.digest = hashlib.sha256(content.encode()).hexdigest()[:16]
        self._last: tuple[tuple[str, int], pa.Table] | None = None
        self._words: dict[str, pa.ChunkedArray] = {}
        if not self.count:
            raise ConfigError(f"{self.uri}: the dataset has no rows")

    def load(self, ref: ShardRef) -> Iterator[tuple[Example, list[Rejected]]]:
        place = (ref.file, ref.row_group)
        if self._last is None or self._last[0] != place:
            self._last = (place, self._row_group(*place))
        rows = self._last[1].slice(ref.start, ref.rows).to_pylist()
        return ((_example(record), []) for record in rows)

    def ids(self) -> list[str]:
        def of(file: _File) -> list[str]:
            if "image_id" not in file.columns:
                return [_place(file.name, row) for row in range(sum(file.groups))]
            return ["" if id is None else str(id) for id in self._opened(file.name, read)]

        def read(parquet: pq.ParquetFile, _) -> list:
            return parquet.read(["image_id"], use_threads=False)["image_id"].to_pylist()

        return self._of_all("image_id", of)

    def groups(self) -> list[str | None]:
        def of(file: _File) -> list[str | None]:
            found = self._opened(file.name, read) if "group" in file.columns else None
            return [group or None for group in found or [None] * sum(file.groups)]

        def read(parquet: pq.ParquetFile, _) -> list | None:
            if not _is_ours(parquet.schema_arrow, "group"):
                return None
            return parquet.read(["group"], use_threads=False)["group"].to_pylist()

        return self._of_all("group", of)

    def _of_all(self, column: str, of: Callable[[_File], list[str | None]]) -> list[str | None]:
        """A column of words of every row: read once, some files at a time, for each row group of each is a request."""
        if column not in self._words:
            with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
                chunks = [pa.array(words, pa.large_string()) for words in pool.map(of, self._files.values())]
            self._words[column] = pa.chunked_array(chunks, pa.large_string())
        return self._words[column].to_pylist()

    def weigh(self, ref: ShardRef) -> int:
        file = self._files[ref.file]
        return file.weights[ref.row_group] * ref.rows // file.groups[ref.row_group]

    def only(self, refs: Sequence[ShardRef]) -> Dataset:
        small = copy.copy(self)
        small._files, small._last = {ref.file: self._files[ref.file] for ref in refs}, None
        small._words = {}
        return small

    def _groups(self) -> Iterator[tuple[str, int, int]]:
        for file in self._files.values():
            for group, rows in enumerate(file.groups):
                yield file.name, group, rows

    def _row_group(self, name: str, group: int) -> pa.Table:
        """A row group's columns under our own names, ids made where there are none."""

        def read(parquet: pq.ParquetFile, _) -> pa.Table:
            schema = parquet.schema_arrow
            text = _text_column(schema)
            wanted = ["image", text, *(name for name in ("image_id", *OPTIONAL) if _is_ours(schema, name))]
            size = parquet.metadata.row_group(group).total_byte_size
            if size > ROW_GROUP_BYTES:
                raise ConfigError(
                    f"{self._store.join(name)}: row group {group} holds {byte_size(size)} and is read as one;"
                    " write the file again with row groups of about 64 pictures"
                )
            table = parquet.read_row_group(group, wanted)
            table = table.rename_columns(["text" if column == text else column for column in table.column_names])
            if "image_id" not in wanted:
                first = sum(parquet.metadata.row_group(before).num_rows for before in range(group))
                ids = [_place(name, first + row) for row in range(table.num_rows)]
                table = table.append_column("image_id", pa.array(ids, pa.string()))
            return table

        return self._opened(name, read)

    def _footer(self, entry: Entry) -> _File:
        where = self._store.join(entry.name)

        def look(parquet: pq.ParquetFile, stored: BinaryIO) -> _File:
            check_columns(parquet.schema_arrow, where)
            groups = [parquet.metadata.row_group(i) for i in range(parquet.num_row_groups)]
            rows = tuple(group.num_rows for group in groups)
            weights = tuple(
                sum(group.column(i).total_compressed_size for i in range(group.num_columns)) for group in groups
            )
            stored.seek(entry.size - 8)
            length = int.from_bytes(stored.read(4), "little")
            stored.seek(entry.size - 8 - length)
            digest = hashlib.sha256(stored.read(length)).hexdigest()
            return _File(entry.name, entry.size, rows, weights, digest, tuple(parquet.schema_arrow.names))

        return self._opened(entry.name, look)

    def _opened(self, name: str, use: Callable[[pq.ParquetFile, BinaryIO], T]) -> T:
        """What `use` reads of a file; ConfigError naming the file where it is damaged."""
        with self._store.reader(name) as stored, undamaged(self._store.join(name)):
            return use(pq.ParquetFile(stored, pre_buffer=True), stored)


def check_columns(schema: pa.Schema, where: str) -> None:
    """ConfigError naming what is missing and what is there, unless a schema has a dataset's columns and types."""
    name = _text_column(schema)
    missing = [column for column, there in (("image", "image" in schema.names), ("text", name)) if not there]
    if missing:
        raise ConfigError(
            f"{where} lacks the columns {', '.join(missing)}; it has {', '.join(schema.names) or 'none'};"
            " a dataset has image (struct of bytes and path), text (or caption) and, if it likes, image_id"
        )
    image, text = schema.field("image").type, schema.field(name).type
    if pa.types.is_struct(image):
        image = next((field.type for field in image if field.name == "bytes"), None)
    if image is None or not (pa.types.is_binary(image) or pa.types.is_large_binary(image)):
        raise ConfigError(f"{where}: column image is {schema.field('image').type}, not a struct of bytes and path")
    if not is_words(text):
        raise ConfigError(f"{where}: column {name} is {text}, not string")


def _text_column(schema: pa.Schema) -> str | None:
    return next((name for name in TEXT_COLUMNS if name in schema.names), None)


def _is_ours(schema: pa.Schema, name: str) -> bool:
    """Is there a column of this name that means what it means with us? Other people's `masks` may be anything."""
    if name not in schema.names:
        return False
    type = schema.field(name).type
    return name == "image_id" or (is_masks(type) if name == "masks" else is_words(type))


def _place(file: str, row: int) -> str:
    """The id of a row that has none: its file and its number there."""
    return f"{file.removesuffix('.parquet')}/{row:06d}"


def _example(record: dict) -> Example:
    """A Parquet row as an example; a null picture is empty bytes and a null sentence an empty one."""
    image, id = record["image"], record["image_id"]
    stored = image.get("bytes") if isinstance(image, dict) else image
    masks = {mask["word"]: mask["png"] for mask in record.get("masks") or ()}
    id, text = "" if id is None else str(id), record["text"] or ""
    return Example(id, stored or b"", text, masks, record.get("truth"), record.get("group") or None)


def parquet_files(entries: Sequence[Entry]) -> list[Entry]:
    """The Parquet files of a listing, hidden and underscored ones left out."""
    return [
        entry
        for entry in entries
        if entry.name.endswith(".parquet")
        and not is_hidden(entry.name)
        and not any(part.startswith("_") for part in entry.name.split("/"))
    ]


PARQUET = ("parquet", "hugging-face")
LISTINGS: dict[str, Callable[[Store, str | None], Listing]] = {
    "folder": list_folder,
    "webdataset": list_webdataset,
    "multi-concept-dataset": list_multi_concept,
    "picture": list_picture,
}
"""Source -> its rows, from a root and the name of the one object that was given, if one was"""


def recognise(store: Store, name: str | None) -> str:
    """The source that fits what lies there; ConfigError where none does."""
    if name is not None:
        kinds = {"parquet": name.endswith(".parquet"), "webdataset": is_tar(name), "picture": is_picture(name)}
        if not any(kinds.values()):
            raise ConfigError(f"{store.join(name)} is neither Parquet nor a tar nor a picture that mcpl reads")
        return next(kind for kind, fits in kinds.items() if fits)
    entries = store.list()
    names = [entry.name for entry in entries]
    if parquet_files(entries):
        return "parquet"
    if any("unmasked" in name.split("/")[:-1] for name in names):
        return "multi-concept-dataset"
    if any(is_tar(name) for name in names):
        return "webdataset"
    if any(is_picture(name) for name in names):
        return "folder"
    some = ", ".join(names[:3]) or "nothing"
    raise ConfigError(
        f"{store.uri} holds no dataset: neither Parquet nor tars nor pictures with metadata.jsonl or .txt files"
        f" (it holds {some})"
    )
