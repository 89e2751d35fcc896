"""mcpl in a notebook: each function takes what is at hand, shows a bar, and gives something that displays itself.

    import mcpl

    learned = mcpl.learn("photo.png", "a brown <bear> on a rolling <board>", recipe="best")
    mcpl.show("photo.png", "a brown <bear> on a rolling <board>", learned)

A picture is a path, a PIL picture, an array [H, W, 3] uint8, or a file's bytes. Words are what `learn` gave, a mapping
slug -> vectors [n, D], or sources: banks, folders, word files, models:/NAME@alias.
"""

from __future__ import annotations

import html
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from mcpl.config import Placement
from mcpl.data.pictures import fit, load_picture, picture_png
from mcpl.data.sources import picture_and_sentence
from mcpl.errors import ConfigError
from mcpl.generation.words import LearnedWord, check_base, gather
from mcpl.models import catalogue
from mcpl.models.base import BaseModel
from mcpl.orchestration.job import Outcome, Runner, set_threads
from mcpl.orchestration.looking import Looks, ids_of, inline, look_at
from mcpl.orchestration.single import learn_example, write
from mcpl.prompts import said
from mcpl.recipes import adjust, load
from mcpl.report import figures
from mcpl.types import Example

Picture = Any
"""path, PIL picture, array [H, W, 3] uint8, or a file's bytes"""
Words = Any
"""a `Learned`, a mapping slug -> vectors, a source, or several sources"""
DEFAULT_BASE = "scenes-v1"


@dataclass(frozen=True)
class Learned:
    """The words of one picture. Displays itself; `save` writes what `mcpl learn` writes."""

    outcome: Outcome = field(repr=False)
    example: Example = field(repr=False)
    runner: Runner = field(repr=False)

    @property
    def vectors(self) -> dict[str, Tensor]:
        """slug -> [n, D] float32"""
        return {word.concept.slug: word.vectors for word in self.outcome.learned.concepts}

    @property
    def metrics(self) -> dict[str, float]:
        return dict(self.outcome.row.metrics)

    @property
    def sheet(self) -> Image.Image:
        """The picture's whole story."""
        picture = fit(load_picture(self.example.image), self.runner.model.facts.resolution)
        return figures.sheet_of(picture, self.outcome)

    def save(self, folder: str | os.PathLike) -> Path:
        """Word files, sheet, samples, metrics and a bank, into a new or empty folder."""
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder} is not an empty folder: choose another")
        write(folder, self.outcome, self.example, self.runner)
        return folder

    def _repr_png_(self) -> bytes:
        return picture_png(self.sheet)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(name.replace('_', ' '))}</td><td>{_number(self.metrics.get(f'{name}_step0'))}</td>"
            f"<td>{_number(value)}</td></tr>"
            for name, value in self.metrics.items()
            if not name.startswith("sign_") and not name.endswith("_step0")
        )
        table = f"<table><tr><th>metric</th><th>before</th><th>after</th></tr>{rows}</table>"
        return inline(self._repr_png_(), "image/png", f"what was learned of {self.example.text!r}") + table


def learn(
    picture: Picture,
    sentence: str,
    recipe: str = "paper",
    *,
    base: str | None = None,
    words: str | None = None,
    steps: int | None = None,
    seed: int | None = None,
    samples: int = 4,
    device: str = "auto",
    progress: bool = True,
) -> Learned:
    """Learn the <marked> words of a sentence from one picture.

    recipe: a name or a YAML file; words: 'marked', 'all', or 'list:' and nouns; samples: pictures drawn from each word.
    Raises ExampleError for a picture or sentence that cannot be used, ConfigError for a wrong setting.
    """
    chosen = adjust(load(recipe), base=base, words=words, steps=steps, seed=seed)
    example = _example(picture, sentence)
    model = _base(chosen.base, device, chosen.precision, chosen.revision)
    runner = Runner(chosen, Placement(pack=1, samples=samples, device=device), model)
    runner.prepare(example)  # a sentence that does not fit this base is refused before anything is shown
    return Learned(learn_example(example, runner, Console(quiet=not progress)), example, runner)


def show(
    picture: Picture,
    sentence: str,
    words: Words = (),
    *,
    base: str | None = None,
    ids: Sequence[str] = (),
    show: Sequence[str] = (),
    segment: Sequence[str] = (),
    threshold: float = 0.5,
    timesteps: int = 10,
    seed: int = 0,
    device: str = "auto",
    notes: Callable[[str], None] = print,
) -> Looks:
    """Where every word of a sentence, learned or ordinary, looks on a real picture.

    base: the one that the words were learned with, unless given; ids: take words of these pictures of a bank, by
    default of this one where it is among them; show: only these words; segment: words that label pixels, the objects
    unless given; notes: what is told of words that were learned several times.
    """
    example = _example(picture, sentence)
    slugs = [concept.slug for concept in said(sentence).concepts]
    found = _gathered(slugs, words, ids, example.image, notes)
    model = _base(_base_of(found, base), device)
    check_base(found.values(), model.facts)
    vectors = {slug: word.vectors for slug, word in found.items()}
    return look_at(example.image, sentence, vectors, model, show, segment, timesteps, seed, threshold)


def _example(picture: Picture, sentence: str) -> Example:
    """The picture as stored bytes; ExampleError where there is none in them."""
    if isinstance(picture, str | os.PathLike):
        if not Path(picture).is_file():
            raise ConfigError(f"{picture}: no such picture")
        return picture_and_sentence(picture, sentence)
    if not isinstance(picture, bytes):
        image = picture if isinstance(picture, Image.Image) else Image.fromarray(np.asarray(picture))
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        picture = buffer.getvalue()
    load_picture(picture)
    return Example("picture", picture, sentence)


def _gathered(
    slugs: Sequence[str], words: Words, ids: Sequence[str], image: bytes, notes: Callable[[str], None]
) -> dict[str, LearnedWord]:
    """The sentence's learned words, from wherever they are."""
    if isinstance(words, Learned):
        row = words.outcome.row
        origin = (f"picture {row.id}", row.provenance.base, row.provenance.base_digest)
        words = {slug: LearnedWord(slug, rows, *origin) for slug, rows in words.vectors.items()}
    if isinstance(words, Mapping):
        if missing := [slug for slug in slugs if slug not in words]:
            raise ConfigError(
                f"no vectors are given for <{missing[0]}>; there are {', '.join(sorted(words)) or 'none'}"
            )
        return {slug: _word(slug, words[slug]) for slug in slugs}
    sources = [words] if isinstance(words, str | os.PathLike) else list(words)
    found, told = gather(slugs, sources, ids or ids_of(image, sources))
    for line in told:
        notes(line)
    return found


def _word(slug: str, given: Any) -> LearnedWord:
    if isinstance(given, LearnedWord):
        return given
    rows = torch.as_tensor(given, dtype=torch.float32)
    return LearnedWord(slug, rows if rows.ndim == 2 else rows[None], "given")


def _base_of(words: Mapping[str, LearnedWord], base: str | None) -> str:
    """The base that was asked for, else the words' own, else the shipped one."""
    own = {word.base for word in words.values() if word.base}
    if base is None and len(own) > 1:
        raise ConfigError(f"the words belong to several bases ({', '.join(sorted(own))}): choose words of one")
    return base or next(iter(own), DEFAULT_BASE)


@lru_cache(maxsize=1)
def _base(name: str, device: str, precision: str = "float32", revision: str | None = None) -> BaseModel:
    """A base, kept for the next call."""
    set_threads(Placement())
    return catalogue.load(name, revision=revision, precision=precision, device=device)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
