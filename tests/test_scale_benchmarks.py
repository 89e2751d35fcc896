"""The benchmarks of the fan-out measure what they say: rows of a real size, hand-worked paces, memory by role."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from benchmarks.chaos import operation_of, shares, storage_plans
from benchmarks.control_plane import Idle, memory_by_role, queue_speed, write_dataset
from benchmarks.fanout_efficiency import pace
from mcpl.config import Placement, Recipe
from mcpl.data.bank import decode, encode
from mcpl.data.dataset import Dataset


def test_the_idle_learner_makes_rows_as_large_as_real_ones(tmp_path):
    """Two words of 768 float32 and four maps of 256 bytes cannot be pressed together: they are random and differ."""
    write_dataset(tmp_path / "dataset", 100)
    dataset = Dataset.open(tmp_path / "dataset")
    dataset.check_ids()
    examples = list(dataset.examples())
    assert len(examples) == 100 and len(examples[0].image) == 4096
    rows = Idle(Recipe(), Placement())(examples)
    data = encode(rows)
    assert len(data) / 100 > 2 * 768 * 4 * 0.9 + 4 * 256
    assert [row.id for row in decode(data)] == [example.id for example in examples]


def test_pace_leaves_out_the_start(tmp_path):
    """Two processes: 8 pictures in 4 s and 4 in 4 s after their first packs; both had loaded 7 s after the start."""
    (tmp_path / "1.txt").write_text("106.0 0\n109.0 4\n111.0 4\n113.0 4\n")
    (tmp_path / "2.txt").write_text("107.0 0\n110.0 4\n114.0 4\n")
    (tmp_path / "3.txt").write_text("107.0 0\n110.0 4\n")  # one pack: no steady state
    assert pace(tmp_path, 100.0) == {"processes": 2, "pictures_per_s": pytest.approx(3.0), "start_up_s": 7.0}


def test_memory_and_queue_are_looked_at():
    assert 50 < memory_by_role()["driver"] < 20_000
    assert queue_speed(3, shards=200) > 200


def test_the_faults_of_a_chaos_run_are_as_many_as_asked_and_drawn_by_the_seed():
    todo = shares(200)
    assert sum(kinds.total() for kinds in todo.values()) == 200
    assert todo["kill"].total() == 60 and min(todo["kill"].values()) == 8
    plans = storage_plans(todo["storage"], random.Random(1))
    assert plans == storage_plans(todo["storage"], random.Random(1)) != storage_plans(todo["storage"], random.Random(2))
    injected = Counter(f"{operation} {fault}" for operation, plan in plans.items() for fault in plan[2::3])
    assert injected == todo["storage"]
    assert all(fault == "forward" for plan in plans.values() for at, fault in enumerate(plan) if at % 3 < 2)


def test_a_listing_is_told_from_a_read():
    assert operation_of("GET", "/chaos?list-type=2&prefix=bank%2Fpart-&encoding-type=url") == "LIST"
    assert operation_of("GET", "/chaos/bank/part-00000.parquet") == "GET"
    assert operation_of("HEAD", "/chaos/bank/part-00000.parquet") == "HEAD"
