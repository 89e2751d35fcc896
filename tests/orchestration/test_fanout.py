"""The fan-out in one process: the same lease, commit and resume as on a cluster, in seconds."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace

import pytest

from mcpl.config import Placement, RunConfig
from mcpl.data.storage import LocalStore, open_store
from mcpl.errors import BankMismatch, ConfigError
from mcpl.orchestration import fanout
from mcpl.orchestration.fanout import Meter, NoProgress, Orders, work
from mcpl.orchestration.plan import RUN, Plan, Tally
from mcpl.orchestration.queue import Board, Counts, LockedBoard
from pipelines import train_all
from tests.orchestration import stub
from tests.orchestration.scenario import Scenario, eventually


@pytest.fixture
def scenario(tmp_path) -> Scenario:
    return Scenario(tmp_path)


def planned(config: RunConfig) -> Plan:
    return fanout.plans.open_plan(
        fanout.open_store(config.output), fanout.Dataset.open(config.dataset), config.recipe, 4
    )


def orders_of(config: RunConfig) -> Orders:
    return Orders(config.dataset, config.output, config.recipe, config.placement, stub.NAME)


def begun(scenario: Scenario) -> tuple[LockedBoard, Orders]:
    """A plan's board and what its workers are told; nobody works yet."""
    config = scenario.config()
    planned(config)
    return LockedBoard(Board(config.output)), orders_of(config)


def test_every_picture_once_and_then_nothing_to_do(scenario):
    scenario.pictures(10)
    looks = []
    summary = scenario.run(scenario.config(), on_progress=looks.append)
    assert (summary.rows, summary.learned, summary.new, summary.resumed) == (10, 10, 10, 0)
    assert looks[-1].done == looks[-1].total == 10
    assert scenario.compared()["id"].to_pylist() == [f"p{i:04d}" for i in range(10)]

    again = scenario.run(scenario.config())
    assert (again.learned, again.new, again.resumed) == (10, 0, 10)
    assert set(scenario.times_learned().values()) == {1}


def test_only_what_is_missing_is_learned(scenario):
    scenario.pictures(12)
    scenario.run(scenario.config())
    (scenario.root / "bank" / "part-00000001.parquet").unlink()
    before = scenario.compared
    summary = scenario.run(scenario.config())
    assert (summary.new, summary.resumed) == (4, 8)
    assert len(before()) == 12
    assert {id for id, times in scenario.times_learned().items() if times > 1} == {f"p{i:04d}" for i in range(4, 8)}


def test_a_grown_dataset_learns_only_its_new_rows(scenario):
    scenario.pictures(6)
    scenario.run(scenario.config())
    scenario.pictures(5, start=6)
    summary = scenario.run(scenario.config())
    assert (summary.rows, summary.new, summary.resumed) == (11, 5, 6)
    assert set(scenario.times_learned().values()) == {1}
    assert len(scenario.compared()) == 11


def test_a_shard_whose_rows_moved_finds_them_again(scenario):
    """Planned, not learned; then the row group that it names is another one."""
    scenario.pictures(8, start=8)
    scenario.tell(full=["p0012"])
    with pytest.raises(OSError, match="disk is full"):
        scenario.run(scenario.config())
    scenario.tell()
    (scenario.root / "dataset" / "part-00008.parquet").rename(scenario.root / "dataset" / "part-00099.parquet")
    summary = scenario.run(scenario.config())
    assert summary.learned == 8
    assert scenario.compared()["id"].to_pylist() == [f"p{i:04d}" for i in range(8, 16)]


def test_rows_lost_before_they_were_learned_stop_the_run(scenario):
    scenario.pictures(4)
    scenario.pictures(4, start=4)
    scenario.tell(full=["p0004"])
    with pytest.raises(OSError, match="disk is full"):
        scenario.run(scenario.config())
    (scenario.root / "dataset" / "part-00004.parquet").unlink()
    with pytest.raises(ConfigError, match="lost 4 rows.*p0004"):
        scenario.run(scenario.config())


def test_failures_are_kept_and_relearned_on_request(scenario):
    scenario.pictures(8)
    scenario.tell(fail=["p0001", "p0006"])
    assert scenario.run(scenario.config()).failed == 2
    scenario.tell()
    assert scenario.run(scenario.config()).failed == 2  # a rerun leaves them alone
    summary = scenario.run(scenario.config(retry_failed=True))
    assert (summary.rows, summary.learned, summary.failed, summary.new) == (8, 8, 0, 2)
    assert {id for id, times in scenario.times_learned().items() if times == 2} == {"p0001", "p0006"}


def test_where_rows_lie_now_is_looked_up_once(scenario, monkeypatch):
    scenario.pictures(16, start=8)
    config = scenario.config()
    planned(config)
    (scenario.root / "dataset" / "part-00008.parquet").rename(scenario.root / "dataset" / "part-00099.parquet")
    looks, places = [], fanout.groups.places
    monkeypatch.setattr(fanout.groups, "places", lambda dataset: looks.append(dataset) or places(dataset))
    assert scenario.run(config).learned == 16
    assert len(looks) == 1


@pytest.mark.parametrize("crash", [["p0001"], ["p0001", "p0003"]], ids=["in the middle", "the last of its shard"])
def test_a_picture_that_breaks_its_shard_costs_its_own_row(scenario, crash):
    scenario.pictures(8)
    scenario.tell(crash=crash)
    summary = scenario.run(scenario.config())
    assert (summary.learned, summary.failed) == (8 - len(crash), len(crash))
    rows = scenario.compared().to_pylist()
    assert [row["id"] for row in rows] == [f"p{i:04d}" for i in range(8)]
    told = {row["id"]: row["reason"] for row in rows if row["status"] == "failed"}
    assert told == {id: f"RuntimeError: the stub was told to crash at {id}" for id in crash}


def test_a_shard_that_breaks_as_a_whole_after_a_good_one_is_recorded(scenario):
    scenario.pictures(8)
    scenario.tell(crash=[f"p{i:04d}" for i in range(4, 8)])
    summary = scenario.run(scenario.config())
    assert (summary.learned, summary.failed) == (4, 4)


def test_a_picture_that_breaks_its_shard_again_when_it_is_retried_ends_no_run(scenario):
    """Alone in its part, in a new process: what lies beside it shows that the machine can learn."""
    scenario.pictures(8)
    scenario.tell(crash=["p0001"])
    scenario.run(scenario.config())
    again = scenario.run(scenario.config(retry_failed=True))
    assert (again.rows, again.learned, again.failed, again.new) == (8, 7, 1, 1)
    scenario.tell()
    assert scenario.run(scenario.config(retry_failed=True)).failed == 0


def test_a_machine_that_never_learned_anything_blames_no_picture(scenario):
    scenario.pictures(4)
    scenario.tell(crash=[f"p{i:04d}" for i in range(4)])
    with pytest.raises(RuntimeError, match="told to crash at p0003"):
        scenario.run(scenario.config())


@pytest.mark.parametrize("error", [OSError, MemoryError, type("OutOfMemoryError", (RuntimeError,), {}), RuntimeError])
def test_what_is_no_pictures_fault_ends_the_run_and_no_row_says_otherwise(scenario, monkeypatch, error):
    def act(self, id: str) -> None:
        if id == "p0001":
            raise error("DefaultCPUAllocator: can't allocate memory: no room")

    monkeypatch.setattr(stub.Runner, "_act", act)
    scenario.pictures(4)
    with pytest.raises(error, match="no room"):
        scenario.run(scenario.config())
    assert not list((scenario.root / "bank").glob("part-*"))


def test_a_machine_that_can_learn_nothing_any_more_records_no_failures(scenario, monkeypatch):
    """As a GPU after an illegal access: every picture after the first would be blamed."""
    seen = []

    def act(self, id: str) -> None:
        seen.append(id)
        if id == "p0002" or seen.count("p0002") > 1:
            raise RuntimeError(f"the device is gone at {id}")

    monkeypatch.setattr(stub.Runner, "_act", act)
    scenario.pictures(4)
    with pytest.raises(RuntimeError, match="gone at p0001"):  # which it could learn before
        scenario.run(scenario.config())
    assert not list((scenario.root / "bank").glob("part-*"))


def test_another_recipe_or_base_on_the_same_output_is_refused(scenario):
    scenario.pictures(4)
    scenario.run(scenario.config())
    with pytest.raises(BankMismatch, match="another --output"):
        scenario.run(scenario.config(steps=6))

    scenario.tell(digest="another base")
    scenario.pictures(4, start=4)
    with pytest.raises(BankMismatch, match="another base"):
        scenario.run(scenario.config())
    assert len(scenario.compared()) == 4


def test_another_base_is_refused_even_where_nothing_is_left_to_do(scenario):
    scenario.pictures(4)
    config = scenario.config()
    scenario.run(config)
    other = scenario.root / "other"
    other.mkdir()
    (other / "settings.json").write_text('{"digest": "other"}')
    moved = config.model_copy(update={"recipe": config.recipe.model_copy(update={"base": str(other)})})
    with pytest.raises(BankMismatch, match="other"):
        scenario.run(moved)


def test_a_zombie_commits_nothing_and_breaks_nothing(scenario, monkeypatch):
    """A worker that falls silent, loses its lease, and commits after another one has done its shard."""
    monkeypatch.setattr(fanout, "HEARTBEAT_SECONDS", 1e6)
    scenario.pictures(8)
    scenario.tell(wait=["p0000"])
    config = scenario.config()
    other = Scenario(scenario.root / "other")
    healthy = config.recipe.model_copy(update={"base": str(other.stub_folder)})
    other.tell()
    plan = planned(config)
    now = [0.0]
    board = LockedBoard(Board(config.output, clock=lambda: now[0]))
    zombie = threading.Thread(target=work, args=(board, 0, orders_of(config)))
    zombie.start()
    eventually((scenario.stub_folder / "waiting-p0000").exists)
    now[0] = 1000.0
    work(board, 1, Orders(config.dataset, config.output, healthy, config.placement, stub.NAME))
    assert board.snapshot().counts.finished
    before = {path.name: path.read_bytes() for path in (scenario.root / "bank").glob("part-*")}
    assert len(before) == len(plan.sizes()) == 2

    (scenario.stub_folder / "go-p0000").touch()
    zombie.join(20)
    assert scenario.times_learned()["p0000"] == 1  # it did its work, in vain
    assert {path.name: path.read_bytes() for path in (scenario.root / "bank").glob("part-*")} == before
    assert board.snapshot().counts.committed == Tally(learned=8)
    assert board.snapshot().failure is None


@pytest.mark.parametrize(("seconds", "finished"), [(120, 1), (1, 0)], ids=["in time", "too late"])
def test_a_worker_whose_node_is_taken_away_leaves(scenario, monkeypatch, seconds, finished):
    """Told in time it finishes the shard in hand; told too late it drops it; others learn the rest, none twice."""
    monkeypatch.setattr(fanout, "HEARTBEAT_SECONDS", 0.01)
    scenario.pictures(12)
    scenario.tell(wait=["p0001"])
    board, orders = begun(scenario)
    told = threading.Event()

    def notice() -> float | None:
        if (scenario.stub_folder / "waiting-p0001").exists():
            told.set()
            return seconds
        return None

    leaving = threading.Thread(target=work, args=(board, 0, orders, notice))
    leaving.start()
    assert told.wait(20)
    time.sleep(0.1)
    (scenario.stub_folder / "go-p0001").touch()
    leaving.join(20)
    counts = board.snapshot().counts
    assert (counts.shards_done, counts.shards_leased) == (finished, 0)
    work(board, 1, orders)
    assert board.snapshot().counts.committed == Tally(learned=12)
    assert len(scenario.compared()) == 12
    assert (set(scenario.times_learned().values()) == {1}) == bool(finished)


def test_a_shard_that_is_dropped_is_free_though_its_worker_has_not_looked_up(scenario, monkeypatch):
    monkeypatch.setattr(fanout, "HEARTBEAT_SECONDS", 0.01)
    learn = stub.Runner.__call__
    monkeypatch.setattr(stub.Runner, "__call__", lambda self, examples, on_done=None: learn(self, examples))
    scenario.pictures(4)
    scenario.tell(wait=["p0001"])
    board, orders = begun(scenario)
    waiting = scenario.stub_folder / "waiting-p0001"
    leaving = threading.Thread(target=work, args=(board, 0, orders, lambda: 1 if waiting.exists() else None))
    leaving.start()
    eventually(waiting.exists, what="the middle of the shard")
    eventually(lambda: board.snapshot().idle, seconds=5, what="the shard to be free")
    assert board.next("other").number == 0
    (scenario.stub_folder / "go-p0001").touch()
    leaving.join(20)
    assert not leaving.is_alive() and board.snapshot().failure is None


def test_a_worker_that_waits_leaves_its_node_without_a_shard(scenario, monkeypatch):
    monkeypatch.setattr(fanout, "HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setattr(fanout, "WAIT_SECONDS", 0.01)
    scenario.pictures(4)
    board, orders = begun(scenario)
    assert board.hello("other", 1) and board.next("other").number == 0
    taken_away = threading.Event()
    waiting = threading.Thread(target=work, args=(board, 0, orders, lambda: 120 if taken_away.is_set() else None))
    waiting.start()
    eventually(scenario.pids, what="a worker that has nothing to do")
    taken_away.set()
    waiting.join(20)
    assert not waiting.is_alive()
    board.worker_died("other")
    assert board.snapshot().counts.shards_leased == 0 and not scenario.times_learned()


def test_the_run_ends_though_ray_still_waits_for_a_worker(scenario, monkeypatch):
    """A lost node's worker may never be replaced; once everything is learned nobody waits for it."""
    monkeypatch.setattr(fanout, "FINISH_SECONDS", 0.2)
    scenario.pictures(4)
    board, orders = begun(scenario)

    def learn_and_hang() -> None:
        work(board, 0, orders)
        threading.Event().wait(60)

    started = time.monotonic()
    assert fanout._drive(board, fanout._Task(learn_and_hang), Meter(started, 4, None)) is False
    assert time.monotonic() - started < 20


def test_a_worker_that_cannot_begin_is_replaced_where_others_work(scenario, monkeypatch):
    """One machine without the base: its worker fails as one that is to be replaced, and the run goes on."""
    scenario.pictures(8)
    board, orders = begun(scenario)
    assert board.hello("other", 1)
    shard = board.next("other")
    board.next("other", shard.number, Tally(learned=4))
    monkeypatch.setattr(fanout, "EXCUSED_SECONDS", 0.0)
    lost = replace(orders, runner="no.such:Runner")
    with pytest.raises(ConfigError, match="cannot be imported"):
        work(board, 0, lost)
    assert board.snapshot().failure is None and not board.snapshot().stopping
    board.worker_died("other")
    work(board, 0, orders)
    assert board.snapshot().counts.finished


def test_nobody_is_excused_in_a_group_that_starts_again_as_a_whole(scenario):
    scenario.pictures(8)
    board, orders = begun(scenario)
    shard = board.next("other")
    board.next("other", shard.number, Tally(learned=4))
    placement = orders.placement.model_copy(update={"workers": 2, "min_workers": 1})
    work(board, 0, replace(orders, runner="no.such:Runner", placement=placement))
    assert board.snapshot().failure.kind == "ConfigError"


def test_a_worker_that_does_not_see_the_output_says_so(scenario, tmp_path):
    """On several machines an output that is each one's own folder would lose all that is learned."""
    with pytest.raises(
        ConfigError, match=r"holds no _mcpl/run\.json as .* sees it: an output must be a folder that all"
    ):
        fanout.check_shared(open_store(str(tmp_path / "own")), RUN)
    scenario.pictures(4)
    begun(scenario)
    fanout.check_shared(open_store(scenario.uri("bank")), RUN)


@pytest.mark.parametrize(("gpus", "device", "found"), [(0, "auto", "cpu"), (0.25, "auto", "cuda"), (1, "cpu", "cpu")])
def test_who_is_given_a_gpu_never_learns_on_the_cpu_unasked(gpus, device, found):
    assert fanout.decided(Placement(gpus_per_worker=gpus, device=device)).device == found


def test_a_group_that_cannot_begin_says_what_it_waits_for(scenario, monkeypatch, capsys):
    monkeypatch.setattr(fanout, "PATIENCE_SECONDS", 0)
    scenario.pictures(4)
    board, _ = begun(scenario)
    fanout._drive(board, fanout._Task(lambda: time.sleep(1)), Meter(time.monotonic(), 4, None), fanout._waiting(8))
    (told,) = capsys.readouterr().err.splitlines()
    assert told.endswith("no room for 8 at one time; --workers 1:8 begins with what there is")
    assert "--workers" not in fanout._waiting((2, 8)) + fanout._waiting(1)


@pytest.mark.parametrize(
    ("placed", "shards", "expected"),
    [
        ({"workers": 8}, 3, 3),
        ({"workers": 8, "min_workers": 2}, 9, (2, 8)),
        ({"workers": 8, "min_workers": 4}, 3, (3, 3)),
    ],
)
def test_nobody_is_started_without_a_shard(placed, shards, expected):
    assert fanout._useful_workers(Placement(**placed), shards) == expected


@pytest.mark.parametrize(
    ("workers", "word", "asked", "ways"),
    [
        (1, "trial", "1 trial at 4 CPU does", "give it less, or --wait-for-nodes where the cluster grows"),
        (1, "worker", "1 worker at 4 CPU does", "give it less, or --wait-for-nodes where the cluster grows"),
        (3, "worker", "3 workers at 4 CPU each do",
         "use fewer, give each less, or --wait-for-nodes where the cluster grows"),
    ],
)  # fmt: skip
def test_what_no_node_can_hold_is_said_with_what_to_do(monkeypatch, workers, word, asked, ways):
    monkeypatch.setattr(fanout.ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2}}])
    monkeypatch.setattr(fanout.ray, "cluster_resources", lambda: {"CPU": 2})
    with pytest.raises(ConfigError) as told:
        fanout.check_room(workers, Placement(cpus_per_worker=4), word)
    assert str(told.value) == f"{asked} not fit this cluster (2 CPU; room for 0): {ways}"


@pytest.mark.parametrize(
    ("gpus", "placed", "said"),
    [(2, {}, True), (0, {}, False), (2, {"gpus_per_worker": 0.5}, False), (2, {"device": "cpu"}, False)],
)
def test_gpus_that_nobody_asked_for_are_told(monkeypatch, gpus, placed, said):
    monkeypatch.setattr(fanout.ray, "cluster_resources", lambda: {"CPU": 4.0, **({"GPU": float(gpus)} if gpus else {})})
    told = fanout._idle_gpus(Placement(**placed))
    assert ("the cluster has 2 GPU: --gpus-per-worker 1" in told) == said and bool(told) == said


def test_two_drivers_on_one_output_share_it(scenario):
    scenario.pictures(16)
    scenario.tell(seconds=0.02)
    summaries = []
    drivers = [
        threading.Thread(target=lambda: summaries.append(scenario.run(scenario.config(shard_size=2)))) for _ in "ab"
    ]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join(60)
    assert [summary.learned for summary in summaries] == [16, 16]
    assert len(scenario.compared()) == 16


def test_a_runner_that_loses_rows_is_caught(scenario, monkeypatch):
    scenario.pictures(4)
    monkeypatch.setattr(stub.Runner, "__call__", lambda self, examples, on_done=None: [])
    with pytest.raises(RuntimeError, match="other rows than it was given"):
        scenario.run(scenario.config())
    assert not list((scenario.root / "bank").glob("part-*"))


def test_an_unknown_runner_is_a_setting_gone_wrong(scenario):
    scenario.pictures(2)
    with pytest.raises(ConfigError, match="mcpl.nothing"):
        fanout.run(scenario.config(), "mcpl.nothing:Runner", inline=True)


def test_workers_of_an_own_cluster_keep_the_commands_niceness(monkeypatch):
    for name in ("RAY_worker_niceness", "RAY_AUTH_TOKEN", "PYTHONPATH"):
        monkeypatch.setenv(name, "")  # so that they are put back
    monkeypatch.delenv("RAY_worker_niceness")
    monkeypatch.setattr(fanout, "enable_token_auth_by_default", lambda: None)
    seen = []
    monkeypatch.setattr(fanout.ray, "init", lambda **_: seen.append(dict(os.environ).get("RAY_worker_niceness")))
    fanout._start_local("ERROR", verbose=False)
    assert seen == ["0"]


def test_speed_and_time_left_ignore_the_start():
    looks = []
    meter = Meter(started=0.0, total=100, on_progress=looks.append)

    def look(now: float, learned: int, leased: int) -> None:
        meter.look(Counts(100, Tally(learned=learned), 0, 10, 0, leased), 0, now)

    look(30, 0, 0)
    assert looks[-1].pictures_per_minute == 0 and looks[-1].seconds_left is None
    look(60, 0, 2)
    look(70, 10, 2)
    assert looks[-1].pictures_per_minute == pytest.approx(60)
    assert looks[-1].seconds_left == pytest.approx(90)
    for second in range(71, 1000):
        look(second, 10, 2)
    assert looks[-1].pictures_per_minute == 0  # the last minutes count


@pytest.mark.parametrize(("share", "code"), [(0.5, 0), (0.1, train_all.EXIT_TOO_MANY_FAILED)])
def test_the_exit_code_tells_whether_too_many_failed(scenario, capsys, share, code):
    scenario.pictures(8)
    scenario.tell(fail=["p0001", "p0002", "p0003"])
    config = scenario.config(max_failed_share=share)
    assert train_all.train_all(config, inline=True, tracker="none", runner=stub.NAME) == code
    assert (
        train_all.train_all(config, inline=True, tracker="none", runner=stub.NAME) == code
    )  # and again, with nothing to do
    told = capsys.readouterr()
    assert "nothing to do: all 8 pictures" in told.out
    assert ("3 of 8 pictures failed" in told.err) == (code != 0)


def test_failures_cross_the_board_with_their_class(scenario):
    assert set(fanout.FAILURES) == {"ConfigError", "ExampleError", "PackTooLarge", "BankMismatch", "NoProgress"}
    assert fanout.FAILURES["NoProgress"] is NoProgress


@pytest.mark.parametrize(("given", "threads"), [({}, 1), ({"cpus_per_worker": 2}, 2), ({"threads": 3}, 3)])
def test_a_workers_threads_are_never_left_to_the_clock(scenario, monkeypatch, given, threads):
    """Else a resumed run might compute with another number than it began with, and end with other last digits."""
    told, make = [], stub.Runner.__init__
    monkeypatch.setattr(
        stub.Runner,
        "__init__",
        lambda self, recipe, placed: (told.append(placed.threads), make(self, recipe, placed))[1],
    )
    scenario.pictures(4)
    scenario.run(scenario.config(**given))
    assert told == [threads]


def test_the_output_is_listed_no_more_often_for_many_shards_than_for_few(tmp_path, monkeypatch):
    """A listing at each lease would be a million pictures' parts, fifteen thousand times."""
    asked: list[str] = []
    listed = LocalStore.list

    def counting(self, prefix=""):
        asked.append(prefix)
        return listed(self, prefix)

    monkeypatch.setattr(LocalStore, "list", counting)
    counts = []
    for pictures in (8, 40):
        scenario = Scenario(tmp_path / str(pictures))
        scenario.pictures(pictures)
        asked.clear()
        assert scenario.run(scenario.config()).learned == pictures
        counts.append(len(asked))
    assert counts[0] == counts[1]
