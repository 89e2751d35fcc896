"""A bank and its dataset as a page: rows in the dataset's order, pictures, neighbours, and samples where asked for."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import PurePosixPath

from PIL import Image

from mcpl.data.bank import Bank, BankSummary
from mcpl.data.pictures import fit, load_picture
from mcpl.data.scores import ScoredBank
from mcpl.data.sources import Dataset
from mcpl.data.storage import Store, open_store
from mcpl.errors import ConfigError, ExampleError
from mcpl.evaluation.neighbours import nearest
from mcpl.evaluation.signs import SIGNS
from mcpl.models.base import BaseModel
from mcpl.orchestration.showing import drawings, paired, sentence_of
from mcpl.report.page import SIDE, About, Neighbour, Page, PageRow, is_ours
from mcpl.types import BankRow, Example

PAGE = "index.html"
NEIGHBOURS = 5
"""of each word that are told"""


@dataclass(frozen=True)
class Written:
    """What a page took."""

    pictures: int
    words: int
    files: int
    bytes: int


def write_report(
    bank: str,
    dataset: str,
    out: str,
    *,
    samples: int = 0,
    count: int | None = None,
    single: bool = False,
    title: str | None = None,
    base: str | None = None,
    device: str = "auto",
    on_picture: Callable[[int, int], None] = lambda done, total: None,
) -> Written:
    """Write the page of a bank into a folder, or in place of an earlier page; the page itself comes last.

    samples: pictures drawn from each word and from all together; count: only the first so many pictures; single: one
    file; base: what draws, the words' own unless given. Raises ConfigError where there is no bank, or `out` holds
    something else; BankMismatch where the base is another than the words'.
    """
    opened, data, store = ScoredBank.open(bank), Dataset.open(dataset), open_store(out)
    before = {entry.name for entry in store.list()}
    if before and (PAGE not in before or not is_ours(store.get(PAGE))):
        raise ConfigError(f"--out {out} is not empty and holds no page of mcpl: choose another folder")
    model = _base(opened, base, device) if samples else None
    kept = _Kept(store)
    page = _page(kept.put, opened, data, count, single, title, model, samples, on_picture)
    for name in before - kept.names:
        if name.startswith(("data/", "pictures/", "samples/")):
            store.delete(name)
    return Written(page.pictures, page.words, len(kept.names), kept.bytes)


def single_page(bank: Bank, dataset: Dataset, count: int, title: str) -> bytes:
    """The first `count` pictures of a bank as one file, without samples."""
    kept: dict[str, bytes] = {}
    _page(kept.__setitem__, bank, dataset, count, True, title, None, 0, lambda done, total: None)
    return kept[PAGE]


class _Kept:
    """Puts files into a store and remembers them."""

    def __init__(self, store: Store) -> None:
        self._store, self.names, self.bytes = store, set(), 0

    def put(self, name: str, data: bytes) -> None:
        self._store.put(name, data)
        self.names.add(name)
        self.bytes += len(data)


@dataclass(frozen=True)
class _Counts:
    pictures: int
    words: int


def _page(put, bank: Bank, dataset: Dataset, count, single, title, model, samples, on_picture) -> _Counts:
    rows, summary = _first(bank, dataset, count), bank.summary()
    near, total = _neighbours(rows), len(rows)
    note = "" if total == len(bank) else f"The first {total} of {len(bank)} pictures; `mcpl report` shows them all."
    facts = _facts(summary, len(bank.words()))
    about = About(title or _title(bank.uri), facts, {n: sign.advice for n, sign in SIGNS.items()}, note)
    page = Page(put, about, single)
    for row, examples in paired(rows.values(), dataset):
        drawn, together = drawings(row, model, samples) if model and row.learned else ({}, None)
        pictures = {id: _picture(example) for id, example in examples.items()}
        others = {
            word.concept.slug: pictures.get(id)
            for word in (row.learned.concepts if row.learned else ())
            if (id := row.picture_of(word.concept.slug)) != row.shown
        }
        shown = PageRow(row, _sentence(row), pictures.get(row.shown), near.get(row.id, {}), drawn, together, others)
        page.add(shown)
        on_picture(page.count, total)
    page.finish()
    return _Counts(page.count, summary.words)


def _first(bank: Bank, dataset: Dataset, count: int | None) -> dict[str, BankRow]:
    """The rows that a page shows, by id: all, or the first `count` in the dataset's order. Reads no others."""
    if count is None or count >= len(bank):
        return {row.id: row for row in bank.rows()}
    known = dict.fromkeys(bank.ids())
    ordered = dict.fromkeys(chain((own for id in dataset.ids() if (own := bank.row_id(id))), known))
    wanted = set(islice(ordered, count))
    return {row.id: row for row in islice((row for row in bank.rows() if row.id in wanted), count)}


def _picture(example: Example) -> Image.Image | None:
    """The centred square, which is what the base saw."""
    with contextlib.suppress(ExampleError):
        picture = load_picture(example.image)
        return fit(picture, min(SIDE, *picture.size))
    return None


def _sentence(row: BankRow):
    with contextlib.suppress(ExampleError, ConfigError):
        return sentence_of(row) if row.learned else None
    return None


def _neighbours(rows: Mapping[str, BankRow]) -> dict[str, dict[str, list[Neighbour]]]:
    """id -> slug -> its nearest other words of the bank."""
    words = [(row, word) for row in rows.values() if row.learned for word in row.learned.concepts]
    found: dict[str, dict[str, list[Neighbour]]] = {}
    for (row, word), near in zip(words, nearest([word.vectors.numpy() for _, word in words], NEIGHBOURS), strict=True):
        told = [Neighbour(words[i][1].concept.slug, words[i][0].id, cosine) for i, cosine in near]
        found.setdefault(row.id, {})[word.concept.slug] = told
    return found


def _facts(summary: BankSummary, different: int) -> dict[str, str]:
    status = ", ".join(f"{count} {name}" for name, count in summary.status.items())
    facts = {
        "pictures": f"{summary.rows} ({status})",
        **({"groups": f"{summary.groups} of these, learned from several pictures together"} if summary.groups else {}),
        "words": f"{summary.words}, {different} different",
        "learning time": _duration(summary.seconds),
    }
    for name, counted in (("recipe", summary.recipes), ("base", summary.bases)):
        facts[name] = ", ".join(text for text, _ in Counter(counted).most_common(3)) + (
            f" and {len(counted) - 3} more" if len(counted) > 3 else ""
        )
    return facts


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _title(uri: str) -> str:
    path = PurePosixPath(uri.rstrip("/"))
    return f"{path.parent.name} {path.name}" if path.name == "bank" and path.parent.name else path.name or uri


def _base(bank: Bank, base: str | None, device: str) -> BaseModel:
    from mcpl.models import catalogue
    from mcpl.orchestration import threads

    return threads.fitted(lambda: catalogue.load(base or next(bank.rows()).provenance.base, device=device))
