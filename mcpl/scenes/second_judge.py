"""The second judge: finds objects by colour and names them by the world's own outlines. Nothing of it is learned.

It shares no weights and no learning with the trained judge (`mcpl.scenes.judge`), so that one can check the other; both
use the world's outlines and the same comparison (`matches`). Every step is arithmetic that can be followed by hand:

    ground      the ground colour that most pixels are near
    colour      each other pixel lies on a line from the ground to a colour of the world, at some share of the way
    pieces      neighbouring pixels of one colour; a piece that is too small is dirt
    shape       the outline, over sizes and places, that has most of its area in common with the piece
    "none"      where even the best outline has too little in common, or a second one nearly as much

    reading = TemplateJudge().read(pictures)[0]
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

from mcpl.scenes.judge import Reading, SeenObject
from mcpl.scenes.render import coverage
from mcpl.scenes.world import COLOURS, GROUNDS, PIXELS, SHAPES, STRIPE, STRIPE_SHADE, TEXTURES

ALIKE = 0.89  # correlation with the best outline below which a piece is none of the shapes
COMMON = 0.6  # intersection over union with it below which a piece is none, whatever its correlation
AHEAD = 0.005  # by which the best outline's correlation has to beat the next
VISIBLE = 0.4  # share of an outline that has to be seen of an object behind another
COVERED = 0.4  # share of the way to an ink from which on a pixel belongs to an object
SOFT = 0.5  # how far an outline may be blurred towards its 3x3 mean
FINALISTS = 4  # outlines of most area in common, whose correlation is compared
LARGEST = 24  # px, extent beyond which a piece is no object of the world
DIRT = 7  # px; a piece of fewer is no object
MINOR = 0.12  # share of touching pixels below which a colour is a stain and no piece
FAINT = 70.0  # a dark band nearer than this to the ground in colour may be lost in it
OFF_COLOUR = 75.0  # mean distance to its own paint from which on a piece has no colour of the world

_NAMES, _INKS = tuple(COLOURS), np.float32(list(COLOURS.values()))
_SHADES = np.float32([1.0, (1 + STRIPE_SHADE) / 2, STRIPE_SHADE])  # of a light band, a band's blurred edge, a dark band
_DARK_ROWS = np.arange(PIXELS) // STRIPE % 2 == 1
_AROUND = np.ones((3, 3), bool)
_EDGE = 12  # px of nothing round the picture, for outlines that reach over its border


class TemplateJudge:
    """Reads pictures of the world without having seen any."""

    def read(self, pictures: np.ndarray) -> list[Reading]:
        """What each of the pictures shows: uint8 [B, 32, 32, 3] to B readings."""
        return [_read(picture.astype(np.float32)) for picture in pictures]


@dataclass(frozen=True)
class _Piece:
    """Neighbouring pixels of one colour, an index into `COLOURS`."""

    mask: np.ndarray
    colour: int


@dataclass(frozen=True)
class _Match:
    """An outline in its place: top left corner, size in px; how far its correlation is ahead of the next shape's."""

    shape: str
    alike: float
    ahead: float
    common: float
    top: int
    left: int
    size: int

    @property
    def middle(self) -> tuple[float, float]:
        """x, y in px."""
        return self.left + self.size / 2, self.top + self.size / 2

    def draw(self) -> np.ndarray:
        """Its share of each pixel of the picture, [PIXELS, PIXELS]."""
        share = np.zeros((PIXELS + 2 * _EDGE,) * 2, np.float32)
        top, left = self.top + _EDGE, self.left + _EDGE
        share[top : top + self.size, left : left + self.size] = coverage(self.shape, self.size)
        return share[_EDGE:-_EDGE, _EDGE:-_EDGE]


@dataclass(frozen=True)
class _Fit:
    """What a piece is: a shape or "none", its correlation with the best outline, and that outline's centre in px."""

    shape: str
    alike: float
    x: float
    y: float
    texture: str
    area: float


def _read(picture: np.ndarray) -> Reading:
    ground = _ground(picture)
    objects: list[SeenObject] = []
    for body in _bodies(picture, ground):
        fits = [_fit(picture, ground, piece, body) for piece in body]
        if len(body) > 1:
            body, fits = _untangle(picture, ground, body, fits)
        objects += [
            SeenObject(fit.shape, _NAMES[piece.colour], fit.texture, fit.x, fit.y, fit.area, fit.alike)
            for piece, fit in zip(body, fits, strict=True)
        ]
    return Reading(tuple(sorted(objects, key=lambda o: -o.confidence)))


def _untangle(
    picture: np.ndarray, ground: np.ndarray, body: list[_Piece], fits: list[_Fit]
) -> tuple[list[_Piece], list[_Fit]]:
    """Of pieces that touch: objects behind others are read again, and one outline in two colours is none."""
    front = [piece.mask for piece, fit in zip(body, fits, strict=True) if fit.shape != "none"]
    if front and len(front) < len(body):
        hidden = np.any(front, 0)
        fits = [
            fit if fit.shape != "none" else _fit(picture, ground, piece, body, hidden)
            for piece, fit in zip(body, fits, strict=True)
        ]
    together = np.any([piece.mask for piece in body], 0)
    match = _best(together.astype(np.float32), np.ones(PIXELS, np.float32))
    if match is None or match.alike < max(ALIKE, min(fit.alike for fit in fits)):
        return body, fits
    whole = _Piece(together, max(body, key=lambda piece: piece.mask.sum()).colour)
    return [whole], [_Fit("none", match.alike, *match.middle, TEXTURES[0], float(together.sum()))]


def _ground(picture: np.ndarray) -> np.ndarray:
    """The picture's own ground colour, [3]: the median of the pixels near the ground that most are near."""
    known = np.float32(list(GROUNDS.values()))
    paints = np.concatenate([known, _INKS, _INKS * STRIPE_SHADE])
    nearest = np.linalg.norm(picture[:, :, None] - paints, axis=-1).argmin(-1)
    most = np.bincount(nearest[nearest < len(known)], minlength=len(known)).argmax()
    return np.median(picture[nearest == most], 0) if (nearest == most).any() else known[most]


def _bodies(picture: np.ndarray, ground: np.ndarray) -> list[list[_Piece]]:
    """The picture's objects, those that touch in one list."""
    away = picture - ground
    ways = (_SHADES[:, None, None] * _INKS - ground).reshape(-1, 3)  # [shades * colours, 3]
    along = np.clip(away @ ways.T / (ways**2).sum(1), 0, 1)  # share of the way to each ink
    off = np.linalg.norm(away[:, :, None] - along[..., None] * ways, axis=-1)
    ink, off = off.argmin(-1), off.reshape(PIXELS, PIXELS, len(_SHADES), -1).min(2)
    far = np.linalg.norm(away, axis=-1)
    dirt = np.clip(2.5 * np.median(far[far < 60]) if (far < 60).any() else 40, 20, 40)
    drawn = (far > dirt) & (np.take_along_axis(along, ink[..., None], -1)[..., 0] >= COVERED)
    colour = ink % len(_INKS)
    drawn, colour = _join_bands(picture, drawn, colour, ground)
    bodies, count = ndimage.label(drawn, _AROUND)
    found = []
    for body in (bodies == number + 1 for number in range(count)):
        size = body.sum()
        if size < DIRT:
            continue
        counts = np.bincount(colour[body], minlength=len(_INKS))
        main = [c for c in range(len(_INKS)) if counts[c] >= max(DIRT - 1, MINOR * size)] or [int(counts.argmax())]
        settled = np.array(main)[off[..., main].argmin(-1)]
        settled = np.where(np.isin(colour, main), colour, settled)
        pieces = []
        for hue in main:
            parts, number = ndimage.label(body & (settled == hue), _AROUND)
            pieces += [_Piece(parts == n + 1, hue) for n in range(number) if (parts == n + 1).sum() >= DIRT - 1]
        if pieces:
            found.append(pieces)
    return found


def _join_bands(
    picture: np.ndarray, drawn: np.ndarray, colour: np.ndarray, ground: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Fill dark bands that the ground all but swallows, between two light bands of one colour."""
    drawn, colour = drawn.copy(), colour.copy()
    for hue, ink in enumerate(_INKS):
        dark = ink * STRIPE_SHADE
        if np.linalg.norm(dark - ground) >= FAINT:
            continue
        near = np.linalg.norm(picture - dark, axis=-1) < np.linalg.norm(picture - ground, axis=-1)
        light = drawn & (colour == hue)
        above, below = np.zeros_like(light), np.zeros_like(light)
        above[STRIPE:] |= light[:-STRIPE]
        above[1:] |= light[:-1]
        below[:-STRIPE] |= light[STRIPE:]
        below[:-1] |= light[1:]
        filled = near & above & below & _DARK_ROWS[:, None] & ~drawn
        drawn[filled], colour[filled] = True, hue
    return drawn, colour


@lru_cache(maxsize=64)
def _outlines(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Every shape's coverage of a box, [shapes, s, s], and their centres of mass (y, x), [shapes, 2]."""
    shares = np.stack([coverage(name, size) for name in SHAPES])
    at = np.arange(size) + 0.5
    mass = shares.sum((1, 2))
    return shares, np.stack([(shares.sum(2) @ at) / mass, (shares.sum(1) @ at) / mass], 1)


@lru_cache(maxsize=64)
def _drawn(size: int) -> np.ndarray:
    """Every shape's coverage, sharp and blurred, one pixel more to each side, [2, shapes, s + 2, s + 2]."""
    sharp = np.pad(_outlines(size)[0], ((0, 0), (1, 1), (1, 1)))
    soft = sharp + SOFT * (ndimage.uniform_filter(sharp, (0, 3, 3), mode="constant") - sharp)
    return np.stack([sharp, soft])


def _paint(colour: int, texture: str) -> np.ndarray:
    """Colour of each row, [PIXELS, 3]."""
    shade = np.where(_DARK_ROWS & (texture == "striped"), np.float32(STRIPE_SHADE), np.float32(1))
    return shade[:, None] * _INKS[colour]


def _fit(
    picture: np.ndarray, ground: np.ndarray, piece: _Piece, body: list[_Piece], hidden: np.ndarray | None = None
) -> _Fit:
    """The outline and texture that draw the piece best; pixels of `hidden` may belong to it and say nothing."""
    others = np.any([p.mask for p in body if p is not piece], 0) if len(body) > 1 else np.zeros_like(piece.mask)
    near = ndimage.binary_dilation(piece.mask, _AROUND) & ~others
    fits = []
    for texture in TEXTURES:
        way = (_paint(piece.colour, texture) - ground)[:, None]  # [rows, 1, 3]
        share = np.clip(((picture - ground) * way).sum(-1) / (way**2).sum(-1), 0, 1) * near
        weight = np.minimum(1, (way[:, 0] ** 2).sum(-1) / FAINT**2)
        match = _best(share, weight, None if hidden is None else ~hidden)
        if match is None:
            continue
        drawn = ground + match.draw()[:, :, None] * way
        error = float(np.linalg.norm(drawn - picture, axis=-1)[near].mean())
        named = match.alike >= ALIKE and match.ahead >= AHEAD and match.common >= COMMON and error < OFF_COLOUR
        shape = match.shape if named else "none"
        fits.append((error, _Fit(shape, match.alike, *match.middle, texture, float(share.sum()))))
    y, x = (float(at.mean()) + 0.5 for at in np.nonzero(piece.mask))
    nothing = _Fit("none", 0.0, x, y, TEXTURES[0], float(piece.mask.sum()))
    return min(fits, key=lambda each: each[0])[1] if fits else nothing


def _best(share: np.ndarray, weight: np.ndarray, seen: np.ndarray | None = None) -> _Match | None:
    """The outline most like a covered `share` [H, W], rows weighing `weight` [H].

    Each shape is put where its intersection over union is greatest; the best is the one that correlates most there,
    sharp or soft. `seen` are the pixels that count, by default all. None for what is next to nothing or too large.
    """
    rows, columns = (np.nonzero((share >= 0.5).any(axis))[0] for axis in (1, 0))
    if not len(rows):
        return None
    extent = int(max(np.ptp(rows), np.ptp(columns))) + 1
    if extent > LARGEST:
        return None
    mass = share.sum()
    centre = (share.sum(1) @ (np.arange(PIXELS) + 0.5) / mass, share.sum(0) @ (np.arange(PIXELS) + 0.5) / mass)
    steps, sizes = ((-1, 0, 1), range(max(5, extent - 1), max(6, extent + 2) + 1))
    if seen is not None:  # neither its extent nor its middle is known
        steps, sizes = range(-4, 5), range(max(6, extent - 1), min(LARGEST, extent + 5) + 1)
    border = _EDGE + 1  # an outline at the very edge has neighbours too
    wide, whole = np.pad(share, border), (weight[:, None] * share).sum()
    heavy = np.pad(np.broadcast_to(weight[:, None], share.shape), border, mode="edge")
    open_ = heavy if seen is None else heavy * np.pad(seen, border, constant_values=True)
    best = np.zeros(len(SHAPES))
    places = [(0, 0, min(sizes))] * len(SHAPES)
    for size in sizes:
        outlines, middles = _outlines(size)
        corners = np.rint(np.array(centre) - middles).astype(int)[:, None] + [(i, j) for i in steps for j in steps]
        corners = np.clip(corners + border, 1, len(wide) - size - 1)  # [shapes, places, 2]
        down, right = (corners[..., axis, None] + np.arange(size) for axis in (0, 1))
        at = (down[..., :, None], right[..., None, :])
        counted = open_[at]
        outline = outlines[:, None]
        met = (counted * np.minimum(wide[at], outline)).sum((2, 3))
        all_ = (counted * outline).sum((2, 3))
        common = met / np.maximum(whole + all_ - met, 1e-6)
        if seen is not None:
            common = np.where(all_ >= VISIBLE * (heavy[at] * outline).sum((2, 3)), common, 0)
        for number, place in enumerate(common.argmax(1)):
            if common[number, place] > best[number]:
                best[number] = common[number, place]
                top, left = corners[number, place] - border
                places[number] = (int(top), int(left), size)
    likeness = np.zeros(len(SHAPES))
    for number in best.argsort()[-FINALISTS:]:
        top, left, size = places[number]
        window = tuple(slice(at + border - 1, at + border + size + 1) for at in (top, left))
        counted, covered = open_[window], wide[window]
        for outline in _drawn(size)[:, number]:  # sharp and soft
            met = (counted * np.minimum(covered, outline)).sum()
            best[number] = max(best[number], met / (whole + (counted * outline).sum() - met))
            likeness[number] = max(likeness[number], _correlation(covered, outline, counted))
    order = likeness.argsort()[::-1]
    first = int(order[0])
    ahead = float(likeness[first] - likeness[order[1]])
    return _Match(tuple(SHAPES)[first], float(likeness[first]), ahead, float(best[first]), *places[first])


def _correlation(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> float:
    weight = weight / max(1e-6, weight.sum())
    first, second = (each - (weight * each).sum() for each in (first, second))
    spread = (weight * first**2).sum() * (weight * second**2).sum()
    return float((weight * first * second).sum() / max(1e-6, spread**0.5))
