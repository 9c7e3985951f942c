"""From an encoded image to pixels: the only preprocessing in the project.

Python 3.8, numpy >= 1.17 and Pillow >= 7.0: the same code runs on the PC and on the device.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Tuple, Union

import numpy as np
from PIL import Image, UnidentifiedImageError

from edgetl.errors import CorruptImage, DataError
from edgetl.spec import Fit, Preprocess

if TYPE_CHECKING:
    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
MAX_RESIZED_PIXELS = 1 << 27  # 400 MB of RGB
LETTERBOX_GREY = 114  # the field's customary bar colour (YOLO's letterbox)

# Enums since Pillow 9.1, numbers in the module before (JetPack 5 has 7.0).
_resampling: Any = getattr(Image, "Resampling", Image)
_transpose: Any = getattr(Image, "Transpose", Image)
_FILTERS = {"nearest": _resampling.NEAREST, "bilinear": _resampling.BILINEAR, "bicubic": _resampling.BICUBIC}

# What may hide behind those extensions. Others stay shut: Pillow hands PostScript to a program, for one.
_FORMATS = ("JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF")

# EXIF tag 274 -> what turns the image upright. Not ImageOps.exif_transpose: it copies every upright image,
# and the one of Pillow 7 fails where the EXIF block cannot be written again.
_ORIENTATION_TAG = 274
_UPRIGHT = {
    2: _transpose.FLIP_LEFT_RIGHT,
    3: _transpose.ROTATE_180,
    4: _transpose.FLIP_TOP_BOTTOM,
    5: _transpose.TRANSPOSE,
    6: _transpose.ROTATE_270,
    7: _transpose.TRANSVERSE,
    8: _transpose.ROTATE_90,
}

# What Pillow's decoders raise on a broken file, depending on the format and on the byte that is wrong.
_BROKEN = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def decode(data: bytes, name: object = "image") -> Image.Image:
    """An RGB image from encoded bytes, upright.

    EXIF orientation is applied; grey, palette, CMYK and 1-bit become RGB; transparent pixels are shown
    on white; 16-bit grey keeps its high byte. Raises CorruptImage naming `name`.
    """
    if not data:
        raise CorruptImage("an empty file", name, "remove it (finetune can skip such files with --skip-corrupt)")
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format not in _FORMATS:
                do = "save it as JPEG or PNG (finetune can skip such files with --skip-corrupt)"
                raise CorruptImage("not an image format that is read here", "%s (%s)" % (name, image.format), do)
            image.load()
            turn = _UPRIGHT.get(_orientation(image))
            rgb = _to_rgb(image, name)  # first: old Pillows cannot turn 16-bit pixels
            return rgb if turn is None else rgb.transpose(turn)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise CorruptImage(
            "not an image", name, "remove it (finetune can skip such files with --skip-corrupt)"
        ) from None
    except _BROKEN as error:
        raise CorruptImage(
            "the image is corrupt or cut short",
            "%s (%s)" % (name, error),
            "replace it (finetune can skip such files with --skip-corrupt)",
        ) from error


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except _BROKEN:
        return 1  # the pixels are whole; every viewer shows a photo with a broken EXIF block as it lies
    return value if isinstance(value, int) else 1


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


def resized(image: Image.Image, spec: Preprocess, name: object = "image") -> Image.Image:
    """`image` after the resize of `spec`, before its centre crop (for `crop`: shorter side = spec.resize).

    Raises CorruptImage for one so long and thin that its resize would not fit in memory.
    """
    target = _resized_size(image.size, spec)
    if target[0] * target[1] > MAX_RESIZED_PIXELS:
        raise CorruptImage(
            "the image is too long and thin for a crop", "%s (%d x %d)" % ((name,) + image.size), "use --fit letterbox"
        )
    return image if target == image.size else image.resize(target, _FILTERS[spec.interpolation])


def _resized_size(size: Tuple[int, int], spec: Preprocess) -> Tuple[int, int]:
    width, height = size
    if spec.fit is Fit.STRETCH:
        return (spec.size, spec.size)
    if spec.fit is Fit.LETTERBOX:
        scale = spec.size / max(width, height)
        return (max(1, round(width * scale)), max(1, round(height * scale)))
    # torchvision's rule (transforms.functional._compute_resized_output_size): the longer side is cut, not rounded.
    short, long = min(width, height), max(width, height)
    other = int(spec.resize * long / short)
    return (spec.resize, other) if width <= height else (other, spec.resize)


def fitted(image: Image.Image, spec: Preprocess) -> Image.Image:
    """A `resized` image cut (or padded) to spec.size squared."""
    width, height = image.size
    if (width, height) == (spec.size, spec.size):
        return image
    if spec.fit is Fit.LETTERBOX:
        out = Image.new("RGB", (spec.size, spec.size), (LETTERBOX_GREY,) * 3)
        out.paste(image, ((spec.size - width) // 2, (spec.size - height) // 2))
        return out
    left = round((width - spec.size) / 2.0)  # torchvision's center_crop rounds the same way
    top = round((height - spec.size) / 2.0)
    return image.crop((left, top, left + spec.size, top + spec.size))


def placement(size: Tuple[int, int], spec: Preprocess) -> Tuple[float, float, int, int]:
    """(scale x, scale y, left, top): the point (x, y) of an image of `size` (width, height) is at
    (x * scale x - left, y * scale y - top) of the network's input; what lies outside of it is not seen.
    """
    width, height = _resized_size(size, spec)
    if spec.fit is Fit.LETTERBOX:
        left, top = -((spec.size - width) // 2), -((spec.size - height) // 2)
    else:
        left, top = round((width - spec.size) / 2.0), round((height - spec.size) / 2.0)
    return (width / size[0], height / size[1], left, top)


def to_input(data: bytes, spec: Preprocess, name: object = "image") -> Pixels:
    """uint8 (size, size, 3) RGB: what a network is given for these encoded bytes."""
    # A copy: an array over Pillow's own memory is read-only, which torch warns of.
    return np.array(fitted(resized(decode(data, name), spec, name), spec), dtype=np.uint8)


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
        raise DataError("no such image", path, "check the path") from None
    except OSError as error:
        raise DataError("the image cannot be read", "%s (%s)" % (path, error.strerror), "make it readable") from error
