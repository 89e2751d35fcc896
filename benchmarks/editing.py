"""Change one object of a picture by its learned word: does it become what was asked, and does the rest stay?

    python -m benchmarks.editing [--quick] [--split dev] [--pictures N] [--recipe best]

One object of each picture of a set is edited in three ways: replaced by a shape that was learned in another picture,
recoloured (another adjective before its word), or given stripes where it was plain and the other way round (a refined
sentence). Each edit is done on the real picture, inverted, and on one that the base drew of the same sentence: the
first of four that the judge finds right, since a picture that shows something else cannot be edited as asked; where
none is right, the edit counts as a failure.

    success   the judge finds everything as asked and nothing else, AND outside the object's box, two pixels wider on
              each side, the edited picture is the original's within 30 dB PSNR. The box is the truth's (real pictures)
              or the judge's own (drawn ones), never the edit's mask. The original of a real picture is the
              autoencoder's picture of it.
    ceiling   the same edits of the same pictures with true names; unnamed shapes have none and borrow that of their
              named twin.

What is done is kept and not done again. The last line is JSON: `success`, `ceiling`, their ratio, and the shares of
each set, way and kind of original.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.contact_sheet import Cell, contact_sheet
from benchmarks.drawing import judge_of
from benchmarks.learned_words import (
    base_folder,
    learned,
    options,
    over_ceiling,
    partners,
    settle,
    with_ceilings,
)  # fmt: skip
from benchmarks.provenance import provenance
from benchmarks.recipes import record, recorded
from mcpl.cli.terminal import one_line
from mcpl.generation.change import Change, refined, replaced
from mcpl.generation.edit import Editing, Original, drawn, edit, inverted
from mcpl.generation.generate import Drawing, generate
from mcpl.generation.words import Words
from mcpl.models import catalogue
from mcpl.models.base import BaseModel
from mcpl.orchestration.job import to_pixels
from mcpl.scenes import benchmark
from mcpl.scenes.benchmark import BenchmarkRow, find
from mcpl.scenes.grammar import caption, marked_sentence
from mcpl.scenes.judge import Judge, Reading, matches
from mcpl.scenes.render import coverage
from mcpl.scenes.scene import Scene
from mcpl.scenes.world import COLOURS, HELD_OUT, PIXELS

SETS = "named-2,unnamed-2"
WAYS = ("replaced", "recoloured", "refined")
ORIGINALS = ("real", "drawn")
SEED = 50_000
TRIES = 4
UNCHANGED = 30.0  # dB
MARGIN = 2  # px around the object's box
SHOWN = 48
"""edits on the sheet"""


@dataclass(frozen=True)
class Task:
    """One picture and the object of it that is edited; a word for what it is replaced by comes from `donor`."""

    row: BenchmarkRow
    target: int
    donor: BenchmarkRow
    shape: str

    def asked(self, way: str) -> Scene:
        """What the edited picture is to show."""
        item = self.row.scene.objects[self.target]
        if way == "replaced":
            changed = replace(item, shape=self.shape)
        elif way == "recoloured":
            after = list(COLOURS)[list(COLOURS).index(item.colour) + 1 :] + list(COLOURS)
            colour = next(c for c in after if c not in self._colours and (item.shape, c) not in HELD_OUT)
            changed = replace(item, colour=colour)
        else:
            changed = replace(item, texture="plain" if item.texture == "striped" else "striped")
        objects = list(self.row.scene.objects)
        objects[self.target] = changed
        return replace(self.row.scene, objects=tuple(objects))

    @property
    def _colours(self) -> set[str]:
        return {item.colour for item in self.row.scene.objects}

    def change(self, way: str, told: str) -> Change:
        """The edit in words, learned ones or true names."""
        tell = marked_sentence if told == "learned" else caption
        before, after = tell(self.row.scene), tell(self.asked(way))
        item = self.row.scene.objects[self.target]
        if way == "replaced":
            old, new = ((f"<{s}>" if told == "learned" else s) for s in (item.shape, self.shape))
            return replaced(before, {old: new})
        if way == "recoloured" and sum(o.colour == item.colour for o in self.row.scene.objects) == 1:
            return replaced(before, {item.colour: self.asked(way).objects[self.target].colour})
        return refined(before, after)


def tasks(rows: Sequence[BenchmarkRow]) -> list[Task]:
    """Each picture, its objects in turn, and the next picture that shows a shape which may take the object's place."""

    def offered(first: int, second: int) -> str | None:
        scene = rows[first].scene
        colour, there = scene.objects[first % len(scene.objects)].colour, {item.shape for item in scene.objects}
        shapes = (item.shape for item in rows[second].scene.objects)
        return next((s for s in shapes if s not in there and (s, colour) not in HELD_OUT), None)

    return [
        Task(rows[a], a % len(rows[a].scene.objects), rows[b], offered(a, b))
        for a, b in partners(len(rows), lambda a, b: offered(a, b) is not None)
    ]


def main() -> None:
    parser = options(__doc__, SETS, "runs/editing")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the edits")
    given = parser.parse_args()
    recipe, sets = settle(given)
    editing = Editing.model_validate(dict(each.split("=", 1) for each in given.set))
    model, base = catalogue.load(given.base, device=given.device), base_folder(given.base)
    bench = Bench(model, Judge.load(judge_of(base)), editing, given.out)
    raw = given.out / f"raw-{given.split}.jsonl"
    known, asked = {_key(row): row for row in recorded(raw)}, []
    for name in with_ceilings(sets):
        rows = list(benchmark.rows(name, given.split))[: given.pictures]
        bank = learned(name, given.split, given.pictures, recipe, model, given.out, given.pack) if name in sets else {}
        ways = ["learned"] * (name in sets) + ["true"] * (find(name).ceiling == name)
        for task, told, origin in product(tasks(rows), ways, ORIGINALS):
            keys = [
                {
                    "set": name, "id": task.row.id, "told": told, "original": origin, "way": way,
                    "words": recipe.fingerprint if told == "learned" else "", "base": model.facts.digest,
                    "editing": _digest(editing),
                }
                for way in WAYS
            ]  # fmt: skip
            if any(_key(row) not in known for row in keys):
                words = {**bank[task.row.id], **_only(bank[task.donor.id], task.shape)} if told == "learned" else {}
                for row, result in zip(keys, bench(task, told, origin, words), strict=True):
                    known[_key(row)] = row | result
                    record(raw, known[_key(row)])
            asked += [known[_key(row)] for row in keys]
    parts = {
        **{name: over_ceiling(asked, [name]) for name in sets},
        **{way: over_ceiling([row for row in asked if row["way"] == way], sets) for way in WAYS},
        **{origin: over_ceiling([row for row in asked if row["original"] == origin], sets) for origin in ORIGINALS},
    }
    why = {
        told: {part: round(float(np.mean([row[part] for row in asked if row["told"] == told])), 4) for part in PARTS}
        for told in ("learned", "true")
        if any(row["told"] == told for row in asked)
    }
    found = over_ceiling(asked, sets) | {"parts": parts, "why": why, "split": given.split}
    contact_sheet(bench.cells(asked), given.out / "sheet.png", columns=8, zoom=5)
    print(f"Look at {given.out / 'sheet.png'}.")
    print(json.dumps(found | provenance("benchmarks.editing", base, judge_of(base))))


PARTS = ("original_right", "as_asked", "unchanged")


@dataclass(frozen=True)
class Bench:
    """What every edit needs."""

    model: BaseModel
    judge: Judge
    editing: Editing
    out: Path

    def __call__(self, task: Task, told: str, origin: str, words: Words) -> list[dict[str, Any]]:
        """The results of every way, in the order of WAYS."""
        sentence = (marked_sentence if told == "learned" else caption)(task.row.scene)
        missed = {"success": False, "original_right": False, "as_asked": False, "unchanged": False, "psnr": None}
        if told == "learned" and len(words) < len(task.row.scene.objects) + 1:
            return [missed] * len(WAYS)  # a picture that was not learned
        original = self.original(task, sentence, origin, words)
        if original is None:
            return [missed] * len(WAYS)
        results = []
        for way in WAYS:
            made = edit(self.model, original, task.change(way, told), words, self.editing)
            before, after = made.original[0].numpy(), made.pictures[0].numpy()
            seen, reading = self.judge.read(np.stack([before, after]))
            box = _box(task, origin, seen)
            decibels = psnr_outside(before, after, box)
            as_asked, unchanged = matches(reading, task.asked(way)).right, decibels >= UNCHANGED
            results.append({
                "success": as_asked and unchanged, "original_right": matches(seen, task.row.scene).right,
                "as_asked": as_asked, "unchanged": unchanged, "psnr": round(min(decibels, 99.0), 2),
                "sentence": made.prompt,
            })  # fmt: skip
            mask = np.kron(made.mask[0].numpy() > 0, np.ones((before.shape[0] // made.mask.shape[-1],) * 2))
            self._keep(task, told, origin, way, [before, after, np.stack([mask * 255] * 3, axis=-1).astype(np.uint8)])
        return results

    def original(self, task: Task, sentence: str, origin: str, words: Words) -> Original | None:
        """The real picture's path, or that of the first drawn one that shows what was asked."""
        if origin == "real":
            pixels = to_pixels(Image.fromarray(task.row.picture))[None]
            return inverted(self.model, sentence, words, pixels, self.editing)
        seeds = range(SEED, SEED + TRIES)
        drawing = Drawing(steps=self.editing.steps, guidance=self.editing.guidance)
        readings = self.judge.read(generate(self.model, sentence, words, seeds, drawing).pictures.numpy())
        seed = next((s for s, r in zip(seeds, readings, strict=True) if matches(r, task.row.scene).right), None)
        return None if seed is None else drawn(self.model, sentence, words, (seed,), self.editing)

    def _keep(self, task: Task, told: str, origin: str, way: str, pictures: Sequence[np.ndarray]) -> None:
        path = self._path({"id": task.row.id, "told": told, "original": origin, "way": way})
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.concatenate(pictures, axis=1)).save(path)

    def _path(self, row: Mapping[str, str]) -> Path:
        return self.out / "pictures" / f"{row['id']}-{row['told']}-{row['original']}-{row['way']}.png"

    def cells(self, rows: Sequence[dict]) -> list[Cell]:
        """Before, after and mask of some edits, spread over all of them."""
        kept = [row for row in rows if self._path(row).exists()]
        return [
            Cell(
                np.asarray(Image.open(self._path(row))),
                f"{row['told']}, {row['original']}: {row['sentence']}",
                [(row["as_asked"], "as asked"), (row["unchanged"], f"rest {row['psnr']:.0f} dB")],
            )
            for row in kept[:: max(1, len(kept) // SHOWN)][:SHOWN]
        ]


def _box(task: Task, origin: str, seen: Reading) -> tuple[slice, slice]:
    """Rows and columns that the edit may change: the object's box and a margin."""
    item = task.row.scene.objects[task.target]
    x, y, size = item.x, item.y, float(item.size)
    if origin == "drawn":
        found = max(seen.objects, key=lambda o: (o.shape == item.shape) + (o.colour == item.colour))
        x, y, size = found.x, found.y, (found.area / float(coverage(item.shape, 14).mean())) ** 0.5
    half = size / 2 + MARGIN
    return tuple(slice(max(0, int(at - half)), min(PIXELS, int(np.ceil(at + half)))) for at in (y, x))


def psnr_outside(before: np.ndarray, after: np.ndarray, box: tuple[slice, slice]) -> float:
    """dB between two pictures [H, W, 3] uint8 outside a box; infinite where nothing differs."""
    outside = np.ones(before.shape[:2], bool)
    outside[box] = False
    error = np.square(before[outside].astype(float) - after[outside]).mean()
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def _only(words: Words, slug: str) -> Words:
    return {slug: words[slug]} if slug in words else {}


def _digest(editing: Editing) -> str:
    return hashlib.sha256(editing.model_dump_json().encode()).hexdigest()[:8]


def _key(row: dict) -> tuple:
    return tuple(row[part] for part in ("set", "id", "told", "original", "way", "words", "base", "editing"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with one_line("benchmarks.editing"):
        main()
