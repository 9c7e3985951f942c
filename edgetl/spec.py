"""The nouns that stages hand to each other: frozen dataclasses, standard library only, Python 3.8."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, Dict, Mapping, Tuple

from edgetl.errors import InputError

MAX_PIXELS_A_SIDE = 16384  # a typing slip in a size would otherwise be met as "out of memory"


class Precision(str, Enum):
    """What a graph's arithmetic is. It lives in the graph, never in an engine's build options."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"

    def __str__(self) -> str:
        return self.value


class Profile(str, Enum):
    """Which runtime family a graph is written for.

    `trt8`: opset 13, FP32 rest (TensorRT 8.5/8.6: JetPack 5 and 6.0).
    `trt10`: opset 19, FP16 rest, strongly typed (TensorRT 10.3+: JetPack 6.1+, 7, PCs).
    `cpu`: unsigned activations (ONNX Runtime on a CPU).
    """

    TRT8 = "trt8"
    TRT10 = "trt10"
    CPU = "cpu"

    def __str__(self) -> str:
        return self.value


class InputKind(str, Enum):
    """`float32`: float32 NCHW RGB 0-255. `uint8`: uint8 NHWC RGB. Normalisation is inside the graph."""

    FLOAT32 = "float32"
    UINT8 = "uint8"

    def __str__(self) -> str:
        return self.value


class Fit(str, Enum):
    """How an image of another shape becomes a square: centre crop, stretch, or grey bars (letterbox)."""

    CROP = "crop"
    STRETCH = "stretch"
    LETTERBOX = "letterbox"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Preprocess:
    """From an encoded image to the pixels a network sees; the only description of it in the project.

    `resize` is the shorter side in pixels before the centre crop to `size` (fit=crop); with `stretch`
    and `letterbox` the image goes straight to `size`. `mean` and `std` are in units of 0-1, RGB.
    """

    size: int
    resize: int
    fit: Fit = Fit.CROP
    interpolation: str = "bilinear"
    mean: Tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: Tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if self.size < 1 or self.resize < self.size:
            raise InputError(
                "resize must be at least the image size",
                "resize %s, size %s" % (self.resize, self.size),
                "for example resize 256 for size 224",
            )
        if self.resize > MAX_PIXELS_A_SIDE:
            raise InputError("the image size is beyond reason", self.resize, "at most %d" % MAX_PIXELS_A_SIDE)
        if self.interpolation not in ("bilinear", "bicubic", "nearest"):
            raise InputError("unknown interpolation", self.interpolation, "use bilinear, bicubic or nearest")
        numbers = (*self.mean, *self.std)
        if len(self.mean) != 3 or len(self.std) != 3 or not all(map(math.isfinite, numbers)) or min(self.std) <= 0:
            raise InputError(
                "mean and std want three numbers each, std above zero",
                "%s %s" % (list(self.mean), list(self.std)),
                "for example 0.5, 0.5, 0.5",
            )

    def to_json(self) -> Dict[str, Any]:
        """A plain dict; `from_json` takes it back."""
        out = asdict(self)
        out["fit"] = str(self.fit)
        out["mean"], out["std"] = list(self.mean), list(self.std)
        return out

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Preprocess:
        """Read what `to_json` wrote. Raises InputError on anything else."""
        try:
            known = {"size", "resize", "fit", "interpolation", "mean", "std"}
            extra = sorted(set(data) - known)
            if extra:
                raise InputError("unknown key in the Preprocess", extra[0], "known: " + ", ".join(sorted(known)))
            mean, std = (tuple(float(v) for v in data[key]) for key in ("mean", "std"))
            return cls(
                size=_whole(data["size"]),
                resize=_whole(data.get("resize", data["size"])),
                fit=Fit(data.get("fit", "crop")),
                interpolation=str(data.get("interpolation", "bilinear")),
                mean=mean,  # type: ignore[arg-type]  # __post_init__ checks the length
                std=std,  # type: ignore[arg-type]
            )
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise InputError(
                "the Preprocess cannot be read",
                repr(error),
                'it wants {"size", "resize", "fit", "interpolation", "mean": [r,g,b], "std": [r,g,b]}',
            ) from error


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError("%r is not a whole number" % (value,))
    return value


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype ("float32", "uint8") and shape of a graph's input or output; -1 is the batch."""

    name: str
    dtype: str
    shape: Tuple[int, ...]

    def to_json(self) -> Dict[str, Any]:
        """A plain dict."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}


@dataclass(frozen=True)
class BatchProfile:
    """TensorRT's optimisation profile over the batch axis: smallest, best-tuned, largest."""

    min: int = 1
    opt: int = 1
    max: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise InputError(
                "--batch wants 1 <= MIN <= OPT <= MAX",
                "%s,%s,%s" % (self.min, self.opt, self.max),
                "for example --batch 1,4,8",
            )

    @classmethod
    def parse(cls, text: str) -> BatchProfile:
        """From `"1,4,8"` or `"4"`."""
        try:
            parts = [int(p) for p in text.split(",")]
        except ValueError:
            parts = []
        if len(parts) == 1:
            parts *= 3  # one number: an engine for that batch alone
        if len(parts) != 3:
            raise InputError("--batch wants MIN,OPT,MAX", text, "for example --batch 1,1,8")
        return cls(*parts)

    def __str__(self) -> str:
        return "%d,%d,%d" % (self.min, self.opt, self.max)


def image_input(kind: InputKind, size: int, name: str = "image") -> TensorSpec:
    """The TensorSpec of a bundle graph's input for square images of `size` pixels."""
    if kind is InputKind.UINT8:
        return TensorSpec(name, "uint8", (-1, size, size, 3))
    return TensorSpec(name, "float32", (-1, 3, size, size))


def parse_enum(kind: type, value: object, what: str) -> Any:
    """`value` as a member of the Enum `kind`, or InputError naming the allowed values."""
    try:
        return kind(value)
    except ValueError:
        allowed = ", ".join(str(m) for m in kind)  # type: ignore[attr-defined]
        raise InputError("unknown " + what, value, "use one of " + allowed) from None
