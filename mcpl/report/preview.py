"""Some rows of a dataset as one static page: the picture, its masks outlined, the sentence with its words coloured.

Sentences, ids and reasons are untrusted: jinja2 escapes all of them, and the page runs no program at all.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import numpy as np
from PIL import Image

from mcpl.report.figures import WORD_COLOURS, _ink_on, _scaled
from mcpl.types import Sentence

SIDE = 320
"""pixels of a shown picture's longer side"""
OUTLINE = 2
"""pixels of a mask's outline, and as many of white around it"""
OTHER = "#999999"
"""a mask of something that the sentence does not name"""


@dataclass(frozen=True)
class PreviewRow:
    """What is shown of one row."""

    id: str
    text: str
    sentence: Sentence | None
    """None where it cannot be read"""
    picture: Image.Image | None
    """None where it cannot be decoded"""
    masks: Mapping[str, Any] = field(default_factory=dict)
    """word -> [height, width] bool"""
    faults: Sequence[str] = ()
    """what is wrong with the row"""


@dataclass(frozen=True)
class _Piece:
    """A word as the page shows it; `colour` where it is learned or bound."""

    text: str
    role: str
    colour: str = ""
    ink: str = ""
    space: bool = True


def preview(title: str, facts: Mapping[str, str], rows: Sequence[PreviewRow]) -> str:
    """The page, as HTML. facts: name -> value, shown at the top in this order."""
    from jinja2 import Environment

    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        files("mcpl.report").joinpath("static/preview.html").read_text()
    )
    return page.render(title=title, facts=facts, rows=[_shown(row) for row in rows])


def _shown(row: PreviewRow) -> dict[str, Any]:
    slugs = [concept.slug for concept in row.sentence.concepts] if row.sentence else []
    colours = {slug: WORD_COLOURS[index % len(WORD_COLOURS)] for index, slug in enumerate(slugs)}
    shown = row.picture and outlined(row.picture, {w: (m, colours.get(w, OTHER)) for w, m in row.masks.items()})
    return {
        "id": row.id,
        "text": row.text,
        "pieces": list(_pieces(row.sentence)) if row.sentence else None,
        "picture": _data_uri(shown) if shown else None,
        "size": f"{row.picture.width} x {row.picture.height}" if row.picture else "",
        "masks": [(word, colours.get(word, OTHER), _ink_on(colours.get(word, OTHER))) for word in row.masks],
        "unmasked": [slug for slug in slugs if row.masks and slug not in row.masks],
        "faults": row.faults,
    }


def _pieces(sentence: Sentence) -> Iterator[_Piece]:
    for index, word in enumerate(sentence.words):
        space = index > 0 and any(character.isalnum() for character in word.text)
        if word.concept is None:
            yield _Piece(word.text, "word", space=space)
        else:
            colour = WORD_COLOURS[word.concept % len(WORD_COLOURS)]
            yield _Piece(word.text, word.role, colour, _ink_on(colour), space)


def outlined(picture: Image.Image, masks: Mapping[str, tuple[Any, str]]) -> Image.Image:
    """The picture, SIDE pixels at its longer edge, with each mask's border in its colour upon white."""
    shown = np.array(_scaled(picture, SIDE))
    for mask, colour in masks.values():
        grey = Image.fromarray(np.asarray(mask, np.uint8) * 255).resize(shown.shape[1::-1], Image.Resampling.BOX)
        inside = np.asarray(grey) > 127
        shown[_grown(inside, OUTLINE) & ~_shrunk(inside, OUTLINE)] = 255
        shown[inside & ~_shrunk(inside, OUTLINE)] = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return Image.fromarray(shown)


def _grown(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Every pixel within a square of so many pixels around one of the mask; nothing beyond the edge belongs to it."""
    height, width = mask.shape
    padded = np.pad(mask, pixels)
    steps = range(2 * pixels + 1)
    return np.logical_or.reduce([padded[y : y + height, x : x + width] for y in steps for x in steps])


def _shrunk(mask: np.ndarray, pixels: int) -> np.ndarray:
    """The mask without its border; the picture's edge is no border of what goes on beyond it."""
    return ~_grown(~mask, pixels)


def _data_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
