"""Learn a dataset and tell the world: the fan-out, its MLflow run, and a registry version, joined.

The tracker is opened before anything is learned, so that a wrong server costs nothing; what is told at the end comes
from the bank alone, so that a resumed run tells the same as an undisturbed one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from mcpl.config import RunConfig
from mcpl.data.bank import Bank, PartGone, contents, members
from mcpl.data.scores import ScoredBank
from mcpl.data.sources import Dataset
from mcpl.data.storage import Store, open_store, safe_name
from mcpl.errors import ConfigError
from mcpl.evaluation.metrics import METRICS
from mcpl.evaluation.signs import SIGNS
from mcpl.models import catalogue
from mcpl.orchestration import fanout
from mcpl.orchestration.job import commit
from mcpl.orchestration.plan import RUN, parts_present, read_plan
from mcpl.orchestration.reporting import single_page
from mcpl.orchestration.showing import shown_rows
from mcpl.report import figures
from mcpl.tracking.base import DatasetInput, Run, RunRecord, Tracker, open_tracker, versions
from mcpl.tracking.redaction import redact
from mcpl.tracking.registry import Published, publish
from mcpl.tracking.results import Summary, log_bank, log_scores, log_summary, picture_rows, score_table
from mcpl.tracking.server import named_server, resolve_uri
from mcpl.types import Provenance

log = logging.getLogger(__name__)
RECORD, TOLD = "_mcpl/mlflow.json", "_mcpl/told.json"
OVERLAYS = 12
"""pictures whose sheets a run carries"""
NOTE_WIDTH = 640
"""pixels of the picture in a run's note: a wider one pushes the values of MLflow's page out of sight"""
PAGE_PICTURES = 240
"""pictures of the page that a run carries, one file of a few megabytes at most: `mcpl report` shows the whole bank"""
TABLE_ROWS = 10_000
"""rows of the per-picture table that a run carries; the bank has them all"""
PULSE = 15.0
"""seconds between two points of the progress curve"""


def learn_dataset(
    config: RunConfig,
    *,
    tracker: str = "mlflow",
    runner: str = fanout.RUNNER,
    on_progress: Callable[[fanout.Progress], None] | None = None,
    **how: object,
) -> fanout.RunSummary:
    """`fanout.run` inside one MLflow run; `how` goes to `fanout.run`.

    Raises BankMismatch, before a run is opened, where the output is another recipe's or another base's, and
    ConfigError, before anything is learned, where tracking is set wrong; a server that is only away is told later.
    """
    store, dataset = open_store(config.output), Dataset.open(config.dataset)
    catalogue.find(config.recipe.base)  # a mistyped name must not leave a plan behind
    fanout.check_identity(store, config, runner)  # another run's record must not be opened, let alone written to
    run = _start(tracker_for(store, tracker, config.tracking_uri, config.experiment), config, store, dataset)
    started = time.monotonic()
    last = [started - PULSE]

    def follow(progress: fanout.Progress) -> None:
        if on_progress:
            on_progress(progress)
        now = time.monotonic()
        if now - last[0] >= PULSE:
            last[0] = now
            run.metrics({"progress/pictures": progress.done}, step=int(now - started))
            run.machine(step=int(now - started))

    with run:
        summary = fanout.run(config, runner, on_progress=follow, **how)
        telling = _to_tell(store)  # before it is read: what another driver commits meanwhile is its own to tell
        news = run.listens and not summary.stopped and _told(store) != telling
        if news:
            _tell(run, store, dataset)
        if summary.stopped:
            run.ends_as = "KILLED"
    _keep(run, store)
    if news and run.delivered:  # else the same command tells it again, from the bank: a spool may be lost
        store.put(TOLD, json.dumps({**telling, "run": _run_id(store)}).encode())
    return summary


def tell_scores(bank: str, tracker: str = "mlflow", tracking_uri: str | None = None) -> bool:
    """Tell the run that speaks for a bank what was scored since: means, and the table of pictures. Whether it was told:
    not where no run on this server does, and not before everything is learned, which ends with telling all that is
    known."""
    store = open_store(bank)
    record, uri = _record(store), resolve_uri(tracking_uri, home_of(store))
    if record is None or record.tracking_uri != redact(uri) or _unfinished(store):
        return False
    plan, opened = json.loads(store.get(RUN)), ScoredBank.open(bank)
    summary, pictures = _summary(opened), _table(opened)  # before a run is opened, which an error would end as failed
    server = open_tracker(tracker, uri=uri, experiment=record.experiment, home=home_of(store))
    with server.start({}, {}, **_job(store, plan["recipe"]["name"], plan["fingerprint"])) as run:
        if run.listens:
            log_scores(run, summary)
            run.table(pictures, "pictures")
    return run.listens


def publish_bank(
    bank: str,
    name: str,
    alias: str | None = "champion",
    tracking_uri: str | None = None,
    dataset: str = "",
    better_on: Sequence[str] = (),
) -> Published:
    """A bank's learned words, with what was scored since, as a version of registered model `name`; `alias` then means
    this version.

    Raises ConfigError where there is no bank, no server, nothing learned, or no such score, and NotPromoted where
    `better_on` names metrics and the version that has the alias is not beaten on them.
    """
    check_guard(better_on)
    store = open_store(bank)
    record = _record(store)
    if not dataset:
        with contextlib.suppress(FileNotFoundError):
            dataset = json.loads(store.get(RUN)).get("dataset", "")
    return publish(
        ScoredBank.open(bank).rows(),
        name,
        bank=bank,
        alias=alias,
        better_on=better_on,
        dataset=dataset,
        run_id=record.run_id if record else None,
        large_tables=store.join("_published"),
        tracking_uri=tracking_uri,
        home=home_of(store),
    )


def check_guard(better_on: Sequence[str]) -> None:
    """Raises ConfigError where a guard of an alias names what is no score."""
    known = [*METRICS, *(f"sign_{name}" for name in SIGNS)]
    if unknown := [name for name in better_on if name not in known]:
        raise ConfigError(f"--better-on {', '.join(unknown)}: no such score; there are {', '.join(known)}")


def home_of(store: Store) -> Path:
    """Where the default database lies: beside the output, so that banks of one folder are seen together; in the
    working directory where the output is an object store."""
    return Path(".") if "://" in store.uri else Path(store.uri).parent


def tracker_for(store: Store, tracker: str, tracking_uri: str | None, experiment: str) -> Tracker:
    """The tracker of an output. Notes where its database would lie in a working directory that may be thrown away."""
    if tracker == "mlflow" and "://" in store.uri and not named_server(tracking_uri):
        print(
            f"note: MLflow runs are kept in {resolve_uri(home=home_of(store))} on this machine, and not in {store.uri}:"
            " --tracking-uri or MLFLOW_TRACKING_URI names a server that keeps them",
            file=sys.stderr,
            flush=True,
        )
    return open_tracker(tracker, uri=tracking_uri, experiment=experiment, home=home_of(store))


def _start(tracker: Tracker, config: RunConfig, store: Store, dataset: Dataset) -> Run:
    recipe = config.recipe
    run = tracker.start(
        {"recipe": recipe.model_dump(mode="json"), "placement": config.placement.model_dump(mode="json")},
        {"recipe": recipe.name, "recipe_fingerprint": recipe.fingerprint, "commit": commit(), **versions()},
        DatasetInput(Path(config.dataset).name or config.dataset, config.dataset, dataset.digest, dataset.count),
        **_job(store, recipe.name, recipe.fingerprint),
    )
    _keep(run, store)
    return run


def _job(store: Store, recipe: str, fingerprint: str) -> dict[str, object]:
    """By what an output's run is found, or called where there is none."""
    return {
        "name": f"{Path(store.uri).name} {recipe}",
        "job": f"{store.uri} {fingerprint}",
        "resume": _record(store),
    }


def _keep(run: Run, store: Store) -> None:
    """Which run speaks for the output, so that the same command goes on in it."""
    if run.record and run.record.opened:
        store.put(RECORD, run.record.to_json().encode())


def _unfinished(store: Store) -> bool:
    return not read_plan(store).sizes().keys() <= parts_present(store)


def _to_tell(store: Store) -> dict[str, object]:
    """Which run speaks for the output, and how many shards there are to tell of: their rows never change."""
    return {"run": _run_id(store), "shards": len(parts_present(store))}


def _told(store: Store) -> dict[str, object] | None:
    """What `_to_tell` was when all of it had reached the tracker; None where it never had."""
    try:
        return json.loads(store.get(TOLD))
    except FileNotFoundError:
        return None


def _record(store: Store) -> RunRecord | None:
    try:
        return RunRecord.from_json(store.get(RECORD).decode())
    except FileNotFoundError:
        return None


def _run_id(store: Store) -> str | None:
    record = _record(store)
    return record.run_id if record else None


def _tell(run: Run, store: Store, dataset: Dataset) -> None:
    """Curves, scores, a table of pictures, some sheets, a page to look at, and the bank itself. All is read before
    anything is said, and read once more where parts were joined into a compact file since they were listed."""
    try:
        say = _read(store, dataset)
    except PartGone:
        say = _read(store, dataset)
    say(run)
    try:
        _keep_bank(run, store)
    except FileNotFoundError:
        _keep_bank(run, store)


def _read(store: Store, dataset: Dataset) -> Callable[[Run], None]:
    bank = _scored(store)
    summary, pictures = _summary(bank), _table(bank)
    shown = list(shown_rows(bank, dataset, OVERLAYS))
    learned_with = next(bank.rows()).provenance
    title = f"{Path(store.uri).name}, learned with {learned_with.recipe}"
    page = single_page(bank, dataset, PAGE_PICTURES, title)

    def say(run: Run) -> None:
        log_summary(run, summary)
        run.figure(figures.curves(summary.bands()), "curves")
        run.table(pictures, "pictures")
        for place, one in enumerate(shown):
            sheet = figures.concept_sheet(one)
            run.figure(sheet, f"overlays/{safe_name(one.id)}")
            if place == 0:
                sheet.thumbnail((NOTE_WIDTH, 2 * NOTE_WIDTH))
                run.figure(sheet, "note")
        run.artifact(page, "report/index.html")
        run.tags({"base": learned_with.base, "base_digest": learned_with.base_digest})
        run.note(_note(learned_with, dataset, summary, bool(shown)))

    return say


def _scored(store: Store) -> Bank:
    """With what was scored since; as it was learned where that cannot be read, which is no reason for a run to fail."""
    bank = ScoredBank.open(store.uri)
    try:
        bank.later  # noqa: B018  (read here, once)
    except (ConfigError, FileNotFoundError, ValueError) as error:
        log.warning("the run is told without later scores: %s", error)
        return Bank.open(store.uri)
    return bank


def _summary(bank: Bank) -> Summary:
    summary = Summary()
    for row in bank.rows(concepts=False):
        summary.add(row)
    return summary


def _table(bank: Bank) -> list[dict[str, object]]:
    return picture_rows(islice(bank.rows(), TABLE_ROWS))


def _note(learned_with: Provenance, dataset: Dataset, summary: Summary, drawn: bool) -> str:
    """What was learned and how well, before anybody opens an artifact; the page shows its first lines at once."""
    counts = ", ".join(f"{count} {status}" for status, count in summary.statuses.items())
    name = Path(dataset.uri).name or dataset.uri
    parts = [
        f"**{name}: {counts}**, with recipe `{learned_with.recipe}` on base `{learned_with.base}`. Under Artifacts, "
        "`report/index.html` is the page to look at, `pictures` a table, and `bank` what was learned.",
        drawn and "![where each word looks](note.png)",
        f"Means over pictures:\n\n{score_table(summary.scores())}",
    ]
    return "\n\n".join(filter(None, parts))


def _keep_bank(run: Run, store: Store) -> None:
    parts = members(store)
    log_bank(run, store.uri, contents(store, parts), sum(e.size for e in parts))
