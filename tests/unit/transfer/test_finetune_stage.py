import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from edgetl.bundle import SCHEMA_FILE, Bundle, work_dir
from edgetl.errors import BackboneError, BundleError, CorruptImage, DataError, InputError, WeightsError
from edgetl.images import ReadOptions, read_data
from edgetl.monitor import Monitor
from edgetl.transfer import FinetuneOptions, backbones, finetune
from edgetl.transfer.network import TorchBackend, deployed

METRICS = {
    *("accuracy", "accuracy_ci", "macro_precision", "macro_recall", "macro_f1", "per_class", "ece"),
    *("confusion", "n"),
}
RESULT = {
    *("bundle", "backbone", "strategy", "chosen", "selection", "labels", "n", "best_epoch", "val", "test"),
    *("linear_probe", "adaptation", "near_duplicates", "confidence", "seconds", "images_per_second"),
}
BASE: dict[str, Any] = {"backbone": "smallnet", "image_size": 16, "epochs": 2, "batch_size": 8, "amp": "off"}


@pytest.fixture
def folder(make_folder: Callable[..., Path]) -> Path:
    return make_folder(n=20, size=20)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Pretrained weights of another task (7 classes)."""
    torch.manual_seed(3)
    save_file(backbones.build("smallnet", 7, 32).state_dict(), tmp_path / "source.safetensors")
    return tmp_path / "source.safetensors"


def _run(folder: Path, to: Path, monitor: Monitor | None = None, **options: Any) -> dict[str, Any]:
    merged = {**BASE, **options}
    return finetune(read_data(str(folder), ReadOptions()), to, FinetuneOptions(**merged), monitor or Monitor())


@pytest.mark.parametrize("strategy", ["lp-ft", "linear-probe", "features", "gradual", "full", "scratch", "auto"])
def test_each_strategy_makes_a_whole_bundle(tmp_path: Path, folder: Path, source: Path, strategy: str) -> None:
    weights = "none" if strategy == "scratch" else str(source)
    result = _run(folder, tmp_path / "b", strategy=strategy, weights=weights)
    bundle = Bundle.open(tmp_path / "b")
    assert set(result) == RESULT
    assert set(result["val"]) == set(result["test"]) == set(result["linear_probe"]) == METRICS
    assert result["strategy"] == strategy
    allowed = {"scratch": {"scratch"}, "auto": {"linear-probe", "features", "lp-ft", "gradual", "wise-ft"}}
    frozen = strategy in ("linear-probe", "features")
    averaged = set() if frozen else {"wise-ft"}
    assert result["chosen"] in allowed.get(strategy, {strategy, "linear-probe"} | averaged)
    assert result["val"]["accuracy"] >= result["linear_probe"]["accuracy"] or strategy == "scratch"
    assert all(check.ok for check in bundle.check_files())
    assert not work_dir(tmp_path / "b").exists()
    assert json.loads(json.dumps(result)) == result
    # auto trains nothing where the probe is right on all of val
    trained = not frozen and (strategy != "auto" or result["linear_probe"]["accuracy"] < 1)
    assert (bundle.path / "runs" / "finetune.jsonl").exists() == trained
    assert any(bundle.path.glob("runs/tensorboard/1/events*")) == trained


def test_the_manifest_follows_its_schema(tmp_path: Path, folder: Path, source: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    _run(folder, tmp_path / "b", weights=str(source), strategy="linear-probe")
    manifest = Bundle.open(tmp_path / "b").manifest
    jsonschema.validate(manifest, json.loads(SCHEMA_FILE.read_text()))
    assert str(tmp_path) not in json.dumps(manifest), "what travels holds no path of this machine"


def test_a_linear_probe_carries_the_source_body_over_bit_for_bit(tmp_path: Path, folder: Path, source: Path) -> None:
    _run(folder, tmp_path / "b", weights=str(source), strategy="linear-probe")
    bundle = Bundle.open(tmp_path / "b")
    ours, given = load_file(bundle.file(bundle.artifact("checkpoint"))), load_file(source)
    assert all(torch.equal(v, given[k]) for k, v in ours.items() if not k.startswith("fc."))


def test_golden_cases_come_from_train_and_not_from_calibration(tmp_path: Path, folder: Path) -> None:
    _run(folder, tmp_path / "b", weights="none", strategy="linear-probe")
    bundle = Bundle.open(tmp_path / "b")
    splits = json.loads(bundle.file(bundle.artifact("splits")).read_text())
    digests = {name: {row[2] for row in rows} for name, rows in splits.items()}
    golden = bundle.artifacts("golden-image")
    shas = {r["sha256"] for r in golden}
    assert shas <= digests["train"]
    assert not shas & digests["calibration"]
    assert digests["calibration"] <= digests["train"]
    assert not digests["calibration"] & (digests["val"] | digests["test"])
    assert [r["index"] for r in golden] == list(range(len(golden)))
    labels = [r["label"] for r in golden]
    assert abs(labels.count(0) - labels.count(1)) <= 1


def test_the_deployed_network_repeats_the_golden_logits(tmp_path: Path, folder: Path, source: Path) -> None:
    _run(folder, tmp_path / "b", weights=str(source))
    bundle = Bundle.open(tmp_path / "b")
    pixels = np.load(bundle.file(bundle.artifact("golden-pixels")))
    logits = np.load(bundle.file(bundle.artifact("golden-logits")))
    batch = pixels.transpose(0, 3, 1, 2).astype(np.float32)
    with torch.inference_mode():
        again = deployed(bundle)(torch.from_numpy(batch)).numpy()
    np.testing.assert_allclose(again, logits, rtol=1e-4, atol=1e-4)
    backend = TorchBackend(bundle)
    np.testing.assert_allclose(backend.run(batch), logits, rtol=1e-4, atol=1e-4)
    assert (backend.input.shape, backend.provider, backend.evidence) == ((-1, 3, 16, 16), "cpu", "host-cpu")
    assert backend.device_ms() is None
    backend.close()


def test_nothing_is_chosen_on_the_test_split(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    """Other test images, same checkpoint: neither fitting, nor early stopping, nor the choice sees them."""
    checkpoints = []
    for name in ("one", "two"):
        folder = tmp_path / name
        for split, seed, n in (("train", 1, 12), ("val", 2, 6), ("test", 3 if name == "one" else 4, 6)):
            make_folder(n=n, size=20, name=f"{name}/{split}", seed=seed)
        _run(folder, tmp_path / f"b-{name}", weights="none", strategy="lp-ft")
        checkpoints.append(Bundle.open(tmp_path / f"b-{name}").artifact("checkpoint")["sha256"])
    assert checkpoints[0] == checkpoints[1]


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path: Path, folder: Path) -> None:
    shas = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        _run(folder, tmp_path / name, weights="none", seed=seed)
        shas.append(Bundle.open(tmp_path / name).artifact("checkpoint")["sha256"])
    assert shas[0] == shas[1] != shas[2]


def test_a_worse_fine_tuned_model_is_not_kept(tmp_path: Path, folder: Path, source: Path) -> None:
    result = _run(folder, tmp_path / "b", weights=str(source), strategy="full", lr=1e-9)
    assert result["chosen"] == "linear-probe"
    assert result["val"]["accuracy"] == result["linear_probe"]["accuracy"]
    assert result["best_epoch"] == 0


def test_resume_of_a_finished_run_prints_the_same_object(tmp_path: Path, folder: Path) -> None:
    first = _run(folder, tmp_path / "b", weights="none", resume=True)
    before = (tmp_path / "b" / "manifest.json").read_bytes()
    assert _run(folder, tmp_path / "b", weights="none", resume=True) == first
    assert (tmp_path / "b" / "manifest.json").read_bytes() == before
    with pytest.raises(InputError, match="epochs"):
        _run(folder, tmp_path / "b", weights="none", resume=True, epochs=3)
    assert not work_dir(tmp_path / "b").exists()


class Interrupting(Monitor):
    """Ctrl-C at the first progress of `what`, by whole words: "val" is not "validate"."""

    def __init__(self, what: str) -> None:
        self.what = what

    def progress(self, what: str, done: int, total: int) -> None:
        if f"{what} ".startswith(f"{self.what} "):
            raise KeyboardInterrupt


def test_killed_after_the_bundle_was_made_it_is_finished(tmp_path: Path, folder: Path) -> None:
    """Between the bundle's rename and the sweep of the work folder."""
    first = _run(folder, tmp_path / "b", weights="none", resume=True)
    work = work_dir(tmp_path / "b") / "finetune"
    work.mkdir(parents=True)
    (work / "identity.json").write_text(json.dumps(Bundle.open(tmp_path / "b").manifest["training"]["identity"]))
    assert _run(folder, tmp_path / "b", weights="none", resume=True) == first
    assert not work_dir(tmp_path / "b").exists()


PHASES = ("decode", "features", "probe", "mirror", "epoch 1", "validate", "epoch 2", "val", "test")


@pytest.mark.parametrize("phase", PHASES)
def test_interrupted_in_any_phase_it_resumes_to_the_same_bytes(
    tmp_path: Path, folder: Path, source: Path, phase: str
) -> None:
    options = {"weights": str(source), "epochs": 3}
    expected = _run(folder, tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        _run(folder, tmp_path / "cut", Interrupting(phase), **options)
    assert not (tmp_path / "cut").exists()
    assert (work_dir(tmp_path / "cut") / "finetune").is_dir(), "what --resume continues from"
    found = _run(folder, tmp_path / "cut", resume=True, **options)
    whole, cut = Bundle.open(tmp_path / "whole"), Bundle.open(tmp_path / "cut")
    assert cut.artifact("checkpoint")["sha256"] == whole.artifact("checkpoint")["sha256"]
    assert found["val"] == expected["val"]
    assert not work_dir(tmp_path / "cut").exists()


@pytest.mark.parametrize(
    ("phase", "options"),
    [
        pytest.param("classifiers", {"strategy": "features"}, marks=pytest.mark.slow),
        ("classifiers", {"strategy": "auto"}),
        ("epoch 2", {"strategy": "gradual"}),
        ("epoch 2", {"keep": "delta"}),
        pytest.param("epoch 2", {"keep": "l2sp", "strategy": "full"}, marks=pytest.mark.slow),
        ("epoch 1", {"teacher": True}),
        pytest.param("validate", {"teacher": True, "keep": "bss"}, marks=pytest.mark.slow),
    ],
)
def test_every_strategy_resumes_to_the_same_bytes(
    tmp_path: Path, folder: Path, source: Path, phase: str, options: dict[str, Any]
) -> None:
    if options.get("teacher"):
        _run(folder, tmp_path / "teacher", weights=str(source), strategy="linear-probe", image_size=20)
        options = {**options, "teacher": tmp_path / "teacher", "unlabelled": folder}
    options = {"weights": str(source), **options}
    expected = _run(folder, tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        _run(folder, tmp_path / "cut", Interrupting(phase), **options)
    assert not (tmp_path / "cut").exists()
    found = _run(folder, tmp_path / "cut", resume=True, **options)
    shas = [Bundle.open(tmp_path / name).artifact("checkpoint")["sha256"] for name in ("whole", "cut")]
    assert shas[0] == shas[1]
    assert found["selection"] == expected["selection"]


def test_another_teacher_or_other_unlabelled_images_are_another_run(
    tmp_path: Path, folder: Path, source: Path, make_folder: Callable[..., Path]
) -> None:
    for name, seed in (("one", 0), ("two", 1)):
        _run(folder, tmp_path / name / "t", weights="none", strategy="scratch", seed=seed, epochs=1)
    target = make_folder(n=3, name="target", seed=9)
    options: dict[str, Any] = {"weights": str(source), "teacher": tmp_path / "one" / "t", "unlabelled": target}
    _run(folder, tmp_path / "b", **options)
    assert "selection" in _run(folder, tmp_path / "b", resume=True, **options), "the same run"
    with pytest.raises(InputError, match="teacher"):
        _run(folder, tmp_path / "b", resume=True, **{**options, "teacher": tmp_path / "two" / "t"})
    Image.new("RGB", (8, 8)).save(target / "left" / "new.png")
    with pytest.raises(InputError, match="unlabelled"):
        _run(folder, tmp_path / "b", resume=True, **options)
    with pytest.raises(InputError, match="keep"):
        _run(folder, tmp_path / "b", resume=True, weights=str(source), keep="l2sp")


def test_unlabelled_images_that_are_held_out_are_not_taught_on(tmp_path: Path, folder: Path, source: Path) -> None:
    """All of them given as unlabelled: those of val and test are left out, and that is said."""
    _run(folder, tmp_path / "t", weights=str(source), strategy="linear-probe")
    said: list[str] = []
    monitor = Monitor()
    monitor.say = said.append  # type: ignore[method-assign]
    result = _run(folder, tmp_path / "b", monitor, weights=str(source), teacher=tmp_path / "t", unlabelled=folder)
    held_out = result["n"]["val"] + result["n"]["test"]
    assert f"{held_out} unlabelled images are held out here: not taught on" in said
    asked = next(line for line in said if line.startswith("asking the teacher"))
    assert asked == f"asking the teacher about {2 * result['n']['train']} images"


def test_unfinished_work_of_other_options_is_kept_and_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _run(folder, tmp_path / "b", Interrupting("epoch"), weights="none")
    with pytest.raises(InputError, match="seed"):
        _run(folder, tmp_path / "b", weights="none", seed=5, resume=True)
    assert (work_dir(tmp_path / "b") / "finetune" / "identity.json").is_file()
    _run(folder, tmp_path / "b", weights="none", seed=5)
    assert Bundle.open(tmp_path / "b").manifest["training"]["options"]["seed"] == 5


def test_overwrite_is_a_new_generation(tmp_path: Path, folder: Path) -> None:
    _run(folder, tmp_path / "b", weights="none")
    old = Bundle.open(tmp_path / "b").artifact("checkpoint")["file"]
    with pytest.raises(BundleError, match="--overwrite"):
        _run(folder, tmp_path / "b", weights="none", seed=1)
    _run(folder, tmp_path / "b", weights="none", seed=1, overwrite=True)
    bundle = Bundle.open(tmp_path / "b")
    assert bundle.manifest["generation"] == 2
    assert bundle.artifact("checkpoint")["file"] != old
    assert [r["file"] for r in bundle.manifest["artifacts"] if r.get("stale") and r["kind"] == "checkpoint"] == [old]


def test_corrupt_images_are_left_out_only_when_asked(tmp_path: Path, folder: Path) -> None:
    broken = folder / "left" / "003.png"
    broken.write_bytes(broken.read_bytes()[:90])
    with pytest.raises(CorruptImage, match=r"left/003\.png"):
        _run(folder, tmp_path / "b", weights="none")
    assert not (tmp_path / "b").exists()
    assert not work_dir(tmp_path / "b").exists()
    warned: list[str] = []
    monitor = Monitor()
    monitor.warn = warned.append  # type: ignore[method-assign]
    result = _run(folder, tmp_path / "b", monitor, weights="none", skip_corrupt=True)
    assert "003.png" in warned[0]
    assert warned[1].startswith("1 corrupt")
    assert sum(result["n"][s] for s in ("train", "val", "test")) == 39
    assert len(Bundle.open(tmp_path / "b").manifest["training"]["skipped"]) == 1


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"backbone": "smalnet"}, BackboneError),
        ({"backbone": "resnet18", "weights": "embedded"}, BackboneError),
        ({"image_size": 4}, BackboneError),
        ({"weights": "nowhere.pth"}, WeightsError),
        ({"amp": "fp16", "device": "cpu", "weights": "none"}, InputError),
        ({"backbone_args": "width=2", "weights": "none"}, BackboneError),
    ],
)
def test_bad_options_leave_nothing_behind(
    tmp_path: Path, folder: Path, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        _run(folder, tmp_path / "b", **options)
    assert {p.name for p in tmp_path.iterdir()} == {"photos"}


def test_without_validation_images_there_is_nothing_to_choose_by(tmp_path: Path, folder: Path) -> None:
    data = read_data(str(folder), ReadOptions(val_fraction=0.0))
    with pytest.raises(DataError, match="validation"):
        finetune(data, tmp_path / "b", FinetuneOptions(**BASE, weights="none"))


def test_without_test_images_test_is_null(tmp_path: Path, folder: Path) -> None:
    data = read_data(str(folder), ReadOptions(test_fraction=0.0))
    result = finetune(data, tmp_path / "b", FinetuneOptions(**BASE, weights="none", strategy="linear-probe"))
    assert result["test"] is None
    assert result["n"]["test"] == 0


def test_mirror_images_are_used_only_where_they_keep_their_class(tmp_path: Path) -> None:
    """Classes that differ by which side is bright are each other's mirror image."""
    rng = np.random.default_rng(0)
    for label in ("west", "east"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(30):
            pixels = rng.integers(0, 60, (16, 16, 3), dtype=np.uint8)
            pixels[:, :8] += 150
            image = pixels if label == "west" else np.ascontiguousarray(pixels[:, ::-1])
            Image.fromarray(image).save(tmp_path / "photos" / label / f"{i}.png")
    said: list[str] = []
    monitor = Monitor()
    monitor.say = said.append  # type: ignore[method-assign]
    torch.manual_seed(0)
    _run(tmp_path / "photos", tmp_path / "b", monitor, weights="embedded", backbone=None, image_size=None, epochs=1)
    assert any("mirrored images are not used" in line for line in said)


def test_without_photos_only_arrays_are_kept(tmp_path: Path, folder: Path) -> None:
    _run(folder, tmp_path / "b", weights="none", strategy="linear-probe", golden_photos=False)
    bundle = Bundle.open(tmp_path / "b")
    assert bundle.artifacts("golden-image") == []
    assert bundle.artifact("golden-pixels")["bytes"] > 0
