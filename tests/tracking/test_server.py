"""Against a real `mlflow server` on this machine, which is also killed in the middle of a run."""

import time

import pytest

from mcpl.tracking import mlflow as tracking
from mcpl.tracking import registry
from mcpl.tracking.mlflow import MLflowTracker
from mcpl.tracking.results import Summary, log_summary, picture_rows
from mcpl.tracking.server import connect


@pytest.mark.integration
@pytest.mark.slow
def test_a_server_that_dies_loses_nothing_and_stops_nothing(server, tmp_path, monkeypatch, caplog, bank_row):
    monkeypatch.setattr(tracking, "PATIENCE_SECONDS", 1.0)
    tracker = MLflowTracker(server.uri, home=tmp_path)
    run = tracker.start({"recipe": {"lr": 0.1}}, {"fingerprint": "f"}, name="job", job="j")
    run.metrics({"loss": 3.0}, step=1)

    server.kill()
    start = time.monotonic()
    for step in range(2, 50):
        run.metrics({"loss": 3.0 / step}, step=step)
    run.artifact(b"kept", "notes/a.txt")
    run.finish()
    run.settle()
    assert time.monotonic() - start < 40  # a few attempts, not one per message
    assert f"kept in {tmp_path}/mlflow-spool/{run.record.run_id}" in caplog.text
    run._spool._lock.close()  # the process ends

    server.start()
    MLflowTracker(server.uri, home=tmp_path)  # whatever job comes next
    client = connect(server.uri)
    found = client.get_run(run.record.run_id)
    assert found.info.status == "FINISHED"
    assert [p.step for p in client.get_metric_history(run.record.run_id, "loss")] == list(range(1, 50))
    assert [entry.path for entry in client.list_artifacts(run.record.run_id, "notes")] == ["notes/a.txt"]
    assert not (tmp_path / "mlflow-spool" / run.record.run_id).exists()

    made = registry.publish([bank_row(0)], "toys", bank="out", run_id=run.record.run_id, tracking_uri=server.uri)
    assert made.uri == "models:/toys@champion"
    assert list(registry.lookup("toys", image_id="p0", tracking_uri=server.uri).word) == ["bear", "board"]


@pytest.mark.integration
@pytest.mark.slow
def test_a_server_on_postgresql_takes_a_job_its_machine_and_its_words(postgres_server, tmp_path, bank_row):
    uri = postgres_server.uri
    rows = [bank_row(i) for i in range(4)]
    summary = Summary()
    for row in rows:
        summary.add(row)
    with MLflowTracker(uri, home=tmp_path).start({"recipe": {"lr": 0.1}}, {"fingerprint": "f"}, job="j") as run:
        for step in range(2):
            run.machine(step)
        log_summary(run, summary)
        run.table(picture_rows(rows), "pictures")
        run.artifact(b"png", "overlays/p0.png")
    client = connect(uri)
    found = client.get_run(run.record.run_id)
    assert (found.info.status, found.data.params["recipe.lr"]) == ("FINISHED", "0.1")
    assert [p.step for p in client.get_metric_history(run.record.run_id, "system/system_memory_usage_megabytes")] == [
        0,
        1,
    ]
    assert found.data.metrics["system/system_memory_usage_megabytes"] > 100
    assert 0 <= found.data.metrics["system/cpu_utilization_percentage"] <= 100
    assert len(client.get_metric_history(run.record.run_id, "loss/denoising/median")) == 2

    where = {"run_id": run.record.run_id, "tracking_uri": uri, "bank": "out"}
    made = registry.publish(rows[:2], "toys", **where)
    assert f"overlays/p0.png&run_uuid={run.record.run_id}" in made.description
    with pytest.raises(registry.NotPromoted, match="assignment 0.05 against 0.05"):
        registry.publish([rows[1], bank_row(0, ("cat",))], "toys", better_on=["assignment"], **where)
    assert list(registry.lookup("toys", image_id="p1", tracking_uri=uri).word) == ["bear", "board"]
