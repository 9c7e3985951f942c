"""An ONNX file's metadata, read without onnx or onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgetl.errors import BackendError
from edgetl.runtime.metadata import metadata
from edgetl.runtime.ort import OrtBackend, simulated


def model(props: dict[str, str]) -> onnx.ModelProto:
    """One Add of a constant, with every kind of top-level field around the metadata."""
    weight = numpy_helper.from_array(np.full((1, 3, 4, 4), 7, np.float32), "weight")
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 3, 4, 4]) for n in ("image", "logits")]
    graph = helper.make_graph(
        [helper.make_node("Add", ["image", "weight"], ["logits"])], "g", ends[:1], ends[1:], [weight]
    )
    out = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    out.model_version = -1  # a number of ten bytes
    helper.set_model_props(out, props)
    return out


@given(st.dictionaries(st.text(), st.text(), max_size=5))
def test_it_is_what_onnx_reads(tmp_path_factory: pytest.TempPathFactory, props: dict[str, str]) -> None:
    path = tmp_path_factory.mktemp("metadata") / "g.onnx"
    path.write_bytes(model(props).SerializeToString())
    assert metadata(path) == props


def test_it_is_what_onnxruntime_reads(tiny_graph: Callable[..., Path]) -> None:
    backend = OrtBackend(tiny_graph(precision="int8"))
    assert backend._session is not None
    assert backend.metadata == dict(backend._session.get_modelmeta().custom_metadata_map) == {"precision": "int8"}


def test_a_file_cut_anywhere_is_an_error_or_a_shorter_list(tmp_path: Path) -> None:
    whole = model({"profile": "cpu", "labels": "a"}).SerializeToString()
    path = tmp_path / "cut.onnx"
    outcomes = set()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        try:
            found = metadata(path)
            assert found.items() <= {"profile": "cpu", "labels": "a"}.items()
            outcomes.add(len(found))
        except BackendError as error:
            outcomes.add(str(error).partition(":")[0])
    assert outcomes == {0, 1, "not an ONNX file"}


@pytest.mark.parametrize("data", [b"not a graph", b"\x80" * 20, b"\x0b"])
def test_anything_else_is_one_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(data)
    with pytest.raises(BackendError, match="not an ONNX file"):
        metadata(path)
    with pytest.raises(BackendError, match="no such graph"):
        metadata(tmp_path / "none.onnx")


@pytest.mark.parametrize(
    ("facts", "as_written"), [({}, True), ({"profile": "trt10"}, True), ({"profile": "cpu"}, False)]
)
def test_only_a_graph_of_profile_cpu_is_handed_to_onnxruntimes_own_kernels(
    tmp_path: Path, facts: dict[str, str], as_written: bool
) -> None:
    assert simulated(facts) is as_written
    path = tmp_path / "g.onnx"
    path.write_bytes(model({**facts, "precision": "int8"}).SerializeToString())
    assert OrtBackend(path).evidence == ("simulated" if as_written else "host-cpu")
