"""A runner that learns nothing in no time, told by a folder what to do: for tests of everything around learning.

The recipe's base names the folder. `settings.json` in it, read again for each shard, may hold

    seconds     what a picture takes
    fail        ids that become failed rows
    kill        ids at which the worker kills itself, the first time somebody gets there
    crash       ids at which the runner raises, every time
    full        ids at which the disk is full, every time: no picture's fault
    crowd       processes that must have started before anybody does a picture
    wait        ids at which the worker waits until a file `go-<id>` appears

and the runner leaves in it `pid-<pid>` for each process, `at-<id>-<pid>` for one that waits, and
`learned/<id>.<nonce>` for each time a picture was done.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from mcpl.config import Placement, Recipe
from mcpl.types import BankRow, Concept, CurvePoint, Example, Group, LearnedConcept, LearnedConcepts, Provenance

NAME = "tests.orchestration.stub:Runner"
PICTURES: list[str] = []
"""NAME:COUNT of every group that was learned in this process"""


class Runner:
    base_digest = "0123456789abcdef"

    def __init__(self, recipe: Recipe, placement: Placement):
        self.recipe, self.pack = recipe, placement.pack
        self.folder = Path(recipe.base)
        self.settings = self._told()
        self.base_digest = self.settings.get("digest", self.base_digest)
        (self.folder / "learned").mkdir(parents=True, exist_ok=True)
        (self.folder / f"pid-{os.getpid()}").touch()

    def __call__(
        self, examples: Sequence[Example | Group], on_done: Callable[[BankRow], None] | None = None
    ) -> list[BankRow]:
        rows, self.settings = [], self._told()
        for example in examples:
            if isinstance(example, Group):
                PICTURES.append(f"{example.id}:{len(example.pictures)}")
            self._act(example.id)
            rows.append(self._row(example))
            (self.folder / "learned" / f"{example.id}.{uuid.uuid4().hex}").touch()
            if on_done:
                on_done(rows[-1])
        return rows

    def failed(self, asked: Example | Group, reason: str) -> BankRow:
        return replace(self._row(asked), status="failed", reason=reason, learned=None)

    def _told(self) -> dict:
        settings = self.folder / "settings.json"
        return json.loads(settings.read_text()) if settings.exists() else {}

    def _act(self, id: str) -> None:
        while len(list(self.folder.glob("pid-*"))) < self.settings.get("crowd", 0):
            time.sleep(0.02)
        time.sleep(self.settings.get("seconds", 0))
        if id in self.settings.get("kill", ()) and self._first(f"killed-{id}"):
            os.kill(os.getpid(), signal.SIGKILL)
        if id in self.settings.get("crash", ()):
            raise RuntimeError(f"the stub was told to crash at {id}")
        if id in self.settings.get("full", ()):
            raise OSError(f"the stub's disk is full at {id}")
        while id in self.settings.get("wait", ()) and not (self.folder / f"go-{id}").exists():
            (self.folder / f"at-{id}-{os.getpid()}").touch()
            (self.folder / f"waiting-{id}").touch()
            time.sleep(0.02)

    def _first(self, name: str) -> bool:
        try:
            (self.folder / name).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def _row(self, example: Example | Group) -> BankRow:
        status = "failed" if example.id in self.settings.get("fail", ()) else "learned"
        return BankRow(
            id=example.id,
            text=example.pictures[0].text,
            status=status,
            reason="the stub was told to fail" if status == "failed" else None,
            provenance=Provenance(
                recipe=self.recipe.name,
                recipe_fingerprint=self.recipe.fingerprint,
                base="stub",
                base_digest=self.base_digest,
                seed=self.recipe.seed,
                commit="none",
                picture_sha256=hashlib.sha256(example.pictures[0].image).hexdigest(),
                sentence_sha256=hashlib.sha256(example.pictures[0].text.encode()).hexdigest(),
            ),
            learned=learned(example.id) if status == "learned" else None,
            seconds=time.monotonic(),
            host=f"{socket.gethostname()}-{os.getpid()}",
            learned_at=str(time.time()),
        )


def learned(id: str) -> LearnedConcepts:
    """Words that depend on the id alone, and are as large as real ones."""
    draw = torch.Generator().manual_seed(int(hashlib.sha256(id.encode()).hexdigest()[:8], 16))
    return LearnedConcepts(
        job_id=id,
        concepts=tuple(
            LearnedConcept(
                concept=Concept(slug),
                vectors=torch.randn(1, 64, generator=draw),
                attention=torch.rand(8, 8, generator=draw),
                attention_step0=torch.rand(8, 8, generator=draw),
            )
            for slug in ("bear", "board")
        ),
        curve=(CurvePoint(0, 1.0, 1.0, 1.0, 0.5),),
        losses={"denoising": (1.0, 0.5)},
        steps=2,
        sample_passes=8,
    )
