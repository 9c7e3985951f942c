"""A small bundle, and a folder to make artifacts in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgetl.bundle import Bundle, NewArtifact, create, locked, sha256_bytes
from edgetl.spec import Preprocess

MakeArtifact = Callable[..., NewArtifact]
MakeBundle = Callable[..., Bundle]


def manifest(**changes: Any) -> dict[str, Any]:
    """What a stage hands to `create`."""
    fields: dict[str, Any] = {
        "task": "classification",
        "made_by": "finetune",
        "labels": ["daisy", "雛菊"],
        "preprocess": Preprocess(64, 72).to_json(),
        "model": {"backbone": "resnet18", "backbone_args": {}, "num_classes": 2, "weights": None},
        "splits": {"train": {"n": 8, "digest": sha256_bytes(b"train")}},
        "tolerances": {"fp32": {"relative": 1e-3}, "int8": {"kl": 1e-3}},
        "training": {"strategy": "lp-ft", "metrics": {"accuracy": 0.5}},
    }
    return {**fields, **changes}


@pytest.fixture
def make_artifact(tmp_path: Path) -> MakeArtifact:
    """make_artifact(b"bytes", name="graphs/trt10/int8-{sha12}.onnx", kind="graph", ...)."""

    def make(data: bytes, name: str = "graphs/trt10/int8-{sha12}.onnx", **record: Any) -> NewArtifact:
        source = tmp_path / "sources" / sha256_bytes(data + name.encode())
        source.parent.mkdir(exist_ok=True)
        source.write_bytes(data)
        return NewArtifact(source, name, {"kind": "graph", "made_by": "export", **record})

    return make


@pytest.fixture
def make_bundle(tmp_path: Path, make_artifact: MakeArtifact) -> MakeBundle:
    """make_bundle(name="flowers", overwrite=False, **manifest fields) -> Bundle with a checkpoint."""

    def make(name: str = "flowers", overwrite: bool = False, weights: bytes = b"weights", **changes: Any) -> Bundle:
        checkpoint = make_artifact(
            weights, "checkpoint-{sha12}.safetensors", kind="checkpoint", made_by=changes.get("made_by", "finetune")
        )
        with locked(tmp_path / name):
            local = {"data": "/photos", "weights": weights.decode()}
            return create(tmp_path / name, manifest(**changes), [checkpoint], local, overwrite)

    return make
