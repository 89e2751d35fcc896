from __future__ import annotations

import dataclasses
import io
import itertools
import math
import threading

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpl.data.bank import COMPARED_COLUMNS, UNCOMPARED_COLUMNS, Bank, ahead, decode, encode, outcomes, part_name
from mcpl.data.schema import BANK
from mcpl.data.storage import S3Store, open_store
from mcpl.errors import ConfigError
from mcpl.types import BankRow, Concept, CurvePoint, LearnedConcept, LearnedConcepts, Provenance

PROVENANCE = Provenance("paper", "f" * 16, "scenes-v1", "d" * 16, 7, "abc1234", "1" * 64, "2" * 64)


def learned_row(id="a", slugs=("bear", "board"), width=6, vectors=2, seed=0, **values) -> BankRow:
    """A learned row with attention maps on the grid that a bank keeps."""
    draw = torch.Generator().manual_seed(seed)

    def attention():
        return torch.randint(0, 256, (4, 4), generator=draw).to(torch.float32) / 255

    concepts = tuple(
        LearnedConcept(
            Concept(slug, "toy", ("brown",)),
            torch.randn(vectors, width, generator=draw),
            attention(),
            attention(),
        )
        for slug in slugs
    )
    curve = (CurvePoint(0, 1.5, 1.0, 0.4, 0.0), CurvePoint(25, 0.5, 0.25, 0.5, 0.125))
    learned = LearnedConcepts(id, concepts, curve, {"denoising": (1.0, 0.5), "contrastive": ()}, 25, 100)
    fields = {"metrics": {"iou": 0.5, "iou_step0": 0.25}, "seconds": 1.5, "host": "h", "learned_at": "2026-01-01"}
    text = f"a brown <{slugs[0]}>"
    return BankRow(id=id, text=text, status="learned", provenance=PROVENANCE, learned=learned, **(fields | values))


def failed_row(id="b", reason="not a picture") -> BankRow:
    return BankRow(id=id, text="a <bear>", status="failed", provenance=PROVENANCE, reason=reason)


def same(one: BankRow, other: BankRow) -> bool:
    """Equality of rows, tensors and not-a-number included."""

    def plain(value):
        if isinstance(value, torch.Tensor):
            return ("tensor", tuple(value.shape), value.to(torch.float32).numpy().tobytes())
        if dataclasses.is_dataclass(value):
            return type(value).__name__, {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, tuple):
            return tuple(plain(item) for item in value)
        return "nan" if isinstance(value, float) and math.isnan(value) else value

    return plain(one) == plain(other)


words = st.text(min_size=1, max_size=8)
numbers = st.floats(allow_nan=True, allow_infinity=True)
maps = st.lists(st.integers(0, 255), min_size=9, max_size=9)


@st.composite
def concepts(draw) -> LearnedConcept:
    n, width = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    values = st.floats(width=32, allow_nan=False)
    vectors = torch.tensor(draw(st.lists(values, min_size=n * width, max_size=n * width)), dtype=torch.float32)
    concept = Concept(
        draw(words), draw(st.none() | words), tuple(draw(st.lists(words, max_size=2))), draw(st.booleans())
    )
    attention, step0 = (torch.tensor(draw(maps), dtype=torch.float32).reshape(3, 3) / 255 for _ in range(2))
    return LearnedConcept(concept, vectors.reshape(n, width), attention, step0)


@st.composite
def rows(draw) -> BankRow:
    id, learned = draw(words), None
    status = draw(st.sampled_from(["learned", "failed", "skipped"]))
    if status == "learned":
        points = st.builds(CurvePoint, st.integers(0, 9999), numbers, numbers, numbers, numbers)
        learned = LearnedConcepts(
            id,
            tuple(draw(st.lists(concepts(), max_size=3))),
            tuple(draw(st.lists(points, max_size=3))),
            draw(st.dictionaries(words, st.lists(numbers, max_size=3).map(tuple), max_size=2)),
            draw(st.integers(0, 10_000)),
            draw(st.integers(0, 2**40)),
        )
    reason = None if learned else draw(words)
    metrics = draw(st.dictionaries(words, numbers, max_size=3))
    return BankRow(id, draw(st.text()), status, PROVENANCE, reason, learned, metrics, draw(st.floats(0, 1e6)), "h", "t")


@settings(max_examples=40, deadline=None)
@given(st.lists(rows(), max_size=3))
def test_rows_come_back_as_they_went_in(written):
    data = encode(written)
    read = decode(data)
    assert len(read) == len(written) and all(map(same, read, written))
    assert encode(read) == data


def test_same_rows_same_bytes_whatever_the_order_of_their_mappings():
    row = learned_row()
    turned = dataclasses.replace(row, metrics=dict(reversed(row.metrics.items())))
    assert encode([row, failed_row()]) == encode([turned, failed_row()])


def test_attention_is_kept_to_half_of_a_255th():
    row = learned_row()
    exact = torch.linspace(0, 1, 16).reshape(4, 4)
    concept = dataclasses.replace(row.learned.concepts[0], attention=exact)
    row = dataclasses.replace(row, learned=dataclasses.replace(row.learned, concepts=(concept,)))
    [read] = decode(encode([row]))
    assert (read.learned.concepts[0].attention - exact).abs().max() <= 0.5 / 255 + 1e-7


def test_times_and_hosts_are_the_only_columns_that_are_not_compared():
    assert UNCOMPARED_COLUMNS == ("seconds", "host", "learned_at")
    assert BANK.names == [*COMPARED_COLUMNS, *UNCOMPARED_COLUMNS]


def write_parts(uri, *parts) -> str:
    store = open_store(uri)
    for number, part in enumerate(parts):
        assert store.put_if_absent(part_name(number), encode(part))
    return str(uri)


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path) -> str:
    if request.param == "local":
        return str(tmp_path / "bank")
    return request.getfixturevalue("bucket") + "/run/bank"


def test_a_bank_finds_pictures_and_words(root):
    parts = [learned_row("a"), failed_row("b")], [learned_row("c/../d", ("bear",), seed=1)]
    bank = Bank.open(write_parts(root, *parts))
    assert bank.ids() == ["a", "b", "c/../d"] and len(bank) == 3
    assert same(bank.row("a"), parts[0][0]) and bank.row("b").reason == "not a picture"
    assert [row.id for row in bank.rows()] == bank.ids()
    for row, narrow in zip(bank.rows(), bank.rows(concepts=False), strict=True):  # all but the words
        learned = row.learned and dataclasses.replace(row.learned, concepts=())
        assert narrow == dataclasses.replace(row, learned=learned)
    assert [(hit.id, hit.slug) for hit in bank.search("<Bear>")] == [("a", "bear"), ("c/../d", "bear")]
    assert len(bank.search("b*")) == 3 and bank.search("lion") == []
    assert bank.search("board")[0].vectors.shape == (2, 6)
    assert bank.words() == {"bear": 2, "board": 1}
    assert bank.table(["id", "status"]).to_pylist()[1] == {"id": "b", "status": "failed"}
    with pytest.raises(KeyError, match="zebra"):
        bank.row("zebra")


def test_a_word_is_found_in_one_reading_of_each_part_and_a_picture_in_its_own(tmp_path, monkeypatch):
    from mcpl.cli.bank import _in_bank

    parts = [[learned_row(f"{part}{row}", metrics={"attention_iou": part / 10}) for row in range(4)] for part in (1, 2)]
    uri = write_parts(tmp_path / "bank", *parts)
    read, whole = [], Bank._part

    def part(self, member, columns=None):
        read.append((member, columns and "concepts" in columns))
        return whole(self, member, columns)

    monkeypatch.setattr(Bank, "_part", part)
    found = _in_bank(uri, "bear", None, 0.2)
    assert [hit["image_id"] for hit in found] == ["20", "21", "22", "23"]
    row = parts[1][0]
    assert found[0]["metrics"] == row.metrics and found[0]["base_digest"] == row.provenance.base_digest
    assert read == [(0, False), (1, False), (0, True), (1, True)]
    read.clear()
    assert [hit["word"] for hit in _in_bank(uri, None, "21", None)] == ["bear", "board"]
    assert [hit["word"] for hit in _in_bank(uri, "bo*", "21", None)] == ["board"]
    assert read == 2 * [(0, False), (1, False), (1, True)]
    assert _in_bank(uri, "bear", "zebra", None) == []


def test_clusters_take_no_bound_and_write_no_hits(monkeypatch):
    from mcpl.cli.bank import bank_search

    for option in ({"min_iou": 0.3}, {"out": "hits"}):
        with pytest.raises(ConfigError, match="leave --min-iou and --out out"):
            bank_search(
                registry="words",
                clusters=3,
                word=None,
                bank=None,
                id=None,
                near=None,
                like=None,
                **{"min_iou": None, "out": None} | option,
            )


def test_the_summary_counts_and_averages(tmp_path):
    parts = (
        [learned_row("a", metrics={"iou": 0.5}), failed_row()],
        [learned_row("c", metrics={"iou": 1.0, "x": math.nan})],
    )
    summary = Bank.open(write_parts(tmp_path, *parts)).summary()
    assert summary.status == {"learned": 2, "failed": 1} and summary.reasons == {"not a picture": 1}
    assert summary.metrics == {"iou": 0.75} and summary.seconds == 3.0
    assert summary.rows == 3 and summary.words == 4 and summary.parts == 2 and summary.bytes > 0
    assert summary.recipes == {"paper ffffffffffffffff": 3}


def test_a_row_learned_again_replaces_the_earlier_one(tmp_path):
    bank = Bank.open(write_parts(tmp_path, [failed_row("a"), learned_row("b")], [learned_row("a")]))
    assert bank.row("a").status == "learned" and len(bank) == 2
    assert sorted(row.id for row in bank.rows()) == ["a", "b"]
    assert bank.summary().status == {"learned": 2}


def test_an_empty_directory_is_no_bank(tmp_path):
    for place in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ConfigError):
            Bank.open(place)


def test_temporary_and_foreign_files_are_no_parts(tmp_path):
    write_parts(tmp_path, [learned_row()])
    (tmp_path / ".tmp-part-00000001.parquet").write_bytes(b"half")
    (tmp_path / "part-1.parquet").write_bytes(b"foreign")
    assert Bank.open(tmp_path).ids() == ["a"]


@pytest.mark.parametrize("keep", [0, 3, 200, -1])
def test_a_damaged_part_is_named(tmp_path, keep):
    write_parts(tmp_path, [learned_row()], [learned_row("b")])
    damaged = tmp_path / part_name(1)
    damaged.write_bytes(damaged.read_bytes()[:keep])
    with pytest.raises(ConfigError, match=r"part-00000001\.parquet is cut short or damaged"):
        list(Bank.open(tmp_path).rows())
    with pytest.raises(ConfigError, match="delete it, and the command that made the bank learns its pictures again"):
        outcomes(open_store(tmp_path), part_name(1))


def test_foreign_parquet_and_newer_formats_are_refused(tmp_path):
    path = tmp_path / part_name(0)
    table = pq.read_table(io.BytesIO(encode([learned_row()])))
    pq.write_table(table.replace_schema_metadata({"mcpl.bank.version": "99"}), path)
    with pytest.raises(ConfigError, match="update mcpl"):
        Bank.open(tmp_path).ids()
    pq.write_table(table.replace_schema_metadata({}), path)
    with pytest.raises(ConfigError, match="no part of a bank"):
        Bank.open(tmp_path).ids()


def test_parts_of_a_bucket_are_fetched_some_at_once_and_read_in_order(bucket, monkeypatch):
    ids = [f"p{number}" for number in range(7)]
    bank = Bank.open(write_parts(f"{bucket}/bank", *([failed_row(id)] for id in ids)))
    together, calls, get = threading.Barrier(4, timeout=20), itertools.count(), S3Store.get

    def meeting(self, name):
        if next(calls) < together.parties:
            together.wait()  # broken where a part is asked for only after the one before it came
        return get(self, name)

    monkeypatch.setattr(S3Store, "get", meeting)
    assert bank.ids() == ids
    assert [row.id for row in bank.rows()] == ids


def test_what_cannot_be_read_ahead_is_told_at_its_place():
    def read(place: int) -> int:
        if place == 5:
            raise ConfigError("damaged")
        return place

    seen = []
    with pytest.raises(ConfigError, match="damaged"):
        for place in ahead(read, range(9), 4):
            seen.append(place)
    assert seen == [0, 1, 2, 3, 4]
