"""The whole pipeline on a real object store, Ceph's gateway: races, crashes, lost replies, compaction, resume."""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from mcpl.config import Placement, Recipe, RunConfig
from mcpl.data.bank import COMPARED_COLUMNS, Bank
from mcpl.data.sources import write_dataset
from mcpl.data.storage import open_store
from mcpl.orchestration import fanout
from mcpl.orchestration.compaction import compact
from mcpl.types import Example
from tests.faulty import Faulty
from tests.orchestration.scenario import Scenario, eventually

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def scenario(tmp_path) -> Scenario:
    made = Scenario(tmp_path)
    made.pictures(24)
    made.run(made.config("undisturbed"))
    return made


def test_twenty_four_writers_race_and_one_wins(ceph_bucket):
    store = open_store(ceph_bucket)
    for race in range(12):
        start = threading.Barrier(24)

        def commit(writer: int, race: int = race, start: threading.Barrier = start) -> bool:
            start.wait()
            return store.put_if_absent(f"part-{race}", b"%02d" % writer * 2000)

        with ThreadPoolExecutor(24) as pool:
            won = list(pool.map(commit, range(24)))
        assert sum(won) == 1
        assert store.get(f"part-{race}") == b"%02d" % won.index(True) * 2000
    assert len(store.list("part-")) == 12


def test_what_was_acknowledged_outlives_a_crash_of_the_gateway(ceph, ceph_bucket):
    """Writers go on while the gateway is killed and started again: none fails, and nothing that was told is lost."""
    store, told = open_store(ceph_bucket, retry_seconds=60), []
    stop = threading.Event()

    def write(writer: int) -> None:
        number = 0
        while not stop.is_set():
            assert store.put_if_absent(f"{writer}-{number}", b"%d" % number * 1000)
            told.append(f"{writer}-{number}")
            number += 1

    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(write, writer) for writer in range(4)]
        for count in (20, 60):
            eventually(lambda count=count: len(told) > count, 60)
            ceph.crash_gateway()
            ceph.start_gateway()
        eventually(lambda: len(told) > 120, 60)
        stop.set()
        for writer in writers:
            writer.result()
    assert {entry.name for entry in store.list()} == set(told)
    assert all(store.get(name) == name.split("-")[1].encode() * 1000 for name in told)


@pytest.mark.parametrize("fault", ["drop", "lose", "503"])
def test_faults_before_a_real_store_change_nothing(scenario, ceph, ceph_bucket, monkeypatch, fault):
    proxy = Faulty(ceph.url, ["forward", "forward", fault] * 4)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
    output = f"{ceph_bucket}/bank"
    assert scenario.run(scenario.config(output)).learned == 24
    assert proxy.done[fault] == 4
    assert scenario.compared(output).equals(scenario.compared("undisturbed"))
    proxy.close()


def test_a_clock_an_hour_ahead_is_waited_for(ceph_bucket, monkeypatch):
    """The store refuses such signatures; when the clock is right again, the commit goes through."""
    from botocore import auth

    now, ahead = auth.get_current_datetime, [2]
    refused = []

    def jumped(*arguments, **how):
        import datetime

        told = now(*arguments, **how)
        if ahead[0]:
            ahead[0] -= 1
            refused.append(told)
            return told + datetime.timedelta(hours=1)
        return told

    store = open_store(ceph_bucket)
    assert store.put_if_absent("before", b"1")
    monkeypatch.setattr(auth, "get_current_datetime", jumped)
    assert store.put_if_absent("part", b"1")
    assert refused and store.get("part") == b"1"


def test_a_dataset_on_ceph_is_learned_by_ray_through_a_crash_compacted_and_resumed(
    ceph, ceph_bucket, tmp_path, tiny_base_dir, started
):
    """The real learner on the tiny base; dataset and bank lie in the bucket; the gateway dies in the middle."""
    texts = ("a red <star> left of a blue <ring>", "a <moon>", "a green <heart> above a thing")
    examples = [Example(f"picture/{i}", png(i), texts[i % 3]) for i in range(12)]
    write_dataset(examples, f"{ceph_bucket}/dataset", row_group=4)
    recipe = {"base": str(tiny_base_dir), "steps": 20, "batch": 2, "probe_every": 10, "probe_timesteps": 2}
    (tmp_path / "quick.yaml").write_text("".join(f"{name}: {value}\n" for name, value in recipe.items()))
    given = {"--dataset": f"{ceph_bucket}/dataset", "--output": f"{ceph_bucket}/bank", "--workers": 2, "--pack": 2}
    given |= {"--recipe": tmp_path / "quick.yaml", "--shard-size": 2}
    command = ["pipelines/train_all.py", *[word for pair in given.items() for word in pair]]
    store = open_store(f"{ceph_bucket}/bank")

    driver = started(*command)
    eventually(lambda: store.list("part-") or driver.poll() is not None, 300, "the first part")
    ceph.crash_gateway()
    ceph.start_gateway()
    assert driver.wait(400) == 0, (tmp_path / "log-0").read_text()

    config = RunConfig(
        dataset=f"{ceph_bucket}/dataset",
        output=str(tmp_path / "undisturbed"),
        recipe=Recipe(name="quick", **recipe),
        placement=Placement(shard_size=2, pack=2),
    )
    fanout.run(config, inline=True)
    expected = rows(config.output)
    assert expected.num_rows == 12 and differing(rows(store.uri), expected) == []

    sizes = [entry.size for entry in store.list("part-")]
    assert len(sizes) == 6
    assert compact(store.uri, 3 * sum(sizes) // len(sizes)).files == 2
    assert len(store.list("part-")) == 2 and differing(rows(store.uri), expected) == []
    again = fanout.run(config.model_copy(update={"output": store.uri}), inline=True)
    assert (again.new, again.resumed) == (0, 12)
    assert [hit.id for hit in Bank.open(store.uri).search("moon")] == [f"picture/{i}" for i in (1, 4, 7, 10)]


def rows(uri: str):
    return Bank.open(uri).table(list(COMPARED_COLUMNS)).sort_by("id")


def differing(found: pa.Table, expected: pa.Table) -> list[str]:
    """The columns that differ, each with the first row in which it does; empty where nothing differs at all."""
    if found["id"] != expected["id"]:
        return [f"ids {found['id'].to_pylist()}"]
    pairs = ((name, found[name].to_pylist(), expected[name].to_pylist()) for name in expected.column_names)
    return [
        f"{name}: {next((one, other) for one, other in zip(a, b, strict=True) if one != other)!s:.2000}"
        for name, a, b in pairs
        if a != b
    ]


def png(i: int) -> bytes:
    picture = np.random.default_rng(i).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()
