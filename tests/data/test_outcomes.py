"""Every awkward picture of docs/datasets.md, through a whole import: what it becomes, or why it is left out."""

from __future__ import annotations

import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mcpl.data.pictures import load_picture
from mcpl.data.sources import Dataset, build_dataset, validate

from .conftest import png

DOCS = Path(__file__).resolve().parents[2] / "docs" / "datasets.md"


def saved(picture: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def raw_png(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    """A PNG by hand: of depths that Pillow does not write, or with a header that lies."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def turned() -> bytes:
    picture = Image.new("RGB", (6, 4), "red")
    picture.putpixel((0, 0), (0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter clockwise
    return saved(picture, exif=exif)


def frames(format: str) -> bytes:
    colours = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    return saved(colours[0], format, save_all=True, append_images=colours[1:])


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
OUTCOMES = {
    # row of the table -> stored bytes, and the size and first pixel that it becomes or the reason why it is none
    "EXIF orientation": (turned(), ((4, 6), (255, 0, 0))),
    "alpha": (png((255, 0, 0, 0), mode="RGBA"), ((12, 8), (255, 255, 255))),
    "grey": (png(77, mode="L"), ((12, 8), (77, 77, 77))),
    "palette": (saved(NOISE.quantize(8)), ((40, 40), NOISE.quantize(8).convert("RGB").getpixel((0, 0)))),
    "16-bit grey": (saved(Image.fromarray(np.full((2, 2), 257 * 100, np.uint16))), ((2, 2), (100, 100, 100))),
    "16-bit colour": (
        raw_png(1, 1, 16, 2, b"\0" + struct.pack(">HHH", 0x0AFF, 0x1400, 0x1EFF)),
        ((1, 1), (10, 20, 30)),
    ),
    "CMYK": (png((0, 0, 0, 255), mode="CMYK", format="JPEG"), ((12, 8), (0, 0, 0))),
    "animated": (frames("GIF"), "the picture is an animation of 2 frames: save the one that is described"),
    "truncated": (saved(NOISE)[:-600], "the picture is cut short or damaged"),
    "decompression bomb": (
        raw_png(60_000, 60_000, 8, 2, b"\0"),
        "the picture is too large",
    ),
    "zero bytes": (b"", "the picture is empty (0 bytes)"),
    "not a picture": (b"%PDF-1.4\n", "not a picture: its format is not known"),
}


@pytest.mark.parametrize("case", OUTCOMES)
def test_an_awkward_picture_has_one_outcome_everywhere(case, tmp_path):
    stored, outcome = OUTCOMES[case]
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, data in {"odd.png": stored, "plain.png": png()}.items():
        (folder / name).write_bytes(data)
        (folder / name).with_suffix(".txt").write_text("a <cat>")
    report = build_dataset(Dataset.open(folder), tmp_path / "set")
    kept = {example.id: example.image for example in Dataset.open(tmp_path / "set").examples()}
    looked = validate(folder)
    if isinstance(outcome, str):
        assert list(kept) == ["plain.png"] and report.faults.lost == 1 and looked.good == 1
        for fault in (report.faults.first[0], looked.faults.first[0]):
            assert fault.id == "odd.png" and fault.reason.startswith(outcome)
    else:
        size, pixel = outcome
        assert kept["odd.png"] == stored, "the file is stored as it came; it is read the same way each time"
        picture = load_picture(kept["odd.png"])
        assert (picture.mode, picture.size, picture.getpixel((0, 0))) == ("RGB", size, pixel)
        assert looked.ok and report.faults.lost == 0


def test_the_documented_table_is_the_tested_one():
    table = DOCS.read_text().partition("## Pictures")[2].partition("\n## ")[0]
    assert re.findall(r"^\| ([^|]+?) +\|", table, re.MULTILINE) == ["picture", *OUTCOMES]
