"""Run a study: its cells as Ray Tune trials; run the same command again to resume.

    OUT/study.json                           the study in its size, and the pictures' digest
    OUT/trials/00007/rows/002-0004.json      the pictures of a cell's seed 2, pack 4, learned: put-if-absent
    OUT/trials/00007/{asked,result}.json     as in a sweep (`trials`)
    OUT/test-split.md                        a line for each command that learned from the test split

A pack that is kept is never learned again, so a kill loses the packs at work and nothing else. Nor is a picture that a
known study, or its committed results, holds (`Known`). One MLflow run speaks for the study, and one below it for each
cell.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any

from ray import tune
from rich.console import Console

from mcpl.config import Placement
from mcpl.data.storage import Store, open_store
from mcpl.errors import ConfigError, MCPLError
from mcpl.models import catalogue
from mcpl.orchestration import fanout
from mcpl.orchestration.attempts import one_line
from mcpl.orchestration.estimate import device_name
from mcpl.orchestration.job import Outcome, commit, processor
from mcpl.orchestration.measures import MEASURES
from mcpl.orchestration.record import tracker_for
from mcpl.orchestration.space import examples, pictures_digest
from mcpl.orchestration.study_report import RAW, diverged, raw, read_raw, study_of, write_report
from mcpl.orchestration.trials import Asked, Result, Trials, told
from mcpl.orchestration.tuning import RUNNER, Board, Record, placed, tune_trials
from mcpl.packing import chunks
from mcpl.recipes import adjust
from mcpl.scenes.scene import Scene
from mcpl.scenes.telling import KINDS, TELLINGS
from mcpl.studies import Cell, Study
from mcpl.tracking.base import Run, Tracker, below, versions
from mcpl.tracking.redaction import redact
from mcpl.types import Example

STUDY_TAG, CELL_TAG = "mcpl.study", "mcpl.cell"
USES = "test-split.md"
DECIDING = ("name", "split", "steps", "dataset", "pictures", "seeds", "samples", "pack", "measures")
"""what of a study decides its rows, beside its cells"""


class StudyPlan:
    """A study as trials see it: one for each of its `works`."""

    kind = Study.kind

    def __init__(self, study: Study) -> None:
        self.study = study

    @property
    def identity(self) -> dict[str, Any]:
        study = self.study
        return {
            "study": study.model_dump(mode="json") | {"dataset": study.dataset and "DATASET"},  # wherever it lies
            "pictures": pictures_digest(study.sets, study.split, study.dataset),
        }

    def deciding(self, identity: dict[str, Any]) -> dict[str, Any]:
        """The grid, its size and the pictures. What the report shows and says may change under what was learned."""
        study = identity["study"]
        grid = {
            f"{place} {cell['name']}": {name: cell.get(name) for name in ("recipe", "set", "told", "only")}
            for place, cell in enumerate(study["cells"])
        }
        return {"study": {name: study.get(name) for name in DECIDING}, "cells": grid, "pictures": identity["pictures"]}


def run(
    study: Study,
    output: str,
    *,
    placement: Placement = Placement(),
    concurrent: int | None = None,
    tracker: str = "mlflow",
    tracking_uri: str | None = None,
    experiment: str = "mcpl",
    known: Sequence[str] = (),
    runner: str = RUNNER,
    console: Console | None = None,
    wait_for_nodes: bool = False,
    verbose: bool = False,
) -> dict[str, Any]:
    """Learn what `output` does not hold yet of a study and write its report; returns the report's summary.

    Cells that fail are told with their reasons and tried again by the next same command. KeyboardInterrupt where
    SIGTERM or Ctrl-C stopped it. placement, concurrent: as in a sweep, of a cell. known: folders of other studies,
    reachable from every machine, whose pictures are taken where they were learned as this study would.
    """
    store = open_store(output)
    if study.dataset:
        study = study.model_copy(update={"dataset": open_store(study.dataset).uri})
    for base in {cell.recipe.base for cell in study.cells}:
        catalogue.find(base)  # a mistyped name must not leave a plan behind
    for works in study.works:
        if not pictures_of(study, works[0]):
            raise ConfigError(f"cell {works[0].name} has no pictures")
    Known(study, known)
    kept = Trials(store, StudyPlan(study))
    grid = Grid(kept, study)
    telling = tracker_for(store, tracker, tracking_uri, experiment)
    with _whole(telling, store, study) as parent:
        record = Record(lambda number, _: _cell_run(telling, parent, store, study, number), study.name)
        for result in kept.untold():
            if record.end(result):
                kept.mark_told(result.number)
        if grid.left:
            if study.split == "test":
                log_use(store)
            orders = {
                "study": study.model_dump(mode="json"),
                "placement": placed(placement, study.pack, study.samples),
                "runner": runner,
                "output": store.uri,
                "known": [open_store(folder).uri for folder in known],
            }

            def packs(number: int) -> int:
                return packs_of(study, number)

            tune_trials(
                *(learn_cell, orders, grid, kept, record),
                Board(("cell",), packs, kept.results(), console, word="cell"),
                packs,
                grid.left,
                placement=placement,
                concurrent=concurrent,
                wait_for_nodes=wait_for_nodes,
                verbose=verbose,
            )
        for number in set(record.settle()) & kept.results().keys():  # of a cell that failed nothing is kept
            kept.mark_told(number)
        if not kept.results():
            raise ConfigError(f"no cell learned anything: {next(iter(grid.failed.values()), 'none has ended')}")
        rows = {number: kept_rows(store, number) for number in kept.results()}
        summary, files = write_report(store, study, rows)
        for name, content in files.items():
            parent.artifact(content, f"study/{name}")
    return summary | {"failed": grid.failed}


class Grid:
    """A study's cells that have not ended yet, one after the other."""

    def __init__(self, kept: Trials, study: Study) -> None:
        self._kept = kept
        ended = kept.results()
        self._waiting = [
            Asked(number, {"cell": _name(cells)}) for number, cells in enumerate(study.works) if number not in ended
        ]
        self.failed: dict[str, str] = {}
        """cell -> why it could not be learned; nothing of that is kept"""

    @property
    def left(self) -> int:
        return len(self._waiting)

    def ask(self) -> Asked:
        asked = self._waiting.pop(0)
        self._kept.ask(asked)
        return asked

    def end(self, result: Result) -> bool:
        """Keep how a cell ended, unless it failed."""
        if failed := result.state == "failed":
            self.failed[str(result.values["cell"])] = result.reason
        else:
            self._kept.end(result)
        return not failed


def _name(cells: Sequence[Cell]) -> str:
    return " = ".join(cell.name for cell in cells)


def packs_of(study: Study, number: int) -> int:
    """Packs of a whole trial."""
    return study.seeds * -(-len(pictures_of(study, study.works[number][0])) // study.pack)


def pictures_of(study: Study, cell: Cell) -> tuple[Example, ...]:
    """What a cell learns from, always in the same order."""
    return _pictures(cell.set, cell.told, cell.only, study.split, study.dataset, study.pictures)


@cache
def _pictures(set_, telling, only, split, dataset, count) -> tuple[Example, ...]:
    if dataset:
        return examples((), split, dataset, count)
    if telling is None and only is None:
        return examples((set_,), split, None, count)
    chosen = []
    for example in examples((set_,), split, None, None):
        scene = Scene.from_json(example.truth)
        if only is None or KINDS[only](scene):
            text = TELLINGS[telling](scene) if telling else example.text
            chosen.append(Example(example.id, example.image, text, example.masks, example.truth, example.group))
    return tuple(chosen[:count])


def learn_cell(config: dict[str, Any]) -> None:
    """What Ray Tune runs: one cell, a seed after the other, each pack kept as it is learned."""
    study, placement = Study(**config["study"]), Placement(**config["placement"])
    try:
        store = open_store(config["output"])
        fanout.check_shared(store, f"{Study.kind}.json")
        known = Known(study, config["known"])
        for said in cell_reports(study, config["number"], store, placement, config["runner"], known):
            tune.report(said)
    except MCPLError as error:  # tried again it would fail again
        tune.report({"packs": 0, "failed": one_line(error)})


class Known:
    """What other studies learned of the same pictures, for this one to take.

    A recipe and a picture have one result, to rounding, whichever study asks and however they are packed. Raises
    ConfigError where a folder holds no study, or one that measured something else.
    """

    def __init__(self, study: Study, folders: Sequence[str]) -> None:
        self._others = [self._opened(study, open_store(folder)) for folder in folders]

    @staticmethod
    def _opened(study: Study, store: Store) -> tuple[Study, Store]:
        try:
            identity = store.get(f"{Study.kind}.json")
        except FileNotFoundError:
            raise ConfigError(f"--known {store.uri} holds no {Study.kind}.json: give the folder of a study") from None
        other = study_of(identity)
        differ = [name for name in ("split", "samples") if getattr(other, name) != getattr(study, name)]
        differ += [f"measure {name}" for name in study.measures if name not in other.measures]
        digest = pictures_digest(other.sets, other.split, study.dataset)
        if bool(other.dataset) != bool(study.dataset) or json.loads(identity)["pictures"] != digest:
            differ.append("pictures")
        if differ:
            raise ConfigError(f"--known {store.uri} is of other {', '.join(differ)}: nothing of it can be taken")
        return other, store

    def lines(self, cell: Cell) -> dict[tuple[str, str, str], dict[str, Any]]:
        """(recipe's fingerprint, base's digest, picture) -> its line, of words learned from sentences told as here."""
        found = {}
        for other, store in self._others:
            alike = {one.name for one in other.cells if (one.set, one.told) == (cell.set, cell.told)}
            for row in _lines_of(other, store) if alike else ():
                if row["cell"] in alike and (row["status"] == "learned" or diverged(row)):
                    key = row["recipe_fingerprint"], row["base_digest"], row["id"]
                    found[key] = {name: value for name, value in row.items() if name not in ("cell", "picture")}
        return found


def _lines_of(study: Study, store: Store) -> list[dict[str, Any]]:
    """The raw table of a study, or what it would be now of one that has not ended."""
    try:
        return read_raw(store.get(RAW))
    except FileNotFoundError:
        return read_raw(raw(study, {number: kept_rows(store, number) for number in range(len(study.works))}))


def cell_reports(
    study: Study, number: int, store: Store, placement: Placement, runner: str, known: Known | None = None
) -> Iterator[dict[str, Any]]:
    """A cell's means after each pack, over all that is learned or was kept before, with the rows' plain numbers."""
    cell = study.works[number][0]
    pictures, rows, packs = pictures_of(study, cell), [], 0
    lines = known.lines(cell) if known else {}
    present = {entry.name for entry in store.list(f"trials/{number:05d}/rows/")}
    for seed in range(cell.recipe.seed, cell.recipe.seed + study.seeds):
        learn = None
        for place, pack in enumerate(chunks(pictures, study.pack)):
            name = f"trials/{number:05d}/rows/{seed:03d}-{place:04d}.json"
            if name not in present:
                learn = learn or fanout.import_runner(runner)(adjust(cell.recipe, seed=seed), placement)
                there = {p.id: lines.get((learn.recipe.fingerprint, learn.base_digest, p.id)) for p in pack}
                left = [example for example in pack if not there[example.id]]
                outcomes = _outcomes(study, learn, left) if left else []
                for example, outcome in zip(left, outcomes, strict=True):
                    there[example.id] = line(study, cell, example, outcome, learn)
                store.put_if_absent(name, json.dumps([there[example.id] for example in pack]).encode())
            rows += json.loads(store.get(name))  # who came first counts, where two were at it
            packs += 1
            yield {"packs": packs, **_means(study, rows), "rows": plain(rows)}


def _outcomes(study: Study, learn: Any, pack: Sequence[Example]) -> list[Outcome]:
    """A pack learned, with what is drawn where something is measured that no bank row keeps."""
    return learn.outcomes(pack, looked_at=False) if study.measures else [Outcome(row) for row in learn(pack)]


def line(study: Study, cell: Cell, example: Example, outcome: Outcome, learn: Any) -> dict[str, Any]:
    """One learned picture as a line of the raw table."""
    row, made = outcome.row, outcome.row.provenance
    said = told(row, made.seed) | {
        "set": cell.set,
        "text": row.text,
        "steps": row.learned.steps if row.learned else None,
        "mask_area": row.learned.kept.mask_area if row.learned else None,
        "seconds": round(row.seconds, 3),
        "recipe_fingerprint": made.recipe_fingerprint,
        "base": made.base,
        "base_digest": made.base_digest,
        "commit": made.commit,
        "hardware": _hardware(learn),
    }
    for name in study.measures if row.learned else ():
        said |= MEASURES[name](learn, example, outcome)
    return said


def _hardware(learn: Any) -> str:
    """What a runner learns on: the GPU's model, or the processor's."""
    device = getattr(getattr(learn, "model", None), "device", None)
    return processor() if device is None or device.type == "cpu" else device_name(device)


def plain(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows without their lists: what a table of pictures shows."""
    return [{name: value for name, value in row.items() if not isinstance(value, list)} for row in rows]


def _means(study: Study, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    found = {name: [row[name] for row in rows if row.get(name) is not None] for name in (*study.metrics, "passes")}
    means = {name: sum(values) / len(values) for name, values in found.items() if values}
    return {name if name == "passes" else f"mean/{name}": mean for name, mean in means.items()}


def kept_rows(store: Store, number: int) -> list[dict[str, Any]]:
    """Every line of a trial, in order of seeds and pictures."""
    names = sorted(entry.name for entry in store.list(f"trials/{number:05d}/rows/"))
    return [row for name in names for row in json.loads(store.get(name))]


def log_use(store: Store) -> None:
    """Add a line to the log of uses of the test split."""
    try:
        before = store.get(USES).decode()
    except FileNotFoundError:
        before = "# Uses of the test split\n\n| when, UTC | commit | command |\n|---|---|---|\n"
    command = redact(shlex.join(["python", *sys.argv])).replace("|", "\\|")
    store.put(USES, (before + f"| {datetime.now(UTC):%Y-%m-%d %H:%M} | {commit()} | `{command}` |\n").encode())


def _whole(tracker: Tracker, store: Store, study: Study) -> Run:
    """The study's own run, gone on with where there is one."""
    bases = sorted({cell.recipe.base for cell in study.cells})
    return tracker.start(
        {"study": study.model_dump(mode="json", exclude={"cells"})},
        {STUDY_TAG: store.uri, "base": ", ".join(bases), "commit": commit(), **versions()},
        name=f"study {study.name}",
        job=f"{store.uri} study",
    )


def _cell_run(tracker: Tracker, parent: Run, store: Store, study: Study, number: int) -> Run:
    cells = study.works[number]
    cell, name = cells[0], _name(cells)
    return tracker.start(
        {"recipe": cell.recipe.model_dump(mode="json"), "cell": cell.model_dump(mode="json", exclude={"recipe"})},
        {
            **{STUDY_TAG: store.uri, CELL_TAG: name, "recipe": cell.recipe.name},
            **{"recipe_fingerprint": cell.recipe.fingerprint, "commit": commit(), **versions()},
            **below(parent),
        },
        name=f"{study.name}: {name}",
        job=f"{store.uri} cell {number:05d}",
    )
