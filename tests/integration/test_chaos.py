"""A short run of `python -m benchmarks.chaos`: every kind of fault at least once, no row lost, doubled or changed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.integration.conftest import ROOT, clean_environment

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1500)]


def test_twenty_faults_lose_and_double_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.chaos", "--faults", "20", "--write", str(tmp_path / "chaos.json")],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=1400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["lost"], result["doubled"], result["changed"], result["undelivered"]) == (0, 0, 0, 0)
    assert result["faults"] >= 20
    assert set(result["kinds"]["kill"]) == {"worker", "controller", "queue", "driver", "head"}
    assert result["kinds"]["zombie"]["after compaction"] >= 2
    assert {kind.split()[0] for kind in result["kinds"]["storage"]} == {"PUT", "GET", "LIST", "HEAD"}
    assert result["compactions_beside_work"] >= 1
    assert result["own_failures_said"] == [] and result["own_failures"] == 0
    assert json.loads((tmp_path / "chaos.json").read_text()) == result
