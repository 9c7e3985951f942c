"""A bundle: one folder that every stage adds to. Standard library only, Python 3.8."""

from edgetl.bundle.files import (
    atomic_json,
    atomic_write,
    canonical_json,
    locked,
    read_json,
    sha256_bytes,
    sha256_file,
    sweep,
    work_dir,
)
from edgetl.bundle.manifest import FORMAT, SCHEMA_FILE
from edgetl.bundle.store import Bundle, Check, NewArtifact, create, writing

__all__ = [
    "FORMAT",
    "SCHEMA_FILE",
    "Bundle",
    "Check",
    "NewArtifact",
    "atomic_json",
    "atomic_write",
    "canonical_json",
    "create",
    "locked",
    "read_json",
    "sha256_bytes",
    "sha256_file",
    "sweep",
    "work_dir",
    "writing",
]
