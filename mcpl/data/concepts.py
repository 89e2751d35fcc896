"""A folder of learned words, `concepts/<slug>/learned_embeds.safetensors`: from a bank, from other programs' files,
and back into vectors that pictures can be drawn from."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mcpl.data.bank import Bank
from mcpl.data.card import card
from mcpl.data.embeddings import FAMILIES, Embedding, a1111_file, read, safetensors_file, slug_of
from mcpl.data.storage import Store, open_store, safe_name
from mcpl.errors import ConfigError
from mcpl.types import BankRow, LearnedConcept

if TYPE_CHECKING:
    from torch import Tensor

NAME = "learned_embeds.safetensors"


def export(
    bank: Bank,
    out: str | os.PathLike,
    ids: Sequence[str] = (),
    words: Sequence[str] = (),
    file_format: str = "safetensors",
) -> list[str]:
    """Write each chosen word as a file, and README.md, the bank's card; return where every word's file is.

    ids and words choose (words match as in `Bank.search`); none of them is all. One picture writes `concepts/` right
    into `out`; several get a folder each, since two pictures may have learned different things under one word.
    Raises ConfigError where nothing is left to write.
    """
    if file_format not in FORMATS:
        raise ConfigError(f"--format {file_format!r}: must be one of {', '.join(FORMATS)}")
    if unknown := [id for id in ids if bank.row_id(id) is None]:
        some = ", ".join(bank.ids()[:5])
        raise ConfigError(f"the bank at {bank.uri} has no picture {unknown[0]!r}; it has {some} ...")
    rows = bank.rows() if not ids else (bank.row(id) for id in dict.fromkeys(map(bank.row_id, ids)))
    chosen = [row for row in (_only(row, words) for row in rows) if row]
    if not chosen:
        known = ", ".join(word for word, _ in bank.words().most_common(8)) or "none"
        raise ConfigError(f"the bank at {bank.uri} holds no such word{_list(words)}; its words: {known}")
    store, written = open_store(out), []
    for row in chosen:
        folder = "" if len(chosen) == 1 else f"{safe_name(row.id)}/"
        for learned in row.learned.concepts:
            name, data = FORMATS[file_format](row, learned)
            store.put(folder + name, data)
            written.append(folder + name)
    store.put("README.md", card(chosen, written).encode())
    return [store.join(name) for name in written]


def write_hits(hits: Iterable[Mapping], out: str | os.PathLike) -> list[str]:
    """Write looked-up words as files, `PICTURE/concepts/WORD/...`; return where they are.

    A hit has `image_id`, `word`, `vectors` [n, D], `sentence`, `base` and `base_digest`.
    """
    store, written = open_store(out), []
    for hit in hits:
        name = f"{safe_name(hit['image_id'])}/concepts/{safe_name(hit['word'])}/{NAME}"
        header = {
            "modelspec.title": f"<{hit['word']}> of {hit['image_id']}",
            "mcpl.sentence": hit["sentence"],
            "mcpl.base": hit["base"],
            "mcpl.base_digest": hit["base_digest"],
        }
        store.put(name, safetensors_file(hit["word"], np.asarray(hit["vectors"], np.float32), header))
        written.append(name)
    return [store.join(name) for name in written]


def _list(words: Sequence[str]) -> str:
    return f" ({', '.join(words)})" if words else ""


def _only(row: BankRow, words: Sequence[str]) -> BankRow | None:
    """The row with the asked words alone; None where it has none of them."""
    if row.learned is None:
        return None
    patterns = [word.strip().removeprefix("<").removesuffix(">").lower() for word in words] or ["*"]
    kept = tuple(c for c in row.learned.concepts if any(fnmatchcase(c.concept.slug, p) for p in patterns))
    return replace(row, learned=replace(row.learned, concepts=kept)) if kept else None


def _as_safetensors(row: BankRow, learned: LearnedConcept) -> tuple[str, bytes]:
    slug = learned.concept.slug
    return f"concepts/{safe_name(slug)}/{NAME}", safetensors_file(slug, _array(learned), lineage(row, learned))


def _as_a1111(row: BankRow, learned: LearnedConcept) -> tuple[str, bytes]:
    slug = learned.concept.slug
    data = a1111_file(slug, _array(learned), row.learned.steps, row.provenance.base)
    return f"concepts/{safe_name(slug)}/{safe_name(slug)}.pt", data


FORMATS: dict[str, Callable[[BankRow, LearnedConcept], tuple[str, bytes]]] = {
    "safetensors": _as_safetensors,
    "a1111": _as_a1111,
}
"""(row, word) -> (name below the picture's folder, content)"""


def _array(learned: LearnedConcept) -> np.ndarray:
    return learned.vectors.detach().cpu().numpy()


def lineage(row: BankRow, learned: LearnedConcept) -> dict[str, str]:
    """Header entries that say where a word comes from: enough to make it again."""
    provenance = row.provenance
    return {
        "modelspec.title": f"{learned.concept.placeholder} of {row.id}",
        "modelspec.date": row.learned_at,
        "mcpl.sentence": row.told_of(learned.concept.slug),
        "mcpl.adjectives": " ".join(learned.concept.adjectives),
        "mcpl.base": provenance.base,
        "mcpl.base_digest": provenance.base_digest,
        "mcpl.picture_sha256": provenance.picture_sha256,
        "mcpl.recipe": provenance.recipe,
        "mcpl.recipe_fingerprint": provenance.recipe_fingerprint,
        "mcpl.seed": str(provenance.seed),
        "mcpl.steps": str(row.learned.steps),
        "mcpl.commit": provenance.commit,
    }


@dataclass(frozen=True)
class Imported:
    """One word that came from elsewhere."""

    slug: str
    vectors: int
    width: int
    fits: str
    """bases whose words have this width"""
    layout: str
    """program that writes such files"""
    source: str
    path: str


def import_files(
    files: Sequence[Path], out: str | os.PathLike, base: str, width: int, words: Sequence[str] = ()
) -> list[Imported]:
    """Words of other programs' files in our layout under `out`; every file is read and checked before one is written.

    width: of a learned row of `base`. words: new names, one for each word in the order of the files; needed where a
    file's own name cannot be a placeholder. Raises ConfigError in one sentence: a file of no known layout, one that
    would have to run code, a word of another base, a name that is none or is taken.
    """
    found = [(path, embedding) for path in files for embedding in read(path)]
    if words and len(words) != len(found):
        raise ConfigError(f"{len(words)} names are given with --word, but the files hold {len(found)} words")
    names = words or [embedding.word for _, embedding in found]
    slugs = [
        slug_of(name, f"{path}, or --word" if words else str(path))
        for name, (path, _) in zip(names, found, strict=True)
    ]
    for path, embedding in found:
        _check_width(path, embedding, base, width)
    store = open_store(out)
    for slug, count in Counter(slugs).items():
        if count > 1 or store.list(f"concepts/{safe_name(slug)}/"):
            raise ConfigError(f"<{slug}> would stand twice in {out}: name it with --word, or choose another --out")
    return [_write(store, slug, *source, base) for slug, source in zip(slugs, found, strict=True)]


def _check_width(path: Path, embedding: Embedding, base: str, width: int) -> None:
    own = embedding.vectors.shape[1]
    if own == width:
        return
    if own not in FAMILIES:
        widths = ", ".join(f"{w} ({family.name})" for w, family in FAMILIES.items())
        raise ConfigError(
            f"{path}: a word {own} wide fits neither --base {base} ({width}) nor any known base: {widths}"
        )
    raise ConfigError(
        f"{path}: a word {own} wide is one of {FAMILIES[own].name}, but --base {base} has words {width} wide"
    )


def _write(store: Store, slug: str, path: Path, embedding: Embedding, base: str) -> Imported:
    kept = {k: v for k, v in embedding.header.items() if k.startswith(("mcpl.", "modelspec.date"))}
    header = {
        "mcpl.base": base,
        **kept,
        "mcpl.imported_from": path.name,
        "mcpl.imported_layout": embedding.layout,
        "mcpl.imported_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    name = f"concepts/{safe_name(slug)}/{NAME}"
    store.put(name, safetensors_file(slug, embedding.vectors, header))
    n, width = embedding.vectors.shape
    fits = FAMILIES[width].name if width in FAMILIES else base
    return Imported(slug, n, width, fits, embedding.layout, str(path), store.join(name))


def load(folder: str | os.PathLike) -> dict[str, Tensor]:
    """slug -> [n, D] of every word in a folder that `export` or `import_files` wrote; `generate` takes it as it is."""
    import torch

    return {
        slug_of(e.word, str(path)): torch.from_numpy(e.vectors) for path in _files(Path(folder)) for e in read(path)
    }


def _files(folder: Path) -> Iterator[Path]:
    files = sorted(folder.glob(f"concepts/*/{NAME}"))
    if not files:
        raise ConfigError(f"{folder} holds no concepts/*/{NAME}: name the folder of one picture's words")
    yield from files
