"""`ray job submit` against a real head with token authentication: both documented forms, and stopping a job."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.conftest import ROOT, clean_environment
from tests.orchestration.scenario import Scenario
from tests.orchestration.stub import NAME
from tests.ports import free_ports

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1200)]


@dataclass(frozen=True)
class Head:
    address: str
    environment: dict[str, str]
    log: Path

    def ray(self, *command: str, timeout: float = 500) -> subprocess.CompletedProcess:
        return subprocess.run(
            [executable("ray"), *command],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )


def executable(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head of our own: other clusters on this machine neither see it nor are seen."""
    gcs, dashboard, client, metrics, more_metrics, agent = free_ports(6)
    address = f"http://127.0.0.1:{dashboard}"
    environment = clean_environment() | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_API_SERVER_ADDRESS": address,
        "DASHBOARD_METRIC_PORT": str(metrics),  # fixed otherwise, and taken by any other cluster of this machine
        "AUTOSCALER_METRIC_PORT": str(more_metrics),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    folder = tempfile.mkdtemp(prefix="r")  # sockets below it have a short limit
    command = [executable("ray"), "start", "--head", "--block", f"--port={gcs}", "--dashboard-host=127.0.0.1"]
    command += [f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}", f"--temp-dir={folder}"]
    command += [f"--dashboard-agent-listen-port={agent}"]  # fixed otherwise: a second cluster's jobs find no agent
    command += ["--num-cpus=2", "--object-store-memory=200000000", "--disable-usage-stats"]
    log = Path(folder) / "start.log"
    process = started_head(command, environment, log)
    try:
        refuses_strangers(address)
        yield Head(address, environment, log)
    finally:
        end(process)
        shutil.rmtree(folder, ignore_errors=True)


def started_head(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen:
    """Ray gives its own processes 30 s to start, which a busy machine may miss: try three times."""
    for _ in range(3):
        with open(log, "wb") as file:
            process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, cwd="/")
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if "Ray runtime started" in log.read_text():
                return process
            time.sleep(0.5)
        end(process)
    pytest.fail(f"no head could be started: {log.read_text()}")


def end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def refuses_strangers(address: str) -> None:
    """The job API is up, and answers nobody without the token."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{address}/api/jobs/", timeout=5)
        except urllib.error.HTTPError as refused:
            assert refused.code in (401, 403)
            return
        except OSError:
            time.sleep(0.5)
        else:
            pytest.fail("the job API answered without a token")
    pytest.fail("the job API did not come up")


@pytest.fixture
def scenario(tmp_path) -> Scenario:
    return Scenario(tmp_path)


def settings(scenario: Scenario) -> dict[str, str]:
    config = scenario.config()
    recipe = scenario.root / "test.yaml"
    recipe.write_text(f"base: {scenario.stub_folder}\nsteps: {config.recipe.steps}\n")
    return {
        "MCPL_DATASET": config.dataset,
        "MCPL_OUTPUT": config.output,
        "MCPL_RECIPE": str(recipe),
        "MCPL_SHARD_SIZE": "4",
        "MCPL_RUNNER": NAME,
        "MCPL_TRACKER": "none",
    }


def slim(folder: Path) -> Path:
    """What the job needs of the checkout, as a clean one would hold it."""
    for name in ("mcpl", "pipelines", "tests/orchestration"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "assets"))
    return folder


@pytest.mark.parametrize("form", ["options", "literal"])
def test_submit(scenario, head, tmp_path, form):
    scenario.pictures(8)
    given = settings(scenario)
    submit = ["job", "submit", "--working-dir", str(slim(tmp_path / "checkout"))]
    if form == "options":
        options = [f"--{name.removeprefix('MCPL_').lower().replace('_', '-')}={value}" for name, value in given.items()]
        submit += ["--", "python", "pipelines/train_all.py", "--workers", "2", *options]
    else:
        submit += ["--runtime-env-json", json.dumps({"env_vars": given}), "pipelines/train_all.py"]
    done = head.ray(*submit)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:] + head.log.read_text()
    assert "8 of 8 are in" in done.stdout
    assert "8/8 pictures" in done.stdout
    assert len(scenario.compared()) == 8


def test_stopping_a_job_drops_its_shards_and_the_same_command_resumes(scenario, head, tmp_path):
    scenario.pictures(12)
    scenario.tell(wait=["p0006"])
    submit = ["job", "submit", "--working-dir", str(slim(tmp_path / "checkout"))]
    submit += ["--runtime-env-json", json.dumps({"env_vars": settings(scenario)})]
    started = head.ray(*submit, "--submission-id", "to-be-stopped", "--no-wait", "pipelines/train_all.py")
    assert started.returncode == 0, started.stdout + started.stderr
    deadline = time.monotonic() + 240
    while not (scenario.stub_folder / "waiting-p0006").exists():
        assert time.monotonic() < deadline, head.ray("job", "logs", "to-be-stopped").stdout
        time.sleep(0.2)
    head.ray("job", "stop", "to-be-stopped")
    logs = head.ray("job", "logs", "to-be-stopped").stdout
    assert "run the same command again to go on" in logs, logs
    assert len(scenario.compared()) == 4

    scenario.tell()
    again = head.ray(*submit, "pipelines/train_all.py")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "8 pictures in" in again.stdout
    assert len(scenario.compared()) == 12
