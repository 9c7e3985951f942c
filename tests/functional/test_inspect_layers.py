"""`edgetl inspect --layers`: the X-ray of an int8 graph as a table, as JSON and as CSV."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner, Result

from edgetl.bundle import Bundle, NewArtifact, writing
from edgetl.cli.app import app
from edgetl.cli.layers import COLUMNS, shortened, to_csv
from edgetl.graph import layers

MakeGraph = Callable[..., Path]
MakeBundle = Callable[..., Path]

STEM = "/backbone/features/features.0/features.0.0/Conv"
BLOCK = "/backbone/features/features.1/features.1.0/block/block.0/Conv"
HEAD = "/backbone/features/features.1/features.1.0/block/block.1/squeeze/excite/of/a/long/name/Conv"


def row(node: str, **figures: Any) -> layers.LayerRow:
    plain: dict[str, Any] = {
        "op": "Conv", "group": node, "input": "image", "kept_float": None, "amax": 6.0, "scale": 0.0473, "peak": 6.5,
        "clipped": 0.0123, "weight_scale_min": 0.001, "weight_scale_max": 0.25, "sqnr_db": None, "sqnr_n": None,
        "kl_regained": None, "agreement_regained": None, "effect_n": None, "macs": 250, "macs_share": 0.25,
        "precision": None,
    }  # fmt: skip
    return layers.LayerRow(**{**plain, "node": node, **figures})


ROWS = [
    row(HEAD, kl_regained=0.25, agreement_regained=0.0312, effect_n=128, sqnr_db=8.25, sqnr_n=64, precision="int8"),
    row(STEM, kept_float=layers.FOR_ACCURACY, sqnr_db=12.5, sqnr_n=64, clipped=0.0, precision="fp16"),
    row(BLOCK, clipped=1e-6, macs_share=0.5),
]


def with_xray(bundle: Path, rows: list[layers.LayerRow] = ROWS, profile: str = "trt10") -> Path:
    graph = Bundle.open(bundle).artifact("graph", precision="int8", profile=profile)
    with writing(bundle, "export") as (opened, scratch):
        copy = scratch / "int8.onnx"
        shutil.copy(opened.file(graph), copy)
        opened.add([layers.artifact(rows, copy, "entropy", 512, "the builder", {"made_by": "export"})])
    return bundle


@pytest.fixture
def bundle(tiny_graph: MakeGraph, graph_bundle: MakeBundle) -> Path:
    graphs = {("trt10", p): tiny_graph(precision=p) for p in ("fp32", "int8")}
    return with_xray(graph_bundle(graphs))


def inspect(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["inspect", *(str(a) for a in arguments)])


def at(width: int, bundle: Path, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    done = inspect(bundle, "--layers", *arguments)
    assert done.exit_code == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_and_says_what_its_columns_are(
    bundle: Path, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = at(width, bundle, monkeypatch)
    assert max(len(line) for line in lines) <= width
    head, *rows = [line.split() for line in lines if line.strip()][2:7]
    assert head[:2] == ["#", "layer"] and head[-2:] == ["runs", "in"]
    worst, stem, block = rows[1:]
    assert worst[0] == "1" and "\N{HORIZONTAL ELLIPSIS}" in worst[1] and worst[-1] == "int8"
    assert all(figure in worst for figure in ("6", "1.2", "8.2", "+0.2500", "+3.1", "25.0"))
    assert stem[1] == "features.0.0" and stem[-1] == "fp16*" and stem.count("-") == 2
    assert block[1] == "features.1.0/block.0" and "<.001" in block and block[-1] == "?"
    text = " ".join(" ".join(lines).split())
    for said in ("entropy, 512 calibration images", "simulated, 64 calibration", "128 search images", "the builder"):
        assert said in text
    assert "1 of 3 layers measured" in text and "* left in float: 1 for accuracy" in text


def test_small_effects_do_not_show_as_none(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = [row("a", kl_regained=3.2e-5, effect_n=64), row("b", kl_regained=-4e-7, effect_n=64)]
    shown = "\n".join(at(80, with_xray(bundle, small), monkeypatch))
    assert " +3e-05 " in shown and " -4e-07 " in shown


def test_a_wide_terminal_shows_weight_steps_and_operators(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide, narrow = ("\n".join(at(width, bundle, monkeypatch)) for width in (120, 80))
    assert "0.001 .. 0.25" in wide and " Conv " in wide
    assert ".." not in narrow and " Conv " not in narrow


def test_json_holds_the_rows_and_their_graph(bundle: Path) -> None:
    found = json.loads(inspect(bundle, "--layers", "--json").stdout)
    assert set(found) == {"layers", "graph"}
    assert found["layers"] == [r.to_json() for r in ROWS]
    record = Bundle.open(bundle).artifact("graph", precision="int8")
    assert found["graph"]["sha256"] == record["sha256"] and found["graph"]["file"] == record["file"]
    assert (found["graph"]["method"], found["graph"]["calibration_n"]) == ("entropy", 512)
    assert (found["graph"]["layers"], found["graph"]["measured"]) == (3, 1)


def test_top_cuts_rows_everywhere(bundle: Path, tmp_path: Path) -> None:
    found = json.loads(inspect(bundle, "--layers", "--json", "--top", 2, "--csv", tmp_path / "t.csv").stdout)
    assert [r["node"] for r in found["layers"]] == [HEAD, STEM] and found["graph"]["layers"] == 3
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 3


def test_csv_holds_every_figure(bundle: Path, tmp_path: Path) -> None:
    done = inspect(bundle, "--layers", "--csv", tmp_path / "layers.csv")
    assert done.exit_code == 0 and "runs in" in done.stdout
    with (tmp_path / "layers.csv").open(newline="") as stream:
        read = list(csv.DictReader(stream))
    assert list(read[0]) == list(COLUMNS) == [field.name for field in dataclasses.fields(layers.LayerRow)]
    for line, expected in zip(read, ROWS, strict=True):
        for key, value in expected.to_json().items():
            assert line[key] == ("" if value is None else str(value))


def test_a_comma_in_a_name_is_quoted() -> None:
    lines = to_csv([row('a,"b"').to_json()]).splitlines()
    assert lines[1].startswith('"a,""b""",Conv,')


def test_the_file_fits_its_schema(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    body = json.loads(opened.file(opened.artifact("layers")).read_text())
    schema = json.loads(layers.SCHEMA_FILE.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(body, schema)
    for wrong in ({"clipped": 2}, {"precision": 8}, {"node": None}, {"extra": 1}):
        broken = {**body, "layers": [{**body["layers"][0], **wrong}]}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, schema)
    assert set(schema["$defs"]["layer"]["properties"]) == set(COLUMNS)


def test_profile_and_target_choose_among_graphs(tiny_graph: MakeGraph, graph_bundle: MakeBundle) -> None:
    graphs = {("trt8", "int8"): tiny_graph(precision="int8"), ("trt10", "int8"): tiny_graph(precision="int8", seed=1)}
    path = with_xray(graph_bundle(graphs), ROWS[:2], "trt8")
    newest_known = json.loads(inspect(path, "--layers", "--json").stdout)["graph"]["profile"]
    assert newest_known == "trt8", "the newest graph that has an X-ray"
    refused = inspect(path, "--layers", "--profile", "trt10")
    assert refused.exit_code == 1 and "export it again: edgetl export" in refused.stderr
    with_xray(path, ROWS, "trt10")
    for arguments, profile in (
        ((), "trt10"),
        (("--profile", "trt8"), "trt8"),
        (("--target", "jetpack5"), "trt8"),
        (("--target", "jetpack7"), "trt10"),
        (("--target", "jetpack5", "--profile", "trt8"), "trt8"),
    ):
        assert json.loads(inspect(path, "--layers", "--json", *arguments).stdout)["graph"]["profile"] == profile


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--layers", "--profile", "trt8"), "no int8 graph of profile trt8: .*it has: trt10"),
        (("--layers", "--target", "jetpack4"), "JetPack 4"),
        (("--layers", "--target", "jetpack5", "--profile", "trt10"), "name two graphs"),
        (("--top", "3"), "--top .*--layers"),
        (("--csv", "x.csv"), "--csv .*--layers"),
        (("--layers", "--csv", "/dev/null/x.csv"), "/dev/null"),
    ],
)
def test_what_cannot_be_shown_is_one_line(bundle: Path, arguments: tuple[str, ...], message: str) -> None:
    done = inspect(bundle, *arguments)
    assert done.exit_code == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert re.search(message, done.stderr)


def test_without_an_int8_graph_it_says_how_to_get_one(tiny_graph: MakeGraph, graph_bundle: MakeBundle) -> None:
    path = graph_bundle({("trt10", "fp32"): tiny_graph(precision="fp32")})
    done = inspect(path, "--layers", "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["error"]["what"] == "the bundle has no int8 graph"
    assert f"make one: edgetl export {path} --int8" in done.stderr


def test_inspect_without_layers_is_still_the_manifest(bundle: Path) -> None:
    assert json.loads(inspect(bundle, "--json").stdout) == Bundle.open(bundle).manifest


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_no_terminal_cuts_the_path_of_a_graph(bundle: Path, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    said = inspect(bundle).stdout.splitlines()
    for record in Bundle.open(bundle).manifest["artifacts"]:
        if record["kind"] == "graph":
            assert f"{record['precision']:9} {record['file']}" in said


def test_a_stale_graph_is_not_shown(bundle: Path) -> None:
    with writing(bundle, "export") as (opened, scratch):
        stale = [dict(r, stale=True) if r.get("precision") == "int8" else r for r in opened.manifest["artifacts"]]
        file = scratch / "note"
        file.write_text("a new generation")
        opened.add([NewArtifact(file, "note-{sha12}.txt", {"kind": "note", "made_by": "test"})])
        opened.add([], {"artifacts": stale})
    assert "no int8 graph" in inspect(bundle, "--layers").stderr


def test_it_loads_nothing_heavy(bundle: Path) -> None:
    code = (
        "import sys; from edgetl.cli.app import app\n"
        "try: app(['inspect', sys.argv[1], '--layers'])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'onnx', 'onnxruntime', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(bundle)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("names", "short"),
    [
        ([STEM, BLOCK], ["features.0.0", "features.1.0/block.0"]),
        (["conv", "fc"], ["conv", "fc"]),
        (["/a/Conv", "/a/Gemm"], ["Conv", "Gemm"]),
        (["/a/b/Conv", "/a/b/Gemm"], ["Conv", "Gemm"]),
        (["/a/x/MatMul", "/a/x/MatMul_1", "/a/y/MatMul"], ["x/MatMul", "x/MatMul_1", "y/MatMul"]),
        (["/only/one/Conv"], ["only/one"]),
        (["/", "//"], ["/", "//"]),
        ([], []),
    ],
)
def test_names_lose_what_says_nothing(names: list[str], short: list[str]) -> None:
    assert shortened(names, 30) == short


def test_long_names_are_cut_in_the_middle() -> None:
    name = "abcdefghijklmnopqrstuvwxyz"
    assert shortened([name], 10) == ["abc\N{HORIZONTAL ELLIPSIS}uvwxyz"]
    assert shortened([name], 26) == [name]


@pytest.mark.slow
@pytest.mark.data
def test_a_real_network(
    samples: Path, mobilenet_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "flowers"
    commands = (
        ("finetune", samples / "data/flowers5_small", "--to", path, "--backbone", "mobilenet_v2", "--weights",
         mobilenet_weights, "--image-size", "64", "--strategy", "linear-probe"),
        ("export", path, "--int8", "--method", "max", "--calib-size", "64", "--allow-unmet", "--max-drop", "100"),
    )  # fmt: skip
    for command in commands:
        done = CliRunner().invoke(app, ["-q", *(str(word) for word in command)])
        assert done.exit_code == 0, done.stderr
    found = json.loads(inspect(path, "--layers", "--json").stdout)
    rows = found["layers"]
    assert len(rows) == found["graph"]["layers"] == 52, "all convolutions; the classifier's Gemm stays in float"
    assert {r["op"] for r in rows} == {"Conv"} and all(r["sqnr_db"] > 0 for r in rows if r["sqnr_db"] is not None)
    assert sum(r["macs_share"] for r in rows) > 0.99
    assert all(r["clipped"] == 0 for r in rows), "max clips nothing"
    relu6 = [r for r in rows if r["peak"] == 6.0]
    assert len(relu6) > 30, "most inputs end at ReLU6's six"
    if found["graph"]["builder"]:
        assert {r["precision"] for r in rows if not r["kept_float"]} == {"int8"}
    for width in (80, 120):
        assert max(len(line) for line in at(width, path, monkeypatch)) <= width
