"""Stored bytes to pictures and masks: every format and fault has one defined outcome.

    turned by EXIF            turned upright
    alpha, transparent colour laid over white
    grey, palette, CMYK, ...  converted to RGB
    16-bit grey               its full range scaled to 8 bits
    several frames            refused: a sentence describes one picture, and the first frame is often blank
    empty, truncated, foreign refused
    more than MAX_PIXELS      refused from the header alone (decompression bombs)
    more than MAX_BYTES       refused from the file's size alone

Refusing is an ExampleError with the reason.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageChops, ImageOps

from mcpl.data.storage import byte_size
from mcpl.errors import ExampleError

MAX_PIXELS = 64_000_000
"""width * height beyond which a picture is refused; a 61-megapixel camera passes"""

MAX_BYTES = 400_000_000
"""stored bytes beyond which nothing of a row is even read; MAX_PIXELS of 16-bit colour without compression pass"""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Formats that are opened at all. Others start helper programs or hide several pictures."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")

BINARY_THRESHOLD = 127
"""a grey mask's pixels above this belong to the object"""
OBJECT_THRESHOLD = 20
"""an object on black: pixels with a channel above this belong to it (JPEG leaves noise in the black)"""


def load_picture(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The upright RGB picture in `data`, at its own size; ExampleError with the reason where there is none."""
    return _load(data, max_pixels, "white")


def check_bytes(count: int) -> None:
    """ExampleError where a file is too large to be read: its size is known before."""
    if count > MAX_BYTES:
        raise ExampleError(f"the file is too large: more than {byte_size(MAX_BYTES)}")


def _load(data: bytes, max_pixels: int, ground: str) -> Image.Image:
    if not data:
        raise ExampleError("the picture is empty (0 bytes)")
    check_bytes(len(data))
    with _faults_as("not a picture"):
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = picture.size
        frames = 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)  # MPO: a photo and its preview
    if width * height > max_pixels:
        raise ExampleError(f"the picture is too large: {width} x {height}, more than {max_pixels} pixels")
    if frames > 1:
        raise ExampleError(f"the picture is an animation of {frames} frames: save the one that is described")
    with _faults_as("the picture is cut short or damaged"):
        picture.load()
        return _rgb(ImageOps.exif_transpose(picture), ground)


@contextlib.contextmanager
def _faults_as(reason: str) -> Iterator[None]:
    """ExampleError for whatever a decoder raises: hostile bytes meet every kind of exception, and warnings besides."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (ExampleError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise ExampleError(f"the picture is too large: more than {MAX_PIXELS} pixels") from None
    except Image.UnidentifiedImageError:
        raise ExampleError(f"{reason}: its format is not known") from None
    except Exception as fault:
        raise ExampleError(f"{reason}: {' '.join(str(fault).split()) or type(fault).__name__}") from None


def fit(picture: Image.Image, size: int) -> Image.Image:
    """The largest centred square of a picture at `size` by `size` pixels: cropped, never squashed."""
    return ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS)


def load_mask(data: bytes, threshold: int = BINARY_THRESHOLD) -> np.ndarray:
    """[height, width] bool: where a channel is above the threshold; transparent is outside. Faults as for pictures."""
    red, green, blue = _load(data, MAX_PIXELS, "black").split()
    return np.asarray(ImageChops.lighter(ImageChops.lighter(red, green), blue)) > threshold


def aligned_mask(data: bytes, picture: Image.Image, threshold: int = BINARY_THRESHOLD) -> np.ndarray:
    """`load_mask`, for this picture: ExampleError where the mask is black all over or of another size."""
    mask = load_mask(data, threshold)
    if not mask.any():
        raise ExampleError("black all over")
    if mask.shape != (picture.height, picture.width):
        size = f"{mask.shape[1]} x {mask.shape[0]}"
        raise ExampleError(f"its size is {size}, the picture's {picture.width} x {picture.height}")
    return mask


def fit_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """[size, size] bool: a mask cropped as `fit` crops its picture; a pixel belongs where most of it does."""
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(ImageOps.fit(grey, (size, size), Image.Resampling.BOX)) > BINARY_THRESHOLD


def mask_png(mask: np.ndarray) -> bytes:
    """A boolean mask as a grey PNG of 0 and 255."""
    return picture_png(Image.fromarray(mask.astype(np.uint8) * 255))


def picture_png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _rgb(picture: Image.Image, ground: str) -> Image.Image:
    if picture.mode.startswith(("I", "F")):
        return _eight_bits(picture).convert("RGB")
    if picture.has_transparency_data:
        above = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", above.size, ground), above).convert("RGB")
    return picture.convert("RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Deep grey as 8-bit grey: integers span 0..65535 (0..255 where none is larger), fractions span 0..1."""
    values = np.asarray(picture).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 65535):
        raise ExampleError(f"the picture's values run from {low:g} to {high:g}: save it with 8 or 16 bits")
    if picture.mode == "F":
        span = 1.0 if high <= 1 else 255.0 if high <= 255 else 65535.0
    else:
        span = 255.0 if picture.mode == "I" and high <= 255 else 65535.0
    return Image.fromarray(np.rint(values * (255 / span)).astype(np.uint8))
