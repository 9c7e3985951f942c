from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.errors import BundleError, InputError
from edgetl.spec import Profile
from edgetl.target import (
    BOARDS,
    JETPACKS,
    ORIN,
    TARGETS,
    THOR,
    XAVIER,
    EngineKey,
    board_of,
    decide,
    jetpack_of,
    parse_target,
    parse_tegra_release,
    parse_version,
    profile_for,
    sm_text,
    units,
)

KEY = EngineKey(
    graph_sha256="ab" * 32,
    precision="int8",
    flavour="tensorrt",
    tensorrt="10.3.0.30",
    platform="linux-aarch64",
    gpu="Orin",
    sm="8.7",
    sm_count=8,
    board="Orin Nano 8GB",
    batch="1,1,8",
    workspace_mib=256,
    level=3,
    tf32=False,
    timing_cache_sha256="",
)


def test_each_profile_is_one_of_spec() -> None:
    assert {t.profile for t in TARGETS.values()} == {p.value for p in Profile}


@pytest.mark.parametrize(
    ("name", "profile"),
    [
        ("jetpack5", "trt8"),
        ("jetpack6.0", "trt8"),
        ("jetpack6", "trt10"),
        ("JetPack7", "trt10"),
        ("tensorrt", "trt10"),
        ("cpu", "cpu"),
    ],
)
def test_target_to_profile(name: str, profile: str) -> None:
    assert parse_target(name).profile == profile == profile_for(name)


@pytest.mark.parametrize(
    ("version", "profile"),
    [
        ("8.5.2.2", "trt8"),
        ("8.6.1", "trt8"),
        ("10.3.0.30", "trt10"),
        ("10.16.2", "trt10"),
        ("11.4.1", "trt10"),
        ("12.0", "trt10"),
    ],
)
def test_version_to_profile(version: str, profile: str) -> None:
    assert profile_for(version) == profile


@pytest.mark.parametrize("version", ["8.2.1", "8.4.3", "7.1", "9.3", "10.0.1", "10.2.0"])
def test_versions_that_are_not_served_say_so(version: str) -> None:
    with pytest.raises(InputError) as error:
        profile_for(version)
    assert version in str(error.value) and error.value.do


def test_every_target_with_tensorrt_has_the_profile_of_its_tensorrt() -> None:
    for target in TARGETS.values():
        if target.tensorrt:
            assert profile_for(target.tensorrt) == target.profile, target.name


def test_unknown_target_lists_the_known_ones_and_jetpack4_its_reason() -> None:
    with pytest.raises(InputError, match=r"jetpack6\.0"):
        parse_target("jetpack9")
    with pytest.raises(InputError, match=r"TensorRT 8\.2"):
        parse_target("jetpack4.6")


@given(st.lists(st.integers(0, 999), min_size=1, max_size=5))
def test_versions_are_read_as_numbers(parts: list[int]) -> None:
    text = ".".join(map(str, parts))
    assert parse_version(text) == tuple(parts) == parse_version(text + "-rc1")


@given(st.text(max_size=12).filter(lambda t: not t.strip()[:1].isdigit()))
def test_a_version_without_a_number_is_an_input_error(text: str) -> None:
    with pytest.raises(InputError):
        parse_version(text)


def test_int8_units_by_chip() -> None:
    assert [units(sm).int8 for sm in ((5, 3), (6, 0), (6, 1), (6, 2), XAVIER, ORIN, THOR)] == [
        False,
        False,
        True,
        False,
        True,
        True,
        True,
    ]
    assert units((5, 3)).fp16 and not units((6, 1)).fp16
    assert [units(sm).fp8 for sm in (ORIN, (8, 9), THOR)] == [False, True, True]
    assert [units(sm).fp4 for sm in (ORIN, (9, 0), THOR)] == [False, False, True]
    assert sm_text(ORIN) == "8.7"


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64", "36.4.3"),
        ("# R35 (release), REVISION: 4.1, GCID: 1, BOARD: t186ref", "35.4.1"),
        ("# R39 (release), REVISION: 2.0\n", "39.2.0"),
        ("Ubuntu 22.04", None),
        ("", None),
    ],
)
def test_tegra_release(text: str, release: str | None) -> None:
    assert parse_tegra_release(text) == release


@pytest.mark.parametrize(
    ("l4t", "jetpack", "tensorrt"),
    [
        ("32.7.1", "4.6", "8.2"),
        ("35.6.4", "5.1", "8.5.2"),
        ("36.3.0", "6.0", "8.6.2"),
        ("36.4.7", "6.1-6.2", "10.3.0"),
        ("36.5.0", "6.1-6.2", "10.3.0"),
        ("38.4.0", "7.0-7.1", "10.13.3"),
        ("39.2.0", "7.2", "10.16.2"),
    ],
)
def test_l4t_to_jetpack(l4t: str, jetpack: str, tensorrt: str) -> None:
    found = jetpack_of(l4t)
    assert found is not None and (found.name, found.tensorrt) == (jetpack, tensorrt)


def test_l4t_between_the_lines_is_unknown() -> None:
    assert jetpack_of("34.1") is None and jetpack_of("40.0") is None


def test_l4t_ranges_do_not_overlap() -> None:
    bounds = [end for row in JETPACKS for end in row.l4t]
    assert bounds == sorted(bounds)


@pytest.mark.parametrize(
    ("compatible", "name"),
    [
        (b"nvidia,p3768-0000+p3767-0005\0nvidia,p3767-0005\0nvidia,tegra234\0", "Orin Nano 8GB developer kit"),
        (b"nvidia,p3737-0000+p3701-0005\0nvidia,p3701-0005\0nvidia,tegra234\0", "AGX Orin"),
        (b"nvidia,p3768-0000+p3767-0000-super\0nvidia,p3767-0000\0", "Orin NX 16GB"),
        (b"nvidia,p3971-0089+p3834-0008\0nvidia,tegra264\0", "AGX Thor"),
        (b"nvidia,p2822-0000+p2888-0004\0nvidia,p2822-0000\0nvidia,tegra194\0", "AGX Xavier"),
        (b"raspberrypi,4-model-b\0brcm,bcm2711\0", None),
        (b"", None),
    ],
)
def test_board_from_the_device_tree(compatible: bytes, name: str | None) -> None:
    board = board_of(compatible)
    assert (board.name if board else None) == name


def test_no_board_hides_another() -> None:
    for index, board in enumerate(BOARDS):
        assert not any(board.part.startswith(other.part) for other in BOARDS[:index])


@given(st.binary(max_size=64))
def test_any_device_tree_is_taken(compatible: bytes) -> None:
    assert board_of(compatible) is None or board_of(compatible) in BOARDS


# -- the key -------------------------------------------------------------------------------------


def other_value(value: object) -> object:
    return (not value) if isinstance(value, bool) else value + 1 if isinstance(value, int) else f"{value}x"


@pytest.mark.parametrize("name", [f.name for f in fields(EngineKey)])
def test_any_single_difference_is_a_rebuild_that_names_it(name: str) -> None:
    other = replace(KEY, **{name: other_value(getattr(KEY, name))})
    decision = decide(KEY, other)
    assert decision.action == "rebuild" and decision.reason.startswith(name + " was ")
    assert other.digest12 != KEY.digest12


def test_equal_keys_are_reused_and_nothing_is_built() -> None:
    same = EngineKey.from_json(KEY.to_json())
    assert decide(KEY, same).action == "reuse" and same.digest12 == KEY.digest12
    assert decide(None, KEY).action == "build"


def test_digest_is_pinned() -> None:
    # Engines on disk are named by it: a change here orphans every one of them and wants a format bump.
    assert KEY.digest12 == "314e8a784550"
    assert len(KEY.digest12) == 12


def test_a_key_with_other_fields_is_refused_by_name() -> None:
    data = KEY.to_json()
    del data["sm_count"]
    with pytest.raises(BundleError, match="sm_count"):
        EngineKey.from_json(data)
    with pytest.raises(BundleError, match="colour"):
        EngineKey.from_json({**KEY.to_json(), "colour": 1})
