"""What a study leaves behind: every row, a report that follows from the rows alone, and its pictures.

raw.parquet    a line for every picture, seed and cell
report.md      `markdown(study, rows)`: made of study.json and raw.parquet and of nothing else
*.png          one for each of the study's figures
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mcpl.data.pictures import load_picture
from mcpl.data.storage import Store
from mcpl.evaluation import fidelity, statistics
from mcpl.evaluation.statistics import SURE
from mcpl.learning.settings import CUT_OUT
from mcpl.orchestration.space import examples
from mcpl.prompts import parse
from mcpl.report import studies as drawing
from mcpl.scores import lower_is_better
from mcpl.studies import PAPER_COLUMNS, PAPER_ROWS, SIMILARITIES, TRUTH, Cell, Figure, Study

RAW, REPORT = "raw.parquet", "report.md"
MISSED = (
    "assignment", "attention_iou", "attention_iou_best_permutation", "pointing_game", "right_object",
    "right_object_second_judge",
)  # fmt: skip
"""What words that diverged have scored 0 in"""
OTHER = "_other"
FEW = 15
"""pictures below which a report says how little they carry"""
LOOKED_AT = 4
"""pictures of a sheet of masks"""

Row = Mapping[str, Any]
Scores = dict[str, dict[str, float]]
"""cell -> picture -> mean over its seeds"""


def write_report(
    store: Store, study: Study, rows: Mapping[int, Sequence[Row]]
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Write all files; rows: number of a trial -> its lines. Returns what matters of it, and the files."""
    files = {RAW: raw(study, rows)}
    own = read_raw(files[RAW])
    files[REPORT] = markdown(study, own).encode()
    files |= {name: png(image) for name, image in pictures(study, own)}
    for name, content in files.items():
        store.put(name, content)
    found = {metric: scores(study, own, metric) for metric in study.metrics}
    summary = {
        "study": study.name,
        "cells": len({row["cell"] for row in own}),
        "of": len(study.cells),
        "rows": len(own),
        "means": {
            cell.name: {m: round(_mean(found[m][cell.name]), 4) for m in found if found[m].get(cell.name)}
            for cell in study.cells
        },
        "report": store.join(REPORT),
    }
    return summary, files


def raw(study: Study, rows: Mapping[int, Sequence[Row]]) -> bytes:
    """Parquet of every line of every cell; cells that are one recipe have equal lines."""
    lines = [
        {"cell": cell.name, "picture": row["id"].removeprefix(f"{cell.set}-"), **row}
        for number, cells in enumerate(study.works)
        for cell in cells
        for row in rows.get(number, ())
    ]
    names = dict.fromkeys(name for line in lines for name in line)
    buffer = io.BytesIO()
    table = pa.Table.from_pylist([{name: line.get(name) for name in names} for line in lines])
    table = table.cast(pa.schema([column.with_type(_narrow(column.type)) for column in table.schema]))
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _narrow(kind: pa.DataType) -> pa.DataType:
    """Lists, which are large, hold float32."""
    if not pa.types.is_list(kind):
        return kind
    inner = kind.value_type
    return pa.list_(pa.float32() if pa.types.is_float64(inner) else _narrow(inner))


def read_raw(content: bytes) -> list[dict[str, Any]]:
    """Its lines, without what a line does not have."""
    lines = pq.read_table(io.BytesIO(content)).to_pylist()
    return [{name: value for name, value in line.items() if value is not None} for line in lines]


def study_of(identity: bytes) -> Study:
    """The study that study.json tells of."""
    return Study(**json.loads(identity)["study"])


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def scores(study: Study, rows: Sequence[Row], metric: str) -> Scores:
    """Each cell's value of every picture, for cells where it was measured. A similarity with OTHER behind its name is
    that to the ground truth of the picture's other words."""
    similar = metric.removesuffix(OTHER)
    if similar in SIMILARITIES:
        values = _similarity(study, rows, similar, fidelity.to_another if metric != similar else fidelity.fidelity)
    else:
        values = _plain(rows, metric)
    found: dict[str, list[tuple[str, float]]] = {}
    for cell, picture, value in values:
        found.setdefault(cell, []).append((picture, value))
    return {cell.name: statistics.by_picture(found[cell.name]) for cell in study.cells if cell.name in found}


def _plain(rows: Sequence[Row], metric: str) -> Iterator[tuple[str, str, float]]:
    measured = any(metric in row for row in rows)
    for row in rows:
        if metric in row:
            yield row["cell"], row["picture"], row[metric]
        elif measured and metric in MISSED and diverged(row):
            yield row["cell"], row["picture"], 0.0


def diverged(row: Row) -> bool:
    """Learning itself failed: words that are not finite hit nothing."""
    return row["status"] == "failed" and row.get("reason", "").startswith("learning diverged")


def _similarity(
    study: Study, rows: Sequence[Row], metric: str, measured: Callable[..., fidelity.Pairs | None]
) -> Iterator[tuple[str, str, float]]:
    """Mean cosine to the ground truth over words and pairs of unequal seeds: pictures of one seed share their noise."""
    which, meet = {
        "prompt_fidelity": ("states", fidelity.of_outputs),
        "image_fidelity": ("features", fidelity.of_means),
    }[metric]
    truths = {cell.set: cell.name for cell in study.cells if cell.recipe.sentences in CUT_OUT}
    sets = {cell.name: cell.set for cell in study.cells}
    known: dict[tuple[str, str], list[tuple[int, fidelity.Vectors]]] = {}
    for row in rows:
        if which in row:
            own = dict(zip(row["words"], map(np.atleast_2d, row[which]), strict=True))
            known.setdefault((row["cell"], row["picture"]), []).append((row["seed"], own))
    for (cell, picture), seeds in known.items():
        truth = truths.get(sets[cell])
        for seed, words in seeds:
            theirs = known.get((truth, picture), [])
            others = [other for at, other in theirs if at != seed]
            if not others and cell != truth:  # one seed only
                others = [other for _, other in theirs]
            if pairs := measured([words], others, meet):
                yield cell, picture, pairs.mean


def _mean(values: Mapping[str, float]) -> float:
    return float(np.mean(list(values.values())))


def markdown(study: Study, rows: Sequence[Row]) -> str:
    """The report, from the rows of `read_raw`."""
    found = {metric: scores(study, rows, metric) for metric in study.metrics}
    found = {metric: own for metric, own in found.items() if own}
    parts = [f"# Study `{study.name}`\n", f"{study.question}\n", _made(study, rows), _table(study, rows, found)]
    parts += [_signs(study, rows), _differences(study, found)]
    parts += [SECTIONS[name](study, rows, found) for name in study.sections]
    parts += [f"![{alt}]({name})\n" for name, alt in figure_names(study, rows)]
    parts.append(
        "## To read it with\n\n" + "\n".join(f"- {note}" for note in (*study.notes, *_always(study, rows))) + "\n"
    )
    return "\n".join(part for part in parts if part)


def command(study: Study) -> str:
    """What learns this again."""
    options = {"split": study.split, "pictures": study.pictures, "seeds": study.seeds, "steps": study.steps}
    options |= {"samples": study.samples, "dataset": study.dataset and "DATASET"}
    bases = {cell.recipe.base for cell in study.cells} - {type(study.cells[0].recipe)().base}
    options |= {"base": next(iter(bases), None)}
    told = "".join(f" --{name} {value}" for name, value in options.items() if value is not None)
    return f"python pipelines/study.py {study.name}{told}"


def _made(study: Study, rows: Sequence[Row]) -> str:
    """Command, base, code, machine, size."""

    def all_of(column: str) -> str:
        return ", ".join(sorted({str(row[column]) for row in rows if column in row})) or "-"

    shown = f"{len({row['id'] for row in rows})} pictures"
    if study.dataset:
        shown += " of a dataset"
    else:
        shown += f" of {', '.join(study.sets)}, {study.split} split"
    seeds = "1 seed" if study.seeds == 1 else f"{study.seeds} seeds"
    return (
        f"`{command(study)}`: base {all_of('base')} `{all_of('base_digest')}`, code {all_of('commit')}, "
        f"{all_of('hardware')}; {shown}, {seeds}, {study.samples} pictures drawn of each word.\n"
    )


def _table(study: Study, rows: Sequence[Row], found: Mapping[str, Scores]) -> str:
    own = {cell.name: [row for row in rows if row["cell"] == cell.name] for cell in study.cells}
    before = {metric: scores(study, rows, metric + (OTHER if metric in SIMILARITIES else "_step0")) for metric in found}
    lost = any(diverged(row) for row in rows)
    lines = [["cell", "pictures", *(_said(metric) for metric in found), "passes", *(["diverged"] if lost else [])]]
    lines.append(["---", *["---:"] * (len(lines[0]) - 1)])
    for cell in study.cells:
        if not own[cell.name]:
            continue
        line = [cell.name, str(len({row["id"] for row in own[cell.name]}))]
        for metric, by_cell in found.items():
            told = str(statistics.interval(list(by_cell.get(cell.name, {}).values())))
            first = before.get(metric, {}).get(cell.name)
            line.append(told + (f" ({_mean(first):.3f})" if first else ""))
        passes = [row["passes"] for row in own[cell.name] if "passes" in row]
        line.append(f"{np.mean(passes):.0f}" if passes else "-")
        lines.append(line + ([str(sum(map(diverged, own[cell.name])))] if lost else []))
    return _markdown(lines)


def _signs(study: Study, rows: Sequence[Row]) -> str:
    """The share of each cell's pictures that show a sign of failure."""
    told = []
    for cell in study.cells:
        own = [row for row in rows if row["cell"] == cell.name and row["status"] == "learned"]
        names = sorted({name for row in own for name in row if name.startswith("sign_")})
        shares = {name: np.mean([row.get(name, 0.0) for row in own]) for name in names}
        if seen := [f"{name[5:].replace('_', ' ')} {share:.0%}" for name, share in shares.items() if share]:
            told.append(f"{cell.name}: {', '.join(seen)}")
    return f"Signs of failure: {'; '.join(told) or 'none'}.\n" if any("passes" in row for row in rows) else ""


def _said(metric: str) -> str:
    lower = " (lower is better)" if lower_is_better(metric) else ""
    return metric.replace("_", " ").replace("iou", "IoU") + lower


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def _differences(study: Study, found: Mapping[str, Scores]) -> str:
    """Each cell minus its reference, picture by picture. Cells that are one recipe are one test."""
    if not study.compared:
        return ""
    work = study.work_of
    told: dict[tuple[str, str], dict[str, str]] = {pair: {} for pair in study.compared}
    few = bool(found)
    for metric, by_cell in found.items():
        differ = {
            (name, against): statistics.difference(by_cell[name], by_cell[against])
            for name, against in told
            if name in by_cell and against in by_cell
        }
        tests = {(work[name], work[against]): one for (name, against), one in differ.items()}
        tests = {both: one for both, one in tests.items() if len(set(both)) > 1 and one.pictures}
        sure = {both for both, one in statistics.corrected(tests).items() if one.p < SURE}
        for (name, against), one in differ.items():
            sign = one.interval.signed
            told[name, against][metric] = f"**{sign}**" if (work[name], work[against]) in sure else sign
        least = [len(tests) * statistics.least_chance(one.pictures) for one in tests.values()]
        few = few and min(least, default=0.0) >= SURE
    lines = [["cell", "minus", *(_said(metric) for metric in found)]]
    lines.append(["---", "---", *["---:"] * len(found)])
    lines += [[*pair, *(own.get(metric, "-") for metric in found)] for pair, own in told.items() if own]
    note = "\nSo few pictures cannot carry a test of so many differences: nothing here can be bold.\n"
    return "## Against the reference\n\n" + _markdown(lines) + (note if few else "")


def _always(study: Study, rows: Sequence[Row]) -> Iterator[str]:
    yield (
        "Mean [95 % interval] by bootstrap over pictures, each the mean of its seeds; behind it in brackets, where "
        "there is one, the mean before learning, or, behind a similarity, that to the ground truth of the picture's "
        "other word, which words that say nothing of their object have too. Differences are taken picture by picture; "
        "bold where the chance of one as large by luck, corrected for all differences of the metric (Holm), is under "
        f"{SURE:g}. Passes: U-Net sample passes a picture."
    )
    shown = [len({row["id"] for row in rows if row["cell"] == cell.name}) for cell in study.cells]
    if 0 < (pictures := min(filter(None, shown), default=0)) < FEW:
        at_most = f", which of {pictures} pictures holds the truth in at most {1 - 2.0 ** (1 - pictures):.0%}"
        yield (
            f"{pictures} pictures a cell: what is not bold is not shown, nor is it shown to be nothing: an effect as "
            f"large as an interval's farther end cannot be excluded{at_most if pictures < 6 else ''}."
        )
    if any(map(diverged, rows)):
        yield "A picture whose words diverged counts 0 in what is hit, and has no loss."
    failed = [row for row in rows if row["status"] != "learned" and not diverged(row)]
    for reason in sorted({row.get("reason", row["status"]) for row in failed}):
        cells = sorted({row["cell"] for row in failed if row.get("reason", row["status"]) == reason})
        yield f"Left out in {', '.join(cells)}: {reason}"
    if missing := [cell.name for cell in study.cells if not any(row["cell"] == cell.name for row in rows)]:
        yield f"**Not learned:** {', '.join(missing)}."
    if len({row.get("base_digest") for row in rows}) > 1:
        yield "**Rows of several bases: nothing here can be compared.**"
    if study.seeds == 1 and set(SIMILARITIES) & set(study.metrics):
        yield "With one seed there is no noise ceiling, and pictures are compared with pictures of the same noise."
    if study.steps is not None:
        yield f"Every recipe for {study.steps} steps only."


# Parts that only some studies have


def effects(study: Study, rows: Sequence[Row], found: Mapping[str, Scores]) -> str:
    """Main effects and interactions of switches, and whether effects add up, picture by picture; apart for each value
    of a level that is no switch."""
    groups: dict[str, list[Cell]] = {}
    for cell in study.cells:
        others = (f"{name} {value:g}" for name, value in cell.levels.items() if not isinstance(value, bool))
        groups.setdefault(", ".join(others), []).append(cell)
    work = study.work_of
    tables = [(f"### {name}\n\n" if name else "") + _effects(cells, work, found) for name, cells in groups.items()]
    return (
        "## Effects\n\nOf a switch: on minus off, mean over those settings of the other switches at which it makes "
        "another recipe. Of two (a x b): how much more a brings where b is on than where it is off. The last line is "
        "below 0 where returns diminish (above 0 for a loss).\n\n" + "\n".join(tables)
    )


def _effects(cells: Sequence[Cell], work: Mapping[str, int], found: Mapping[str, Scores]) -> str:
    """The table of one full grid of switches; work: cell -> which recipe it is."""
    switches = [name for name, value in cells[0].levels.items() if isinstance(value, bool)]
    at = {tuple(cell.levels[name] for name in switches): cell.name for cell in cells}
    off, on = tuple(False for _ in switches), tuple(True for _ in switches)
    alone = [tuple(other == name for other in switches) for name in switches]
    lines = [["effect", *(_said(metric) for metric in found)], ["---", *["---:"] * len(found)]]

    def add(name: str, contrast: Mapping[tuple[bool, ...], float]) -> None:
        told = []
        for by_cell in found.values():
            own = {at[point]: weight for point, weight in contrast.items() if weight}
            if not own or not own.keys() <= by_cell.keys():
                told.append("-")
                continue
            shared = set.intersection(*(set(by_cell[cell]) for cell in own))
            values = [sum(w * by_cell[cell][picture] for cell, w in own.items()) for picture in sorted(shared)]
            told.append(statistics.interval(values).signed)
        lines.append([name, *told])

    for count in range(1, len(switches) + 1):
        for chosen in combinations(range(len(switches)), count):
            settings: dict[tuple[bool, ...], dict[tuple[bool, ...], int]] = {}
            for point in at:
                others = tuple(on for i, on in enumerate(point) if i not in chosen)
                settings.setdefault(others, {})[point] = 1 if sum(not point[i] for i in chosen) % 2 == 0 else -1
            telling = [signs for signs in settings.values() if _differs(signs, at, work)]
            contrast = {point: sign / len(telling) for signs in telling for point, sign in signs.items()}
            add(" x ".join(switches[i] for i in chosen), contrast)
    add("all together", {on: 1.0, off: -1.0})
    summed: dict[tuple[bool, ...], float] = dict.fromkeys(at, 0.0)
    for point in alone:
        summed[point] += 1
        summed[off] -= 1
    add("sum of each alone", summed)
    add("together minus the sum", {p: (p == on) - (p == off) - w for p, w in summed.items()})
    return _markdown(lines)


def _differs(signs: Mapping[tuple[bool, ...], int], at: Mapping, work: Mapping[str, int]) -> bool:
    """Whether a contrast is of several recipes, and not of one under several names, which is 0 by construction."""
    recipes: Counter[int] = Counter()
    for point, sign in signs.items():
        recipes[work[at[point]]] += sign
    return any(recipes.values())


def paper(study: Study, rows: Sequence[Row], found: Mapping[str, Scores]) -> str:
    """Our means beside the paper's, their order compared, and how well the ground truth matches itself."""
    parts = ["## Beside the paper\n"]
    for number, domain in enumerate(dict.fromkeys(cell.levels["domain"] for cell in study.cells)):
        named = {str(cell.levels["row"]): cell.name for cell in study.cells if cell.levels["domain"] == domain}
        theirs = {
            column: {row: values[4 * number + place] for row, values in PAPER_ROWS.items()}
            for place, column in enumerate(PAPER_COLUMNS)
        }
        ours = {
            metric: {row: own[cell] for row, cell in named.items() if cell in own}
            for metric in SIMILARITIES
            if (own := found.get(metric))
        }
        head = ["row", *(_said(metric) for metric in ours), *(f"paper: {column}" for column in theirs)]
        lines = [head, ["---", *["---:"] * (len(head) - 1)]]
        for row in named:
            if row == TRUTH:
                continue
            told = [str(statistics.interval(list(values.get(row, {}).values()))) for values in ours.values()]
            lines.append([row, *told, *(f"{own[row]:.3f}" if row in own else "-" for own in theirs.values())])
        ceiling = [str(statistics.interval(list(values.get(TRUTH, {}).values()))) for values in ours.values()]
        lines.append(["noise ceiling", *ceiling, *["-"] * len(theirs)])
        parts.append(f"### {domain}\n\n{_markdown(lines)}")
        correlated = []
        for metric, values in ours.items():
            means = {row: _mean(own) for row, own in values.items() if row in PAPER_ROWS}
            for column, own in theirs.items():
                if (column == "BERT") == (metric == "prompt_fidelity"):
                    found_ = statistics.rank_correlation(means, own)
                    if found_.rho == found_.rho:
                        correlated.append(f"{_said(metric)} with {column} {found_.rho:+.2f} (p {found_.p:.2f})")
        parts.append("Order of the rows, Spearman: " + ("; ".join(correlated) or "too few rows") + ".\n")
    return "\n".join(parts)


SECTIONS: dict[str, Callable[[Study, Sequence[Row], Mapping[str, Scores]], str]] = {"effects": effects, "paper": paper}


# Pictures


def figure_names(study: Study, rows: Sequence[Row]) -> list[tuple[str, str]]:
    """(file, what it shows) of each figure that the rows can fill."""
    told = {"dots": "scores of every cell", "curves": "scores over {x}", "masks": "where the words look"}
    return [
        (f"figure-{number + 1}-{figure.kind}.png", told[figure.kind].format(x=figure.x))
        for number, figure in enumerate(study.figures)
        if _can_fill(study, rows, figure)
    ]


def _can_fill(study: Study, rows: Sequence[Row], figure: Figure) -> bool:
    if figure.kind == "masks":
        return any("maps" in row for row in rows)
    cells = {cell.name for cell in _of(study, figure)}
    return any(cells & scores(study, rows, metric).keys() for metric in study.metrics)


def pictures(study: Study, rows: Sequence[Row]) -> Iterator[tuple[str, Image.Image]]:
    """Every figure with its name."""
    draw = {"dots": _dots, "curves": _curves, "masks": _masks}
    names = dict(figure_names(study, rows))
    for number, figure in enumerate(study.figures):
        name = f"figure-{number + 1}-{figure.kind}.png"
        if name in names:
            yield name, draw[figure.kind](study, rows, figure)


def _scored(study: Study, rows: Sequence[Row], cells: Sequence[Cell]) -> dict[str, dict[str, drawing.Score]]:
    """metric -> cell -> score, of what was measured."""
    told: dict[str, dict[str, drawing.Score]] = {}
    for metric in study.metrics:
        found, before = scores(study, rows, metric), scores(study, rows, f"{metric}_step0")
        own = {
            cell.name: drawing.Score(
                *statistics.interval(list(found[cell.name].values())),
                _mean(before[cell.name]) if cell.name in before else None,
            )
            for cell in cells
            if cell.name in found
        }
        if own:
            told[metric] = own
    return told


def _of(study: Study, figure: Figure) -> list[Cell]:
    """The cells that a figure is of."""
    return [
        cell
        for cell in study.cells
        if figure.of.items() <= cell.levels.items() and (figure.kind != "curves" or figure.x in cell.levels)
    ]


def _dots(study: Study, rows: Sequence[Row], figure: Figure) -> Image.Image:
    cells = _of(study, figure)
    return drawing.dots(_scored(study, rows, cells), sorted({cell.against for cell in cells if cell.against}))


def _curves(study: Study, rows: Sequence[Row], figure: Figure) -> Image.Image:
    cells = _of(study, figure)
    told = _scored(study, rows, cells)
    points: dict[str, dict[str, list[tuple[float, drawing.Score]]]] = {}
    for (metric, own), cell in product(told.items(), cells):
        if cell.name in own:
            curve = points.setdefault(metric, {}).setdefault(str(cell.levels[figure.by]), [])
            curve.append((float(cell.levels[figure.x]), own[cell.name]))
    names = {cell.against for cell in cells if cell.against}
    standard = {cell.levels[figure.x] for cell in cells if cell.name in names}
    marked = float(standard.pop()) if len(standard) == 1 else None
    return drawing.curves(points, figure.x, figure.log, marked)


def _masks(study: Study, rows: Sequence[Row], figure: Figure) -> Image.Image:
    mapped = [row for row in rows if "maps" in row]
    seed = min(row["seed"] for row in mapped)
    own = [row for row in mapped if row["seed"] == seed]
    wanted = list(dict.fromkeys(row["id"] for row in own))[:LOOKED_AT]
    shown = []
    for example in examples(() if study.dataset else study.sets, study.split, study.dataset, None):
        if example.id not in wanted:
            continue
        maps: dict[str, dict[str, Any]] = {}
        for row in own:
            if row["id"] != example.id:
                continue
            if not maps:
                maps["before"] = dict(zip(row["slugs"], row["maps_step0"], strict=True))
            maps[row["cell"]] = dict(zip(row["slugs"], row["maps"], strict=True))
        first = example.pictures[0]  # of a group
        shown.append(drawing.Looked(load_picture(first.image), parse(first.text), maps))
    return drawing.masks_sheet(shown)
