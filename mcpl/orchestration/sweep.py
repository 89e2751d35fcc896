"""Search a space of recipes with Ray Tune; run the same command again to resume, or with more trials to go on.

A trial learns its packs of pictures in its own process, no Trainer inside, and reports after each. Ray Tune places
trials by resources and replaces those whose worker dies; ASHA stops the worse ones early; `trials.Search` chooses.
What is kept lies in the store and nowhere else, so a restart makes Tune anew from there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune.search import Searcher
from rich.console import Console
from rich.live import Live
from rich.table import Table

from mcpl.config import Placement, Recipe
from mcpl.data.storage import Store, open_store
from mcpl.errors import ConfigError, MCPLError
from mcpl.models import catalogue
from mcpl.models.base import BaseModel
from mcpl.orchestration import fanout
from mcpl.orchestration.attempts import one_line
from mcpl.orchestration.job import Runner, commit
from mcpl.orchestration.record import home_of
from mcpl.orchestration.space import Space, Value, examples
from mcpl.orchestration.sweep_report import trial_note, write_report
from mcpl.orchestration.trials import Result, Search, Trials, report, told
from mcpl.packing import chunks
from mcpl.recipes import adjust
from mcpl.tracking.base import Run, Tracker, open_tracker, versions

RUNNER = "mcpl.orchestration.sweep:SharedBase"
TRIAL_RETRIES = 3
"""times that a trial whose worker died is started again"""
SWEEP_TAG, TRIAL_TAG = "mcpl.sweep", "mcpl.trial"
SHOWN = 12
"""trials in the live table: the best, and those at work"""
QUIET = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "TUNE_DISABLE_AUTO_INIT": "1", "RAY_AIR_NEW_OUTPUT": "0"}
QUIET |= {"TUNE_DISABLE_STRICT_METRIC_CHECKING": "1"}  # a trial that fails reports its reason and no score
QUIET |= {"TUNE_DISABLE_SIGINT_HANDLER": "1"}  # it tells how to restore what Tune keeps, and we keep nothing there


class SharedBase(Runner):
    """A Runner whose base stays in its process, for the next seed and the next trial."""

    def __init__(self, recipe: Recipe, placement: Placement) -> None:
        super().__init__(recipe, placement, _base(recipe.base, recipe.revision, recipe.precision, placement.device))


@cache
def _base(name: str, revision: str | None, precision: str, device: str) -> BaseModel:
    return catalogue.load(name, revision=revision, precision=precision, device=device)


def run(
    space: Space,
    output: str,
    trials: int,
    *,
    placement: Placement = Placement(),
    concurrent: int | None = None,
    tracker: str = "mlflow",
    tracking_uri: str | None = None,
    experiment: str = "mcpl",
    runner: str = RUNNER,
    console: Console | None = None,
    verbose: bool = False,
) -> dict[str, Any]:
    """Bring the sweep at `output` to so many trials and write its report; returns the report's summary.

    KeyboardInterrupt where SIGTERM or Ctrl-C stopped it: what had ended is kept, trials at work begin again next time.

    placement   cpus_per_worker and gpus_per_worker are a trial's, and may be fractions
    concurrent  trials at once; None: as many as the resources hold
    """
    store, space = open_store(output), space.whole
    catalogue.find(space.start.base)  # a mistyped name must not leave a plan behind
    examples(space.sets, space.split, space.dataset, space.pictures)
    kept = Trials(store, space)
    record = _Record(open_tracker(tracker, uri=tracking_uri, experiment=experiment, home=home_of(store)), store, space)
    for result in kept.untold():  # killed between the result and the end of its run, or the server was away
        if record.end(result):
            kept.mark_told(result.number)
    search, left = Search(kept), trials - len(kept.results())
    if left > 0:
        _tune(search, kept, record, left, placement, concurrent, runner, console, verbose)
    for number in record.settle():
        kept.mark_told(number)
    results = kept.results()
    if all(result.state == "failed" for result in results.values()):
        reasons = sorted({result.reason for result in results.values()})
        raise ConfigError(f"no trial learned anything: {reasons[0] if reasons else 'none has ended'}")
    return write_report(store, space, Search(kept), record.tell_best)


def _tune(search, kept, record, count, placement, concurrent, runner, console, verbose) -> None:
    space = search.space
    if placement.device == "auto" and not placement.gpus_per_worker:
        placement = placement.model_copy(update={"device": "cpu"})
    orders = {
        "space": space.model_dump(mode="json"),
        "placement": placement.model_dump(mode="json")
        | {"pack": space.pack, "samples": space.samples, "threads": placement.worker_threads},
        "runner": runner,
    }
    packs = packs_of(space)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    with (
        fanout.cluster(verbose),
        _signals() as stop,  # after Ray's own
        tempfile.TemporaryDirectory(prefix="mcpl-sweep-", ignore_cleanup_errors=True) as scratch,
        _Board(space, packs, kept, console) as board,
    ):
        fanout.check_room(1, placement)
        resources = {"cpu": placement.cpus_per_worker, "gpu": placement.gpus_per_worker}
        scheduler = _scheduler(space, packs, kept)
        tuner = tune.Tuner(
            tune.with_resources(learn_trial, resources),
            tune_config=tune.TuneConfig(
                num_samples=count,
                search_alg=_Asking(search, orders),
                scheduler=scheduler,
                max_concurrent_trials=concurrent,
                reuse_actors=True,  # the next trial finds the base loaded
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=scratch,
                callbacks=[_Following(search, kept, record, board, packs, stop)],
                failure_config=tune.FailureConfig(max_failures=TRIAL_RETRIES),
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except _Stopped:
            record.stop()
            raise KeyboardInterrupt from None


class _Stopped(Exception):
    """A signal asked for it. An Exception, so that Tune lets go of its actors."""


@contextlib.contextmanager
def _signals() -> Iterator[threading.Event]:
    """Whether SIGTERM or Ctrl-C asked to stop; Ctrl-C again does not wait for that."""
    asked = threading.Event()

    def handle(number: int, _frame: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    with fanout.heard(handle):
        yield asked


def packs_of(space: Space) -> int:
    """Packs that a whole trial learns: its units of progress."""
    pictures = len(examples(space.sets, space.split, space.dataset, space.pictures))
    return space.seeds * -(-pictures // space.pack)


def learn_trial(config: dict[str, Any]) -> None:
    """What Ray Tune runs: one recipe on all pictures, a seed after the other, reporting after each pack."""
    space, placement = Space(**config["space"]), Placement(**config["placement"])
    try:
        for said in trial_reports(space, config["values"], config["number"], placement, config["runner"]):
            tune.report(said)
    except MCPLError as error:  # tried again it would fail again
        tune.report({"packs": 0, "failed": one_line(error)})


def trial_reports(
    space: Space, values: Mapping[str, Value], number: int, placement: Placement, runner: str
) -> Iterator[dict[str, Any]]:
    """A trial's numbers after each pack, over all pictures learned so far, with their lines."""
    recipe = space.recipe_of(values, f"trial-{number:05d}")
    pictures = examples(space.sets, space.split, space.dataset, space.pictures)
    rows: list[dict] = []
    packs = 0
    for seed in range(recipe.seed, recipe.seed + space.seeds):
        learn = fanout.import_runner(runner)(adjust(recipe, seed=seed), placement)
        for pack in chunks(pictures, space.pack):
            rows += [told(row, seed) for row in learn(pack)]
            packs += 1
            yield {"packs": packs, **report(rows, space), "rows": list(rows)}


def _scheduler(space: Space, packs: int, kept: Trials) -> tune.schedulers.TrialScheduler:
    """ASHA over packs, reminded of the trials that ended before; no stopping where the space asks for none."""
    if space.early is None or packs <= space.early.grace:
        return tune.schedulers.FIFOScheduler()
    metric = "gain" if space.early.signal == "fixed_noise_gain" else "score"
    asha = tune.schedulers.ASHAScheduler(
        time_attr="packs", metric=metric, mode="max", max_t=packs,
        grace_period=space.early.grace, reduction_factor=space.early.reduction,
    )  # fmt: skip
    for result in kept.results().values():
        past = SimpleNamespace(trial_id=f"past-{result.number}")
        asha.on_trial_add(None, past)
        for said in result.reports:
            asha.on_trial_result(None, past, said)
    return asha


class _Asking(Searcher):
    """Ray Tune's side of `Search`. Tune would like to save it: the store already holds all there is."""

    def __init__(self, search: Search, orders: dict[str, Any]) -> None:
        super().__init__()
        self._search, self._orders = search, orders

    def suggest(self, trial_id: str) -> dict[str, Any]:
        asked = self._search.ask()
        return {**self._orders, "number": asked.number, "values": dict(asked.values)}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None: ...
    def save(self, checkpoint_path: str) -> None: ...
    def restore(self, checkpoint_path: str) -> None: ...

    def __getstate__(self) -> dict:
        return {}


class _Following(tune.Callback):
    """Keeps what trials report, tells MLflow, moves the table, and ends it all where `stop` is set."""

    def __init__(
        self, search: Search, kept: Trials, record: _Record, board: _Board, packs: int, stop: threading.Event
    ) -> None:
        self._search, self._kept, self._record, self._board, self._packs = search, kept, record, board, packs
        self._stop = stop
        self._reports: dict[int, list[dict]] = {}
        self._started: dict[int, float] = {}
        self._faults: dict[int, str] = {}

    def on_step_begin(self, iteration, trials, **info) -> None:
        if self._stop.is_set():
            raise _Stopped

    def on_trial_start(self, iteration, trials, trial, **info) -> None:
        number, values = trial.config["number"], trial.config["values"]
        self._reports[number] = []
        self._started.setdefault(number, time.monotonic())
        self._record.start(number, values)
        self._board.start(number, values)

    def on_trial_result(self, iteration, trials, trial, result, **info) -> None:
        number = trial.config["number"]
        if "failed" in result:
            self._faults[number] = result["failed"]
            return
        said = {name: result[name] for name in result if name in SAID or name.startswith("mean/")}
        self._reports[number].append(said)
        self._record.report(number, said)
        self._board.report(number, said)

    def on_trial_complete(self, iteration, trials, trial, **info) -> None:
        number = trial.config["number"]
        if number in self._faults:
            return self._end(trial, "failed", self._faults.pop(number))
        whole = self._reports[number][-1]["packs"] >= self._packs
        self._end(trial, "finished" if whole else "stopped")

    def on_trial_error(self, iteration, trials, trial, **info) -> None:
        self._end(trial, "failed", one_line(trial.get_error()) if trial.get_error() else "its worker died")

    def _end(self, trial, state: str, reason: str = "") -> None:
        number, values = trial.config["number"], trial.config["values"]
        reports = self._reports.pop(number, [])
        last = reports[-1] if reports else {}
        result = Result(
            number, values, state, last.get("score"), last.get("gain"), last.get("passes"),
            round(time.monotonic() - self._started.pop(number, time.monotonic()), 2), reason, reports,
            (trial.last_result or {}).get("rows", ()),
        )  # fmt: skip
        self._search.end(result)
        if self._record.end(result):  # else the same command tells it again, from the store: a spool may be lost
            self._kept.mark_told(number)
        self._board.end(result)

    def __getstate__(self) -> dict:
        return {}


SAID = ("packs", "score", "gain", "passes")


class _Record:
    """One MLflow run for each trial, the same after a restart: its identity is the sweep and the trial's number."""

    def __init__(self, tracker: Tracker, store: Store, space: Space) -> None:
        self._tracker, self._store, self._space = tracker, store, space
        self._name = Path(store.uri).name
        self._runs: dict[int, Run] = {}
        self._missed: dict[int, Run] = {}
        """ended runs of which the tracker has not heard everything"""
        self._said: dict[int, int] = {}

    def start(self, number: int, values: dict) -> Run:
        if number not in self._runs:
            recipe = self._space.recipe_of(values, f"trial-{number:05d}")
            self._runs[number] = self._tracker.start(
                {"recipe": recipe.model_dump(mode="json"), "searched": dict(values)},
                {
                    **{SWEEP_TAG: self._store.uri, TRIAL_TAG: f"{number:05d}", "recipe": recipe.name},
                    **{"recipe_fingerprint": recipe.fingerprint, "commit": commit(), **versions()},
                },
                name=f"{self._name} {number:05d}",
                job=f"{self._store.uri} trial {number:05d}",
            )
        return self._runs[number]

    def report(self, number: int, said: dict) -> None:
        if said["packs"] > self._said.get(number, 0):  # a trial whose worker died says it all again
            self._said[number] = said["packs"]
            self._runs[number].metrics({k: v for k, v in said.items() if k != "packs"}, step=said["packs"])

    def end(self, result: Result) -> bool:
        """End a trial's run; whether all that it said has reached the tracker, for which nobody waits here."""
        run = self.start(result.number, dict(result.values))
        for said in result.reports:  # all of them where the process was killed before the run ended
            self.report(result.number, said)
        run.table(list(result.rows), "pictures")
        run.tags({"mcpl.trial_state": result.state} | ({"reason": result.reason} if result.reason else {}))
        run.note(trial_note(result, self._name))
        run.finish("FAILED" if result.state == "failed" else "FINISHED")
        del self._runs[result.number]
        for missed in self._missed.values():  # the server may be back
            missed.deliver()
        if not run.delivered:
            self._missed[result.number] = run
        return run.delivered

    def settle(self) -> list[int]:
        """Tell what the tracker has missed, waiting a little where it is away; the trials that it knows in full now."""
        for run in self._missed.values():
            run.settle()
        return [number for number, run in self._missed.items() if run.delivered]

    def stop(self) -> None:
        """End the runs of the trials at work, which the same command goes on in."""
        for run in self._runs.values():
            run.finish("KILLED")

    def tell_best(self, result: Result, trials: int, files: dict[str, bytes]) -> None:
        """The sweep's report lies with the run of its best trial; the tag says among how many it was best."""
        run = self.start(result.number, dict(result.values))
        for name, content in files.items():
            run.artifact(content, f"sweep/{name}")
        run.tags({"mcpl.best_of": str(trials)})
        run.note(files["report.md"].decode().replace("![", "[").replace("](", "](sweep/"))  # links: both are wide
        run.finish()


class _Board:
    """The live table: the best trials and those at work; in a log, a line for each trial that ends."""

    def __init__(self, space: Space, packs: int, kept: Trials, console: Console | None) -> None:
        self._console = console or Console(stderr=True)
        self._space, self._packs = space, packs
        self._ended = kept.results()
        self._values: dict[int, dict] = {}
        self._said: dict[int, dict] = {}
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None

    def __enter__(self) -> _Board:
        if self._live:
            self._live.__enter__()
        return self

    def __exit__(self, *how: object) -> None:
        if self._live:
            self._live.__exit__(*how)

    def start(self, number: int, values: dict) -> None:
        self._values[number], self._said[number] = values, {}
        self._draw()

    def report(self, number: int, said: dict) -> None:
        self._said[number] = said
        self._draw()

    def end(self, result: Result) -> None:
        self._ended[result.number] = result
        self._said.pop(result.number, None)
        if self._live is None:
            score = "-" if result.score is None else f"{result.score:.3f}"
            values = ", ".join(f"{path} {_short(value)}" for path, value in result.values.items())
            told = f"trial {result.number:05d} {result.state}: score {score} in {result.seconds:.0f} s; {values}"
            self._console.print(told + (f" ({result.reason})" if result.reason else ""), highlight=False, markup=False)
        self._draw()

    def _draw(self) -> None:
        if self._live:
            self._live.update(self.table(), refresh=True)

    def table(self) -> Table:
        """Trials at work, then the best that ended."""
        done = sum(result.state == "finished" for result in self._ended.values())
        stopped = sum(result.state == "stopped" for result in self._ended.values())
        table = Table(title=f"{done} trials finished, {stopped} stopped early, {len(self._said)} at work")
        for column in ("trial", "", "packs", "score", "gain", "passes", *self._space.search):
            table.add_column(column, justify="left" if column == "" else "right")
        for number, said in sorted(self._said.items()):
            self._row(table, number, "at work", said.get("packs", 0), said, self._values[number])
        ranked = sorted(self._ended.values(), key=lambda r: (r.state != "finished", -(r.score or 0), r.number))
        for result in ranked[: max(1, SHOWN - len(self._said))]:
            packs = result.reports[-1]["packs"] if result.reports else 0
            self._row(table, result.number, result.state, packs, asdict(result), result.values)
        return table

    def _row(self, table: Table, number: int, state: str, packs: float, said: dict, values: dict) -> None:
        numbers = ("-" if said.get(name) is None else f"{said[name]:.3f}" for name in ("score", "gain"))
        passes = "-" if said.get("passes") is None else f"{said['passes']:.0f}"
        shown = (_short(values.get(path)) for path in self._space.search)
        table.add_row(f"{number:05d}", state, f"{packs:.0f}/{self._packs}", *numbers, passes, *shown)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
