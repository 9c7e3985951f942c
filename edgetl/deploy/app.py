"""The device side as one file: a zipapp of its sources, the same bytes for the same sources.

Nothing else travels as code. Dates, order, modes and the compression level are fixed; what stays of the making
machine is its zlib, whose output differs between releases by a few bytes: so the device's app is known by its
sha256, and pushed again where that differs.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import edgetl
from edgetl.bundle import atomic_write, sha256_bytes

# What runs on the device: numpy and Pillow alone, Python 3.8 (tests hold every file of it to that).
DEVICE_SIDE = (
    "__init__",
    "errors",
    "spec",
    "target",
    "monitor",
    "protocol",
    "stats",
    "bundle",
    "images",
    "runtime",
    "measure",
    "engine",
    "device",
)
SUFFIXES = (".py", ".json", ".zip")
LARGEST = 300_000
_PACKAGE = Path(edgetl.__file__).parent
_MAIN = "import sys\n\nfrom edgetl.device.entry import main\n\nsys.exit(main())\n"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can say


def sources() -> Iterator[Path]:
    """The files of the package that travel, in the order in which they are packed."""
    for name in DEVICE_SIDE:
        folder = _PACKAGE / name
        found = folder.rglob("*") if folder.is_dir() else [folder.with_suffix(".py")]
        yield from sorted(p for p in found if p.suffix in SUFFIXES and "__pycache__" not in p.parts)


def build_app() -> bytes:
    """The zipapp: `python3 app.pyz probe` runs it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        _put(archive, "__main__.py", _MAIN.encode("utf-8"))
        for path in sources():
            _put(archive, path.relative_to(_PACKAGE.parent).as_posix(), path.read_bytes())
    return out.getvalue()


def write_app(folder: Path) -> tuple[Path, str]:
    """(path, sha256) of the app, written into `folder` under its sha256. Raises DiskError."""
    data = build_app()
    digest = sha256_bytes(data)
    path = folder / f"edgetl-{digest[:12]}.pyz"
    if not path.is_file() or path.read_bytes() != data:
        atomic_write(path, data)
    return path, digest


def _put(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.external_attr = 0o644 << 16
    entry.create_system = 3  # Unix, wherever it is made
    # What is packed already stays as it is.
    entry.compress_type = zipfile.ZIP_STORED if name.endswith(".zip") else zipfile.ZIP_DEFLATED
    archive.writestr(entry, data, compresslevel=9)
