"""What travels for a precision: the graph that it is built from, which on TensorRT 8 is another one for fp16."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgetl.bundle import Bundle, NewArtifact, create, locked
from edgetl.deploy.cargo import Cargo, pack
from edgetl.errors import ContractUnmet, InputError
from edgetl.spec import Precision, Profile

PREPROCESS = {"size": 8, "resize": 8, "fit": "crop", "interpolation": "bilinear", "mean": [0, 0, 0], "std": [1, 1, 1]}


def bundle_of(folder: Path, *graphs: tuple[str, str], met: bool | None = True) -> Bundle:
    """A bundle with these (profile, precision) graphs, of a few bytes each."""
    new = []
    for profile, precision in graphs:
        source = folder / f"{profile}-{precision}"
        source.write_text(source.name)
        record: dict[str, Any] = {"kind": "graph", "made_by": "export", "profile": profile, "precision": precision}
        record |= {"input": "float32", "met": met if precision == "int8" else None}
        new.append(NewArtifact(source, f"graphs/{profile}/{precision}-{{sha12}}.onnx", record))
    manifest = {"task": "classification", "made_by": "finetune", "labels": ["a", "b"], "preprocess": PREPROCESS}
    manifest |= {"model": {}, "splits": {}, "tolerances": {}, "training": {}}
    with locked(folder / "bundle"):
        return create(folder / "bundle", manifest, new, {})


def found(cargo: Cargo) -> tuple[list[str], list[str]]:
    """(precisions to be had, precisions of the graphs that travel)."""
    assert isinstance(cargo.manifest.source, bytes)
    records = json.loads(cargo.manifest.source)["artifacts"]
    assert {r["sha256"] for r in records} <= {piece.sha256 for piece in cargo.pieces}
    return sorted(r["precision"] for r in cargo.records), sorted(r["precision"] for r in records)


@pytest.mark.parametrize("there", [("fp32",), ("fp32", "fp16"), ("fp32", "fp16", "int8")])
def test_fp16_of_tensorrt_8_is_built_from_the_fp32_graph(tmp_path: Path, there: tuple[str, ...]) -> None:
    bundle = bundle_of(tmp_path, *(("trt8", precision) for precision in there))
    variants, travelling = found(pack(bundle, (Profile.TRT8,), Precision.FP16, False))
    assert variants == ["fp16"]
    assert travelling == sorted({"fp32", *there} - {"int8"})


def test_a_precision_that_is_not_there_is_no_other_one(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, ("trt10", "fp32"), ("trt8", "fp32"))
    for profile, precision in ((Profile.TRT10, Precision.FP16), (Profile.TRT8, Precision.INT8)):
        with pytest.raises(InputError, match="no graph for this device") as error:
            pack(bundle, (profile,), precision, False)
        assert "trt10/fp32, trt8/fp32" in str(error.value)


def test_all_of_a_profile_travels_where_nothing_is_asked_for(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, *((profile, p) for profile in ("trt8", "trt10") for p in ("fp32", "fp16", "int8")))
    for profile in (Profile.TRT8, Profile.TRT10):
        cargo = pack(bundle, (profile,), None, False)
        assert found(cargo) == (["fp16", "fp32", "int8"], ["fp16", "fp32", "int8"])
        assert {r["profile"] for r in cargo.records} == {str(profile)}


def test_a_graph_that_missed_its_contract_stays_here(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, ("trt10", "fp32"), ("trt10", "int8"), met=False)
    assert found(pack(bundle, (Profile.TRT10,), None, False)) == (["fp32"], ["fp32"])
    assert found(pack(bundle, (Profile.TRT10,), None, True)) == (["fp32", "int8"], ["fp32", "int8"])
    with pytest.raises(ContractUnmet):
        pack(bundle, (Profile.TRT10,), Precision.INT8, False)
