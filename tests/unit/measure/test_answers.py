"""Answers go to disk and come back the same; whatever else is in their place is an error with a line."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgetl.bundle import Bundle
from edgetl.errors import BundleError
from edgetl.images import Sample
from edgetl.measure.answers import FILE, Answers, of_outputs, read, write

LABELS = ("菊", "وردة", "🌷")
SAMPLES = [Sample(f"{LABELS[i % 3]}/{i}.png", i % 3, f"{i:064x}") for i in range(7)]
LOGITS = np.random.default_rng(0).normal(size=(2, 7, 3)).astype(np.float32)


def made() -> Answers:
    outputs = {"torch-cpu-fp32": LOGITS[0], "onnxruntime-cpu-trt10-int8": LOGITS[1], "dead": None}
    return replace(of_outputs(outputs, "torch-cpu-fp32", "test", SAMPLES, LABELS), at="2026-01-02T03:04:05Z")


def same(one: Answers, other: Answers) -> bool:
    pairs = [(np.asarray(getattr(one, f.name)), np.asarray(getattr(other, f.name))) for f in fields(Answers)]
    return all(a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in pairs)


@pytest.fixture
def bundle(graph_bundle: Callable[..., Path]) -> Bundle:
    return Bundle.open(graph_bundle({}))


def test_they_come_back_the_same(bundle: Bundle) -> None:
    assert read(bundle) is None
    write(bundle, made())
    found = read(bundle)
    assert found is not None
    assert same(found, made())
    assert found.row("dead") == 2
    assert [path.name for path in (bundle.path / "runs").iterdir()] == ["answers.npz"]


def test_softmax_and_argmax_of_each() -> None:
    found = made()
    for index in range(2):
        powers = np.exp(LOGITS[index].astype(np.float64))
        shares = powers / powers.sum(axis=1, keepdims=True)
        assert found.top[index].tolist() == shares.argmax(axis=1).tolist()
        np.testing.assert_allclose(found.top_probability[index], shares.max(axis=1), rtol=1e-6)
        np.testing.assert_allclose(found.target_probability[index], shares[range(7), [0, 1, 2, 0, 1, 2, 0]], rtol=1e-6)
    assert found.top[2].tolist() == [-1] * 7
    assert np.isnan(found.top_probability[2]).all()


def test_five_thousand_images_of_a_thousand_classes_are_small(bundle: Bundle) -> None:
    rng = np.random.default_rng(1)
    digests = [rng.bytes(32).hex() for _ in range(5000)]
    samples = [Sample(f"n{i % 1000:08}/image-{i:05}.jpg", i % 1000, digest) for i, digest in enumerate(digests)]
    outputs = {f"candidate-{k}": rng.normal(size=(5000, 1000)).astype(np.float32) for k in range(2)}
    write(bundle, of_outputs(outputs, "candidate-0", "test", samples, [f"class {i}" for i in range(1000)]))
    assert (bundle.path / FILE).stat().st_size < 600_000


def stored(**changes: Any) -> bytes:
    arrays = {f.name: np.asarray(getattr(made(), f.name)) for f in fields(Answers)}
    arrays.update({name: np.asarray(value) for name, value in changes.items() if value is not None})
    out = io.BytesIO()
    np.savez(out, **{name: value for name, value in arrays.items() if changes.get(name, value) is not None})
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "answers are damaged"),
        (b"not a zip", "answers are damaged"),
        (stored()[:-300], "answers are damaged"),
        (stored()[: len(stored()) // 2], "answers are damaged"),
        (stored(targets=None), "targets"),
        (stored(top=np.zeros((3, 6), np.int32)), "top is"),
        (stored(top=np.zeros((3, 7), np.float32)), "top is"),
        (stored(top=np.full((3, 7), 3, np.int32)), "beyond the 3 labels"),
        (stored(top=np.full((3, 7), -1, np.int32)), "beyond the 3 labels"),
        (stored(targets=np.full(7, -1, np.int32)), "beyond the 3 labels"),
        (stored(top_probability=np.full((3, 7), np.nan, np.float32)), "no share"),
        (stored(target_probability=np.full((3, 7), 1.1, np.float32)), "no share"),
        (stored(reference="torch-cuda-fp32"), "do not belong together"),
        (stored(reference=["a", "b"]), "answers are damaged"),
        (stored(names=[1, 2, 3]), "no list of texts"),
        (stored(digests=["0" * 64]), "do not belong together"),
        (stored(paths=["/home/someone/photo.jpg"] * 7), "a path is absolute"),
    ],
)
def test_damage_is_told(bundle: Bundle, content: bytes, said: str) -> None:
    (bundle.path / "runs").mkdir()
    (bundle.path / FILE).write_bytes(content)
    with pytest.raises(BundleError, match=said) as caught:
        read(bundle)
    assert "edgetl bench" in str(caught.value)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(stored()) - 1), st.integers(1, 255))
def test_a_changed_byte_is_an_error_or_answers_that_fit(bundle: Bundle, place: int, change: int) -> None:
    content = bytearray(stored())
    content[place] ^= change
    (bundle.path / "runs").mkdir(exist_ok=True)
    (bundle.path / FILE).write_bytes(bytes(content))
    try:
        found = read(bundle)
    except BundleError:
        return
    assert found is not None
    assert found.top.shape == (3, 7)


def test_pickled_objects_are_not_loaded(bundle: Bundle) -> None:
    out = io.BytesIO()
    np.savez(out, **{f.name: np.array([print], dtype=object) for f in fields(Answers)})  # type: ignore[arg-type]
    (bundle.path / "runs").mkdir()
    (bundle.path / FILE).write_bytes(out.getvalue())
    with pytest.raises(BundleError, match="damaged"):
        read(bundle)
