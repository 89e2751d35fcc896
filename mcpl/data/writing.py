"""Datasets written: any source to Parquet, in parts that can be made anywhere; plain captions to marked ones."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from mcpl.data.dataset import UNFINISHED, Dataset, ShardRef, parquet_files
from mcpl.data.listing import Rejected
from mcpl.data.pictures import load_picture
from mcpl.data.schema import DATASET, ROW_GROUP
from mcpl.data.storage import Store, open_store
from mcpl.errors import ConfigError, ExampleError
from mcpl.types import Example

if TYPE_CHECKING:
    from rich.text import Text

KEPT = 1000  # faults that a report keeps word for word; it counts them all
KEPT_OF_A_KIND = 3  # the same, in a file's own report
FILE_ROWS = 16 * ROW_GROUP
FILE_BYTES = 128 << 20
"""A file is closed at these rows or pictures: what a worker holds was measured at five times as much"""
REJECTED_KEY = "mcpl.dataset.rejected"
"""In a file's footer: what of its source's rows is not in it, and why"""


@dataclass
class Faults:
    """What was rejected or repaired: every kind counted, the first ones kept."""

    kinds: Counter[str] = field(default_factory=Counter)
    first: list[Rejected] = field(default_factory=list)
    lost: int = 0
    """rejected, repaired ones not counted"""

    @classmethod
    def of(cls, rejected: Iterable[Rejected]) -> Faults:
        faults = cls()
        for fault in rejected:
            faults.add(fault)
        return faults

    def add(self, fault: Rejected) -> None:
        self.kinds[fault.kind] += 1
        self.lost += not fault.repaired
        if len(self.first) < KEPT:
            self.first.append(fault)

    def merge(self, others: Faults) -> None:
        self.kinds.update(others.kinds)
        self.lost += others.lost
        self.first += others.first[: KEPT - len(self.first)]

    def to_json(self) -> str:
        """Every kind's count and its first faults."""
        seen: Counter[str] = Counter()
        first = []
        for fault in self.first:
            seen[fault.kind] += 1
            if seen[fault.kind] <= KEPT_OF_A_KIND:
                first.append(asdict(fault))
        return json.dumps({"kinds": self.kinds, "lost": self.lost, "first": first})

    @classmethod
    def from_json(cls, text: str | bytes) -> Faults:
        told = json.loads(text)
        return cls(Counter(told["kinds"]), [Rejected(**fault) for fault in told["first"]], told["lost"])

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
        yield _checked(item) if isinstance(item, Example) else item


def _checked(example: Example) -> Example | Rejected:
    try:
        load_picture(example.image)
    except ExampleError as fault:
        return Rejected(example.id, str(fault))
    return example if example.text.strip() else Rejected(example.id, "empty sentence")


@dataclass(frozen=True)
class Part:
    """Neighbouring rows of a source: one file's, whoever writes it."""

    name: str
    source: Dataset
    """knows these rows alone"""
    shards: tuple[ShardRef, ...]
    taken: frozenset[int]
    """rows of the part whose id is empty or stood in an earlier row"""


@dataclass(frozen=True)
class Written:
    """What became of a part."""

    name: str
    rows: int
    bytes: int
    faults: Faults


Each = Callable[[Callable[[Part], Written], Iterable[Part]], Iterable[Written]]
"""`map`, or something that does the same in other processes and in any order"""


def build_dataset(
    source: Dataset,
    uri: str | os.PathLike,
    check: bool = True,
    row_group: int = ROW_GROUP,
    rows_per_file: int = FILE_ROWS,
    bytes_per_file: int = FILE_BYTES,
    each: Each = map,
    on_part: Callable[[Written], None] = lambda written: None,
) -> WriteReport:
    """Write a source's rows as `data-00000.parquet`, ...; the bytes are the same whoever writes which of the files.

    Which rows make a file is planned before any picture is read; a row that is rejected leaves its file shorter. An
    interrupted build goes on where it was. A finished dataset is compared, file by file; other content is refused.

    check  decode every picture and leave out those that cannot be, and empty sentences
    each   applies a function to every part: `map`, or Ray's workers
    """
    store = open_store(uri)
    decides = {"kind": source.kind, "digest": source.digest, "rows": source.count, "check": check}
    sizes = {"row_group": row_group, "rows_per_file": rows_per_file, "bytes_per_file": bytes_per_file}
    order = json.dumps(decides | sizes).encode()
    parts = _parts(source, row_group, rows_per_file, bytes_per_file)
    present = _present(store)
    if extra := sorted(present.keys() - {part.name for part in parts} - {UNFINISHED}):
        raise ConfigError(f"{store.uri} holds another, larger dataset ({', '.join(extra[:3])}); give an empty place")
    resumed = UNFINISHED in present
    if resumed or not (present or store.put_if_absent(UNFINISHED, order)):
        _same_order(store, order)
    write = partial(write_part, uri=store.uri, check=check, row_group=row_group, finished=bool(present) and not resumed)
    done = {
        part.name: _already(store, part.name, present[part.name]) for part in parts if resumed and part.name in present
    }
    for written in done.values():
        on_part(written)
    for written in each(write, [part for part in parts if part.name not in done]):
        done[written.name] = written
        on_part(written)
    faults = Faults.of(source.rejected)
    for part in parts:
        faults.merge(done[part.name].faults)
    count = sum(written.rows for written in done.values())
    if not count:
        for part in parts:
            store.delete(part.name)
        store.delete(UNFINISHED)
        raise ConfigError(_nothing(store, faults))
    store.delete(UNFINISHED)
    return WriteReport(store.uri, count, len(parts), sum(written.bytes for written in done.values()), faults)


def _same_order(store: Store, order: bytes) -> None:
    """ConfigError where another build than this one was begun here."""
    if store.get(UNFINISHED) != order:
        raise ConfigError(
            f"{store.uri}: another build was begun here, of other rows or with other options;"
            " finish it with its own command, or give an empty place"
        )


def _parts(source: Dataset, row_group: int, rows_per_file: int, bytes_per_file: int) -> list[Part]:
    """The source's rows in order, cut where a file has enough rows or bytes."""
    seen: set[str] = set()
    ids = iter(source.ids())
    parts: list[Part] = []
    shards: list[ShardRef] = []
    taken: set[int] = set()
    rows = weight = 0

    def close() -> None:
        nonlocal rows, weight
        parts.append(Part(f"data-{len(parts):05d}.parquet", source.only(shards), tuple(shards), frozenset(taken)))
        shards.clear(), taken.clear()
        rows = weight = 0

    for shard in source.shards(min(row_group, rows_per_file)):
        size = source.weigh(shard)
        if shards and (rows + shard.rows > rows_per_file or weight + size > bytes_per_file):
            close()
        shards.append(shard)
        for row in range(rows, rows + shard.rows):
            id = next(ids)
            if not id or id in seen:
                taken.add(row)
            seen.add(id)
        rows, weight = rows + shard.rows, weight + size
    close()
    return parts


def write_part(part: Part, uri: str, check: bool, row_group: int, finished: bool) -> Written:
    """Read, check, encode and commit one part; a part that is there already must hold these very bytes."""
    store, faults = open_store(uri), Faults()
    kept: list[Example] = []
    loaded = (item for shard in part.shards for item in part.source.load(shard))
    for row, (example, told) in enumerate(loaded):
        for fault in told:
            faults.add(fault)
        item = Rejected(example.id, TAKEN) if row in part.taken else _checked(example) if check else example
        faults.add(item) if isinstance(item, Rejected) else kept.append(item)
    data = encode_examples(kept, row_group, {REJECTED_KEY: faults.to_json()} if faults.kinds else {})
    _commit(store, part.name, data, finished)
    return Written(part.name, len(kept), len(data), Faults.from_json(faults.to_json()))


def _already(store: Store, name: str, size: int) -> Written:
    """What an earlier run of the same build wrote, from the file's footer."""
    with store.reader(name) as stored:
        footer = pq.ParquetFile(stored)
        told = (footer.schema_arrow.metadata or {}).get(REJECTED_KEY.encode())
        return Written(name, footer.metadata.num_rows, size, Faults.from_json(told) if told else Faults())


def _present(store: Store) -> dict[str, int]:
    """Name -> size of what lies at the output; ConfigError where it is no dataset of ours."""
    present = store.list()
    foreign = [e.name for e in present if e.name != UNFINISHED and e not in parquet_files(present)]
    if foreign:
        raise ConfigError(f"{store.uri} holds other files ({', '.join(foreign[:3])}); give an empty place")
    return {entry.name: entry.size for entry in present}


def _nothing(store: Store, faults: Faults) -> str:
    why = "; ".join(f"{f.id}: {f.reason}" for f in faults.first[:3])
    return f"nothing to write to {store.uri}: no usable example ({why or 'the source is empty'})"


def write_dataset(
    items: Iterable[Example | Rejected],
    uri: str | os.PathLike,
    row_group: int = ROW_GROUP,
    rows_per_file: int = FILE_ROWS,
    bytes_per_file: int = FILE_BYTES,
) -> WriteReport:
    """Write examples as they come, as `data-00000.parquet`, ...; the same examples give the same bytes.

    Rows whose id was there before are rejected. A location that holds exactly this dataset is left as it is and one
    where this very build was interrupted is completed; any other content is a ConfigError.
    """
    store, faults = open_store(uri), Faults()
    present = _present(store)
    finished = bool(present) and UNFINISHED not in present
    written: dict[str, int] = {}
    count = 0
    for batch in _batches(_kept(items, faults), rows_per_file, bytes_per_file):
        if not written and not finished:
            store.put(UNFINISHED, b"")
        name, data = f"data-{len(written):05d}.parquet", encode_examples(batch, row_group)
        _commit(store, name, data, finished)
        written[name] = len(data)
        count += len(batch)
    if not count:
        raise ConfigError(_nothing(store, faults))
    extra = [entry.name for entry in parquet_files(store.list()) if entry.name not in written]
    if extra:
        raise ConfigError(f"{store.uri} holds another, larger dataset ({', '.join(extra[:3])}); give an empty place")
    store.delete(UNFINISHED)
    return WriteReport(store.uri, count, len(written), sum(written.values()), faults)


def _batches(examples: Iterable[Example], rows: int, size: int) -> Iterator[list[Example]]:
    batch: list[Example] = []
    weight = 0
    for example in examples:
        bytes = len(example.image) + sum(map(len, example.masks.values()))
        if batch and (len(batch) == rows or weight + bytes > size):
            yield batch
            batch, weight = [], 0
        batch.append(example)
        weight += bytes
    if batch:
        yield batch


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


TAKEN = "its image_id is empty or taken"


def _kept(items: Iterable[Example | Rejected], faults: Faults) -> Iterator[Example]:
    seen: set[str] = set()
    for item in items:
        if isinstance(item, Rejected):
            faults.add(item)
        elif not item.id or item.id in seen:
            faults.add(Rejected(item.id, TAKEN))
        else:
            seen.add(item.id)
            yield item


def encode_examples(
    examples: Sequence[Example], row_group: int = ROW_GROUP, notes: Mapping[str, str] | None = None
) -> bytes:
    """The examples as one Parquet file, its content's hash in the footer so that a dataset's digest covers it.

    Without groups there is no column for them: such files stay what they were before groups were known, byte for byte.
    """
    schema = DATASET
    if not any(example.group for example in examples):
        schema = schema.remove(schema.get_field_index("group"))
    content = hashlib.sha256()
    for example in examples:
        masks = (png for _, png in sorted(example.masks.items()))
        for part in (example.id.encode(), example.text.encode(), example.image, *masks):
            content.update(len(part).to_bytes(8, "little"))
            content.update(part)
        if example.group:
            content.update(example.group.encode())
    about = {"mcpl.dataset.version": "1", "mcpl.dataset.content": content.hexdigest()} | (notes or {})
    schema, buffer = schema.with_metadata(about), io.BytesIO()
    options = {"compression": "zstd", "compression_level": 1, "use_dictionary": False}
    with pq.ParquetWriter(buffer, schema, write_statistics=["image_id", "text"], **options) as writer:
        for start in range(0, len(examples), row_group):  # a group at a time: less memory than one table
            records = [_record(example) for example in examples[start : start + row_group]]
            writer.write_table(pa.Table.from_pylist(records, schema=schema))
    return buffer.getvalue()


def _record(example: Example) -> dict:
    masks = [{"word": word, "png": png} for word, png in sorted(example.masks.items())]
    return {
        "image": {"bytes": example.image, "path": None},
        "image_id": example.id,
        "text": example.text,
        "masks": masks or None,
        "truth": example.truth,
        "group": example.group,
    }


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
