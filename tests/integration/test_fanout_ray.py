"""The fan-out on Ray: several workers, kill -9 of each kind of process, and nothing lost, nothing twice."""

from __future__ import annotations

import os
import signal
import threading
import time
from functools import partial
from types import SimpleNamespace

import pytest
from ray.exceptions import RayActorError
from ray.train import ControllerError

from mcpl.errors import ConfigError
from mcpl.orchestration import fanout
from mcpl.orchestration.attempts import reservations
from mcpl.orchestration.fanout import NoProgress
from tests.orchestration import scenario as scenarios
from tests.orchestration.scenario import Scenario
from tests.processes import alive, kill, playing

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture
def scenario(tmp_path) -> Scenario:
    return Scenario(tmp_path)


def undisturbed(scenario: Scenario):
    """What the bank must hold, learned in this process without any fault."""
    scenario.tell()
    scenario.run(scenario.config("undisturbed"))
    return scenario.compared("undisturbed")


eventually = partial(scenarios.eventually, seconds=400)


def parts(scenario: Scenario) -> list[str]:
    return sorted(path.name for path in (scenario.root / "bank").glob("part-*"))


def test_two_workers_learn_everything_once(scenario, ray_cluster):
    scenario.pictures(30)
    expected = undisturbed(scenario)
    scenario.tell(seconds=0.05, crowd=len(scenario.pids()) + 2)
    (scenario.stub_folder / "learned").rename(scenario.root / "learned-before")
    looks = []
    summary = scenario.run(scenario.config(workers=2), inline=False, on_progress=looks.append)
    assert (summary.learned, summary.new, summary.lost_workers) == (30, 30, 0)
    assert scenario.compared().equals(expected)
    assert set(scenario.times_learned().values()) == {1}
    assert len(scenario.pids() - {os.getpid()}) == 2
    assert looks[-1].done == 30
    assert max(look.workers for look in looks) == 2

    started = time.monotonic()
    again = scenario.run(scenario.config(workers=2), inline=False)
    assert (again.new, again.resumed) == (0, 30)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("whole_group", ["", "1"], ids=["one worker replaced", "fallback: all restarted"])
def test_kill_9_of_a_worker_in_the_middle(scenario, ray_cluster, monkeypatch, whole_group):
    monkeypatch.setenv("MCPL_WHOLE_GROUP_RESTART", whole_group)
    scenario.pictures(32)
    expected = undisturbed(scenario)
    before = scenario.pids()
    # Two at work; one is killed; the last untried shard is held until the replacement is at work.
    scenario.tell(crowd=len(before) + 2, kill=["p0006"], wait=["p0031"])
    processes = 4 if whole_group else 3  # Ray's undocumented part: the survivor keeps its process

    def release() -> None:
        eventually(lambda: len(scenario.pids() - before) == processes, what="the replacement")
        (scenario.stub_folder / "go-p0031").touch()

    threading.Thread(target=release, daemon=True).start()
    summary = scenario.run(scenario.config(workers=2), inline=False)
    assert summary.learned == 32
    assert summary.lost_workers == 1
    assert scenario.compared().equals(expected)
    assert len(scenario.pids() - before) == processes


@pytest.mark.parametrize("part", ["queue", "controller"])
def test_kill_9_of_what_stands_between_driver_and_workers(scenario, ray_cluster, part):
    """The queue is made again from storage by Ray; Ray Train's controller, and its workers with it, by the driver."""
    scenario.pictures(32)
    expected = undisturbed(scenario)
    scenario.tell(wait=["p0016"])

    def disturb() -> None:
        eventually((scenario.stub_folder / "waiting-p0016").exists, what="the middle")
        kill(*playing(part, os.getpid()))
        (scenario.stub_folder / "go-p0016").touch()

    thread = threading.Thread(target=disturb, daemon=True)
    thread.start()
    summary = scenario.run(scenario.config(workers=2), inline=False)  # all that the cluster has: nothing is left over
    thread.join()
    assert (summary.learned, summary.new) == (32, 32)
    assert scenario.compared().equals(expected)
    assert summary.lost_workers == {"queue": 0, "controller": 1}[part]


@pytest.mark.parametrize(("times", "lost"), [(1, 1), (99, None)])
def test_a_worker_that_dies_while_its_group_is_made_whole(scenario, ray_cluster, monkeypatch, times, lost):
    """Ray Train then gives the whole run up instead of the worker; the driver begins it anew, but not for ever."""
    scenario.pictures(8)
    expected = undisturbed(scenario)
    real, left = fanout._trainer, [times]

    def trainer(*orders):
        made = real(*orders)

        def fit():
            if not left[0]:
                return made.fit()
            left[0] -= 1
            raise ControllerError(RayActorError())

        return SimpleNamespace(fit=fit)

    monkeypatch.setattr(fanout, "_trainer", trainer)
    if lost is None:
        with pytest.raises(NoProgress, match=r"Ray Train's controller: .*(Error|died)"):
            scenario.run(scenario.config(workers=2), inline=False)
        return
    summary = scenario.run(scenario.config(workers=2), inline=False)
    assert (summary.learned, summary.lost_workers) == (8, lost)
    assert scenario.compared().equals(expected)


def test_a_worker_that_always_fails_ends_the_run_and_keeps_the_rest(scenario, ray_cluster):
    scenario.pictures(12)
    scenario.tell(full=["p0004"])
    named = r"3 times in a row.*disk is full at p0004; in hand was part-00000001.parquet \(p0004, "
    with pytest.raises(NoProgress, match=named):
        scenario.run(scenario.config(), inline=False)
    assert parts(scenario) == ["part-00000000.parquet", "part-00000002.parquet"]


def test_a_run_that_is_stopped_while_a_worker_is_deaf_leaves_the_cluster_to_others(scenario, ray_cluster):
    """Its workers hold the whole cluster, and the one that waits never looks up: Ray Train would wait for it."""
    scenario.pictures(8)
    scenario.tell(wait=["p0001"])

    def stop() -> None:
        eventually((scenario.stub_folder / "waiting-p0001").exists, what="a worker at work")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    others, before = reservations(), scenario.pids()
    assert scenario.run(scenario.config(workers=2), inline=False).stopped
    assert reservations() == others
    scenarios.eventually(lambda: not any(map(alive, scenario.pids() - before)), seconds=30, what="its workers to end")
    scenario.tell()
    assert scenario.run(scenario.config(workers=2), inline=False).learned == 8
    assert reservations() == others, "nor does what was abandoned reserve anew"


def test_what_can_never_fit_is_said_at_once(scenario, ray_cluster):
    scenario.pictures(400)
    started = time.monotonic()
    with pytest.raises(ConfigError, match="99 workers at .*use fewer"):
        scenario.run(scenario.config(workers=99), inline=False)
    with pytest.raises(ConfigError, match="1 GPU"):
        scenario.run(scenario.config(gpus_per_worker=1), inline=False)
    assert time.monotonic() - started < 10


def test_kill_9_of_the_driver_then_the_same_command_resumes(scenario, started):
    """The driver's cluster is its own and dies with it; what is missing is then learned in this process."""
    scenario.pictures(24)
    expected = undisturbed(scenario)
    scenario.tell(seconds=0.1, wait=["p0018"])
    (scenario.stub_folder / "learned").rename(scenario.root / "learned-before")
    before = scenario.pids()
    driver = started("pipelines/train_all.py", *scenario.arguments(), "--workers", "2")
    eventually(lambda: len(parts(scenario)) >= 3 or driver.poll() is not None, what="the first parts")
    assert driver.poll() is None, (scenario.root / "log-0").read_text()
    driver.kill()
    driver.wait()
    eventually(lambda: not any(map(alive, scenario.pids() - before)), what="its workers to end")
    resumed = len(scenario.compared())
    assert 12 <= resumed < 24
    learned = scenario.times_learned()

    scenario.tell()
    summary = scenario.run(scenario.config())
    assert (summary.resumed, summary.new) == (resumed, 24 - resumed)
    assert scenario.compared().equals(expected)
    assert (scenario.times_learned() - learned).total() == 24 - resumed  # only the missing ones


def test_kill_9_of_the_head_ends_the_driver_and_the_same_command_resumes(scenario, started):
    scenario.pictures(24)
    expected = undisturbed(scenario)
    scenario.tell(wait=["p0012"])
    command = ["pipelines/train_all.py", *scenario.arguments()]
    quick = {"RAY_gcs_rpc_server_reconnect_timeout_s": "5"}  # else a minute
    driver = started(*command, **quick)
    eventually((scenario.stub_folder / "waiting-p0012").exists, what="the middle")
    head = playing("head", driver.pid)
    assert len(head) == 2
    kill(*head)
    assert driver.wait(180) != 0
    eventually(lambda: not any(map(alive, scenario.pids() - {os.getpid()})), what="its workers to end")
    assert len(scenario.compared()) == 12

    scenario.tell()
    summary = scenario.run(scenario.config())
    assert (summary.resumed, summary.new) == (12, 12)
    assert scenario.compared().equals(expected)
