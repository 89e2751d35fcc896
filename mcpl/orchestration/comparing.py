"""Banks compared: each method's scores with intervals, its fidelity to a ground truth, and differences that are paired.

Banks whose recipes differ in their seed alone are one method. What is compared was scored before (`evaluating`): a
comparison draws nothing and learns nothing.
"""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mcpl.data.bank import Bank
from mcpl.data.scores import PICTURE, TEXT, TOGETHER, Features
from mcpl.data.storage import open_store
from mcpl.errors import BankMismatch, ConfigError
from mcpl.evaluation import fidelity
from mcpl.evaluation.similarity import MOST, flattened, kid, silhouette
from mcpl.evaluation.statistics import Difference, Interval, by_picture, corrected, difference, interval
from mcpl.orchestration.evaluating import Evaluated
from mcpl.report import comparisons

PAIRED = 2000
"""pictures whose features are compared, the first that all banks have: an interval over more is hardly narrower"""
STEP0 = "_step0"


@dataclass
class Method:
    """One recipe, learned with one seed or several."""

    label: str
    banks: list[Evaluated] = field(default_factory=list)
    values: dict[str, list[tuple[str, int, float]]] = field(default_factory=dict)
    """metric -> (picture, seed, value); fidelities have one value for all seeds together, told as seed -1"""
    deviations: dict[str, float] = field(default_factory=dict)
    """fidelity -> mean over pictures of the standard deviation of its pairs"""
    whole: dict[str, tuple[float, float]] = field(default_factory=dict)
    """what only all pictures together have -> (value, its standard deviation over subsets)"""
    words: list[tuple[str, np.ndarray]] = field(default_factory=list)
    """(slug, text-encoder output) of every word that was compared"""

    def by_picture(self, metric: str) -> dict[str, float]:
        return by_picture((id, value) for id, _, value in self.values.get(metric, ()))

    def interval(self, metric: str) -> Interval:
        return interval(list(self.by_picture(metric).values()))


@dataclass(frozen=True)
class Comparison:
    """Methods side by side; the ground truth's ceiling beside them where there is one."""

    methods: Sequence[Method]
    ceiling: Method | None
    pictures: int
    """that every bank scored"""
    left_out: int = 0
    """that some bank holds and not every one scored"""

    @property
    def metrics(self) -> list[str]:
        """Every metric of any method, fidelities last."""
        return list(dict.fromkeys(name for method in self.methods for name in method.values))

    def differences(self) -> dict[tuple[str, str], Difference]:
        """(metric, method) -> that method minus the first, picture by picture; chances corrected for their number."""
        first, *others = self.methods
        found = {
            (metric, method.label): difference(method.by_picture(metric), first.by_picture(metric))
            for metric in _told(self.metrics)
            for method in others
        }
        return corrected({key: each for key, each in found.items() if each.pictures})


def compare(banks: Sequence[Evaluated], against: Sequence[Evaluated] = ()) -> Comparison:
    """The methods among these banks, and their fidelity to the ground truth that others hold.

    Raises BankMismatch where they are words of several bases, or were scored by other settings; ConfigError where they
    have no picture in common.
    """
    _check_alike([*banks, *against])
    methods = _methods(banks)
    later = {bank.bank: bank.metrics() for bank in (*banks, *against)}
    every = list(later.values())
    common = [id for id in every[0] if all(id in ids for ids in every)]
    if not common:
        raise ConfigError("the banks have no picture in common that was scored: compare banks of one dataset")
    for method in methods:
        _read_metrics(method, later, set(common))
    wanted = list(islice(common, PAIRED))
    truth = [_features(bank, wanted) for bank in against]
    for method in methods:
        _compare(method, [_features(bank, wanted) for bank in method.banks], truth, wanted)
    ceiling = Method("ceiling", list(against)) if against else None
    if ceiling:
        _bound(ceiling, truth, wanted)
    known = {id for bank in (*banks, *against) for id in Bank.open(bank.bank).ids()}
    return Comparison(methods, ceiling, len(common), len(known - set(common)))


def _check_alike(banks: Sequence[Evaluated]) -> None:
    digests = {bank.scores.settings["base_digest"] for bank in banks}
    if len(digests) > 1:
        raise BankMismatch(f"the banks belong to several bases ({', '.join(sorted(digests))}): compare banks of one")
    if len({bank.scores.fingerprint for bank in banks}) > 1:
        raise BankMismatch("the banks were scored by several settings: score all of them by one command")


def _methods(banks: Sequence[Evaluated]) -> list[Method]:
    """Banks of one recipe but for the seed together, in the order in which they were given."""
    found: dict[str, Method] = {}
    for bank in banks:
        recipe = dict(bank.recipe)
        recipe.pop("seed", None)
        key = json.dumps(recipe, sort_keys=True)
        if key not in found:
            taken, name = {method.label for method in found.values()}, str(recipe.get("name"))
            others = (f"{name} ({told})" for told in (PurePosixPath(bank.bank).name, *range(2, len(banks) + 2)))
            found[key] = Method(next(label for label in (name, *others) if label not in taken))
        found[key].banks.append(bank)
    return list(found.values())


def _read_metrics(
    method: Method, later: Mapping[str, Mapping[str, Mapping[str, float]]], wanted: Collection[str]
) -> None:
    """The wanted pictures' own metrics, those found later in place of those of learning."""
    for bank in method.banks:
        seed = int(bank.recipe.get("seed", 0))
        for row in Bank.open(bank.bank).rows(concepts=False):
            if row.id in wanted:
                for name, value in {**row.metrics, **later[bank.bank][row.id]}.items():
                    if not np.isnan(value):
                        method.values.setdefault(name, []).append((row.id, seed, value))


def _features(bank: Evaluated, wanted: Iterable[str]) -> dict[str, Features]:
    kept = set(wanted)
    return {row.id: row.features for row in bank.rows() if row.id in kept}


def _compare(
    method: Method, learned: Sequence[Mapping[str, Features]], truth: Sequence[Mapping[str, Features]],
    wanted: Sequence[str],
) -> None:  # fmt: skip
    """Fidelities by picture; silhouette and kernel distances of all."""
    sides: dict[str, list[list[np.ndarray]]] = {}
    for id in wanted:
        rows = [bank[id] for bank in learned]
        method.words += [(of, each[0]) for row in rows for (of, space), each in row.items() if space == TEXT]
        for space in _spaces(rows):
            own, bound = [_vectors(row, space) for row in rows], space.removesuffix(STEP0)
            those = [_vectors(bank[id], bound) for bank in truth]
            meet, name = _meet(bound), _name(space)
            _keep(method, name, id, fidelity.fidelity(own, those, meet))
            _keep(method, f"{name}_other", id, fidelity.to_another(own, those, meet) if space == bound else None)
            if bound != TEXT and space == bound and those:
                _gather(sides, f"kid_{space}", own, those)
        for space in dict.fromkeys(space for row in rows for of, space in row if of == PICTURE):
            real = [row[PICTURE, space] for row in rows[:1]]
            _gather(sides, f"kid_{space}_real", [{"": row[TOGETHER, space]} for row in rows], [{"": real[0]}])
    for name, (ours, theirs) in sides.items():
        value = kid(np.concatenate(ours)[:MOST], np.concatenate(theirs)[:MOST], subsets=20, size=500)
        if not np.isnan(value[0]):
            method.whole[name] = value
    apart = silhouette(np.stack([v for _, v in method.words]), [w for w, _ in method.words]) if method.words else np.nan
    if not np.isnan(apart):
        method.whole["silhouette"] = (apart, 0.0)


def _gather(sides: dict, name: str, own: Sequence[fidelity.Vectors], those: Sequence[fidelity.Vectors]) -> None:
    kept = sides.setdefault(name, [[], []])
    for side, rows in zip(kept, (own, those), strict=True):
        side += [values for row in rows for values in row.values()]


def _bound(ceiling: Method, truth: Sequence[Mapping[str, Features]], wanted: Sequence[str]) -> None:
    for id in wanted:
        rows = [bank[id] for bank in truth]
        for space in _spaces(rows):
            if not space.endswith(STEP0):
                own = [_vectors(row, space) for row in rows]
                _keep(ceiling, _name(space), id, fidelity.ceiling(own, _meet(space)))


def _keep(method: Method, name: str, id: str, pairs: fidelity.Pairs | None) -> None:
    if pairs is None:
        return
    own = method.values.setdefault(name, [])
    seen = len(own)
    own.append((id, -1, pairs.mean))
    method.deviations[name] = (method.deviations.get(name, 0.0) * seen + pairs.deviation) / (seen + 1)


def _spaces(rows: Sequence[Features]) -> list[str]:
    """Spaces of words, in the order in which they were found."""
    return list(dict.fromkeys(space for row in rows for of, space in row if of not in (TOGETHER, PICTURE)))


def _vectors(row: Features, space: str) -> fidelity.Vectors:
    return {of: values for (of, where), values in row.items() if where == space and of not in (TOGETHER, PICTURE)}


def _meet(space: str) -> fidelity.Meet:
    return fidelity.of_outputs if space == TEXT else fidelity.of_pictures


def _name(space: str) -> str:
    bound = space.removesuffix(STEP0)
    return ("prompt_fidelity" if bound == TEXT else f"image_fidelity_{bound}") + space[len(bound) :]


def table(comparison: Comparison) -> str:
    """Markdown: every metric with its interval, what belongs to all pictures, then differences from the first."""
    out, methods = io.StringIO(), comparison.methods
    columns = [*methods, *([comparison.ceiling] if comparison.ceiling else [])]
    scored = methods[0].banks[0].scores
    settings = scored.settings
    seeds = ", ".join(f"{m.label} {len(m.banks)}" for m in methods)
    left_out = (
        f" {comparison.left_out} more are left out: some bank has no scored words of them."
        if comparison.left_out
        else ""
    )
    print(
        f"{comparison.pictures} pictures that all banks scored; seeds: {seeds}. Base {settings['base']}"
        f" {settings['base_digest']}, evaluation {scored.fingerprint}: {settings['samples']} pictures of each word,"
        f" seed {settings['seed']}, features {', '.join(settings['features']) or 'none'}. Means over pictures with 95 %"
        f" intervals by bootstrap over pictures; ± is the deviation of single pairs.{left_out}\n",
        file=out,
    )
    print("| metric | " + " | ".join(m.label for m in columns) + " |\n" + "|---" * (len(columns) + 1) + "|", file=out)
    for name in _told(comparison.metrics):
        print(f"| {_readable(name)} | " + " | ".join(_cell(m, name) for m in columns) + " |", file=out)
    for name in dict.fromkeys(name for method in methods for name in method.whole):
        cells = [f"{m.whole[name][0]:.4f} ± {m.whole[name][1]:.4f}" if name in m.whole else "-" for m in columns]
        print(f"| {_readable(name)} | " + " | ".join(cells) + " |", file=out)
    differences = comparison.differences()
    if differences:
        others = [m.label for m in methods[1:]]
        print(
            f"\nDifferences from {methods[0].label}, picture by picture; p by exchanging the two at random, corrected"
            " after Holm for all of this table.\n",
            file=out,
        )
        print("| metric | " + " | ".join(others) + " |\n" + "|---" * (len(others) + 1) + "|", file=out)
        for name in dict.fromkeys(metric for metric, _ in differences):
            found = [differences.get((name, label)) for label in others]
            cells = ["-" if each is None else f"{each.interval}, p {each.p:.3g}" for each in found]
            print(f"| {_readable(name)} | " + " | ".join(cells) + " |", file=out)
    return out.getvalue()


def _told(metrics: Iterable[str]) -> list[str]:
    return [name for name in metrics if not name.startswith("sign_")]


def _cell(method: Method, metric: str) -> str:
    deviation = method.deviations.get(metric)
    return str(method.interval(metric)) + ("" if deviation is None else f" ± {deviation:.3f}")


def _readable(name: str) -> str:
    return name.replace("_", " ").replace("iou", "IoU").replace("kid", "KID")


def raw(comparison: Comparison) -> bytes:
    """Parquet from which the table follows: method, metric, picture, seed, value."""
    columns = [*comparison.methods, *([comparison.ceiling] if comparison.ceiling else [])]
    rows = [
        {"method": method.label, "metric": metric, "picture": id, "seed": seed, "value": value}
        for method in columns
        for metric, values in method.values.items()
        for id, seed, value in values
    ]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, compression="zstd")
    return buffer.getvalue()


def figures(comparison: Comparison) -> Iterator[tuple[str, Image.Image]]:
    """(name, picture): fidelities as bars with the deviation of pairs, and learned words on a map."""
    columns = [*comparison.methods, *([comparison.ceiling] if comparison.ceiling else [])]
    shown = [n for n in comparison.metrics if "fidelity" in n and not n.endswith(("_other", STEP0))]
    if shown:
        bars = {
            _readable(n): {m.label: (m.interval(n).mean, m.deviations[n]) for m in columns if n in m.deviations}
            for n in shown
        }
        yield "fidelity", comparisons.bars(bars)
    words = [(method.label, word, vector) for method in comparison.methods for word, vector in method.words][:MOST]
    if len(words) > 1:
        at = flattened(np.stack([vector for _, _, vector in words]))
        yield "words", comparisons.words_map(at, [word for _, word, _ in words], [label for label, _, _ in words])


def write(comparison: Comparison, out: str, title: str) -> list[str]:
    """comparison.md, raw.parquet and the figures, into a folder or bucket; their names."""
    store, names = open_store(out), ["comparison.md", "raw.parquet"]
    drawn = dict(figures(comparison))
    for name, picture in drawn.items():
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        store.put(f"{name}.png", buffer.getvalue())
        names.append(f"{name}.png")
    shown = "".join(f"\n![{name}]({name}.png)\n" for name in drawn)
    store.put("raw.parquet", raw(comparison))
    store.put("comparison.md", f"# {title}\n\n{table(comparison)}{shown}".encode())
    return names
