"""A pack's whole life, from stored bytes to bank rows. No Ray: a worker is one caller, a `for` loop another."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import platform
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import mcpl
from mcpl.config import Placement, Recipe
from mcpl.data.pictures import aligned_mask, fit, fit_mask, load_picture
from mcpl.errors import ExampleError, NothingToLearn, PackTooLarge
from mcpl.evaluation.evaluate import Evaluation, Given, Subject, evaluate_all
from mcpl.learning.batch import make_shared_job
from mcpl.learning.learner import Learner
from mcpl.models import catalogue
from mcpl.models.base import BaseModel
from mcpl.orchestration import threads
from mcpl.orchestration.memory import probed_pack
from mcpl.packing import halve
from mcpl.prompts import named, parse
from mcpl.seeds import derive_seed
from mcpl.types import BankRow, Example, Group, GroupPicture, Job, LearnedConcepts, Pack, Provenance


@dataclass(frozen=True)
class Outcome:
    """A learned picture or group with what only a person looks at and no bank keeps."""

    row: BankRow
    job: Job | None = None
    learned: LearnedConcepts | None = None
    evaluation: Evaluation | None = None


@dataclass(frozen=True)
class Prepared:
    """A picture or group made ready: its job, and what of it cannot be used."""

    asked: Example | Group
    job: Job | None
    """None where nothing can be used"""
    used: tuple[Example, ...]
    faults: Mapping[str, ExampleError]
    """id of a picture -> why it is left out"""

    @property
    def reason(self) -> str | None:
        if isinstance(self.asked, Group):
            left_out = (f"picture {id!r} is left out: {fault}" for id, fault in self.faults.items())
            return "; ".join(left_out) or None
        return next(map(str, self.faults.values()), None)

    @property
    def pictures(self) -> tuple[GroupPicture, ...]:
        """What a group's row keeps of each picture."""
        if isinstance(self.asked, Example):
            return ()
        looks = {e.id: look.sentence for e, look in zip(self.used, self.job.looks, strict=True)} if self.job else {}
        return tuple(
            GroupPicture(
                id=e.id,
                text=e.text,
                sha256=_sha256(e.image),
                words=tuple(looks[e.id].concepts[c].slug for c in named(looks[e.id])) if e.id in looks else (),
                reason=str(self.faults[e.id]) if e.id in self.faults else None,
            )
            for e in self.asked.pictures
        )


class Runner:
    """Learns pictures on one frozen base, loaded once.

    runner(jobs) gives one BankRow for every picture or group, in order; a bad picture or sentence is a row with its
    reason, and a group is learned from the others.
    """

    def __init__(self, recipe: Recipe, placement: Placement, model: BaseModel | None = None) -> None:
        self.recipe, self.placement = recipe, placement
        self.most = None if placement.pack == "auto" else placement.pack
        """pictures that share a batch; None until the device was asked, fewer once they did not fit"""
        self.model = model_of(recipe.base, recipe.revision, recipe.precision, placement, model)

    @property
    def base_digest(self) -> str:
        return self.model.facts.digest

    def __call__(
        self, jobs: Sequence[Example | Group], on_done: Callable[[BankRow], None] | None = None
    ) -> list[BankRow]:
        rows, left = [], list(jobs)
        while left:
            size = self.pack_size(left)
            pack, left = left[:size], left[size:]
            for outcome in self.outcomes(pack, looked_at=False):
                rows.append(outcome.row)
                if on_done:
                    on_done(outcome.row)
        return rows

    def failed(self, asked: Example | Group, reason: str) -> BankRow:
        """The row of what could not be learned for a reason that nobody foresaw."""
        faults = {example.id: ExampleError(reason) for example in asked.pictures}
        return self._stamped(Outcome(self._row(Prepared(asked, None, (), faults), "failed", reason)), 0.0).row

    def outcomes(
        self,
        jobs: Sequence[Example | Group],
        on_step: Callable[[int], None] | None = None,
        on_look: Callable[[list[LearnedConcepts]], None] | None = None,
        looked_at: bool = True,
    ) -> list[Outcome]:
        """One pack's whole life; outcomes in the order of `jobs`.

        `on_step(steps taken)` and `on_look(what is learned so far)` follow the optimisation; looked_at: draw what no
        score needs, too."""
        started = time.monotonic()
        prepared = [self._prepared(asked) for asked in jobs]
        usable = [one for one in prepared if one.job]
        learned = self._learn([one.job for one in usable], on_step, on_look)
        scored = iter(self._scored(usable, learned, looked_at))
        outcomes = [next(scored) if one.job else Outcome(self._unusable(one)) for one in prepared]
        share = (time.monotonic() - started) / max(1, len(jobs))
        return [self._stamped(outcome, share) for outcome in outcomes]

    def prepare(self, asked: Example | Group) -> Job:
        """Picture and sentence to a Job, or those of a group that can be used. Raises ExampleError with the reason."""
        prepared = self._prepared(asked)
        if prepared.job is None:
            raise next(iter(prepared.faults.values())) if isinstance(asked, Example) else ExampleError(prepared.reason)
        return prepared.job

    def prepare_set(self, id: str, examples: Sequence[Example]) -> Job:
        """Pictures that share words (MCPL-diverse) to one Job. Raises ExampleError with the reason."""
        sentences = [parse(example.text, self.recipe.words) for example in examples]
        for example, sentence in zip(examples, sentences, strict=True):
            if not sentence.concepts:
                raise NothingToLearn(f"nothing to learn in {example.text!r} with words = {self.recipe.words!r}")
        pictures = [fit(load_picture(example.image), self.model.facts.resolution) for example in examples]
        masks = [masks_of(e, self.model.facts.resolution) for e in examples] if self.recipe.needs_masks else ()
        return make_shared_job(
            self.model, id, sentences, torch.stack([to_pixels(picture) for picture in pictures]), self.recipe, masks
        )

    def _prepared(self, asked: Example | Group) -> Prepared:
        alone, faults = {}, {}
        for example in asked.pictures:
            try:
                alone[example.id] = self.prepare_set(asked.id, [example])
            except ExampleError as error:
                faults[example.id] = error
        used = tuple(example for example in asked.pictures if example.id in alone)
        job = self.prepare_set(asked.id, used) if len(used) > 1 else next(iter(alone.values()), None)
        return Prepared(asked, job, used, faults)

    def pack_size(self, left: Sequence[Example | Group]) -> int:
        """How many of the pictures left come next. Asked to choose: as many as fit the device, in equal packs."""
        if self.placement.pack != "auto":
            return self.most
        for asked in left if self.most is None else ():
            with contextlib.suppress(ExampleError):
                self.most = probed_pack(self.model, self.prepare(asked), self.recipe, self.placement)
                break
        packs = math.ceil(len(left) / (self.most or len(left)))
        return math.ceil(len(left) / packs)

    def _learn(
        self,
        jobs: Sequence[Job],
        on_step: Callable[[int], None] | None,
        on_look: Callable[[list[LearnedConcepts]], None] | None = None,
    ) -> list[LearnedConcepts]:
        """Learn a pack; where it does not fit the device, its halves."""
        if not jobs:
            return []
        try:
            return Learner(self.model, Pack(tuple(jobs)), self.recipe).run(on_step, on_look)
        except torch.OutOfMemoryError:
            pass  # the exception holds the failed step's tensors: leave it before trying again
        if len(jobs) == 1:
            raise PackTooLarge(
                f"one picture at a time does not fit {self.model.device}: lower the recipe's batch or precision, "
                "or use a larger device"
            )
        self.most = (len(jobs) + 1) // 2  # the packs after this one need not fail first
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        return [result for half in halve(jobs) for result in self._learn(half, on_step, on_look)]

    def _unusable(self, prepared: Prepared) -> BankRow:
        skipped = all(isinstance(fault, NothingToLearn) for fault in prepared.faults.values())
        return self._row(prepared, "skipped" if skipped else "failed", prepared.reason)

    def _scored(
        self, prepared: Sequence[Prepared], learned: Sequence[LearnedConcepts], looked_at: bool
    ) -> list[Outcome]:
        """A learned pack, drawn and scored together."""
        finite = [all(word.vectors.isfinite().all() for word in words.concepts) for words in learned]
        subjects = [
            self._subject(one, words) for one, words, usable in zip(prepared, learned, finite, strict=True) if usable
        ]
        evaluations = iter(evaluate_all(self.model, subjects, self.placement.samples, together=looked_at))
        reason = f"learning diverged (numbers are not finite) at lr {self.recipe.lr:g}: lower it"
        return [
            self._outcome(one, words, next(evaluations)) if usable else Outcome(self._row(one, "failed", reason))
            for one, words, usable in zip(prepared, learned, finite, strict=True)
        ]

    def _subject(self, prepared: Prepared, learned: LearnedConcepts) -> Subject:
        job, side = prepared.job, self.model.facts.resolution
        pictures = tuple(
            Given(look.sentence, masks_of(example, side), example.truth)
            for look, example in zip(job.looks, prepared.used, strict=True)
        )
        return Subject(learned, pictures, beginnings(job), derive_seed(job.seed, "samples"), self.recipe.masks_loss)

    def _outcome(self, prepared: Prepared, learned: LearnedConcepts, evaluation: Evaluation) -> Outcome:
        row = self._row(prepared, "learned", prepared.reason, learned=learned, metrics=evaluation.metrics)
        return Outcome(row, prepared.job, learned, evaluation)

    def _row(self, prepared: Prepared, status: str, reason: str | None, **found: object) -> BankRow:
        asked, text = prepared.asked, (prepared.used or prepared.asked.pictures)[0].text
        origin = {"provenance": self._provenance(asked), "pictures": prepared.pictures}
        return BankRow(asked.id, text, status, reason=reason, **origin, **found)

    def _provenance(self, asked: Example | Group) -> Provenance:
        return Provenance(
            recipe=self.recipe.name,
            recipe_fingerprint=self.recipe.fingerprint,
            base=self.model.facts.name,
            base_digest=self.model.facts.digest,
            seed=self.recipe.seed,
            commit=commit(),
            picture_sha256=_of_all(_sha256(example.image) for example in asked.pictures),
            sentence_sha256=_of_all(_sha256(example.text.encode()) for example in asked.pictures),
        )

    @staticmethod
    def _stamped(outcome: Outcome, seconds: float) -> Outcome:
        row = replace(
            outcome.row,
            seconds=seconds,
            host=socket.gethostname(),
            learned_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        return replace(outcome, row=row)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _of_all(digests: Iterable[str]) -> str:
    """One digest of several pictures or sentences, in their order; of one its own."""
    first, *others = digests
    return _sha256("\n".join([first, *others]).encode()) if others else first


def model_of(
    base: str, revision: str | None, precision: str, placement: Placement, model: BaseModel | None = None
) -> BaseModel:
    """The frozen base on its device, with the CPU threads that suit it; `model` where it is loaded already."""

    def loaded() -> BaseModel:
        where = {"device": placement.device, "save_memory": placement.save_memory}
        return model or catalogue.load(base, revision=revision, precision=precision, **where)

    return threads.fitted(loaded, placement.threads)


def beginnings(job: Job) -> dict[str, Tensor]:
    """slug -> the rows that its word starts from. [k, D]"""
    return {c.slug: rows for c, rows in zip(job.concepts, job.initial.chunk(len(job.concepts)), strict=True)}


def ends(job: Job, learned: LearnedConcepts) -> Tensor:
    """The rows of all words as they were learned, where `job.initial` has what they started from. [slots, D]"""
    return torch.cat([word.vectors for word in learned.concepts]).to(job.initial)


def masks_of(example: Example, side: int) -> dict[str, Tensor]:
    """slug -> usable mask [side, side] 0/1; a damaged one only costs its own scores."""
    picture, masks = load_picture(example.image), {}
    for slug, png in example.masks.items():
        with contextlib.suppress(ExampleError):
            masks[slug] = torch.from_numpy(fit_mask(aligned_mask(png, picture), side))
    return masks


def to_pixels(picture) -> Tensor:
    """A PIL picture as [3, H, W] float32 in -1..1."""
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)


@cache
def commit() -> str:
    """The checkout's commit, marked where files differ from it; MCPL_COMMIT where it is set (a job's working directory
    travels without .git); else the package's version."""
    if told := os.environ.get("MCPL_COMMIT"):
        return told
    root = Path(mcpl.__file__).resolve().parent.parent
    released = f"mcpl-{mcpl.__version__}"
    if not (root / ".git").exists():
        return released
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        return described.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return released


@cache
def processor() -> str:
    """The processor's model name, as far as the system tells it."""
    told = Path("/proc/cpuinfo")
    if told.exists():
        for line in told.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
