"""Score what a bank holds without learning anything again; resumable, in one process or on Ray, like learning it.

The rows of an evaluation are the bank's learned rows; its results lie beside the bank (`data.scores`), under a plan of
their own, committed shard by shard as a bank's parts are. So whatever dies, the same command goes on, and a bank that
has grown scores only its new rows. What was learned again, differently, is scored again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mcpl.config import Placement, Recipe, RunConfig
from mcpl.data import scores
from mcpl.data.bank import Bank, shards_of
from mcpl.data.dataset import ShardRef
from mcpl.data.pictures import fit, load_picture
from mcpl.data.scores import PICTURE, TEXT, TOGETHER, LearnedRows, ScoreRow, Scores
from mcpl.data.sources import Dataset
from mcpl.data.storage import open_store
from mcpl.errors import BankMismatch, ConfigError, ExampleError
from mcpl.evaluation import features
from mcpl.evaluation.evaluate import Evaluation, Given, Subject, evaluate
from mcpl.evaluation.sampling import Sampling, spoken
from mcpl.models import catalogue
from mcpl.models.base import BaseModel
from mcpl.orchestration import fanout
from mcpl.orchestration.job import Runner as Learning
from mcpl.orchestration.job import beginnings, commit, masks_of, model_of
from mcpl.orchestration.plan import BASE, RUN, TALLY, base_of, parts_present, read_plan, replan
from mcpl.orchestration.showing import sentences_of
from mcpl.seeds import derive_seed
from mcpl.settings import Settings
from mcpl.types import BankRow, Example

RUNNER = "mcpl.orchestration.evaluating:Runner"
SCORING = fanout.Kind(LearnedRows.open, scores.encode)
VERSION = 2
"""raised when scores of the same settings change their meaning, or come to be more"""
DRAWN = ("right_object", "right_object_second_judge", "leak", "composition")
"""metrics of pictures that are drawn"""


class Space(Settings):
    """A feature space: where it is read from (empty: where its name says), and which it is."""

    source: str
    digest: str


class Scoring(Settings):
    """What decides the scores of a bank's rows, and where it is found."""

    name: str = "evaluation"
    base: str
    revision: str | None = None
    base_digest: str = Field(description="of the base that the words were learned with, wherever it lies")
    precision: str = "float32"
    dataset: str | None = Field(None, description="the pictures that were learned from, for masks, truth and likeness")
    recipe: Recipe | None = Field(None, description="what the words were learned with: tells what they started from")
    samples: int = Field(4, ge=0, description="pictures drawn of each word")
    seed: int = Field(0, description="of the noise that they are drawn from")
    sampling: Sampling = Sampling()
    features: Mapping[str, Space] = Field({}, description="name -> space in which pictures are compared")
    version: int = VERSION

    @property
    def fingerprint(self) -> str:
        """16 hex digits over what changes a score: whether there are pictures counts, and where they lie does not."""
        content = {
            "precision": self.precision,
            "looks": self.dataset is not None,
            "starts": self.dataset is not None and self.recipe is not None,
            "samples": self.samples,
            "seed": self.seed,
            "sampling": self.sampling.model_dump(mode="json"),
            "features": {name: space.digest for name, space in sorted(self.features.items())},
            "version": self.version,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


class ScoringConfig(RunConfig):
    """A run that scores: `dataset` is the bank, `output` its folder of scores."""

    recipe: Scoring


def scoring_of(
    bank: str,
    dataset: str | None = None,
    spaces: Sequence[str] = ("judge",),
    samples: int = 4,
    seed: int = 0,
    sampling: Sampling = Sampling(),
    model: str | None = None,
) -> Scoring:
    """The settings of an evaluation of a bank: its own base, and its recipe where it is a run's.

    model: where the base lies, if not where it was when the bank was learned

    Raises ConfigError where there is no bank, nothing learned, or a base or feature space that cannot be had.
    """
    store = open_store(bank)
    first = next((row for row in Bank.open(bank).rows(concepts=False) if row.status == "learned"), None)
    if first is None:
        raise ConfigError(f"{bank} holds no learned words; `mcpl bank info {bank}` says why")
    try:
        recipe = Recipe(**json.loads(store.get(RUN))["recipe"])
    except FileNotFoundError:
        recipe = None
    found = {name: Space(source=source, digest=digest) for name, source, digest in map(features.find, spaces)}
    base = model or (recipe.base if recipe else first.provenance.base)
    catalogue.find(base)  # a mistyped name must not leave a plan behind
    return Scoring(
        base=base,
        revision=recipe.revision if recipe and not model else None,
        base_digest=first.provenance.base_digest,
        precision=recipe.precision if recipe else "float32",
        dataset=None if dataset is None else Dataset.open(dataset).uri,
        recipe=recipe,
        samples=samples,
        seed=seed,
        sampling=sampling,
        features=found if samples else {},
    )


@dataclass(frozen=True)
class Evaluated:
    """A bank with an evaluation of it."""

    bank: str
    scores: Scores

    def rows(self, features: bool = True) -> Iterator[ScoreRow]:
        """The scores of the words that the bank holds now; of one that comes again the later counts."""
        return (row for row in self.scores.rows(features) if self.keys.get(row.id) == row.key)

    def metrics(self) -> dict[str, Mapping[str, float]]:
        """Picture -> its metrics, of all that could be scored."""
        return {row.id: row.metrics for row in self.rows(features=False) if row.status == "learned"}

    @cached_property
    def keys(self) -> dict[str, str]:
        """Picture -> what identifies its learned row."""
        return Bank.open(self.bank).keys()

    @cached_property
    def failures(self) -> dict[str, str]:
        """Picture -> why its words could not be scored."""
        found: dict[str, str] = {}
        for row in self.rows(features=False):
            found.pop(row.id, None)
            if row.status == "failed":
                found[row.id] = row.reason
        return found

    @property
    def recipe(self) -> Mapping[str, object]:
        """What it was learned with: of a run all of it, else what its rows tell."""
        try:
            return json.loads(open_store(self.bank).get(RUN))["recipe"]
        except FileNotFoundError:
            told = next(Bank.open(self.bank).rows(concepts=False)).provenance
            return {"name": told.recipe, "fingerprint": told.recipe_fingerprint, "seed": told.seed}


def evaluate_bank(
    bank: str,
    scoring: Scoring,
    placement: Placement = Placement(shard_size=64),
    on_progress: Callable[[fanout.Progress], None] | None = None,
    **how: object,
) -> tuple[Evaluated, fanout.RunSummary]:
    """Score the rows that this evaluation lacks, and give all of them; `how` goes to `fanout.run`."""
    store = open_store(bank)
    output = scores.place(store, scoring.fingerprint)
    found = Scores(scoring.fingerprint, scoring.model_dump(mode="json"), open_store(output))
    _forget_replaced(Evaluated(bank, found))
    config = ScoringConfig(dataset=store.uri, output=output, recipe=scoring, placement=placement)
    summary = fanout.run(config, RUNNER, kind=SCORING, on_progress=on_progress, **how)
    return Evaluated(bank, found), summary


def _forget_replaced(found: Evaluated) -> None:
    """Plan as the bank is now: parts with scores of words that it holds no more are made anew, of those of their rows
    that it still has. A row that was tried again is then tried by the first of its shards alone."""
    store, keys = found.scores.store, found.keys
    with contextlib.suppress(FileNotFoundError):
        if json.loads(store.get(BASE))["base_digest"] != found.scores.settings["base_digest"]:
            store.delete(BASE)
    if base_of(store) is None:
        return
    plan = read_plan(store)
    left = {number: plan.shard(number).ids for number in plan.sizes().keys() - parts_present(store)}
    first = {id: number for number in sorted(left, reverse=True) for id in left[number]}
    stale = []
    for part, rows in found.scores.parts(features=False):
        (number,) = shards_of(part)
        if any(keys.get(row.id) != row.key or first.get(row.id, number) < number for row in rows):
            stale.append(part)
            left[number] = plan.shard(number).ids
            first |= {id: min(number, first.get(id, number)) for id in left[number]}
    for name in (TALLY, *stale) if stale else ():  # the cache first: it would be believed
        store.delete(name)
    replan(store, plan, {n: [id for id in ids if id in keys and first[id] == n] for n, ids in left.items()})


class Runner:
    """Scores learned rows on the base that they were learned with, loaded once."""

    def __init__(self, scoring: Scoring, placement: Placement, model: BaseModel | None = None) -> None:
        self.scoring, self.placement = scoring, placement
        self.model = model_of(scoring.base, scoring.revision, scoring.precision, placement, model)
        self._check_base(scoring.base_digest)  # before it is claimed for the evaluation
        self.spaces = [
            features.load(name, space.source, space.digest, self.model.device)
            for name, space in scoring.features.items()
        ]
        self.pictures = _Pictures(scoring.dataset) if scoring.dataset else None
        self.learning = Learning(scoring.recipe, placement, self.model) if scoring.recipe else None

    @property
    def base_digest(self) -> str:
        return self.model.facts.digest

    def __call__(self, rows: Sequence[BankRow], on_done: Callable[[ScoreRow], None] | None = None) -> list[ScoreRow]:
        done = []
        for row in rows:
            done.append(self._row(row))
            if on_done:
                on_done(done[-1])
        return done

    def _check_base(self, digest: str) -> None:
        if digest != self.base_digest:
            raise BankMismatch(
                f"{self.model.facts.name} is base {self.base_digest}, and words were learned with base {digest}: scores"
                " need the base that the words were learned with; --model names its directory"
            )

    def failed(self, row: BankRow, reason: str) -> ScoreRow:
        """The row of words that could not be scored for a reason that nobody foresaw."""
        return self._score_row(row, time.monotonic(), reason=reason)

    def _row(self, row: BankRow) -> ScoreRow:
        self._check_base(row.provenance.base_digest)
        started, about = time.monotonic(), {}
        try:
            evaluation, found = self._scored(row, self.pictures[row] if self.pictures else ())
            about = {"metrics": _added(row, evaluation.metrics), "features": found}
        except ExampleError as error:
            about = {"reason": str(error)}
        return self._score_row(row, started, **about)

    def _score_row(self, row: BankRow, started: float, **about: object) -> ScoreRow:
        return ScoreRow(
            row.id,
            "failed" if "reason" in about else "learned",
            row.provenance.key,
            self.scoring.fingerprint,
            self.base_digest,
            **about,
            commit=commit(),
            seconds=time.monotonic() - started,
            host=socket.gethostname(),
            scored_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def _scored(
        self, row: BankRow, examples: Sequence[Example]
    ) -> tuple[Evaluation, dict[tuple[str, str], np.ndarray]]:
        """Metrics, and what pictures and words are compared by; examples: what was learned from, where it is known."""
        before = beginnings(self.learning.prepare_set(row.id, examples)) if self.learning and examples else None
        sentence, *others = sentences_of(row)
        given = [
            Given(told, _masks(row, example, self.model.facts.resolution), example.truth)
            for told, example in zip((sentence, *others), examples, strict=False)
        ]
        subject = Subject(
            row.learned,
            tuple(given) or (Given(sentence),),
            before or {},
            derive_seed(self.scoring.seed, row.id),
            self.scoring.recipe.masks_loss if self.scoring.recipe else False,
        )
        evaluation = evaluate(self.model, subject, self.scoring.samples, self.scoring.sampling, compose=True)
        found: dict[tuple[str, str], np.ndarray] = {}
        now = {word.concept.slug: word.vectors for word in row.learned.concepts}
        for suffix, vectors in (("", now), ("_step0", before or {})):
            for concept in (word for word in row.learned.concepts if word.concept.slug in vectors):
                said = spoken(self.model, concept.concept, vectors)
                found[concept.concept.slug, TEXT + suffix] = said.numpy()[None]
        drawn = {(slug, ""): pictures for slug, pictures in evaluation.alone.items()}
        drawn |= {(slug, "_step0"): pictures for slug, pictures in evaluation.alone_step0.items()}
        if evaluation.together is not None:
            drawn[TOGETHER, ""] = evaluation.together
        if examples and evaluation.alone:
            picture = fit(load_picture(examples[0].image), self.model.facts.resolution)
            drawn[PICTURE, ""] = torch.from_numpy(np.array(picture))[None]
        for space in self.spaces:
            found |= {(of, space.name + suffix): space(pictures) for (of, suffix), pictures in drawn.items()}
        return evaluation, found


class _Pictures:
    """The pictures that a bank was learned from, by row; told as the row tells them."""

    def __init__(self, dataset: str) -> None:
        self._dataset = Dataset.open(dataset)
        self._places: dict[str, ShardRef] = dict(zip(self._dataset.ids(), self._dataset.shards(1), strict=True))

    def __getitem__(self, row: BankRow) -> tuple[Example, ...]:
        """One, or a group's. Raises ExampleError where the dataset has no such picture, or another one under its id."""
        told = [(one.id, one.text, one.sha256) for one in row.used]
        return tuple(self._one(*own) for own in told or [(row.id, row.text, row.provenance.picture_sha256)])

    def _one(self, id: str, text: str, learned_from: str) -> Example:
        if id not in self._places:
            raise ExampleError(f"{self._dataset.uri} holds no picture {id!r}")
        (example,) = self._dataset.read(self._places[id])
        if hashlib.sha256(example.image).hexdigest() != learned_from:
            raise ExampleError(f"picture {id!r} of {self._dataset.uri} is not the one that was learned from")
        return replace(example, text=text)


def _masks(row: BankRow, example: Example, side: int) -> dict[str, Tensor]:
    """The masks of the words whose maps, which the bank keeps in one picture each, are of this picture."""
    return {slug: mask for slug, mask in masks_of(example, side).items() if row.picture_of(slug) == example.id}


def _added(row: BankRow, metrics: Mapping[str, float]) -> dict[str, float]:
    """What an evaluation has to say. Of a group, learning measured every picture with the maps of its own, which no
    bank keeps: that stays, and only what is drawn, or was not measured, is added."""
    own = {} if not row.pictures else row.metrics
    return {name: value for name, value in metrics.items() if name not in own or name.removesuffix("_step0") in DRAWN}


@dataclass(frozen=True)
class Asked:
    """What the commands ask of every bank alike."""

    dataset: str | None = None
    spaces: tuple[str, ...] = ("judge",)
    samples: int = 4
    seed: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    model: str | None = None


def evaluate_banks(
    banks: Sequence[str],
    asked: Asked,
    placement: Placement,
    tell: Callable[[str], None] = lambda line: None,
    **how: object,
) -> tuple[list[Evaluated], bool]:
    """Score one bank after the other, one that is named twice once; True where a signal stopped it before the end.

    The banks come back as they were named. `how` goes to `fanout.run`.
    """
    banks = [_bank_in(bank) for bank in banks]
    settings = {bank: _scoring(bank, asked) for bank in banks}  # what may be wrong, before any work
    done: dict[str, Evaluated] = {}
    for bank, scoring in settings.items():
        found, summary = evaluate_bank(bank, scoring, placement, **how)
        done[bank] = found
        reasons = "".join(f"; {id}: {reason}" for id, reason in islice(found.failures.items(), 1))
        tell(
            f"{bank}: {summary.new} pictures scored in {summary.seconds:.0f} s, {summary.resumed} before,"
            f" {len(found.failures)} failed{reasons}"
        )
        if summary.stopped:
            return list(done.values()), True
    return [done[bank] for bank in banks], False


def _scoring(bank: str, asked: Asked) -> Scoring:
    return scoring_of(bank, asked.dataset, asked.spaces, asked.samples, asked.seed, asked.sampling, asked.model)


def _bank_in(folder: str) -> str:
    """The bank itself, also where the folder that `mcpl learn` made is named."""
    return str(Path(folder) / "bank") if (Path(folder) / "bank").is_dir() else folder
