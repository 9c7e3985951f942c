"""Releases on a device: in the order in which they served, whatever its clock says; whole again after damage."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from edgetl.bundle import Bundle, sha256_file
from edgetl.deploy.cargo import Cargo, frames, pack
from edgetl.deploy.steps import plan
from edgetl.device import release, store
from edgetl.device.receive import receive
from edgetl.errors import BundleError
from edgetl.spec import Precision, Profile


def pushed(root: Path, bundle: Bundle, precision: Precision | None = None) -> Cargo:
    """The cargo, with what the store lacked of it pushed."""
    cargo = pack(bundle, (Profile.TRT10,), precision, True)
    lacking = store.missing(root, [piece.wanted() for piece in cargo.pieces])
    receive(root, io.BytesIO(b"".join(frames(cargo.pieces, lacking))))
    assert store.missing(root, [piece.wanted() for piece in cargo.pieces]) == []
    return cargo


def serving(root: Path, cargo: Cargo, keep: int = 3) -> dict[str, Any]:
    release.install(root, cargo.manifest.sha256)
    return release.activate(root, cargo.release, {"precision": "fp32"}, keep)


@pytest.fixture
def three(opened: Bundle, tmp_path: Path) -> tuple[Path, list[Cargo]]:
    """A deployment folder that served three releases, each with a date before the one before it."""
    root = tmp_path / "deployment"
    cargos = []
    for precision in (Precision.FP32, Precision.INT8, None):
        cargos.append(pushed(root, opened, precision))
        serving(root, cargos[-1])
        os.utime(root / "releases" / cargos[-1].release, (1e9 - len(cargos) * 1e8,) * 2)
    return root, cargos


def test_the_order_is_that_of_serving_and_not_of_dates(three: Any) -> None:
    root, cargos = three
    names = [cargo.release for cargo in cargos]
    told = store.state(root)
    assert told["releases"] == names and told["current"] == names[2] and told["serve"]["turn"] == 3
    assert release.rollback(root, 3) == {"current": names[1], "previous": names[2], "removed": []}
    assert store.state(root)["releases"] == [names[0], names[2], names[1]]
    assert release.rollback(root, 3)["current"] == names[2]


def test_what_is_kept_is_what_served_last_and_never_less_than_what_serves(three: Any) -> None:
    root, cargos = three
    names = [cargo.release for cargo in cargos]
    told = release.activate(root, names[0], None, 1)
    assert told["removed"] == [names[1], names[2]] and store.state(root)["releases"] == [names[0]]
    Bundle.open(root / "current")
    wanted = {piece.sha256 for piece in cargos[0].pieces}
    assert {path.name for path in (root / "store").iterdir()} == wanted
    with pytest.raises(BundleError, match="no release to go back to"):
        release.rollback(root, 1)


def test_to_ask_what_is_missing_changes_nothing_and_the_next_push_mends(three: Any) -> None:
    root, cargos = three
    cargo = cargos[2]
    graph = next(record for record in cargo.records if record["precision"] == "int8")
    stored = root / "store" / graph["sha256"]
    stored.write_bytes(b"x" + stored.read_bytes()[1:])
    lacking = store.missing(root, [piece.wanted() for piece in cargo.pieces])
    assert [(entry["sha256"], entry["have"]) for entry in lacking] == [(graph["sha256"], 0)] and stored.is_file()
    served = root / "current" / graph["file"]
    assert sha256_file(served) != graph["sha256"], "the store and the release are one file"
    todo = plan(store.state(root), lacking, cargo, None)
    assert todo.fresh and [entry["sha256"] for entry in todo.missing] == [graph["sha256"]]

    receive(root, io.BytesIO(b"".join(frames(cargo.pieces, lacking))))
    assert release.install(root, cargo.manifest.sha256) == {"release": cargo.release, "new": False}
    assert sha256_file(served) == graph["sha256"] and served.samefile(stored)
    todo = plan(store.state(root), (), cargo, None)
    assert not todo.fresh and todo.variants == ("fp32",)


def test_a_release_without_its_notes_was_never_served(three: Any) -> None:
    root, cargos = three
    for damaged in ("[]", "{", json.dumps({"precision": "fp32"})):
        (root / "releases" / cargos[0].release / store.SERVE).write_text(damaged)
        assert store.turn(root, cargos[0].release) == 0
    assert store.state(root)["releases"][0] == cargos[0].release
