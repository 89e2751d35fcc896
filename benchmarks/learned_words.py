"""The words that the benchmarks of their use start from: learned once from a set of Scenes-MC, kept in a bank.

Everything starts from the mean of the named shapes' words, as in `benchmarks.recipes`: a slug of a named set is a word
of the base, and to start from it would give the answer away.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.drawing import interval
from benchmarks.recipes import examples
from mcpl.config import Placement, Recipe
from mcpl.data.bank import Bank, encode, part_name
from mcpl.data.storage import open_store
from mcpl.generation.words import LearnedWord, of_row
from mcpl.models import catalogue
from mcpl.models.base import BaseModel
from mcpl.orchestration.job import Runner
from mcpl.packing import chunks
from mcpl.recipes import adjust, load
from mcpl.scenes.benchmark import SPLITS, find
from mcpl.studies import START

QUICK = {"pictures": 2, "steps": 10}


def options(about: str, sets: str, out: str) -> argparse.ArgumentParser:
    """What both commands ask for."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--sets", default=sets)
    parser.add_argument("--pictures", type=int, help="of each set, from its first on (default: all)")
    parser.add_argument("--recipe", default="best")
    parser.add_argument("--steps", type=int, help="of learning, instead of the recipe's own")
    parser.add_argument("--quick", action="store_true", help="2 pictures of the first set, 10 steps: that it runs")
    parser.add_argument("--base", default="scenes-v1")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--pack", type=int, default=6, help="pictures learned together")
    parser.add_argument("--out", type=Path, default=Path(out))
    return parser


def settle(given: argparse.Namespace) -> tuple[Recipe, list[str]]:
    """(recipe, sets) of the given options; --quick makes both small."""
    sets = given.sets.split(",")
    if given.quick:
        given.pictures, given.steps, sets = given.pictures or QUICK["pictures"], QUICK["steps"], sets[:1]
    given.out.mkdir(parents=True, exist_ok=True)
    return adjust(load(given.recipe), base=given.base, steps=given.steps, **START), sets


def learned(
    name: str, split: str, count: int | None, recipe: Recipe, model: BaseModel, out: Path, pack: int, skip: int = 0
) -> dict[str, dict[str, LearnedWord]]:
    """Picture -> its words by slug; what the bank does not hold is learned. A picture that failed has none."""
    store = open_store(out / f"words-{name}-{split}-{recipe.fingerprint}-{model.facts.digest}")
    parts = len(store.list("part-"))
    known = {row.id: row for row in Bank.open(store.uri).rows()} if parts else {}
    asked = list(examples(name, split, count, skip))
    runner = Runner(recipe, Placement(pack=pack, device=str(model.device)), model)
    for some in chunks([example for example in asked if example.id not in known], pack):
        started = time.monotonic()
        rows = runner(some)
        store.put(part_name(parts), encode(rows))
        known |= {row.id: row for row in rows}
        parts += 1
        print(f"{name}: {len(rows)} pictures learned in {time.monotonic() - started:.0f} s", flush=True)
    return {e.id: of_row(known[e.id]) if known[e.id].learned else {} for e in asked}


def base_folder(name: str) -> Path:
    """Where a base of the benchmarks lies; its judge may lie beside it."""
    return Path(catalogue.find(name).source)


def with_ceilings(sets: Sequence[str]) -> list[str]:
    """The sets, and behind them those whose true names bound them."""
    return list(dict.fromkeys([*sets, *(ceiling for name in sets if (ceiling := find(name).ceiling))]))


def over_ceiling(rows: Sequence[dict], sets: Sequence[str]) -> dict[str, Any]:
    """Success of learned words and of true names over some sets, means over pictures with 95 % intervals."""
    bounds = {find(name).ceiling for name in sets}
    own = by_picture(row for row in rows if row["told"] == "learned" and row["set"] in sets)
    true = by_picture(row for row in rows if row["told"] == "true" and row["set"] in bounds)
    share = round(own["mean"] / true["mean"], 4) if true["mean"] else None
    return {"success": own["mean"], "ceiling": true["mean"], "of_ceiling": share,
            "success_interval": own, "ceiling_interval": true}  # fmt: skip


def by_picture(rows: Iterable[dict], metric: str = "success") -> dict[str, float | int]:
    """Mean and 95 % interval over pictures, each the mean of its own rows."""
    own: dict[str, list[float]] = {}
    for row in rows:
        own.setdefault(row["id"], []).append(float(row[metric]))
    return interval([sum(values) / len(values) for values in own.values()])


def partners(numbers: int, fits: Callable[[int, int], bool]) -> Iterator[tuple[int, int]]:
    """(picture, the next one in the round that fits it)."""
    for first in range(numbers):
        others = ((first + step) % numbers for step in range(1, numbers))
        found = next((other for other in others if fits(first, other)), None)
        if found is not None:
            yield first, found
