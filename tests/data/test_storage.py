from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpl.data import storage
from mcpl.data.storage import Entry, byte_size, locate, open_store, safe_name
from mcpl.errors import ConfigError
from tests.ports import free_port


@pytest.fixture(params=["local", "file", "s3"])
def root(request, tmp_path) -> str:
    if request.param == "s3":
        return request.getfixturevalue("bucket") + "/some/run"
    return str(tmp_path / "a run") if request.param == "local" else (tmp_path / "a run").as_uri()


def test_what_is_put_is_listed_read_and_deleted(root):
    store = open_store(root)
    assert store.list() == []
    store.put("part-1", b"one")
    store.put("parts/2", b"two")
    store.put("other", b"")
    store.put("other", b"3")
    assert store.list() == [Entry("other", 1), Entry("part-1", 3), Entry("parts/2", 3)]
    assert store.list("part") == [Entry("part-1", 3), Entry("parts/2", 3)]
    assert store.list("parts/") == [Entry("parts/2", 3)]
    assert store.get("parts/2") == b"two"
    with store.reader("part-1") as file:
        assert file.seek(1) == 1 and file.read() == b"ne" and file.read() == b""
        assert file.seek(-3, os.SEEK_END) == 0 and file.read(2) == b"on"
    store.delete("other")
    store.delete("other")
    assert store.list("o") == []
    for missing in (store.get, store.reader):
        with pytest.raises(FileNotFoundError):
            missing("other")
    assert open_store(store.uri).get("part-1") == b"one"
    assert open_store(store.join("parts")).get("2") == b"two"


def test_the_first_commit_of_a_name_stays(root):
    store = open_store(root)
    assert store.put_if_absent("a/part", b"first")
    assert not store.put_if_absent("a/part", b"second")
    assert store.get("a/part") == b"first"
    assert [entry.name for entry in store.list()] == ["a/part"]


def test_sixteen_threads_race_and_one_wins(tmp_path):
    for race in range(20):
        store, start = open_store(tmp_path), threading.Barrier(16)

        def commit(writer, store=store, race=race, start=start):
            start.wait()
            return store.put_if_absent(f"part-{race}", b"%d" % writer)

        with ThreadPoolExecutor(16) as pool:
            won = list(pool.map(commit, range(16)))
        assert sum(won) == 1
        assert store.get(f"part-{race}") == b"%d" % won.index(True)


def test_s3_racers_leave_one_whole_object(bucket):
    store = open_store(bucket)
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda i: store.put_if_absent("part", b"%d" % i * 1000), range(8)))
    assert any(won) and won[int(store.get("part")[:1])]
    assert len(store.get("part")) == 1000 and len(store.list()) == 1


def test_a_crash_before_the_link_leaves_nothing_to_see(tmp_path):
    program = (
        "import os, sys\n"
        "from mcpl.data.storage import open_store\n"
        "os.link = lambda *a: os._exit(9)\n"
        "open_store(sys.argv[1]).put_if_absent('part', b'x' * 1000)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)]).returncode == 9
    store = open_store(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1 and store.list() == []
    assert store.put_if_absent("part", b"again")


def test_a_full_disk_leaves_nothing_and_says_so(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        open_store(tmp_path).put_if_absent("part", b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_filesystem_without_hard_links_still_commits_once(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    store = open_store(tmp_path)
    assert store.put_if_absent("part", b"1") and not store.put_if_absent("part", b"2")
    assert store.get("part") == b"1" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "uri", ["http://host/x", "https://host/x", "ftp://x", "", "s3://", "s3:///x", "s3://k:secret@b/x", "s3://b/../c"]
)
def test_other_locations_are_refused_without_repeating_a_secret(uri):
    with pytest.raises(ConfigError) as caught:
        open_store(uri)
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/", ".", "a\0b", ".tmp-x", "a/.tmp-x"]
)
def test_names_that_could_leave_the_root_are_refused(root, name):
    store = open_store(root)
    for use in (
        store.get,
        store.delete,
        store.join,
        lambda n: store.put(n, b""),
        lambda n: store.put_if_absent(n, b""),
    ):
        with pytest.raises(ConfigError):
            use(name)


@settings(max_examples=200, deadline=None)
@given(st.text(), st.text())
def test_safe_names_are_one_path_part_and_tell_ids_apart(one, other):
    name = safe_name(one)
    assert storage.checked_name(name) == name and "/" not in name and name.isascii() and 0 < len(name) <= 120
    assert (name == safe_name(other)) == (one == other)


def test_safe_names_keep_plain_ids_and_bound_long_ones():
    assert safe_name("scene-0001.png") == "scene-0001.png"
    assert safe_name("../../etc/passwd") == "%2E.%2F..%2Fetc%2Fpasswd"
    long = [safe_name("é" * 500 + tail) for tail in "ab"]
    assert long[0] != long[1] and max(map(len, long)) <= 120


def test_locate_tells_files_from_roots(root):
    store = open_store(root)
    store.put("data/x.parquet", b"1")
    assert locate(store.join("data/x.parquet"))[1] == "x.parquet"
    assert locate(store.join("data/x.parquet"))[0].get("x.parquet") == b"1"
    assert locate(store.join("data"))[1] is None
    with pytest.raises(ConfigError, match="nothing is at"):
        locate(store.join("absent"))


def test_stores_can_be_sent_to_other_processes(root):
    store = open_store(root)
    store.put("a", b"1")
    assert pickle.loads(pickle.dumps(store)).get("a") == b"1"


def test_importing_the_door_imports_no_client():
    program = "import sys, mcpl.data.storage; print([m for m in ('boto3', 'pyarrow', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize("fault", ["drop", "500", "503", "lose", "slow"])
def test_a_commit_outlives_a_fault_and_knows_its_own_bytes(faulty, fault):
    store, proxy = faulty(fault, fault)
    assert store.put_if_absent("part", b"mine")
    assert store.get("part") == b"mine" and proxy.asked == (1 if fault == "slow" else 3)
    assert not store.put_if_absent("part", b"theirs")


@pytest.mark.parametrize("fault", ["501", "ignore"])
def test_a_store_without_conditional_writes_is_found_out_once(faulty, fault):
    store, proxy = faulty(*{"501": ["501"], "ignore": ["ignore", "ignore"]}[fault], probed=False)
    assert store.put_if_absent("part", b"1") and not store.put_if_absent("part", b"2")
    assert [entry.name for entry in store.list()] == ["part"]
    assert proxy.asked == {"501": 1, "ignore": 2}[fault] + 1


def test_retries_end_with_one_clear_line(faulty):
    store, _ = faulty(*["503"] * 100, seconds=0.5)
    with pytest.raises(ConnectionError, match=r"part: the store answered SlowDown \(503\) for 0.5 s") as caught:
        store.put("part", b"1")
    assert "test-secret" not in str(caught.value)


def test_a_refusal_is_not_tried_again(faulty):
    store, proxy = faulty("403")
    with pytest.raises(ConfigError, match="AccessDenied"):
        store.put("part", b"1")
    assert proxy.asked == 1


def test_an_absent_bucket_and_an_absent_server_are_told_apart(bucket, monkeypatch):
    with pytest.raises(ConfigError, match="NoSuchBucket"):
        open_store("s3://no-such-bucket-here/x").list()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(ConnectionError, match="no answer from the store"):
        open_store(bucket, retry_seconds=0.3).list()


def test_a_directory_cannot_be_made_below_a_file(tmp_path):
    Path(tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="is a file"):
        open_store(tmp_path / "file" / "run").put("a", b"")


def test_sizes_read_well():
    told = [byte_size(n) for n in (7, 7223, 999_600, 7.2e9, 7.2e14)]
    assert told == ["7 B", "7.22 kB", "1 MB", "7.2 GB", "720 TB"]
