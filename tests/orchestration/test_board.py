"""The board around the queue: giving up, stopping, and surviving its own loss."""

from __future__ import annotations

import pytest
from ray.exceptions import RayActorError

from mcpl.data.dataset import Dataset
from mcpl.data.storage import open_store
from mcpl.orchestration import attempts
from mcpl.orchestration import plan as plans
from mcpl.orchestration.attempts import NoProgress, Strikes
from mcpl.orchestration.plan import Shard, Tally
from mcpl.orchestration.queue import Board, Failure, Verdict
from tests.orchestration.scenario import Scenario


@pytest.fixture
def output(tmp_path) -> str:
    scenario = Scenario(tmp_path)
    scenario.pictures(12)
    config = scenario.config()
    plans.open_plan(open_store(config.output), Dataset.open(config.dataset), config.recipe, 4)
    return config.output


def test_next_acknowledges_and_leases_in_one_go(output):
    board = Board(output)
    assert board.hello("a", rank=0)
    first = board.next("a")
    assert isinstance(first, Shard) and first.ids == ("p0000", "p0001", "p0002", "p0003")
    second = board.next("a", first.number, Tally(learned=4))
    assert board.next("a", first.number, Tally(learned=4)) == second  # the answer was lost: Ray asks again
    third = board.next("a", second.number, Tally(learned=4))
    assert board.next("a", third.number, Tally(learned=3, failed=1)) is Verdict.STOP
    assert board.snapshot().counts.committed == Tally(learned=11, failed=1)
    assert not board.hello("late", rank=1)


def test_errors_in_a_row_end_the_run_and_name_the_last(output):
    board = Board(output, error_limit=3)
    assert not board.strike("error", "first")
    assert not board.strike("error", "second")
    board.next("a", board.next("a").number, Tally(learned=4))  # progress forgives
    assert not board.strike("error", "third")
    assert not board.strike("death", "killed")
    assert not board.strike("error", "fourth")
    assert board.strike("error", "fifth")
    failure = board.snapshot().failure
    assert failure.kind == "NoProgress"
    assert failure.message.endswith("the last one: fifth")
    assert board.next("a") is Verdict.STOP


def test_deaths_have_more_patience(output):
    board = Board(output, error_limit=1, death_limit=4)
    assert [board.strike("death", "killed") for _ in range(4)] == [False, False, False, True]


def test_workers_that_are_lost_at_one_time_are_one_strike(output, monkeypatch):
    """A cloud takes a whole pool of spot nodes back, and the run is healthy."""
    monkeypatch.setattr(attempts, "RemoteBoard", lambda board: board)
    board = Board(output, death_limit=2)
    for rank in range(3):
        board.hello(f"w{rank}", rank)
        board.next(f"w{rank}")
    strikes = Strikes(board)
    strikes.after_exception(None, {rank: RayActorError() for rank in range(3)})
    seen = board.snapshot()
    assert (seen.lost_workers, seen.idle, seen.failure) == (3, True, None)
    with pytest.raises(NoProgress):
        strikes.after_exception(None, {0: RayActorError()})


@pytest.mark.parametrize("tells", [True, False], ids=["an error", "killed"])
def test_giving_up_names_the_shard_and_its_pictures(output, tells):
    board = Board(output, error_limit=1, death_limit=1)
    board.hello("a", rank=7)
    board.next("a")
    if tells:  # a worker that raises lets go by itself; a killed one cannot
        board.worker_died("a")
    assert board.strike("error" if tells else "death", "ValueError: no", [7])
    told = board.snapshot().failure.message
    assert "ValueError: no; in hand was part-00000000.parquet (p0000, p0001, p0002 and 1 more)" in told
    assert "--verbose" in told


def test_giving_up_names_no_shard_that_is_done(output):
    board = Board(output, death_limit=1)
    board.hello("a", rank=0)
    shard = board.next("a")
    board.next("a", shard.number, Tally(learned=4))
    board.leave("a")
    board.next("b", 1, Tally(learned=4))
    assert board.strike("death", "killed", [0])
    assert board.snapshot().failure.message.endswith("the last one: killed")


def test_the_first_failure_stays(output):
    board = Board(output)
    board.fail("ConfigError", "no base")
    board.fail("NoProgress", "later")
    assert board.snapshot().failure == Failure("ConfigError", "no base")


def test_a_worker_that_cannot_begin_where_others_can_ends_nothing(output):
    """Its machine is at fault. Where nobody has finished a shard, and where it has itself, the run is."""
    board = Board(output)
    board.hello("a", rank=0)
    shard = board.next("a")
    board.next("a", shard.number, Tally(learned=4))
    for attempt in range(5):  # that machine is tried again and again, and no shard ends meanwhile
        board.hello(f"b{attempt}", rank=1)
        assert board.fail("ConfigError", "no credentials", f"b{attempt}") is False
        assert board.strike("error", "ConfigError: no credentials", [1]) is False
    assert board.snapshot().failure is None and board.snapshot().lost_workers == 5
    board.leave("a")  # nobody works any more: what keeps failing ends the run
    for attempt in range(3):
        board.hello(f"c{attempt}", rank=1)
        assert board.fail("ConfigError", "no credentials", f"c{attempt}") is False
        gave_up = board.strike("error", "ConfigError: no credentials", [1])
    assert gave_up and board.snapshot().failure.kind == "NoProgress"

    board = Board(output)
    board.next("a")
    assert board.fail("ConfigError", "lost a row", "a"), "it could begin"
    nobody = Board(output)
    assert nobody.fail("ConfigError", "no base", "b") and nobody.snapshot().stopping


def test_stopping_lets_shards_finish_unless_told_to_drop(output):
    board = Board(output)
    shard = board.next("a")
    board.stop(drop=False)
    assert board.heartbeat("a", shard.number, 1) is False
    assert board.next("a", shard.number, Tally(learned=4)) is Verdict.STOP
    assert board.snapshot().counts.shards_done == 1
    board.stop(drop=True)
    assert board.heartbeat("a", shard.number, 1) is True


def test_leases_end_by_the_boards_clock_alone(output):
    now = [0.0]
    board = Board(output, lease_seconds=60, clock=lambda: now[0])
    shard = board.next("silent")
    now[0] = 59
    assert board.snapshot().counts.shards_leased == 1
    now[0] = 61
    assert board.snapshot().counts.shards_leased == 0
    assert [board.next(w).number for w in ("a", "b", "c")] == [1, 2, shard.number]


def test_a_new_board_knows_what_storage_holds_and_saves_its_tallies(output):
    store = open_store(output)
    board = Board(output)
    shard = board.next("a")
    store.put(shard.part, b"")  # the cache saves reading it
    board.next("a", shard.number, Tally(learned=3, failed=1))
    board.save()
    again = Board(output)
    assert again.snapshot().counts.committed == Tally(learned=3, failed=1)
    assert again.next("b").number != shard.number
