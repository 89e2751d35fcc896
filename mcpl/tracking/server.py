"""Which tracking server is meant, whether it answers, and how MLflow is made to behave."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit

from mcpl.errors import ConfigError
from mcpl.tracking.redaction import redact

if TYPE_CHECKING:
    from types import ModuleType

    from mlflow import MlflowClient

T = TypeVar("T")


class Away(ConfigError):
    """The server does not answer now; nothing says that the address is wrong."""


REACH_SECONDS = 6.0  # an unreachable server is named within this time
EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",  # and not of chats
    "mlflow.note.content": "A run is a job of mcpl: a dataset that was learned, or a trial of a sweep. Each says first "
    "what came of it; the words themselves are under Models.",
}
REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED", "INVALID_STATE", "BAD_REQUEST"}
"""codes of MLflow with which a server that is there says no"""


def load_mlflow() -> ModuleType:
    """MLflow with our manners: no telemetry, no pickles, short patience, no chatter. A set variable is respected."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # the server's URL, password and all
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # the spool is the longer patience
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    }.items():
        os.environ.setdefault(name, value)
    import mlflow

    for noisy in ("mlflow.store.db.utils", "mlflow.tracking.fluent", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return mlflow


@contextlib.contextmanager
def speaking_to(uri: str) -> Iterator[None]:
    """The parts of MLflow that read its global tracking URI see this one; everything is as before afterwards."""
    mlflow = load_mlflow()
    variable = os.environ.get("MLFLOW_TRACKING_URI")
    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None if before == variable else before)
        if variable is None:
            os.environ.pop("MLFLOW_TRACKING_URI", None)
        else:
            os.environ["MLFLOW_TRACKING_URI"] = variable


def resolve_uri(explicit: str | None = None, home: str | Path = ".") -> str:
    """Tracking URI: the explicit one, else MLFLOW_TRACKING_URI, else SQLite in `home`."""
    return named_server(explicit) or f"sqlite:///{Path(home).resolve()}/mlflow.db"


def named_server(explicit: str | None = None) -> str | None:
    """The tracking URI that somebody named: the explicit one, else MLFLOW_TRACKING_URI."""
    return explicit or os.environ.get("MLFLOW_TRACKING_URI") or None


def connect(uri: str, *, make: bool = True) -> MlflowClient:
    """A client of a server that answers, or a one-line ConfigError within seconds (MLflow itself takes minutes).

    make  create an SQLite database that is not there; whoever only looks asks for False
    """
    scheme = urlsplit(uri).scheme.split("+")[0]
    if scheme in ("", "file"):
        raise ConfigError(f"tracking URI {uri!r}: MLflow keeps no runs in plain folders; use sqlite:///PATH/mlflow.db")
    if scheme == "sqlite":
        if not make and not _sqlite_path(uri).exists():
            raise ConfigError(f"there is no tracking database {_sqlite_path(uri)}, so nothing has been published there")
        _writable(_sqlite_path(uri))
    mlflow = load_mlflow()
    if scheme in ("http", "https"):
        with impatient():
            _within(REACH_SECONDS, uri, lambda: mlflow.MlflowClient(uri, uri).search_experiments(max_results=1))
    elif scheme in ("postgresql", "mysql", "mssql"):
        _within(REACH_SECONDS, uri, lambda: _connect_database(uri))
    try:
        return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    except Exception as error:
        raise ConfigError(f"tracking URI {redact(uri)} cannot be used: {one_line(error)}") from None


def experiment_id(client: MlflowClient, uri: str, name: str, home: Path) -> str:
    """The experiment's id, created on first use; where no server keeps artifacts, they lie beside the database."""
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, _artifact_location(uri, home, name), EXPERIMENT_TAGS)
        except Exception:  # another driver may have been quicker
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise ConfigError(f"experiment {name!r} at {redact(uri)} was deleted: restore it, or choose another name")
    return found.experiment_id


def artifact_address(run_id: str, name: str) -> str:
    """Where MLflow's own pages find a run's artifact, relative to themselves."""
    return f"get-artifact?path={quote(name)}&run_uuid={run_id}"


@contextlib.contextmanager
def plain_errors(uri: str) -> Iterator[None]:
    """MLflow's exceptions as one-line ConfigErrors: Away unless the server was there and refused."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        kind = ConfigError if error.error_code in REFUSALS else Away
        raise kind(f"tracking server {redact(uri)} failed: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    lines = [line.strip() for line in redact(str(error)).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def _artifact_location(uri: str, home: Path, name: str) -> str | None:
    scheme = urlsplit(uri).scheme
    if scheme in ("http", "https"):
        return None
    beside = _sqlite_path(uri).parent if scheme == "sqlite" else home
    return (beside.resolve() / "mlflow-artifacts" / re.sub(r"[^\w.-]", "_", name)).as_uri()


def _sqlite_path(uri: str) -> Path:
    return Path(uri.partition("///")[2].partition("?")[0])


def _writable(database: Path) -> None:
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=database.parent):
            pass
        if database.exists():
            with database.open("r+b") as file:
                head = file.read(16)
            if head and not head.startswith(b"SQLite format 3"):
                raise ConfigError(f"tracking database {database} is not an SQLite database: choose another path")
    except OSError as error:
        raise ConfigError(f"tracking database {database} cannot be written: {error.strerror}") from None


def _connect_database(uri: str) -> None:
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri)
    with engine.connect():
        pass
    engine.dispose()


@contextlib.contextmanager
def impatient() -> Iterator[None]:
    """One short attempt per request, for a look whether a server is there."""
    wanted = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(int(REACH_SECONDS) - 1)}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _within(seconds: float, uri: str, call: Callable[[], T]) -> T:
    """`call()`, or a ConfigError that says why not; name look-ups have no time limit of their own, so a thread has."""
    outcome: dict[str, Any] = {}

    def attempt() -> None:
        try:
            outcome["value"] = call()
        except Exception as error:
            outcome["error"] = error

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    if "value" in outcome:
        return outcome["value"]
    kind, message = _unreachable(uri, outcome.get("error"), seconds)
    raise kind(message) from None


def _unreachable(uri: str, error: Exception | None, seconds: float) -> tuple[type[ConfigError], str]:
    told, where = redact(str(error)) if error else "timed out", redact(uri)
    if re.search(r"\b40[13]\b|PERMISSION_DENIED|authenticat", told):
        return ConfigError, (
            f"tracking server {where} refuses these credentials: "
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    if re.search(r"\b404\b|JSON", told):
        return ConfigError, f"{where} answers, but not as an MLflow tracking server: check the address"
    reasons = {
        "Connection refused": "connection refused",
        "resolve|Name or service|getaddrinfo": "no such host",
        "timed out|timeout": f"no answer in {seconds:.0f} s",
        "CERTIFICATE|SSL": "no trusted TLS certificate",
    }
    reason = next((short for pattern, short in reasons.items() if re.search(pattern, told, re.I)), None)
    mistaken = reason in ("no such host", "no trusted TLS certificate")
    return ConfigError if mistaken else Away, (
        f"tracking server {where} cannot be reached ({reason or one_line(error)}): start it, correct --tracking-uri or "
        "MLFLOW_TRACKING_URI, or leave both out to track in an SQLite file"
    )
