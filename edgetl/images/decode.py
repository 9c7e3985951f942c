"""From an encoded image to pixels: the only preprocessing in the project.

Python 3.8, numpy >= 1.17 and Pillow >= 7.0: the same code runs on the PC and on the device.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Union

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from edgetl.errors import CorruptImage, DataError
from edgetl.spec import Fit, Preprocess

if TYPE_CHECKING:
    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
LETTERBOX_GREY = 114  # the field's customary bar colour (YOLO's letterbox)
_FILTERS = {"nearest": Image.NEAREST, "bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}


def decode(data: bytes, name: object = "image") -> Image.Image:
    """An RGB image from encoded bytes, upright.

    EXIF orientation is applied; grey, palette, CMYK and 1-bit become RGB; transparent pixels are shown
    on white; 16-bit grey keeps its high byte. Raises CorruptImage naming `name`.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image), name)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise CorruptImage("not an image", name, "remove it, or skip such files with --skip-corrupt") from None
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        # Pillow reports a broken file as any of these, depending on the format.
        raise CorruptImage(
            "the image is corrupt or cut short", "%s (%s)" % (name, error), "replace it, or use --skip-corrupt"
        ) from error


def _to_rgb(image: Image.Image, name: object) -> Image.Image:
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise CorruptImage("more than 16 bits a pixel", name, "save it with 8 or 16 bits")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise CorruptImage("floating-point pixels have no agreed range", name, "save it with 8 or 16 bits")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def resized(image: Image.Image, spec: Preprocess) -> Image.Image:
    """`image` after the resize of `spec`, before its centre crop (for `crop`: shorter side = spec.resize)."""
    width, height = image.size
    if spec.fit is Fit.STRETCH:
        target = (spec.size, spec.size)
    elif spec.fit is Fit.LETTERBOX:
        scale = spec.size / max(width, height)
        target = (max(1, int(round(width * scale))), max(1, int(round(height * scale))))
    else:
        # torchvision's rule (transforms.functional._compute_resized_output_size): the longer side is cut, not rounded.
        short, long = min(width, height), max(width, height)
        other = int(spec.resize * long / short)
        target = (spec.resize, other) if width <= height else (other, spec.resize)
    return image if target == image.size else image.resize(target, _FILTERS[spec.interpolation])


def fitted(image: Image.Image, spec: Preprocess) -> Image.Image:
    """A `resized` image cut (or padded) to spec.size squared."""
    width, height = image.size
    if (width, height) == (spec.size, spec.size):
        return image
    if spec.fit is Fit.LETTERBOX:
        out = Image.new("RGB", (spec.size, spec.size), (LETTERBOX_GREY,) * 3)
        out.paste(image, ((spec.size - width) // 2, (spec.size - height) // 2))
        return out
    left = int(round((width - spec.size) / 2.0))  # torchvision's center_crop rounds the same way
    top = int(round((height - spec.size) / 2.0))
    return image.crop((left, top, left + spec.size, top + spec.size))


def to_input(data: bytes, spec: Preprocess, name: object = "image") -> Pixels:
    """uint8 (size, size, 3) RGB: what a network is given for these encoded bytes."""
    return np.asarray(fitted(resized(decode(data, name), spec), spec), dtype=np.uint8)


def to_batch(pixels: Pixels, dtype: str) -> np.ndarray:
    """uint8 (B, H, W, 3) as a graph's input: float32 (B, 3, H, W) in 0-255, or uint8 as it is."""
    if dtype == "uint8":
        return np.ascontiguousarray(pixels)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32)


def read_bytes(path: Union[str, Path]) -> bytes:
    """The bytes of an image file. Raises DataError when it is missing or may not be read."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise DataError("no such image", path) from None
    except OSError as error:
        raise DataError("the image cannot be read", "%s (%s)" % (path, error.strerror)) from error


