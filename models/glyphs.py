"""Glyphs of the fonts that Pillow and matplotlib ship, as grey masks: the source domain of the embedded backbone.

The ten digits are among the classes, as they are in any font; of handwriting there is nothing. Glyphs that
are one shape (Latin and Greek A; small and capital o; zero and O) are one class.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

CANVAS = 64  # pixels a side of a mask
GLYPH = 44  # pixels of the longer side of a glyph in it: the rest is room for rotation and shift
SAME_SHAPE = 0.90  # correlation of two masks in one font above which they are one class

LATIN = "ABCDEFGHIJKLMNOPQRSTUVWXYZ" + "abcdefghijklmnopqrstuvwxyz"
DIGITS = "0123456789"
GREEK = "ΓΔΘΛΞΠΣΦΨΩ" + "αβγδεζηθλμξπρστφχψω"
CYRILLIC = "БГДЖИЛУЦЧШЩЪЫЬЭЮЯ" + "бвджзилмнтцчшъыьэюя"
LATIN_MORE = "ßæœøðþŋʃʒəɐɔɛɣɥɯʊʌʎʞɹɾʁʔʕ"
SIGNS = "!?#$%&@()/*+<=>[]{}|~§¶£€¥¢©«÷¿†‡±×"  # noqa: RUF001  # look-alikes are the point
SHAPES = "←↑→↓↔↕∀∂∃∇∈∏∑√∞∠∧∨∩∪∫≈≠≡≤⊂⊕⊗⊥◊■□△▽○●☺♀♂♠♣♥♦♪"  # noqa: RUF001
CHARACTERS = LATIN + DIGITS + GREEK + CYRILLIC + LATIN_MORE + SIGNS + SHAPES

# Of Computer Modern's table only letters and digits are where Unicode has them; the rest is TeX's own.
_TEX_SAFE = frozenset(LATIN + DIGITS)
UNICODE_FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique",
    "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique",
    "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic",
    "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta",
)  # fmt: skip
TEX_FONTS = ("cmr10", "cmb10", "cmss10", "cmtt10", "cmti10", "cmmi10")
AILERON = "Aileron"


@dataclass(frozen=True)
class Glyphs:
    """`masks` uint8 (N, 64, 64), ink 255 on 0; `targets` (N,) class of each; `labels` a character a class."""

    masks: npt.NDArray[np.uint8]
    targets: npt.NDArray[np.int64]
    fonts: tuple[str, ...]
    labels: tuple[str, ...]


def render() -> Glyphs:
    """Every class in every font that has it; the same on any machine with the same Pillow and matplotlib."""
    labels, class_of = merged_by_shape()
    masks, targets, fonts = [], [], []
    for name in (*UNICODE_FONTS, *TEX_FONTS, AILERON):
        font = load(name)
        missing = _ink(font, "\uffff")
        for character in CHARACTERS:
            mask = drawn(font, character, missing) if drawable(name, character) else None
            if mask is not None:
                masks.append(mask)
                targets.append(class_of[character])
                fonts.append(name)
    return Glyphs(np.stack(masks), np.array(targets), tuple(fonts), labels)


def merged_by_shape() -> tuple[tuple[str, ...], dict[str, int]]:
    """The classes, and the class of each character: one shape in DejaVu Sans is one class, first come."""
    font = load(UNICODE_FONTS[0])
    labels: list[str] = []
    shapes: list[npt.NDArray[np.float64]] = []
    class_of: dict[str, int] = {}
    for character in CHARACTERS:
        mask = drawn(font, character, None)
        if mask is None:
            raise RuntimeError("DejaVu Sans lacks " + unicodedata.name(character))
        shape = mask.astype(np.float64).ravel()
        shape = (shape - shape.mean()) / (shape.std() + 1e-9)
        like = [float(shape @ other) / shape.size for other in shapes]
        if like and max(like) > SAME_SHAPE:
            class_of[character] = int(np.argmax(like))
            continue
        class_of[character] = len(labels)
        labels.append(character)
        shapes.append(shape)
    return tuple(labels), class_of


def load(name: str) -> ImageFont.FreeTypeFont:
    """A font by the name of its file, at a size where thin strokes survive."""
    if name == AILERON:
        font = ImageFont.load_default(96)
        assert isinstance(font, ImageFont.FreeTypeFont)  # a Pillow without FreeType would give bitmaps
        return font
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf" / (name + ".ttf")), 96)


def drawable(font: str, character: str) -> bool:
    """Whether `font` can be trusted to show `character` and not another glyph in its place."""
    return character in _TEX_SAFE or font not in TEX_FONTS


def drawn(
    font: ImageFont.FreeTypeFont, character: str, missing: npt.NDArray[np.uint8] | None
) -> npt.NDArray[np.uint8] | None:
    """`character` cut out and centred, its longer side GLYPH pixels; None where the font lacks it."""
    ink = _ink(font, character)
    if ink.size == 0 or (missing is not None and ink.shape == missing.shape and np.array_equal(ink, missing)):
        return None
    height, width = ink.shape
    scale = GLYPH / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    out = Image.new("L", (CANVAS, CANVAS))
    glyph = Image.fromarray(ink).resize(size, Image.Resampling.BOX)
    out.paste(glyph, ((CANVAS - size[0]) // 2, (CANVAS - size[1]) // 2))
    return np.asarray(out)


def _ink(font: ImageFont.FreeTypeFont, character: str) -> npt.NDArray[np.uint8]:
    """The tight box around a character's ink; (0, 0) for one that has none."""
    page = Image.new("L", (320, 320))
    ImageDraw.Draw(page).text((96, 64), character, font=font, fill=255)
    box = page.getbbox()
    return np.asarray(page.crop(box)) if box else np.zeros((0, 0), np.uint8)
