"""Calibrated probabilities and abstention, from `finetune` through `export --calibrated` to `classify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from edgetl.bundle import Bundle, writing
from edgetl.cli.app import app
from edgetl.images import decode, fitted, resized, to_batch
from edgetl.runtime.classify import softmax

PROBE = ("--weights", "embedded", "--image-size", 32, "--amp", "off", "--strategy", "linear-probe", "--device", "cpu")


def edgetl(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def answers(*args: object) -> dict[str, Any]:
    done = edgetl("classify", *args, "--json")
    assert done.exit_code == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """(bundle, images): three classes of stripes that are hard to see now and then."""
    folder = tmp_path_factory.mktemp("confidence")
    rng = np.random.default_rng(0)
    for index, label in enumerate(("blue", "green", "red")):
        (folder / "photos" / label).mkdir(parents=True)
        for i in range(150):
            pixels = rng.integers(0, 90, (32, 32, 3)).astype(float)
            pixels[index :: 2 + index] *= rng.uniform(0.15, 1.0)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "photos" / label / f"{i}.png")
    done = edgetl("finetune", folder / "photos", "--to", folder / "b", *PROBE, "--abstain-precision", 0.7, "--json")
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["confidence"] == Bundle.open(folder / "b").manifest["confidence"]
    return folder / "b", sorted((folder / "photos").glob("*/?.png"))


def test_the_temperature_is_in_the_manifest_with_what_it_is_worth(trained: tuple[Path, list[Path]]) -> None:
    found = Bundle.open(trained[0]).manifest["confidence"]
    assert found["temperature"] != 1.0
    assert found["val"]["nll_calibrated"] <= found["val"]["nll"]
    assert (found["val"]["n"], found["test"]["n"]) == (66, 66)


def test_checkpoint_graph_and_calibrated_graph_say_the_same_probabilities(trained: tuple[Path, list[Path]]) -> None:
    bundle, images = trained
    before = answers(bundle, *images)
    temperature = Bundle.open(bundle).manifest["confidence"]["temperature"]
    assert before["confidence"]["temperature"] == temperature
    said = [p["probability"] for p in before["predictions"]]
    for extra in ((), ("--output", "probabilities"), ("--output", "probabilities", "--calibrated")):
        done = edgetl("export", bundle, "--target", "cpu", "--json", *extra)
        assert done.exit_code == 0, done.stderr
        again = answers(bundle, *images)
        assert [p["probability"] for p in again["predictions"]] == pytest.approx(said, abs=1e-4), extra
        assert edgetl("verify", bundle).exit_code == 0
    opened = Bundle.open(bundle)
    record = opened.artifact("graph")
    assert record["temperature"] == temperature
    session = onnxruntime.InferenceSession(str(opened.file(record)), providers=["CPUExecutionProvider"])
    assert float(session.get_modelmeta().custom_metadata_map["temperature"]) == temperature
    spec = opened.preprocess
    pixels = np.stack([np.asarray(fitted(resized(decode(p.read_bytes(), p), spec), spec)) for p in images])
    given = session.run(None, {"image": to_batch(pixels, "float32")})[0]
    assert given.max(axis=1) == pytest.approx(said, abs=1e-4), "the graph itself, run by whoever has it"
    # And it was the temperature that did it: the golden logits, which no graph touched, say how much.
    logits = np.load(opened.file(opened.artifact("golden-logits")))
    assert np.abs(softmax(logits) - softmax(logits / temperature)).max() > 1e-3


def test_classify_abstains_as_fine_tuned_or_as_asked(trained: tuple[Path, list[Path]]) -> None:
    bundle, images = trained
    rows = Bundle.open(bundle).manifest["confidence"]["abstain"]
    row = next(row for row in rows if row["precision"] == 0.7)
    assert row["threshold"] is not None, "the drawn set is to be one where abstaining works"
    found = answers(bundle, *images)
    assert found["confidence"]["abstain"] == row
    assert {p["abstained"] for p in found["predictions"]} == {True, False}
    for prediction in found["predictions"]:
        assert prediction["abstained"] == (prediction["probability"] < row["threshold"])
    lower = answers(bundle, *images, "--min-precision", 0.5)
    assert sum(p["abstained"] for p in lower["predictions"]) < sum(p["abstained"] for p in found["predictions"])
    shown = edgetl("classify", bundle, *images)
    assert "abstained (" in shown.stdout and "abstains below" in shown.stdout


def test_what_cannot_be_promised_is_refused(trained: tuple[Path, list[Path]], tmp_path: Path) -> None:
    bundle, images = trained
    done = edgetl("classify", bundle, images[0], "--min-precision", 0.995, "--json")
    assert done.exit_code == 1
    assert "66 validation images" in json.loads(done.stdout)["error"]["value"]
    assert "between 0 and 1" in edgetl("classify", bundle, images[0], "--min-precision", 95).stderr
    for arguments in (("--abstain-precision", 1), ("--abstain-precision", -0.5)):
        done = edgetl("finetune", images[0].parents[1], "--to", tmp_path / "b", *PROBE, *arguments)
        assert done.exit_code == 1
        assert "--abstain-precision lies between 0 and 1" in done.stderr
    done = edgetl("export", bundle, "--calibrated")
    assert done.exit_code == 1
    assert "--output probabilities" in done.stderr


def test_a_bundle_without_a_temperature_answers_as_before(trained: tuple[Path, list[Path]], tmp_path: Path) -> None:
    bundle, images = trained
    calibrated = answers(bundle, images[0])
    with writing(bundle, "test") as (opened, _):
        kept = opened.manifest["confidence"]
        opened.add([], {"confidence": {}})
    try:
        found = answers(bundle, images[0])
        assert found["confidence"] is None
        assert found["predictions"][0]["abstained"] is False
        assert found["predictions"][0]["label"] == calibrated["predictions"][0]["label"]
        assert edgetl("classify", bundle, images[0], "--min-precision", 0.9).exit_code == 1
        done = edgetl("export", bundle, "--target", "cpu", "--output", "probabilities", "--calibrated")
        assert done.exit_code == 1
        assert "knows no temperature" in done.stderr
    finally:
        with writing(bundle, "test") as (opened, _):
            opened.add([], {"confidence": kept})
