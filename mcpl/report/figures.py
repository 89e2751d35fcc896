"""Pictures one can look at: attention over a picture, one picture's whole story, a sheet of many, curves.

Pure drawing: arrays and nouns in, a PIL picture out. Small pictures are enlarged without smoothing, so that their
pixels stay what they are. Words keep one colour everywhere (Okabe and Ito's, told apart by colour-blind eyes too).
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mcpl.types import CurvePoint, Sentence, Word

Picture = Any
"""A PIL picture, or an array or tensor [H, W, 3] uint8."""

WORD_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#F0E442", "#0072B2", "#D55E00", "#999999")
INK, MUTED, RULE, PAPER = "#1f2328", "#6a737d", "#d8dee4", "#ffffff"
HEAT = "inferno"  # perceptually uniform, dark to bright, safe for colour-blind eyes
DIMMED = 0.55  # how much of a picture's light is left where no attention is
STRONGEST = 0.78  # opacity of the heat where attention is 1
CONTACT_SHEET = "each picture  ·  where every word looks, above what it draws alone  ·  the whole sentence drawn"
LARGE = 256  # pictures from here on get larger cells


@dataclass(frozen=True)
class ShownWord:
    """What is drawn of one learned word."""

    slug: str
    attention: Any
    """[m, m] in 0..1, at the end"""
    attention_step0: Any = None
    samples: Sequence[Picture] = ()
    """pictures of this word alone"""
    samples_step0: Sequence[Picture] = ()
    """the same before learning"""
    start: str = ""
    """the ordinary word that it started from"""
    picture: Picture | None = None
    """what its maps belong to, where that is another picture of the group"""
    colour: int | None = None
    """number of its colour, where that is not its place"""


@dataclass(frozen=True)
class Shown:
    """What is drawn of one picture."""

    id: str
    picture: Picture
    sentence: Sentence
    words: Sequence[ShownWord]
    together: Sequence[Picture] = ()
    """pictures of the whole sentence"""
    metrics: Mapping[str, float] = field(default_factory=dict)
    curve: Sequence[CurvePoint] = ()


def show(picture: Picture, outcome: Any, number: int = 0) -> Shown:
    """What is drawn of a finished job: its `row`, `job`, `learned` and, where samples were drawn, `evaluation`.

    number: which of a group's pictures it is; only what its sentence names is drawn.
    """
    evaluation = outcome.evaluation
    alone, alone_step0 = (evaluation.alone, evaluation.alone_step0) if evaluation else ({}, {})
    places = {word.concept.slug: place for place, word in enumerate(outcome.learned.concepts)}
    words = [
        ShownWord(
            slug=learned.concept.slug,
            attention=learned.attention,
            attention_step0=learned.attention_step0,
            samples=_pictures(alone.get(learned.concept.slug)),
            samples_step0=_pictures(alone_step0.get(learned.concept.slug)),
            start=learned.concept.initializer or "",
            colour=places[learned.concept.slug],
        )
        for learned in outcome.learned.of_picture(number).concepts
    ]
    return Shown(
        id=outcome.row.id,
        picture=picture,
        sentence=outcome.job.looks[number].sentence,
        words=words,
        together=_pictures(evaluation.together if evaluation else None),
        metrics=outcome.row.metrics,
        curve=outcome.learned.curve,
    )


def sheet_of(picture: Picture, outcome: Any, *further: Picture) -> Image.Image:
    """`concept_sheet` of a finished job; of a group one for each picture, one below the other."""
    sheets = [concept_sheet(show(each, outcome, number)) for number, each in enumerate((picture, *further))]
    if not further:
        return sheets[0]
    whole = Image.new("RGB", (max(sheet.width for sheet in sheets), sum(sheet.height for sheet in sheets)), PAPER)
    top = 0
    for sheet in sheets:
        whole.paste(sheet, (0, top))
        top += sheet.height
    return whole


def overlay(picture: Picture, attention: Any, side: int | None = None) -> Image.Image:
    """The picture, dimmed, with attention [m, m] as heat over it; `side` pixels at its longer edge.

    The map is read as it is (0..1), never stretched: two overlays can be compared.
    """
    base = _scaled(picture, side or max(_image(picture).size))
    grey = np.asarray(base.convert("L"), np.float32)[..., None] / 255
    seen = 0.6 * np.asarray(base, np.float32) / 255 + 0.4 * grey
    heat = Image.fromarray(np.asarray(attention, np.float32)).resize(base.size, Image.Resampling.BICUBIC)
    level = np.clip(np.asarray(heat), 0, 1)
    opacity = STRONGEST * (level**0.75)[..., None]
    mixed = seen * DIMMED * (1 - opacity) + _heat(level) * opacity
    return Image.fromarray((mixed * 255 + 0.5).astype(np.uint8))


def concept_sheet(shown: Shown) -> Image.Image:
    """One picture's whole story: picture, sentence, each word's attention before and after, what each word draws
    alone, and what all of them draw together."""
    large = max(_image(shown.picture).size) >= LARGE
    cell, margin, gap = (256, 40, 16) if large else (192, 36, 14)
    big = 2 * cell
    before = any(len(word.samples_step0) for word in shown.words)
    drawn = any(len(word.samples) for word in shown.words)
    titles = ["attention before", "attention after"]
    titles += ["drawn before"] * before + ["drawn after"] * drawn
    label = min(max([90, *(_chip_width(f"<{word.slug}>", 17) + 12 for word in shown.words)]), cell)
    right = label + len(titles) * (cell + gap)
    width = 2 * margin + big + 2 * gap + right
    sheet = _Sheet(width)

    y = margin + sheet.sentence(shown.sentence, margin, margin, width - 2 * margin, 26) + 22
    top = y
    left_end = top + _left_column(sheet, shown, margin, top, big)

    x = margin + big + 2 * gap
    for column, title in enumerate(titles):
        sheet.text((x + label + column * (cell + gap), y), title, 15, MUTED)
    y += 26
    for index, word in _coloured(shown):
        name = f"<{word.slug}>"
        size = next((size for size in range(17, 9, -1) if _chip_width(name, size) <= label - 12), 9)
        sheet.chip((x, y + cell // 2 - 26), name, size, _colour(index))
        if word.start:
            sheet.text((x, y + cell // 2 + 10), "started as", 13, MUTED)
            sheet.text((x, y + cell // 2 + 27), word.start, 13, MUTED)
        at = x + label
        for attention in (word.attention_step0, word.attention):
            if attention is not None:
                sheet.picture(overlay(_under(word, shown), attention, cell), (at, y), cell, _colour(index))
            at += cell + gap
        for samples in [word.samples_step0] * before + [word.samples] * drawn:
            sheet.grid(samples, (at, y), cell, _colour(index))
            at += cell + gap
        y += cell + gap
    _legend(sheet, (x + label, y), 2 * cell + gap)
    y += 44
    if len(shown.together):
        sheet.text((x, y), "the whole sentence, drawn with the learned words", 15, MUTED)
        y += 26
        for place, sample in enumerate(shown.together[: (right + gap) // (cell + gap)]):
            sheet.picture(_scaled(sample, cell), (x + place * (cell + gap), y), cell)
        y += cell
    return sheet.finish(max(y, left_end) + margin)


def results_sheet(results: Sequence[Shown], score: str | None = None) -> Image.Image:
    """A contact sheet: per picture its sentence, where each word looks, what it draws, and all together.

    score  the metric told beside each picture, by default the first of those that it has
    """
    cell, gap, margin = 96, 6, 30
    big, most = 2 * cell + gap, max(len(shown.words) for shown in results)
    card = 2 * (big + gap) + most * (cell + gap)
    across = max(1, min(3, len(results), 1700 // (card + 40)))
    width = max(across * card + (across - 1) * 40, _width(CONTACT_SHEET, _font(14)))
    sheet = _Sheet(2 * margin + width)
    y = margin
    sheet.text((margin, y), CONTACT_SHEET, 14, MUTED)
    y += 34
    for start in range(0, len(results), across):
        line = results[start : start + across]
        heights = [
            sheet.sentence(shown.sentence, margin + column * (card + 40), y, card, 17)
            for column, shown in enumerate(line)
        ]
        y += max(heights) + 8
        for column, shown in enumerate(line):
            _card(sheet, shown, margin + column * (card + 40), y, cell, gap, most)
            sheet.text((margin + column * (card + 40), y + big + 6), _caption(shown, score), 13, MUTED)
        y += big + 6 + 13 + 26
    _legend(sheet, (margin, y - 4), min(card, 420))
    return sheet.finish(y + 34 + margin // 2)


def dataset_sheet(sets: Mapping[str, Sequence[tuple[Picture, Sentence]]]) -> Image.Image:
    """Pictures and their sentences, a titled line for each set."""
    cell, gap, margin = 160, 22, 30
    across = max(len(pairs) for pairs in sets.values())
    sheet = _Sheet(2 * margin + across * (cell + gap) - gap)
    y = margin
    for title, pairs in sets.items():
        sheet.text((margin, y), title, 17, INK, bold=True)
        y += 30
        heights = []
        for column, (picture, sentence) in enumerate(pairs):
            x = margin + column * (cell + gap)
            sheet.picture(_scaled(picture, cell), (x, y), cell)
            heights.append(sheet.sentence(sentence, x, y + cell + 4, cell, 12))
        y += cell + max(heights, default=0) + 30
    return sheet.finish(y)


def curves(bands: Mapping[str, Sequence[tuple[int, float, float, float]]]) -> Image.Image:
    """Learning curves side by side: name -> (step, lower quartile, median, upper quartile)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(bands), 3.1), dpi=130, layout="constrained")
    for axes, (name, points) in zip(figure.subplots(1, len(bands), squeeze=False)[0], bands.items(), strict=True):
        steps, low, middle, high = (np.array(column) for column in zip(*points, strict=True))
        axes.fill_between(steps, low, high, color=WORD_COLOURS[1], alpha=0.35, lw=0, label="middle half of pictures")
        axes.plot(steps, middle, color=WORD_COLOURS[5], lw=2, label="median")
        axes.set_title(_readable(name), fontsize=11, color=INK, loc="left")
        axes.set_xlabel("step", color=MUTED)
        quiet(axes)
    figure.axes[0].legend(frameon=False, fontsize=8)
    return rendered(figure, FigureCanvasAgg)


def _left_column(sheet: _Sheet, shown: Shown, x: int, y: int, side: int) -> int:
    """Picture, metrics, learning curve; returns the height used."""
    start = y
    picture = _scaled(shown.picture, side)
    sheet.picture(picture, (x, y), side)
    y += picture.height + 10
    sheet.text((x, y), shown.id, 15, MUTED)
    y += 34
    for name, told in _told(shown.metrics):
        sheet.text((x, y), name, 15, INK)
        sheet.text((x + side, y), told, 15, INK, right=True)
        y += 24
    if len(shown.curve) > 1:
        y += 10
        plot = _loss_plot(shown.curve, side, 150)
        sheet.image.paste(plot, (x, y))
        y += plot.height
    return y - start


def _card(sheet: _Sheet, shown: Shown, x: int, y: int, cell: int, gap: int, most: int) -> None:
    big = 2 * cell + gap
    sheet.picture(_scaled(shown.picture, 2 * cell), (x, y + gap // 2), 2 * cell)
    x += big + gap
    for index, word in _coloured(shown):
        sheet.picture(overlay(_under(word, shown), word.attention, cell), (x, y), cell, _colour(index))
        for sample in word.samples[:1]:
            sheet.picture(_scaled(sample, cell), (x, y + cell + gap), cell, _colour(index))
        x += cell + gap
    for sample in shown.together[:1]:
        sheet.picture(_scaled(sample, 2 * cell), (x, y + gap // 2), 2 * cell)


def _coloured(shown: Shown) -> Iterator[tuple[int, ShownWord]]:
    """(number of its colour, word)"""
    return ((place if word.colour is None else word.colour, word) for place, word in enumerate(shown.words))


def _under(word: ShownWord, shown: Shown) -> Picture:
    """The picture that a word's maps belong to."""
    return shown.picture if word.picture is None else word.picture


def _caption(shown: Shown, score: str | None) -> str:
    name = score or next(iter(shown.metrics), None)
    return shown.id + (f"   {name.replace('_', ' ')} {shown.metrics[name]:.2f}" if name in shown.metrics else "")


def _told(metrics: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """Lines of the metrics' table; a metric's value before learning stands beside the one after."""
    for name, value in metrics.items():
        if name.startswith("sign_") or (name.endswith("_step0") and name.removesuffix("_step0") in metrics):
            continue
        before = metrics.get(f"{name}_step0")
        told = f"{value:.3f}" if before is None else f"{before:.3f}  →  {value:.3f}"
        yield _readable(name), told


def _readable(name: str) -> str:
    return name.replace("_", " ").replace("iou", "IoU")


def _legend(sheet: _Sheet, at: tuple[int, int], width: int) -> None:
    """The one scale of all overlays."""
    x, y = at
    left, right = "attention 0", "1, a map's maximum"
    font = _font(13)
    start = x + _width(left, font) + 10
    end = x + width - _width(right, font) - 10
    ramp = _heat(np.linspace(0, 1, end - start, dtype=np.float32))[None].repeat(12, axis=0)
    sheet.text((x, y), left, 13, MUTED)
    sheet.image.paste(Image.fromarray((ramp * 255).astype(np.uint8)), (start, y + 2))
    sheet.text((end + 10, y), right, 13, MUTED)


def _loss_plot(curve: Sequence[CurvePoint], width: int, height: int) -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 100, height / 100), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    axes.plot([p.step for p in curve], [p.fixed_noise_loss for p in curve], color=WORD_COLOURS[5], lw=2)
    axes.set_title("loss on fixed noise, by step", fontsize=10, color=MUTED, loc="left")
    quiet(axes)
    return rendered(figure, FigureCanvasAgg)


def quiet(axes: Any) -> None:
    """Leave of a diagram's frame and ticks what one reads values by."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)
    axes.tick_params(colors=MUTED, labelsize=8)
    axes.grid(axis="y", color=RULE, lw=0.6)
    axes.locator_params(axis="y", nbins=5)


def rendered(figure: Any, canvas: Any) -> Image.Image:
    """A matplotlib figure as a picture; `canvas`: the class of its backend."""
    buffer = io.BytesIO()
    canvas(figure).print_png(buffer)
    return Image.open(buffer).convert("RGB")


class _Sheet:
    """A page of fixed width that grows downwards."""

    def __init__(self, width: int) -> None:
        self.image = Image.new("RGB", (width, 400), PAPER)

    def finish(self, height: int) -> Image.Image:
        return self.image.crop((0, 0, self.image.width, height))

    def _reach(self, bottom: int) -> ImageDraw.ImageDraw:
        if bottom + 100 > self.image.height:
            taller = Image.new("RGB", (self.image.width, 2 * bottom + 200), PAPER)
            taller.paste(self.image)
            self.image = taller
        return ImageDraw.Draw(self.image)

    def text(self, at: tuple[int, int], text: str, size: int, colour: str, *, bold=False, right=False) -> None:
        self._reach(at[1] + size).text(at, text, colour, _font(size, bold), anchor="ra" if right else "la")

    def chip(self, at: tuple[int, int], text: str, size: int, colour: str) -> int:
        """A learned word on its colour; returns the width."""
        width, height = _chip_width(text, size), round(size * 1.6)
        draw = self._reach(at[1] + height)
        draw.rounded_rectangle((*at, at[0] + width, at[1] + height), round(size * 0.35), colour)
        middle = (at[0] + width / 2, at[1] + height / 2)
        draw.text(middle, text, _ink_on(colour), _font(size, bold=True), anchor="mm")
        return width

    def picture(self, picture: Image.Image, at: tuple[int, int], side: int, colour: str | None = None) -> None:
        """A picture in the middle of a square cell, with the edge of its word's colour."""
        x, y = at[0] + (side - picture.width) // 2, at[1]
        draw = self._reach(y + side)
        self.image.paste(picture, (x, y))
        frame = (x, y, x + picture.width - 1, y + picture.height - 1)
        draw.rectangle(frame, outline=colour or RULE, width=3 if colour else 1)

    def grid(self, pictures: Sequence[Picture], at: tuple[int, int], side: int, colour: str) -> None:
        """Up to four pictures in a square cell."""
        half = side // 2
        for place, picture in enumerate(pictures[: 1 if len(pictures) < 2 else 4]):
            corner = (at[0] + place % 2 * half, at[1] + place // 2 * half)
            each = side if len(pictures) < 2 else half
            self.picture(_scaled(picture, each), corner, each)
        if len(pictures):
            draw = self._reach(at[1] + side)
            if len(pictures) > 1:
                draw.line((at[0] + half, at[1], at[0] + half, at[1] + side), PAPER, 2)
                draw.line((at[0], at[1] + half, at[0] + side, at[1] + half), PAPER, 2)
            draw.rectangle((*at, at[0] + side - 1, at[1] + side - 1), outline=colour, width=3)

    def sentence(self, sentence: Sentence, x: int, y: int, width: int, size: int) -> int:
        """The sentence, wrapped: learned words on their colour, adjectives underlined in it. Returns the height."""
        start, at, line = y, x, round(size * 2.0)
        for word in sentence.words:
            learned = word.role == "placeholder"
            text = _shown_text(word)
            if text in ",.;:!?":
                at -= round(size * 0.36)
            font = _font(size)
            needed = _chip_width(text, size) if learned else _width(text, font)
            if at > x and at + needed > x + width:
                at, y = x, y + line
            if learned:
                self.chip((at, y), text, size, _colour(word.concept))
            else:
                draw = self._reach(y + line)
                draw.text((at, y + round(size * 0.8)), text, INK, font, anchor="lm")
                if word.role == "adjective":
                    under = y + round(size * 1.5)
                    draw.line((at, under, at + needed, under), _colour(word.concept), max(3, size // 7))
            at += needed + round(size * 0.36)
        return y + line - start


def _shown_text(word: Word) -> str:
    return f"<{word.text.strip('<>')}>" if word.role == "placeholder" else word.text


def _pictures(pictures: Any) -> list[Picture]:
    return [] if pictures is None else list(pictures)


def _image(picture: Picture) -> Image.Image:
    return picture.convert("RGB") if isinstance(picture, Image.Image) else Image.fromarray(np.asarray(picture))


def _scaled(picture: Picture, side: int) -> Image.Image:
    """The picture with `side` pixels at its longer edge; enlarged in whole steps without smoothing."""
    image = _image(picture)
    longer = max(image.size)
    if longer < side:
        times = -(-side // longer)
        image = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
        longer *= times
    if longer == side:
        return image
    size = (max(1, round(image.width * side / longer)), max(1, round(image.height * side / longer)))
    return image.resize(size, Image.Resampling.LANCZOS)


def _heat(level: np.ndarray) -> np.ndarray:
    """0..1 to RGB 0..1, one more axis."""
    return _heat_table()[np.clip(level * 255 + 0.5, 0, 255).astype(np.uint8)]


@cache
def _heat_table() -> np.ndarray:
    from matplotlib import colormaps

    return colormaps[HEAT](np.arange(256))[:, :3].astype(np.float32)


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib."""
    from matplotlib import get_data_path

    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans{'-Bold' if bold else ''}.ttf", size)


def _width(text: str, font: ImageFont.FreeTypeFont) -> int:
    return round(font.getlength(text))


def _chip_width(text: str, size: int) -> int:
    return _width(text, _font(size, bold=True)) + 2 * round(size * 0.4)


def _colour(index: int | None) -> str:
    return WORD_COLOURS[(index or 0) % len(WORD_COLOURS)]


def _ink_on(colour: str) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return INK if 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 > 0.25 else "#ffffff"
