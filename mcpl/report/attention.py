"""Where words look, as pictures: a sheet of all words, masks over the picture, labels as a palette, an animation."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from mcpl.report.figures import INK, MUTED, WORD_COLOURS, Picture, _legend, _scaled, _Sheet, overlay
from mcpl.types import Sentence

UNSEEN = 255
"""label of pixels that the base was not shown (PASCAL VOC's void)"""
VEILED = 0.35  # light that is left outside a mask
GREY = "#8a929a"


def masked(picture: Picture, mask: Any, colour: str, side: int) -> Image.Image:
    """The picture, dark and grey outside a mask [H, W], whose edge is drawn in the word's colour."""
    base = np.asarray(_scaled(picture, side), np.float32)
    inside = _fitted(mask, base.shape[:2])
    grey = base.mean(axis=2, keepdims=True).repeat(3, axis=2) * VEILED
    drawn = np.where(inside[..., None], base, grey)
    drawn[_edge(inside, max(1, side // 96))] = _rgb(colour)
    return Image.fromarray(drawn.astype(np.uint8))


def painted(picture: Picture, labels: Any, colours: Sequence[str], side: int) -> Image.Image:
    """The picture with every label's pixels [H, W], 1 and up, tinted in its colour."""
    base = np.asarray(_scaled(picture, side), np.float32)
    drawn = base.mean(axis=2, keepdims=True).repeat(3, axis=2) * 0.8 + 40
    values = np.asarray(
        Image.fromarray(np.asarray(labels, np.uint8)).resize(base.shape[1::-1], Image.Resampling.NEAREST)
    )
    for label, colour in enumerate(colours, 1):
        own = values == label
        drawn[own] = 0.3 * drawn[own] + 0.7 * np.array(_rgb(colour))
        drawn[_edge(own, max(1, side // 128))] = _rgb(colour)
    return Image.fromarray(drawn.clip(0, 255).astype(np.uint8))


def indexed(labels: Any, colours: Sequence[str]) -> Image.Image:
    """Labels [H, W] as a palette PNG: 0 black, 1 and up in the words' colours, UNSEEN white."""
    image = Image.fromarray(np.asarray(labels, np.uint8), mode="P")
    palette = [0] * 768
    for label, colour in enumerate(colours, 1):
        palette[3 * label : 3 * label + 3] = _rgb(colour)
    palette[3 * UNSEEN :] = [255, 255, 255]
    image.putpalette(palette)
    return image


def words_sheet(
    picture: Picture,
    sentence: Sentence,
    words: Sequence[int],
    maps: Any,
    masks: Any,
    labels: Any,
    segmented: Sequence[int],
) -> Image.Image:
    """The picture, its sentence, and for each of `words` [W] where it looks [W, m, m] and its mask [W, H, W'];
    labels [H, W'] of the words that are `segmented` (indices into W)."""
    cell, gap, margin = 176, 14, 34
    colours, lines = colours_of(sentence, words), -(-len(words) // 5)
    across = max(2, -(-len(words) // lines))
    big = 2 * cell + gap
    width = 2 * margin + big + 2 * gap + across * (cell + gap) - gap
    sheet = _Sheet(width)
    y = margin + sheet.sentence(sentence, margin, margin, width - 2 * margin, 24) + 20
    top = y
    sheet.picture(_scaled(picture, big), (margin, y), big)
    under = y + big + gap
    sheet.text((margin, under), "every pixel's word", 14, MUTED)
    sheet.picture(painted(picture, labels, [colours[w] for w in segmented], big), (margin, under + 22), big)
    left_end = under + 22 + big
    x = margin + big + 2 * gap
    for start in range(0, len(words), across):
        for column, w in enumerate(range(start, min(start + across, len(words)))):
            at = x + column * (cell + gap)
            sheet.text((at, y), sentence.words[words[w]].text, 16, INK, bold=sentence.words[words[w]].role != "word")
            sheet.picture(overlay(picture, maps[w], cell), (at, y + 26), cell, colours[w])
            sheet.picture(masked(picture, masks[w], colours[w], cell), (at, y + 26 + cell + 6), cell, colours[w])
        y += 26 + 2 * cell + 6 + 18
    _legend(sheet, (x, y), min(420, width - margin - x))
    return sheet.finish(max(y + 24, left_end, top) + margin)


def frames(
    picture: Picture, sentence: Sentence, words: Sequence[int], by_time: Any, timesteps: Sequence[int]
) -> list[Image.Image]:
    """One frame a time step, from most noise to least: every word's map [t, W, m, m] over the picture, each word's on
    one scale for all its frames."""
    cell, gap, margin = 176, 12, 20
    by_time = np.asarray(by_time, np.float32)
    scaled = by_time / np.maximum(by_time.max(axis=(0, 2, 3), keepdims=True), 1e-12)
    colours, width = colours_of(sentence, words), 2 * margin + len(words) * (cell + gap) - gap
    drawn = []
    for t in sorted(range(len(timesteps)), key=lambda t: -int(timesteps[t])):
        sheet = _Sheet(width)
        for column, w in enumerate(words):
            at = margin + column * (cell + gap)
            sheet.text((at, margin), sentence.words[w].text, 16, INK, bold=sentence.words[w].role != "word")
            sheet.picture(overlay(picture, scaled[t, column], cell), (at, margin + 26), cell, colours[column])
        share = 1 - int(timesteps[t]) / max(1, max(map(int, timesteps)))
        y = margin + 26 + cell + 14
        sheet.text((margin, y), f"time step {int(timesteps[t])}", 14, MUTED)
        rail = np.full((6, width - 2 * margin, 3), 225, np.uint8)
        rail[:, : max(1, round(share * rail.shape[1]))] = _rgb(WORD_COLOURS[5])
        sheet.image.paste(Image.fromarray(rail), (margin, y + 24))
        drawn.append(sheet.finish(y + 24 + 6 + margin))
    return drawn


def animation(pictures: Sequence[Image.Image], milliseconds: int = 350) -> bytes:
    """Frames as an animated WebP that starts over; the last stays a little longer."""
    buffer = io.BytesIO()
    times = [milliseconds] * (len(pictures) - 1) + [3 * milliseconds]
    pictures[0].save(
        buffer, "WEBP", save_all=True, append_images=list(pictures[1:]), duration=times, loop=0, quality=88
    )
    return buffer.getvalue()


def colours_of(sentence: Sentence, words: Sequence[int]) -> list[str]:
    """A colour for each word: its concept's, an adjective's that of its noun; further ones for ordinary words, grey
    where those run out."""
    free = iter([c for c in WORD_COLOURS[len(sentence.concepts) :] if c != "#999999"])
    roles = [sentence.words[i] for i in words]
    return [
        next(free, GREY) if word.concept is None else WORD_COLOURS[word.concept % len(WORD_COLOURS)] for word in roles
    ]


def _fitted(mask: Any, size: tuple[int, int]) -> np.ndarray:
    grey = Image.fromarray(np.asarray(mask, np.uint8) * 255)
    return np.asarray(grey.resize(size[::-1], Image.Resampling.NEAREST)) > 127


def _edge(inside: np.ndarray, width: int) -> np.ndarray:
    """Pixels of a mask that are at most `width` from its outside."""
    core = inside.copy()
    for _ in range(width):
        padded = np.pad(core, 1)
        core = core & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside & ~core


def _rgb(colour: str) -> tuple[int, int, int]:
    return tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5))
