"""The plan of a run: which rows make which part. Written once at the output's root, extended by generations.

    _mcpl/run.json                 the resolved recipe, its fingerprint, the shard size, the dataset it began with
    _mcpl/base.json                digest of the frozen base, claimed by the first worker that loads it
    _mcpl/manifest-00000.parquet   generation 0: a row per shard; 00001, ... for rows added later or tried again
    _mcpl/tally.json               learned/failed/skipped of finished shards; a cache, never believed over a listing
    _mcpl/compact.json             how many shards share a compact file, once the run has been compacted
    part-00000042.parquet          the rows of shard 42, whoever learned them, however often
    part-compact-00000000-00000063.parquet    the rows of these shards; their parts, if any, count for nothing

A part's name and rows are fixed before anybody starts, so two workers on one shard can only ever make one part.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mcpl.data.bank import members, outcomes, part_name, shards_of
from mcpl.data.dataset import ShardRef
from mcpl.data.groups import jobs
from mcpl.errors import BankMismatch, ConfigError

if TYPE_CHECKING:
    from mcpl.config import Recipe
    from mcpl.data.dataset import Dataset
    from mcpl.data.storage import Store

RUN = "_mcpl/run.json"
BASE = "_mcpl/base.json"
TALLY = "_mcpl/tally.json"
COMPACT = "_mcpl/compact.json"
VERSION = 1

_MANIFEST = re.compile(r"_mcpl/manifest-(\d{5})\.parquet")

Reason = Literal["first", "grown", "retry"]


@dataclass(frozen=True, slots=True)
class Tally:
    """Outcome of one finished shard, in rows of the bank: a picture each, or a group."""

    learned: int = 0
    failed: int = 0
    skipped: int = 0

    @property
    def rows(self) -> int:
        return self.learned + self.failed + self.skipped

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.learned + other.learned, self.failed + other.failed, self.skipped + other.skipped)

    @classmethod
    def of(cls, statuses: Iterable[str]) -> Tally:
        counted = {"learned": 0, "failed": 0, "skipped": 0}
        for status in statuses:
            counted[status] += 1
        return cls(**counted)


@dataclass(frozen=True, slots=True)
class Shard:
    """Rows that are leased, learned and committed together; its number is its part's name."""

    number: int
    ref: str
    """JSON of the dataset's ShardRef, or of several where groups lie in several"""
    ids: tuple[str, ...]
    """what to learn, among what the reference reads: a picture's id, or a group's name"""

    @property
    def refs(self) -> tuple[ShardRef, ...]:
        told = json.loads(self.ref)
        return tuple(ShardRef(**one) for one in (told if isinstance(told, list) else [told]))

    @property
    def part(self) -> str:
        return part_name(self.number)


@dataclass(frozen=True)
class Generation:
    """What one planning added: the first dataset, the rows it grew by, or recorded failures to try again."""

    number: int
    reason: Reason
    dataset_digest: str
    first: int
    """number of its first shard; the others follow without gaps"""
    table: pa.Table = field(repr=False)
    """a row per shard: ref, ids. Kept as columns, since a million ids as Python strings are 100 MB"""

    @property
    def numbers(self) -> range:
        return range(self.first, self.first + len(self.table))

    def sizes(self) -> dict[int, int]:
        """Shard number -> its rows."""
        return dict(zip(self.numbers, self.table["ids"].combine_chunks().value_lengths().to_pylist(), strict=True))

    def shard(self, number: int) -> Shard:
        row = number - self.first
        return Shard(number, self.table["ref"][row].as_py(), tuple(self.table["ids"][row].as_py()))


@dataclass(frozen=True)
class Plan:
    """A run's identity and all its generations."""

    fingerprint: str
    dataset: str
    shard_size: int
    generations: tuple[Generation, ...]

    @property
    def rows(self) -> int:
        """Rows in the bank when the plan is done: pictures and groups; what is tried again is still one."""
        return sum(sum(g.sizes().values()) for g in self.generations if g.reason != "retry")

    def sizes(self) -> dict[int, int]:
        """Shard number -> its rows, in the order of work."""
        return {number: size for generation in self.generations for number, size in generation.sizes().items()}

    def shard(self, number: int) -> Shard:
        for generation in self.generations:
            if number in generation.numbers:
                return generation.shard(number)
        raise KeyError(f"shard {number} is not in this plan")


def open_plan(store: Store, dataset: Dataset, recipe: Recipe, shard_size: int) -> Plan:
    """The plan in `store`, made if there is none, extended if the dataset has grown.

    A row is known by its id: a picture that changed under its old id, or a group that grew, is not learned again.
    Raises BankMismatch where the output holds another recipe's run or something that is no run; ConfigError where ids
    repeat or the dataset holds nothing. Several callers at once end with the same plan.
    """
    check_recipe(store, recipe)
    if _read_json(store, RUN) is None:
        dataset.check_ids()
        if not dataset.count:
            raise ConfigError(f"{dataset.uri} holds no rows")
        content = {
            "version": VERSION,
            "recipe": recipe.model_dump(mode="json"),
            "fingerprint": recipe.fingerprint,
            "dataset": dataset.uri,
            "dataset_digest": dataset.digest,
            "shard_size": shard_size,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        store.put_if_absent(RUN, json.dumps(content, indent=1).encode())
    check_recipe(store, recipe)
    plan = read_plan(store)
    while not plan.generations or plan.generations[-1].dataset_digest != dataset.digest:
        dataset.check_ids()
        plan = _append(store, plan, "grown" if plan.generations else "first", dataset, _new_rows(store, plan, dataset))
    return plan


def check_recipe(store: Store, recipe: Recipe) -> None:
    """Raises BankMismatch where the output belongs to another recipe's run. An empty output is nobody's."""
    run = _read_json(store, RUN)
    if run is None:
        if parts_present(store):
            raise BankMismatch(f"{store.uri} holds parts but no {RUN}, so it is no run to resume; use another --output")
        return
    if run.get("version") != VERSION:
        raise BankMismatch(
            f"{store.uri} has layout {run.get('version')}, this program knows {VERSION}; use another --output"
        )
    if run["fingerprint"] != recipe.fingerprint:
        raise BankMismatch(
            f"{store.uri} holds a run of recipe '{run['recipe'].get('name')}' ({run['fingerprint']}), this is recipe"
            f" '{recipe.name}' ({recipe.fingerprint}){_difference(run['recipe'], recipe)}; use another --output, or"
            " resume with that recipe"
        )


def claim_base(store: Store, name: str, digest: str) -> None:
    """Record which frozen base this run learns on. Raises BankMismatch where it began on another one."""
    if store.put_if_absent(BASE, json.dumps({"base": name, "base_digest": digest}).encode()):
        return
    there = json.loads(store.get(BASE))
    if there["base_digest"] != digest:
        raise BankMismatch(
            f"{store.uri} was begun on base '{there['base']}' ({there['base_digest']}), here '{name}' is another one"
            f" ({digest}); use another --output, or resume with that base"
        )


def base_of(store: Store) -> tuple[str, str | None] | None:
    """Name and revision of the base that the output's run began with (its digest is in base.json); None without one."""
    run = _read_json(store, RUN)
    return None if run is None else (run["recipe"]["base"], run["recipe"].get("revision"))


def totals(store: Store, plan: Plan, tallies: Mapping[int, Tally]) -> Tally:
    """Pictures by their latest outcome; those that were tried again by id, read from every part that holds one."""
    total = sum(tallies.values(), Tally())
    retries = [g.table["ids"].combine_chunks().flatten() for g in plan.generations if g.reason == "retry"]
    if not retries:
        return total
    again, read = pa.concat_arrays(retries), _reader(store)
    tried, latest, replaced = set(again.to_pylist()), {}, []
    for generation in plan.generations:
        ids = generation.table["ids"].combine_chunks()
        rows = pc.list_parent_indices(ids).filter(pc.is_in(ids.flatten(), again)).unique()
        for number in (generation.first + row for row in rows.to_pylist()):
            for id, status in read(number) if number in tallies else ():
                if id in tried:
                    replaced += [latest[id]] if id in latest else []
                    latest[id] = status
    before = Tally.of(replaced)
    return Tally(total.learned - before.learned, total.failed - before.failed, total.skipped - before.skipped)


def add_retries(store: Store, plan: Plan, dataset: Dataset, tallies: Mapping[int, Tally]) -> Plan:
    """Plan every row again whose latest outcome is a failure, in parts of its own; no failure changes nothing."""
    failed = _failed_ids(store, plan, tallies)
    again = [(plan.shard(number).ref, ids) for number, ids in sorted(failed.items())]
    return _append(store, plan, "retry", dataset, again) if again else plan


def replan(store: Store, plan: Plan, shards: Mapping[int, Sequence[str]]) -> None:
    """Let shards that are not in storage have these of their rows only; one left out that comes again is a new row."""
    for generation in plan.generations:
        if shards.keys().isdisjoint(generation.numbers):
            continue
        before = generation.table["ids"].to_pylist()
        after = [list(shards.get(number, ids)) for number, ids in zip(generation.numbers, before, strict=True)]
        if after != before:
            table = generation.table.set_column(1, _SCHEMA.field("ids"), pa.array(after, _SCHEMA.field("ids").type))
            store.put(_manifest(generation.number), _encode(table, generation.reason, ""))


def read_plan(store: Store) -> Plan:
    """The plan as stored. Raises ConfigError where there is none."""
    run = _read_json(store, RUN)
    if run is None:
        raise ConfigError(f"{store.uri} holds no run: {RUN} is missing")
    generations: list[Generation] = []
    for entry in store.list("_mcpl/manifest-"):
        if match := _MANIFEST.fullmatch(entry.name):
            first = generations[-1].numbers.stop if generations else 0
            generations.append(_decode(int(match[1]), first, store.get(entry.name)))
    return Plan(run["fingerprint"], run["dataset"], run["shard_size"], tuple(generations))


def parts_present(store: Store) -> set[int]:
    """Numbers of the shards whose rows are in storage: the truth about what is done."""
    return {shard for entry in members(store) for shard in shards_of(entry.name)}


def read_tallies(store: Store, plan: Plan) -> dict[int, Tally]:
    """Outcome of every shard whose rows are in storage: from the cache, else from the file's status column."""
    cached = {number: Tally(*counts) for number, *counts in (_read_json(store, TALLY) or {"shards": []})["shards"]}
    planned, found = plan.sizes().keys(), {}
    for entry in members(store):
        shards = planned & shards_of(entry.name)
        if not shards <= cached.keys():
            if len(shards) == 1:
                cached |= {shard: tally_part(store, shard) for shard in shards}
            else:
                cached |= {shard: _tally(rows) for shard, rows in outcomes(store, entry.name).items()}
        found |= {shard: cached[shard] for shard in shards}
    return found


def tally_part(store: Store, shard: int) -> Tally:
    """The outcome of a shard that is in storage. FileNotFoundError where it is not."""
    try:
        return _tally(outcomes(store, part_name(shard))[shard])
    except FileNotFoundError:
        if _read_json(store, COMPACT) is None:  # never compacted: no listing of a million pictures' parts at each lease
            raise
        for entry in store.list("part-compact-"):
            if shard in shards_of(entry.name):
                return _tally(outcomes(store, entry.name)[shard])
        raise


def _tally(rows: Iterable[tuple[str, str]]) -> Tally:
    return Tally.of(status for _, status in rows)


def write_tallies(store: Store, tallies: Mapping[int, Tally]) -> None:
    rows = [[number, tally.learned, tally.failed, tally.skipped] for number, tally in sorted(tallies.items())]
    store.put(TALLY, json.dumps({"shards": rows}, separators=(",", ":")).encode())


def _new_rows(store: Store, plan: Plan, dataset: Dataset) -> Iterator[tuple[str, Sequence[str]]]:
    """(reference, ids) of each shard's jobs that no earlier generation planned."""
    known = {id for g in plan.generations for id in g.table["ids"].combine_chunks().flatten().to_pylist()}
    for refs, ids in jobs(dataset, plan.shard_size):
        new = [id for id in ids if id not in known]
        if new:
            told = [asdict(ref) for ref in refs]
            yield json.dumps(told if len(told) > 1 else told[0], separators=(",", ":")), new


def _append(
    store: Store, plan: Plan, reason: Reason, dataset: Dataset, shards: Iterable[tuple[str, Sequence[str]]]
) -> Plan:
    """Store one more generation. Where somebody else stored one first, theirs is the plan and ours is dropped."""
    refs, ids = [], []
    for ref, its in shards:
        refs.append(ref)
        ids.append(list(its))
    table = pa.table({"ref": refs, "ids": ids}, schema=_SCHEMA)
    store.put_if_absent(_manifest(len(plan.generations)), _encode(table, reason, dataset.digest))
    return read_plan(store)


def _manifest(number: int) -> str:
    return f"_mcpl/manifest-{number:05d}.parquet"


def _encode(table: pa.Table, reason: Reason, dataset_digest: str) -> bytes:
    buffer = io.BytesIO()
    about = {"mcpl.reason": reason, "mcpl.dataset_digest": dataset_digest}
    pq.write_table(table.replace_schema_metadata(about), buffer, compression="zstd")
    return buffer.getvalue()


_SCHEMA = pa.schema([("ref", pa.string()), ("ids", pa.list_(pa.string()))])


def _decode(number: int, first: int, data: bytes) -> Generation:
    table = pq.read_table(io.BytesIO(data))
    about = table.schema.metadata
    return Generation(number, about[b"mcpl.reason"].decode(), about[b"mcpl.dataset_digest"].decode(), first, table)


def _failed_ids(store: Store, plan: Plan, tallies: Mapping[int, Tally]) -> dict[int, list[str]]:
    """Shard -> its rows whose latest outcome is a failure that no unfinished retry covers yet.

    Reads only the parts that hold a failure or tried one again.
    """
    rows, latest = _reader(store), {}
    for generation in plan.generations:
        for number in generation.numbers:
            if number not in tallies:
                for id in generation.shard(number).ids if generation.reason == "retry" else ():
                    latest.pop(id, None)
            elif tallies[number].failed or generation.reason == "retry":
                for id, status in rows(number):
                    latest.pop(id, None)
                    if status == "failed":
                        latest[id] = number
    found: dict[int, list[str]] = {}
    for id, number in latest.items():
        found.setdefault(number, []).append(id)
    return found


def _reader(store: Store) -> Callable[[int], list[tuple[str, str]]]:
    """(id, status) of the rows of a shard that is in storage."""
    places = _places(store)
    read = lru_cache(maxsize=2)(lambda name: outcomes(store, name))  # neighbours often share a compact file

    def rows(number: int) -> list[tuple[str, str]]:
        try:
            return read(places[number])[number]
        except FileNotFoundError:  # joined into a compact file since it was listed
            places.update(_places(store))
            return read(places[number])[number]

    return rows


def _places(store: Store) -> dict[int, str]:
    """Shard -> the file that holds its rows."""
    return {shard: entry.name for entry in members(store) for shard in shards_of(entry.name)}


def _read_json(store: Store, name: str) -> dict | None:
    try:
        return json.loads(store.get(name))
    except FileNotFoundError:
        return None


def _difference(there: Mapping, recipe: Recipe) -> str:
    """Names the settings in which two recipes differ, where they are few."""
    here = recipe.model_dump(mode="json")
    names = [name for name in sorted({*there, *here} - {"name"}) if there.get(name) != here.get(name)]
    return f", differing in {', '.join(names)}" if 0 < len(names) <= 5 else ""
