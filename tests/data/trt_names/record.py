"""Write down which of the names that edgetl uses each TensorRT binding has: `python record.py`.

The bindings' wheels hold no library, so they cannot be imported without TensorRT itself. But pybind11 keeps
every attribute's name as a C string in the shared object. Linkers merge strings by their tails ("INT8" may
live inside "UINT8"), so a name counts as present when its bytes and a NUL are found.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from edgetl.engine.names import ALWAYS, GUARDED

HERE = Path(__file__).resolve().parent

# version of TensorRT -> the wheel that binds it, and a Python it was built for
WHEELS = {
    "8.6.1": ("tensorrt-bindings==8.6.1", "3.9"),
    "10.3.0": ("tensorrt-cu12-bindings==10.3.0", "3.10"),
    "11.4.0": ("tensorrt-cu13-bindings==11.4.*", "3.11"),
}
PLATFORMS = ("manylinux_2_17_x86_64", "manylinux_2_28_x86_64")


def fetch(requirement: str, python: str, folder: Path) -> Path:
    """Download one wheel with pip. Raises subprocess.CalledProcessError where the index cannot be reached."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", python, "--dest", str(folder), requirement]
    for name in PLATFORMS:
        command += ["--platform", name]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    return next(folder.glob("*.whl"))


def present(wheel: Path, names: set[str]) -> set[str]:
    """Those of `names` that the wheel's shared object or its Python files hold."""
    with zipfile.ZipFile(wheel) as archive:
        inside = archive.namelist()
        binary = b"".join(archive.read(n) for n in inside if n.endswith(".so"))
        text = b"".join(archive.read(n) for n in inside if n.endswith(".py"))
    return {name for name in names if name.encode() + b"\0" in binary or b"\n" + name.encode() + b" = " in text}


def record(version: str) -> dict[str, object]:
    """{"version", "wheel", "has", "lacks"}: how the names in use stand in that version."""
    requirement, python = WHEELS[version]
    names = set(ALWAYS) | set(GUARDED)
    with tempfile.TemporaryDirectory() as folder:
        wheel = fetch(requirement, python, Path(folder))
        has = present(wheel, names)
        return {"version": version, "wheel": wheel.name, "has": sorted(has), "lacks": sorted(names - has)}


if __name__ == "__main__":
    for _version in WHEELS:
        (HERE / f"{_version}.json").write_text(json.dumps(record(_version), indent=1) + "\n")
