"""Storage that fails, clocks that jump, drivers that meet: whatever happens, every row is there once, as undisturbed.

Processes that are killed: tests/integration/test_fanout_ray.py; a real object store: test_real_stores.py beside it.
"""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mcpl.orchestration import fanout
from mcpl.orchestration.fanout import Orders, work
from mcpl.orchestration.plan import Tally
from mcpl.orchestration.queue import Board, LockedBoard
from tests.orchestration import stub
from tests.orchestration.scenario import Scenario, eventually

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def scenario(tmp_path) -> Scenario:
    made = Scenario(tmp_path)
    made.pictures(24)
    made.run(made.config("undisturbed"))
    return made


def undisturbed(scenario: Scenario, output: str = "bank") -> bool:
    return scenario.compared(output).equals(scenario.compared("undisturbed"))


@pytest.mark.parametrize("fault", ["drop", "lose", "503", "500", "slow"])
def test_a_store_that_fails_on_every_third_write_changes_nothing(scenario, faulty, fault):
    """`lose`: the write arrived and its reply did not, so that the next try meets 412 on its own object."""
    store, proxy = faulty(*["forward", "forward", fault] * (1 if fault == "slow" else 3))
    output = f"{store.uri}/bank"
    summary = scenario.run(scenario.config(output))
    assert (summary.learned, summary.new) == (24, 24)
    assert proxy.done[fault] == (1 if fault == "slow" else 3)
    assert undisturbed(scenario, output)
    assert scenario.run(scenario.config(output)).new == 0


def test_replies_cut_short_are_asked_for_again(scenario, faulty):
    store, proxy = faulty(*["forward", "cut", "drop"] * 3, matches=lambda method, path: method == "GET")
    output = f"{store.uri}/bank"
    assert scenario.run(scenario.config(output)).learned == 24
    assert scenario.run(scenario.config(output)).new == 0
    assert undisturbed(scenario, output)
    assert not proxy.plan


@pytest.mark.parametrize("fault", ["501", "ignore"])
def test_a_store_without_conditional_writes_holds_every_row_once(scenario, faulty, fault):
    """OpenStack Swift answers 501, others ignore the header: names and rows are the plan's, so that is harmless."""
    store, _ = faulty(*[fault] * {"501": 1, "ignore": 2}[fault], probed=False)
    output = f"{store.uri}/bank"
    assert scenario.run(scenario.config(output)).learned == 24
    assert undisturbed(scenario, output)


def test_a_full_bucket_ends_the_run_in_one_line_and_room_lets_it_go_on(scenario, faulty):
    store, _ = faulty(*["forward"] * 4, "507")  # run, manifest, base and the first part fit
    output = f"{store.uri}/bank"
    with pytest.raises(OSError, match=r"the store is full \(InsufficientStorage\); make room"):
        scenario.run(scenario.config(output))
    resumed = scenario.run(scenario.config(output))
    assert resumed.new + resumed.resumed == 24 and resumed.resumed
    assert undisturbed(scenario, output)


def test_a_full_disk_ends_the_run_and_room_lets_it_go_on(scenario, monkeypatch):
    config, original, room = scenario.config(), os.fsync, [14]

    def fsync(descriptor: int) -> None:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        room[0] -= 1
        original(descriptor)

    with monkeypatch.context() as full, pytest.raises(OSError, match="No space left"):
        full.setattr(os, "fsync", fsync)
        scenario.run(config)
    before = len(scenario.compared())
    assert 0 < before < 24
    resumed = scenario.run(config)
    assert (resumed.resumed, resumed.new) == (before, 24 - before)
    assert undisturbed(scenario)
    assert not list((scenario.root / "bank").glob(".tmp-*"))


def test_a_store_that_is_away_for_long_ends_the_run_in_one_line(scenario, faulty, monkeypatch):
    monkeypatch.setattr(fanout, "COMMIT_SECONDS", 1.0)
    store, proxy = faulty()
    output = f"{store.uri}/bank"
    scenario.tell(wait=["p0008"])
    waiting = scenario.stub_folder / "waiting-p0008"

    def leave() -> None:
        eventually(waiting.exists)
        proxy.away = True
        (scenario.stub_folder / "go-p0008").touch()

    threading.Thread(target=leave, daemon=True).start()
    with pytest.raises(ConnectionError, match="no answer from the store.*same command again"):
        scenario.run(scenario.config(output))
    proxy.away = False
    assert scenario.run(scenario.config(output)).resumed == 8
    assert undisturbed(scenario, output)


def test_the_wall_clock_may_jump(scenario, monkeypatch):
    """Years forth and back, also at the end of a lease: nothing that is counted or compared reads it."""
    draw, now = random.Random(0), time.time
    monkeypatch.setattr(time, "time", lambda: now() + draw.choice([-1, 0, 1]) * 3e8)
    assert scenario.run(scenario.config()).learned == 24
    assert undisturbed(scenario)


def test_the_boards_clock_may_jump_over_every_lease(scenario, monkeypatch):
    """A suspended machine wakes up: every lease has ended, the holders live, and their shards may be done twice."""
    monkeypatch.setattr(fanout, "HEARTBEAT_SECONDS", 0.02)
    scenario.tell(seconds=0.05)
    config = scenario.config()
    fanout.plans.open_plan(
        fanout.open_store(config.output),
        fanout.Dataset.open(config.dataset),
        config.recipe,
        config.placement.shard_size,
    )
    jumped = [0.0]
    board = LockedBoard(Board(config.output, clock=lambda: time.monotonic() + jumped[0]))
    orders = Orders(config.dataset, config.output, config.recipe, config.placement, stub.NAME)
    workers = [threading.Thread(target=work, args=(board, rank, orders)) for rank in range(2)]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        jumped[0] += 3600
        board.snapshot()
        time.sleep(0.1)
    assert board.snapshot().counts.committed == Tally(learned=24)
    assert undisturbed(scenario)


@pytest.mark.integration
@pytest.mark.slow
def test_two_commands_on_one_output_share_it(scenario):
    """By mistake, on two machines say: both end well, and no row is there twice."""
    scenario.tell(seconds=0.05)
    command = [sys.executable, "pipelines/train_all.py", *scenario.arguments(), "--inline", "--tracker", "none"]
    ours = os.environ | {"PYTHONPATH": str(ROOT)}
    pair = [
        subprocess.Popen(command, cwd=ROOT, env=ours, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in "ab"
    ]
    told = [process.communicate(timeout=300)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], told
    assert all("24 of 24 are in" in text or "nothing to do" in text for text in told)
    assert undisturbed(scenario)
