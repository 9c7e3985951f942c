"""One suite for every backend: what `edgetl.runtime.Backend` promises, and that all agree on one network.

The same seeded network stands behind each: PyTorch from the bundle's checkpoint, onnxruntime on its graph,
TensorRT on an engine of that graph (skipped, with the reason, where it cannot load).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetl.bundle import Bundle, NewArtifact, create, locked
from edgetl.errors import BackendError
from edgetl.runtime import EVIDENCE, Backend
from edgetl.runtime.binding import TENSORRT, TENSORRT_RTX

SIZE, LABELS, MAX_BATCH = 32, ["ant", "bee", "cat", "dog"], 4
BACKBONE = "shufflenet_v2_x0_5"

# Relative to the spread of the logits: fp32 against fp32 of another library; and int8, whose answers are its own.
TOLERANCE, INT8_TOLERANCE = 1e-3, 0.15


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a checkpoint and its fp32 graph, float32 in."""
    import torch
    from safetensors.torch import save_file

    from edgetl.transfer import backbones
    from edgetl.transfer.network import deployed

    folder = tmp_path_factory.mktemp("conformance")
    torch.manual_seed(0)
    network = backbones.build(BACKBONE, len(LABELS), SIZE, {}, init=True).eval()
    for module in network.modules():  # fresh statistics (0, 1) would make the normalisation a no-op
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    save_file(network.state_dict(), str(folder / "checkpoint.safetensors"))
    preprocess = {"size": SIZE, "resize": SIZE, "fit": "crop", "interpolation": "bilinear"}
    preprocess |= {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    manifest: dict[str, Any] = {"task": "classification", "made_by": "finetune", "labels": LABELS, "splits": {}}
    manifest |= {"preprocess": preprocess, "model": {"backbone": BACKBONE, "backbone_args": {}}}
    manifest |= {"tolerances": {}, "training": {}}
    checkpoint = {"kind": "checkpoint", "made_by": "finetune"}
    path = folder / "bundle"
    with locked(path):
        create(
            path,
            manifest,
            [NewArtifact(folder / "checkpoint.safetensors", "checkpoint-{sha12}.safetensors", checkpoint)],
            {},
        )
    axes = {"image": {0: "batch"}, "logits": {0: "batch"}}
    example = torch.rand(2, 3, SIZE, SIZE) * 255
    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["logits"], "dynamic_axes": axes}
    torch.onnx.export(
        deployed(Bundle.open(path)), (example,), str(folder / "fp32.onnx"), dynamo=False, opset_version=17, **names
    )
    graph = {
        "kind": "graph",
        "made_by": "export",
        "profile": "trt10",
        "precision": "fp32",
        "input": "float32",
        "met": None,
    }
    from edgetl.bundle import writing

    with writing(path, "export") as (opened, _):
        opened.add([NewArtifact(folder / "fp32.onnx", "graphs/trt10/fp32-{sha12}.onnx", graph)])
    return path


def torch_backend(bundle: Path) -> Backend:
    from edgetl.transfer.network import TorchBackend

    return TorchBackend(Bundle.open(bundle), threads=1)


def ort_backend(bundle: Path) -> Backend:
    from edgetl.runtime.ort import OrtBackend

    opened = Bundle.open(bundle)
    return OrtBackend(opened.file(opened.artifact("graph", precision="fp32")), threads=1)


def ort_int8_backend(bundle: Path) -> Backend:
    """The same network in onnxruntime's own int8 kernels, calibrated on the images of these tests."""
    from edgetl.graph import surgery
    from edgetl.graph.calibrate import Calibration
    from edgetl.graph.cpu import counted, cpu_placement
    from edgetl.graph.cpu_qdq import cpu_inserted, cpu_ranges
    from edgetl.graph.placement import Placement
    from edgetl.runtime.ort import OrtBackend

    opened = Bundle.open(bundle)
    source = surgery.tidied(surgery.load(opened.file(opened.artifact("graph", precision="fp32"))))
    products = Placement({}, {(n.name, 1): 0 for n in source.graph.node if n.op_type in ("Conv", "Gemm")}, ())
    calibration = Calibration(source, counted(source, products), threads=1)
    calibration.feed(image.transpose(1, 2, 0).astype(np.uint8) for image in images(4 * MAX_BATCH))
    placed = cpu_placement(source, products)
    limits = cpu_ranges(calibration.statistics.histograms, "max", placed.groups)
    return OrtBackend(surgery.save(cpu_inserted(source, placed, limits), bundle.parent / "cpu-int8.onnx"), threads=1)


def tensorrt_backend(bundle: Path, flavour: str = TENSORRT, **how: bool) -> Backend:
    from edgetl.engine import BuildOptions, build
    from edgetl.runtime.trt import TrtBackend
    from edgetl.spec import BatchProfile, Precision

    try:
        engine = build(bundle, BuildOptions(Precision.FP32, flavour, batch=BatchProfile(1, 1, MAX_BATCH)))["artifacts"][
            0
        ]
        return TrtBackend(bundle / engine["file"], flavour, **how)
    except BackendError as error:
        pytest.skip(str(error))


def rtx_backend(bundle: Path) -> Backend:
    return tensorrt_backend(bundle, TENSORRT_RTX)


MAKERS: dict[str, Callable[[Path], Backend]] = {
    "torch": torch_backend,
    "onnxruntime": ort_backend,
    "onnxruntime-int8": ort_int8_backend,
    "tensorrt": tensorrt_backend,
    "tensorrt-cuda-graph": partial(tensorrt_backend, cuda_graph=True),
    "tensorrt-mapped": partial(tensorrt_backend, mapped=True),
    "tensorrt_rtx": rtx_backend,
}
GPU_ONLY = ("tensorrt", "tensorrt-cuda-graph", "tensorrt-mapped", "tensorrt_rtx")


@pytest.fixture(params=[pytest.param(n, marks=pytest.mark.gpu) if n in GPU_ONLY else n for n in MAKERS])
def backend(request: pytest.FixtureRequest, bundle: Path) -> Iterator[Backend]:
    made = MAKERS[request.param](bundle)
    yield made
    made.close()


def images(n: int, seed: int = 0) -> Any:
    """float32 (n, 3, SIZE, SIZE), 0-255: noise over a different flat colour each, so that rows differ."""
    rng = np.random.default_rng(seed)
    base = rng.uniform(0, 200, (n, 3, 1, 1))
    return (base + rng.uniform(0, 55, (n, 3, SIZE, SIZE))).astype(np.float32)


def close(one: Any, other: Any, tolerance: float = TOLERANCE) -> bool:
    return bool(np.abs(one - other).max() <= tolerance * (other.max() - other.min()))


def test_it_says_what_it_is(backend: Backend) -> None:
    assert backend.name in MAKERS and backend.provider
    assert backend.evidence in EVIDENCE and backend.evidence != "simulated"
    assert (backend.input.name, backend.input.dtype) == ("image", "float32")
    assert backend.input.shape == (-1, 3, SIZE, SIZE)


@pytest.mark.parametrize("n", [1, 3, MAX_BATCH])
def test_logits_are_float32_rows(backend: Backend, n: int) -> None:
    out = backend.run(images(n))
    assert isinstance(out, np.ndarray) and out.dtype == np.float32 and out.shape == (n, len(LABELS))
    assert np.isfinite(out).all() and np.ptp(out) > 0


def test_a_row_does_not_depend_on_its_neighbours(backend: Backend) -> None:
    batch = images(MAX_BATCH)
    together = backend.run(batch)
    alone = np.concatenate([backend.run(batch[i : i + 1]) for i in range(MAX_BATCH)])
    assert close(together, alone)
    assert close(backend.run(batch[::-1]), together[::-1]), "a view with negative strides is an array too"


def test_running_twice_gives_the_same_and_leaves_older_results_alone(backend: Backend) -> None:
    first = backend.run(images(2))
    kept = first.copy()
    backend.run(images(2, seed=9))
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(backend.run(images(2)), kept)


def test_the_input_is_not_written_to(backend: Backend) -> None:
    batch = images(2)
    kept = batch.copy()
    batch.setflags(write=False)
    backend.run(batch)
    np.testing.assert_array_equal(batch, kept)


@pytest.mark.parametrize(
    "bad",
    [
        images(1).astype(np.float64),
        images(1).astype(np.uint8),
        images(1).transpose(0, 2, 3, 1),
        images(1)[:, :, : SIZE - 1],
        images(1)[0],
        images(1)[:0],
    ],
    ids=["float64", "uint8", "channels last", "smaller", "no batch axis", "empty"],
)
def test_another_input_is_an_error_and_never_an_answer(backend: Backend, bad: Any) -> None:
    with pytest.raises(BackendError):
        backend.run(bad)
    assert backend.run(images(1)).shape == (1, len(LABELS)), "and the backend lives on"


def test_device_time_is_a_gpus_alone(backend: Backend) -> None:
    backend.run(images(1))
    time = backend.device_ms()
    if backend.evidence == "host-cpu":
        assert time is None
    elif backend.name != "onnxruntime":  # which tells none even on a GPU
        assert time is not None and time > 0


def test_closing_twice_is_fine_and_running_then_is_an_error(backend: Backend) -> None:
    backend.close()
    backend.close()
    with pytest.raises(BackendError):
        backend.run(images(1))


def test_it_agrees_with_the_reference(backend: Backend, bundle: Path) -> None:
    reference = torch_backend(bundle)
    batch = np.concatenate([images(MAX_BATCH, seed) for seed in range(4)])
    want = reference.run(batch)
    got = np.concatenate([backend.run(batch[i : i + MAX_BATCH]) for i in range(0, len(batch), MAX_BATCH)])
    if getattr(backend, "metadata", {}).get("profile") == "cpu":
        assert close(got, want, INT8_TOLERANCE) and not close(got, want)
        return
    assert close(got, want)
    np.testing.assert_array_equal(got.argmax(axis=1), want.argmax(axis=1))
