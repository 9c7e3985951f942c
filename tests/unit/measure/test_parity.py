"""How far logits are apart, by hand; top-1 changes that count and those that do not."""

from __future__ import annotations

import numpy as np
import pytest

from edgetl.errors import ParityError
from edgetl.measure.evidence import latency_evidence
from edgetl.measure.parity import comparable, parity, top1_changes

REFERENCE = np.array([[4.0, 0.0, -4.0], [1.0, 1.1, 0.0], [0.0, 3.0, 0.0]], np.float32)


def test_differences_by_hand() -> None:
    other = REFERENCE.copy()
    other[2, 1] -= 0.08
    found = parity(REFERENCE, other)
    assert found.max_abs == pytest.approx(0.08, rel=1e-5) and found.relative == pytest.approx(0.01, rel=1e-5)
    assert (found.agreement, found.n) == (1.0, 3) and 0 < found.kl < 0.01
    assert parity(REFERENCE, REFERENCE).relative == 0.0


def test_what_cannot_be_compared() -> None:
    with pytest.raises(ParityError, match="another number of logits"):
        parity(REFERENCE, REFERENCE[:, :2])
    broken = REFERENCE.copy()
    broken[0, 0] = np.nan
    with pytest.raises(ParityError, match="NaN"):
        parity(REFERENCE, broken)


def test_a_change_within_two_quanta_is_one_that_int8_may_make() -> None:
    # The largest magnitude is 4, so a quantum is 4/127 = .031: a margin of .1 is over two of them, one of .05 is not.
    flipped = REFERENCE.copy()
    flipped[1] = [1.2, 1.0, 0.0]
    assert top1_changes(REFERENCE, flipped) == (1, 1)
    close = REFERENCE.copy()
    close[1] = [1.05, 1.1, 0.0]
    assert top1_changes(close, flipped) == (1, 0)
    assert top1_changes(REFERENCE, REFERENCE + 7) == (0, 0)


def test_a_softmax_keeps_only_differences() -> None:
    logs = REFERENCE / 2 - np.log(np.exp(REFERENCE / 2).sum(axis=1, keepdims=True))
    wanted, given = comparable(REFERENCE, logs, "probabilities", 2.0)
    np.testing.assert_allclose(wanted, given, atol=1e-5)
    assert comparable(REFERENCE, logs, "logits", 2.0)[1] is logs


@pytest.mark.parametrize(
    "backend, provider, profile, precision, jetson, told",
    [
        ("onnxruntime", "CPUExecutionProvider", "trt10", "int8", False, None),
        ("onnxruntime", "CPUExecutionProvider", "trt10", "int8", True, None),
        ("onnxruntime", "CPUExecutionProvider", "cpu", "int8", True, "device"),
        ("onnxruntime", "CPUExecutionProvider", "trt8", "fp32", False, "host-cpu"),
        ("tensorrt", "TensorRT 10.3.0.30", "trt10", "int8", True, "device"),
        ("tensorrt", "TensorRT 10.3.0.30", "trt10", "int8", False, "host-gpu"),
    ],
)
def test_whose_time_it_is(
    backend: str, provider: str, profile: str, precision: str, jetson: bool, told: str | None
) -> None:
    assert latency_evidence(backend, provider, profile, precision, jetson) == told
