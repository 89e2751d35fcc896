"""What a dataset is and what is wrong with it, for people."""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mcpl.data.dataset import Dataset, ListedDataset
from mcpl.data.listing import Rejected
from mcpl.data.pictures import aligned_mask, load_picture
from mcpl.data.writing import TAKEN, Faults
from mcpl.errors import ExampleError
from mcpl.types import Example

if TYPE_CHECKING:
    from rich.text import Text


@dataclass(frozen=True)
class DatasetInfo:
    """A dataset from its names and footers alone."""

    uri: str
    kind: str
    rows: int
    files: int
    row_groups: int
    bytes: int
    columns: tuple[str, ...]
    digest: str
    faults: Faults

    def __str__(self) -> str:
        return _lines(
            ("dataset", f"{self.uri} ({self.kind})"),
            ("rows", f"{self.rows} in {self.files} file(s), {self.row_groups} row group(s), {_size(self.bytes)}"),
            ("columns", ", ".join(self.columns)),
            ("digest", self.digest),
            *self.faults.lines(),
        )

    def __rich__(self) -> Text:
        return _plain(self)


def info(uri: str | os.PathLike) -> DatasetInfo:
    """Look without reading pictures."""
    dataset = Dataset.open(uri)
    shards = dataset.shards(max(dataset.count, 1))
    faults = _faults(dataset.rejected)
    files = len({shard.file for shard in shards})
    rows = (dataset.uri, dataset.kind, dataset.count, files, len(shards), dataset.bytes)
    return DatasetInfo(*rows, dataset.columns, dataset.digest, faults)


def _lines(*rows: tuple[str, str]) -> str:
    return "\n".join(f"{label:<10} {text}" for label, text in rows)


def _plain(report: object) -> Text:
    from rich.text import Text

    return Text(str(report))


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def _faults(rejected: Sequence[Rejected]) -> Faults:
    faults = Faults()
    for each in rejected:
        faults.add(each)
    return faults


@dataclass(frozen=True)
class Spread:
    """Smallest, middle and largest of some numbers."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        return cls(min(values), statistics.median(values), max(values)) if values else None

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.low:g}"
        return f"{self.low:g} to {self.high:g}, median {self.median:g}"


@dataclass(frozen=True)
class ValidationReport:
    """A dataset read from end to end."""

    uri: str
    kind: str
    rows: int
    good: int
    """rows that can be learned"""
    faults: Faults
    bytes: int
    """stored pictures"""
    widths: Spread | None
    """pixels"""
    heights: Spread | None
    words: Spread | None
    """words and signs per sentence"""
    tokens: Spread | None
    """tokens per sentence, where a tokenizer was given"""
    concepts: Counter[int]
    """placeholders in a sentence -> rows"""
    masked: int
    """rows with at least one mask"""

    @property
    def ok(self) -> bool:
        """True where every row can be learned."""
        return self.good == self.rows

    def __str__(self) -> str:
        concepts = ", ".join(f"{rows} rows with {count}" for count, rows in sorted(self.concepts.items()))
        spreads = {"width": self.widths, "height": self.heights, "sentence": self.words, "tokens": self.tokens}
        units = {"width": "px", "height": "px", "sentence": "words and signs", "tokens": "tokens"}
        return _lines(
            ("dataset", f"{self.uri} ({self.kind})"),
            ("rows", f"{self.rows}: {self.good} can be learned, {self.rows - self.good} cannot"),
            ("pictures", f"{_size(self.bytes)}, {self.masked} with masks"),
            *((name, f"{spread} {units[name]}") for name, spread in spreads.items() if spread),
            ("to learn", concepts or "nothing"),
            *self.faults.lines(),
        )

    def __rich__(self) -> Text:
        return _plain(self)


def validate(
    uri: str | os.PathLike,
    words: str = "marked",
    token_length: Callable[[str], int] | None = None,
    token_limit: int | None = None,
) -> ValidationReport:
    """Read everything: decode every picture, parse every sentence, meet every id once.

    words         which words are learned, as in a recipe
    token_length  tokens of a sentence, start and end included; with token_limit, longer sentences are faults
    """
    from mcpl.prompts import parse

    dataset = Dataset.open(uri)
    faults = _faults(dataset.rejected)
    sizes: list[tuple[int, int]] = []
    lengths: list[int] = []
    tokens: list[int] = []
    concepts: Counter[int] = Counter()
    seen: set[str] = set()
    good = masked = stored = 0
    for example, mask_faults in _read(dataset):
        stored += len(example.image)
        masked += bool(example.masks)
        for fault in mask_faults:
            faults.add(fault)
        reasons = []
        if not example.id or example.id in seen:
            reasons.append(TAKEN)
        seen.add(example.id)
        try:
            picture = load_picture(example.image)
            sizes.append(picture.size)
            for word, png in example.masks.items():
                try:
                    aligned_mask(png, picture)
                except ExampleError as fault:
                    faults.add(Rejected(example.id, f"unusable mask: of {word!r}, {fault}", repaired=True))
        except ExampleError as fault:
            reasons.append(str(fault))
        try:
            sentence = parse(example.text, words)
            lengths.append(len(sentence.words))
            concepts[len(sentence.concepts)] += 1
            if token_length is not None:
                tokens.append(token_length(example.text))
                if token_limit is not None and tokens[-1] > token_limit:
                    reasons.append(f"sentence too long: {tokens[-1]} tokens, the text encoder holds {token_limit}")
        except ExampleError as fault:
            reasons.append(str(fault))
        for reason in reasons:
            faults.add(Rejected(example.id, reason))
        good += not reasons
    return ValidationReport(
        uri=dataset.uri,
        kind=dataset.kind,
        rows=dataset.count,
        good=good,
        faults=faults,
        bytes=stored,
        widths=Spread.of([width for width, _ in sizes]),
        heights=Spread.of([height for _, height in sizes]),
        words=Spread.of(lengths),
        tokens=Spread.of(tokens),
        concepts=concepts,
        masked=masked,
    )


def _read(dataset: Dataset) -> Iterator[tuple[Example, Sequence[Rejected]]]:
    for shard in dataset.shards(64):
        if isinstance(dataset, ListedDataset):
            yield from dataset.load(shard)
        else:
            yield from ((example, ()) for example in dataset.read(shard))
