"""`edgetl classify` from the command line, on a fine-tuned bundle before and after it has graphs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from edgetl.bundle import NewArtifact, writing
from edgetl.cli.app import app

MakeGraph = Callable[..., Path]


def edgetl(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def predictions(*args: object) -> list[dict[str, Any]]:
    done = edgetl("classify", *args, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found) == ["predictions", "confidence"]
    return list(found["predictions"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(bundle, photos): a small network trained from scratch on two flat colours."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("classify")
    for label, colour in (("blue", (20, 30, 220)), ("red [dark]", (200, 20, 30))):
        (folder / "photos" / label).mkdir(parents=True)
        for i in range(16):
            shade = tuple(min(255, c + 2 * i) for c in colour)
            Image.new("RGB", (40, 40), shade).save(folder / "photos" / label / f"{i}.png")
    done = edgetl(
        *("finetune", folder / "photos", "--to", folder / "bundle", "--backbone", "smallnet", "--weights", "none"),
        *("--epochs", 15, "--device", "cpu", "--amp", "off", "--image-size", 32),
    )
    assert done.exit_code == 0, done.stderr
    return folder / "bundle", folder / "photos"


def test_a_checkpoint_without_graphs_answers(trained: tuple[Path, Path]) -> None:
    bundle, photos = trained
    images = [photos / "blue/0.png", photos / "red [dark]/0.png"]
    found = predictions(bundle, *images)
    assert [p["label"] for p in found] == ["blue", "red [dark]"]
    assert [p["image"] for p in found] == [str(image) for image in images]
    for prediction in found:
        assert sum(t["probability"] for t in prediction["top"]) == pytest.approx(1.0)
        assert prediction["probability"] == prediction["top"][0]["probability"] > 0.5
    assert [len(p["top"]) for p in predictions(bundle, *images, "--top", 1)] == [1, 1]


def test_people_get_a_table_with_class_names_as_they_are(trained: tuple[Path, Path]) -> None:
    bundle, photos = trained
    done = edgetl("classify", bundle, photos / "red [dark]/1.png")
    assert done.exit_code == 0
    assert "red [dark]" in done.stdout


def test_bench_holds_the_checkpoint_against_itself(trained: tuple[Path, Path]) -> None:
    bundle, _ = trained
    done = edgetl("bench", bundle, "--seconds", 0.05, "--warmup", 1, "--threads", 1, "--json")
    row = json.loads(done.stdout)["rows"][0]
    assert (row["id"], row["status"], row["drop_pp"]) == ("torch-cpu-fp32-b1", "ok", 0.0)
    assert row["latency_ms"]["p50"] is not None
    assert "edgetl export" in done.stderr


def test_a_precision_that_was_not_exported_is_refused(trained: tuple[Path, Path]) -> None:
    bundle, photos = trained
    done = edgetl("classify", bundle, photos / "blue/0.png", "--precision", "int8")
    assert done.exit_code == 1
    assert "edgetl export" in done.stderr
    assert "unknown precision" in edgetl("classify", bundle, photos / "blue/0.png", "--precision", "int4").stderr


@pytest.mark.parametrize("name", ["none.png", "text.png"])
def test_a_bad_image_is_named(trained: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    (tmp_path / "text.png").write_text("not an image")
    done = edgetl("classify", trained[0], tmp_path / name, "--json")
    assert done.exit_code == 1
    assert name in json.loads(done.stdout)["error"]["value"]


def test_the_graph_of_the_asked_precision_answers(trained: tuple[Path, Path], tiny_graph: MakeGraph) -> None:
    bundle, photos = trained
    with writing(bundle, "export") as (opened, _):
        record = {"kind": "graph", "made_by": "export", "profile": "trt10", "input": "uint8", "precision": "int8"}
        graph = tiny_graph(precision="int8", kind="uint8", classes=2, size=32)
        opened.add([NewArtifact(graph, "graphs/trt10/int8-{sha12}.onnx", record)])
    found = predictions(bundle, photos / "blue/0.png", "--precision", "int8")[0]
    assert len(found["top"]) == 2
    # The checkpoint still answers at fp32: a precision is never swapped for another.
    assert predictions(bundle, photos / "blue/0.png")[0]["label"] == "blue"
