"""How often is a failure sign seen where nothing failed? Right words in, false alarms out.

    python -m benchmarks.signs [--n 60] [--base DIR] [--steps 0]

The words are the base's own nouns for named shapes, in scenes that it was trained on the like of: with --steps 0 they
are right by construction, and every sign is a false alarm. With steps, those scenes count in which every word still
sits on its own object. The last line is one JSON object: sign -> share of the scenes in which it applies and is seen.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from mcpl.cli.terminal import one_line
from mcpl.config import Placement
from mcpl.data.sources import scenes
from mcpl.orchestration.job import Runner
from mcpl.recipes import adjust, load

SEED = 9_100_000


def alarms(n: int, base: str, recipe: str, steps: int, device: str) -> dict[str, float]:
    """Half of the n scenes hold two objects, half three."""
    chosen = adjust(load(recipe), base=base, steps=steps, initializer="noun")
    runner = Runner(chosen, Placement(pack=6, device=device))
    examples = [e for objects in (2, 3) for e in scenes(n // 2, seed=SEED + objects, objects=objects, naming="named")]
    seen: dict[str, list[float]] = {}
    for row in runner(examples):
        if steps == 0 or row.metrics["assignment"] == 1:
            for name, value in row.metrics.items():
                if name.startswith("sign_"):
                    seen.setdefault(name.removeprefix("sign_"), []).append(value)
    return {name: round(float(np.mean(values)), 4) for name, values in seen.items()}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--n", type=int, default=60)
    options.add_argument("--base", default="scenes-v1")
    options.add_argument("--recipe", default="paper")
    options.add_argument("--steps", type=int, default=0)
    options.add_argument("--device", default="auto")
    given = options.parse_args()
    print(json.dumps(alarms(given.n, given.base, given.recipe, given.steps, given.device)))


if __name__ == "__main__":
    with one_line("benchmarks.signs"):
        main()
