"""What a job's rows say together: learning curves over pictures, scores, a table of pictures, the bank itself."""

from __future__ import annotations

import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from mcpl.tracking.base import Run
from mcpl.tracking.redaction import redact

if TYPE_CHECKING:
    from mcpl.types import BankRow, LearnedConcepts

COPY_LIMIT = 200 << 20  # bytes of a bank that a run carries itself
QUARTILE_SAMPLE = 2_000  # pictures whose values quartiles are taken from; means and counts use all
CURVE_NUMBERS = ("fixed_noise_loss", "mask_area", "norm", "prompt_similarity")


class Summary:
    """Pictures' numbers, added one by one in bounded memory: mean and quartiles of each at each step."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._values: dict[tuple[str, int], list[float]] = defaultdict(list)  # at most QUARTILE_SAMPLE of each
        self._totals: dict[tuple[str, int], list[float]] = defaultdict(lambda: [0.0, 0])
        self.statuses: dict[str, int] = defaultdict(int)

    def add(self, row: BankRow) -> None:
        self.statuses[row.status] += 1
        if row.learned is None:
            return
        for point in row.learned.curve:
            for name in CURVE_NUMBERS:
                self._add(name, point.step, getattr(point, name))
        for term, values in row.learned.losses.items():
            for step, value in zip(logged_steps(row.learned, len(values)), values, strict=True):
                self._add(f"loss/{term}", step, value)
        for name, value in row.metrics.items():
            self._add(f"fidelity/{name}", 0, value)

    def _add(self, name: str, step: int, value: float) -> None:
        if value != value:  # NaN: nothing could be measured
            return
        total = self._totals[name, step]
        total[0], total[1] = total[0] + value, total[1] + 1
        sample = self._values[name, step]
        if len(sample) < QUARTILE_SAMPLE:
            sample.append(value)
        elif (place := self._random.randrange(total[1])) < QUARTILE_SAMPLE:  # reservoir sampling
            sample[place] = value

    def curves(self) -> list[tuple[int, dict[str, float]]]:
        """(step, numbers) in order of steps; a number is named "fixed_noise_loss/mean", "loss/denoising/q25" ..."""
        points: dict[int, dict[str, float]] = defaultdict(dict)
        for (name, step), (total, n) in self._totals.items():
            if name.startswith("fidelity/"):
                continue
            low, middle, high = quartiles(self._values[name, step])
            points[step] |= {
                f"{name}/mean": total / n,
                f"{name}/q25": low,
                f"{name}/median": middle,
                f"{name}/q75": high,
            }
        return sorted(points.items())

    def bands(self) -> dict[str, list[tuple[int, float, float, float]]]:
        """The same for drawing: number -> (step, lower quartile, median, upper quartile) in order of steps."""
        bands: dict[str, list[tuple[int, float, float, float]]] = defaultdict(list)
        for (name, step), values in sorted(self._values.items()):
            if not name.startswith("fidelity/"):
                bands[name].append((step, *quartiles(values)))
        return dict(bands)

    def scores(self) -> dict[str, dict[str, float]]:
        """Fidelity metric -> {"mean", "n"} over the pictures where it could be measured."""
        return {
            name.removeprefix("fidelity/"): {"mean": total / n, "n": n}
            for (name, _), (total, n) in sorted(self._totals.items())
            if name.startswith("fidelity/")
        }


def logged_steps(learned: LearnedConcepts, count: int) -> list[int]:
    """The steps behind `count` logged losses, which are evenly spaced and end with the last step."""
    return [round((index + 1) * learned.steps / count) for index in range(count)]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile, linear between neighbours."""
    ordered = sorted(values)

    def at(share: float) -> float:
        place = share * (len(ordered) - 1)
        below = int(place)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (place - below) * (ordered[above] - ordered[below])

    return at(0.25), at(0.5), at(0.75)


def log_summary(run: Run, summary: Summary) -> None:
    """Curves, scores and counts as metrics of the run."""
    run.metric_points(summary.curves())
    scores = summary.scores()
    run.metrics({f"fidelity/{name}": score["mean"] for name, score in scores.items()})
    run.metrics({f"fidelity/{name} n": score["n"] for name, score in scores.items()})
    run.metrics({f"pictures/{status}": count for status, count in summary.statuses.items()})


def picture_rows(rows: Iterable[BankRow]) -> list[dict[str, Any]]:
    """A line per picture for `run.table`: what was learned, how well, or why not."""
    return [
        {
            "id": row.id,
            "sentence": row.text,
            "status": row.status,
            "reason": row.reason,
            "words": ", ".join(word.concept.slug for word in row.learned.concepts) if row.learned else "",
            "steps": row.learned.steps if row.learned else 0,
            **row.metrics,
            "seconds": round(row.seconds, 2),
        }
        for row in rows
    ]


def log_bank(run: Run, uri: str, parts: Iterable[tuple[str, bytes]], size: int) -> None:
    """Keep the bank with the run where it is small (COPY_LIMIT), else only its address and digest.

    parts  (file name, content) in order of names, read one at a time
    size   bytes of all parts together
    """
    whole, carried = hashlib.sha256(), size <= COPY_LIMIT
    for name, content in parts:
        whole.update(f"{name} {hashlib.sha256(content).hexdigest()}\n".encode())
        if carried:
            run.artifact(content, f"bank/{name}")
    digest = whole.hexdigest()
    told = {"uri": redact(uri), "digest": digest, "bytes": size, "copied": carried}
    run.artifact((json.dumps(told, indent=2) + "\n").encode(), "bank/bank.json" if carried else "bank.json")
    run.tags({"bank": uri, "bank_digest": digest})
