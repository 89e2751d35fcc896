"""What a sweep leaves behind: the best recipe, what mattered, two pictures, every trial."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from mcpl.data.storage import Store
from mcpl.orchestration.space import Space
from mcpl.orchestration.trials import Result, Search
from mcpl.report import sweeps
from mcpl.tracking.base import markdown_table

BEST = "best.yaml"
LISTED = 10


def write_report(
    store: Store, space: Space, search: Search, tell_best: Callable[[Result, int, dict[str, bytes]], None]
) -> dict[str, Any]:
    """Write best.yaml, trials.parquet, report.md, parallel.png and slices.png; return what matters of it."""
    results = list(search.results().values())
    front, importances = search.front(), search.importances()
    files = {"trials.parquet": _parquet(results, space)}
    if front:
        files[BEST] = _best(front[0], space)
        points = [sweeps.Point(dict(r.values), r.score, r.state == "stopped", r.number) for r in results if r.reports]
        knobs = {path: knob.log for path, knob in space.search.items()}
        files["parallel.png"] = _png(sweeps.parallel(points, knobs, best=front[0].number))
        files["slices.png"] = _png(sweeps.slices(points, knobs, importances, best=front[0].number))
    finished = (result for result in results if result.number == 0 and result.state == "finished")
    start = next((first for first in finished if dict(first.values) == space.start_values), None)
    summary = {
        "trials": len(results),
        **{state: sum(r.state == state for r in results) for state in ("finished", "stopped", "failed")},
        "best": None if not front else {"number": front[0].number, "score": front[0].score, "passes": front[0].passes},
        "start": None if start is None else {"score": start.score, "passes": start.passes},
        "outside": space.outside,
        "values": {} if not front else dict(front[0].values),
        "importances": {path: round(share, 4) for path, share in importances.items()},
        "report": store.join("report.md"),
    }
    files["report.md"] = _markdown(results, front, space, summary).encode()
    for name, content in files.items():
        store.put(name, content)
    if front:
        tell_best(front[0], len(results), files)
    return summary


def trial_note(result: Result, sweep: str) -> str:
    """What a trial tried, and what came of it: Markdown."""
    numbers = {name: value for name in ("score", "gain", "passes") if (value := getattr(result, name)) is not None}
    told = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
    tried = [{"searched": path, "value": value} for path, value in result.values.items()]
    why = f": {result.reason}" if result.reason else ""
    return f"**Trial {result.number:05d} of {sweep}, {result.state}{why}**. {told}\n\n" + markdown_table(tried)


def _best(result: Result, space: Space) -> bytes:
    recipe = space.recipe_of(result.values, f"{space.start.name}-tuned")
    head = (
        f"# trial {result.number:05d}: score {result.score:.4f} on the development pictures of its sweep.\n"
        "# It was chosen on them: confirm it on the test split before believing the number.\n"
    )
    return (head + yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)).encode()


def _parquet(results: list[Result], space: Space) -> bytes:
    """A line a trial, a column for each knob."""
    lines = [
        {
            "number": result.number,
            "state": result.state,
            "score": result.score,
            "gain": result.gain,
            "passes": result.passes,
            "packs": int(result.reports[-1]["packs"]) if result.reports else 0,
            "seconds": result.seconds,
            "reason": result.reason,
            **{path: result.values.get(path) for path in space.search},
            "reports": json.dumps(list(result.reports)),
            "rows": json.dumps(list(result.rows)),
        }
        for result in results
    ]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(lines), buffer, compression="zstd")
    return buffer.getvalue()


def _png(image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _markdown(results: list[Result], front: list[Result], space: Space, summary: dict[str, Any]) -> str:
    weights = " + ".join(f"{weight:g} x {name}" for name, weight in space.objective.items())
    where = space.dataset or f"{', '.join(space.sets)} of Scenes-MC, {space.split} split"
    per_set = "all pictures" if space.pictures is None else f"{space.pictures} pictures of each"
    parts = [
        f"# A sweep from `{space.start.name}`\n",
        f"Score: {weights}, over their weights' sum; {where}, {per_set}, {space.seeds} seeds each. "
        f"{summary['trials']} trials: {summary['finished']} finished, {summary['stopped']} stopped early, "
        f"{summary['failed']} failed. A stopped trial's score is over the pictures that it reached.\n",
    ]
    if front:
        best = front[0]
        parts.append(
            f"**Best: trial {best.number:05d}, score {best.score:.4f}, {best.passes:.0f} passes a picture** "
            f"(`{BEST}`; `train_all --recipe {BEST}` takes it)."
            + (
                f" The starting recipe is trial 00000: score {summary['start']['score']:.4f}, "
                f"{summary['start']['passes']:.0f} passes."
                if summary["start"]
                else ""
            )
            + (
                f" The starting recipe is not in the space ({_named(space.outside)}): no trial tells its score."
                if space.outside
                else ""
            )
            + " It was chosen on these pictures, so its score is too good: confirm it on the test split.\n"
        )
        if space.cost:
            parts.append("## Score against cost: what no other trial beats in both\n\n" + _table(front, space))
        parts.append("## The best\n\n" + _table(_ranked(results)[:LISTED], space))
        if summary["importances"]:
            lines = [{"knob": path, "share": share} for path, share in summary["importances"].items()]
            parts.append(
                "## What mattered\n\nShare of the score's variance over finished trials (fANOVA); with few trials a "
                "rough guide.\n\n" + markdown_table(lines)
            )
        parts.append("![every trial](parallel.png)\n\n![knob by knob](slices.png)\n")
    failed = [{"trial": f"{r.number:05d}", "reason": r.reason} for r in results if r.state == "failed"]
    if failed:
        parts.append("## Failed\n\n" + markdown_table(failed))
    return "\n".join(parts)


def _named(values: Mapping[str, Any]) -> str:
    return ", ".join(f"its {path} is {value}" for path, value in values.items())


def _ranked(results: list[Result]) -> list[Result]:
    return sorted((r for r in results if r.state == "finished"), key=lambda r: (-r.score, r.passes, r.number))


def _table(results: list[Result], space: Space) -> str:
    return markdown_table(
        [
            {"trial": f"{r.number:05d}", "score": r.score, "gain": r.gain, "passes": r.passes}
            | {path: r.values.get(path) for path in space.search}
            for r in results
        ]
    )
