"""mcpl in a notebook: each function takes what is at hand, shows a bar, and gives something that displays itself.

    import mcpl

    learned = mcpl.learn("photo.png", "a brown <bear> on a rolling <board>")
    mcpl.show("photo.png", "a brown <bear> on a rolling <board>", learned)
    mcpl.generate("a <bear> in a red hat", learned)
    mcpl.edit("photo.png", "a brown <bear> on a rolling <board>", learned, replace={"<bear>": "cat"})

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

from mcpl.config import Placement, Recipe, parse
from mcpl.data.pictures import fit, load_picture, picture_png
from mcpl.data.sources import picture_and_sentence
from mcpl.errors import ConfigError
from mcpl.generation.words import LearnedWord, base_for, check_base, gather, of_row
from mcpl.models import catalogue
from mcpl.models.base import BaseModel
from mcpl.orchestration import threads
from mcpl.orchestration.job import Outcome, Runner, to_pixels
from mcpl.orchestration.looking import Looks, ids_of, inline, look_at
from mcpl.orchestration.single import learn_job, sheet, together, write
from mcpl.prompts import said
from mcpl.recipes import adjust, load
from mcpl.settings import DEFAULT_RECIPE
from mcpl.types import Example, Group

Picture = Any
"""path, PIL picture, array [H, W, 3] uint8, or a file's bytes"""
Words = Any
"""a `Learned`, a mapping slug -> vectors, a source, or several sources"""


@dataclass(frozen=True)
class Learned:
    """The words of one picture, or of several together. Displays itself; `save` writes what `mcpl learn` writes."""

    outcome: Outcome = field(repr=False)
    asked: Example | Group = field(repr=False)
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
        """The whole story of the picture, or of each of several."""
        return sheet(self.outcome, self.asked, self.runner)

    def save(self, folder: str | os.PathLike) -> Path:
        """Word files, sheet, samples, metrics and a bank, into a new or empty folder."""
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder} is not an empty folder: choose another")
        write(folder, self.outcome, self.asked, self.runner)
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
        return inline(self._repr_png_(), "image/png", f"what was learned of {self.outcome.row.text!r}") + table


def learn(
    picture: Picture,
    sentence: str,
    recipe: str = DEFAULT_RECIPE,
    *,
    also: Sequence[tuple[Picture, str]] = (),
    base: str | None = None,
    words: str | None = None,
    steps: int | None = None,
    seed: int | None = None,
    samples: int = 4,
    device: str = "auto",
    progress: bool = True,
) -> Learned:
    """Learn the <marked> words of a sentence from one picture.

    also: more pictures, each with its sentence, that share words with the first (MCPL-diverse): equal words are one;
    recipe: a name or a YAML file; words: 'marked', 'all', or 'list:' and nouns; samples: pictures drawn from each word.
    Raises ExampleError for a picture or sentence that cannot be used, ConfigError for a wrong setting.
    """
    chosen = adjust(load(recipe), base=base, words=words, steps=steps, seed=seed)
    asked = together([_example(*one) for one in ((picture, sentence), *also)])
    model = _base(chosen.base, device, chosen.precision, chosen.revision)
    runner = Runner(chosen, Placement(pack=1, samples=samples, device=device), model)
    return Learned(learn_job(asked, runner, Console(quiet=not progress)), asked, runner)


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
    model, found = _with_base([sentence], words, ids, base, device, notes, example.image)
    vectors = {slug: word.vectors for slug, word in found.items()}
    return look_at(example.image, sentence, vectors, model, show, segment, timesteps, seed, threshold)


@dataclass(frozen=True)
class Pictures:
    """Pictures and what they were made from. Displays itself; `save` writes what the command of the same name does."""

    made: Any = field(repr=False)
    """mcpl.generation's Generated or Edited"""

    @property
    def pictures(self) -> list[Image.Image]:
        return [Image.fromarray(picture.numpy()) for picture in self.made.pictures]

    @property
    def sheet(self) -> Image.Image:
        """All in a grid; of edited ones before, after, and where the change may show."""
        from mcpl.generation.saving import sheet

        return sheet(self.made)

    def save(self, folder: str | os.PathLike) -> Path:
        from mcpl.generation.saving import save_edited, save_generated

        (save_edited if hasattr(self.made, "mask") else save_generated)(self.made, Path(folder))
        return Path(folder)

    def _repr_png_(self) -> bytes:
        return picture_png(self.sheet)


def generate(
    sentence: str,
    words: Words = (),
    n: int = 4,
    *,
    seed: int = 0,
    base: str | None = None,
    ids: Sequence[str] = (),
    device: str = "auto",
    notes: Callable[[str], None] = print,
    **drawing: Any,
) -> Pictures:
    """n pictures of a sentence with learned words, each with the next seed; drawing: fields of `Drawing` (steps,
    guidance, scheduler, negative, attend)."""
    from mcpl.generation import generate as drawn

    settings = parse(drawn.Drawing, drawing, "generate")
    model, found = _with_base([sentence, settings.negative], words, ids, base, device, notes)
    return Pictures(drawn.generate(model, sentence, found, range(seed, seed + n), settings))


def edit(
    picture: Picture | None,
    sentence: str,
    words: Words = (),
    *,
    replace: Mapping[str, str] | None = None,
    refine: str | None = None,
    weight: Mapping[str, float] | None = None,
    local: Sequence[str] = (),
    seed: int = 0,
    base: str | None = None,
    ids: Sequence[str] = (),
    device: str = "auto",
    notes: Callable[[str], None] = print,
    **editing: Any,
) -> Pictures:
    """Change one thing of a picture that the sentence tells, and leave the rest.

    picture: None draws one from the sentence and the seed; replace: word -> word; refine: the sentence with more words;
    weight: word -> factor of the attention paid to it; local: words where the change may show, the changed ones unless
    given; editing: fields of `Editing` (steps, guidance, cross, layout, threshold ...).
    """
    from mcpl.generation import edit as edits
    from mcpl.generation.change import asked

    change = asked(sentence, replace, refine, weight, local)
    settings = parse(edits.Editing, editing, "edit")
    image = None if picture is None else _example(picture, sentence).image
    model, found = _with_base([change.before.text, change.after.text], words, ids, base, device, notes, image)
    if image is None:
        original = edits.drawn(model, sentence, found, [seed], settings)
    else:
        pixels = to_pixels(fit(load_picture(image), model.facts.resolution))
        original = edits.inverted(model, sentence, found, pixels[None], settings)
    return Pictures(edits.edit(model, original, change, found, settings))


def _with_base(
    texts: Sequence[str], words: Words, ids: Sequence[str], base: str | None, device: str, notes, image: bytes = b""
) -> tuple[BaseModel, dict[str, LearnedWord]]:
    """The base and the learned words of some sentences; BankMismatch where they do not belong together."""
    slugs = dict.fromkeys(concept.slug for text in texts if text.strip() for concept in said(text).concepts)
    found = _gathered(tuple(slugs), words, ids, image, notes)
    model = _base(base_for(found, base) or Recipe().base, device)
    check_base(found.values(), model.facts)
    return model, found


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
        words = of_row(words.outcome.row)
    if isinstance(words, Mapping):
        if missing := [slug for slug in slugs if slug not in words]:
            raise ConfigError(
                f"no vectors are given for <{missing[0]}>; there are {', '.join(sorted(words)) or 'none'}"
            )
        return {slug: _word(slug, words[slug]) for slug in slugs}
    sources = [words] if isinstance(words, str | os.PathLike) else list(words)
    found, told = gather(slugs, sources, ids or (ids_of(image, sources) if image else ()))
    for line in told:
        notes(line)
    return found


def _word(slug: str, given: Any) -> LearnedWord:
    if isinstance(given, LearnedWord):
        return given
    rows = torch.as_tensor(given, dtype=torch.float32)
    return LearnedWord(slug, rows if rows.ndim == 2 else rows[None], "given")


@lru_cache(maxsize=1)
def _base(name: str, device: str, precision: str = "float32", revision: str | None = None) -> BaseModel:
    """A base, kept for the next call."""
    return threads.fitted(lambda: catalogue.load(name, revision=revision, precision=precision, device=device))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
