"""What a serving configuration has to know of a bundle: names, shapes, labels, and how pixels become input."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgetl.bundle import Bundle
from edgetl.errors import BundleError, InputError
from edgetl.spec import InputKind, Precision, Preprocess, Profile, TensorSpec, image_input


@dataclass(frozen=True)
class Served:
    """One graph of a bundle, as the engine that is built from it will look from outside.

    `input` is float32 (-1, 3, S, S) or uint8 (-1, S, S, 3), RGB 0-255; the output is float32 (-1, C), named
    `output`, which is "logits" or "probabilities".
    """

    name: str
    labels: tuple[str, ...]
    preprocess: Preprocess
    profile: Profile
    precision: Precision
    input: TensorSpec
    output: str
    sha256: str
    max_batch: int = 8
    remark: str = ""  # a line of what was measured of the target, for those who read its files

    @property
    def size(self) -> int:
        """Pixels a side of the input."""
        return self.preprocess.size

    @property
    def nhwc(self) -> bool:
        """Whether the input is uint8 (B, S, S, 3)."""
        return self.input.dtype == "uint8"


def served(bundle: Bundle, precision: Precision, profile: Profile, kind: InputKind, max_batch: int = 8) -> Served:
    """The newest graph of `bundle` with these properties.

    Raises BundleError where there is none, InputError for a graph that missed its contract or a label that a
    line of text cannot hold.
    """
    want = {"profile": str(profile), "precision": str(precision), "input": str(kind)}
    records = [r for r in bundle.artifacts("graph", **want) if not r.get("stale")]
    if not records:
        asked = " ".join(want.values())
        raise BundleError("the bundle has no such graph", f"{bundle.path}: {asked}", "make it with `edgetl export`")
    record = records[-1]
    if record.get("met") is False:
        raise InputError("this graph missed its contract", record["file"], "serve fp16, or export with another method")
    broken = [label for label in bundle.labels if "\n" in label or "\r" in label]
    if broken:
        raise InputError(
            "a label with a line break cannot be written to a labels file", repr(broken[0]), "rename the class"
        )
    return Served(
        name=plain_name(bundle.path.resolve().name),
        labels=tuple(bundle.labels),
        preprocess=bundle.preprocess,
        profile=profile,
        precision=precision,
        input=image_input(kind, bundle.preprocess.size),
        output=record.get("output", "logits"),
        sha256=record["sha256"],
        max_batch=max_batch,
    )


def plain_name(text: str) -> str:
    """`text` as a name that file systems, shells and servers take: letters, digits, "-", "_" and "."."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text).strip("._-") or "model"


def check_name(name: str | None) -> str | None:
    """A deployment's --name as it is. Raises InputError for one that a folder or a unit could not have."""
    if name is not None and plain_name(name) != name:
        raise InputError("--name wants letters, digits, - _ and .", name, "for example " + plain_name(name))
    return name


def require_probabilities(model: Served, who: str) -> None:
    """Raise InputError unless the graph ends in a Softmax: `who` reads its output as confidences."""
    if model.output != "probabilities":
        raise InputError(
            f"{who} reads the output as probabilities", "this graph ends in logits", "export --output probabilities"
        )
