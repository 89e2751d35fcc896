"""What a job's rows say together: learning curves over pictures, scores, a table of pictures, the bank itself."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mcpl.tracking.base import Run, markdown_table
from mcpl.tracking.redaction import redact

if TYPE_CHECKING:
    from mcpl.types import BankRow, LearnedConcepts

COPY_LIMIT = 200 << 20  # bytes of a bank that a run carries itself
QUARTILE_SAMPLE = 2_000  # pictures whose values quartiles are taken from; means and counts use all
CURVE_NUMBERS = ("fixed_noise_loss", "mask_area", "norm", "prompt_similarity")


class Summary:
    """Pictures' numbers, added one by one in bounded memory: mean and quartiles of each at each step."""

    def __init__(self, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self._lines: dict[tuple[str, int], int] = {}  # (name, step) -> its line in the arrays
        self._known: dict[tuple, np.ndarray] = {}  # what a picture has numbers of -> their lines
        self._totals, self._counts = np.zeros(0), np.zeros(0, np.int64)
        self._sample = np.zeros((0, QUARTILE_SAMPLE))  # of each line's values
        self.statuses: dict[str, int] = defaultdict(int)

    def add(self, row: BankRow) -> None:
        self.statuses[row.status] += 1
        if row.learned is None:
            return
        curve, losses = row.learned.curve, row.learned.losses
        values = [getattr(point, name) for point in curve for name in CURVE_NUMBERS]
        for term in losses:
            values += losses[term]
        values += row.metrics.values()
        shape = (row.learned.steps, tuple(point.step for point in curve))
        shape += (tuple((term, len(losses[term])) for term in losses), tuple(row.metrics))
        if shape not in self._known:
            self._known[shape] = self._lines_of(row)
        self._add(self._known[shape], np.array(values, np.float64))

    def _lines_of(self, row: BankRow) -> np.ndarray:
        """[n] where a picture's numbers are counted; new ones get lines of their own."""
        keys = [(name, point.step) for point in row.learned.curve for name in CURVE_NUMBERS]
        for term, values in row.learned.losses.items():
            keys += [(f"loss/{term}", step) for step in logged_steps(row.learned, len(values))]
        keys += [(f"fidelity/{name}", 0) for name in row.metrics]
        lines = np.array([self._lines.setdefault(key, len(self._lines)) for key in keys], np.int64)
        more = len(self._lines) - len(self._totals)
        self._totals, self._counts = np.pad(self._totals, (0, more)), np.pad(self._counts, (0, more))
        self._sample = np.pad(self._sample, ((0, more), (0, 0)))
        return lines

    def _add(self, lines: np.ndarray, values: np.ndarray) -> None:
        """[n] values, each to its line; NaN is left out: nothing could be measured."""
        measured = ~np.isnan(values)
        lines, values = lines[measured], values[measured]
        self._totals[lines] += values
        self._counts[lines] += 1
        counts = self._counts[lines]
        drawn = (self._random.random(len(lines)) * counts).astype(np.int64)  # reservoir sampling
        places = np.where(counts <= QUARTILE_SAMPLE, counts - 1, drawn)
        kept = places < QUARTILE_SAMPLE
        self._sample[lines[kept], places[kept]] = values[kept]

    def _numbers(self) -> Iterator[tuple[str, int, float, int, np.ndarray]]:
        """(name, step, total, n, sample of the values) of all that could be measured, by name."""
        for (name, step), line in sorted(self._lines.items()):
            if n := int(self._counts[line]):
                yield name, step, float(self._totals[line]), n, self._sample[line, :n]

    def curves(self) -> list[tuple[int, dict[str, float]]]:
        """(step, numbers) in order of steps; a number is named "fixed_noise_loss/mean", "loss/denoising/q25" ..."""
        points: dict[int, dict[str, float]] = defaultdict(dict)
        for name, step, total, n, sample in self._numbers():
            if name.startswith("fidelity/"):
                continue
            low, middle, high = quartiles(sample)
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
        for name, step, _, _, sample in self._numbers():
            if not name.startswith("fidelity/"):
                bands[name].append((step, *quartiles(sample)))
        return dict(bands)

    def scores(self) -> dict[str, dict[str, float]]:
        """Fidelity metric -> {"mean", "n"} over the pictures where it could be measured."""
        return {
            name.removeprefix("fidelity/"): {"mean": total / n, "n": n}
            for name, _, total, n, _ in self._numbers()
            if name.startswith("fidelity/")
        }


def logged_steps(learned: LearnedConcepts, count: int) -> list[int]:
    """The steps behind `count` logged losses, which are evenly spaced and end with the last step."""
    return [round((index + 1) * learned.steps / count) for index in range(count)]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile, linear between neighbours."""
    low, middle, high = np.percentile(values, [25, 50, 75]).tolist()
    return low, middle, high


def log_summary(run: Run, summary: Summary) -> None:
    """Curves, scores and counts as metrics of the run."""
    run.metric_points(summary.curves())
    log_scores(run, summary)
    run.metrics({f"pictures/{status}": count for status, count in summary.statuses.items()})


def log_scores(run: Run, summary: Summary) -> None:
    """Each score's mean, and the number of pictures that it is of."""
    scores = summary.scores()
    run.metrics({_grouped(name): score["mean"] for name, score in scores.items()})
    run.metrics({f"measured pictures/{name}": score["n"] for name, score in scores.items()})


def _grouped(score: str) -> str:
    """A score's name as a metric: what stands before the slash is a section of a run's charts."""
    return f"signs/{score.removeprefix('sign_')}" if score.startswith("sign_") else f"fidelity/{score}"


def score_table(scores: Mapping[str, Mapping[str, float]]) -> str:
    """`Summary.scores` as Markdown: each before learning and after it; then how often signs of failure were seen."""
    signs = {name.removeprefix("sign_"): told for name, told in scores.items() if name.startswith("sign_")}
    rows = [
        {
            "score": name,
            "before": scores.get(f"{name}_step0", {}).get("mean"),
            "after": told["mean"],
            "pictures": told["n"],
        }
        for name, told in scores.items()
        if not name.startswith("sign_") and name.removesuffix("_step0") not in scores.keys() - {name}
    ]
    seen = [f"{name.replace('_', ' ')} in {told['mean']:.0%}" for name, told in signs.items() if told["mean"]]
    return markdown_table(rows) + (f"\nSigns of failure: {', '.join(seen) or 'none'}.\n" if signs else "")


def picture_rows(rows: Iterable[BankRow]) -> list[dict[str, Any]]:
    """A line per picture for `run.table`: what was learned, how well, or why not."""
    return [
        {
            "id": row.id,
            "sentence": row.text,
            "status": row.status,
            "reason": row.reason,
            "words": ", ".join(word.concept.slug for word in row.learned.concepts) if row.learned else "",
            **({"pictures": ", ".join(picture.id for picture in row.pictures)} if row.pictures else {}),
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
