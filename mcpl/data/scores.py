"""Scores of a bank's rows, found after they were learned: Parquet beside the bank, joined by picture id and key.

    BANK/_scores/EVALUATION/part-00000000.parquet      a row a picture: metrics, and features to compare it with others
    BANK/_scores/EVALUATION/_mcpl/                     plan and identity of that evaluation, as of a bank

EVALUATION is the fingerprint of what decides the scores. A bank may have several; of one metric the latest is told. The
key is that of the learned row (`Provenance.key`): what is learned again, differently, has none of its earlier scores.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import BinaryIO, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mcpl.data.bank import Bank, BankSummary, members, readable, rows_of
from mcpl.data.dataset import Dataset, ShardRef
from mcpl.data.listing import Rejected
from mcpl.data.schema import SCORES, SCORES_VERSION, SCORES_VERSION_KEY, undamaged
from mcpl.data.storage import Store, open_store
from mcpl.errors import ConfigError
from mcpl.types import BankRow

FOLDER = "_scores"
RUN = "_mcpl/run.json"
TOGETHER, PICTURE = "*together", "*picture"
"""what features are of that are of no word"""
TEXT = "text"
"""the space of a word's own text-encoder output"""

Features = Mapping[tuple[str, str], np.ndarray]
"""(of, space) -> [n, width] float32"""


@dataclass(frozen=True)
class ScoreRow:
    """What was found of one picture's words."""

    id: str
    status: Literal["learned", "failed"]
    """learned stands for scored: the fan-out counts rows by a bank's words"""
    key: str
    evaluation: str
    base_digest: str
    reason: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    features: Features = field(default_factory=dict, repr=False)
    commit: str = ""
    seconds: float = 0.0
    host: str = ""
    scored_at: str = ""


def encode(rows: Sequence[ScoreRow]) -> bytes:
    """The rows as one Parquet file; the same rows give the same bytes."""
    records = [
        {
            **{name: getattr(row, name) for name in SCORES.names if name not in ("metrics", "features")},
            "metrics": sorted(row.metrics.items()),
            "features": [
                {"of": of, "space": space, "count": len(values), "values": np.asarray(values, "<f4").tobytes()}
                for (of, space), values in row.features.items()
            ],
        }
        for row in rows
    ]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records, SCORES), buffer, compression="zstd")
    return buffer.getvalue()


def decode(file: BinaryIO, name: str = "the scores' file", features: bool = True) -> list[ScoreRow]:
    """The rows of an open Parquet file, without features where they are not wanted; ConfigError where it is no such
    file, damaged, or of a newer format."""
    with undamaged(name, ": delete it and run mcpl evaluate again"):
        parquet = pq.ParquetFile(file)
        version = (parquet.schema_arrow.metadata or {}).get(SCORES_VERSION_KEY)
        if version is None or int(version) > SCORES_VERSION:
            raise ConfigError(f"{name} holds no scores that this mcpl reads: delete it and run mcpl evaluate again")
        table = parquet.read([n for n in SCORES.names if features or n != "features"], use_threads=False)
    return [_row(record) for record in table.to_pylist()]


def _row(record: dict) -> ScoreRow:
    held = record.pop("features", ())
    features = {
        (each["of"], each["space"]): np.frombuffer(each["values"], "<f4").reshape(each["count"], -1) for each in held
    }
    return ScoreRow(**record | {"metrics": dict(record["metrics"]), "features": features})


@dataclass(frozen=True)
class Scores:
    """One evaluation of a bank."""

    fingerprint: str
    settings: Mapping
    """what decided it, as it was resolved"""
    store: Store

    def rows(self, features: bool = True) -> Iterator[ScoreRow]:
        """Every row, a part at a time; one that was scored again later comes again, and counts."""
        for _, rows in self.parts(features):
            yield from rows

    def parts(self, features: bool = True) -> Iterator[tuple[str, list[ScoreRow]]]:
        """Each file's rows."""
        for entry in members(self.store):
            with self.store.reader(entry.name) as file:
                yield entry.name, decode(file, self.store.join(entry.name), features)


def place(bank: Store, fingerprint: str) -> str:
    """URI of a bank's scores of this evaluation."""
    return bank.join(f"{FOLDER}/{fingerprint}")


def evaluations(bank: Store) -> list[Scores]:
    """What a bank was scored by, oldest first."""
    found = []
    for entry in bank.list(f"{FOLDER}/"):
        folder, _, name = entry.name.removeprefix(f"{FOLDER}/").partition("/")
        if name == RUN:
            run = json.loads(bank.get(entry.name))
            found.append((run["created"], Scores(folder, run["recipe"], open_store(place(bank, folder)))))
    return [scores for _, scores in sorted(found, key=lambda pair: (pair[0], pair[1].fingerprint))]


class ScoredBank(Bank):
    """A bank whose rows carry what was scored later among their metrics."""

    def rows(self, concepts: bool = True) -> Iterator[BankRow]:
        return map(self._scored, super().rows(concepts))

    def row(self, id: str) -> BankRow:
        return self._scored(super().row(id))

    def _scored(self, row: BankRow) -> BankRow:
        return replace(row, metrics={**row.metrics, **self.later.get((row.id, row.provenance.key), {})})

    def summary(self) -> BankSummary:
        """The bank's, each row with its later scores in place of its own: an evaluation may be of some rows only."""
        own, later = super().summary(), self.later
        if not later:
            return own
        values: dict[str, list[float]] = {}
        for row in self.table(["id", "key", "metrics"]).to_pylist():
            for name, value in {**dict(row["metrics"]), **later.get((row["id"], row["key"]), {})}.items():
                if not np.isnan(value):
                    values.setdefault(name, []).append(value)
        return replace(own, metrics={name: float(np.mean(each)) for name, each in sorted(values.items())})

    @cached_property
    def later(self) -> dict[tuple[str, str], dict[str, float]]:
        """(picture, key of its learned row) -> its metrics"""
        found: dict[tuple[str, str], dict[str, float]] = {}
        for scores in evaluations(self._store):
            for row in scores.rows(features=False):
                found.setdefault((row.id, row.key), {}).update(row.metrics)
        return found


class LearnedRows(Dataset):
    """A bank's learned rows as something to work through: planned, leased and read like a dataset's.

    A reference counts learned rows only, so a failure that is learned later adds a row and moves none.
    """

    kind, columns, rejected = "bank", ("id",), ()

    def __init__(self, store: Store):
        self.uri, self._store = store.uri, store
        self._group = lru_cache(maxsize=2)(self._read_group)

    @staticmethod
    def open(uri: str, kind: str | None = None) -> LearnedRows:
        """The rows of the bank at a root. Nothing is listed before it is asked for."""
        return LearnedRows(open_store(uri))

    @property
    def count(self) -> int:
        return len(self.ids())

    @property
    def digest(self) -> str:
        """Changes when learned rows come, and not when parts are joined."""
        return hashlib.sha256("\n".join(self.ids()).encode()).hexdigest()[:16]

    def ids(self) -> list[str]:
        return [id for _, _, ids in self._learned for id in ids]

    def load(self, ref: ShardRef) -> Iterator[tuple[BankRow, list[Rejected]]]:
        table = self._group(ref.file, ref.row_group)
        if ref.stop > len(table):
            raise IndexError(f"{ref.file} holds {len(table)} learned rows in group {ref.row_group}")
        return ((row, []) for row in rows_of(table.slice(ref.start, ref.rows)))

    def _groups(self) -> Iterator[tuple[str, int, int]]:
        return ((file, group, len(ids)) for file, group, ids in self._learned if ids)

    @cached_property
    def _learned(self) -> list[tuple[str, int, list[str]]]:
        """(file, row group, ids of its learned rows), in the bank's order."""
        found = []
        for entry in members(self._store):
            with self._store.reader(entry.name) as file, readable(self._store.join(entry.name)):
                parquet = pq.ParquetFile(file)
                for group in range(parquet.num_row_groups):
                    table = parquet.read_row_group(group, ["id", "status"], use_threads=False)
                    found.append((entry.name, group, _only_learned(table)["id"].to_pylist()))
        return found

    def _read_group(self, file: str, group: int) -> pa.Table:
        with self._store.reader(file) as opened, readable(self._store.join(file)):
            return _only_learned(pq.ParquetFile(opened).read_row_group(group, use_threads=False))


def _only_learned(table: pa.Table) -> pa.Table:
    return table.filter(pc.equal(table["status"], "learned"))
