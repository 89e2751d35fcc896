"""A study in pictures: every cell's scores with their intervals, scores over a setting, and where the words look."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from mcpl.report.figures import (
    INK,
    MUTED,
    RULE,
    WORD_COLOURS,
    Picture,
    _colour,
    _readable,
    _scaled,
    _Sheet,
    overlay,
    quiet,
    rendered,
)
from mcpl.types import Sentence

PLAIN, REFERENCE = WORD_COLOURS[5], WORD_COLOURS[6]
ACROSS = 6
"""panels side by side: more are too small to read where a page shrinks the picture"""
CURVES = tuple(WORD_COLOURS[i] for i in (5, 6, 2, 3, 0, 1, 7))


@dataclass(frozen=True)
class Score:
    """One cell's mean of a metric, with its interval, and the mean before learning where there is one."""

    mean: float
    low: float
    high: float
    before: float | None = None


def dots(scores: Mapping[str, Mapping[str, Score]], references: Sequence[str]) -> Image.Image:
    """A panel for each metric, a line for each cell: metric -> cell -> score; references have another colour."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cells = list(dict.fromkeys(cell for own in scores.values() for cell in own))
    down = math.ceil(len(scores) / ACROSS)
    across = math.ceil(len(scores) / down)
    label = 0.075 * max(map(len, cells))
    size = (label + 2.6 * across, 0.4 + down * (0.6 + 0.3 * len(cells)))
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    panels = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
    for axes in panels[len(scores) :]:
        axes.set_visible(False)
    for axes, (metric, own) in zip(panels, scores.items(), strict=False):
        for place, cell in enumerate(cells):
            if (score := own.get(cell)) is None:
                continue
            colour = REFERENCE if cell in references else PLAIN
            axes.plot([score.low, score.high], [place, place], color=colour, lw=2, solid_capstyle="butt")
            axes.plot(score.mean, place, "o", color=colour, ms=6)
            if score.before is not None:
                axes.plot(score.before, place, "o", mfc="none", mec=MUTED, ms=6)
        quiet(axes)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", color=RULE, lw=0.6)
        axes.set_title(_readable(metric), fontsize=10, color=INK, loc="left")
        axes.locator_params(axis="x", nbins=5)
        axes.set_yticks(range(len(cells)), cells, fontsize=8.5, color=INK)
        axes.set_ylim(len(cells) - 0.5, -0.5)
    told = "mean and 95 % interval over pictures"
    told += "; orange: compared with" if references else ""
    told += "; hollow: before learning" if _any_before(scores) else ""
    figure.suptitle(told, fontsize=8.5, color=MUTED, x=0.01, ha="left")
    return rendered(figure, FigureCanvasAgg)


def curves(
    scores: Mapping[str, Mapping[str, Sequence[tuple[float, Score]]]],
    x: str,
    log: bool = False,
    marked: float | None = None,
) -> Image.Image:
    """A panel for each metric, a curve for each name: metric -> name -> (value of the setting, score).

    log     a logarithmic axis, with a place for 0 left of the others; not where there is nothing but 0
    marked  a value of the setting that is drawn as a line: what the recipes have

    Later curves are thinner, so that equal ones all show; dashes are the mean before learning, once where it is equal.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    across = min(3, len(scores))
    down = math.ceil(len(scores) / across)
    figure = Figure(figsize=(3.9 * across, 2.9 * down + 0.4), dpi=130, layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    values = sorted({value for own in scores.values() for points in own.values() for value, _ in points})
    positive = [value for value in values if value > 0]
    log = log and bool(positive)
    zero = _left_of(positive) if log else None
    for axes, (metric, own) in zip(panels, scores.items(), strict=False):
        dashed: set[tuple[tuple[float, float], ...]] = set()
        for place, (colour, (name, points)) in enumerate(zip(CURVES, own.items(), strict=False)):
            at = [zero if log and value == 0 else value for value, _ in points]
            axes.fill_between(
                at, [s.low for _, s in points], [s.high for _, s in points], color=colour, alpha=0.18, lw=0
            )
            lw = 1 + 2.6 / (1 + place)
            axes.plot(at, [s.mean for _, s in points], "o-", color=colour, lw=lw, ms=2.4 + lw, label=name)
            first = tuple((x, round(s.before, 9)) for x, (_, s) in zip(at, points, strict=True) if s.before is not None)
            if first and first not in dashed:
                dashed.add(first)
                axes.plot(*zip(*first, strict=True), "--", color=colour, lw=1)
        if marked is not None:
            axes.axvline(marked, color=MUTED, lw=0.9, ls=":")
        quiet(axes) if not log else axes.grid(axis="y", color=RULE, lw=0.6)
        if log:
            axes.set_xscale("log")
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(colors=MUTED, labelsize=8)
            ticks = _apart(values)
            axes.set_xticks([zero if value == 0 else value for value in ticks], [f"{value:g}" for value in ticks])
            axes.minorticks_off()
        else:
            axes.set_xticks(values if len(values) < 8 else values[::2])
        axes.set_title(_readable(metric), fontsize=10, color=INK, loc="left")
        axes.set_xlabel(x, color=MUTED, fontsize=8.5)
    for axes in panels[len(scores) :]:
        axes.set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    if any(s.before is not None for own in scores.values() for points in own.values() for _, s in points):
        handles.append(Line2D([], [], color=MUTED, lw=1, ls="--"))
        labels.append("before learning")
    figure.legend(handles, labels, frameon=False, fontsize=8.5, loc="outside upper left", ncols=5)
    return rendered(figure, FigureCanvasAgg)


def _apart(values: Sequence[float]) -> list[float]:
    """Those of rising values, 0 too, that a logarithmic axis can name: nearer ones would write over each other."""
    apart: list[float] = []
    for value in values:
        if not apart or value >= 2 * apart[-1]:
            apart.append(value)
    return apart


def _left_of(positive: Sequence[float]) -> float:
    """Where 0 is drawn on a logarithmic axis of these values, the least first."""
    return positive[0] ** 2 / positive[1] if len(positive) > 1 else positive[0] / 10


def _any_before(scores: Mapping[str, Mapping[str, Score]]) -> bool:
    return any(score.before is not None for own in scores.values() for score in own.values())


@dataclass(frozen=True)
class Looked:
    """One picture with where its words look in each cell."""

    picture: Picture
    sentence: Sentence
    maps: Mapping[str, Mapping[str, Any]]
    """cell -> slug -> [m, m] in 0..1; the first cell may be what was before learning"""


def masks_sheet(shown: Sequence[Looked], threshold: float = 0.5) -> Image.Image:
    """A line for each picture, a column for each cell: each word's attention, outlined at the threshold."""
    cell, gap, margin = 96, 6, 30
    cells = list(dict.fromkeys(name for one in shown for name in one.maps))
    words = max(len(own) for one in shown for own in one.maps.values())
    column = words * (cell + gap) + 18
    width = 2 * margin + cell + 24 + len(cells) * column
    sheet = _Sheet(width)
    sheet.text((margin, margin), f"each word's attention; the line: {threshold:g} of its maximum", 13, MUTED)
    y = margin + 30
    for place, name in enumerate(cells):
        sheet.text((margin + cell + 24 + place * column, y), name, 14, INK, bold=True)
    y += 26
    for one in shown:
        y += sheet.sentence(one.sentence, margin, y, width - 2 * margin, 14) + 4
        sheet.picture(_scaled(one.picture, cell), (margin, y), cell)
        for place, name in enumerate(cells):
            x = margin + cell + 24 + place * column
            for index, attention in enumerate(one.maps.get(name, {}).values()):
                seen = _outlined(overlay(one.picture, attention, cell), attention, threshold)
                sheet.picture(seen, (x, y), cell, _colour(index))
                x += cell + gap
        y += cell + 18
    return sheet.finish(y + margin // 2)


def _outlined(seen: Image.Image, attention: Any, threshold: float) -> Image.Image:
    """The picture with a light line around the cells that reach the threshold."""
    level = np.asarray(attention, np.float32)
    inside = Image.fromarray((level >= threshold * max(level.max(), 1e-12)).astype(np.uint8))
    mask = np.asarray(inside.resize(seen.size, Image.Resampling.NEAREST), bool)
    padded = np.pad(mask, 1)
    kept = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    pixels = np.asarray(seen).copy()
    pixels[mask & ~kept] = 255
    return Image.fromarray(pixels)
