"""The bank: a row per picture, or per group of pictures that share words, looked up by picture and by word.

`encode` is deterministic: the same rows give the same bytes. torch is imported only where rows with vectors are
decoded; a summary needs none.
"""

from __future__ import annotations

import fnmatch
import io
import json
import math
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mcpl.data.schema import (
    BANK,
    BANK_VERSION,
    COMPARED_COLUMNS,
    CONCEPT,
    ROW_GROUP,
    UNCOMPARED_COLUMNS,
    VERSION_KEY,
    undamaged,
)
from mcpl.data.storage import Entry, Store, locate
from mcpl.errors import ConfigError
from mcpl.types import BankRow, Concept, CurvePoint, GroupPicture, LearnedConcept, LearnedConcepts, Provenance

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

__all__ = [
    "COMPARED_COLUMNS",
    "UNCOMPARED_COLUMNS",
    "Bank",
    "BankSummary",
    "Hit",
    "compact_name",
    "decode",
    "decode_ids",
    "encode",
    "joined",
    "members",
    "outcomes",
    "part_name",
    "readable",
    "rows_of",
    "shards_of",
]


REPEATED = ["status", "reason", "recipe", "recipe_fingerprint", "base", "base_digest", "commit", "host"]
"""columns whose few values a Parquet dictionary shortens; building one over vectors costs more than it saves"""
ENCODING = {"compression": "zstd", "compression_level": 1, "use_dictionary": REPEATED}
SHARDS_KEY = "mcpl.shards"
"""in a compact file's metadata: JSON of (shard, rows), in the order of its rows"""
PART = re.compile(r"part-(\d{8})\.parquet")
COMPACT = re.compile(r"part-compact-(\d{8})-(\d{8})\.parquet")


def part_name(shard: int) -> str:
    """The fixed name of a shard's result."""
    return f"part-{shard:08d}.parquet"


def compact_name(shards: range) -> str:
    """The fixed name of a file that holds the parts of all these shards, first and last in the name."""
    return f"part-compact-{shards[0]:08d}-{shards[-1]:08d}.parquet"


def shards_of(name: str) -> range:
    """The shards whose rows a file of this name holds; none where it is no file of a bank's root."""
    if match := PART.fullmatch(name):
        return range(int(match[1]), int(match[1]) + 1)
    if match := COMPACT.fullmatch(name):
        return range(int(match[1]), int(match[2]) + 1)
    return range(0)


def encode(rows: Sequence[BankRow]) -> bytes:
    """The rows as one Parquet file. Attention maps are rounded to 1/255; everything else comes back exactly."""
    plain = pa.Table.from_pylist([_record(row) for row in rows], schema=BANK.remove(CONCEPTS))
    table = plain.add_column(CONCEPTS, BANK.field(CONCEPTS), _concept_column(rows))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=ROW_GROUP, **ENCODING)
    return buffer.getvalue()


def joined(parts: Iterable[tuple[int, bytes]]) -> bytes:
    """Several (shard, part) as one compact file, which lists each shard and its rows; read a part at a time."""
    buffer, shards, waiting = io.BytesIO(), [], []
    with pq.ParquetWriter(buffer, BANK, **ENCODING) as writer:

        def write() -> None:
            writer.write_table(pa.concat_tables(waiting), row_group_size=ROW_GROUP)
            waiting.clear()

        for shard, data in parts:
            waiting.append(_read(io.BytesIO(data), part_name(shard)).select(BANK.names).cast(BANK))
            shards.append((shard, len(waiting[-1])))
            if sum(map(len, waiting)) >= ROW_GROUP:
                write()
        if waiting:
            write()
        writer.add_key_value_metadata({SHARDS_KEY: json.dumps(shards, separators=(",", ":"))})
    return buffer.getvalue()


def outcomes(store: Store, name: str) -> dict[int, list[tuple[str, str]]]:
    """Shard -> (id, status) of its rows, for each shard in a part or compact file; from those two columns alone."""
    with store.reader(name) as file, readable(store.join(name)):
        parquet = pq.ParquetFile(file)
        table = parquet.read(columns=["id", "status"], use_threads=False)
        listed = (parquet.metadata.metadata or {}).get(SHARDS_KEY.encode())
    rows = iter(zip(table["id"].to_pylist(), table["status"].to_pylist(), strict=True))
    sizes = json.loads(listed) if listed else [(shards_of(name)[0], len(table))]
    return {shard: list(islice(rows, size)) for shard, size in sizes}


def decode(data: bytes, name: str = "the bank's file") -> list[BankRow]:
    """The rows of one encoded file; ConfigError naming it where it is cut short, foreign or of a newer format."""
    return rows_of(_read(io.BytesIO(data), name))


def decode_ids(data: bytes, name: str = "the bank's file") -> list[str]:
    """The picture ids of one encoded file, in order; the same errors as `decode`."""
    return _read(io.BytesIO(data), name, ["id"])["id"].to_pylist()


def _record(row: BankRow) -> dict:
    """One row as plain values, in the schema's columns."""
    learned, provenance = row.learned, row.provenance
    if learned is not None and learned.job_id != row.id:
        raise ValueError(f"row {row.id!r} holds the words of job {learned.job_id!r}")
    return {
        "id": row.id,
        "text": row.text,
        "status": row.status,
        "reason": row.reason,
        "placeholders": [c.concept.placeholder for c in learned.concepts] if learned else [],
        "curve": [vars(point) for point in learned.curve] if learned else None,
        "losses": sorted((term, list(values)) for term, values in learned.losses.items()) if learned else None,
        "steps": learned.steps if learned else None,
        "sample_passes": learned.sample_passes if learned else None,
        "metrics": sorted(row.metrics.items()),
        "recipe": provenance.recipe,
        "recipe_fingerprint": provenance.recipe_fingerprint,
        "base": provenance.base,
        "base_digest": provenance.base_digest,
        "seed": provenance.seed,
        "commit": provenance.commit,
        "picture_sha256": provenance.picture_sha256,
        "sentence_sha256": provenance.sentence_sha256,
        "key": provenance.key,
        "pictures": [vars(picture) for picture in row.pictures] or None,
        "seconds": row.seconds,
        "host": row.host,
        "learned_at": row.learned_at,
    }


CONCEPTS = BANK.get_field_index("concepts")


def _concept_column(rows: Sequence[BankRow]) -> pa.Array:
    """The column `concepts`, its vectors and maps joined as arrays: number by number takes three times as long."""
    learned = [row.learned for row in rows]
    words = [word for each in learned if each for word in each.concepts]
    vectors = [np.asarray(word.vectors.detach().cpu(), dtype=np.float32) for word in words]
    columns = {
        "slug": [word.concept.slug for word in words],
        "initializer": [word.concept.initializer for word in words],
        "adjectives": [list(word.concept.adjectives) for word in words],
        "is_object": [word.concept.is_object for word in words],
        "vectors": pa.ListArray.from_arrays(_ends(vectors), _joined(vectors, np.float32)),
        "n_vectors": [each.shape[0] for each in vectors],
        "width": [each.shape[1] for each in vectors],
        "norm": [float(np.linalg.norm(each.astype(np.float64), axis=1).mean()) for each in vectors],
        "attention": _quantised([word.attention for word in words]),
        "attention_step0": _quantised([word.attention_step0 for word in words]),
        "attention_size": [word.attention.shape[0] for word in words],
    }
    arrays = [pa.array(columns[field.name], field.type) for field in CONCEPT]
    ends = np.cumsum([0] + [len(each.concepts) if each else 0 for each in learned], dtype=np.int32)
    missing = pa.array([each is None for each in learned], pa.bool_())
    return pa.ListArray.from_arrays(
        ends, pa.StructArray.from_arrays(arrays, fields=list(CONCEPT)), BANK.field("concepts").type, mask=missing
    )


def _quantised(maps: Sequence[Tensor]) -> pa.Array:
    """[m, m] values in 0..1 as [m * m] uint8 each; not-a-number becomes 0."""
    arrays = [each.detach().cpu().numpy() for each in maps]
    values = _joined(arrays, np.float64)
    values[np.isnan(values)] = 0
    rounded = np.rint(values.clip(0, 1) * 255).astype(np.uint8)
    buffers = [None, pa.py_buffer(_ends(arrays)), pa.py_buffer(rounded)]
    return pa.Array.from_buffers(pa.binary(), len(arrays), buffers)


def _joined(arrays: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    """Their values, one after the other."""
    return np.concatenate([np.zeros(0, dtype), *(each.ravel() for each in arrays)]).astype(dtype, copy=False)


def _ends(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """[n + 1] int32: where each begins and ends among the joined values."""
    return np.cumsum([0] + [each.size for each in arrays], dtype=np.int32)


def readable(name: str) -> AbstractContextManager[None]:
    """Reading a bank's file: ConfigError naming it, and what to do, where it is cut short or damaged."""
    return undamaged(name, "; delete it, and the command that made the bank learns its pictures again")


def _read(file, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The table in an open Parquet file, its columns checked against this program's."""
    with readable(name):
        parquet = pq.ParquetFile(file)
        version = (parquet.schema_arrow.metadata or {}).get(VERSION_KEY)
        if version is None:
            raise ConfigError(f"{name} is Parquet, but no part of a bank")
        if int(version) > BANK_VERSION:
            raise ConfigError(
                f"{name} has bank format {int(version)}, this mcpl reads up to {BANK_VERSION}: update mcpl"
            )
        table = parquet.read(columns=None if columns is None else list(columns), use_threads=False)
    if "pictures" not in table.column_names and (columns is None or "pictures" in columns):  # of format 1
        table = table.append_column(BANK.field("pictures"), pa.nulls(len(table), BANK.field("pictures").type))
    return table


def rows_of(table: pa.Table) -> list[BankRow]:
    """The rows of a bank's table, with or without its column `concepts`, and `pictures`, which format 1 lacks."""
    if "concepts" in table.column_names:
        concepts = _concepts(table)
        table = table.drop_columns(["concepts"])
    else:
        concepts = [() if status == "learned" else None for status in table["status"].to_pylist()]
    records = table.to_pylist()  # maps as pairs: asked for as dictionaries, everything takes ten times as long
    return [_row(*pair) for pair in zip(records, concepts, strict=True)]


def _concepts(table: pa.Table) -> list[list[dict] | None]:
    """Each row's concepts as plain values, their vectors as [n, D] arrays: float by float takes ten times as long."""
    column = table["concepts"].combine_chunks()
    fields = dict(zip(CONCEPT.names, pc.list_flatten(column).flatten(), strict=True))
    vectors = fields.pop("vectors")
    values, ends = vectors.flatten().to_numpy(), np.cumsum(pc.list_value_length(vectors).to_numpy())
    concepts = pa.table(fields).to_pylist()
    for concept, end in zip(concepts, ends, strict=True):
        shape = (concept["n_vectors"], concept["width"])
        concept["vectors"] = values[end - shape[0] * shape[1] : end].reshape(shape).copy()
    counts = pc.list_value_length(column).to_pylist()
    left = iter(concepts)
    return [None if count is None else list(islice(left, count)) for count in counts]


def _row(record: Mapping, concepts: Sequence[Mapping] | None) -> BankRow:
    provenance = Provenance(
        recipe=record["recipe"],
        recipe_fingerprint=record["recipe_fingerprint"],
        base=record["base"],
        base_digest=record["base_digest"],
        seed=record["seed"],
        commit=record["commit"],
        picture_sha256=record["picture_sha256"],
        sentence_sha256=record["sentence_sha256"],
    )
    learned = None
    if concepts is not None:
        learned = LearnedConcepts(
            job_id=record["id"],
            concepts=tuple(map(_concept, concepts)),
            curve=tuple(CurvePoint(**point) for point in record["curve"]),
            losses={term: tuple(values) for term, values in record["losses"]},
            steps=record["steps"],
            sample_passes=record["sample_passes"],
            kept_step=_whole(dict(record["metrics"]).get("kept_step")),
        )
    return BankRow(
        id=record["id"],
        text=record["text"],
        status=record["status"],
        provenance=provenance,
        reason=record["reason"],
        learned=learned,
        metrics=dict(record["metrics"]),
        seconds=record["seconds"],
        host=record["host"],
        learned_at=record["learned_at"],
        pictures=tuple(GroupPicture(**one | {"words": tuple(one["words"])}) for one in record.get("pictures") or ()),
    )


def _sentence(record: Mapping, slug: str) -> str:
    """The one that names a word first, as `BankRow.told_of`."""
    used = (one for one in record["pictures"] or () if one["reason"] is None and slug in one["words"])
    return next((one["text"] for one in used), record["text"])


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _concept(record: Mapping) -> LearnedConcept:
    import torch

    concept = Concept(record["slug"], record["initializer"], tuple(record["adjectives"]), record["is_object"])
    size = record["attention_size"]
    maps = (np.frombuffer(record[key], np.uint8).reshape(size, size) for key in ("attention", "attention_step0"))
    attention, attention_step0 = (torch.from_numpy(m.astype(np.float32) / np.float32(255)) for m in maps)
    return LearnedConcept(concept, torch.from_numpy(record["vectors"]), attention, attention_step0)


@dataclass(frozen=True)
class Hit:
    """A learned word that a search found."""

    id: str
    slug: str
    text: str
    vectors: np.ndarray = field(repr=False)
    """[n, D] float32"""
    norm: float
    metrics: Mapping[str, float]
    """of the picture"""
    base: str
    base_digest: str


@dataclass(frozen=True)
class BankSummary:
    """A bank at a glance."""

    uri: str
    rows: int
    """pictures and groups"""
    groups: int
    """of the rows, how many were learned from several pictures together"""
    words: int
    """learned words, all rows together"""
    parts: int
    bytes: int
    status: Mapping[str, int]
    recipes: Mapping[str, int]
    """"name fingerprint" -> rows"""
    bases: Mapping[str, int]
    """"name digest" -> rows"""
    reasons: Mapping[str, int]
    """why rows failed or were skipped, or pictures of a group were left out -> rows"""
    metrics: Mapping[str, float]
    """metric -> mean over the rows where it is a number"""
    seconds: float
    """learning time of all rows together"""


WHOLE_FILE = 8 << 20  # bytes up to which a part is fetched in one request rather than column by column
AHEAD = 8  # such parts that are fetched at once


def members(store: Store) -> list[Entry]:
    """The files that hold a bank's rows, oldest first. A part that a compact file covers counts for nothing.

    Compact files are looked for after the parts: where a part went while the first listing was under way, the
    compact file that has its rows was there before, so the second listing shows it.
    """
    parts = [entry for entry in store.list("part-") if PART.fullmatch(entry.name)]
    compact = [entry for entry in store.list("part-compact-") if COMPACT.fullmatch(entry.name)]
    covered = {shard for entry in compact for shard in shards_of(entry.name)}
    uncovered = [entry for entry in parts if shards_of(entry.name)[0] not in covered]
    return sorted([*compact, *uncovered], key=lambda entry: shards_of(entry.name)[0])


def ahead(read: Callable[[int], T], places: Iterable[int], width: int) -> Iterator[T]:
    """What is read at each place, in order, `width` of them read at once."""
    pool, reading = ThreadPoolExecutor(width), deque()
    try:
        for place in places:
            reading.append(pool.submit(read, place))
            if len(reading) == width:
                yield reading.popleft().result()
        while reading:
            yield reading.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def contents(store: Store, files: Sequence[Entry]) -> Iterator[tuple[str, bytes]]:
    """(name, content) of each file, in order; where all are small, the next few are fetched meanwhile."""
    width = AHEAD if all(file.size <= WHOLE_FILE for file in files) else 1
    read = ahead(lambda place: store.get(files[place].name), range(len(files)), width)
    return zip((file.name for file in files), read, strict=True)


class PartGone(ConfigError):
    """A part was joined into a compact file, or deleted, after the bank was opened: open it again."""


class Bank:
    """A bank to read. Rows of an id that was learned again later replace its earlier ones."""

    def __init__(self, store: Store, members: Sequence[Entry]):
        self.uri = store.uri
        self._store = store
        self._members = list(members)
        self._places: dict[str, tuple[int, int]] | None = None
        self._group_of: dict[str, str] | None = None

    @classmethod
    def open(cls, uri: str | os.PathLike) -> Bank:
        """The bank at a root (one listing) or in one Parquet file; ConfigError where there is none."""
        store, name = locate(uri)
        if name is not None:
            return cls(store, store.list(name)[:1])
        found = members(store)
        if not found:
            raise ConfigError(f"no bank at {uri}: it holds no part-*.parquet")
        return cls(store, found)

    def __len__(self) -> int:
        return len(self._index())

    def ids(self) -> list[str]:
        """Ids of pictures and names of groups, in the order in which their rows lie in the bank."""
        return list(self._index())

    def row(self, id: str) -> BankRow:
        """The row of a picture or group, or of the group that a picture belongs to; KeyError naming some ids where
        there is none."""
        if (own := self.row_id(id)) is None:
            raise KeyError(f"the bank at {self.uri} has no picture {id!r}; it has {self._some()}")
        return rows_of(self._of(own))[0]

    def row_id(self, id: str) -> str | None:
        """The id of a picture's row: its own, else its group's name; None where the bank has neither."""
        if id in self._index():
            return id
        if self._group_of is None:
            tables = (table for table in self._current(["id", "pictures"]) if table["pictures"].null_count < len(table))
            grouped = (row for table in tables for row in table.to_pylist() if row["pictures"])
            self._group_of = {picture["id"]: row["id"] for row in grouped for picture in row["pictures"]}
        return self._group_of.get(id)

    def rows(self, concepts: bool = True) -> Iterator[BankRow]:
        """Every row, a part at a time; without `concepts` their words are not read, which saves most of the time."""
        columns = None if concepts else [name for name in BANK.names if name != "concepts"]
        for table in self._current(columns):
            yield from rows_of(table)

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """One table of all rows, or of the named columns only."""
        unknown = sorted(set(columns or ()) - set(BANK.names))
        if unknown:
            raise ConfigError(f"a bank has no columns {', '.join(unknown)}; it has {', '.join(BANK.names)}")
        wanted = BANK if columns is None else pa.schema([BANK.field(c) for c in columns], BANK.metadata)
        return pa.concat_tables([t.select(wanted.names).cast(wanted) for t in self._current(wanted.names)])

    def search(self, word: str, id: str | None = None) -> list[Hit]:
        """Every learned `word`, with or without angle brackets, any case; `*` and `?` match as in file names.

        id  the one picture or group whose words are looked at: only its part is read
        """
        pattern = word.strip().removeprefix("<").removesuffix(">").lower()
        hits = []
        origin = ["id", "text", "metrics", "base", "base_digest", "pictures"]
        columns = [*origin, "concepts"]
        own = None if id is None else self.row_id(id)
        if id is not None and own is None:
            return hits
        for table in self._current(columns) if own is None else [self._of(own, columns)]:
            for position, concepts in enumerate(_concepts(table)):
                found = [c for c in concepts or () if fnmatch.fnmatchcase(c["slug"].lower(), pattern)]
                for row in table.select(origin).slice(position, 1).to_pylist() if found else ():
                    told = dict(row["metrics"]), row["base"], row["base_digest"]
                    hits += [
                        Hit(row["id"], c["slug"], _sentence(row, c["slug"]), c["vectors"], c["norm"], *told)
                        for c in found
                    ]
        return hits

    def keys(self) -> dict[str, str]:
        """Id of every learned row -> what identifies the work behind it (`Provenance.key`)."""
        table = self.table(["id", "status", "key"])
        table = table.filter(pc.equal(table["status"], "learned"))
        return dict(zip(table["id"].to_pylist(), table["key"].to_pylist(), strict=True))

    def words(self) -> Counter[str]:
        """Learned words and in how many rows, pictures or groups, each was learned."""
        return Counter(p[1:-1] for ps in self.table(["placeholders"])["placeholders"].to_pylist() for p in ps)

    def summary(self) -> BankSummary:
        """Counts and mean metrics, from the narrow columns alone."""
        narrow = ["status", "reason", "placeholders", "metrics", "recipe", "recipe_fingerprint", "base", "base_digest"]
        table = self.table([*narrow, "seconds", "pictures"])
        records = table.drop_columns(["pictures"]).to_pylist()
        values: dict[str, list[float]] = {}
        for record in records:
            for name, value in record["metrics"]:
                if not math.isnan(value):
                    values.setdefault(name, []).append(value)
        return BankSummary(
            uri=self.uri,
            rows=len(records),
            groups=len(table) - table["pictures"].null_count,
            words=sum(len(r["placeholders"]) for r in records),
            parts=len(self._members),
            bytes=sum(member.size for member in self._members),
            status=Counter(r["status"] for r in records),
            recipes=Counter(f"{r['recipe']} {r['recipe_fingerprint']}" for r in records),
            bases=Counter(f"{r['base']} {r['base_digest']}" for r in records),
            reasons=Counter(r["reason"] for r in records if r["reason"]),
            metrics={name: math.fsum(v) / len(v) for name, v in sorted(values.items())},
            seconds=math.fsum(r["seconds"] for r in records),
        )

    def _some(self) -> str:
        """A few picture ids, for messages."""
        ids = self.ids()
        return ", ".join(ids[:5]) + (" ..." if len(ids) > 5 else "")

    def _index(self) -> dict[str, tuple[int, int]]:
        """id -> (member, position of its row there)"""
        if self._places is None:
            self._places = {}
            for member, table in enumerate(self._parts(["id"])):
                for position, id in enumerate(table["id"].to_pylist()):
                    self._places.pop(id, None)
                    self._places[id] = (member, position)
        return self._places

    def _of(self, id: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The one row of a picture."""
        member, position = self._index()[id]
        return self._part(member, columns).slice(position, 1)

    def _current(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Each part's rows that no later part replaced."""
        kept: dict[int, list[int]] = {member: [] for member in range(len(self._members))}
        for member, position in self._index().values():
            kept[member].append(position)
        for positions, table in zip(kept.values(), self._parts(columns), strict=True):
            yield table if len(positions) == len(table) else table.take(sorted(positions))

    def _parts(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Every part, in order; in an object store, where all are small, the next few are fetched meanwhile."""
        far = "://" in self.uri and all(member.size <= WHOLE_FILE for member in self._members)
        read = partial(self._part, columns=columns)
        yield from ahead(read, range(len(self._members)), AHEAD) if far else map(read, range(len(self._members)))

    def _part(self, member: int, columns: Sequence[str] | None = None) -> pa.Table:
        entry = self._members[member]
        whole = entry.size <= WHOLE_FILE
        try:
            with io.BytesIO(self._store.get(entry.name)) if whole else self._store.reader(entry.name) as file:
                return _read(file, self._store.join(entry.name), columns)
        except FileNotFoundError:
            raise PartGone(
                f"{self._store.join(entry.name)} went away while the bank was read, perhaps into a compact file;"
                " run the same command again"
            ) from None
