"""What a dataset is and what is wrong with it, for people."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mcpl.data.dataset import Dataset
from mcpl.data.listing import Rejected
from mcpl.data.pictures import aligned_mask, load_picture
from mcpl.data.storage import byte_size
from mcpl.data.writing import TAKEN, Faults
from mcpl.errors import ExampleError

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
            ("rows", f"{self.rows} in {self.files} file(s), {self.row_groups} row group(s), {byte_size(self.bytes)}"),
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
    faults = Faults.of(dataset.rejected)
    files = len({shard.file for shard in shards})
    rows = (dataset.uri, dataset.kind, dataset.count, files, len(shards), dataset.bytes)
    return DatasetInfo(*rows, dataset.columns, dataset.digest, faults)


def _lines(*rows: tuple[str, str]) -> str:
    return "\n".join(f"{label:<10} {text}" for label, text in rows)


def _plain(report: object) -> Text:
    from rich.text import Text

    return Text(str(report))


@dataclass(frozen=True)
class Spread:
    """Smallest, middle and largest of some whole numbers."""

    low: int
    median: int
    high: int

    @classmethod
    def of(cls, counts: Counter[int]) -> Spread | None:
        """From value -> how often: what grows with the values' range, not with the rows."""
        if not counts:
            return None
        values = sorted(counts)
        middle, reached = (counts.total() - 1) // 2, 0
        for median in values:
            reached += counts[median]
            if reached > middle:
                break
        return cls(values[0], median, values[-1])

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.low}"
        return f"{self.low} to {self.high}, median {self.median}"


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
    """tokens per sentence, start, end and the longest template around it included, where a tokenizer was given"""
    concepts: Counter[int]
    """placeholders in a sentence -> rows"""
    masked: int
    """rows with at least one mask"""
    sizes: Spread | None = None
    """bytes of a stored picture"""
    tokenizer: str = ""
    """whose tokens were counted"""

    @property
    def ok(self) -> bool:
        """True where every row can be learned."""
        return self.good == self.rows

    def __str__(self) -> str:
        concepts = ", ".join(f"{rows} rows with {count}" for count, rows in sorted(self.concepts.items()))
        tokens = f"tokens of {self.tokenizer or 'the tokenizer'}"
        spreads = {
            "stored": (self.sizes, "bytes a picture"),
            "width": (self.widths, "px"),
            "height": (self.heights, "px"),
            "sentence": (self.words, "words and signs"),
            "tokens": (self.tokens, f"{tokens}, start, end and templates included"),
        }
        return _lines(
            ("dataset", f"{self.uri} ({self.kind})"),
            ("rows", f"{self.rows}: {self.good} can be learned, {self.rows - self.good} cannot"),
            ("pictures", f"{byte_size(self.bytes)}, {self.masked} with masks"),
            *((name, f"{spread} {unit}") for name, (spread, unit) in spreads.items() if spread),
            ("to learn", concepts or "nothing"),
            *self.faults.lines(),
        )

    def bad_rows(self, most: int) -> list[tuple[str, str]]:
        """(id or place, reason) of the first rows that cannot be learned and things that became none."""
        return [(fault.id, fault.reason) for fault in self.faults.first if not fault.repaired][:most]

    def __rich__(self) -> Text:
        return _plain(self)


def validate(
    source: Dataset | str | os.PathLike,
    words: str = "marked",
    token_length: Callable[[str], int] | None = None,
    token_limit: int | None = None,
    tokenizer: str = "",
    on_row: Callable[[], None] = lambda: None,
) -> ValidationReport:
    """Read everything, a row group at a time: decode every picture, parse every sentence, meet every id once.

    source        a dataset, or where it lies
    words         which words are learned, as in a recipe
    token_length  tokens of a sentence, start and end included; with token_limit, longer sentences are faults
    tokenizer     whose tokens those are, for the report
    """
    from mcpl.prompts import parse

    dataset = source if isinstance(source, Dataset) else Dataset.open(source)
    faults = Faults.of(dataset.rejected)
    widths: Counter[int] = Counter()
    heights: Counter[int] = Counter()
    sizes: Counter[int] = Counter()
    lengths: Counter[int] = Counter()
    tokens: Counter[int] = Counter()
    concepts: Counter[int] = Counter()
    seen: set[str] = set()
    good = masked = stored = 0
    for example, mask_faults in (item for shard in dataset.shards(64) for item in dataset.load(shard)):
        on_row()
        stored += len(example.image)
        sizes[_coarse(len(example.image))] += 1
        masked += bool(example.masks)
        for fault in mask_faults:
            faults.add(fault)
        reasons = []
        if not example.id or example.id in seen:
            reasons.append(TAKEN)
        seen.add(example.id)
        try:
            picture = load_picture(example.image)
            widths[picture.width] += 1
            heights[picture.height] += 1
            for word, png in example.masks.items():
                try:
                    aligned_mask(png, picture)
                except ExampleError as fault:
                    faults.add(Rejected(example.id, f"unusable mask: of {word!r}, {fault}", repaired=True))
        except ExampleError as fault:
            reasons.append(str(fault))
        try:
            sentence = parse(example.text, words)
            lengths[len(sentence.words)] += 1
            concepts[len(sentence.concepts)] += 1
            if token_length is not None:
                length = token_length(example.text)
                tokens[length] += 1
                if token_limit is not None and length > token_limit:
                    reasons.append(f"sentence too long: {length} tokens, the text encoder holds {token_limit}")
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
        widths=Spread.of(widths),
        heights=Spread.of(heights),
        words=Spread.of(lengths),
        tokens=Spread.of(tokens),
        concepts=concepts,
        masked=masked,
        sizes=Spread.of(sizes),
        tokenizer=tokenizer,
    )


def _coarse(size: int) -> int:
    """Bytes to three digits, so that a million pictures have some thousand sizes."""
    step = 10 ** max(len(str(size)) - 3, 0)
    return size // step * step
