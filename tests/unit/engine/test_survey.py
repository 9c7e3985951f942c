from __future__ import annotations

from pathlib import Path

import pytest

from edgetl.engine import survey, toolkit
from edgetl.engine.survey import Finding, failed
from edgetl.errors import BackendError
from edgetl.runtime import cudart
from edgetl.runtime.cudart import Gpu
from edgetl.runtime.machine import int8_instructions, jetson_board, l4t_release, platform_name


def board(root: Path, compatible: bytes, release: str) -> Path:
    (root / "proc/device-tree").mkdir(parents=True)
    (root / "proc/device-tree/compatible").write_bytes(compatible)
    (root / "etc").mkdir()
    (root / "etc/nv_tegra_release").write_text(release)
    return root


ORIN = (b"nvidia,p3768-0000+p3767-0005\0nvidia,tegra234\0", "# R36 (release), REVISION: 4.3, GCID: 1\n")
NANO = (b"nvidia,p3449-0000+p3448-0000\0nvidia,tegra210\0", "# R32 (release), REVISION: 7.1, GCID: 1\n")
XAVIER = (b"nvidia,p3668-0000\0", "# R32 (release), REVISION: 7.1, GCID: 1\n")


def row(findings: list[Finding], name: str) -> Finding:
    return next(f for f in findings if f.name == name)


def test_an_orin_is_told_with_its_jetpack(tmp_path: Path) -> None:
    found = row(survey(board(tmp_path, *ORIN)), "Jetson")
    assert found.ok and found.value == "Orin Nano 8GB developer kit, JetPack 6.1-6.2 (L4T 36.4.3), TensorRT 10.3.0"


@pytest.mark.parametrize(("machine", "advice"), [(NANO, "no newer JetPack"), (XAVIER, "flash JetPack 5")])
def test_jetpack_4_is_refused_with_the_way_out_that_the_board_has(
    tmp_path: Path, machine: tuple[bytes, str], advice: str
) -> None:
    found = row(survey(board(tmp_path, *machine)), "Jetson")
    assert found.ok is False and advice in found.do


def test_an_unknown_l4t_is_said(tmp_path: Path) -> None:
    found = row(survey(board(tmp_path, ORIN[0], "# R99 (release), REVISION: 1.0")), "Jetson")
    assert found.ok is False and "99.1.0" in found.value


def test_a_pc_has_no_jetson_row_and_every_line_is_stated(tmp_path: Path) -> None:
    findings = survey(tmp_path)
    names = [f.name for f in findings]
    assert "Jetson" not in names and len(names) == len(set(names))
    for line in toolkit.LINES:
        stated = row(findings, "TensorRT line " + line.name)
        assert stated.ok is None and line.seen in stated.value
    assert all(f.do for f in findings if f.ok is False), "what is missing comes with what to do"


def test_a_gpu_is_told_with_what_it_is_fast_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cudart, "gpu", lambda device=0: Gpu("Orin", (8, 7), 16, 15800))
    found = row(survey(), "NVIDIA GPU")
    assert found.ok and found.value == "Orin, SM 8.7, 16 SMs, 15.8 GB; fast in fp16, int8"


def test_failed_keeps_the_three_parts() -> None:
    assert failed("x", BackendError("broke", "here", "mend it")) == Finding("x", False, "broke: here", "mend it")
    assert failed("x", BackendError("broke")).value == "broke"


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("flags\t\t: fpu avx2 avx512_vnni avx_vnni amx_int8\n", ("amx_int8", "avx512_vnni", "avx_vnni")),
        ("processor : 0\nFeatures\t: fp asimd asimddp i8mm\n", ("i8mm", "asimddp")),
        ("flags : fpu avx2\n", ()),
        ("", ()),
    ],
)
def test_int8_instructions(tmp_path: Path, text: str, flags: tuple[str, ...]) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(text)
    assert int8_instructions(tmp_path) == flags


def test_a_machine_without_proc(tmp_path: Path) -> None:
    assert int8_instructions(tmp_path) is None
    assert jetson_board(tmp_path) is None and l4t_release(tmp_path) is None
    assert row(survey(tmp_path), "CPU int8").ok is None


def test_a_cpu_without_vnni_is_told_what_to_expect(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("flags : avx2\n")
    assert row(survey(tmp_path), "CPU int8").ok is False


def test_platform_names_os_and_architecture() -> None:
    system, _, machine = platform_name().partition("-")
    assert system and machine and machine == machine.lower()
