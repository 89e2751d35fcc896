"""Runs in SQLite: what a job says arrives, once, under one run."""

import json
import socket
import subprocess
import sys
import time

import pytest
import yaml
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED
from PIL import Image

from mcpl.errors import ConfigError
from mcpl.tracking import mlflow as tracking
from mcpl.tracking.base import DatasetInput, NullTracker, RunRecord, markdown_table, open_tracker
from mcpl.tracking.mlflow import MLflowTracker
from mcpl.tracking.results import Summary, log_bank, log_summary, picture_rows
from mcpl.tracking.server import connect, resolve_uri, speaking_to
from tests.ports import free_port

JOB = {
    "params": {"recipe": {"lr": 0.001, "attention_mask": {"threshold": 0.5}}, "dataset": "s3://ann:pw@store/set"},
    "tags": {"recipe_fingerprint": "f" * 16, "base_digest": "b" * 64},
    "dataset": DatasetInput("toys", "s3://ann:pw@store/set", "d1", 12),
    "name": "toys, paper",
    "job": "output+recipe",
}


def artifacts(client, run_id, path=None):
    found = []
    for entry in client.list_artifacts(run_id, path):
        found += artifacts(client, run_id, entry.path) if entry.is_dir else [entry.path]
    return sorted(found)


def read(client, run_id, name, folder):
    return open(client.download_artifacts(run_id, name, str(folder)), "rb").read()


def test_a_job_is_one_run_with_all_it_said(home, tmp_path, bank_row):
    rows = [bank_row(i) for i in range(4)] + [bank_row(9, status="failed")]
    tracker = MLflowTracker(home=home)
    client = connect(tracker.uri)
    bank = tmp_path / "part-0.parquet"
    bank.write_bytes(b"rows")
    with tracker.start(**JOB) as run:
        summary = Summary()
        for row in rows:
            summary.add(row)
        log_summary(run, summary)
        run.figure(Image.new("RGB", (8, 8), "red"), "overlays/p0")
        run.table(picture_rows(rows), "pictures")
        log_bank(run, "s3://ann:pw@store/out", [(bank.name, bank.read_bytes())], bank.stat().st_size)

    (found,) = client.search_runs([tracker.experiment_id])
    assert found.info.run_id == run.record.run_id
    assert (found.info.status, found.info.run_name) == ("FINISHED", "toys, paper")
    assert found.data.params["recipe.attention_mask.threshold"] == "0.5"
    assert found.data.tags["recipe_fingerprint"] == "f" * 16
    assert found.data.metrics["fidelity/assignment"] == pytest.approx(0.15)
    assert found.data.metrics["measured pictures/assignment"] == 4
    assert found.data.metrics["pictures/failed"] == 1
    curve = client.get_metric_history(run.record.run_id, "fixed_noise_loss/mean")
    assert [(point.step, round(point.value, 4)) for point in curve] == [(0, 2.5), (10, 1.5909), (20, 1.5476)]
    losses = client.get_metric_history(run.record.run_id, "loss/denoising/median")
    assert [(point.step, point.value) for point in losses] == [(10, 4.5), (20, 2.5)]
    (given,) = found.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest, json.loads(given.dataset.profile)) == (
        "toys",
        "d1",
        {"num_rows": 12},
    )

    run_id = run.record.run_id
    assert artifacts(client, run_id) == [
        *("bank/bank.json", "bank/part-0.parquet", "overlays/p0.png"),
        *("pictures.json", "pictures.md", "pictures.parquet", "recipe.yaml"),
    ]
    assert yaml.safe_load(read(client, run_id, "recipe.yaml", tmp_path)) == JOB["params"]["recipe"]
    assert b"| p0 | a &lt;bear>" in read(client, run_id, "pictures.md", tmp_path)
    assert not (home / "mlflow-spool").exists()
    assert b"pw@" not in b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())


def test_a_bank_that_is_too_large_is_named_not_copied(home, tmp_path, monkeypatch):
    monkeypatch.setattr("mcpl.tracking.results.COPY_LIMIT", 3)
    bank = tmp_path / "part-0.parquet"
    bank.write_bytes(b"rows")
    tracker = MLflowTracker(home=home)
    with tracker.start(**JOB) as run:
        log_bank(run, "s3://store/out", [(bank.name, bank.read_bytes())], bank.stat().st_size)
    client = connect(tracker.uri)
    assert artifacts(client, run.record.run_id) == ["bank.json", "recipe.yaml"]
    told = json.loads(read(client, run.record.run_id, "bank.json", tmp_path))
    assert (told["uri"], told["bytes"], told["copied"]) == ("s3://store/out", 4, False)
    assert client.get_run(run.record.run_id).data.tags["bank_digest"] == told["digest"] != ""


def test_the_same_job_goes_on_in_the_same_run(home):
    first = MLflowTracker(home=home)
    run = first.start(**JOB)
    run.metrics({"loss": 2.0}, step=1)  # and here the process dies

    again = MLflowTracker(home=home)
    params = {**JOB["params"], "dataset": "elsewhere", "placement": {"workers": 2}}
    same = again.start(**JOB | {"params": params}, resume=RunRecord.from_json(run.record.to_json()))
    same.metric_points([(1, {"loss": 2.0}), (2, {"loss": 1.0})])
    same.finish()

    client = connect(again.uri)
    (found,) = client.search_runs([again.experiment_id])
    assert found.info.run_id == run.record.run_id == same.record.run_id
    assert found.info.status == "FINISHED"
    assert [(p.step, p.value) for p in client.get_metric_history(found.info.run_id, "loss")] == [(1, 2.0), (2, 1.0)]
    assert found.data.params["placement.workers"] == "2"
    assert found.data.params["dataset"] == "s3://***@store/set"
    assert found.data.tags["now.dataset"] == "elsewhere"
    assert len(found.inputs.dataset_inputs) == 1


def test_a_job_without_its_record_is_found_by_its_identity_and_doubles_are_closed(home):
    tracker = MLflowTracker(home=home)
    older, newer = (tracker.start(**JOB | {"job": None, "tags": {"mcpl.job": "twice"}}) for _ in range(2))
    other = tracker.start(**JOB)
    run = tracker.start(**JOB | {"job": "twice"}, resume=older.record)
    assert run.record.run_id == older.record.run_id
    status = {r.info.run_id: r.info.status for r in connect(tracker.uri).search_runs([tracker.experiment_id])}
    assert status == {older.record.run_id: "RUNNING", newer.record.run_id: "KILLED", other.record.run_id: "RUNNING"}


def test_a_crash_between_making_a_run_and_describing_it_leaves_no_second_run(home, monkeypatch):
    with monkeypatch.context() as broken, pytest.raises(RuntimeError):
        broken.setattr(MLflowTracker, "_describe", lambda *_: (_ for _ in ()).throw(RuntimeError("killed")))
        MLflowTracker(home=home).start({}, {}, job="one job")
    tracker = MLflowTracker(home=home)
    with tracker.start({}, {}, job="one job"):
        pass
    runs = connect(tracker.uri).search_runs([tracker.experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"]


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_run_ends_as_its_job_did(home, error, status):
    tracker = MLflowTracker(home=home)
    with pytest.raises(error), tracker.start(**JOB) as run:
        raise error
    assert connect(tracker.uri).get_run(run.record.run_id).info.status == status


def test_a_refused_message_is_told_and_holds_nothing_back(home, caplog):
    tracker = MLflowTracker(home=home)
    run = tracker.start(**JOB)
    connect(tracker.uri).delete_run(run.record.run_id)  # in the user interface, say
    run.metrics({"loss": 1.0})
    assert "refused" in caplog.text
    assert not (home / "mlflow-spool").exists()


def test_a_store_that_stops_answering_spools_in_order(home, monkeypatch, caplog):
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(tracking, "PATIENCE_SECONDS", 0.1)
    tracker = MLflowTracker(home=home)
    run = tracker.start(**JOB)
    with monkeypatch.context() as broken:

        def no_answer(*_, **__):
            raise ConnectionError("gone: http://ann:pw@host")

        for verb in ("log_batch", "log_artifact", "set_terminated"):
            broken.setattr(tracker._client, verb, no_answer)
        run.metrics({"loss": 2.0}, step=1)
        run.artifact(b"text", "notes/a.txt")
        run.finish()
    kept = home / "mlflow-spool" / run.record.run_id
    assert str(kept) in caplog.text and "pw" not in caplog.text
    assert caplog.text.count("went away") == 1
    run._spool._lock.close()  # the process ends

    later = MLflowTracker(home=home)
    client = connect(later.uri)
    found = client.get_run(run.record.run_id)
    assert (found.data.metrics, found.info.status) == ({"loss": 2.0}, "FINISHED")
    assert "notes/a.txt" in artifacts(client, run.record.run_id)
    assert not kept.exists()


def test_a_spool_that_comes_late_doubles_nothing_that_was_told_again_meanwhile(home, monkeypatch):
    monkeypatch.setattr(tracking, "PATIENCE_SECONDS", 0.0)
    tracker = MLflowTracker(home=home)
    run = tracker.start(**JOB)
    with monkeypatch.context() as broken:
        broken.setattr(tracker._client, "log_batch", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("gone")))
        broken.setattr(
            tracker._client, "search_experiments", lambda **_: (_ for _ in ()).throw(ConnectionError("gone"))
        )
        run.metric_points([(1, {"loss": 2.0}), (2, {"loss": 1.0})])
        assert not run.delivered
    run._spool._lock.close()  # the process ends, and its job goes on elsewhere
    elsewhere = MLflowTracker(tracker.uri, home=home / "elsewhere").start(**JOB)
    elsewhere.metrics({"loss": 2.0}, step=1)
    assert elsewhere.delivered

    MLflowTracker(home=home)
    history = connect(tracker.uri).get_metric_history(run.record.run_id, "loss")
    assert sorted((point.step, point.value) for point in history) == [(1, 2.0), (2, 1.0)]
    assert not list((home / "mlflow-spool").iterdir())


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("http://ann:pw@127.0.0.1:{closed}", "connection refused"),
        ("http://127.0.0.1:{silent}", "no answer in"),
        ("http://127.0.0.1:{foreign}", "not as an MLflow tracking server"),
        ("http://ann:pw@127.0.0.1:{foreign}/secure", "refuses these credentials"),
        ("postgresql://ann:pw@127.0.0.1:{closed}/db", "cannot be reached"),
        ("./mlruns", "sqlite:///"),
        ("sqlite:////proc/none/mlflow.db", "cannot be written"),
    ],
)
def test_an_unusable_server_is_one_clear_line_within_seconds(uri, says, ports, monkeypatch):
    monkeypatch.setattr("mcpl.tracking.server.REACH_SECONDS", 3.0)
    connect.__globals__["load_mlflow"]()  # its import is not what is timed
    start = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        connect(uri.format(**ports))
    assert time.monotonic() - start < 6
    assert says in str(caught.value)
    assert "\n" not in str(caught.value) and "pw" not in str(caught.value)


@pytest.mark.parametrize("uri", ["http://ann:pw@127.0.0.1:{closed}", "http://127.0.0.1:{silent}"])
def test_a_server_that_is_away_at_the_start_is_told_later(uri, ports, home, migrated, monkeypatch, caplog):
    """Learning may begin; the run is opened, and all is said, when a job meets the server again."""
    monkeypatch.setattr("mcpl.tracking.server.REACH_SECONDS", 1.0)
    monkeypatch.setattr(tracking, "PATIENCE_SECONDS", 0.1)
    tracker = MLflowTracker(uri.format(**ports), home=home)
    run = tracker.start(**JOB)
    run.metrics({"loss": 2.0}, step=1)
    run.artifact(b"text", "notes/a.txt")
    run.finish()
    assert not run.record.opened
    (kept,) = (home / "mlflow-spool").iterdir()
    assert f"Learning goes on, and what it should know waits in {kept}" in caplog.text
    assert not any("pw@" in text for text in (caplog.text, *(file.read_text() for file in kept.glob("*.json"))))
    run._spool._lock.close()  # the process ends

    # the server is back: here, the database that stands for it
    record = kept / "record"
    back = f"sqlite:///{home}/mlflow.db"
    record.write_text(record.read_text().replace(run.record.tracking_uri, back))
    later = MLflowTracker(back, home=home)
    client = connect(back)
    (found,) = client.search_runs([later.experiment_id])
    assert (found.data.metrics, found.info.status) == ({"loss": 2.0}, "FINISHED")
    assert found.data.params["recipe.lr"] and len(found.inputs.dataset_inputs) == 1
    assert {"notes/a.txt", "recipe.yaml"} <= set(artifacts(client, found.info.run_id))
    assert not (home / "mlflow-spool").exists() or not list((home / "mlflow-spool").iterdir())
    again = later.start(**JOB)  # the same job, resumed
    assert again.record.run_id == found.info.run_id


@pytest.mark.parametrize("met", [ConnectionError("gone"), MlflowException("API request failed: connection refused")])
def test_a_server_that_is_away_when_a_later_run_starts_is_told_later(met, home, monkeypatch, caplog):
    """A sweep starts a run for each trial: the server may go and come back between two of them."""
    monkeypatch.setattr(tracking, "PATIENCE_SECONDS", 0.0)
    tracker = MLflowTracker(home=home)
    tracker.start(**JOB | {"job": "first"}).finish()
    asked = []
    with monkeypatch.context() as broken:

        def no_answer(*_, **__):
            asked.append(1)
            raise met

        for verb in ("get_experiment_by_name", "search_experiments", "log_batch"):
            broken.setattr(tracker._client, verb, no_answer)
        runs = [tracker.start(**JOB | {"job": job}) for job in ("second", "third")]
        assert len(asked) == 1, "a server that is away is not asked for every run"
        for run in runs:
            run.metrics({"loss": 2.0}, step=1)
            run.finish()
            assert not run.delivered and not run.record.opened
    monkeypatch.setattr(tracker._line, "_next_attempt", 0.0)  # half a minute later
    assert tracker.start(**JOB | {"job": "fourth"}).record.opened
    for run in runs:
        run._spool._lock.close()  # the process ends

    later = MLflowTracker(home=home)
    found = connect(later.uri).search_runs([later.experiment_id])
    assert sorted(run.data.tags["mcpl.job"] for run in found) == ["first", "fourth", "second", "third"]
    assert [run.data.metrics for run in found if run.data.tags["mcpl.job"] == "third"] == [{"loss": 2.0}]


def test_what_one_run_finds_out_holds_up_no_other(home, monkeypatch, caplog):
    """Trials at work while the server goes away: it is asked once, nobody waits at a trial's end, and all is kept."""
    slept, sleep = [], time.sleep
    monkeypatch.setattr(tracking, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(time, "sleep", lambda seconds: slept.append(seconds) or sleep(seconds))
    tracker = MLflowTracker(home=home)
    runs = [tracker.start(**JOB | {"job": f"trial {number}"}) for number in range(5)]
    asked = []
    with monkeypatch.context() as broken:

        def no_answer(*_, **__):
            asked.append(1)
            raise ConnectionError("gone")

        for verb in ("log_batch", "log_artifact", "set_terminated", "search_experiments"):
            broken.setattr(tracker._client, verb, no_answer)
        for run in runs:
            run.metrics({"loss": 2.0}, step=1)
            run.artifact(b"text", "notes/a.txt")
            run.finish()
        assert len(asked) == 1 and not slept and not any(run.delivered for run in runs)
        assert caplog.text.count("went away") == 1

        for run in runs:
            run.settle()
        assert 0 < sum(slept) <= 1 and caplog.text.count("are kept in") == 1, "the last wait is one for all"
        said = len(asked)
        for run in runs:
            run.deliver()
        assert len(asked) == said, "between two attempts it is left in peace"

    monkeypatch.setattr(tracker._line, "_next_attempt", 0.0)  # half a minute later
    assert all(run.deliver() for run in runs) and all(run.delivered for run in runs)
    found = tracker._client.search_runs([tracker.experiment_id])
    assert [(run.info.status, run.data.metrics) for run in found] == [("FINISHED", {"loss": 2.0})] * 5


def test_what_an_earlier_process_left_does_not_reopen_a_run_that_has_ended_since(home, monkeypatch):
    """A job is stopped while the server is away, and ends elsewhere; only then does somebody find what it left."""
    tracker = MLflowTracker(home=home)
    tracker._line.lost("it is away")
    stopped = tracker.start(**JOB)
    stopped.metrics({"loss": 3.0}, step=1)
    stopped.finish("KILLED")
    assert not stopped.delivered
    stopped._spool._lock.close()  # the process ends
    time.sleep(0.01)
    with MLflowTracker(tracker.uri, home=home / "elsewhere").start(**JOB) as run:
        run.metrics({"loss": 2.0}, step=2)

    later = MLflowTracker(home=home)
    (found,) = connect(later.uri).search_runs([later.experiment_id])
    assert found.info.status == "FINISHED"
    history = connect(later.uri).get_metric_history(found.info.run_id, "loss")
    assert sorted(point.step for point in history) == [1, 2]
    assert not list((home / "mlflow-spool").iterdir())


def test_a_server_that_refuses_a_later_run_is_not_away(home, monkeypatch):
    tracker = MLflowTracker(home=home)

    def refuse(*_, **__):
        raise MlflowException("not yours", error_code=PERMISSION_DENIED)

    monkeypatch.setattr(tracker._client, "get_experiment_by_name", refuse)
    with pytest.raises(ConfigError, match="not yours"):
        tracker.start(**JOB)


@pytest.fixture
def ports():
    """A closed port, one that accepts and says nothing, and one where something else answers."""
    import http.server
    import threading

    foreign = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    foreign.RequestHandlerClass.log_message = lambda *_: None
    foreign.RequestHandlerClass.do_POST = lambda self: self.send_error(401 if "secure" in self.path else 404)
    threading.Thread(target=foreign.serve_forever, daemon=True).start()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        yield {"closed": free_port(), "silent": silent.getsockname()[1], "foreign": foreign.server_port}
    foreign.shutdown()
    foreign.server_close()


def test_the_uri_is_the_explicit_one_then_the_variable_then_sqlite_beside_the_output(tmp_path, monkeypatch):
    assert resolve_uri(None, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://variable")
    assert resolve_uri(None, tmp_path) == "http://variable"
    assert resolve_uri("http://explicit", tmp_path) == "http://explicit"


def test_mlflows_global_uri_is_as_before(home, monkeypatch):
    import mlflow

    mlflow.set_tracking_uri(None)
    with speaking_to("sqlite:///x"):
        assert mlflow.get_tracking_uri() == "sqlite:///x"
    assert not mlflow.is_tracking_uri_set()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mine")
    with speaking_to("sqlite:///x"):
        pass
    assert mlflow.get_tracking_uri() == "http://mine"


def test_trackers_are_found_by_name():
    tracker = open_tracker("none", home="anywhere")
    assert isinstance(tracker, NullTracker)
    with tracker.start({}, {}) as run:
        run.metrics({"a": 1})
        run.table([{"a": 1}], "t")
        run.figure(Image.new("L", (1, 1)), "f")
    with pytest.raises(ConfigError, match="none, mlflow"):
        open_tracker("nobody")


def test_a_damaged_record_is_no_record():
    assert RunRecord.from_json("{") is None
    assert RunRecord.from_json('{"run_id": 1}') is None


def test_markdown_tables_survive_any_cell():
    text = markdown_table([{"a": "x|y\n<b>", "n": 0.123456}, {"a": None, "n": 2}], limit=1)
    assert text == "| a | n |\n| --- | ---: |\n| x\\|y &lt;b> | 0.1235 |\n\n1 more rows are not shown here.\n"


def test_nothing_heavy_is_imported_before_it_is_needed():
    code = (
        "import sys, mcpl.tracking.mlflow, mcpl.tracking.registry, mcpl.tracking.results, mcpl.report.figures\n"
        "print(sorted({'mlflow', 'torch', 'matplotlib', 'pandas', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
