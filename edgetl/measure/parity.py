"""How far two sets of logits on the same images are apart, and how far they may be. Python 3.8, numpy.

Three parities are checked apart, each with its tolerance from the manifest: decode and resize (pixels equal);
an engine or backend against its own graph; a graph against PyTorch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Dict, Mapping, Optional, Tuple

import numpy as np

from edgetl.bundle import Bundle
from edgetl.errors import BundleError, ParityError
from edgetl.measure.score import compare
from edgetl.spec import Precision

if TYPE_CHECKING:
    import numpy.typing as npt

    Logits = npt.NDArray[np.float32]

# Relative to the spread of the logits (fp32, fp16); mean KL divergence in nats (int8).
DEFAULTS: Dict[str, Dict[str, float]] = {"fp32": {"relative": 1e-3}, "fp16": {"relative": 5e-2}, "int8": {"kl": 1e-3}}
QUANTA = 2  # margins below this many steps of an int8 logit may fall either way


@dataclass(frozen=True)
class Parity:
    """max_abs: largest logit difference; relative: that over the spread of the reference; kl: mean KL in nats."""

    max_abs: float
    relative: float
    agreement: float
    kl: float
    n: int

    def to_json(self) -> Dict[str, Any]:
        """A plain dict."""
        return asdict(self)


def parity(reference: Logits, candidate: Logits) -> Parity:
    """Compare logits (N, C); their spread is the largest less the smallest of the reference, over all images."""
    if reference.shape != candidate.shape:
        raise ParityError(
            "a graph gives another number of logits", "%s and not %s" % (candidate.shape, reference.shape)
        )
    if not np.isfinite(candidate).all():
        raise ParityError("a graph gives NaN or inf on a golden image", "%d images" % len(candidate))
    largest = float(np.abs(reference - candidate).max())
    spread = float(reference.max() - reference.min())
    found = compare(reference, candidate, reference.argmax(axis=1))
    relative = largest / spread if spread > 0 else (0.0 if largest == 0 else float("inf"))
    return Parity(largest, relative, found.agreement, found.kl, len(reference))


def top1_changes(reference: Logits, candidate: Logits) -> Tuple[int, int]:
    """(images whose top-1 differs, those among them whose margin was over QUANTA steps) for logits (N, C).

    A step is what one int8 code is worth in a symmetric tensor that just holds the reference: its largest
    magnitude / 127. A margin is the reference's best logit less its second.
    """
    changed = reference.argmax(axis=1) != candidate.argmax(axis=1)
    best = np.sort(reference, axis=1)[:, -2:]
    step = float(np.abs(centred(reference)).max()) / 127
    clear = best[:, -1] - best[:, 0] > QUANTA * step
    return int(changed.sum()), int((changed & clear).sum())


def tolerance(bundle: Bundle, precision: Precision, key: str) -> float:
    """A tolerance of the manifest, or the project's own where it says none."""
    tolerances: Mapping[str, Any] = bundle.manifest["tolerances"]
    return float(tolerances.get(str(precision), {}).get(key, DEFAULTS[str(precision)].get(key)))


def centred(logits: Logits) -> Logits:
    """Each row less its mean: what is left when only differences of logits count (after a Softmax)."""
    out: Logits = logits - logits.mean(axis=1, keepdims=True)
    return out


def comparable(
    reference: Logits, logits: Logits, output: Optional[str], temperature: Optional[float]
) -> Tuple[Logits, Logits]:
    """Both as they may be compared: a graph whose output is "probabilities" tells only differences of its logits.

    `temperature`: what the graph divided its logits by before its Softmax, None where by nothing.
    """
    if output != "probabilities":
        return reference, logits
    return centred(reference / np.float32(temperature or 1.0)), centred(logits)


def golden(bundle: Bundle) -> Optional[Tuple[npt.NDArray[np.uint8], Logits]]:
    """The golden pixels (N, S, S, 3) and PyTorch's logits (N, C); None where the bundle has none."""
    if not bundle.artifacts("golden-pixels") or not bundle.artifacts("golden-logits"):
        return None
    pixels, logits = (read_array(bundle, bundle.artifact(kind)) for kind in ("golden-pixels", "golden-logits"))
    if len(pixels) != len(logits):
        raise BundleError("the golden pixels and logits do not belong together", bundle.path)
    return pixels, logits


def read_array(bundle: Bundle, record: Mapping[str, Any]) -> npt.NDArray[Any]:
    """A recorded .npy file. Raises BundleError."""
    path = bundle.file(record)
    try:
        return np.asarray(np.load(str(path), allow_pickle=False))
    except (ValueError, OSError) as error:
        raise BundleError("an array of the bundle cannot be read", "%s (%s)" % (path, error)) from error
