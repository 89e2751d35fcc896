from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mcpl.data.pictures import MAX_PIXELS, fit, fit_mask, load_mask, load_picture, mask_png, picture_png
from mcpl.errors import ExampleError

from .conftest import png


def saved(picture: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def pixel(data: bytes, at=(0, 0)) -> tuple[int, int, int]:
    picture = load_picture(data)
    assert picture.mode == "RGB"
    return picture.getpixel(at)


def test_a_plain_picture_stays_as_it_is():
    assert pixel(png((1, 2, 3))) == (1, 2, 3)
    assert load_picture(png(size=(12, 8))).size == (12, 8)


def test_exif_orientation_is_applied():
    turned = Image.new("RGB", (6, 4), "red")
    turned.putpixel((0, 0), (0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned a quarter clockwise
    upright = load_picture(saved(turned, exif=exif))
    assert upright.size == (4, 6) and upright.getpixel((3, 0)) == (0, 0, 255)


def test_alpha_lies_over_white():
    assert pixel(png((255, 0, 0, 0), mode="RGBA")) == (255, 255, 255)
    assert pixel(png((0, 0, 0, 128), mode="RGBA")) == (127, 127, 127)
    assert pixel(png((0, 0), mode="LA")) == (255, 255, 255)
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([9, 9, 9, 200, 0, 0])
    assert pixel(saved(palette)) == (200, 0, 0)
    assert pixel(saved(palette, transparency=1)) == (255, 255, 255)


def test_grey_black_and_white_and_cmyk_become_rgb():
    assert pixel(png(77, mode="L")) == (77, 77, 77)
    assert pixel(png(1, mode="1")) == (255, 255, 255)
    red = pixel(png((0, 255, 255, 0), mode="CMYK", format="JPEG"))
    assert red[0] > 200 and max(red[1:]) < 60


def test_sixteen_bits_are_scaled_to_eight():
    deep = np.array([[0, 257 * 100], [65535, 128]], np.uint16)
    picture = load_picture(saved(Image.fromarray(deep)))
    assert [picture.getpixel((x, y))[0] for y in (0, 1) for x in (0, 1)] == [0, 100, 255, 0]


def test_fractions_are_scaled_and_strange_values_refused():
    assert pixel(saved(Image.fromarray(np.full((2, 2), 0.5, np.float32)), "TIFF")) == (128, 128, 128)
    with pytest.raises(ExampleError, match="values run from -3"):
        load_picture(saved(Image.fromarray(np.full((2, 2), -3, np.float32)), "TIFF"))


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_is_refused_and_one_frame_is_not(format):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue", "lime")]
    assert pixel(saved(frames[0], format))[0] > 200
    with pytest.raises(ExampleError, match="animation of 3 frames"):
        load_picture(saved(frames[0], format, save_all=True, append_images=frames[1:]))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_picture_is_refused(format, share):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    data = saved(noise, format)
    with pytest.raises(ExampleError, match="cut short or damaged|not a picture"):
        load_picture(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", r"empty \(0 bytes\)"),
        (b"hello", "not a picture"),
        (b"%PDF-1.4\n", "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
        (b"\0" * 100, "not a picture"),
        (b"\x89PNG\r\n\x1a\n", "not a picture|cut short"),
    ],
)
def test_what_is_no_picture_is_refused_with_its_reason(data, reason):
    with pytest.raises(ExampleError, match=reason) as caught:
        load_picture(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_damaged_bytes_give_a_picture_or_a_reason_never_anything_else(format, recwarn):
    rng = np.random.default_rng(0)
    whole = saved(Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)), format)
    for _ in range(150):
        data = np.frombuffer(whole, np.uint8).copy()
        reach = rng.choice([40, len(data)])
        data[rng.integers(0, min(reach, len(data)), rng.choice([1, 3, 20]))] = rng.integers(0, 256)
        try:
            assert load_picture(data.tobytes()).mode == "RGB"
        except ExampleError as fault:
            assert "\n" not in str(fault)
    assert not recwarn.list


@pytest.mark.parametrize("side", [9_000, 15_000, 60_000])
def test_a_decompression_bomb_is_refused_from_its_header(side):
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    with pytest.raises(ExampleError, match=f"too large.*{MAX_PIXELS}"):
        load_picture(bomb)


def test_fit_crops_the_centre_and_never_squashes():
    wide = Image.new("RGB", (30, 10), "red")
    wide.paste("blue", (10, 0, 20, 10))
    for picture in (wide, wide.transpose(Image.Transpose.ROTATE_90)):
        square = fit(picture, 8)
        assert square.size == (8, 8)
        assert all(square.getpixel(at) == (0, 0, 255) for at in ((1, 1), (6, 6)))
    exact = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    np.testing.assert_array_equal(fit(exact, 16), exact)


def test_masks_are_cropped_as_their_pictures():
    mask = np.zeros((10, 30), bool)
    mask[:, 10:15] = True
    fitted = fit_mask(mask, 10)
    assert fitted.dtype == bool and fitted[:, :5].all() and not fitted[:, 5:].any()
    np.testing.assert_array_equal(load_mask(mask_png(mask)), mask)


def test_a_mask_is_where_any_channel_passes_the_threshold():
    picture = Image.new("RGB", (4, 1))
    for x, colour in enumerate([(20, 20, 20), (0, 21, 0), (127, 0, 0), (128, 0, 0)]):
        picture.putpixel((x, 0), colour)
    data = picture_png(picture)
    assert load_mask(data, 20).tolist() == [[False, True, True, True]]
    assert load_mask(data).tolist() == [[False, False, False, True]]
    assert not load_mask(png((255, 255, 255, 0), mode="RGBA")).any()
