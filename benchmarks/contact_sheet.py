"""Sheets of small pictures with text under each, for a person to look through."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIZE, LINE, GUTTER = 11, 14, 10  # px: text, line pitch, space between cells
INK, PAPER = (20, 20, 20), (255, 255, 255)
RIGHT, WRONG = (0, 114, 178), (213, 94, 0)  # told apart by every kind of eye; the marks' shapes differ as well


@dataclass(frozen=True)
class Cell:
    """A picture uint8 [H, W, 3], its title, and a list of (right?, text) under it; an empty list tells nothing."""

    picture: np.ndarray
    title: str
    verdicts: Sequence[tuple[bool, str]] = ()


def contact_sheet(cells: Sequence[Cell], path: Path, *, columns: int, zoom: int) -> None:
    """Save `cells` row by row as a PNG; verdicts are marked by a tick or a cross and their words."""
    font = ImageFont.load_default(SIZE)
    wide = cells[0].picture.shape[1] * zoom
    fits = int(wide / font.getlength("abcdefghij") * 10)
    titles = [textwrap.wrap(cell.title, fits) for cell in cells]
    told = [
        [
            (right, line, i == 0)
            for right, text in cell.verdicts
            for i, line in enumerate(textwrap.wrap(text, fits - 3) or [text])
        ]
        for cell in cells
    ]
    high = cells[0].picture.shape[0] * zoom
    pitch = (wide + GUTTER, high + GUTTER + LINE * (max(map(len, titles)) + max(map(len, told)) + 1))
    rows = -(-len(cells) // columns)
    page = Image.new("RGB", (columns * pitch[0] + GUTTER, rows * pitch[1] + GUTTER), PAPER)
    pen = ImageDraw.Draw(page)
    for number, (cell, title, lines) in enumerate(zip(cells, titles, told, strict=True)):
        x, y = GUTTER + number % columns * pitch[0], GUTTER + number // columns * pitch[1]
        page.paste(Image.fromarray(cell.picture).resize((wide, high), Image.Resampling.NEAREST), (x, y))
        pen.rectangle((x - 1, y - 1, x + wide, y + high), outline=INK)
        at = y + high + 3
        for line in title:
            pen.text((x, at), line, INK, font)
            at += LINE
        for right, line, first in lines:
            if first:
                _mark(pen, x, at, right)
            pen.text((x + LINE, at), line, RIGHT if right else WRONG, font)
            at += LINE
    page.save(path, optimize=True)  # in full colour: a palette turned yellow stars white


def _mark(pen: ImageDraw.ImageDraw, x: int, y: int, right: bool) -> None:
    """A tick or a cross, 9 px high."""
    strokes = [[(0, 5), (3, 9), (9, 1)]] if right else [[(0, 1), (9, 10)], [(0, 10), (9, 1)]]
    for stroke in strokes:
        pen.line([(x + dx, y + dy + 1) for dx, dy in stroke], RIGHT if right else WRONG, 2)
