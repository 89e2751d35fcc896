"""Parts of a build: the same bytes whoever writes them, in whatever order, and whatever was there before."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from mcpl.data.dataset import UNFINISHED
from mcpl.data.sources import Dataset, build_dataset, scenes, validate, write_dataset
from mcpl.data.storage import open_store
from mcpl.data.writing import Part, Written
from mcpl.errors import ConfigError

from .conftest import png, tar_bytes

SMALL = {"rows_per_file": 4, "row_group": 2}


@pytest.fixture(params=["local", "s3"])
def place(request, tmp_path) -> str:
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket")


@pytest.fixture
def source(place) -> Dataset:
    """11 rows in a tar, one picture cut short, one empty, one sentence empty; and a picture without a sentence."""
    members: dict[str, bytes] = {}
    for i in range(11):
        members[f"{i}.png"] = {3: png()[:40], 9: b""}.get(i, png((i, 0, 0)))
        members[f"{i}.txt"] = b" " if i == 8 else f"a red <ball> of {i}".encode()
    members["lost.png"] = png()
    open_store(f"{place}/tars").put("a.tar", tar_bytes(members))
    return Dataset.open(f"{place}/tars")


def content(uri: str) -> dict[str, bytes]:
    store = open_store(uri)
    return {entry.name: store.get(entry.name) for entry in store.list()}


def backwards(write, parts):
    return [write(part) for part in reversed(list(parts))]


def at_once(write, parts):
    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(write, parts))


def test_whoever_writes_the_parts_writes_the_same_bytes(source, place):
    first = build_dataset(source, f"{place}/one", **SMALL)
    assert (first.rows, first.files, first.faults.lost) == (8, 3, 4)
    assert first.faults.kinds == {
        "no sentence": 1,
        "not a picture": 1,
        "empty sentence": 1,
        "the picture is empty (… bytes)": 1,
    }
    for name, each in (("two", backwards), ("three", at_once)):
        again = build_dataset(source, f"{place}/{name}", each=each, **SMALL)
        assert content(again.uri) == content(first.uri)
        assert (again.rows, again.files, again.bytes, again.faults) == (8, 3, first.bytes, first.faults)
    built = Dataset.open(first.uri)
    assert built.ids() == [f"a/{i}" for i in (0, 1, 2, 4, 5, 6, 7, 10)]
    assert [shard.rows for shard in built.shards(64)] == [2, 1, 2, 2, 1], (
        "row groups of 2, files of 4 rows of the source"
    )
    assert validate(first.uri).ok


def test_an_interrupted_build_goes_on_where_it_was(source, place):
    whole = build_dataset(source, f"{place}/whole", **SMALL)
    made: list[str] = []

    def dies(write, parts):
        for part in list(parts)[:2]:
            yield write(part)
        raise KeyboardInterrupt

    def notes(write, parts):
        for part in parts:
            made.append(part.name)
            yield write(part)

    out = f"{place}/out"
    with pytest.raises(KeyboardInterrupt):
        build_dataset(source, out, each=dies, **SMALL)
    with pytest.raises(ConfigError, match="did not finish"):
        Dataset.open(out)
    with pytest.raises(ConfigError, match="another build was begun here"):
        build_dataset(source, out, rows_per_file=4, row_group=3)
    seen: list[Written] = []
    report = build_dataset(source, out, each=notes, on_part=seen.append, **SMALL)
    assert made == ["data-00002.parquet"], "what was there is not made again"
    assert content(out) == content(whole.uri)
    assert (report.rows, report.files, report.bytes, report.faults) == (8, 3, whole.bytes, whole.faults)
    assert sum(part.rows + part.faults.lost for part in seen) == 11, "a progress bar ends at the end"


def test_a_finished_dataset_is_compared_and_anything_else_refused(source, place):
    first = build_dataset(source, f"{place}/out", **SMALL)
    before = content(first.uri)
    assert build_dataset(source, first.uri, **SMALL) == first
    with pytest.raises(ConfigError, match="differs"):
        build_dataset(source, first.uri, check=False, **SMALL)
    with pytest.raises(ConfigError, match="another, larger dataset"):
        build_dataset(source, first.uri, rows_per_file=8)
    assert content(first.uri) == before
    open_store(f"{place}/mine").put("letter.txt", b"dear")
    with pytest.raises(ConfigError, match="holds other files"):
        build_dataset(source, f"{place}/mine")


def test_two_builds_at_once_end_as_one(source, tmp_path, place):
    if place != str(tmp_path):
        pytest.skip("the simulated S3 server's conditional writes are not atomic")
    alone = build_dataset(source, f"{place}/alone", **SMALL)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(build_dataset, source, f"{place}/out", **SMALL) for _ in range(2)]
    assert {future.result().faults.lost for future in both} == {4}
    assert content(f"{place}/out") == content(alone.uri)


def test_ids_that_stood_before_are_rejected_across_parts(tmp_path):
    for name in ("a", "b"):
        write_dataset(scenes(5), tmp_path / "in" / name)
    report = build_dataset(Dataset.open(tmp_path / "in"), tmp_path / "out", each=backwards, **SMALL)
    assert report.rows == 5 and report.faults.kinds == {"its image_id is empty or taken": 5}
    assert list(Dataset.open(tmp_path / "out").examples()) == list(scenes(5))
    assert report.files == 3 and Dataset.open(tmp_path / "out").shards(64)[-1].file == "data-00001.parquet"


def test_nothing_usable_leaves_nothing_behind(tmp_path):
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "a.tar").write_bytes(tar_bytes({"1.png": b"x", "1.txt": b"a <cat>"}))
    with pytest.raises(ConfigError, match="no usable example .a/1: not a picture"):
        build_dataset(Dataset.open(tmp_path / "tars"), tmp_path / "out")
    assert content(str(tmp_path / "out")) == {}


def test_a_file_is_closed_when_it_is_heavy(tmp_path):
    report = build_dataset(scenes(6), tmp_path, row_group=2, bytes_per_file=2 * scenes(6).weigh(scenes(6).shards(2)[0]))
    assert report.files == 2, "four pictures and two"
    assert list(Dataset.open(tmp_path).examples()) == list(scenes(6))


def test_a_part_holds_its_own_rows_alone(tmp_path):
    """What is sent to a worker must not grow with the dataset."""
    import pickle

    sizes = {}
    for count in (8, 200):
        members = {f"{i}.{ending}": b"x" for i in range(count) for ending in ("png", "txt")}
        (tmp_path / f"{count}.tar").write_bytes(tar_bytes(members))
        parts: list[Part] = []
        with pytest.raises(ConfigError, match="no usable"):
            build_dataset(
                Dataset.open(tmp_path / f"{count}.tar"),
                tmp_path / f"out-{count}",
                each=lambda write, all, parts=parts: parts.extend(all) or map(write, all),
                **SMALL,
            )
        assert len(parts) == count // 4
        sizes[count] = len(pickle.dumps(parts[0]))
    assert sizes[200] < 1.1 * sizes[8]


def test_the_marker_says_what_decides_the_bytes(tmp_path):
    def stops(write, parts):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_dataset(scenes(3), tmp_path, each=stops)
    assert b'"row_group": 64' in content(str(tmp_path))[UNFINISHED]
    with pytest.raises(ConfigError, match="another build was begun here"):
        build_dataset(scenes(3, seed=1), tmp_path)
    assert build_dataset(scenes(3), tmp_path).rows == 3
