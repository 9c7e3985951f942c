"""A small bundle with graphs and splits, as commands leave it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from edgetl.bundle import NewArtifact, create, locked
from edgetl.images import ReadOptions, read_data, split_digest
from edgetl.spec import Preprocess

MakeGraph = Callable[..., Path]
LABELS = ("a", "b", "c")


@pytest.fixture
def make_bundle(tiny_graph: MakeGraph, make_folder: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """A bundle as `edgetl adopt` and `edgetl export --int8` leave it, with splits of its own."""

    def make(
        fractions: tuple[float, float] = (0.25, 0.25), graphs: Sequence[str] = ("int8",), profile: str = "trt10"
    ) -> Path:
        photos = make_folder(LABELS, n=8, size=20)
        data = read_data(str(photos), ReadOptions(val_fraction=fractions[0], test_fraction=fractions[1]))
        splits = tmp_path / "splits.json"
        splits.write_text(json.dumps(data.to_json()))
        source = tiny_graph(name="source")
        new = [
            NewArtifact(
                source, "graphs/source-{sha12}.onnx", {"kind": "source-graph", "made_by": "adopt", "precision": "fp32"}
            ),
            NewArtifact(splits, "splits-{sha12}.json", {"kind": "splits", "made_by": "adopt"}),
        ]
        for precision in graphs:
            record = {"kind": "graph", "made_by": "export", "profile": profile, "precision": precision}
            name = f"graphs/{profile}/{precision}-{{sha12}}.onnx"
            new.append(NewArtifact(tiny_graph(precision=precision), name, {**record, "input": "float32"}))
        manifest = {
            "task": "classification",
            "made_by": "adopt",
            "labels": list(LABELS),
            "preprocess": Preprocess(size=16, resize=16).to_json(),
            "model": {},
            "splits": {k: {"n": len(v), "digest": split_digest(v)} for k, v in data.splits.items()},
            "tolerances": {},
            "training": {},
        }
        with locked(tmp_path / "bundle"):
            create(tmp_path / "bundle", manifest, new, {"data": str(photos)})
        return tmp_path / "bundle"

    return make
