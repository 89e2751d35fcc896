"""Search a space of recipes with Ray Tune; run the same command again to resume, or with more trials to go on.

A trial learns its packs of pictures and reports after each; ASHA stops the worse ones early; `trials.Search` chooses.
How trials run is `tuning`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray import tune
from rich.console import Console

from mcpl.config import Placement
from mcpl.data.storage import Store, open_store
from mcpl.errors import ConfigError, MCPLError
from mcpl.models import catalogue
from mcpl.orchestration import fanout
from mcpl.orchestration.attempts import one_line
from mcpl.orchestration.job import commit
from mcpl.orchestration.record import tracker_for
from mcpl.orchestration.space import Space, Value, examples
from mcpl.orchestration.sweep_report import write_report
from mcpl.orchestration.trials import Result, Search, Trials, report, told
from mcpl.orchestration.tuning import RUNNER, Board, Record, placed, tune_trials
from mcpl.packing import chunks
from mcpl.recipes import adjust
from mcpl.tracking.base import Run, Tracker, versions

SWEEP_TAG, TRIAL_TAG = "mcpl.sweep", "mcpl.trial"


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
    wait_for_nodes: bool = False,
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
    record = SweepRecord(tracker_for(store, tracker, tracking_uri, experiment), store, space)
    for result in kept.untold():  # killed between the result and the end of its run, or the server was away
        if record.end(result):
            kept.mark_told(result.number)
    search, left = Search(kept), trials - len(kept.results())
    if left > 0:
        packs = packs_of(space)
        orders = {
            "space": space.model_dump(mode="json"),
            "placement": placed(placement, space.pack, space.samples),
            "runner": runner,
        }
        tune_trials(
            *(learn_trial, orders, search, kept, record),
            Board(tuple(space.search), lambda _: packs, kept.results(), console),
            lambda _: packs,
            left,
            placement=placement,
            concurrent=concurrent,
            scheduler=lambda: _scheduler(space, packs, kept),
            wait_for_nodes=wait_for_nodes,
            verbose=verbose,
        )
    for number in record.settle():
        kept.mark_told(number)
    results = kept.results()
    if all(result.state == "failed" for result in results.values()):
        reasons = sorted({result.reason for result in results.values()})
        raise ConfigError(f"no trial learned anything: {reasons[0] if reasons else 'none has ended'}")
    return write_report(store, space, Search(kept), record.tell_best)


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


class SweepRecord(Record):
    """A trial's run; its identity is the sweep and the trial's number."""

    def __init__(self, tracker: Tracker, store: Store, space: Space) -> None:
        super().__init__(self._open, Path(store.uri).name)
        self._tracker, self._store, self._space = tracker, store, space

    def _open(self, number: int, values: dict) -> Run:
        recipe = self._space.recipe_of(values, f"trial-{number:05d}")
        return self._tracker.start(
            {"recipe": recipe.model_dump(mode="json"), "searched": dict(values)},
            {
                **{SWEEP_TAG: self._store.uri, TRIAL_TAG: f"{number:05d}", "recipe": recipe.name},
                **{"recipe_fingerprint": recipe.fingerprint, "commit": commit(), **versions()},
            },
            name=f"{Path(self._store.uri).name} {number:05d}",
            job=f"{self._store.uri} trial {number:05d}",
        )

    def tell_best(self, result: Result, trials: int, files: dict[str, bytes]) -> None:
        """The sweep's report lies with the run of its best trial; the tag says among how many it was best."""
        run = self.start(result.number, dict(result.values))
        for name, content in files.items():
            run.artifact(content, f"sweep/{name}")
        run.tags({"mcpl.best_of": str(trials)})
        run.note(files["report.md"].decode().replace("![", "[").replace("](", "](sweep/"))  # links: both are wide
        run.finish()
