"""A short run of `python -m benchmarks.chaos`: every kind of fault at least once, no row lost, doubled or changed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.integration.conftest import ROOT, clean_environment

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1500)]


def test_twenty_faults_lose_and_double_nothing():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.chaos", "--faults", "20"],
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
