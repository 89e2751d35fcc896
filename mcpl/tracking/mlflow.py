"""Runs in MLflow: SQLite in the tracker's home unless a server is named.

A server that is away, at the start, in the middle or at the end, never stops learning: what it cannot take is spooled
and delivered later.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from mcpl.tracking.base import LATER, DatasetInput, Run, RunRecord, Status, flatten
from mcpl.tracking.redaction import redact
from mcpl.tracking.server import (
    REFUSALS,
    Away,
    artifact_address,
    connect,
    experiment_id,
    impatient,
    load_mlflow,
    one_line,
    plain_errors,
    resolve_uri,
)
from mcpl.tracking.spool import Message, Refused, Spool

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from mcpl.tracking.machine import Machine

log = logging.getLogger(__name__)
T = TypeVar("T")

RETRY_SECONDS = 30.0  # pause between two attempts at a server that went away
PATIENCE_SECONDS = 10.0  # how long a job waits for it at its end
BATCH = {"metrics": 1000, "params": 100, "tags": 100}  # MLflow's limits of one request
LONGEST_VALUE = 5000  # of a parameter or tag; the whole is in the YAML artifacts
TABLE_ROWS = 1000  # of a table drawn on the run's page; the whole is in its Parquet artifact
JOB_TAG = "mcpl.job"
NOTE_TAG, NOTE_LENGTH = "mlflow.note.content", 8000  # what MLflow draws on a run's page, and the longest it takes

_ARTIFACT = re.compile(r"(\[[^\]]*\]\()([^):]+)\)")  # a picture or link of Markdown, to no other place
_NAME = re.compile(r"[^\w\-. :/]")  # what MLflow refuses in a metric's or parameter's name


class _Line:
    """The way to a server. A tracker's runs share it, so that what one of them finds out holds up no other."""

    def __init__(self) -> None:
        self.away = ""
        """why, while the server is"""
        self.told = True
        """whether somebody has said that it is"""
        self._next_attempt = 0.0
        self._patience_ends: float | None = None

    @property
    def worth_trying(self) -> bool:
        return time.monotonic() >= self._next_attempt

    def lost(self, reason: str) -> None:
        """The server does not answer: nobody asks it again for a while."""
        if not self.away:
            self.told, self._patience_ends = False, None
        self.away, self._next_attempt = reason, time.monotonic() + RETRY_SECONDS

    def back(self) -> None:
        self.away, self._next_attempt = "", 0.0

    def patient(self) -> bool:
        """Whether to wait on: so many seconds each time that the server goes away, however many runs are waiting."""
        if self._patience_ends is None:
            self._patience_ends = time.monotonic() + PATIENCE_SECONDS
        return time.monotonic() < self._patience_ends


class MLflowTracker:
    """One run per job, in one experiment."""

    def __init__(self, uri: str | None = None, experiment: str = "mcpl", home: str | Path = ".") -> None:
        """Finds the server and the experiment; `home` keeps the default database, its artifacts and the spool."""
        self.uri = resolve_uri(uri, home)
        self.experiment = experiment
        self._home = Path(home).resolve()
        self._line = _Line()
        try:
            self._client = connect(self.uri)
        except Away as reason:
            if not self.uri.startswith(("http://", "https://")):  # a database has no client before it answers
                raise
            self._line.lost(str(reason))
            self._client = load_mlflow().MlflowClient(self.uri, self.uri)
            return
        with plain_errors(self.uri):
            self.experiment_id = experiment_id(self._client, self.uri, experiment, self._home)
        self._deliver_left_overs()

    def start(
        self,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        dataset: DatasetInput | None = None,
        *,
        name: str | None = None,
        job: str | None = None,
        resume: RunRecord | None = None,
    ) -> MLflowRun:
        asked = {"params": {k: redact(v) for k, v in flatten(params).items()}, "name": name, "job": job}
        asked |= {"tags": {k: redact(str(v)) for k, v in tags.items()}, "resume": resume and asdict(resume)}
        asked |= {"dataset": dataset and asdict(replace(dataset, source=redact(dataset.source)))}
        asked |= {"time": _now()}
        run = self._started(asked)
        for group, values in params.items():
            if isinstance(values, Mapping):
                run.artifact(_yaml(values), f"{group}.yaml")
        return run

    def _started(self, asked: Mapping[str, Any]) -> MLflowRun:
        """The run that was asked for, opened now, or later where the server is away."""
        record = RunRecord(redact(self.uri), self.experiment, "")
        if self._line.worth_trying:
            try:
                with plain_errors(self.uri), impatient() if self._line.away else contextlib.nullcontext():
                    record, resumed = self._open(record, asked)
                self._line.back()
                return MLflowRun(self._client, record, self._spool_of(record.run_id), self._line, resumed)
            except (Away, OSError) as reason:
                self._line.lost(one_line(reason))
        record = replace(record, run_id=LATER + uuid.uuid4().hex)
        run = MLflowRun(self._client, record, self._spool_of(record.run_id), self._line, opens=self._open_late)
        run.start_later(asked)
        return run

    def _open(self, record: RunRecord, asked: Mapping[str, Any], late: bool = False) -> tuple[RunRecord, bool]:
        """Open or go on with the run that was asked for, and describe it; True where there was one. Safe to repeat.

        late: asked before now; a run that has ended since then stays ended
        """
        experiment = experiment_id(self._client, self.uri, record.experiment, self._home)
        resume, job = asked["resume"] and RunRecord(**asked["resume"]), asked["job"]
        earlier = self._earlier_run(experiment, job, resume)
        tags = asked["tags"] | ({JOB_TAG: job} if job else {})
        run_id = earlier or self._create(experiment, asked["name"], tags)
        if earlier and not (late and _ended(self._client, run_id) > asked["time"]):
            self._client.update_run(run_id, status="RUNNING")
        dataset = asked["dataset"] and DatasetInput(**asked["dataset"])
        self._describe(run_id, asked["params"], tags, dataset)
        return replace(record, run_id=run_id), bool(earlier)

    def _open_late(self, record: RunRecord, asked: Mapping[str, Any]) -> tuple[RunRecord, bool]:
        return self._open(record, asked, late=True)

    def _create(self, experiment: str, name: str | None, tags: Mapping[str, str]) -> str:
        """Tagged at once, so that whoever opens it again after a crash finds it by its job."""
        source = {"mlflow.source.name": Path(sys.argv[0]).name, "mlflow.source.type": "JOB"}
        return self._client.create_run(experiment, run_name=name, tags=source | dict(tags)).info.run_id

    def _earlier_run(self, experiment: str, job: str | None, resume: RunRecord | None) -> str | None:
        """The run to go on with. Others of the same job that still claim to be running are dead: close them."""
        runs = []
        if job:
            quoted = job.replace("'", "\\'")
            runs = self._client.search_runs(
                [experiment], f"tags.`{JOB_TAG}` = '{quoted}'", order_by=["attributes.start_time DESC"]
            )
        known = {run.info.run_id: run.info.status for run in runs}
        chosen = next(iter(known), None)
        if (
            resume
            and resume.tracking_uri == redact(self.uri)
            and (resume.run_id in known or self._exists(experiment, resume))
        ):
            chosen = resume.run_id
        for run_id, status in known.items():
            if run_id != chosen and status == "RUNNING":
                self._client.set_tag(run_id, "mcpl.reconciled", "was left running; its job goes on in another run")
                self._client.set_terminated(run_id, "KILLED")
        return chosen

    def _exists(self, experiment: str, record: RunRecord) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            info = self._client.get_run(record.run_id).info
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            return False
        return info.lifecycle_stage == "active" and info.experiment_id == experiment

    def _describe(self, run_id: str, params: Mapping, tags: Mapping, dataset: DatasetInput | None) -> None:
        """Parameters, tags and the dataset; a second start adds what is new and tags what has changed."""
        from mlflow.entities import Param, RunTag

        run = self._client.get_run(run_id)
        wanted = {_NAME.sub("_", key): redact(value)[:LONGEST_VALUE] for key, value in flatten(params).items()}
        tags = {key: redact(str(value))[:LONGEST_VALUE] for key, value in tags.items()}
        tags |= {f"now.{k}": v for k, v in wanted.items() if run.data.params.get(k, v) != v}  # parameters never change
        new = [Param(key, value) for key, value in wanted.items() if key not in run.data.params]
        for part in _parts(new, BATCH["params"]):
            self._client.log_batch(run_id, params=part)
        for part in _parts([RunTag(key, value) for key, value in tags.items()], BATCH["tags"]):
            self._client.log_batch(run_id, tags=part)
        if dataset and dataset.digest[:36] not in {given.dataset.digest for given in run.inputs.dataset_inputs}:
            self._client.log_inputs(run_id, [_dataset_input(dataset)])

    def _spool_of(self, run_id: str) -> Spool:
        return Spool(self._home / "mlflow-spool" / run_id)

    def _deliver_left_overs(self) -> None:
        """What earlier processes could not deliver to this server goes out first."""
        for told in self._home.glob("mlflow-spool/*/record"):
            record = RunRecord.from_json(told.read_text())
            spool = Spool(told.parent)
            if not (record and record.tracking_uri == redact(self.uri) and spool.claim()):
                continue
            run = MLflowRun(self._client, record, spool, self._line, True, self._open_late, left_over=True)
            if run.deliver():
                log.info("delivered what run %s had to keep while its tracking server was away", record.run_id)


class MLflowRun(Run):
    """Says everything at once while the server answers; spools, and tries again now and then, while it does not."""

    def __init__(
        self,
        client: MlflowClient,
        record: RunRecord,
        spool: Spool,
        line: _Line,
        resumed: bool = False,
        opens: Callable[[RunRecord, Mapping], tuple[RunRecord, bool]] | None = None,
        left_over: bool = False,
    ) -> None:
        """
        resumed    there was such a run before
        opens      opens a run that the spool says was never opened
        left_over  by an earlier process, whose job may have ended in another since
        """
        self.record = record
        self._open = opens
        self._client = client
        self._spool = spool
        self._resumed, self._left_over = resumed, left_over
        self._said: dict[str, set[tuple[int, float]]] = {}  # what a resumed run had said before, by name
        self._line = line
        self._next_attempt = 0.0
        """where the server answers and does not take what this run says"""
        self._tables: list[dict[str, str]] = []
        self._machine: Machine | None = None

    @property
    def delivered(self) -> bool:
        return not len(self._spool)

    def start_later(self, asked: Mapping[str, Any]) -> None:
        """The server is away: keep the opening of the run for later, before all that it will be told."""
        self._keep(Message("start", dict(asked)))

    def metric_points(self, points: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Many (step, values) in as few requests as can be. A resumed run repeats nothing it has already said."""
        now = _now()
        rows = [[_NAME.sub("_", k), float(v), now, step] for step, values in points for k, v in values.items()]
        for part in _parts(rows, BATCH["metrics"]):
            self._say(Message("metrics", {"rows": part}))

    def machine(self, step: int) -> None:
        if self._machine is None:
            from mcpl.tracking.machine import Machine

            self._machine = Machine()
        try:
            look = self._machine.look()
        except Exception as error:  # what a system cannot tell of itself must not stop learning
            log.debug("the machine cannot be looked at: %s", one_line(error))
        else:
            self.metrics(look, step)

    def tags(self, values: Mapping[str, str]) -> None:
        self._say(Message("tags", {key: redact(str(value))[:LONGEST_VALUE] for key, value in values.items()}))

    def artifact(self, source: Path | bytes, name: str) -> None:
        self._say(Message("artifact", {"name": name}, source))

    def note(self, text: str) -> None:
        self._say(Message("note", {"text": redact(text)}))

    def table(self, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        """Also drawn on the run's page (its first thousand rows). Said again, it replaces what was there."""
        if not rows:
            return
        super().table(rows, name)
        columns = list(dict.fromkeys(key for row in rows for key in row))
        drawn = {"columns": columns, "data": [[row.get(c) for c in columns] for row in rows[:TABLE_ROWS]]}
        self.artifact(json.dumps(drawn, default=str).encode(), f"{name}.json")
        self._tables.append({"path": f"{name}.json", "type": "table"})
        self.tags({"mlflow.loggedArtifacts": json.dumps(self._tables)})

    def finish(self, status: Status = "FINISHED") -> None:
        self._say(Message("finish", {"status": status, "end_time": _now()}))

    def settle(self) -> None:
        """Deliver what waits; waits a little for a server that is away, then says where the rest is kept."""
        self.deliver()
        waited = False
        while len(self._spool) and self._line.patient():
            waited = True
            time.sleep(min(1.0, PATIENCE_SECONDS))
            self._deliver()
        if waited and len(self._spool):
            log.warning(
                "%d messages for the tracking server %s are kept in %s: the next job that tracks there delivers them",
                *(len(self._spool), self.record.tracking_uri, self._spool.folder),
            )

    def deliver(self) -> int:
        """Send what is spooled, as far as the server takes it; how many messages it took. No attempt within
        RETRY_SECONDS after one that failed."""
        ready = self._line.worth_trying and time.monotonic() >= self._next_attempt
        return self._deliver() if ready and len(self._spool) else 0

    def _deliver(self) -> int:
        try:
            with impatient():  # a silent server must not hold learning up again and again
                self._client.search_experiments(max_results=1)
        except Exception as error:
            self._line.lost(one_line(error))
            log.debug("tracking server still away: %s", one_line(error))
            return 0
        self._line.back()
        try:
            return self._spool.deliver(self._send)
        except Exception as error:
            self._next_attempt = time.monotonic() + RETRY_SECONDS
            log.debug("tracking server took not all: %s", one_line(error))
            return 0

    def _say(self, message: Message) -> None:
        self.deliver()
        if len(self._spool) or not self._line.worth_trying:  # still away: keep the order
            return self._keep(message)
        try:
            self._send(message)
        except Refused as reason:
            log.warning("MLflow refused %s of run %s: %s", message.kind, self.record.run_id, reason)
        except Exception as error:  # whatever MLflow, its database or the network raise: learning goes on
            self._line.lost(f"tracking server {self.record.tracking_uri} went away ({one_line(error)})")
            self._keep(message)

    def _keep(self, message: Message) -> None:
        first = not len(self._spool)
        self._spool.put(message)
        if first:
            self._keep_record()
        if not self._line.told:
            self._line.told = True
            log.warning(
                "%s. Learning goes on, and what it should know waits in %s: the next job that tracks there delivers it",
                *(self._line.away, self._spool.folder),
            )

    def _keep_record(self) -> None:
        (self._spool.folder / "record").write_text(self.record.to_json())

    def _send(self, message: Message) -> None:
        from mlflow.entities import Metric, RunTag
        from mlflow.exceptions import MlflowException

        run_id, body = self.record.run_id, message.body
        try:
            if message.kind == "start":
                self.record, self._resumed = self._open(self.record, body)
                self._keep_record()
            elif message.kind == "metrics":
                self._client.log_batch(run_id, metrics=[Metric(*row) for row in self._unsaid(body["rows"])])
            elif message.kind == "tags":
                self._client.log_batch(run_id, tags=[RunTag(key, value) for key, value in body.items()])
            elif message.kind == "note":
                self._client.log_batch(run_id, tags=[RunTag(NOTE_TAG, _drawn(body["text"], run_id))])
            elif message.kind == "artifact":
                self._send_artifact(message.content, body["name"])
            elif not (self._left_over and _ended(self._client, run_id) > body["end_time"]):
                self._client.set_terminated(run_id, body["status"], body["end_time"])
        except MlflowException as error:
            if error.error_code in REFUSALS:
                raise Refused(one_line(error)) from error
            raise

    def _unsaid(self, rows: list[list]) -> list[list]:
        if not self._resumed:
            return rows
        for key in {row[0] for row in rows} - self._said.keys():  # once: a history only grows
            history = self._client.get_metric_history(self.record.run_id, key)
            self._said[key] = {(metric.step, metric.value) for metric in history}
        return [row for row in rows if (row[3], row[1]) not in self._said[row[0]]]

    def _send_artifact(self, content: Path | bytes, name: str) -> None:
        folder, _, file = name.rpartition("/")
        if isinstance(content, Path) and content.name == file:
            return self._client.log_artifact(self.record.run_id, str(content), folder or None)
        with tempfile.TemporaryDirectory(prefix="mcpl-") as scratch:
            path = Path(scratch, file)
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                path.symlink_to(content.resolve())
            self._client.log_artifact(self.record.run_id, str(path), folder or None)


def _dataset_input(dataset: DatasetInput) -> Any:
    """MLflow's dataset entity; MLflow's own dataset classes would read the data."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    scheme = urlsplit(dataset.source).scheme
    kind = scheme if len(scheme) > 1 and scheme != "file" else "local"
    entity = Dataset(
        name=dataset.name[:500],
        digest=dataset.digest[:36],  # all that MLflow's table holds
        source_type=kind,
        source=json.dumps({"uri": redact(dataset.source)}),
        profile=json.dumps({"num_rows": dataset.rows}) if dataset.rows is not None else None,
    )
    return DatasetInput(entity, [InputTag("mlflow.data.context", "learning")])


def _drawn(note: str, run_id: str) -> str:
    """A note whose pictures and links MLflow's page finds; what is too long ends with a whole paragraph."""
    told = _ARTIFACT.sub(lambda found: f"{found[1]}{artifact_address(run_id, found[2])})", note)
    return told if len(told) <= NOTE_LENGTH else told[:NOTE_LENGTH].rpartition("\n\n")[0]


def _ended(client: MlflowClient, run_id: str) -> int:
    """When a run ended, 0 where it never did; in milliseconds, as `_now`."""
    return client.get_run(run_id).info.end_time or 0


def _now() -> int:
    """Milliseconds since 1970, as MLflow counts."""
    return int(time.time() * 1000)


def _yaml(values: Mapping[str, Any]) -> bytes:
    import yaml

    return redact(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)).encode()


def _parts(values: list[T], size: int) -> Iterator[list[T]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
