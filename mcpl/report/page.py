"""A bank as one static page: a gallery that filters and sorts, and everything about each picture. No network.

    page = Page(put, about)            # put(name, bytes) keeps a file
    for row in rows:
        page.add(row)
    page.finish()

    index.html            the page with its style and program; a list of all pictures, by column
    data/0000.js ...      CHUNK pictures each: maps, curves, neighbours, provenance; read when they come into view
    pictures/, samples/   files, read when they come into view
    (single: index.html alone holds it all)

Data are scripts rather than JSON, because a page that is opened from a disk may read no other file. Sentences are
untrusted: the data are JSON without a single `<`, and the page makes text of them, never markup.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from PIL import Image

from mcpl.report.figures import STRONGEST, WORD_COLOURS, _heat_table, _ink_on
from mcpl.scores import lower_is_better
from mcpl.types import BankRow, Sentence

CHUNK = 20
"""pictures of one data file"""
SIDE, SINGLE_SIDE = 512, 160
"""pixels of a side that pictures are shrunk to, in files and within a single page"""
LOSSLESS = 128
"""pixels of a side up to which a picture keeps every pixel as it is"""
LOGGED = 80
"""points of a loss curve that are kept"""


@dataclass(frozen=True)
class Neighbour:
    """Another word of the bank that is near."""

    slug: str
    id: str
    """of its picture"""
    cosine: float


@dataclass(frozen=True)
class PageRow:
    """One picture of the page, or one group."""

    row: BankRow
    sentence: Sentence | None
    """None where it cannot be read"""
    picture: Image.Image | None
    """the square that the base saw; None where there is none"""
    neighbours: Mapping[str, Sequence[Neighbour]] = field(default_factory=dict)
    """slug -> its nearest other words, nearest first"""
    samples: Mapping[str, Any] = field(default_factory=dict)
    """slug -> [n, H, W, 3] uint8, drawn from that word alone"""
    together: Any = None
    """[n, H, W, 3] uint8, drawn from the whole sentence"""
    others: Mapping[str, Image.Image | None] = field(default_factory=dict)
    """slug -> what its maps belong to, where that is another picture of the group"""


@dataclass(frozen=True)
class About:
    """What the page says of the bank as a whole."""

    title: str
    facts: Mapping[str, str]
    """name -> value, in the order in which they are shown"""
    advice: Mapping[str, str] = field(default_factory=dict)
    """sign of failure -> what to do about it"""
    note: str = ""
    """said where the page does not show everything"""


class Page:
    """Writes the page picture by picture; a chunk's rows are all that it holds besides the list."""

    def __init__(self, put: Callable[[str, bytes], None], about: About, single: bool = False) -> None:
        self._put, self._about, self._single = put, about, single
        self._chunk: list[dict] = []
        self._chunks = 0
        self._inline: list[str] = []
        self._list: dict[str, list] = {"id": [], "text": [], "status": [], "words": [], "seen": []}
        self._scores: dict[str, list] = {}
        self._signs: dict[str, int] = {}

    @property
    def count(self) -> int:
        return len(self._list["id"])

    def add(self, shown: PageRow) -> None:
        """The next picture."""
        number, row = self.count, shown.row
        self._list["id"].append(row.id)
        self._list["text"].append(row.text)
        self._list["status"].append(row.status)
        self._list["words"].append([word.concept.slug for word in row.learned.concepts] if row.learned else [])
        for name, value in row.metrics.items():
            if not name.startswith("sign_"):
                column = self._scores.setdefault(name, [])
                column.extend([None] * (number - len(column)))
                column.append(_short(value))
        seen = [name.removeprefix("sign_") for name, value in row.metrics.items() if name.startswith("sign_") and value]
        self._list["seen"].append([self._signs.setdefault(name, len(self._signs)) for name in seen])
        self._chunk.append(self._record(number, shown))
        if len(self._chunk) == CHUNK:
            self._flush()

    def finish(self) -> None:
        """The list, and the page itself, last: a page that is there is whole."""
        self._flush()
        scores = {name: column + [None] * (self.count - len(column)) for name, column in self._scores.items()}
        told = {
            "title": self._about.title,
            "facts": list(self._about.facts.items()),
            "advice": dict(self._about.advice),
            "note": self._about.note,
            "chunk": CHUNK,
            "signs": list(self._signs),
            "scores": scores,
            "smaller": [name for name in scores if lower_is_better(name)],
            "colours": [[colour, _ink_on(colour)] for colour in WORD_COLOURS],
            "heat": (_heat_table() * 255 + 0.5).astype(np.uint8).tobytes().hex(),
            "strongest": STRONGEST,
            **self._list,
        }
        self._put("index.html", _html(self._about, f"MCPL.open({_json(told)});", self._inline).encode())

    def _flush(self) -> None:
        if not self._chunk:
            return
        script = f"MCPL.chunk({self._chunks}, {_json(self._chunk)});\n"
        if self._single:
            self._inline.append(script)
        else:
            self._put(f"data/{self._chunks:04d}.js", script.encode())
        self._chunks += 1
        self._chunk = []

    def _record(self, number: int, shown: PageRow) -> dict:
        row, provenance = shown.row, shown.row.provenance
        record = {
            "sentence": segments(shown.sentence) if shown.sentence else [row.text],
            "picture": self._picture(f"pictures/{number:06d}.webp", shown.picture),
            "reason": row.reason,
            "provenance": {
                "recipe": f"{provenance.recipe} {provenance.recipe_fingerprint}",
                "base": f"{provenance.base} {provenance.base_digest}",
                "seed": provenance.seed,
                "commit": provenance.commit,
                "picture sha256": provenance.picture_sha256,
                "sentence sha256": provenance.sentence_sha256,
                "learned": " ".join(filter(None, (row.learned_at, row.host and f"on {row.host}"))),
                "seconds": _short(row.seconds),
            },
        }
        if row.pictures:
            told = (f"{p.id}: {p.text}" + (f" (left out: {p.reason})" if p.reason else "") for p in row.pictures)
            record["provenance"] = {"pictures": "; ".join(told)} | record["provenance"]
        if learned := row.learned:
            record["provenance"] |= {"steps": learned.steps, "U-Net sample passes": learned.sample_passes}
            record["words"] = [self._word(number, place, word, shown) for place, word in enumerate(learned.concepts)]
            record["together"] = self._strip(f"samples/{number:06d}.webp", shown.together)
            record["curve"] = {
                name: [_short(getattr(point, name)) for point in learned.curve]
                for name in ("step", "fixed_noise_loss", "mask_area", "norm", "prompt_similarity")
            }
            record["losses"] = {term: _thinned(values) for term, values in learned.losses.items() if len(values) > 1}
        return record

    def _word(self, number: int, place: int, word: Any, shown: PageRow) -> dict:
        concept, other = word.concept, shown.others.get(word.concept.slug)
        own = {"picture": self._picture(f"pictures/{number:06d}-{place}.webp", other)} if other else {}
        return {
            **own,
            "slug": concept.slug,
            "adjectives": list(concept.adjectives),
            "start": concept.initializer or "",
            "vectors": list(word.vectors.shape),
            "norm": _short(float(np.linalg.norm(np.asarray(word.vectors, np.float64), axis=-1).mean())),
            "side": int(word.attention.shape[-1]),
            "after": _map(word.attention),
            "before": _map(word.attention_step0),
            "samples": self._strip(f"samples/{number:06d}-{place}.webp", shown.samples.get(concept.slug)),
            "near": [[n.slug, n.id, round(n.cosine, 3)] for n in shown.neighbours.get(concept.slug, ())],
        }

    def _picture(self, name: str, picture: Image.Image | None) -> str | None:
        if picture is None:
            return None
        side = SINGLE_SIDE if self._single else SIDE
        return self._file(
            name, picture.resize((side, side), Image.Resampling.LANCZOS) if picture.width > side else picture
        )

    def _strip(self, name: str, pictures: Any) -> list | None:
        """[address, how many] of pictures side by side in one file."""
        if pictures is None or not len(pictures):
            return None
        strip = Image.fromarray(np.concatenate(list(np.asarray(pictures)), axis=1))
        side = SINGLE_SIDE if self._single else SIDE // 2
        if strip.height > side:
            strip = strip.resize((side * len(pictures), side), Image.Resampling.LANCZOS)
        return [self._file(name, strip), len(pictures)]

    def _file(self, name: str, picture: Image.Image) -> str:
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, "WEBP", lossless=picture.height <= LOSSLESS, quality=85)
        if self._single:
            return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
        self._put(name, buffer.getvalue())
        return name


def is_ours(html: bytes) -> bool:
    """Whether an index.html is such a page, and not somebody's own."""
    return b"MCPL.open(" in html


def segments(sentence: Sentence) -> list:
    """A sentence as the page colours it: ordinary text, and [word, concept, 1 if learned else 0]."""
    parts: list = []
    for word in sentence.words:
        text = word.text if word.role != "placeholder" else f"<{word.text.strip('<>')}>"
        if word.concept is not None:
            parts.append([text, word.concept, int(word.role == "placeholder")])
        elif parts and isinstance(parts[-1], str):
            parts[-1] += text if text in ",.;:!?" else f" {text}"
        else:
            parts.append(text)
    return parts


def _map(values: Any) -> str:
    """[m, m] in 0..1 as base64 of uint8."""
    levels = np.nan_to_num(np.asarray(values, np.float32)).clip(0, 1)
    return base64.b64encode(np.rint(levels * 255).astype(np.uint8).tobytes()).decode()


def _thinned(values: Sequence[float]) -> list:
    """At most LOGGED means of neighbouring values: their course, not their noise."""
    parts = np.array_split(np.asarray(values, np.float64), min(LOGGED, len(values)))
    return [_short(float(part.mean())) for part in parts]


def _short(value: float) -> float | int | None:
    """Five digits; None for what is no number, which JSON does not know."""
    if isinstance(value, int):
        return value
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _json(value: Any) -> str:
    """JSON that may stand in a script: nothing of it can end the script or start markup."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text.encode("utf-8", "replace").decode()


def _html(about: About, data: str, chunks: Sequence[str]) -> str:
    from markupsafe import Markup

    nonce = hashlib.sha256("".join((data, *chunks)).encode()).hexdigest()[:24]
    return _template().render(
        title=about.title,
        nonce=nonce,
        style=Markup(_text("page.css")),
        program=Markup(_text("page.js")),
        data=Markup(data),
        chunks=[Markup(chunk) for chunk in chunks],
    )


@cache
def _template() -> Any:
    from jinja2 import Environment

    return Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_text("index.html"))


@cache
def _text(name: str) -> str:
    return files("mcpl.report").joinpath("static", name).read_text("utf-8")
