"""Tiny pictures for the tests of the data room."""

from __future__ import annotations

import io

from PIL import Image


def png(colour=(200, 30, 30), size=(12, 8), mode="RGB", format="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, format, **options)
    return buffer.getvalue()
