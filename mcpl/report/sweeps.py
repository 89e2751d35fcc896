"""A sweep in two pictures: every trial across all knobs, and the score against each knob."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from mcpl.report.figures import HEAT, INK, MUTED, RULE, WORD_COLOURS, quiet, rendered

BEST_COLOUR, DOT = WORD_COLOURS[6], WORD_COLOURS[5]


@dataclass(frozen=True)
class Point:
    """One trial."""

    values: Mapping[str, Any]
    score: float
    stopped: bool
    """early, so that its score is over fewer pictures"""
    number: int


def parallel(points: Sequence[Point], knobs: Mapping[str, bool], best: int) -> Image.Image:
    """A line a trial from knob to knob, coloured by score; `knobs`: name -> logarithmic. Stopped trials are dashed."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6.0, 1.7 * (len(knobs) + 1)), 4.2), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    scales = {name: _Scale([p.values.get(name) for p in points], log) for name, log in knobs.items()}
    scores = _Scale([p.score for p in points], False)
    colour = Normalize(scores.low, scores.high)
    heat = colormaps[HEAT].resampled(256)
    for point in sorted(points, key=lambda p: (p.number == best, not p.stopped, p.score)):
        heights = [scales[name].height(point.values.get(name)) for name in knobs] + [scores.height(point.score)]
        chosen = point.number == best
        axes.plot(
            range(len(heights)), heights, "--" if point.stopped else "-",
            color=BEST_COLOUR if chosen else heat(0.9 * colour(point.score)),
            lw=3 if chosen else 1.2, alpha=1 if chosen else 0.45 if point.stopped else 0.85, zorder=3 if chosen else 2,
        )  # fmt: skip
    for place, scale in enumerate([*scales.values(), scores]):
        axes.axvline(place, color=RULE, lw=1, zorder=1)
        for height, told in scale.ticks():
            axes.text(place + 0.03, height, told, fontsize=7.5, color=INK, va="center", zorder=4,
                      bbox={"facecolor": "white", "alpha": 0.75, "lw": 0, "pad": 0.8})  # fmt: skip
    axes.set_xticks(range(len(knobs) + 1), [*(_broken(name) for name in knobs), "score"], fontsize=8.5, color=INK)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xlim(-0.1, len(knobs) + 0.35)
    axes.set_title(
        f"{len(points)} trials; thick: the best, dashed: stopped early", fontsize=10, color=MUTED, loc="left"
    )
    bar = figure.colorbar(ScalarMappable(colour, heat), ax=axes, fraction=0.02, pad=0.01)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7.5, colors=MUTED)
    return rendered(figure, FigureCanvasAgg)


def slices(
    points: Sequence[Point], knobs: Mapping[str, bool], importances: Mapping[str, float], best: int
) -> Image.Image:
    """The score against each knob, a dot a trial; hollow where it stopped early, and the best marked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    across = min(4, len(knobs))
    down = math.ceil(len(knobs) / across)
    figure = Figure(figsize=(3.1 * across, 2.7 * down), dpi=130, layout="constrained")
    grid = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
    for axes, (name, log) in zip(grid, knobs.items(), strict=False):
        numeric = all(_is_number(p.values.get(name)) for p in points)
        names = [] if numeric else sorted({str(p.values.get(name)) for p in points})

        def across_at(point: Point, name=name, numeric=numeric, names=names) -> float:
            return point.values[name] if numeric else names.index(str(point.values.get(name)))

        for point in sorted(points, key=lambda p: p.number == best):
            chosen = point.number == best
            axes.plot(
                across_at(point), point.score, "*" if chosen else "o", ms=11 if chosen else 5,
                mfc="none" if point.stopped else BEST_COLOUR if chosen else DOT,
                mec=BEST_COLOUR if chosen else DOT, alpha=0.9,
            )  # fmt: skip
        if numeric and log:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        elif not numeric:
            axes.set_xticks(range(len(names)), [_shortened(told) for told in names])
            axes.set_xlim(-0.5, len(names) - 0.5)
        share = f"   {importances[name]:.0%}" if name in importances else ""
        axes.set_title(f"{name}{share}", fontsize=9, color=INK, loc="left")
        if log or not numeric:
            axes.spines[["top", "right"]].set_visible(False)
            axes.spines[["left", "bottom"]].set_color(RULE)
            axes.tick_params(which="both", color=RULE, labelcolor=MUTED, labelsize=8)
            axes.grid(axis="y", color=RULE, lw=0.6)
        else:
            quiet(axes)
    for axes in grid[len(knobs) :]:
        axes.set_visible(False)
    for axes in grid[:: max(1, across)]:
        axes.set_ylabel("score", color=MUTED, fontsize=8.5)
    if importances:
        figure.suptitle(
            "after each name: its share of the score's variance", fontsize=8.5, color=MUTED, x=0.01, ha="left"
        )
    return rendered(figure, FigureCanvasAgg)


class _Scale:
    """Values of one axis to heights in 0..1: numbers by size, everything else by order of names."""

    def __init__(self, values: Sequence[Any], log: bool) -> None:
        self.numeric = all(_is_number(value) for value in values)
        self.log = log and self.numeric
        self.names = [] if self.numeric else sorted({str(value) for value in values})
        numbers = [self._number(value) for value in values]
        self.low, self.high = min(numbers), max(numbers)

    def _number(self, value: Any) -> float:
        if not self.numeric:
            return float(self.names.index(str(value)))
        return math.log10(value) if self.log else float(value)

    def height(self, value: Any) -> float:
        width = self.high - self.low
        return (self._number(value) - self.low) / width if width else 0.5

    def ticks(self) -> list[tuple[float, str]]:
        if not self.numeric:
            return [(self.height(name), _shortened(name)) for name in self.names]
        if self.low == self.high:
            return [(0.5, f"{10**self.low if self.log else self.low:.3g}")]
        numbers = np.linspace(self.low, self.high, 4)
        return [
            (float(h), f"{10**n if self.log else n:.3g}") for h, n in zip(np.linspace(0, 1, 4), numbers, strict=True)
        ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shortened(told: str, length: int = 14) -> str:
    return told if len(told) <= length else told[: length - 1] + "…"


def _broken(name: str) -> str:
    """A dotted name over several lines."""
    return name.replace(".", ".\n")
