"""Learned words for a sentence, from banks, word files and the registry, each with where it comes from.

    words, notes = gather(("bear", "bear-2"), ["runs/scenes", "words/concepts/bear/learned_embeds.safetensors"])

A word that was learned several times keeps its name once, in the order of the sources and of their rows, and is
`<bear-2>`, `<bear-3>` ... after that; the notes say which is which.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from mcpl.data import concepts, embeddings
from mcpl.data.bank import Bank
from mcpl.errors import BankMismatch, ConfigError
from mcpl.tracking.redaction import redact

if TYPE_CHECKING:
    from torch import Tensor

    from mcpl.models.base import Facts
    from mcpl.types import BankRow

FILES = (".safetensors", ".pt", ".bin")
TOLD = 4
"""names of one word that a note lists"""
_NUMBERED = re.compile(r"(.+)-([2-9]|[1-9]\d+)\Z")


@dataclass(frozen=True)
class LearnedWord:
    """One learned word as a sentence may use it."""

    slug: str
    """its name in the sentence"""
    vectors: Tensor = field(repr=False)
    """[n, D] float32"""
    source: str
    """the bank, registry version or file that it comes from"""
    picture: str | None = None
    """id of the picture that taught it, where that is known"""
    base: str | None = None
    """name of the base that it was learned with; None where its file does not say"""
    base_digest: str | None = None

    @property
    def origin(self) -> str:
        """Where it comes from, in words."""
        return f"that of picture {self.picture} in {self.source}" if self.picture else f"that of {self.source}"


Words = Mapping[str, LearnedWord]
"""slug -> the word"""


def of_row(row: BankRow, source: str = "this bank") -> dict[str, LearnedWord]:
    """The words of one learned picture."""
    p = row.provenance
    return {
        word.concept.slug: LearnedWord(word.concept.slug, word.vectors, source, row.id, p.base, p.base_digest)
        for word in row.learned.concepts
    }


def gather(
    slugs: Collection[str],
    sources: Sequence[str | Path],
    ids: Collection[str] = (),
    tracking_uri: str | None = None,
    home: str | Path = ".",
) -> tuple[dict[str, LearnedWord], list[str]]:
    """The words of a sentence, and a line about each name that several share.

    sources: banks (folder, file or URI), what `mcpl learn` made, word files, `models:/NAME@alias`; ids: only these
    pictures of banks and registry. Raises ConfigError for a word that none of them holds.
    """
    if slugs and not sources:
        raise ConfigError(f"<{min(slugs)}> is a learned word: say where it is with --bank, --concept or --registry")
    finders = [_finder(str(source), ids, tracking_uri, home) for source in sources]
    known: dict[str, list[LearnedWord]] = {}

    def learned(slug: str) -> list[LearnedWord]:
        if slug not in known:
            known[slug] = [word for find in finders for word in find(slug)]
        return known[slug]

    words: dict[str, LearnedWord] = {}
    notes: dict[str, str] = {}
    for slug in slugs:
        numbered = None if learned(slug) else _NUMBERED.match(slug)
        stem = numbered[1] if numbered else slug
        names = dict(_named(stem, learned))
        if slug not in names:
            there = f"; <{stem}> is there {len(names)} times" if names else ""
            picked = f", in the pictures {', '.join(ids)}" if ids else ""
            raise ConfigError(f"<{slug}> was learned in none of {', '.join(map(_told, sources))}{picked}{there}")
        words[slug] = names[slug]
        if len(names) > 1:
            notes[stem] = _note(stem, names)
    return words, list(notes.values())


def base_for(words: Words, asked: str | None = None) -> str | None:
    """The base that was asked for, else the words' own, if they tell it. ConfigError for words of several."""
    own = {word.base for word in words.values() if word.base}
    if asked is None and len(own) > 1:
        raise ConfigError(f"the words belong to several bases ({', '.join(sorted(own))}): choose words of one")
    return asked or next(iter(own), None)


def check_base(words: Iterable[LearnedWord], facts: Facts) -> None:
    """BankMismatch, in one sentence, for a word of another base."""
    for word in words:
        if word.base_digest and word.base_digest != facts.digest:
            raise BankMismatch(
                f"<{word.slug}> ({word.origin}) belongs to base {word.base} {word.base_digest}, "
                f"not to {facts.name} {facts.digest}: a word can only be drawn by the base that it was learned with"
            )


def _named(stem: str, learned: Callable[[str], list[LearnedWord]]) -> Iterable[tuple[str, LearnedWord]]:
    """Every word learned as `stem`, under the name that it has here; a number that is a word's own name is left out."""
    numbers = count(2)
    for place, word in enumerate(learned(stem)):
        name = stem
        if place:
            name = next(own for number in numbers if not learned(own := f"{stem}-{number}"))
        yield name, replace(word, slug=name)


def _note(stem: str, names: Words) -> str:
    some = ", ".join(f"<{name}> is {word.origin}" for name, word in list(names.items())[:TOLD])
    more = f" and {len(names) - TOLD} more" if len(names) > TOLD else ""
    return f"<{stem}> was learned {len(names)} times: {some}{more}; --id chooses a picture"


def _told(source: str | Path) -> str:
    return redact(str(source))


Find = Callable[[str], list[LearnedWord]]


def _finder(source: str, ids: Collection[str], tracking_uri: str | None, home: str | Path) -> Find:
    """How words are found in a source; what it is follows from its name and from what lies there."""
    if source.startswith("models:/"):
        return _in_registry(source, ids, tracking_uri, home)
    folder = Path(source)
    if source.endswith(FILES):
        return _in_files([folder])
    if (folder / "bank").is_dir():
        return _in_bank(str(folder / "bank"), ids)
    if (folder / "concepts").is_dir() and not list(folder.glob("part-*.parquet")):
        return _in_files(sorted(folder.glob(f"concepts/*/{concepts.NAME}")))
    return _in_bank(source, ids)


def _in_bank(uri: str, ids: Collection[str]) -> Find:
    bank = Bank.open(uri)
    columns = bank.table(["id", "base", "base_digest"])
    bases = {row["id"]: (row["id"], row["base"], row["base_digest"]) for row in columns.to_pylist()}

    wanted = {bank.row_id(id) for id in ids}

    def find(slug: str) -> list[LearnedWord]:
        return [
            LearnedWord(slug, _tensor(hit.vectors), _told(uri), *bases[hit.id])
            for hit in bank.search(slug)
            if not ids or hit.id in wanted
        ]

    return find


def _in_files(paths: Sequence[Path]) -> Find:
    read = [
        LearnedWord(
            embeddings.slug_of(one.word, str(path)), _tensor(one.vectors), str(path),
            base=one.header.get("mcpl.base"), base_digest=one.header.get("mcpl.base_digest"),
        )
        for path in paths
        for one in embeddings.read(path)
    ]  # fmt: skip
    return lambda slug: [word for word in read if word.slug == slug]


def _in_registry(model: str, ids: Collection[str], tracking_uri: str | None, home: str | Path) -> Find:
    from mcpl.tracking.registry import base_of, lookup

    where = {"tracking_uri": tracking_uri, "home": home}
    base, digest = base_of(model, **where)

    def find(slug: str) -> list[LearnedWord]:
        found = lookup(model, word=slug, image_id=list(ids) or None, **where)
        return [
            LearnedWord(slug, _tensor(list(hit.vectors)), model, hit.image_id, base, digest)
            for hit in found.drop_duplicates("image_id").itertuples()  # two pictures of one group find one word
        ]

    return find


def _tensor(vectors) -> Tensor:
    import numpy as np
    import torch

    return torch.from_numpy(np.array(vectors, np.float32))
