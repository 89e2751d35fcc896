"""A dataset built by Ray's workers, and by workers and a driver that are killed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from mcpl.data.sources import Dataset, build_dataset
from mcpl.data.storage import open_store
from mcpl.errors import ConfigError
from tests.data.conftest import png, tar_bytes

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]

SMALL = {"rows_per_file": 4, "row_group": 2}


def tars(root: str) -> Dataset:
    """Two tars of 14 rows each, one of them no picture."""
    for name in "ab":
        members: dict[str, bytes] = {}
        for i in range(14):
            members[f"{i:02d}.png"] = b"junk" if (name, i) == ("a", 5) else png((i, ord(name), 0))
            members[f"{i:02d}.txt"] = f"a red <ball> of {i}".encode()
        open_store(root).put(f"{name}.tar", tar_bytes(members))
    return Dataset.open(root)


def content(uri: str) -> dict[str, bytes]:
    store = open_store(uri)
    return {entry.name: store.get(entry.name) for entry in store.list()}


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_rays_workers_write_the_same_bytes_though_one_is_killed(kind, request, tmp_path, ray_cluster):
    from mcpl.orchestration.building import workers

    place = str(tmp_path) if kind == "local" else request.getfixturevalue("bucket")
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    killed = str(tmp_path / "killed")
    source = tars(f"{place}/in")
    alone = build_dataset(source, f"{place}/alone", **SMALL)

    def on_ray(write, parts):
        def writes(part):  # workers were started before the settings of this test's store were known
            os.environ.update(environment)
            if part.name == "data-00003.parquet" and not os.path.exists(killed):
                open(killed, "x").close()
                os.kill(os.getpid(), signal.SIGKILL)
            return write(part)

        return each(writes, parts)

    with workers(2) as each:
        report = build_dataset(source, f"{place}/out", each=on_ray, **SMALL)
    assert os.path.exists(killed) and report.files == 7 and report.rows == 27
    assert content(f"{place}/out") == content(alone.uri)
    assert (report.faults, report.bytes) == (alone.faults, alone.bytes)


def test_an_error_of_ours_comes_back_from_a_worker_as_itself(tmp_path, ray_cluster):
    from mcpl.orchestration.building import workers

    source = tars(f"{tmp_path}/in")
    build_dataset(source, tmp_path / "out", **SMALL)
    path = tmp_path / "out" / "data-00002.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    with workers(2) as each, pytest.raises(ConfigError) as caught:
        build_dataset(source, tmp_path / "out", each=each, **SMALL)
    assert (
        str(caught.value) == f"{tmp_path}/out holds another dataset (data-00002.parquet differs); give an empty place"
    )


SLOW = """
import sys, time
from mcpl.data.sources import Dataset, build_dataset
def slow(write, parts):
    for part in parts:
        yield write(part)
        time.sleep(0.3)
build_dataset(Dataset.open(sys.argv[1]), sys.argv[2], each=slow, rows_per_file=4, row_group=2)
"""


def test_a_build_that_is_killed_goes_on_where_it_was(tmp_path, started):
    source = tars(f"{tmp_path}/in")
    alone = build_dataset(source, tmp_path / "alone", **SMALL)
    out = tmp_path / "out"
    process = started("-c", SLOW, tmp_path / "in", out)
    deadline = time.monotonic() + 120
    while len(list(out.glob("data-*"))) < 3:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = {path.name: path.stat().st_mtime_ns for path in out.glob("data-*")}
    assert 3 <= len(there) < 7
    report = build_dataset(source, out, **SMALL)
    assert report.rows == 27 and content(str(out)) == content(alone.uri)
    assert there.items() <= {path.name: path.stat().st_mtime_ns for path in Path(out).iterdir()}.items()


def test_the_command_builds_on_ray_what_it_builds_alone(tmp_path, started):
    for name, workers in (("alone", 1), ("ray", 2)):
        process = started(
            "pipelines/build_dataset.py", "scenes", "--n", 5, "--workers", workers, "--out", tmp_path / name
        )
        assert process.wait(240) == 0
    assert content(f"{tmp_path}/ray") == content(f"{tmp_path}/alone") and len(content(f"{tmp_path}/ray")) == 1
