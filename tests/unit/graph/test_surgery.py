from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetl.errors import GraphError
from edgetl.graph import surgery
from edgetl.runtime.ort import OrtBackend
from edgetl.spec import InputKind, Precision, Preprocess, Profile

SPEC = Preprocess(8, 8)


def model(opset: int = 13, op: str = "GlobalAveragePool") -> onnx.ModelProto:
    weight = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    pool = (
        helper.make_node("ReduceMean", ["c"], ["p"], axes=[2, 3], keepdims=1)
        if op == "ReduceMean"
        else helper.make_node("GlobalAveragePool", ["c"], ["p"])
    )
    nodes = [helper.make_node("Conv", ["image", "w"], ["c"]), pool, helper.make_node("Flatten", ["p"], ["logits"])]
    graph = helper.make_graph(
        nodes,
        "made by someone",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(weight, "w")],
        doc_string="/home/someone/model.py",
    )
    out = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)
    out.producer_name, out.producer_version = "pytorch", "2.15"
    return out


def images(n: int = 3) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)


def nchw(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32)


def run(found: onnx.ModelProto, path: Path, batch: np.ndarray) -> np.ndarray:
    return OrtBackend(surgery.save(found, path)).run(batch)


def test_tidied_graphs_tell_nothing_of_their_maker_and_nodes_have_names() -> None:
    found = surgery.tidied(model())
    text = found.SerializeToString()
    assert b"someone" not in text
    assert b"2.15" not in text
    assert all(node.name for node in found.graph.node)
    assert len({node.name for node in found.graph.node}) == len(found.graph.node)


def test_the_same_graph_gives_the_same_bytes_whatever_the_order_of_its_weights(tmp_path: Path) -> None:
    one, other = model(), model()
    for m in (one, other):
        m.graph.initializer.append(numpy_helper.from_array(np.zeros(4, np.float32), "b"))
        m.graph.node[0].input.append("b")
    other.graph.initializer.reverse()
    paths = [surgery.save(surgery.anonymous(m), tmp_path / f"{i}.onnx") for i, m in enumerate((one, other))]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_uint8_is_cast_before_it_is_transposed_and_says_the_same(tmp_path: Path) -> None:
    plain, pixels = surgery.anonymous(model()), images()
    found = surgery.with_ends(plain, InputKind.UINT8, probabilities=False)
    assert [node.op_type for node in found.graph.node[:2]] == ["Cast", "Transpose"]
    expected = run(plain, tmp_path / "a.onnx", nchw(pixels))
    assert np.array_equal(run(found, tmp_path / "b.onnx", pixels), expected)


def test_probabilities_are_the_softmax_of_the_logits(tmp_path: Path) -> None:
    plain, batch = surgery.anonymous(model()), nchw(images()) / 255
    found = surgery.with_ends(plain, InputKind.FLOAT32, probabilities=True)
    logits = run(plain, tmp_path / "a.onnx", batch)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert [o.name for o in found.graph.output] == ["probabilities"]
    # OrtBackend answers with logits: the logarithm of what the graph gives.
    assert np.allclose(np.exp(run(found, tmp_path / "b.onnx", batch)), expected, atol=1e-6)


def test_normalisation_in_front_is_the_preprocess(tmp_path: Path) -> None:
    plain, pixels = surgery.anonymous(model()), images()
    mean, std = (np.array(v, np.float32).reshape(1, 3, 1, 1) for v in (SPEC.mean, SPEC.std))
    found = run(surgery.with_normalisation(plain, SPEC), tmp_path / "a.onnx", nchw(pixels))
    assert np.allclose(found, run(plain, tmp_path / "b.onnx", (nchw(pixels) / 255 - mean) / std), atol=1e-4)


def test_a_relabel_keeps_the_answers_where_no_operator_changed(tmp_path: Path) -> None:
    high = surgery.anonymous(model(19))
    low = surgery.lowered(high, 13)
    assert surgery.opset_of(low) == 13
    batch = nchw(images())
    assert np.array_equal(run(low, tmp_path / "a.onnx", batch), run(high, tmp_path / "b.onnx", batch))


def test_a_relabel_over_a_changed_operator_is_refused_by_name() -> None:
    high = surgery.raised(model(13, "ReduceMean"), 19)
    with pytest.raises(GraphError, match=r"ReduceMean .*opset 18"):
        surgery.lowered(high, 13)


def test_a_foreign_operator_is_refused_by_name() -> None:
    high = model(19)
    high.graph.node[0].domain = "com.microsoft"
    with pytest.raises(GraphError, match=r"com\.microsoft\.Conv"):
        surgery.lowered(high, 13)


def test_raising_keeps_the_names_of_nodes_and_the_answers(tmp_path: Path) -> None:
    low = surgery.anonymous(model(13, "ReduceMean"))
    high = surgery.raised(low, 19)
    assert surgery.opset_of(high) == 19
    assert {n.name for n in low.graph.node} <= {n.name for n in high.graph.node}
    batch = nchw(images())
    assert np.allclose(run(low, tmp_path / "a.onnx", batch), run(high, tmp_path / "b.onnx", batch), atol=1e-4)


@pytest.mark.parametrize(("profile", "ir"), [(Profile.TRT8, 8), (Profile.TRT10, 9)])
def test_finished_graphs_carry_labels_and_preprocess(profile: Profile, ir: int) -> None:
    found = surgery.finished(model(), profile, Precision.INT8, ["Gänseblümchen", "rose"], SPEC)
    values = {p.key: p.value for p in found.metadata_props}
    assert json.loads(values["labels"]) == ["Gänseblümchen", "rose"]
    assert Preprocess.from_json(json.loads(values["preprocess"])) == SPEC
    assert (values["precision"], values["profile"], found.ir_version) == ("int8", str(profile), ir)


def test_a_file_that_is_no_onnx_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(b"not a model" * 20)
    with pytest.raises(GraphError, match=r"not an ONNX file: .*x\.onnx"):
        surgery.load(path)
    with pytest.raises(GraphError, match="no such ONNX file"):
        surgery.load(tmp_path / "y.onnx")


def test_a_broken_graph_is_not_written(tmp_path: Path) -> None:
    broken = model()
    broken.graph.node[1].input[0] = "nobody makes this"
    with pytest.raises(GraphError, match="checker"):
        surgery.save(broken, tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


def test_named_ends_do_not_clash_with_inner_tensors(tmp_path: Path) -> None:
    found = model()
    for node in found.graph.node:
        node.input[:] = ["x" if n == "image" else "image" if n == "c" else n for n in node.input]
        node.output[:] = ["y" if n == "logits" else "image" if n == "c" else n for n in node.output]
    found.graph.input[0].name, found.graph.output[0].name = "x", "y"
    batch = nchw(images())
    named = surgery.io_named(found)
    expected = run(surgery.anonymous(model()), tmp_path / "a.onnx", batch)
    assert np.array_equal(run(named, tmp_path / "b.onnx", batch), expected)
