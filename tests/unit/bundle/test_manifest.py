"""The manifest as an attacker, an editor or a newer edgetl leaves it: BundleError and nothing else."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgetl.bundle import Bundle
from edgetl.bundle import manifest as manifests
from edgetl.errors import BundleError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def rewrite(path: Path, body: Any, seal: bool) -> None:
    """Write `body` as the manifest, its digest made to fit if `seal` (an edit by someone who knows how)."""
    if seal and isinstance(body, dict):
        try:
            body = manifests.seal(body)
        except BundleError:
            pass  # nothing canonical: write it as it is
    (path / "manifest.json").write_text(json.dumps(body), encoding="utf-8")


def test_a_newer_format_says_upgrade(make_bundle):
    bundle = make_bundle()
    rewrite(bundle.path, {**bundle.manifest, "format": manifests.FORMAT + 1}, seal=True)
    with pytest.raises(BundleError, match=f"newer format.*has format {manifests.FORMAT + 1}.*upgrade edgetl"):
        Bundle.open(bundle.path)


@pytest.mark.parametrize("version", [0, -3, True, "1", None, 1.0])
def test_a_format_nobody_wrote(make_bundle, version):
    bundle = make_bundle()
    rewrite(bundle.path, {**bundle.manifest, "format": version}, seal=True)
    with pytest.raises(BundleError, match="format"):
        Bundle.open(bundle.path)


def test_an_edit_by_hand_is_seen(make_bundle):
    bundle = make_bundle()
    rewrite(bundle.path, {**bundle.manifest, "labels": ["rose", "tulip"]}, seal=False)
    with pytest.raises(BundleError, match=r"changed by hand.*manifest\.json; restore it"):
        Bundle.open(bundle.path)


def test_only_the_layout_may_change(make_bundle):
    bundle = make_bundle()
    text = json.dumps(dict(reversed(list(bundle.manifest.items()))), indent=8, ensure_ascii=True)
    (bundle.path / "manifest.json").write_text(text)
    assert Bundle.open(bundle.path).manifest == bundle.manifest


@pytest.mark.parametrize(
    "place", ["../x", "/x", "a/../../x", "a\\..\\x", "C:x", "", ".", "a//b", "x\0y", "manifest.json"]
)
def test_an_artifact_may_not_lie_outside(make_bundle, place):
    bundle = make_bundle()
    bundle.manifest["artifacts"][0]["file"] = place
    rewrite(bundle.path, bundle.manifest, seal=True)
    with pytest.raises(BundleError):
        Bundle.open(bundle.path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"format": NaN}', '{"a": "\ud800"}', "[" * 100_000, "9" * 10_000, "\xff\xfe"]
)
def test_what_is_no_manifest(make_bundle, text):
    bundle = make_bundle()
    (bundle.path / "manifest.json").write_bytes(text.encode("latin-1" if "\xff" in text else "utf-8", "surrogatepass"))
    with pytest.raises(BundleError):
        Bundle.open(bundle.path)


def test_no_such_bundle_gives_the_next_command(tmp_path):
    with pytest.raises(BundleError, match=r"no such bundle: .*nowhere; make one with `edgetl finetune"):
        Bundle.open(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="no manifest"):
        Bundle.open(tmp_path)
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(BundleError):
        Bundle.open(tmp_path)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a JSON value has something that can be changed."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, item in inner for place in places(item, (*at, key)))]


def changed(value: Any, place: tuple[Any, ...], new: Any, remove: bool) -> Any:
    """A deep copy of `value` with another value, or none, at `place`."""
    copy = json.loads(json.dumps(value))
    if not place:
        return new
    at = copy
    for key in place[:-1]:
        at = at[key]
    if remove:
        del at[place[-1]]
    else:
        at[place[-1]] = new
    return copy


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_opens_or_is_a_bundle_error(make_bundle, tmp_path, data):
    if not (tmp_path / "flowers").exists():
        make_bundle()
        (tmp_path / "original").write_bytes((tmp_path / "flowers/manifest.json").read_bytes())
    original = json.loads((tmp_path / "original").read_text())
    body = original
    for _ in range(data.draw(st.integers(1, 3))):
        where = places(body)
        place = where[data.draw(st.integers(0, len(where) - 1))]
        body = changed(body, place, data.draw(JSON), data.draw(st.booleans()))
        if not isinstance(body, dict | list):
            break
    seal = data.draw(st.booleans())
    rewrite(tmp_path / "flowers", body, seal)
    try:
        bundle = Bundle.open(tmp_path / "flowers")
    except BundleError as error:
        assert "\n" not in str(error)
        return
    assert seal or body == original  # an edit without a fitting digest never opens
    # What opens is usable: none of these may raise anything but BundleError.
    assert bundle.labels
    assert bundle.preprocess.size > 0
    bundle.check_files()
    bundle.artifacts("checkpoint")
    assert isinstance(bundle.local, dict)


@given(value=JSON)
def test_canonical_json_is_one_byte_string_for_a_value(value):
    from edgetl.bundle import canonical_json

    try:
        data = canonical_json(value)
    except ValueError:
        text = repr(value)
        assert any(word in text for word in ("nan", "inf", "\\ud"))
        return
    again = json.loads(data)
    assert canonical_json(again) == data
    assert b" :" not in data
    if isinstance(value, float):
        assert math.isfinite(value)
