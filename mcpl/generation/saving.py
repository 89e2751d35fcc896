"""Pictures as PNG files that tell how they were made, though not where on this machine the words lie.

Names hold a seed, and nothing that a word or file could choose."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mcpl.generation.edit import Edited
from mcpl.generation.generate import Generated
from mcpl.generation.words import LearnedWord

CHUNK = "mcpl"
"""key of the PNG text chunk that holds the JSON"""
SEEN = 256
"""pixels that a side of a shown picture has at least"""
GAP = 4
"""pixels between the pictures of a grid"""


def png(picture: Any, told: dict[str, Any]) -> bytes:
    """A picture [H, W, 3] uint8, or of PIL, with what is told of it as JSON in a text chunk."""
    information = PngInfo()
    information.add_itxt(CHUNK, json.dumps(told, ensure_ascii=False))
    buffer = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(np.asarray(picture))
    image.save(buffer, "PNG", pnginfo=information)
    return buffer.getvalue()


def told_in(path: str | Path) -> dict[str, Any]:
    """What a PNG of ours tells of itself; empty for any other."""
    with Image.open(path) as image:
        return json.loads(getattr(image, "text", {}).get(CHUNK, "{}"))


def save_generated(made: Generated, out: Path, columns: int | None = None) -> list[Path]:
    """`picture-SEED.png` of each, and for several `grid.png`; returns the files."""
    files = {
        f"picture-{seed}.png": png(picture, about(made) | {"seed": seed})
        for seed, picture in zip(made.seeds, made.pictures, strict=True)
    }
    if len(made.seeds) > 1:
        files["grid.png"] = png(grid(made.pictures, columns), about(made) | {"seeds": list(made.seeds)})
    return _write(files, out)


def save_edited(made: Edited, out: Path) -> list[Path]:
    """`original.png`, `edited.png` and `mask.png`, numbered by seed where there are several; `sheet.png` with all."""
    files, told = {}, about(made)
    for number, (before, after, mask) in enumerate(_stages(made)):
        end = f"-{made.seeds[number]}.png" if len(made.pictures) > 1 else ".png"
        own = told | ({"seed": made.seeds[number]} if made.seeds else {})
        files |= {f"original{end}": png(before, own), f"edited{end}": png(after, own), f"mask{end}": png(mask, own)}
    files["sheet.png"] = png(sheet(made), told)
    return _write(files, out)


def sheet(made: Generated | Edited) -> Image.Image:
    """All pictures in a grid; of edited ones before, after, and where the change may show, a row each."""
    if not isinstance(made, Edited):
        return grid(made.pictures)
    return grid([each for before, after, mask in _stages(made) for each in (before, after, mask.convert("RGB"))], 3)


def _stages(made: Edited) -> Iterator[tuple[Any, Any, Image.Image]]:
    """Before, after, and the mask in grey at the pictures' size, of each."""
    for before, after, mask in zip(made.original, made.pictures, made.mask, strict=True):
        shown = Image.fromarray((mask.numpy() * 255).astype(np.uint8))
        yield before, after, shown.resize(before.shape[1::-1], Image.Resampling.NEAREST)


def grid(pictures: Sequence[Any], columns: int | None = None) -> Image.Image:
    """Pictures row by row on white, near a square unless told otherwise; small ones enlarged without smoothing."""
    images = [p if isinstance(p, Image.Image) else Image.fromarray(np.asarray(p)) for p in pictures]
    columns = columns or math.ceil(math.sqrt(len(images)))
    factor = max(1, SEEN // images[0].height)
    width, height = images[0].width * factor, images[0].height * factor
    rows = math.ceil(len(images) / columns)
    page = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), "white")
    for number, image in enumerate(images):
        at = (number % columns * (width + GAP), number // columns * (height + GAP))
        page.paste(image.resize((width, height), Image.Resampling.NEAREST), at)
    return page


def about(made: Generated | Edited) -> dict[str, Any]:
    """What a picture tells of itself."""
    told: dict[str, Any] = {"prompt": made.prompt}
    if isinstance(made, Edited):
        told |= {"original_prompt": made.original_prompt, **made.editing.model_dump()}
    else:
        told |= made.drawing.model_dump(exclude={"at_once"})
    return told | {"base": made.base, "base_digest": made.base_digest, "words": [_word(word) for word in made.words]}


def _word(word: LearnedWord) -> dict[str, Any]:
    rows = np.ascontiguousarray(word.vectors.detach().cpu().numpy(), np.float32)
    digest = hashlib.sha256(rows.tobytes()).hexdigest()[:16]
    return {"word": f"<{word.slug}>", "picture": word.picture, "vectors": len(rows), "sha256": digest}


def _write(files: dict[str, bytes], out: Path) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (out / name).write_bytes(data)
    return [out / name for name in files]
