"""What the base's own pictures measure: the limits beyond which `mcpl learn` warns that a picture is strange to it.

    python -m benchmarks.familiar [--base DIR] [--n 200] [--write]

Renders of the base's world, drawn from seeds that its training never used. The limits are the worst percent of round
trips and the hardest percent of unconditional losses, with a fifth to spare. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from rich.progress import track

from mcpl.learning.familiarity import strangeness
from mcpl.models.catalogue import ASSETS, load
from mcpl.orchestration.job import to_pixels
from mcpl.scenes.render import render
from mcpl.scenes.scene import sample_scene
from mcpl.scenes.training.export import write_digest

SEED = 9_000_000
SPARE = 1.2


def limits(base: Path, n: int) -> dict[str, float]:
    """round_trip_psnr in dB and loss of the base in a directory, over n renders of its world."""
    model = load(str(base), device="cpu")
    pictures = (to_pixels(render(sample_scene([SEED, i]))[0]) for i in range(n))
    measured = [strangeness(model, pixels) for pixels in track(pictures, "measuring", total=n)]
    return {
        "round_trip_psnr": round(float(np.percentile([m["round_trip_psnr"] for m in measured], 1)) / SPARE, 2),
        "loss": round(float(np.percentile([m["loss"] for m in measured], 99)) * SPARE, 4),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--base", type=Path, default=ASSETS / "scenes-v1")
    options.add_argument("--n", type=int, default=200)
    options.add_argument("--write", action="store_true", help="keep the limits beside the base, in its digest, too")
    given = options.parse_args()
    found = limits(given.base, given.n)
    if given.write:
        (given.base / "familiar.json").write_text(json.dumps(found) + "\n")
        write_digest(given.base)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
