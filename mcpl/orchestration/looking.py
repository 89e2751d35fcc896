"""`mcpl show`: where every word of a sentence looks on one real picture, as pictures, arrays and labels in a folder."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from mcpl.data.bank import Bank
from mcpl.data.pictures import fit, load_picture, mask_png, picture_png
from mcpl.data.storage import safe_name
from mcpl.errors import ConfigError
from mcpl.evaluation.looking import THRESHOLD, WordLooks, content, look, things
from mcpl.models.base import BaseModel
from mcpl.orchestration.job import to_pixels
from mcpl.prompts import said
from mcpl.report import attention
from mcpl.report.figures import overlay
from mcpl.types import Sentence

LARGEST = 1024
"""pixels of a side of the pictures that are drawn; masks and labels have the picture's own size"""


@dataclass(frozen=True)
class Looks:
    """Where words look on a picture, ready to be drawn or kept.

    Shows itself in a notebook; `animation` is an animated WebP over time steps, `save` writes everything into a folder.
    """

    picture: Image.Image = field(repr=False)
    """the whole picture, upright"""
    sentence: Sentence
    looks: WordLooks = field(repr=False)
    segmented: tuple[int, ...]
    """which of the words are labels: indices into `words`"""
    base: str
    threshold: float = THRESHOLD

    @property
    def words(self) -> tuple[str, ...]:
        """The words that were looked at, in reading order."""
        return tuple(self.sentence.words[i].text for i in self.looks.words)

    @property
    def maps(self) -> np.ndarray:
        """Mean over time steps, each word's divided by its maximum. [W, m, m] float32 in 0..1"""
        return self.looks.maps.numpy()

    @cached_property
    def masks(self) -> np.ndarray:
        """Each word's mask, whatever the others say. [W, H, W'] bool, of the picture's own size"""
        return self._framed(self.looks.masks(self._square.size, self.threshold).numpy(), False)

    @cached_property
    def labels(self) -> np.ndarray:
        """Each pixel's word. [H, W'] uint8: 1 + index into `segmented`, 0 for none, 255 where the base saw nothing"""
        labels = self.looks.labels(self._square.size, self.segmented, self.threshold).numpy()
        return self._framed(labels[None], attention.UNSEEN)[0]

    @cached_property
    def _square(self) -> Image.Image:
        """What the base saw, at the picture's own resolution."""
        return fit(self.picture, min(self.picture.size))

    def _framed(self, values: np.ndarray, outside) -> np.ndarray:
        """[n, side, side] of the square as [n, H, W'] of the whole picture."""
        (width, height), side = self.picture.size, values.shape[-1]
        whole = np.full((len(values), height, width), outside, values.dtype)
        top, left = (height - side) // 2, (width - side) // 2
        whole[:, top : top + side, left : left + side] = values
        return whole

    @cached_property
    def _seen(self) -> Image.Image:
        square = self._square
        return square if square.width <= LARGEST else square.resize((LARGEST, LARGEST), Image.Resampling.LANCZOS)

    def sheet(self) -> Image.Image:
        """One picture of it all."""
        seen = self._seen
        return attention.words_sheet(
            seen,
            self.sentence,
            self.looks.words,
            self.maps,
            self.looks.masks(seen.size, self.threshold).numpy(),
            self.looks.labels(seen.size, self.segmented, self.threshold).numpy(),
            self.segmented,
        )

    def animation(self) -> bytes:
        """Every word's map from much noise to little, an animated WebP."""
        looks = self.looks
        frames = attention.frames(
            self._seen, self.sentence, looks.words, looks.by_time.numpy(), looks.timesteps.tolist()
        )
        return attention.animation(frames)

    def save(self, folder: str | Path) -> Path:
        """Write sheet.png, words.webp, overlays/, masks/, segmentation.png, labels.json and maps.npz."""
        folder, seen, names = Path(folder), self._seen, self._file_names()
        for part in ("overlays", "masks"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        self.sheet().save(folder / "sheet.png")
        (folder / "words.webp").write_bytes(self.animation())
        side = max(seen.width, 256)
        for name, map_, mask in zip(names, self.maps, self.masks, strict=True):
            overlay(seen, map_, side).save(folder / "overlays" / f"{name}.png")
            (folder / "masks" / f"{name}.png").write_bytes(mask_png(mask))
        colours = attention.colours_of(self.sentence, self.looks.words)
        attention.indexed(self.labels, [colours[w] for w in self.segmented]).save(folder / "segmentation.png")
        (folder / "labels.json").write_text(json.dumps(self._legend(names, colours), indent=2) + "\n")
        np.savez_compressed(
            folder / "maps.npz",
            words=np.array(self.words),
            timesteps=self.looks.timesteps.numpy(),
            by_time=self.looks.by_time.numpy(),
            maps=self.maps,
            refined=self.looks.refined.numpy(),
            masks=self.masks,
            labels=self.labels,
        )
        return folder

    def _file_names(self) -> list[str]:
        """One for each word; a number before it, since a word may stand twice."""
        return [f"{number}-{safe_name(word.strip('<>'))}" for number, word in enumerate(self.words, 1)]

    def _legend(self, names: Sequence[str], colours: Sequence[str]) -> dict:
        own = {w: label for label, w in enumerate(self.segmented, 1)}
        return {
            "sentence": self.sentence.text,
            "base": self.base,
            "threshold": self.threshold,
            "unseen": attention.UNSEEN,
            "words": [
                {"word": word, "mask": f"masks/{name}.png", "colour": colour, "label": own.get(w)}
                for w, (word, name, colour) in enumerate(zip(self.words, names, colours, strict=True))
            ],
        }

    def _repr_png_(self) -> bytes:
        return picture_png(self.sheet())

    def _repr_html_(self) -> str:
        return inline(self._repr_png_(), "image/png", f"where the words of {self.sentence.text!r} look") + inline(
            self.animation(), "image/webp", "the same at each time step, from much noise to little"
        )


def inline(data: bytes, kind: str, told: str) -> str:
    """A picture as HTML that holds it."""
    encoded = base64.b64encode(data).decode()
    return f'<img src="data:{kind};base64,{encoded}" alt="{html.escape(told)}" style="max-width:100%;display:block">'


def look_at(
    picture: bytes,
    text: str,
    vectors: Mapping[str, Tensor],
    model: BaseModel,
    words: Sequence[str] = (),
    segment: Sequence[str] = (),
    timesteps: int = 10,
    seed: int = 0,
    threshold: float = THRESHOLD,
) -> Looks:
    """Look at a stored picture with a sentence, whose marked words are among `vectors`.

    words: which words are shown, all but function words unless given; segment: which are labels, the objects unless
    given. Raises ExampleError for an unusable picture or sentence, ConfigError for a word that does not stand in it.
    """
    sentence, whole = said(text), load_picture(picture)
    chosen = _standing(words, sentence) if words else content(sentence)
    objects = _standing(segment, sentence) if segment else tuple(i for i in things(sentence) if i in chosen)
    chosen = tuple(sorted({*chosen, *objects}))
    if not chosen:
        raise ConfigError(f"no word of {text!r} says something to look for: name one with --word")
    pixels = to_pixels(fit(whole, model.facts.resolution))
    looks = look(model, pixels, sentence, vectors, chosen, timesteps, seed)
    return Looks(whole, sentence, looks, tuple(map(chosen.index, objects)), model.facts.name, threshold)


def _standing(words: Sequence[str], sentence: Sentence) -> tuple[int, ...]:
    """Where the given words stand in a sentence, learned ones with or without their marks."""
    found = []
    for wanted in words:
        bare = wanted.strip("<>").lower()
        places = [i for i, word in enumerate(sentence.words) if word.text.strip("<>").lower() == bare]
        if not places:
            raise ConfigError(f"{wanted!r} does not stand in {sentence.text!r}")
        found += places
    return tuple(sorted(found))


def ids_of(picture: bytes, sources: Collection[str | Path]) -> list[str]:
    """The rows of the given banks that were learned from this very picture, alone or in a group."""
    digest, found = hashlib.sha256(picture).hexdigest(), []
    for source in map(str, sources):
        own = Path(source) / "bank"
        try:
            table = Bank.open(own if own.is_dir() else source).table(["id", "picture_sha256", "status", "pictures"])
        except (ConfigError, OSError):
            continue  # word files, a registry: they name no pictures
        for row in table.to_pylist():
            used = [one["sha256"] for one in row["pictures"] or () if one["reason"] is None]
            if row["status"] == "learned" and digest in (used or [row["picture_sha256"]]):
                found.append(row["id"])
    return found
