"""The golden cases in three parts, on the device: pixels, the backend against its graph, the graph against PyTorch.

Python 3.8. Each part has its tolerance: pixels are equal; fp32 and fp16 logits lie within the manifest's share of
their spread; INT8 keeps top-1 where the margin is over two quanta, and its mean KL below the manifest's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List, Optional

import numpy as np
from PIL import features

from edgetl.bundle import Bundle, Check
from edgetl.device.chosen import Chosen
from edgetl.errors import BundleError, EdgetlError
from edgetl.images import read_bytes, to_input
from edgetl.measure.parity import comparable, golden, parity, read_array, tolerance, top1_changes
from edgetl.monitor import SILENT, Monitor
from edgetl.runtime import run_pixels
from edgetl.spec import Precision

if TYPE_CHECKING:
    import numpy.typing as npt

    Logits = npt.NDArray[np.float32]
    Pixels = npt.NDArray[np.uint8]

MAX_BATCH = 8


def verify(bundle: Bundle, chosen: List[Chosen], monitor: Monitor = SILENT) -> Dict[str, Any]:
    """{"ok", "checks": [...]} of cli.md's verify, for each of `chosen`; "error" beside them where one fails.

    Raises BundleError for a bundle without golden cases: then nothing could be shown.
    """
    cases = golden(bundle)
    if cases is None:
        raise BundleError("the bundle has no golden cases to verify with", bundle.path, "make it again with finetune")
    pixels, reference = cases
    checks = [check_pixels(bundle, pixels)]
    for done, one in enumerate(chosen, start=1):
        checks += _checked(one, pixels, reference)
        monitor.progress("verify", done, len(chosen))
    bad = [check for check in checks if not check.ok]
    result: Dict[str, Any] = {"ok": not bad, "n": len(pixels), "checks": [check.as_json() for check in checks]}
    if bad:
        said = "%s: %s, allowed %s" % (bad[0].name, bad[0].value, bad[0].tolerance)
        result["error"] = EdgetlError(
            "%d of %d checks fail" % (len(bad), len(checks)), said, "do not serve with this: build or push it again"
        ).as_json()
    return result


def check_pixels(bundle: Bundle, pixels: Pixels) -> Check:
    """Decode and resize of the golden photos give the very pixels that the PC saw; the value is how many do not."""
    photos = sorted(bundle.artifacts("golden-image"), key=lambda r: int(r["index"]))
    name = "decode and resize of %d photos" % len(photos)
    if not photos:
        return Check("decode and resize: no golden photos travelled", True, None, "equal")
    worst, wrong = 0, 0
    for record in photos:
        path = bundle.file(record)
        seen = to_input(read_bytes(path), bundle.preprocess, path).astype(np.int16)
        apart = int(np.abs(seen - pixels[int(record["index"])]).max())
        worst, wrong = max(worst, apart), wrong + (apart > 0)
    if not wrong:
        return Check(name, True, "equal", "equal")
    said = "%d differ, by %d at most" % (wrong, worst)
    if not features.check_feature("libjpeg_turbo"):
        said += "; this Pillow decodes JPEG without libjpeg-turbo: use the system's python3-pil"
    return Check(name, False, said, "equal")


def _checked(one: Chosen, pixels: Pixels, reference: Logits) -> List[Check]:
    try:
        backend = one.opens()
        try:
            logits = run_pixels(backend, pixels, MAX_BATCH)
        finally:
            backend.close()
        return against_graph(one, logits) + against_pytorch(one, reference, logits)
    except EdgetlError as error:
        return [Check(one.name, False, str(error), None)]


def against_graph(one: Chosen, logits: Logits) -> List[Check]:
    """`logits` (N, C) beside those that the graph gave on the PC when it was made; nothing where none were kept."""
    kept = one.bundle.artifacts("graph-logits", made_from=one.graph_sha256)
    if not kept:
        return []
    recorded, given = comparable(read_array(one.bundle, kept[-1]), logits, _output(one), None)
    return _apart(one, recorded, given, one.name + " against its graph", tolerance(one.bundle, Precision.INT8, "kl"))


def against_pytorch(one: Chosen, reference: Logits, logits: Logits) -> List[Check]:
    """`logits` (N, C) beside PyTorch's; an INT8 graph's own distance, recorded when it was made, is allowed for."""
    graph = next((r for r in one.bundle.artifacts("graph") if r["sha256"] == one.graph_sha256), {})
    then = float((graph.get("parity") or {}).get("kl", 0.0)) if one.precision is Precision.INT8 else 0.0
    wanted, given = comparable(reference, logits, _output(one), graph.get("temperature"))
    name = one.name + " against PyTorch"
    if one.precision is Precision.INT8:  # its top-1 changes are the contract's affair, not a fault of this device
        found = parity(wanted, given)
        allowed = 1.5 * then + 1e-3
        return [Check(name + ": KL", found.kl <= allowed, round(found.kl, 8), round(allowed, 8))]
    return _apart(one, wanted, given, name, 0.0)


def _apart(one: Chosen, reference: Logits, logits: Logits, name: str, kl: float) -> List[Check]:
    found = parity(reference, logits)
    if one.precision is not Precision.INT8:
        allowed = tolerance(one.bundle, one.precision, "relative")
        return [Check(name, found.relative <= allowed, round(found.relative, 8), allowed)]
    _, clear = top1_changes(reference, logits)
    return [
        Check(name + ": KL", found.kl <= kl, round(found.kl, 8), kl),
        Check(name + ": top-1 changes with a margin over two quanta", clear == 0, clear, 0),
    ]


def _output(one: Chosen) -> Optional[str]:
    """What the graph that runs ends in: "logits" or "probabilities"."""
    graph = next((r for r in one.bundle.artifacts("graph") if r["sha256"] == one.graph_sha256), {})
    output = graph.get("output")
    return None if output is None else str(output)
