"""Create, add, open, find and check: what stages do with a bundle."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jsonschema
import pytest

from edgetl.bundle import SCHEMA_FILE, Bundle, NewArtifact, create, locked, sha256_bytes, work_dir, writing
from edgetl.errors import BundleError
from edgetl.spec import Precision, Preprocess, Profile


def listing(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_new_bundle_opens_with_what_was_put_in(make_bundle, tmp_path):
    make_bundle()
    bundle = Bundle.open(tmp_path / "flowers")
    assert bundle.labels == ["daisy", "雛菊"]
    assert bundle.preprocess == Preprocess(64, 72)
    assert bundle.local == {"data": "/photos", "weights": "weights"}
    assert bundle.manifest["generation"] == 1
    record = bundle.artifact("checkpoint")
    assert record["file"] == f"checkpoint-{sha256_bytes(b'weights')[:12]}.safetensors"
    assert bundle.file(record).read_bytes() == b"weights"
    assert not work_dir(bundle.path).exists()


def test_nothing_of_this_machine_is_in_the_manifest(make_bundle):
    text = (make_bundle().path / "manifest.json").read_text()
    assert "/photos" not in text
    assert str(Path.home()) not in text


def test_the_schema_ships_in_the_package_and_takes_real_manifests(make_bundle, make_artifact):
    schema = json.loads(SCHEMA_FILE.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    bundle = make_bundle()
    with writing(bundle.path, "export") as (opened, _):
        opened.add([make_artifact(b"g", profile=Profile.TRT10, precision=Precision.INT8, input="float32", met=None)])
    again = make_bundle(overwrite=True, weights=b"other")
    jsonschema.validate(again.manifest, schema)
    assert [r.get("stale") for r in again.manifest["artifacts"]] == [True, True, None]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["labels"], []),
        (["labels"], ["a", "a"]),
        (["generation"], 0),
        (["preprocess", "mean"], [0.5]),
        (["preprocess", "fit"], "squash"),
        (["splits", "train"], {"n": 1}),
        (["artifacts", 0, "file"], "../evil"),
        (["artifacts", 0, "file"], "a/../evil"),
        (["artifacts", 0, "file"], "/etc/passwd"),
        (["artifacts", 0, "file"], "c:\\x"),
        (["artifacts", 0, "file"], ""),
        (["artifacts", 0, "file"], "a//b"),
        (["artifacts", 0, "sha256"], "abc"),
        (["artifacts", 0, "bytes"], -1),
        (["artifacts", 0, "stale"], "yes"),
    ],
)
def test_schema_and_reader_refuse_the_same(make_bundle, path, value):
    from edgetl.bundle.manifest import check

    manifest = make_bundle().manifest
    at = manifest
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifest, json.loads(SCHEMA_FILE.read_text()))
    with pytest.raises(BundleError):
        check(manifest, Path("here"))


def test_a_second_export_adds_and_switches(make_bundle, make_artifact):
    path = make_bundle().path
    for data in (b"first", b"second"):
        with writing(path, "export") as (bundle, scratch):
            assert list(scratch.iterdir()) == []
            bundle.add([make_artifact(data, profile=Profile.TRT10, precision=Precision.INT8)])
    bundle = Bundle.open(path)
    assert len(bundle.artifacts("graph")) == 2
    current = bundle.artifact("graph", profile=Profile.TRT10, precision="int8")
    assert bundle.file(current).read_bytes() == b"second"
    with writing(path, "export") as (bundle, _):  # the same graph again: current, and recorded once
        bundle.add([make_artifact(b"first", profile=Profile.TRT10, precision=Precision.INT8)])
    assert bundle.file(bundle.artifact("graph")).read_bytes() == b"first"
    assert len(bundle.artifacts("graph")) == 2


def test_add_updates_fields_in_the_same_step(make_bundle):
    path = make_bundle().path
    with writing(path, "export") as (bundle, _):
        bundle.add([], {"tolerances": {"fp32": {"relative": 0.5}}})
    assert Bundle.open(path).manifest["tolerances"] == {"fp32": {"relative": 0.5}}


def test_what_is_missing_is_named_beside_what_is_there(make_bundle, make_artifact):
    path = make_bundle().path
    with writing(path, "export") as (bundle, _):
        bundle.add([make_artifact(b"g", profile="trt8", precision="fp32", input="float32")])
    with pytest.raises(BundleError, match=r"no graph precision=int8: .*; it has: trt8/fp32/float32"):
        bundle.artifact("graph", precision=Precision.INT8)
    with pytest.raises(BundleError, match="it has: none"):
        bundle.artifact("engine")


def test_a_new_generation_makes_older_artifacts_stale_and_keeps_them(make_bundle, make_artifact):
    path = make_bundle().path
    with writing(path, "export") as (bundle, _):
        bundle.add([make_artifact(b"graph")])
    before = listing(path)
    bundle = make_bundle(overwrite=True, weights=b"better")
    assert bundle.manifest["generation"] == 2
    assert bundle.artifacts("graph") == []
    assert bundle.file(bundle.artifact("checkpoint")).read_bytes() == b"better"
    assert bundle.local["weights"] == "better"
    kept = listing(path)
    assert all(kept[name] == data for name, data in before.items() if name not in ("manifest.json", "local.json"))
    assert all(c.ok for c in bundle.check_files())


def test_the_same_checkpoint_again_is_current_and_not_stale(make_bundle):
    make_bundle()
    assert len(make_bundle(overwrite=True).artifacts("checkpoint")) == 1


def test_local_notes_that_are_ahead_of_a_killed_generation_are_not_believed(make_bundle):
    path = make_bundle().path
    old = (path / "manifest.json").read_bytes()
    make_bundle(overwrite=True, weights=b"better")
    (path / "manifest.json").write_bytes(old)  # as a kill between the two files leaves it
    assert Bundle.open(path).local["weights"] == "weights"
    for odd in ({"generation": 2}, {"generation": "x", "data": 1}, {"generation": 5, "before": []}):
        (path / "local.json").write_text(json.dumps(odd))
        assert Bundle.open(path).local in ({}, {"data": 1})
    (path / "local.json").unlink()
    assert Bundle.open(path).local == {}


def test_no_bundle_is_made_over_something(make_bundle, tmp_path):
    make_bundle()
    before = listing(tmp_path / "flowers")
    with pytest.raises(BundleError, match=r"something at this place already.*--overwrite"):
        make_bundle()
    assert listing(tmp_path / "flowers") == before
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("do not touch")
    with pytest.raises(BundleError, match=r"no manifest\.json"):
        make_bundle("thesis", overwrite=True)
    assert listing(tmp_path / "thesis") == {"chapter.txt": b"do not touch"}
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="something at this place"):
        make_bundle("file")
    assert not list(tmp_path.glob("*.work"))


def test_an_empty_folder_is_a_fine_place(make_bundle, tmp_path):
    (tmp_path / "flowers").mkdir()
    assert make_bundle().labels


def test_a_bundle_reached_by_a_link_has_the_same_lock(make_bundle, tmp_path):
    path = make_bundle().path
    (tmp_path / "current").symlink_to(path)
    with locked(path), pytest.raises(BundleError, match="another edgetl"), writing(tmp_path / "current", "export"):
        pass
    with writing(tmp_path / "current", "export") as (bundle, _):
        bundle.add([], {"training": {}})
    assert Bundle.open(path).manifest["training"] == {}


def test_a_stage_that_fails_takes_back_what_it_placed(make_bundle, make_artifact, tmp_path):
    path = make_bundle().path
    before = listing(path)
    gone = NewArtifact(tmp_path / "never-written", "graphs/trt8/fp32-{sha12}.onnx", {"kind": "graph", "made_by": "x"})
    with pytest.raises(FileNotFoundError), writing(path, "export") as (bundle, _):
        bundle.add([make_artifact(b"one"), gone])
    assert listing(path) == before
    with pytest.raises(BundleError, match="one file"), writing(path, "export") as (bundle, _):
        bundle.add([make_artifact(b"one", profile="a"), make_artifact(b"one", profile="b")])
    with pytest.raises(BundleError, match="made_by"), writing(path, "export") as (bundle, _):
        bundle.add([NewArtifact(make_artifact(b"two").source, "graphs/x-{sha12}.onnx", {"kind": "graph"})])
    with pytest.raises(BundleError, match="JSON cannot say"), writing(path, "export") as (bundle, _):
        bundle.add([make_artifact(b"three", parity=float("nan"))])
    with pytest.raises(BundleError, match="outside the bundle"), writing(path, "export") as (bundle, _):
        bundle.add([make_artifact(b"four", name="../{sha12}.onnx")])
    assert listing(path) == before
    assert not work_dir(path).exists()
    with pytest.raises(BundleError), locked(tmp_path / "never"):
        create(tmp_path / "never", {"labels": []}, [make_artifact(b"one")], {})
    assert not (tmp_path / "never").exists()
    assert not work_dir(tmp_path / "never").exists()


def test_ctrl_c_just_after_the_manifest_keeps_what_it_records(make_bundle, make_artifact, monkeypatch):
    from edgetl.bundle import files

    path = make_bundle().path
    real = files.atomic_json

    def interrupted(target: Path, data: object) -> None:
        real(target, data)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), writing(path, "export") as (bundle, _):
        monkeypatch.setattr(files, "atomic_json", interrupted)
        bundle.add([make_artifact(b"graph")])
    monkeypatch.undo()
    bundle = Bundle.open(path)
    assert bundle.artifacts("graph")
    assert all(c.ok for c in bundle.check_files())


def test_a_killed_writers_leavings_go_and_the_users_files_stay(make_bundle, make_artifact):
    path = make_bundle().path
    with writing(path, "export") as (bundle, _):
        bundle.add([make_artifact(b"graph")])
    sha12 = "0123456789ab"
    orphans = [f"checkpoint-{sha12}.safetensors", f"splits-{sha12}.json", f"graphs/trt10/int8-{sha12}.onnx"]
    orphans += [
        f"engines/{sha12}.plan",
        f"golden/images/00-{sha12}.jpg",
        ".edgetl-77-abc.tmp",
        "graphs/.edgetl-7-b.tmp",
    ]
    orphans += [".edgetl-77-abc.tmp", "graphs/.edgetl-7-b.tmp"]
    users = ["README.md", "graphs/notes.txt", "runs/mine.jsonl", "engines/timing.cache", f"photos/x-{sha12}.jpg"]
    for name in orphans + users:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("x")
    work_dir(path).mkdir()
    (work_dir(path) / "export").mkdir()
    (work_dir(path) / "export/half").write_text("x")
    with writing(path, "export") as (bundle, scratch):
        assert list(scratch.iterdir()) == []
    left = listing(path)
    assert not set(orphans) & set(left)
    assert set(users) <= set(left)
    assert all(c.ok for c in bundle.check_files())
    assert not work_dir(path).exists()


def test_changed_and_missing_bytes_are_found(make_bundle, make_artifact):
    path = make_bundle().path
    with writing(path, "export") as (bundle, _):
        bundle.add([make_artifact(b"graph"), make_artifact(b"logits", "golden/graph-{sha12}.npy", kind="graph-logits")])
    graph, logits = bundle.artifact("graph"), bundle.artifact("graph-logits")
    (path / graph["file"]).write_bytes(b"grapH")
    (path / logits["file"]).unlink()
    checks = {c.name: c for c in bundle.check_files()}
    assert [c.ok for c in checks.values()] == [True, False, False]
    assert checks["sha256 " + graph["file"]].as_json()["value"] == "the bytes of a file in the bundle changed"
    with pytest.raises(BundleError, match=r"changed: .*int8-.*run its stage again"):
        bundle.file(graph)
    with pytest.raises(BundleError, match="missing"):
        bundle.file(logits)
    with writing(path, "export") as (bundle, _):  # running the stage again mends it
        bundle.add([make_artifact(b"graph"), make_artifact(b"logits", "golden/graph-{sha12}.npy", kind="graph-logits")])
    assert all(c.ok for c in bundle.check_files())


def test_an_engines_key_never_names_other_bytes_than_the_record(make_bundle, make_artifact):
    path = make_bundle().path
    for data in (b"plan", b"plan of another day", b"plan"):
        with writing(path, "build") as (bundle, _):
            bundle.add([make_artifact(data, "engines/0123456789ab.plan", kind="engine", made_by="build")])
    assert sorted(p.name for p in (path / "engines").iterdir()) == [
        f"0123456789ab-{sha256_bytes(b'plan of another day')[:12]}.plan",
        "0123456789ab.plan",
    ]
    assert bundle.artifact("engine")["file"] == "engines/0123456789ab.plan"
    assert all(c.ok for c in Bundle.open(path).check_files())


def test_rows_are_appended_whole(make_bundle):
    bundle = make_bundle()
    path = bundle.append_rows("bench", ['{"a":1}', '{"a":2}'])
    path.write_bytes(path.read_bytes()[:-1])  # as a power cut may leave it
    bundle.append_rows("bench", ['{"a":3}'])
    assert [json.loads(line)["a"] for line in path.read_text().splitlines()] == [1, 2, 3]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_a_bundle_error(make_bundle):
    bundle = make_bundle()
    record = bundle.artifact("checkpoint")
    (bundle.path / record["file"]).chmod(0)
    with pytest.raises(BundleError, match="cannot be read"):
        bundle.file(record)
