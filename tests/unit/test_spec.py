"""The nouns: what they accept, and that they come back from JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.errors import InputError
from edgetl.spec import (
    BatchProfile,
    Fit,
    InputKind,
    Precision,
    Preprocess,
    Profile,
    image_input,
    parse_enum,
)

GOOD = Preprocess(224, 256, Fit.LETTERBOX, "bicubic", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)).to_json()


@given(
    size=st.integers(1, 1000),
    more=st.integers(0, 200),
    fit=st.sampled_from(Fit),
    interpolation=st.sampled_from(["bilinear", "bicubic", "nearest"]),
    mean=st.tuples(*[st.floats(0, 1)] * 3),
    std=st.tuples(*[st.floats(1e-3, 1)] * 3),
)
def test_a_preprocess_comes_back_from_json(size, more, fit, interpolation, mean, std):
    spec = Preprocess(size, size + more, fit, interpolation, mean, std)
    assert Preprocess.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_a_preprocess_by_hand_may_leave_out_the_defaults():
    spec = Preprocess.from_json({"size": 64, "mean": [0, 0, 0], "std": [1, 1, 1]})
    assert spec == Preprocess(64, 64, Fit.CROP, "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "resize must be at least"),
        ({"size": 300}, "resize must be at least the image size: resize 256, size 300"),
        ({"size": "224"}, "not a whole number"),
        ({"size": 224.5}, "not a whole number"),
        ({"size": True}, "not a whole number"),
        ({"resize": 10**9}, "beyond reason: 1000000000; at most"),
        ({"fit": "squash"}, "squash"),
        ({"interpolation": "lanczos"}, "unknown interpolation: lanczos; use bilinear"),
        ({"mean": [0.5]}, "three numbers each"),
        ({"mean": None}, "cannot be read"),
        ({"std": [0.2, 0.2, 0]}, "std above zero"),
        ({"std": [0.2, 0.2, float("nan")]}, "std above zero"),
        ({"mean": [0.2, 0.2, 10**400]}, "cannot be read"),
        ({"colour": "BGR"}, "unknown key in the Preprocess: colour; known: fit"),
    ],
)
def test_a_preprocess_that_cannot_be(change, message):
    with pytest.raises(InputError, match=message):
        Preprocess.from_json({**GOOD, **change})


@given(value=st.recursive(st.none() | st.integers() | st.floats() | st.text(), lambda x: st.lists(x, max_size=4)))
def test_any_value_in_any_field_is_read_or_refused(value: Any):
    for key in GOOD:
        try:
            Preprocess.from_json({**GOOD, key: value})
        except InputError:
            pass
    with pytest.raises(InputError):
        Preprocess.from_json(value)


def test_a_preprocess_without_mean_is_refused():
    with pytest.raises(InputError, match=r"cannot be read: KeyError\('mean'\); it wants"):
        Preprocess.from_json({"size": 64, "std": [1, 1, 1]})


@pytest.mark.parametrize(("text", "profile"), [("1,4,8", (1, 4, 8)), ("4", (4, 4, 4)), (" 1, 1 ,2", (1, 1, 2))])
def test_batch_profiles(text, profile):
    parsed = BatchProfile.parse(text)
    assert (parsed.min, parsed.opt, parsed.max) == profile
    assert BatchProfile.parse(str(parsed)) == parsed


@pytest.mark.parametrize("text", ["", "1,2", "a,b,c", "0,1,2", "2,1,3", "1,3,2", "1,2,3,4"])
def test_batch_profiles_that_cannot_be(text):
    with pytest.raises(InputError, match="--batch wants"):
        BatchProfile.parse(text)


def test_inputs_of_a_graph():
    assert image_input(InputKind.FLOAT32, 64).to_json() == {
        "name": "image",
        "dtype": "float32",
        "shape": [-1, 3, 64, 64],
    }
    assert image_input(InputKind.UINT8, 64).shape == (-1, 64, 64, 3)


def test_words_print_as_themselves_and_unknown_ones_list_the_known():
    assert [f"{x}" for x in (Precision.INT8, Profile.TRT8, Fit.CROP, InputKind.UINT8)] == [
        "int8",
        "trt8",
        "crop",
        "uint8",
    ]
    assert parse_enum(Precision, "fp16", "precision") is Precision.FP16
    with pytest.raises(InputError, match="unknown precision: int4; use one of fp32, fp16, int8"):
        parse_enum(Precision, "int4", "precision")
