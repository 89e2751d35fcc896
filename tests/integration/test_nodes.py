"""Several nodes on one machine, a raylet and an object store each: one is lost, one is taken away, one joins."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import ROOT, clean_environment
from tests.integration.test_fanout_ray import eventually, parts, undisturbed
from tests.integration.test_job_submit import end, executable, started_head
from tests.orchestration.scenario import Scenario
from tests.ports import free_port, free_ports

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1200)]


class Nodes:
    """A head without work and nodes of one core each; every node is a raylet of its own."""

    def __init__(self, folder: Path):
        self.folder = folder
        (port, *others) = free_ports(5)
        self.address = f"127.0.0.1:{port}"
        self.environment = clean_environment() | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ADDRESS": self.address,
            "PYTHONPATH": str(ROOT),
            "DASHBOARD_METRIC_PORT": str(others[0]),
            "AUTOSCALER_METRIC_PORT": str(others[1]),
            "RAY_health_check_period_ms": "500",  # a lost node is noticed in seconds, not in half a minute
            "RAY_health_check_failure_threshold": "3",
        }
        self.running: dict[str, subprocess.Popen] = {}
        self._start("head", "--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false",
                    "--node-ip-address=127.0.0.1", f"--ray-client-server-port={others[2]}")  # fmt: skip

    def add(self, name: str) -> None:
        self._start(name, f"--address={self.address}", "--num-cpus=1", "--resources", f'{{"{name}": 1}}')

    def _start(self, name: str, *options: str) -> None:
        command = [executable("ray"), "start", "--block", *options, f"--dashboard-agent-listen-port={free_port()}"]
        command += ["--object-store-memory=100000000", "--disable-usage-stats"]
        if name == "head":
            command += [f"--temp-dir={self.folder}"]
        self.running[name] = started_head(command, self.environment, self.folder / f"{name}.log")

    def raylet(self, name: str) -> int:
        """Process id of a node's raylet."""
        (found,) = self._raylets(name)
        return found

    def _raylets(self, name: str) -> list[int]:
        """One; none where the node has left."""
        children = Path(f"/proc/{self.running[name].pid}/task/{self.running[name].pid}/children").read_text().split()
        programs = {int(child): Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[0] for child in children}
        return [child for child, program in programs.items() if b"raylet/raylet" in program]

    def lose(self, name: str) -> None:
        """As a power cut: nobody is told. A drained node may have left by itself, once nothing ran on it."""
        for raylet in self._raylets(name):
            os.kill(raylet, signal.SIGKILL)
        end(self.running.pop(name))

    def drain(self, name: str, seconds: int) -> None:
        """What a cloud says before it takes a spot node away."""
        command = Path(f"/proc/{self.raylet(name)}/cmdline").read_bytes().decode().split("\0")
        (node,) = [word.partition("=")[2] for word in command if word.startswith("--node_id=")]
        told = ["drain-node", f"--address={self.address}", f"--node-id={node}"]
        told += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot"]
        done = subprocess.run(
            [executable("ray"), *told, f"--deadline-remaining-seconds={seconds}"],
            env=self.environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def close(self) -> None:
        for process in reversed(self.running.values()):
            end(process)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    """A head for all of these tests."""
    folder = tempfile.mkdtemp(prefix="n")  # sockets below it have a short limit
    head = Nodes(Path(folder))
    try:
        yield head
    finally:
        head.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def nodes(cluster) -> Iterator[Nodes]:
    """The head with no nodes yet; those of a test end with it."""
    yield cluster
    for name in [name for name in cluster.running if name != "head"]:
        end(cluster.running.pop(name))


@pytest.fixture
def scenario(tmp_path) -> Scenario:
    return Scenario(tmp_path)


def prepared(scenario: Scenario, pictures: int, **told: object):
    """What the bank must hold; the stub is then told `told` and its earlier work forgotten."""
    scenario.pictures(pictures)
    expected = undisturbed(scenario)
    scenario.tell(**told)
    (scenario.stub_folder / "learned").rename(scenario.root / "learned-before")
    return expected


def ended_well(driver: subprocess.Popen, scenario: Scenario) -> None:
    try:
        driver.wait(400)
    finally:
        said = (scenario.root / "log-0").read_text()
    assert driver.returncode == 0, said


def node_of(nodes: Nodes, process: int) -> str:
    """The node on which a worker runs: the one whose raylet is above it."""
    raylets = {nodes.raylet(name): name for name in nodes.running if name != "head"}
    while process not in raylets:
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return raylets[process]


def test_a_node_is_lost_in_the_middle_and_the_others_learn_its_pictures(nodes, scenario, started):
    nodes.add("one")
    nodes.add("two")
    expected = prepared(scenario, 24, wait=["p0005"])
    driver = started("pipelines/train_all.py", *scenario.arguments(), "--workers", "2", **nodes.environment)
    eventually((scenario.stub_folder / "waiting-p0005").exists, what="a worker in the middle of its shard")
    eventually(lambda: len(parts(scenario)) >= 2, what="the other worker's first parts")
    held = next(iter(scenario.stub_folder.glob("at-p0005-*"))).name.rpartition("-")[2]
    nodes.lose(node_of(nodes, int(held)))
    (scenario.stub_folder / "go-p0005").touch()
    ended_well(driver, scenario)
    assert scenario.compared().equals(expected)
    assert max(scenario.times_learned().values()) <= 2  # what was in hand was learned again, and is there once


def test_a_drained_node_finishes_its_shard_first(nodes, scenario, started):
    nodes.add("one")
    nodes.add("two")
    expected = prepared(scenario, 24, wait=["p0005"])
    driver = started("pipelines/train_all.py", *scenario.arguments(), "--workers", "2", **nodes.environment)
    eventually((scenario.stub_folder / "waiting-p0005").exists, what="a worker in the middle of its shard")
    held = next(iter(scenario.stub_folder.glob("at-p0005-*"))).name.rpartition("-")[2]
    leaving = node_of(nodes, int(held))
    nodes.drain(leaving, 120)
    time.sleep(5)  # a beat
    (scenario.stub_folder / "go-p0005").touch()
    eventually(lambda: "part-00000001.parquet" in parts(scenario), what="its shard")
    time.sleep(1)
    nodes.lose(leaving)
    ended_well(driver, scenario)
    assert scenario.compared().equals(expected)
    assert set(scenario.times_learned().values()) == {1}  # nothing was in hand when the node went


def test_a_group_that_may_shrink_and_grow(nodes, scenario, started):
    """Begun by one worker, since a second node is not there; it joins, is drained, and leaves without losing work."""
    nodes.add("one")
    expected = prepared(scenario, 24, wait=["p0005"])
    before = scenario.pids()
    driver = started(
        "pipelines/train_all.py", *scenario.arguments(), "--workers", "1:2",
        **nodes.environment, MCPL_RESIZE_SECONDS="2",
    )  # fmt: skip
    eventually((scenario.stub_folder / "waiting-p0005").exists, what="one worker in the middle of its shard")
    assert len(scenario.pids() - before) == 1
    nodes.add("two")
    eventually(lambda: len(scenario.pids() - before) == 3, what="a group of two")  # the first was started again
    nodes.drain("two", 30)
    (scenario.stub_folder / "go-p0005").touch()
    ended_well(driver, scenario)
    assert scenario.compared().equals(expected)
