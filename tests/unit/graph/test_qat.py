"""Quantisation-aware training: the same arithmetic as the graph that ships, and nearer to fp32 afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from edgetl.bundle import Bundle
from edgetl.errors import GraphError, InputError
from edgetl.graph import qdq, surgery
from edgetl.graph.calibrate import Calibration
from edgetl.graph.export import source_graph, source_of_network
from edgetl.graph.pixels import Pixels
from edgetl.graph.placement import Placement
from edgetl.graph.qat import QatOptions, Trained, train, trained
from edgetl.graph.qat.network import GraphNetwork, StepSize
from edgetl.images import to_batch
from edgetl.monitor import SILENT, Monitor
from edgetl.runtime.ort import OrtBackend
from edgetl.spec import Preprocess
from edgetl.transfer import backbones
from edgetl.transfer.network import Deployed

OPTIONS = QatOptions(epochs=12, batch=16, lr=3e-4, threads=1)  # a tiny network may take larger steps
WEIGHTED = ("Conv", "Gemm", "MatMul")


def everywhere(source: onnx.ModelProto) -> Placement:
    """Q/DQ on the inputs and weights of every convolution and product, and on one side of residual additions."""
    constants = {t.name: t for t in source.graph.initializer}
    activations: dict[str, list[tuple[str, int]]] = {}
    weights: dict[tuple[str, int], int | None] = {}
    for node in source.graph.node:
        if node.op_type in WEIGHTED and node.input[1] in constants:
            transposed = any(a.name == "transB" and a.i for a in node.attribute)
            weights[node.name, 1] = 0 if node.op_type == "Conv" or transposed else 1
            activations.setdefault(node.input[0], []).append((node.name, 0))
        elif node.op_type == "Add" and not constants.keys() & set(node.input):
            activations.setdefault(node.input[1], []).append((node.name, 1))
    return Placement({name: tuple(uses) for name, uses in activations.items()}, weights, ())


def peaks(source: onnx.ModelProto, placement: Placement, pixels: Pixels) -> dict[str, float]:
    calibration = Calibration(source, list(placement.activations), threads=1)
    calibration.feed(image for batch in pixels.batches() for image in batch)
    return {name: calibration.statistics.peaks[name] for name in placement.activations}


def noise(path: Path, n: int, size: int, seed: int = 0) -> Pixels:
    """Images of coloured gradients and noise: a task no label describes."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 1, size)[None, :, None, None] * rng.uniform(0, 155, (n, 1, 1, 3))
    return Pixels.of_array(path, (ramp + rng.uniform(0, 100, (n, size, size, 3))).astype(np.uint8))


def answers(model: onnx.ModelProto, pixels: Pixels, folder: Path) -> np.ndarray:
    backend = OrtBackend(surgery.save(model, folder / "answers.onnx"), threads=1)
    try:
        return np.concatenate([backend.run(to_batch(batch, "float32")) for batch in pixels.batches()])
    finally:
        backend.close()


def divergence(reference: np.ndarray, given: np.ndarray) -> float:
    wanted, found = (torch.log_softmax(torch.from_numpy(x), dim=1) for x in (reference, given))
    return float(torch.nn.functional.kl_div(found, wanted, reduction="batchmean", log_target=True))


def exported(name: str, size: int, folder: Path, **arguments: object) -> onnx.ModelProto:
    torch.manual_seed(0)
    network = Deployed(backbones.build(name, 5, size, dict(arguments)), Preprocess(size, size))
    settle(network, noise(folder / "settle.pixels", 16, size))
    return source_of_network(network, backbones.row(name), size, folder)


def settle(network: Deployed, pixels: Pixels) -> None:
    """Give BatchNorm the statistics of `pixels`: without them random weights answer the same to any image."""
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None  # plain averages: they fit at once
    with torch.no_grad():
        network.train()
        network.outputs(torch.from_numpy(to_batch(pixels.first(pixels.n), "float32")))
    network.eval()


def as_fp32(source: onnx.ModelProto, pixels: Pixels, folder: Path) -> float:
    """Largest difference of PyTorch's and onnxruntime's logits, as a share of their spread or of the largest of them.

    Random weights give some networks nearly one answer for all images: a spread of nothing but rounding.
    """
    expected = answers(source, pixels, folder)
    network = GraphNetwork(source, Placement({}, {}, ()), {})
    with torch.no_grad():
        given = network(torch.from_numpy(to_batch(pixels.first(pixels.n), "float32")), quantised=False).numpy()
    return float(np.abs(given - expected).max() / max(np.ptp(expected), np.abs(expected).max()))


Tiny = Callable[..., Path]


class Hard:
    """The tiny graph with one channel 200 times the range of the others, which fp32 does not notice."""

    def __init__(self, tiny_graph: Tiny, folder: Path) -> None:
        self.folder = folder
        self.source = surgery.anonymous(onnx.load(str(tiny_graph(kind="float32", classes=5))))
        self.pixels = noise(folder / "train.pixels", 200, 16)
        self.others = noise(folder / "others.pixels", 100, 16, seed=1)
        # The fixture's weights are small beside its biases: let images matter, and no class win them all.
        self._change(c0_w=lambda w: 30 * w, c1_w=lambda w: 10 * w, fc_w=lambda w: 20 * w)
        centre = answers(self.source, self.pixels, folder).mean(axis=0)
        self._change(fc_b=lambda b: b - centre)
        wide, narrow = np.ones((8, 1, 1, 1), np.float32), np.ones((1, 8, 1, 1), np.float32)
        wide[0], narrow[0, 0] = 200, 1 / 200
        self._change(c0_w=lambda w: w * wide, c0_b=lambda b: b * wide.reshape(8), c1_w=lambda w: w * narrow)
        self.placement = everywhere(self.source)
        self.ranges = peaks(self.source, self.placement, self.pixels)

    def _change(self, **changes: Callable[[np.ndarray], np.ndarray]) -> None:
        for tensor in self.source.graph.initializer:
            if tensor.name in changes:
                new = changes[tensor.name](numpy_helper.to_array(tensor)).astype(np.float32)
                tensor.CopyFrom(numpy_helper.from_array(new, tensor.name))

    def train(
        self, options: QatOptions = OPTIONS, monitor: Monitor = SILENT, start: onnx.ModelProto | None = None
    ) -> Trained:
        source = start or self.source
        return trained(source, self.placement, self.ranges, self.source, self.pixels, options, monitor)

    def lost(self, source: onnx.ModelProto | None, ranges: Mapping[str, float] | None = None) -> float:
        """KL of the INT8 graph from the fp32 one, on images that were not trained on, by onnxruntime."""
        assert source is not None
        model = qdq.inserted(source, self.placement, ranges or self.ranges)
        reference = answers(self.source, self.others, self.folder)
        return divergence(reference, answers(model, self.others, self.folder))


@pytest.fixture
def hard(tiny_graph: Tiny, tmp_path: Path) -> Hard:
    return Hard(tiny_graph, tmp_path)


@pytest.mark.parametrize("name", ["smallnet", "mobilenet_v3_small", "squeezenet1_1"])
def test_the_network_says_what_its_graph_says(name: str, tmp_path: Path) -> None:
    assert as_fp32(exported(name, 32, tmp_path), noise(tmp_path / "px", 3, 32), tmp_path) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("mobilenet_v2", 64),
        ("shufflenet_v2_x0_5", 64),
        ("efficientnet_b0", 64),
        ("efficientnet_v2_s", 96),
        ("resnet18", 64),
        ("vit_b_32", 64),
        ("swin_t", 64),
        ("swin_v2_t", 64),
        ("convnext_tiny", 64),
        ("regnet_y_400mf", 64),
        ("densenet121", 64),
        ("mnasnet0_5", 64),
        ("vgg11", 64),
        ("alexnet", 64),
        ("googlenet", 64),
        ("inception_v3", 96),
        ("maxvit_t", 224),
    ],
)
def test_every_family_can_be_trained(name: str, size: int, tmp_path: Path) -> None:
    assert as_fp32(exported(name, size, tmp_path), noise(tmp_path / "px", 3, size), tmp_path) < 1e-4


def test_fake_quantisers_round_as_the_graph_that_ships(plain_bundle: Path, tmp_path: Path) -> None:
    source = source_graph(Bundle.open(plain_bundle), tmp_path)
    pixels = noise(tmp_path / "px", 16, 32)
    placement = everywhere(source)
    ranges = {name: 0.6 * peak for name, peak in peaks(source, placement, pixels).items()}  # so that some is clipped
    expected = answers(qdq.inserted(source, placement, ranges), pixels, tmp_path)
    with torch.no_grad():
        given = GraphNetwork(source, placement, ranges)(torch.from_numpy(to_batch(pixels.first(16), "float32"))).numpy()
    plain = answers(source, pixels, tmp_path)
    # A value half-way between two steps may fall either way, so not to the bit; but far from the fp32 graph.
    assert np.abs(given - expected).mean() < 0.02 * np.abs(given - plain).mean()


def test_training_brings_a_network_that_int8_ruins_back(hard: Hard) -> None:
    before = hard.source.SerializeToString(deterministic=True)
    found = hard.train()
    assert found.source is not None
    assert found.record["kl_after"] < 0.5 * found.record["kl_before"]
    assert hard.lost(found.source, found.ranges) < 0.5 * hard.lost(hard.source)  # on other images, by another runtime
    assert hard.source.SerializeToString(deterministic=True) == before


def test_only_weights_and_biases_change(hard: Hard) -> None:
    found = hard.train(replace(OPTIONS, epochs=2)).source
    changed = {
        new.name
        for new, old in zip(found.graph.initializer, hard.source.graph.initializer, strict=True)
        if new.raw_data != old.raw_data
    }
    assert changed == {"c0_w", "c0_b", "c1_w", "c1_b", "fc_w", "fc_b"}
    assert found.graph.node == hard.source.graph.node
    assert [(t.name, t.dims) for t in found.graph.initializer] == [
        (t.name, t.dims) for t in hard.source.graph.initializer
    ]


def test_a_range_that_is_far_too_wide_is_learnt(hard: Hard) -> None:
    """Sixteen times too wide: 16 of 255 steps are left; the weights stay where they are."""
    hard.ranges = {name: 16 * peak for name, peak in hard.ranges.items()}
    found = hard.train(replace(OPTIONS, lr=1e-12, scale_lr=0.1, epochs=8))
    assert hard.lost(found.source, found.ranges) < 0.5 * hard.lost(hard.source)
    assert sum(found.ranges[name] < peak for name, peak in hard.ranges.items()) >= len(hard.ranges) - 1
    kept = hard.train(replace(OPTIONS, scale_lr=0.0, epochs=1))
    assert kept.ranges == hard.ranges


def test_the_scale_s_gradient_is_that_of_the_paper() -> None:
    value = torch.tensor([[-300.0, -1.3, 0.2, 0.6, 90.0, 500.0]], requires_grad=True)
    scale = torch.tensor(2.0, requires_grad=True)
    StepSize.apply(value, scale).sum().backward()
    assert value.grad is not None and scale.grad is not None
    assert value.grad[0].tolist() == [0, 1, 1, 1, 1, 0]
    steps = value.detach()[0] / 2
    expected = (-128 + 127 + (steps.round() - steps)[1:5].sum()) / np.sqrt(6 * 127)
    assert float(scale.grad) == pytest.approx(float(expected), rel=1e-5)


def test_tensors_that_share_a_scale_still_do_when_it_was_learnt(hard: Hard) -> None:
    names = list(hard.ranges)[:2]
    hard.placement = replace(hard.placement, groups=(tuple(names),))
    hard.ranges.update(dict.fromkeys(names, max(hard.ranges[name] for name in names)))
    found = hard.train(replace(OPTIONS, scale_lr=0.05, epochs=4))
    assert found.ranges[names[0]] == found.ranges[names[1]] != hard.ranges[names[0]]


def test_the_same_seed_gives_the_same_bits_and_another_gives_others(hard: Hard) -> None:
    options = replace(OPTIONS, epochs=2)
    first, again, other = (hard.train(o).source for o in (options, options, replace(options, seed=1)))
    assert first.SerializeToString(deterministic=True) == again.SerializeToString(deterministic=True)
    assert first.SerializeToString(deterministic=True) != other.SerializeToString(deterministic=True)


def test_a_rate_that_ruins_the_network_returns_nothing(hard: Hard) -> None:
    found = hard.train(replace(OPTIONS, lr=30.0))
    assert found.source is None
    assert found.record["kl_after"] == found.record["kl_before"]


def test_the_best_step_is_kept_and_not_the_last(hard: Hard) -> None:
    """A high rate makes the end worse than the middle for some seed; what is returned is the middle."""
    high = replace(OPTIONS, epochs=4, lr=3e-3)
    runs = (hard.train(replace(high, seed=seed)) for seed in range(10))
    found = next(run for run in runs if run.source and run.record["kl"][-1] > 1.1 * run.record["kl_after"])
    assert found.record["kl_after"] == min(found.record["kl"])
    held_out = Pixels.of_array(
        hard.folder / "held", hard.pixels.first(200)[train.held_out(200, found.record["options"]["seed"])]
    )
    reference = answers(hard.source, held_out, hard.folder)
    given = answers(qdq.inserted(found.source, hard.placement, found.ranges), held_out, hard.folder)
    assert divergence(reference, given) == pytest.approx(found.record["kl_after"], rel=0.03)


def test_it_learns_from_the_teacher_and_not_from_where_it_starts(hard: Hard) -> None:
    """A start with shifted biases (bias correction makes such) is pulled back to the original's answers."""
    start = surgery.copy_of(hard.source)
    bias = next(t for t in start.graph.initializer if t.name == "fc_b")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32([1, 0, 0, 0, 0]), "fc_b"))
    found = hard.train(start=start)
    assert hard.lost(found.source, found.ranges) < 0.5 * hard.lost(start)


def test_a_batch_that_does_not_fit_is_fed_in_parts(hard: Hard, monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[int] = []
    forward = GraphNetwork.forward

    def watched(self: GraphNetwork, image: torch.Tensor, quantised: bool = True) -> torch.Tensor:
        if torch.is_grad_enabled():
            fed.append(len(image))
        return forward(self, image, quantised)

    monkeypatch.setattr(GraphNetwork, "forward", watched)
    options = replace(OPTIONS, epochs=1)
    whole = hard.train(options)
    assert fed[-1] == 16
    monkeypatch.setattr(train, "_STEP_BYTES", 1)  # so: one image at a time
    parts = hard.train(options)
    assert fed[-16:] == [1] * 16
    assert parts.record["kl"] == pytest.approx(whole.record["kl"], rel=0.02)


def test_a_budget_of_time_cuts_the_steps_short_and_says_so(hard: Hard) -> None:
    seen: list[tuple[int, int]] = []

    class Watch(Monitor):
        def progress(self, what: str, done: int, total: int) -> None:
            if what == "qat":
                seen.append((done, total))

    record = hard.train(replace(OPTIONS, minutes=1e-9), Watch()).record
    assert record["cut_short"]
    assert record["steps"] < 12 * 180 // 16
    assert seen[-1][0] == seen[-1][1] == record["steps"]
    assert not hard.train(replace(OPTIONS, epochs=1)).record["cut_short"]


def test_an_unknown_operator_is_named(hard: Hard) -> None:
    node = next(n for n in hard.source.graph.node if n.op_type == "Relu")
    node.op_type, node.name = "ThresholdedRelu", "odd_one"
    with pytest.raises(GraphError, match="odd_one"):
        hard.train()


def test_too_few_images_are_refused(hard: Hard) -> None:
    hard.pixels = noise(hard.folder / "few", 19, 16)
    with pytest.raises(InputError, match="19"):
        hard.train()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "epochs", "lr"), [("mobilenet_v3_small", 6, 3e-4), ("swin_t", 3, 3e-5)])
def test_squeeze_and_excite_swish_and_attention_train_too(name: str, epochs: int, lr: float, tmp_path: Path) -> None:
    """Random weights; each range clips at a third of its peak. (EfficientNet's are too chaotic to learn anything.)"""
    source = exported(name, 64, tmp_path)
    pixels = noise(tmp_path / "px", 40, 64)
    placement = everywhere(source)
    ranges = {tensor: peak / 3 for tensor, peak in peaks(source, placement, pixels).items()}
    options = QatOptions(epochs=epochs, batch=8, lr=lr, threads=1)
    found = trained(source, placement, ranges, source, pixels, options)
    assert found.source is not None
    assert found.record["kl_after"] < 0.8 * found.record["kl_before"]
