"""Pixels in, logits out, whatever batch sizes a backend takes; and the top classes of them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from edgetl.errors import BackendError, CorruptImage
from edgetl.runtime import as_logits, run_pixels
from edgetl.runtime.classify import classify, softmax, top_k
from edgetl.runtime.ort import OrtBackend
from edgetl.spec import Preprocess, TensorSpec

MakeGraph = Callable[..., Path]
PIXELS = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize("step", [1, 2, 7, 100])
def test_the_step_does_not_change_the_answer(tiny_graph: MakeGraph, step: int) -> None:
    backend = OrtBackend(tiny_graph())
    want = backend.run(PIXELS.transpose(0, 3, 1, 2).astype(np.float32))
    np.testing.assert_allclose(run_pixels(backend, PIXELS, step), want, atol=1e-5)


@pytest.mark.parametrize("fixed", [1, 3, 8])
def test_a_fixed_batch_is_filled_up_and_cut(tiny_graph: MakeGraph, fixed: int) -> None:
    free, bound = OrtBackend(tiny_graph()), OrtBackend(tiny_graph(batch=fixed))
    np.testing.assert_allclose(run_pixels(bound, PIXELS), run_pixels(free, PIXELS), atol=1e-5)


class Between(OrtBackend):
    """Takes 2 to 4 images a run, as an engine with that optimisation profile does."""

    batches = (2, 4)

    def run(self, batch: np.ndarray) -> np.ndarray:
        if not 2 <= len(batch) <= 4:
            raise BackendError("out of the profile", len(batch))
        return super().run(batch)


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_an_engines_profile_is_kept(tiny_graph: MakeGraph, n: int) -> None:
    found = run_pixels(Between(tiny_graph()), PIXELS[:n], 32)
    np.testing.assert_allclose(found, run_pixels(OrtBackend(tiny_graph()), PIXELS[:n]), atol=1e-5)


def test_outputs_that_are_no_logits_are_refused(tiny_graph: MakeGraph) -> None:
    class Flat(OrtBackend):
        def run(self, batch: np.ndarray) -> np.ndarray:
            return super().run(batch).ravel()

    with pytest.raises(BackendError, match="another shape"):
        run_pixels(Flat(tiny_graph()), PIXELS)


rows = arrays.arrays(np.float32, (4,), elements=st.floats(-50, 50, width=32))


@given(rows)
def test_softmax_of_the_logarithm_is_the_identity(logits: np.ndarray) -> None:
    probabilities = softmax(logits)
    assert probabilities.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(softmax(as_logits(probabilities, "probabilities")), probabilities, atol=1e-6)
    assert as_logits(logits, "logits") is logits


def test_softmax_takes_any_size_of_logit() -> None:
    assert softmax(np.array([1e4, 0.0, -1e4])).tolist() == [1.0, 0.0, 0.0]


@given(rows, st.integers(1, 6))
def test_top_k_is_sorted_and_ties_follow_class_order(logits: np.ndarray, k: int) -> None:
    found = top_k(logits, "abcd", k)
    assert len(found) == min(k, 4)
    assert [f["probability"] for f in found] == sorted((f["probability"] for f in found), reverse=True)
    assert [f["label"] for f in top_k(np.zeros(4), "abcd", 4)] == list("abcd")


def test_top_k_refuses_other_labels() -> None:
    with pytest.raises(BackendError, match="another number of classes"):
        top_k(np.zeros(3), "ab", 1)


def test_classify_takes_encoded_bytes(tiny_graph: MakeGraph) -> None:
    backend, spec = OrtBackend(tiny_graph()), Preprocess(size=16, resize=16)
    stream = io.BytesIO()
    Image.fromarray(PIXELS[0]).save(stream, "PNG")
    found = classify(backend, stream.getvalue(), spec, "abc", top=2)
    want = softmax(run_pixels(backend, PIXELS[:1])[0])
    assert found[0]["label"] == "abc"[int(want.argmax())]
    assert found[0]["probability"] == pytest.approx(want.max(), abs=1e-6)
    with pytest.raises(CorruptImage, match=r"x\.jpg"):
        classify(backend, b"text", spec, "abc", name="x.jpg")


def test_the_spec_is_the_shape_of_a_run() -> None:
    assert TensorSpec("image", "float32", (-1, 3, 16, 16)).to_json()["shape"] == [-1, 3, 16, 16]
