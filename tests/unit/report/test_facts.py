"""What a report says is what the bundle holds: scores, flips, the choice, and what is left out with a word."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.bundle import Bundle
from edgetl.errors import BundleError
from edgetl.measure import answers as kept
from edgetl.measure.score import metrics
from edgetl.report import accuracy, words
from edgetl.report.facts import gather
from edgetl.report.privacy import command_line, relative, without_paths
from edgetl.report.variants import Point, pareto

from .conftest import GUARD, MACHINE, row, write_rows


def test_scores_of_answers_are_those_of_the_logits(make_bundle):
    made = Bundle.open(make_bundle(n=90))
    facts, answers = gather(made), kept.read(made)
    assert answers is not None
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(90, 3)).astype(np.float32)
    logits[np.arange(90), answers.targets] += 1.5
    wanted = metrics(logits, answers.targets, answers.labels)
    base = facts.scores[0]
    assert base.accuracy == pytest.approx(wanted["accuracy"])
    assert base.macro_f1 == pytest.approx(wanted["macro_f1"])
    assert base.ece == pytest.approx(wanted["ece"], abs=1e-6)
    for one in base.classes:
        assert one.recall == pytest.approx(wanted["per_class"][one.label]["recall"])
        assert one.precision == pytest.approx(wanted["per_class"][one.label]["precision"])
    matrix = np.zeros((3, 3), int)
    for true, answer, n in base.cells:
        matrix[true, answer] = n
    assert matrix.tolist() == wanted["confusion"]
    assert [b.n for b in facts.reliability] and sum(b.n for b in facts.reliability) == 90


def test_flips_are_counted_and_the_losses_come_first(make_bundle):
    made = Bundle.open(make_bundle(n=60, wrong=20))
    answers = kept.read(made)
    found = accuracy.flips(answers, "onnxruntime-cpu-trt10-int8", 5)
    base, ours = answers.top[answers.row("torch-cpu-fp32")], answers.top[answers.row("onnxruntime-cpu-trt10-int8")]
    assert found.lost == ((base == answers.targets) & (ours != answers.targets)).sum() > 0
    assert found.won == ((base != answers.targets) & (ours == answers.targets)).sum()
    assert found.total == (base != ours).sum()
    assert len(found.shown) == 5 and {one.kind for one in found.shown} == {"lost"}
    assert [one.after_p for one in found.shown] == sorted((one.after_p for one in found.shown), reverse=True)
    assert found.drop_pp == pytest.approx(100 * (found.lost - found.won) / 60)


def test_int8_is_advised_and_called_unproven_where_its_interval_reaches_too_far(make_bundle):
    facts = gather(Bundle.open(make_bundle(wrong=0)))
    assert facts.main.ship.precision == "int8"
    assert not facts.main.measured
    assert words.headline(facts) == "Ship INT8, with TensorRT"
    assert "not proven" in words.sure(facts.main) and "4,000 images" in words.sure(facts.main)
    assert "Expected, not measured" in words.why(facts, facts.main)


def test_a_graph_that_misses_its_contract_is_not_advised(make_bundle):
    missed = {**GUARD, "verdict": "not_met", "met": False, "drop_pp": 3.0, "drop_ci_pp": [1.0, 5.0]}
    facts = gather(Bundle.open(make_bundle(guard=missed)))
    assert facts.main.ship.precision == "fp16"
    assert [variant.precision for variant, _ in facts.main.refused] == ["int8"]


def test_more_lost_on_test_than_allowed_is_said_where_the_interval_leaves_room(make_bundle):
    facts = gather(Bundle.open(make_bundle(wrong=2)))
    loss = facts.main.ship.loss()
    assert facts.main.over and loss.drop_pp > 0.5 > loss.ci_pp[0] and loss.split == "test"
    assert "more than the 0.5 points allowed" in words.sure(facts.main) and "take FP16" in words.sure(facts.main)


def test_a_guard_without_labels_says_so(make_bundle):
    facts = gather(Bundle.open(make_bundle(wrong=0, options={"guard": "agreement"})))
    assert "without labels (a changed answer counts as lost)" in words.sure(facts.main)


def test_a_graph_whose_loss_on_test_is_beyond_doubt_is_not_advised(make_bundle):
    """Its contract was met on val; on test every tenth answer became wrong."""
    facts = gather(Bundle.open(make_bundle(n=400, wrong=120)))
    assert "int8" in [variant.precision for variant, _ in facts.main.refused]
    assert "beyond the 0.5 points" in facts.main.refused[0][1]


def test_on_a_cpu_the_fastest_is_advised_and_its_time_is_told(make_bundle):
    facts = gather(Bundle.open(make_bundle(graphs=[("cpu", "fp32"), ("cpu", "int8")], wrong=0)))
    assert facts.main.measured and facts.main.ship.precision == "int8"
    assert facts.main.ship.timed().p50() == pytest.approx(2.0995)
    assert "times as fast" in words.why(facts, facts.main) and "in the same bench" in words.why(facts, facts.main)


def test_a_time_of_another_bench_is_called_so(make_bundle):
    made = Bundle.open(make_bundle(graphs=[("cpu", "fp32"), ("cpu", "int8")], wrong=0))
    path = made.path / "runs/bench.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    again = [{**line, "at": "2026-05-01T00:00:00Z"} for line in lines if line["precision"] == "int8"]
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, *again]))
    facts = gather(Bundle.open(made.path))
    assert facts.main.measured and "FP32 in another bench" in words.why(facts, facts.main)


def test_a_devices_rows_come_first_and_name_no_user(make_bundle):
    made = Bundle.open(make_bundle(graphs=[("trt10", "fp32"), ("trt10", "int8"), ("cpu", "fp32")], wrong=0))
    rows = []
    for record in made.artifacts("graph", profile="trt10"):
        one = row(
            f"tensorrt-trt10-{record['precision']}",
            "tensorrt",
            "trt10",
            record["precision"],
            record["sha256"],
            60,
            "test",
        )
        times = dict(
            one.latency_ms or {},
            p50={"fp32": 3.0, "int8": 1.0}[record["precision"]],
            p90=4.0,
            p95=4.0,
            p99=4.0,
            mean=3.0,
            n=900,
        )
        rows.append(
            replace(
                one, provider="TensorRT 10.3", latency_ms=times, latency_evidence="device", accuracy_evidence="device"
            )
        )
    write_rows(made, rows, at="2026-01-03T00:00:00Z", host="zoe@orin")
    facts = gather(made)
    assert facts.main.profile == "trt10" and facts.main.measured and facts.main.where == "orin"
    assert facts.main.ship.timed().p50() == 1.0
    assert {one.host for one in facts.measured} == {"", "orin"}


def test_rows_of_graphs_that_are_gone_are_left_out_with_a_word(make_bundle):
    made = Bundle.open(make_bundle())
    write_rows(made, [row("onnxruntime-cpu-trt10-int8", "onnxruntime", "trt10", "int8", "f" * 64, 5, "test")])
    facts = gather(made)
    assert all(one.row.n_images == 60 for one in facts.measured)
    assert any("earlier graphs" in note for note in facts.notes)


def test_the_newest_row_of_a_candidate_counts(make_bundle):
    made = Bundle.open(make_bundle())
    record = made.artifact("graph", precision="fp32")
    newer = row("onnxruntime-cpu-trt10-fp32", "onnxruntime", "trt10", "fp32", record["sha256"], 7, "val")
    write_rows(made, [newer], at="2026-05-01T00:00:00Z")
    assert [one.row.n_images for one in gather(made).measured if one.candidate == "onnxruntime-cpu-trt10-fp32"] == [7]


def test_what_deepstreams_resize_costs_is_no_loss_of_the_graph(make_bundle):
    made = Bundle.open(make_bundle(wrong=0))
    record = made.artifact("graph", precision="int8")
    behind = row("onnxruntime-trt10-int8-deepstream", "onnxruntime", "trt10", "int8", record["sha256"], 70, "test")
    provider = "CPUExecutionProvider+DeepStream"
    write_rows(made, [replace(behind, provider=provider, drop_pp=20.0, drop_ci_pp=(15.0, 25.0))])
    facts = gather(made)
    assert (facts.main.ship.precision, facts.main.ship.loss().drop_pp, facts.main.ship.loss().n) == ("int8", 0.0, 60)
    assert "onnxruntime-trt10-int8-deepstream" in {one.candidate for one in facts.measured}


def test_a_results_file_cut_in_half_leaves_its_whole_rows_and_a_note(make_bundle):
    made = Bundle.open(make_bundle())
    path = made.path / "runs/bench.jsonl"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    facts = gather(made)
    assert 0 < len(facts.measured) < 4
    assert any("runs/bench.jsonl" in note and "line" in note and "edgetl bench" in note for note in facts.notes)
    (made.path / "runs/environments.jsonl").write_bytes(b"\xff\xfe{")
    assert any("runs/environments.jsonl" in note for note in gather(made).notes)


def test_rows_that_are_json_and_no_rows_are_counted(make_bundle):
    made = Bundle.open(make_bundle())
    made.append_rows("bench", ['{"id": "x"}', "[1]", '{"id": 3, "at": null}'])
    facts = gather(made)
    assert len(facts.measured) == 4
    assert any("2 of 6 rows" in note for note in facts.notes)
    assert any("line 6" in note for note in facts.notes)


def test_damaged_answers_and_splits_are_one_error_each(make_bundle):
    path = make_bundle()
    answers = path / kept.FILE
    answers.write_bytes(answers.read_bytes()[:300])
    with pytest.raises(BundleError, match=r"answers are damaged.*edgetl bench"):
        gather(Bundle.open(path))
    answers.unlink()
    next(path.glob("splits-*.json")).write_bytes(b"[]")
    with pytest.raises(BundleError, match="bytes of a file in the bundle changed"):
        gather(Bundle.open(path))


def test_answers_of_other_classes_are_left_out(make_bundle):
    made = Bundle.open(make_bundle())
    answers = kept.read(made)
    kept.write(made, replace(answers, labels=("a", "b", "c")))
    facts = gather(made)
    assert facts.flips is None and facts.scores[0].name == "lp-ft"
    assert any("earlier generation" in note for note in facts.notes)


def test_what_is_not_there_is_said_with_the_command_that_adds_it(make_bundle):
    facts = gather(Bundle.open(make_bundle(graphs=[], bench=False, test=False)))
    said = " ".join(facts.notes)
    assert "edgetl export flowers --int8" in said and "edgetl bench flowers" in said and "no test split" in said
    assert facts.main is None and facts.scores[0].split == "val"
    adopted = gather(Bundle.open(_second(make_bundle, trained=False)))
    assert adopted.training is None and adopted.model == "adopted graph theirs.onnx"


def _second(make_bundle, **how):
    make_bundle.folder = make_bundle.folder.with_name("second")
    return make_bundle(**how)


def test_a_failed_row_stands_beside_the_others(make_bundle):
    made = Bundle.open(make_bundle())
    record = made.artifact("graph", precision="int8")
    dead = row("tensorrt-trt10-int8", "tensorrt", "trt10", "int8", record["sha256"], 60, "test")
    dead = replace(
        dead, status="failed", error="out of memory at /home/zoe/x.plan", latency_ms=None, latency_evidence=None
    )
    write_rows(made, [dead])
    facts = gather(made)
    assert len(facts.measured) == 5 and facts.main.ship.precision == "int8"
    assert any("tensorrt-trt10-int8-b1 failed" in note for note in facts.notes)


def test_a_class_without_a_test_image_is_named(make_bundle):
    facts = gather(Bundle.open(make_bundle(labels=["a", "b", "c", "never"], n=3)))
    assert facts.scores[0].absent == ("never",) and facts.data.missing == ("never",)


def test_commands_name_no_folder_of_this_machine(make_bundle):
    facts = gather(Bundle.open(make_bundle()))
    commands = facts.provenance.commands
    assert commands[0] == "edgetl finetune 'photos of Zoë' --to flowers"
    assert "edgetl export flowers --int8 --method max" in commands
    assert "edgetl bench flowers --threads 1" in commands
    assert "zoe" not in " ".join(commands).replace("Zoë", "")
    assert MACHINE["cpu"] in facts.provenance.machines[0].lines[0]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no file /home/zoe/a/b.onnx there", "no file .../b.onnx there"),
        ("/srv/x: gone; see C:\\Users\\zoe\\y.txt", ".../x: gone; see .../y.txt"),
        ("~/models/a (bad)", ".../a (bad)"),
        ("4 images/s and n/a, a/b", "4 images/s and n/a, a/b"),
        ("file:///home/zoe/m.onnx", "file:.../m.onnx"),
    ],
)
def test_paths_are_cut_to_their_last_part(text, shown):
    assert without_paths(text) == shown


@given(st.lists(st.text("abc ü", min_size=1, max_size=5), min_size=1, max_size=5))
def test_no_folder_of_an_absolute_path_is_left(parts):
    path = "/" + "/".join(part.strip() or "x" for part in parts)
    shown = command_line(["edgetl", "finetune", path, f"--to={path}"])
    assert all("/" not in word for word in shown)
    assert command_line(["edgetl", "--group-by", r"\d+_"])[2] == r"\d+_"  # no path, though it begins as one might
    assert relative("class/1.jpg") == "class/1.jpg" and relative("../zoe/1.jpg") == "1.jpg"


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), min_size=1, max_size=8))
def test_the_front_holds_exactly_what_nothing_beats(pairs):
    points = [Point(str(i), "fp32", a / 5, None, float(c), "") for i, (a, c) in enumerate(pairs)]
    for (a, c), front in zip(pairs, pareto(points), strict=True):
        beaten = any((b >= a and d < c) or (b > a and d <= c) for b, d in pairs)
        assert front is not beaten


def test_a_row_of_an_older_edgetl_without_newer_fields_is_read(make_bundle):
    made = Bundle.open(make_bundle())
    path = made.path / "runs/bench.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        del line["energy_mj"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert len(gather(made).measured) == 4
