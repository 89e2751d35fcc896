"""Trials on Ray Tune: what a sweep and a study share. A trial learns in its own process and reports after each pack.

Ray Tune places trials by resources and replaces those whose worker dies. Who asks for trials (`Asks`), who is told of
them (`Record`, `Board`) and what is kept (`trials.Trials`) are given. What is kept lies in the store and nowhere else,
so a restart makes Tune anew from there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any, Protocol

from ray import tune
from ray.tune.search import Searcher
from rich.console import Console
from rich.live import Live
from rich.table import Table

from mcpl.config import Placement, Recipe
from mcpl.models import catalogue
from mcpl.models.base import BaseModel
from mcpl.orchestration import fanout
from mcpl.orchestration.attempts import one_line
from mcpl.orchestration.job import Runner
from mcpl.orchestration.sweep_report import trial_note
from mcpl.orchestration.trials import Asked, Result, Trials
from mcpl.tracking.base import Run

RUNNER = "mcpl.orchestration.tuning:SharedBase"
TRIAL_RETRIES = 3
"""times that a trial whose worker died is started again"""
SHOWN = 12
"""trials in the live table: the best, and those at work"""
QUIET = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "TUNE_DISABLE_AUTO_INIT": "1", "RAY_AIR_NEW_OUTPUT": "0"}
QUIET |= {"TUNE_DISABLE_STRICT_METRIC_CHECKING": "1"}  # a trial that fails reports its reason and no score
QUIET |= {"TUNE_DISABLE_SIGINT_HANDLER": "1"}  # it tells how to restore what Tune keeps, and we keep nothing there
SAID = ("packs", "score", "gain", "passes")


class SharedBase(Runner):
    """A Runner whose base stays in its process, for the next seed and the next trial."""

    def __init__(self, recipe: Recipe, placement: Placement) -> None:
        super().__init__(recipe, placement, _base(recipe.base, recipe.revision, recipe.precision, placement.device))


@cache
def _base(name: str, revision: str | None, precision: str, device: str) -> BaseModel:
    return catalogue.load(name, revision=revision, precision=precision, device=device)


class Asks(Protocol):
    """Chooses the trials."""

    def ask(self) -> Asked: ...
    def end(self, result: Result) -> bool:
        """Keep how a trial ended; whether it is kept, so that it is not tried again."""
        ...


def placed(placement: Placement, pack: int, samples: int) -> dict[str, Any]:
    """A trial's placement as values."""
    placement = fanout.decided(placement)
    return placement.model_dump(mode="json") | {"pack": pack, "samples": samples, "threads": placement.worker_threads}


def tune_trials(
    learn: Callable[[dict[str, Any]], None],
    orders: Mapping[str, Any],
    asks: Asks,
    kept: Trials,
    record: Record,
    board: Board,
    packs: Callable[[int], int],
    count: int,
    *,
    placement: Placement,
    concurrent: int | None = None,
    scheduler: Callable[[], tune.schedulers.TrialScheduler] = tune.schedulers.FIFOScheduler,
    wait_for_nodes: bool = False,
    verbose: bool = False,
) -> None:
    """Run `count` trials. KeyboardInterrupt where SIGTERM or Ctrl-C stopped them.

    learn   what a trial's process calls with the orders, its number and its values; see `told_to_tune`
    packs   number of a trial -> packs that make it whole
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    with (
        fanout.cluster(verbose),
        _signals() as stop,  # after Ray's own
        tempfile.TemporaryDirectory(prefix="mcpl-tune-", ignore_cleanup_errors=True) as scratch,
        board,
    ):
        if not wait_for_nodes:
            fanout.check_room(1, placement, board.word)
        resources = {"cpu": placement.cpus_per_worker, "gpu": placement.gpus_per_worker}
        tuner = tune.Tuner(
            tune.with_resources(learn, resources),
            tune_config=tune.TuneConfig(
                num_samples=count,
                search_alg=_Asking(asks, orders),
                scheduler=scheduler(),
                max_concurrent_trials=concurrent,
                reuse_actors=True,  # the next trial finds the base loaded
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=scratch,
                callbacks=[Following(asks, kept, record, board, packs, stop)],
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


class _Asking(Searcher):
    """Ray Tune's side of `Asks`. Tune would like to save it: the store already holds all there is."""

    def __init__(self, asks: Asks, orders: Mapping[str, Any]) -> None:
        super().__init__()
        self._asks, self._orders = asks, orders

    def suggest(self, trial_id: str) -> dict[str, Any]:
        asked = self._asks.ask()
        return {**self._orders, "number": asked.number, "values": dict(asked.values)}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None: ...
    def save(self, checkpoint_path: str) -> None: ...
    def restore(self, checkpoint_path: str) -> None: ...

    def __getstate__(self) -> dict:
        return {}


class Following(tune.Callback):
    """Keeps what trials report, tells MLflow, moves the table, and ends it all where `stop` is set."""

    def __init__(
        self,
        asks: Asks,
        kept: Trials,
        record: Record,
        board: Board,
        packs: Callable[[int], int],
        stop: threading.Event,
    ) -> None:
        self._asks, self._kept, self._record, self._board, self._packs = asks, kept, record, board, packs
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
        whole = self._reports[number][-1]["packs"] >= self._packs(number)
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
        kept = self._asks.end(result)
        if self._record.end(result) and kept:  # else the same command tells it again: a spool may be lost
            self._kept.mark_told(number)
        self._board.end(result)

    def __getstate__(self) -> dict:
        return {}


class Record:
    """One MLflow run for each trial, the same after a restart."""

    def __init__(self, opens: Callable[[int, dict], Run], of: str) -> None:
        """opens: (number, values) -> the trial's run, opened, or gone on with where there is one; of: what the trials
        belong to, by name."""
        self._opens, self._of = opens, of
        self._runs: dict[int, Run] = {}
        self._missed: dict[int, Run] = {}
        """ended runs of which the tracker has not heard everything"""
        self._said: dict[int, int] = {}

    def start(self, number: int, values: dict) -> Run:
        if number not in self._runs:
            self._runs[number] = self._opens(number, values)
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
        run.note(trial_note(result, self._of))
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


class Board:
    """The live table: the best trials and those at work, and above it a line for each that failed; in a log, a line for
    each trial that ends."""

    def __init__(
        self,
        columns: Sequence[str],
        packs: Callable[[int], int],
        ended: Mapping[int, Result],
        console: Console | None = None,
        word: str = "trial",
    ) -> None:
        self._console = console or Console(stderr=True)
        self._columns, self._packs, self.word = columns, packs, word
        self._ended = dict(ended)
        self._values: dict[int, dict] = {}
        self._said: dict[int, dict] = {}
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None

    def __enter__(self) -> Board:
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
        if self._live is None or result.state == "failed":
            score = "" if result.score is None else f" score {result.score:.3f}"
            values = ", ".join(f"{path} {_short(value)}" for path, value in result.values.items())
            told = f"{self.word} {result.number:05d} {result.state}:{score} in {result.seconds:.0f} s; {values}"
            self._console.print(told + (f" ({result.reason})" if result.reason else ""), highlight=False, markup=False)
        self._draw()

    def _draw(self) -> None:
        if self._live:
            self._live.update(self.table(), refresh=True)

    def table(self) -> Table:
        """Trials at work, then the best that ended."""
        done = sum(result.state == "finished" for result in self._ended.values())
        others = {state: sum(r.state == state for r in self._ended.values()) for state in ("stopped", "failed")}
        told = {"stopped": "stopped early", "failed": "failed"}
        said = "".join(f", {count} {told[state]}" for state, count in others.items() if count)
        table = Table(title=f"{done} {self.word}s finished{said}, {len(self._said)} at work")
        for column in (self.word, "", "packs", "score", "gain", "passes", *self._columns):
            table.add_column(column, justify="left" if column == "" else "right")
        for number, said in sorted(self._said.items()):
            self._row(table, number, "at work", said.get("packs", 0), said, self._values[number])
        ranked = sorted(self._ended.values(), key=lambda r: (r.state != "finished", -(r.score or 0), r.number))
        for result in ranked[: max(1, SHOWN - len(self._said))]:
            packs = result.reports[-1]["packs"] if result.reports else 0
            self._row(table, result.number, result.state, packs, asdict(result), result.values)
        return table

    def _row(self, table: Table, number: int, state: str, packs: float, said: dict, values: Mapping) -> None:
        numbers = ("-" if said.get(name) is None else f"{said[name]:.3f}" for name in ("score", "gain"))
        passes = "-" if said.get("passes") is None else f"{said['passes']:.0f}"
        shown = (_short(values.get(path)) for path in self._columns)
        table.add_row(f"{number:05d}", state, f"{packs:.0f}/{self._packs(number)}", *numbers, passes, *shown)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
