"""The trials of a sweep or a study as files, and the search that reads them. Storage is the only truth: no Ray here.

    OUT/sweep.json, OUT/study.json  what is compared, with the pictures' digest; what of it makes it one sweep, or one
                                    study, is `Plan.deciding`
    OUT/trials/00007/asked.json     what trial 7 tries: written before it starts
    OUT/trials/00007/result.json    how it ended: put-if-absent
    OUT/trials/00007/told           its MLflow run has ended, and the server has it all

A trial that was asked and has no result is tried again under its own number; the search (Optuna's TPE) is made anew
from the results at every start. So a kill at any moment loses at most what the trials at work had learned.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from mcpl.data.storage import Store
from mcpl.errors import ConfigError
from mcpl.orchestration.space import Space, Value
from mcpl.seeds import derive_seed
from mcpl.tracking.base import flatten
from mcpl.types import BankRow

if TYPE_CHECKING:
    from optuna import Study

DIVERGED_GAIN = -1.0
"""what a picture that diverged counts in the early signal: its loss doubled"""


@dataclass(frozen=True)
class Asked:
    """One trial: its number and the values that it tries."""

    number: int
    values: Mapping[str, Value]


@dataclass(frozen=True)
class Result:
    """How a trial ended."""

    number: int
    values: Mapping[str, Value]
    state: Literal["finished", "stopped", "failed"]
    """stopped: by ASHA, with what it had until then"""
    score: float | None = None
    """the objective's weighted mean over pictures and seeds"""
    gain: float | None = None
    passes: float | None = None
    """U-Net sample passes for a picture, the unit of cost"""
    seconds: float = 0.0
    reason: str = ""
    reports: Sequence[Mapping[str, float]] = ()
    """what it said after each pack"""
    rows: Sequence[Mapping[str, Any]] = field(default=(), repr=False)
    """a picture learned with one seed each"""


def told(row: BankRow, seed: int) -> dict[str, Any]:
    """One learned picture as a flat line."""
    line: dict[str, Any] = {"id": row.id, "seed": seed, "status": row.status, "reason": row.reason}
    if row.learned:
        line |= {name: value for name, value in row.metrics.items() if math.isfinite(value)}
        line["passes"] = row.learned.sample_passes
    return line


def report(rows: Sequence[Mapping[str, Any]], space: Space) -> dict[str, float]:
    """A trial's numbers over the pictures learned so far.

    Words that diverged have hit nothing. Raises ConfigError where no picture can be scored by the objective.
    """
    learned = [row for row in rows if row["status"] == "learned"]
    weights = space.objective
    if learned and not any(name in row for row in learned for name in weights):
        raise ConfigError(
            f"no picture has {' or '.join(weights)}: these need masks, truth and samples; choose an objective from "
            + ", ".join(sorted({name for row in learned for name in row} - {"id", "seed", "status", "reason"}))
        )
    means = {name: _mean([row.get(name, 0.0 if row not in learned else None) for row in rows]) for name in weights}
    known = {name: mean for name, mean in means.items() if mean is not None}
    total = sum(weights[name] for name in known)
    return {
        "score": sum(weights[name] * mean for name, mean in known.items()) / total if total else 0.0,
        "gain": _mean([_gain(row) for row in rows]) or 0.0,
        "passes": _mean([row.get("passes") for row in rows]) or 0.0,
        **{f"mean/{name}": mean for name, mean in known.items()},
    }


def _gain(row: Mapping[str, Any]) -> float:
    """Share of the loss on fixed noise that is gone."""
    before, after = row.get("fixed_noise_loss_step0"), row.get("fixed_noise_loss")
    return 1 - after / before if before and after is not None else DIVERGED_GAIN


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


class Plan(Protocol):
    """What trials belong to."""

    kind: str
    """"sweep" or "study"; also the name of its file"""

    @property
    def identity(self) -> dict[str, Any]:
        """What is kept of it. Where files lie does not matter, what they hold does."""
        ...

    def deciding(self, identity: dict[str, Any]) -> dict[str, Any]:
        """What of an identity decides results, and must be the same for trials to be compared."""
        ...


class Trials:
    """A plan's trials in a store."""

    def __init__(self, store: Store, plan: Plan) -> None:
        """Raises ConfigError where the store holds another plan: other settings, another recipe or other pictures. What
        decides no result, such as a note, is kept as it is now."""
        self.store, self.plan = store, plan
        file, ours = f"{plan.kind}.json", (json.dumps(plan.identity, indent=1) + "\n").encode()
        if store.put_if_absent(file, ours):
            return
        was, now = (flatten(plan.deciding(json.loads(kept))) for kept in (store.get(file), ours))
        differ = [name for name in {**now, **was} if was.get(name) != now.get(name)]
        if differ:
            told = ", ".join(f"{name} was {was.get(name)} and is {now.get(name)}" for name in differ[:3])
            raise ConfigError(f"{store.uri} holds another {plan.kind} ({told}): give another --out, or what it had")
        store.put(file, ours)

    def asked(self) -> list[Asked]:
        """Every trial, in order of numbers."""
        return [Asked(**json.loads(self.store.get(name))) for name in self._names("asked.json")]

    def results(self) -> dict[int, Result]:
        """number -> how it ended."""
        results = [Result(**json.loads(self.store.get(name))) for name in self._names("result.json")]
        return {result.number: result for result in results}

    def ask(self, asked: Asked) -> None:
        self.store.put_if_absent(_name(asked.number, "asked.json"), json.dumps(asdict(asked)).encode())

    def end(self, result: Result) -> None:
        self.store.put_if_absent(_name(result.number, "result.json"), json.dumps(asdict(result)).encode())

    def mark_told(self, number: int) -> None:
        self.store.put(_name(number, "told"), b"")

    def untold(self) -> list[Result]:
        """Ended trials whose run may still say that it is running."""
        known = {name.split("/")[1] for name in self._names("told")}
        return [result for number, result in self.results().items() if f"{number:05d}" not in known]

    def _names(self, file: str) -> list[str]:
        return sorted(e.name for e in self.store.list("trials/") if e.name.endswith(f"/{file}"))


def _name(number: int, file: str) -> str:
    return f"trials/{number:05d}/{file}"


class Search:
    """Optuna's TPE over a space, fed with whatever has ended."""

    def __init__(self, trials: Trials) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._trials, self.space = trials, trials.plan
        ended = trials.results()
        asked = trials.asked()
        self._waiting = [one for one in asked if one.number not in ended]
        self._next = max((one.number for one in asked), default=-1) + 1
        self._open: dict[int, Any] = {}
        self._distributions = {path: knob.distribution for path, knob in self.space.search.items()}
        # a search that starts again at trial n must not draw what it drew at trial 0
        sampler = optuna.samplers.TPESampler(
            seed=derive_seed("sweep", self.space.seed, self._next) % 2**32,
            n_startup_trials=self.space.startup,
            constant_liar=True,  # trials at work count as bad ones, so that neighbours are not tried at once
        )
        directions = ["maximize", "minimize"] if self.space.cost else ["maximize"]
        self.study: Study = optuna.create_study(sampler=sampler, directions=directions)
        for result in ended.values():
            self._remember(result)

    def ask(self) -> Asked:
        """The next trial: one that was asked before and never ended, the starting recipe, or what TPE chooses."""
        if self._waiting:
            known = self._waiting.pop(0)
            number, wanted = known.number, dict(known.values)
        else:
            number, self._next = self._next, self._next + 1
            wanted = self.space.start_values if number == 0 else {}
        if wanted:
            self.study.enqueue_trial(wanted)
        trial = self.study.ask(self._distributions)
        self._open[number] = trial
        asked = Asked(number, dict(trial.params))
        self._trials.ask(asked)
        return asked

    def end(self, result: Result) -> bool:
        """Keep how a trial ended, and learn from it."""
        self._trials.end(result)
        trial = self._open.pop(result.number)
        state, values = self._outcome(result)
        if state.name == "PRUNED" and not self.space.cost and result.score is not None:
            trial.report(result.score, len(result.reports))
        self.study.tell(trial, values, state)
        return True

    def _remember(self, result: Result) -> None:
        from optuna.trial import create_trial

        state, values = self._outcome(result)
        middle = {len(result.reports): result.score} if state.name == "PRUNED" and not self.space.cost else {}
        self.study.add_trial(
            create_trial(
                params=dict(result.values), distributions=self._distributions, values=values, state=state,
                intermediate_values=middle,
            )
        )  # fmt: skip

    def _outcome(self, result: Result) -> tuple[Any, list[float] | None]:
        from optuna.trial import TrialState

        if result.state == "finished":
            return TrialState.COMPLETE, [result.score, result.passes] if self.space.cost else [result.score]
        return (TrialState.PRUNED if result.state == "stopped" else TrialState.FAIL), None

    def results(self) -> dict[int, Result]:
        """number -> how it ended, as the store has it."""
        return self._trials.results()

    def importances(self) -> dict[str, float]:
        """Share of the score's variance that each knob explains (fANOVA); empty for fewer than three finished."""
        import optuna

        done = [trial for trial in self.study.trials if trial.state.name == "COMPLETE"]
        if len(done) < 3 or len({trial.values[0] for trial in done}) < 2:
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=self.space.seed)
        return optuna.importance.get_param_importances(
            self.study, evaluator=evaluator, target=lambda trial: trial.values[0]
        )

    def front(self) -> list[Result]:
        """Finished trials that no other beats in score and in passes; the one best where cost does not count."""
        done = [result for result in self._trials.results().values() if result.state == "finished"]
        ranked = sorted(done, key=lambda result: (-result.score, result.passes, result.number))
        if not self.space.cost:
            return ranked[:1]
        front: list[Result] = []
        for result in ranked:
            if not front or result.passes < front[-1].passes:
                front.append(result)
        return front
