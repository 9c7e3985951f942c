"""Every kind of image file becomes the same RGB pixels, or a CorruptImage that names it."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from edgetl.errors import CorruptImage, DataError
from edgetl.images import decode, read_bytes, to_batch, to_input
from edgetl.spec import Fit, Preprocess


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def pixels(data: bytes) -> np.ndarray:
    image = decode(data)
    assert image.mode == "RGB"
    return np.asarray(image)


# How a camera that was held in each of the eight ways stores the upright picture `x`.
STORED = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: np.rot90(x.transpose(1, 0, 2), 2),
    8: lambda x: np.rot90(x, -1),
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_eight_orientations_come_upright(orientation, kind):
    upright = noise(5, 9, 3)
    exif = Image.Exif()
    exif[274] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    np.testing.assert_array_equal(pixels(encoded(stored, kind, exif=exif)), upright)


def test_a_jpeg_with_orientation_as_pillow_turns_it():
    from PIL import ImageOps

    exif = Image.Exif()
    exif[274] = 6
    data = encoded(Image.fromarray(noise(16, 24, 3)), "JPEG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert decode(data).size == (16, 24)
    np.testing.assert_array_equal(pixels(data), np.asarray(expected))


@pytest.mark.parametrize("bad", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_upright(bad):
    exif = Image.Exif()
    exif[274] = bad
    upright = noise(4, 6, 3)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(upright), exif=exif)), upright)


def test_a_broken_exif_block_does_not_lose_the_photo():
    image = Image.fromarray(noise(16, 16, 3))
    data = encoded(image, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    np.testing.assert_array_equal(pixels(data), pixels(encoded(image, "JPEG")))


def test_grey_bilevel_and_palette():
    grey = noise(6, 7)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(grey))), np.stack([grey] * 3, axis=2))
    bits = Image.fromarray(grey).convert("1")
    np.testing.assert_array_equal(pixels(encoded(bits))[..., 0], np.asarray(bits) * np.uint8(255))
    palette = Image.fromarray(noise(6, 7, 3)).quantize(8)
    np.testing.assert_array_equal(pixels(encoded(palette)), np.asarray(palette.convert("RGB")))
    np.testing.assert_array_equal(pixels(encoded(palette, "GIF")), np.asarray(palette.convert("RGB")))


def test_what_is_transparent_lies_on_white():
    rgba = noise(4, 4, 4)
    rgba[0, :, 3], rgba[1, :, 3] = 0, 255
    out = pixels(encoded(Image.fromarray(rgba)))
    assert (out[0] == 255).all()
    np.testing.assert_array_equal(out[1], rgba[1, :, :3])
    alpha = rgba[2:, :, 3:].astype(float) / 255
    np.testing.assert_allclose(out[2:], rgba[2:, :, :3] * alpha + 255 * (1 - alpha), atol=1.01)

    la = noise(2, 3, 2)
    la[0, :, 1], la[1, :, 1] = 0, 255
    out = pixels(encoded(Image.fromarray(la, "LA")))
    assert (out[0] == 255).all()
    np.testing.assert_array_equal(out[1, :, 0], la[1, :, 0])


def test_palette_and_key_colour_transparency():
    palette = Image.new("P", (3, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    palette.putdata([0, 1, 2])
    out = pixels(encoded(palette, transparency=bytes([255, 0, 255])))
    np.testing.assert_array_equal(out[0], [[10, 20, 30], [255, 255, 255], [70, 80, 90]])
    np.testing.assert_array_equal(pixels(encoded(palette, transparency=1))[0, 1], [255] * 3)
    rgb = np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8)
    out = pixels(encoded(Image.fromarray(rgb), transparency=(4, 5, 6)))
    np.testing.assert_array_equal(out[0], [[1, 2, 3], [255, 255, 255]])


def test_cmyk_is_shown_in_rgb():
    image = Image.fromarray(noise(16, 16, 3)).convert("CMYK")
    data = encoded(image, "JPEG", quality=95)
    with Image.open(io.BytesIO(data)) as expected:
        np.testing.assert_array_equal(pixels(data), np.asarray(expected.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_keep_their_high_byte(kind):
    values = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    out = pixels(encoded(Image.fromarray(values), kind))
    np.testing.assert_array_equal(out[0, :, 0], [0, 0, 1, 128, 255])
    np.testing.assert_array_equal(out[..., 0], out[..., 2])


def test_sixteen_bits_turn_upright_too():
    upright = (noise(4, 6).astype(np.uint16) << 8) + 3
    exif = Image.Exif()
    exif[274] = 6
    data = encoded(Image.fromarray(np.ascontiguousarray(np.rot90(upright))), "TIFF", exif=exif)
    np.testing.assert_array_equal(pixels(data)[..., 0], upright >> 8)


def test_pixels_without_an_agreed_range_are_refused():
    with pytest.raises(CorruptImage, match=r"floating-point pixels have no agreed range: scan\.tif; save it"):
        decode(encoded(Image.fromarray(np.ones((2, 2), dtype=np.float32)), "TIFF"), "scan.tif")
    with pytest.raises(CorruptImage, match="more than 16 bits"):
        decode(encoded(Image.fromarray(np.array([[70000]], dtype=np.int32)), "TIFF"), "scan.tif")


def test_no_image_names_the_file_and_the_way_out():
    with pytest.raises(CorruptImage, match=r"not an image: a/notes\.jpg; .*--skip-corrupt"):
        decode(b"hello, I am text\n", "a/notes.jpg")
    with pytest.raises(CorruptImage, match=r"an empty file: a/zero\.png; .*--skip-corrupt"):
        decode(b"", "a/zero.png")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "TIFF"])
def test_a_file_cut_short_is_corrupt(kind):
    data = encoded(Image.fromarray(noise(64, 64, 3)), kind)
    assert pixels(data).shape == (64, 64, 3)
    with pytest.raises(CorruptImage, match=r"x\.jpg"):
        decode(data[: len(data) // 2], "x.jpg")


def test_formats_that_could_run_a_program_stay_shut():
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    with pytest.raises(CorruptImage, match=r"not an image format that is read here: x\.jpg \(EPS\)"):
        decode(postscript, "x.jpg")


def test_a_bomb_is_refused_before_it_is_unpacked():
    head = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    import zlib

    chunk = struct.pack(">I", 13) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
    with pytest.raises(CorruptImage, match=r"bomb\.png"):
        decode(b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IDAT5\xaf\x06\x1e\0\0\0\0IEND\xaeB`\x82", "bomb.png")


SEEDS = {
    kind: encoded(image, kind, **options)
    for kind, image, options in [
        ("JPEG", Image.fromarray(noise(12, 12, 3)), {"exif": Image.Exif()}),
        ("PNG", Image.fromarray(noise(12, 12, 4)), {}),
        ("BMP", Image.fromarray(noise(12, 12, 3)), {}),
        ("WEBP", Image.fromarray(noise(12, 12, 3)), {}),
        ("TIFF", Image.fromarray(noise(12, 12, 3)), {"compression": "tiff_lzw"}),
        ("GIF", Image.fromarray(noise(12, 12)), {}),
    ]
}


@settings(max_examples=400, deadline=None)
@given(
    kind=st.sampled_from(sorted(SEEDS)),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    cut=st.floats(0.0, 1.0),
)
@example(kind="PNG", edits=[], cut=1.0)
def test_any_damage_gives_pixels_or_corrupt_image(kind, edits, cut):
    data = bytearray(SEEDS[kind])
    for where, value in edits:
        data[int(where * len(data))] = value
    try:
        image = decode(bytes(data[: int(cut * len(data))]), "x")
    except CorruptImage as error:
        assert "\n" not in str(error) and error.value.startswith("x")
    else:
        assert image.mode == "RGB"


@given(data=st.binary(max_size=200))
def test_any_bytes_give_pixels_or_corrupt_image(data):
    try:
        decode(data)
    except CorruptImage:
        pass


def test_a_missing_file_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match=r"no such image: .*gone\.jpg"):
        read_bytes(tmp_path / "gone.jpg")
    with pytest.raises(DataError, match="cannot be read"):
        read_bytes(tmp_path)


def test_batches_have_the_layout_and_range_of_the_graph():
    batch = noise(2, 3, 4, 3)
    floats = to_batch(batch, "float32")
    assert (floats.shape, floats.dtype, floats.flags.c_contiguous) == ((2, 3, 3, 4), np.float32, True)
    assert floats[1, 2, 0, 3] == batch[1, 0, 3, 2]
    same = to_batch(batch, "uint8")
    assert same.dtype == np.uint8
    np.testing.assert_array_equal(same, batch)


# --- resize and crop: torchvision is the reference


@settings(max_examples=150, deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    size=st.integers(1, 48),
    more=st.integers(0, 9),
    interpolation=st.sampled_from(["bilinear", "bicubic", "nearest"]),
)
@example(width=33, height=33, size=33, more=0, interpolation="bilinear")
@example(width=1, height=90, size=48, more=1, interpolation="bicubic")
def test_crop_is_torchvisions_resize_and_center_crop_to_the_pixel(width, height, size, more, interpolation):
    from torchvision.transforms import CenterCrop, InterpolationMode, Resize

    image = Image.fromarray(noise(height, width, 3, seed=width * 100 + height))
    spec = Preprocess(size, size + more, interpolation=interpolation)
    ours = to_input(encoded(image), spec)
    assert ours.shape == (size, size, 3)
    assert ours.flags.writeable
    theirs = CenterCrop(size)(Resize(size + more, InterpolationMode(interpolation))(image))
    np.testing.assert_array_equal(ours, np.asarray(theirs))


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 300), height=st.integers(1, 300), size=st.integers(1, 64))
def test_stretch_and_letterbox_fill_the_square(width, height, size):
    image = Image.new("RGB", (width, height), (200, 10, 10))
    assert (to_input(encoded(image), Preprocess(size, size, Fit.STRETCH)) == [200, 10, 10]).all()
    boxed = to_input(encoded(image), Preprocess(size, size, Fit.LETTERBOX))
    red = (boxed == [200, 10, 10]).all(axis=2)
    grey = (boxed == [114, 114, 114]).all(axis=2)
    assert (red | grey).all()
    rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
    assert red[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()  # one rectangle
    assert max(len(rows), len(columns)) == size
    # of the image's proportions, to the pixel
    assert abs(len(columns) * max(width, height) - width * size) <= max(width, height)
    assert abs(len(rows) * max(width, height) - height * size) <= max(width, height)
    # and in the middle
    assert abs(rows[0] - (size - 1 - rows[-1])) <= 1 and abs(columns[0] - (size - 1 - columns[-1])) <= 1


def test_a_thread_of_an_image_is_refused_and_not_blown_up():
    thread = Image.new("RGB", (20000, 1))
    with pytest.raises(CorruptImage, match=r"too long and thin for a crop: thread\.png \(20000 x 1\); .*letterbox"):
        to_input(encoded(thread), Preprocess(224, 256), "thread.png")
    assert to_input(encoded(thread), Preprocess(224, 224, Fit.LETTERBOX)).shape == (224, 224, 3)
