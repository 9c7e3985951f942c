"""How the bundle and its figures came about: commands, versions, hashes, machines; no path and no user's name."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgetl.bundle import Bundle
from edgetl.report.privacy import command_line, last_part
from edgetl.report.rows import Measured

# Options of `edgetl export` as the record names them, with the default that need not be said.
_EXPORT = {
    "target": "jetpack6",
    "method": "auto",
    "calib_size": "512",
    "max_drop": 0.5,
    "max_class_drop": None,
    "rescue": "exclude",
    "guard": "labels",
    "output": "logits",
}


@dataclass(frozen=True)
class File:
    """One current file of the bundle."""

    kind: str
    name: str
    bytes: int
    sha256: str
    made_by: str


@dataclass(frozen=True)
class Machine:
    """Where rows were measured: lines for people."""

    host: str
    identity: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Provenance:
    """What a reader needs to make it again, and to tell that she has the same."""

    digest: str
    generation: int
    made_by: str
    weights: str
    versions: tuple[tuple[str, str], ...]
    seed: int | None
    files: tuple[File, ...]
    machines: tuple[Machine, ...]
    commands: tuple[str, ...]


def provenance(bundle: Bundle, rows: Sequence[Measured], where: Mapping[str, Mapping[str, Any]]) -> Provenance:
    """Gathered from the manifest, local.json's command and the environments of the rows."""
    manifest = bundle.manifest
    versions: dict[str, str] = dict(manifest["training"].get("versions") or {})
    for record in bundle.artifacts("graph"):
        versions.update({str(k): str(v) for k, v in (record.get("versions") or {}).items()})
    for identity in {one.row.environment for one in rows}:
        versions.update(where.get(identity, {}).get("versions") or {})
    shown = ("checkpoint", "splits", "graph", "engine", "adopted-graph")
    files = [
        File(str(r["kind"]), str(r["file"]), int(r["bytes"]), str(r["sha256"]), str(r["made_by"]))
        for r in bundle.artifacts()
        if r["kind"] in shown
    ]
    return Provenance(
        digest=str(manifest["digest"]),
        generation=int(manifest["generation"]),
        made_by=str(manifest["made_by"]),
        weights=weights_line(manifest["model"]),
        versions=tuple(sorted(versions.items())),
        seed=(manifest["training"].get("options") or {}).get("seed"),
        files=tuple(files),
        machines=tuple(_machines(rows, where)),
        commands=tuple(commands(bundle, rows, where)),
    )


def weights_line(model: Mapping[str, Any]) -> str:
    """Where the pretrained weights came from, with the start of their sha256."""
    found = model.get("weights") or {}
    named = last_part(str(found.get("name") or found.get("source") or model.get("file") or "none"))
    sha256 = found.get("sha256") or model.get("sha256")
    return f"{named}, sha256 {str(sha256)[:12]}" if sha256 else named


def _machines(rows: Sequence[Measured], where: Mapping[str, Mapping[str, Any]]) -> list[Machine]:
    out, seen = [], set()
    for one in rows:
        key = (one.host, one.row.environment)
        if key not in seen:
            seen.add(key)
            out.append(Machine(one.host, one.row.environment, machine_lines(where.get(one.row.environment))))
    return out


def machine_lines(found: Mapping[str, Any] | None) -> tuple[str, ...]:
    """A machine in a few lines: processor, GPU, threads, power, load."""
    if not found:
        return ("not recorded",)
    cores, threads = found.get("affinity") or found.get("cores"), found.get("threads")
    cpu = " ".join(str(found.get("cpu") or found.get("machine") or "").split())
    lines = [str(found["board"])] if found.get("board") else []
    lines.append(f"{cpu}, {cores} cores, " + _threads(threads))
    lines += [f"GPU {name}" for name in found.get("gpus") or []]
    lines.append(str(found.get("os", "")))
    state = [f"{name} {found[key]}" for key, name in _STATE.items() if found.get(key) is not None]
    return tuple(line for line in [*lines, ", ".join(state)] if line)


def _threads(told: object) -> str:
    if not told:
        return "threads as each runtime chose"
    return "1 thread a backend" if told == 1 else f"{told} threads a backend"


_STATE = {"governor": "governor", "power": "power", "load_1m": "load when it began"}


def commands(bundle: Bundle, rows: Sequence[Measured], where: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The line's commands as they were given, folders and files by their last part."""
    name = bundle.path.name
    words = bundle.local.get("command")
    out = [shlex.join(command_line([str(word) for word in words]))] if isinstance(words, list) and words else []
    if not out:
        out = [f"edgetl {bundle.manifest['made_by']} ... --to {shlex.quote(name)}"]
    by_target: dict[str, list[Mapping[str, Any]]] = {}
    for record in bundle.artifacts("graph"):
        by_target.setdefault(str((record.get("options") or {}).get("target")), []).append(record)
    out += [_export(name, records) for records in by_target.values()]
    if any(not one.host for one in rows):
        threads = next((where.get(one.row.environment, {}).get("threads") for one in rows if not one.host), 0)
        out.append(f"edgetl bench {shlex.quote(name)}" + (f" --threads {threads}" if threads else ""))
    out += [f"edgetl deploy {shlex.quote(name)} USER@{host}" for host in sorted({one.host for one in rows if one.host})]
    return [*out, f"edgetl report {shlex.quote(name)} --html {shlex.quote(name + '.html')}"]


def _export(name: str, records: Sequence[Mapping[str, Any]]) -> str:
    precisions = {record["precision"] for record in records}
    lowered = ["--int8"] if "int8" in precisions else ["--fp16"] if "fp16" in precisions else []
    options = dict(records[-1].get("options") or {})
    words = ["edgetl", "export", name, *lowered]
    for key, usual in _EXPORT.items():
        if key in options and options[key] != usual:
            words += ["--" + key.replace("_", "-"), str(options[key])]
    if records[-1].get("input") == "uint8":
        words += ["--input", "uint8"]
    for key, option in (("own_calibration_data", "--calib"), ("own_guard_data", "--guard-data")):
        words += [option, "DATA"] if options.get(key) else []
    words += [flag for key, flag in (("confident", "--confident"), ("calibrated", "--calibrated")) if options.get(key)]
    return shlex.join(words)
