"""What a job tells the world, whoever listens: the protocol, and the tracker that listens to nothing.

A job is one run, never a picture: per-picture results live in the bank. Only the driver tracks.
"""

from __future__ import annotations

import importlib
import io
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from mcpl.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

TRACKERS = {
    "none": "mcpl.tracking.base:NullTracker",
    "mlflow": "mcpl.tracking.mlflow:MLflowTracker",
}
"""name -> class, loaded when it is asked for: MLflow takes seconds to import."""

PACKAGES = ("mcpl", "torch", "diffusers", "transformers", "ray", "mlflow", "pyarrow")  # what a result depends on
TABLE_LINES = 200  # rows of a table's readable copy

LATER = "later-"

Status = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True)
class DatasetInput:
    """What a job learns from, told without reading it."""

    name: str
    source: str
    """URI; credentials in it are hidden before they are sent"""
    digest: str
    rows: int | None = None


@dataclass(frozen=True)
class RunRecord:
    """Which run speaks for an output. Kept beside the output, so that the same job goes on in the same run."""

    tracking_uri: str
    """without credentials"""
    experiment: str
    run_id: str
    """LATER and more, until the server has been there to open the run"""

    @property
    def opened(self) -> bool:
        return not self.run_id.startswith(LATER)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> RunRecord | None:
        """The record, or None where the text is none: a damaged record only costs a new run."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None


class Run:
    """One job's voice. `with tracker.start(...) as run:` ends it as FINISHED, FAILED or KILLED.

    A tracker gives four verbs: metric_points, tags, artifact, finish. The others are made of these. One that may be
    away also gives deliver and settle, and then `delivered` says whether it has heard everything.
    """

    record: RunRecord | None = None
    ends_as: Status = "FINISHED"
    """how the `with` block ends where nothing is raised; a stopped job sets KILLED"""
    listens = True
    """False: nothing that is told is kept, so nobody need read a whole bank to tell it"""
    delivered = True
    """False: something that was said has not reached the tracker yet"""

    def metric_points(self, points: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Numbers at many steps, (step, {name: value}) each, told at once."""
        raise NotImplementedError

    def tags(self, values: Mapping[str, str]) -> None:
        raise NotImplementedError

    def artifact(self, source: Path | bytes, name: str) -> None:
        """Keep a file's or the given bytes as `name`, which may hold folders: "overlays/p1.png"."""
        raise NotImplementedError

    def finish(self, status: Status = "FINISHED") -> None:
        raise NotImplementedError

    def deliver(self) -> int:
        """Try again, if it is time to, what the tracker has missed; how many messages it took."""
        return 0

    def settle(self) -> None:
        """The last one of a job: try again what the tracker has missed, and wait a little where it is away."""

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        self.metric_points([(step, values)])

    def machine(self, step: int) -> None:
        """Say what the driver's machine is doing, where the tracker shows such things."""

    def figure(self, image: Image, name: str) -> None:
        """Keep a picture as `name`.png."""
        buffer = io.BytesIO()
        image.save(buffer, "PNG", optimize=True)
        self.artifact(buffer.getvalue(), f"{name}.png")

    def table(self, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        """Keep rows as `name`.parquet, with a Markdown copy to read."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not rows:
            return
        buffer = io.BytesIO()
        names = dict.fromkeys(name for row in rows for name in row)  # the first may be a failure, without scores
        pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), buffer, compression="zstd")
        self.artifact(buffer.getvalue(), f"{name}.parquet")
        self.artifact(markdown_table(rows, TABLE_LINES).encode(), f"{name}.md")

    def note(self, text: str) -> None:
        """What people read first of a run: Markdown, whose pictures and links are named as the run's artifacts are."""
        self.artifact(text.encode(), "note.md")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is None:
            self.finish(self.ends_as)
        else:
            self.finish("FAILED" if issubclass(kind, Exception) else "KILLED")
        self.settle()


def below(run: Run) -> dict[str, str]:
    """Tags of a run that MLflow lists below another one; none where the other is not open yet."""
    return {"mlflow.parentRunId": run.record.run_id} if run.record and run.record.opened else {}


class Tracker(Protocol):
    """Opens one run per job."""

    def start(
        self,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        dataset: DatasetInput | None = None,
        *,
        name: str | None = None,
        job: str | None = None,
        resume: RunRecord | None = None,
    ) -> Run:
        """Open the job's run, or go on with it.

        params  settings, nested as they are in YAML; each top-level group is also kept whole as GROUP.yaml
        name    what people read in a list of runs
        job     identity of the job: a second start with the same identity continues the first's run
        resume  record of an earlier start, where the caller kept one
        """
        ...


class NullRun(Run):
    listens = False

    def metric_points(self, points: Sequence[tuple[int, Mapping[str, float]]]) -> None: ...
    def tags(self, values: Mapping[str, str]) -> None: ...
    def artifact(self, source: Path | bytes, name: str) -> None: ...
    def finish(self, status: Status = "FINISHED") -> None: ...
    def figure(self, image: Image, name: str) -> None: ...
    def table(self, rows: Sequence[Mapping[str, Any]], name: str) -> None: ...


class NullTracker:
    """Listens to nothing: `mcpl learn`, benchmarks, tests."""

    def __init__(self, **_: object) -> None: ...

    def start(self, params, tags, dataset=None, *, name=None, job=None, resume=None) -> NullRun:
        return NullRun()


def open_tracker(name: str = "mlflow", **settings: Any) -> Tracker:
    """The tracker of that name from TRACKERS; `settings` are its constructor's."""
    if name not in TRACKERS:
        raise ConfigError(f"no tracker is called {name!r}: choose one of {', '.join(TRACKERS)}")
    module, _, cls = TRACKERS[name].partition(":")
    return getattr(importlib.import_module(module), cls)(**settings)


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Tags with the versions of packages and of Python; nothing is imported to find them."""
    found = {"version.python": platform.python_version()}
    for package in packages:
        try:
            found[f"version.{package}"] = version(package)
        except PackageNotFoundError:
            continue
    return found


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted names: {"recipe": {"lr": 0.1}} becomes {"recipe.lr": "0.1"}."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def markdown_table(rows: Sequence[Mapping[str, Any]], limit: int | None = None) -> str:
    """Rows as a Markdown table: columns in order of first appearance, numbers short and to the right."""
    if not rows:
        return ""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    numeric = {
        c for c in columns if {type(row.get(c)) for row in rows} - {type(None)} in ({int}, {float}, {int, float})
    }
    lines = [columns, ["---:" if c in numeric else "---" for c in columns]]
    lines += [[_cell(row.get(c)) for c in columns] for row in rows[:limit]]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
    left_out = len(rows) - len(rows[:limit])
    return text + (f"\n{left_out} more rows are not shown here.\n" if left_out else "")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
