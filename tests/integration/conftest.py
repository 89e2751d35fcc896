"""One Ray cluster for the tests of a session that can share it: its start is what they cost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NICENESS = {"RAY_worker_niceness": "0"}
"""Ray's own, 15, starves its workers wherever something else keeps the cores busy"""


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    os.environ.update(NICENESS)
    from mcpl.orchestration import fanout

    with fanout.cluster():
        yield


@pytest.fixture
def started(tmp_path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Start `python ...` in the checkout; whatever is still running at the end is killed with its children."""
    running: list[subprocess.Popen] = []

    def start(*command: object, **environment: str) -> subprocess.Popen:
        log = open(tmp_path / f"log-{len(running)}", "wb")  # noqa: SIM115  closed with the process
        process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            env=clean_environment() | environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def clean_environment() -> dict[str, str]:
    """Ours, without what the session's own cluster left there, and without a server that the user tracks to."""
    others = ("RAY_", "MCPL_", "MLFLOW_TRACKING")
    ours = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    ours["MCPL_TRACKER"] = "none"  # these tests are about the fan-out; MLflow's first database takes seconds
    return ours | NICENESS
