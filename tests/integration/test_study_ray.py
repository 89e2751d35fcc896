"""A study on Ray Tune: kill -9 in the middle, the same command again: nothing is lost, nothing is learned twice."""

from __future__ import annotations

import json
import os
import signal

import pytest

from mcpl.tracking.server import connect
from tests.orchestration import sweep_stub
from tests.orchestration.scenario import Scenario, eventually

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1200)]

CELLS, SEEDS = 10, 2


def test_kill_9_in_the_middle_of_a_study(tmp_path, started):
    scenario = Scenario(tmp_path)
    scenario.pictures(3)
    scenario.tell(seconds=0.1)
    database = f"sqlite:///{tmp_path}/mlflow.db"
    command = [
        "pipelines/study.py", "temperature", "--dataset", tmp_path / "dataset", "--base", scenario.stub_folder,
        "--seeds", SEEDS, "--samples", 0, "--out", tmp_path / "study", "--runner", sweep_stub.NAME,
        "--tracking-uri", database, "--concurrent", 1,
    ]  # fmt: skip
    first = started(*command, MCPL_TRACKER="mlflow")
    eventually(lambda: len(list(tmp_path.glob("study/trials/*/result.json"))) >= 3, 600, "too few cells ended")
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert len(list(tmp_path.glob("study/trials/*/result.json"))) < CELLS

    second = started(*command, MCPL_TRACKER="mlflow")
    assert second.wait(timeout=600) == 0, (tmp_path / "log-1").read_text()
    summary = json.loads((tmp_path / "log-1").read_text().splitlines()[-1])
    assert (summary["cells"], summary["rows"], summary["failed"]) == (CELLS, CELLS * SEEDS * 3, {})
    times = scenario.times_learned()
    assert sum(times.values()) <= CELLS * SEEDS * 3 + 3, "more than the pack at work was learned again"
    assert {path.name for path in (tmp_path / "study").iterdir()} >= {"report.md", "raw.parquet", "study.json"}

    client = connect(database)
    runs = client.search_runs([client.get_experiment_by_name("mcpl").experiment_id], max_results=100)
    (whole,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == whole.info.run_id]
    assert len(children) == CELLS == len({run.data.tags["mcpl.cell"] for run in children})
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert "study/report.md" in {file.path for file in client.list_artifacts(whole.info.run_id, "study")}
