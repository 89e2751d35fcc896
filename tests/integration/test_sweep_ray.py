"""A sweep on Ray Tune: kill -9 of it and of its server, the same command again, and every trial is there once."""

from __future__ import annotations

import json

import pytest
import yaml

from mcpl.recipes import load
from mcpl.tracking.server import connect
from tests.orchestration import sweep_stub
from tests.orchestration.scenario import Scenario, eventually
from tests.processes import kill

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1800)]

TRIALS = 20


def test_a_stopped_sweep_goes_on_and_trials_that_fail_stop_nothing(tmp_path, started):
    """Among trials that ASHA stops and trials that finish, some raise: they are listed with their reason."""
    scenario = Scenario(tmp_path)
    scenario.pictures(4)
    scenario.tell(seconds=0.05, refuse=["noun", "adjective"])
    space = {
        "recipe": "best",
        "fixed": {"base": str(scenario.stub_folder), "initializer": "neutral"},
        "search": {
            "lr": {"low": 1e-5, "high": 1e-1, "log": True},
            "initializer": {"choices": ["neutral", "noun", "adjective"]},
        },
        "dataset": str(tmp_path / "dataset"),
        "pack": 2,
    }
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(space))
    command = [
        "pipelines/sweep.py", "--space", tmp_path / "space.yaml", "--trials", 7, "--out", tmp_path / "sweep",
        "--runner", sweep_stub.NAME, "--concurrent", 1,
    ]  # fmt: skip
    first = started(*command)
    eventually(lambda: list(tmp_path.glob("sweep/trials/*/result.json")), 120, "no trial ended")
    first.terminate()
    assert first.wait(timeout=60) == 4, (tmp_path / "log-0").read_text()
    said = (tmp_path / "log-0").read_text()
    assert said.splitlines()[-1] == "stopped: run the same command again to go on"
    assert "restore" not in said.lower() and "Traceback" not in said
    assert len(list(tmp_path.glob("sweep/trials/*/result.json"))) < 7

    second = started(*command)
    assert second.wait(timeout=120) == 0, (tmp_path / "log-1").read_text()
    summary = json.loads((tmp_path / "log-1").read_text().splitlines()[-1])
    assert summary["trials"] == 7 and summary["finished"] and summary["failed"]
    results = [json.loads(path.read_text()) for path in tmp_path.glob("sweep/trials/*/result.json")]
    failed = {result["number"] for result in results if result["state"] == "failed"}
    assert failed == {result["number"] for result in results if result["values"]["initializer"] != "neutral"}
    report = (tmp_path / "sweep" / "report.md").read_text()
    assert report.count("the stub was told to refuse") == len(failed) == summary["failed"]


def test_kill_9_of_a_sweep_and_then_of_its_server_doubles_and_loses_nothing(tmp_path, started, server):
    scenario = Scenario(tmp_path)
    scenario.pictures(4)
    scenario.tell(seconds=0.05, crowd=4)
    space = {
        "recipe": "best",
        "fixed": {"base": str(scenario.stub_folder)},
        "search": {"lr": {"low": 1e-5, "high": 1e-1, "log": True}, "initializer": {"choices": ["neutral", "noun"]}},
        "dataset": str(tmp_path / "dataset"),
        "pack": 2,
        "startup": 5,
    }
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(space))
    command = [
        "pipelines/sweep.py", "--space", tmp_path / "space.yaml", "--trials", TRIALS, "--out", tmp_path / "sweep",
        "--runner", sweep_stub.NAME, "--tracking-uri", server.uri, "--cpus-per-trial", 0.1, "--gpus-per-trial", 0.25,
    ]  # fmt: skip
    environment = {"MCPL_TRACKER": "mlflow", "RAY_OVERRIDE_RESOURCES": '{"GPU": 1}'}  # Ray takes it at its word

    def results() -> list[str]:
        return sorted(path.parent.name for path in tmp_path.glob("sweep/trials/*/result.json"))

    first = started(*command, **environment)
    eventually(lambda: len(results()) >= 6 or first.poll() is not None, 300, "the first trials")
    kill(first.pid)
    before = results()
    asked = sorted(path.parent.name for path in tmp_path.glob("sweep/trials/*/asked.json"))
    assert 6 <= len(before) < TRIALS and len(asked) > len(before), "it was killed while trials were at work"
    assert len(scenario.pids()) == 4, "a quarter each: four trials share the GPU, though the cores would hold more"
    client = connect(server.uri)
    runs = client.search_runs([client.get_experiment_by_name("mcpl").experiment_id])
    assert "RUNNING" in {run.info.status for run in runs}, "the kill left a run that claims to be running"

    second = started(*command, **environment)
    eventually(lambda: len(results()) >= 9 or second.poll() is not None, 300, "more trials")
    server.kill()
    assert len(results()) < TRIALS, "it was killed while trials were at work"
    server.start()
    assert second.wait(timeout=300) == 0, (tmp_path / "log-1").read_text()
    assert "went away" in (tmp_path / "log-1").read_text()
    assert results() == [f"{number:05d}" for number in range(TRIALS)]

    third = started(*command, **environment)  # nothing to learn: it tells what the server has missed
    assert third.wait(timeout=120) == 0, (tmp_path / "log-2").read_text()
    assert not list(tmp_path.glob("mlflow-spool/*/*.json"))
    runs = client.search_runs([client.get_experiment_by_name("mcpl").experiment_id], max_results=1000)
    assert sorted(run.data.tags["mcpl.trial"] for run in runs) == results()
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:  # each point once, also of those that were tried twice
        points = [(p.step) for p in client.get_metric_history(run.info.run_id, "score")]
        assert points == sorted(set(points)) and points
    (winner,) = [run for run in runs if run.data.tags.get("mcpl.best_of") == str(TRIALS)]

    summary = json.loads((tmp_path / "log-1").read_text().splitlines()[-1])
    assert summary == json.loads((tmp_path / "log-2").read_text().splitlines()[-1])
    assert summary["trials"] == TRIALS and summary["failed"] == 0
    assert winner.data.tags["mcpl.trial"] == f"{summary['best']['number']:05d}"
    assert summary["best"]["score"] >= summary["start"]["score"]
    assert load(str(tmp_path / "sweep" / "best.yaml")).lr == summary["values"]["lr"]
    assert client.list_artifacts(winner.info.run_id, "sweep")
