"""Methods in two pictures: fidelities as bars, and the words that they learned on a map."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from mcpl.report.figures import INK, MUTED, WORD_COLOURS, quiet, rendered

MARKERS = "os^Dv*PX<>"
NAMED = 24
"""words that a map names, the most frequent first"""


def bars(values: Mapping[str, Mapping[str, tuple[float, float]]]) -> Image.Image:
    """Metric -> method -> (mean, deviation of its pairs): a panel a metric, a bar a method with that deviation."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(method for own in values.values() for method in own))
    across = min(4, len(values))
    down = math.ceil(len(values) / across)
    width = max(2.6, 0.45 * len(methods) + 0.9)
    figure = Figure(figsize=(width * across, 3.4 * down), dpi=130, layout="constrained")
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for axes, (metric, own) in zip(grid, values.items(), strict=False):
        for place, method in enumerate(methods):
            if method in own:
                mean, deviation = own[method]
                axes.bar(
                    place, mean, 0.7, yerr=deviation, capsize=3, error_kw={"ecolor": MUTED, "elinewidth": 1.2},
                    color=WORD_COLOURS[place % len(WORD_COLOURS)],
                )  # fmt: skip
        axes.set_xticks(range(len(methods)), methods, rotation=35, ha="right", fontsize=8)
        axes.set_title(metric, fontsize=10, color=INK, loc="left")
        quiet(axes)
        axes.set_axisbelow(True)
    for axes in grid[len(values) :]:
        axes.set_visible(False)
    return rendered(figure, FigureCanvasAgg)


def words_map(at: np.ndarray, words: Sequence[str], methods: Sequence[str]) -> Image.Image:
    """Learned words [n, 2] on a plane: a colour a word, a mark a method."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    names, counts = np.unique(words, return_counts=True)
    named = [str(names[i]) for i in np.argsort(-counts, kind="stable")[:NAMED]]
    colours = {word: WORD_COLOURS[i % len(WORD_COLOURS)] for i, word in enumerate(named)}
    marks = {method: MARKERS[i % len(MARKERS)] for i, method in enumerate(dict.fromkeys(methods))}
    figure = Figure(figsize=(7.2, 5.6), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    for method, mark in marks.items():
        own = [i for i, each in enumerate(methods) if each == method]
        paint = [colours.get(words[i], MUTED) for i in own]
        axes.scatter(at[own, 0], at[own, 1], s=26, marker=mark, c=paint, alpha=0.75, lw=0)
    for word in named:
        own = [i for i, each in enumerate(words) if each == word]
        x, y = np.median(at[own], axis=0)
        axes.text(x, y, f"<{word}>", fontsize=8, color=INK, ha="center",
                  bbox={"facecolor": "white", "alpha": 0.7, "lw": 0, "pad": 1})  # fmt: skip
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(f"{len(words)} learned words; near each other, alike", fontsize=10, color=MUTED, loc="left")
    if len(marks) > 1:
        key = [Line2D([], [], ls="", marker=mark, color=INK, label=method) for method, mark in marks.items()]
        axes.legend(handles=key, frameon=False, fontsize=8, loc="best")
    return rendered(figure, FigureCanvasAgg)
