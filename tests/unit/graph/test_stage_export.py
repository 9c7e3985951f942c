"""The export stage on a small network: real modelopt, onnxruntime and, where installed, NVIDIA's builder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgetl import engine
from edgetl.bundle import Bundle, NewArtifact, sha256_file, writing
from edgetl.errors import BundleError, ContractUnmet, DataError, GraphError, InputError
from edgetl.graph import ExportOptions, check_parity, export, surgery
from edgetl.graph.worker import worker
from edgetl.images import to_batch
from edgetl.images.of_bundle import open_data
from edgetl.runtime.ort import OrtBackend
from edgetl.spec import InputKind


def digests(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): sha256_file(p) for p in folder.rglob("*") if p.is_file()}


def graph(bundle: Path, **want: str) -> Path:
    opened = Bundle.open(bundle)
    return opened.file(opened.artifact("graph", **want))


def pixels(bundle: Path) -> np.ndarray:
    opened = Bundle.open(bundle)
    return np.asarray(np.load(opened.file(opened.artifact("golden-pixels"))))


def test_every_profile_has_its_three_graphs_at_its_opset(exported: Path) -> None:
    found = {(r["profile"], r["precision"]): r for r in Bundle.open(exported).artifacts("graph")}
    assert set(found) == {(p, q) for p in ("trt8", "trt10") for q in ("fp32", "fp16", "int8")}
    assert {r["opset"] for key, r in found.items() if key[0] == "trt8"} == {13}
    assert {r["opset"] for key, r in found.items() if key[0] == "trt10"} == {19}
    assert found["trt8", "fp16"]["build_flags"] == ["FP16"]
    assert found["trt8", "int8"]["build_flags"] == ["INT8", "FP16"]
    assert all(r["met"] is None for key, r in found.items() if key[1] != "int8")


def test_graphs_have_a_free_batch_named_ends_and_pass_the_checker(exported: Path) -> None:
    for record in Bundle.open(exported).artifacts("graph"):
        model = onnx.load(str(exported / record["file"]))
        onnx.checker.check_model(model, full_check=True)
        assert [v.name for v in model.graph.input] == ["image"]
        assert [v.name for v in model.graph.output] == ["logits"]
        assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
        assert {p.key for p in model.metadata_props} == {"labels", "precision", "preprocess", "profile"}


def test_both_int8_graphs_quantise_the_same_tensors_with_the_same_scales(exported: Path) -> None:
    scales = []
    for profile in ("trt8", "trt10"):
        model = onnx.load(str(graph(exported, profile=profile, precision="int8")))
        values = {t.name: onnx.numpy_helper.to_array(t).astype(np.float32) for t in model.graph.initializer}
        pairs = [n for n in model.graph.node if n.op_type == "QuantizeLinear"]
        scales.append({n.name: values[n.input[1]] for n in pairs})
    assert set(scales[0]) == set(scales[1])
    assert len(scales[0]) > 4
    assert all(np.array_equal(scales[0][name], scales[1][name]) for name in scales[0])
    assert all((scale > 0).all() for scale in scales[1].values())


def test_calibration_is_stored_once_and_used_for_both_profiles(exported: Path) -> None:
    records = Bundle.open(exported).artifacts("calibration")
    assert len(records) == 1
    body = json.loads((exported / records[0]["file"]).read_text())
    assert set(body["ranges"]) == {"max", "entropy", "percentile", "mse"}
    assert body["n"] == records[0]["n"] > 0


def test_fp32_and_fp16_say_what_pytorch_says(exported: Path) -> None:
    for record in Bundle.open(exported).artifacts("graph"):
        if record["precision"] != "int8":
            assert record["parity"]["relative"] < 2e-2
            assert record["parity"]["agreement"] == 1.0


def test_verify_holds_for_every_graph(exported: Path) -> None:
    checks = check_parity(Bundle.open(exported))
    assert len(checks) == 4 + 2 * 2
    assert all(check.ok for check in checks), [c.as_json() for c in checks if not c.ok]


def test_verify_notices_a_reference_that_says_something_else(ready: Path) -> None:
    opened = Bundle.open(ready)
    logits = np.load(opened.file(opened.artifact("golden-logits")))
    with writing(ready, "test") as (bundle, scratch):
        np.save(scratch / "other.npy", logits[:, ::-1])
        record = {"kind": "golden-logits", "made_by": "test"}
        bundle.add([NewArtifact(scratch / "other.npy", "golden/logits-{sha12}.npy", record)])
    bad = [check.name for check in check_parity(Bundle.open(ready)) if not check.ok]
    assert len(bad) == 4 + 2
    assert not any("itself" in name for name in bad)


@pytest.mark.parametrize("profile", ["trt8", "trt10"])
def test_onnxruntime_simulates_as_without_its_optimiser(exported: Path, profile: str) -> None:
    """Facts, trap 1: one setting, in one place, cures what the optimiser does to these graphs."""
    path, images = graph(exported, profile=profile, precision="int8"), to_batch(pixels(exported), "float32")
    simulated = OrtBackend(path, threads=1).run(images)
    plain = OrtBackend(path, threads=1, optimise=False).run(images)
    assert (simulated.argmax(axis=1) == plain.argmax(axis=1)).all()
    assert np.abs(simulated - plain).max() < 0.1 * (plain.max() - plain.min())


@pytest.mark.rtx
def test_nvidias_builder_runs_the_quantised_layers_in_int8(exported: Path) -> None:
    if engine.missing():
        pytest.skip(engine.missing())
    for profile in ("trt8", "trt10"):
        record = Bundle.open(exported).artifact("graph", profile=profile, precision="int8")
        assert record["int8_macs_share"] > 0.5
        assert record["coverage"]["fallbacks"] == []


def test_the_same_inputs_give_the_same_bytes(exported: Path, plain_bundle: Path, tmp_path: Path) -> None:
    again = Path(shutil.copytree(plain_bundle, tmp_path / "again"))
    export(again, ExportOptions(int8=True, max_drop=100.0, threads=1))
    first = {r["precision"]: r["sha256"] for r in Bundle.open(exported).artifacts("graph", profile="trt10")}
    second = {r["precision"]: r["sha256"] for r in Bundle.open(again).artifacts("graph", profile="trt10")}
    assert first == second


def test_a_drop_above_the_contract_keeps_the_graph_and_carries_the_whole_result(ready: Path) -> None:
    options = ExportOptions(int8=True, target="jetpack5", method="max", max_drop=0.0, confident=True)
    with pytest.raises(ContractUnmet) as caught:
        export(ready, options)
    result = caught.value.result
    assert result["guard"]["met"] is False
    assert [a["precision"] for a in result["artifacts"]] == ["fp32", "fp16", "int8"]
    record = Bundle.open(ready).artifact("graph", precision="int8", profile="trt8")
    assert record["met"] is False
    assert record["guard"] == result["guard"]


def test_uint8_and_probabilities_are_the_same_network(fresh: Path) -> None:
    export(fresh, ExportOptions())
    export(fresh, ExportOptions(input=InputKind.UINT8, output="probabilities"))
    images = pixels(fresh)
    plain = OrtBackend(graph(fresh, input="float32")).run(to_batch(images, "float32"))
    other = OrtBackend(graph(fresh, input="uint8")).run(images)
    softmax = np.exp(plain) / np.exp(plain).sum(axis=1, keepdims=True)
    assert np.allclose(np.exp(other), softmax, atol=1e-5)
    assert all(check.ok for check in check_parity(Bundle.open(fresh)))


def test_a_second_export_adds_and_edits_nothing_older(fresh: Path) -> None:
    export(fresh, ExportOptions())
    before = digests(fresh)
    export(fresh, ExportOptions(target="jetpack5"))
    after = digests(fresh)
    changed = {name for name in before if after.get(name) != before[name]}
    assert changed == {"manifest.json"}


def test_a_killed_export_leaves_the_bundle_as_it_was(fresh: Path) -> None:
    before = digests(fresh)
    code = "import sys; from edgetl.graph import *; export(sys.argv[1], ExportOptions(int8=True))"
    process = subprocess.Popen([sys.executable, "-c", code, str(fresh)])
    scratch = fresh.with_name(fresh.name + ".work") / "export"
    deadline = time.monotonic() + 120
    while not (scratch / "calibration.pixels").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert digests(fresh) == before
    export(fresh, ExportOptions())  # and the next one sweeps what was left
    assert not scratch.parent.exists()


STEPS = {
    "calibration": "edgetl.graph.int8.calibrated",
    "bias correction": "edgetl.graph.bias.corrected",
    "weight rounding": "edgetl.graph.rounding.rounded",
    "equalisation": "edgetl.graph.equalise.equalised",
    "harm of layers": "edgetl.graph.exclude.effects",
    "layers in float": "edgetl.graph.exclude.fewest",
    "training": "edgetl.graph.int8.trained",
    "NVIDIA's builder": "edgetl.graph.int8.settled",
    "verdict": "edgetl.graph.int8._judged",
    "X-ray": "edgetl.graph.layers.artifact",
    "recording": "edgetl.bundle.Bundle.add",
}


@pytest.mark.parametrize(
    "step",
    [s if s in ("calibration", "training", "recording") else pytest.param(s, marks=pytest.mark.slow) for s in STEPS],
)
def test_interrupting_at_any_rung_leaves_the_bundle_as_it_was(
    ready: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    before = digests(ready)
    at = []

    def interrupt(*_: object, **__: object) -> None:
        at.append(step)
        raise KeyboardInterrupt

    monkeypatch.setattr(STEPS[step], interrupt)
    if step == "calibration":
        options = ExportOptions(int8=True, calib_size="40")  # of another size, so that the known one does not serve
    else:  # nothing keeps a contract of no loss at all here, so every rung is climbed
        options = ExportOptions(int8=True, max_drop=0.0, rescue="qat")
    with pytest.raises(KeyboardInterrupt):
        export(ready, options)
    assert at == [step]
    assert digests(ready) == before
    assert not ready.with_name(ready.name + ".work").exists()


def test_data_that_moved_is_told_with_the_way_out(fresh: Path, tmp_path: Path) -> None:
    (fresh / "local.json").write_text(json.dumps({"data": str(tmp_path / "gone")}))
    with pytest.raises(DataError, match=r"gone.*--calib"):
        export(fresh, ExportOptions(int8=True))
    (fresh / "local.json").unlink()
    with pytest.raises(DataError, match="travelled"):
        export(fresh, ExportOptions(int8=True))
    export(fresh, ExportOptions())  # fp32 needs no images of its own


def test_calibration_data_of_other_classes_is_refused(fresh: Path, make_folder: object) -> None:
    folder = make_folder(classes=("cats", "dogs"), n=4)  # type: ignore[operator]
    with pytest.raises(DataError, match="cats"):
        export(fresh, ExportOptions(int8=True, calib=str(folder)))


def test_an_empty_calibration_folder_is_refused(fresh: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no class folders"):
        export(fresh, ExportOptions(int8=True, calib=str(tmp_path / "empty")))
    assert not Bundle.open(fresh).artifacts("graph")


def test_a_corrupt_calibration_image_is_named_and_nothing_is_written(
    fresh: Path, photo_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(photo_folder, tmp_path / "calib"))
    for victim in sorted((folder / "left").iterdir())[:30]:
        victim.write_bytes(b"no image")
    before = digests(fresh)
    with pytest.raises(DataError, match=r"left/\d+\.png"):
        export(fresh, ExportOptions(fp16=True, calib=str(folder)))
    assert digests(fresh) == before


def test_the_guard_may_not_judge_on_the_calibration_images(fresh: Path, photo_folder: Path) -> None:
    with pytest.raises(InputError, match="calibration set"):
        export(fresh, ExportOptions(int8=True, calib=str(photo_folder), guard_data=str(photo_folder)))


def test_unlabelled_photos_judge_by_agreement(ready: Path, tmp_path: Path, photo_folder: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in sorted((photo_folder / "left").iterdir())[:6]:
        shutil.copy(path, flat / path.name)
    options = ExportOptions(
        int8=True, target="jetpack5", method="max", guard="agreement", guard_data=str(flat), max_drop=100.0
    )
    guard = export(ready, options)["guard"]
    assert 0 < guard["n"] <= 6
    assert guard["drop_pp"] == pytest.approx(100.0 * guard["flips"] / guard["n"])


def test_what_modelopt_cannot_do_is_one_error_and_the_child_lives_on(tmp_path: Path, exported: Path) -> None:
    model = surgery.load(graph(exported, profile="trt8", precision="fp32"))
    broken = surgery.copy_of(model)
    del broken.graph.node[0]
    with worker(tmp_path) as child:
        with pytest.raises(GraphError, match="modelopt failed at fp16"):
            child.fp16(broken)
        kept = model.graph.node[-1].name
        half = child.fp16(surgery.raised(model, 19), [kept])
        names = {t.name: t.data_type for t in half.graph.initializer}
        last = next(n for n in half.graph.node if n.name == kept)
        assert onnx.TensorProto.FLOAT16 in names.values()
        assert all(names[i] == onnx.TensorProto.FLOAT for i in last.input if i in names)
        child._process.kill()
        with pytest.raises(GraphError, match="modelopt process died"):
            child.fp16(model)


def test_open_data_gives_the_recorded_split_or_what_was_given(fresh: Path, photo_folder: Path) -> None:
    opened = Bundle.open(fresh)
    data, samples, name = open_data(opened, "val")
    assert name == "val"
    assert len(samples) == opened.manifest["splits"]["val"]["n"]
    assert all((data.root / s.path).is_file() for s in samples)
    _, every, name = open_data(opened, "test", str(photo_folder))
    assert (name, len(every)) == ("all", 120)
    with pytest.raises(DataError, match="no holdout"):
        open_data(opened, "holdout")


def test_no_bundle_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such bundle"):
        export(tmp_path / "nothing", ExportOptions())
