"""The device's verbs as a caller over SSH meets them: one object on stdout, exit codes, real graphs on onnxruntime."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgetl.bundle import Bundle, sha256_file
from edgetl.runtime.classify import softmax

ORT = ("--backend", "onnxruntime", "--threads", "1")


def test_probe_tells_what_runs_here_and_what_is_missing(device: Any, tmp_path: Path) -> None:
    state = tmp_path / "state"
    (state / "store").mkdir(parents=True)
    whole, half = b"whole", b"ha"
    digests = {name: sha256_file(_file(tmp_path, data)) for name, data in (("whole", whole), ("half", b"half"))}
    (state / "store" / digests["whole"]).write_bytes(whole)
    (state / "store" / (digests["half"] + ".part")).write_bytes(half)
    (state / "releases/2026-a").mkdir(parents=True)
    (state / "current").symlink_to("releases/2026-a")
    wanted = [{"sha256": digests["whole"], "bytes": 5}, {"sha256": digests["half"], "bytes": 4}]
    told = device("--protocol", 1, "probe", "--state", state, "--want", "-", stdin=json.dumps(wanted))
    assert told["missing"]["files"] == [{"sha256": digests["half"], "bytes": 4, "have": 2}]
    held = {"releases": ["2026-a"], "current": "2026-a", "engines": [], "jobs": []}
    assert held.items() <= told["state"].items()
    assert told["backends"]["onnxruntime"]["ok"] and told["probe"]["python"]["numpy"]
    assert {"name", "ok", "value", "do"} == set(told["advice"][0])


def test_a_damaged_file_of_the_store_is_missing(device: Any, tmp_path: Path) -> None:
    good = _file(tmp_path, b"good")
    digest = sha256_file(good)
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / digest).write_bytes(b"baad")
    told = device("probe", "--state", tmp_path, "--want", "-", stdin=json.dumps([{"sha256": digest, "bytes": 4}]))
    assert told["missing"]["files"] == [{"sha256": digest, "bytes": 4, "have": 0}]
    assert (tmp_path / "store" / digest).read_bytes() == b"baad", "to ask changes nothing"


def test_the_clock_is_compared_with_the_callers(device: Any) -> None:
    for years, said in ((0, " s off"), (30, "30 years off")):
        told = device("probe", "--now", time.time() + years * 365 * 86400)
        clock = next(row for row in told["advice"] if row["name"] == "Clock")
        assert said in clock["value"] and clock["ok"] is None
        assert {row["name"] for row in told["refusals"]} <= {"JetPack", "TensorRT", "Python", "Disk"}


@pytest.mark.parametrize("wanted", ["{}", '[{"sha256": "../../etc/passwd", "bytes": 1}]', "[1]", "no json"])
def test_a_list_that_is_none_is_refused(device: Any, tmp_path: Path, wanted: str) -> None:
    told = device("probe", "--state", tmp_path, "--want", "-", stdin=wanted, code=1)
    assert "list of wanted files" in told["error"]["what"]


def test_another_protocol_and_a_wrong_word_are_told_in_json(device: Any) -> None:
    told = device("--protocol", 99, "probe", code=1)
    assert "protocol" in told["error"]["what"] and "99" in told["error"]["value"]
    assert device("probe", "--nonsense", code=2)["error"]["what"] == "usage"
    assert device("fly", code=2)["error"]["what"] == "usage"


def test_verify_proves_pixels_graph_and_reference(device: Any, device_bundle: Path) -> None:
    told = device("verify", device_bundle, *ORT)
    names = [check["name"] for check in told["checks"]]
    assert told["ok"] and told["n"] == 8 and names[0] == "decode and resize of 8 photos"
    for part in ("against its graph", "against PyTorch"):
        assert sum(part in name for name in names) >= 2


def test_verify_fails_on_other_pixels_and_on_another_graph(
    device: Any, device_bundle: Path, opened: Bundle, tiny_graph: Callable[..., Path]
) -> None:
    pixels = np.load(opened.file(opened.artifact("golden-pixels")))
    pixels[3] ^= 1
    _replaced(device_bundle, opened.artifact("golden-pixels"), pixels)
    told = device("verify", device_bundle, *ORT, code=1)
    bad = [check for check in told["checks"] if not check["ok"]]
    assert [check["name"] for check in bad] == ["decode and resize of 8 photos"] and "1 differ, by 1" in bad[0]["value"]
    logits = np.load(opened.file(opened.artifact("golden-logits"))) + np.arange(3, dtype=np.float32)
    _replaced(device_bundle, opened.artifact("golden-logits"), logits)
    told = device("verify", device_bundle, "--precision", "fp32", *ORT, code=1)
    assert any("against PyTorch" in check["name"] and not check["ok"] for check in told["checks"])


def test_classify_uses_the_bundles_temperature_and_threshold(
    device: Any, device_bundle: Path, opened: Bundle, tmp_path: Path
) -> None:
    image = opened.file(opened.artifacts("golden-image")[2])
    told = device("classify", device_bundle, image, "--precision", "fp32", "--top", 3, *ORT)
    logits = np.load(opened.file(opened.artifact("golden-logits")))[2]
    found = told["predictions"][0]
    assert [entry["probability"] for entry in found["top"]] == pytest.approx(sorted(softmax(logits / 2.0))[::-1])
    assert found["abstained"] == (found["probability"] < 0.45) and told["threshold"] == 0.45
    assert found["label"] in opened.labels
    assert "no such image" in device("classify", device_bundle, tmp_path / "none.jpg", *ORT, code=1)["error"]["what"]


def test_without_a_choice_several_precisions_are_an_error(device: Any, device_bundle: Path, tmp_path: Path) -> None:
    told = device("classify", device_bundle, _file(tmp_path, b"x"), *ORT, code=1)
    assert "several precisions" in told["error"]["what"] and "fp32, int8" in told["error"]["value"]


def test_nothing_stands_in_for_an_engine(device: Any, device_bundle: Path) -> None:
    told = device("verify", device_bundle, code=1)
    assert "no engine" in told["error"]["what"] and "--backend onnxruntime" in told["error"]["do"]
    told = device("build", device_bundle, "--precision", "int8", code=1)
    assert told["error"]["what"]  # no TensorRT on this machine, or no GPU


def test_with_onnxruntime_a_build_opens_the_graph(device: Any, device_bundle: Path, opened: Bundle) -> None:
    told = device("build", device_bundle, "--precision", "int8", "--backend", "onnxruntime")
    assert told["artifacts"] == [] and told["opened"]["sha256"] == opened.artifact("graph", precision="int8")["sha256"]
    told = device("build", device_bundle, "--precision", "int8", "--backend", "onnxruntime", "--profile", "cpu", code=1)
    assert "no cpu int8 graph" in told["error"]["what"]


def test_bench_gives_rows_with_their_conditions(device: Any, device_bundle: Path, tmp_path: Path) -> None:
    data = _labelled(tmp_path)
    told = device("bench", device_bundle, *ORT, "--seconds", 0.05, "--data", data, "--batch", "1,2", "--no-peaks")
    from edgetl.measure.rows import rows_of

    rows = {row.id: row for row in rows_of(told, "bench")}
    assert set(rows) == {f"onnxruntime-trt10-{p}-b{n}" for p in ("fp32", "int8") for n in (1, 2)}
    fp32, int8 = rows["onnxruntime-trt10-fp32-b1"], rows["onnxruntime-trt10-int8-b1"]
    assert fp32.status == "ok" and fp32.n_images == 6 and fp32.accuracy is not None and fp32.drop_pp is None
    assert fp32.latency_ms["n"] > 0 and fp32.end_to_end_ms["n"] > 0 and fp32.energy_mj is None
    low, high = fp32.latency_ci_ms["p50"]  # of ten turns, however short they are
    assert low <= fp32.latency_ms["p50"] <= high
    assert int8.latency_ms is None and int8.accuracy_evidence == "simulated"
    told_of = told["conditions"][fp32.id]
    assert {"before", "after", "throttled", "energy", "steady", "why"} == set(told_of)


def test_bench_on_a_board_tells_energy_power_mode_and_throttling(
    device: Any, device_bundle: Path, tmp_path: Path
) -> None:
    root = board_tree(tmp_path / "root", "orin-nano-super-jp6.2.1")
    words = ("bench", device_bundle, *ORT, "--precision", "fp32", "--seconds", 0.05, "--no-peaks", "--root", root)
    told = device(*words, "--idle-seconds", 0.2, "--power-seconds", 0.3)
    row, facts = told["rows"][0], told["conditions"]["onnxruntime-trt10-fp32-b1"]
    # The tree's watts never change, so all that is drawn is drawn idle too: gross is 7.02 W x time, net is none.
    assert facts["energy"]["load_mw"] == pytest.approx(7022.4) and facts["energy"]["source"] == "INA3221 VDD_IN"
    assert row["energy_mj"] == facts["energy"]["gross_mj"] > 0 and facts["energy"]["net_mj"] == pytest.approx(
        0, abs=1e-9
    )
    assert facts["before"]["power_mode"] == {"id": 2, "name": "MAXN_SUPER"} and facts["throttled"] is False
    assert facts["after"]["clocks"]["locked"] is False and facts["after"]["temperatures_c"]["gpu-thermal"] == 47.5


def test_bench_over_power_modes_refuses_what_it_may_not_set(device: Any, device_bundle: Path, tmp_path: Path) -> None:
    root = board_tree(
        tmp_path / "root", "orin-nano-super-jp6.2.1"
    )  # whose nvpmodel stays in mode 2 whatever it is told
    words = ("bench", device_bundle, *ORT, "--precision", "fp32", "--seconds", 0.02, "--no-peaks", "--root", root)
    (root / "usr/bin").mkdir(exist_ok=True)
    (root / "usr/bin/sudo").write_text('#!/bin/sh\necho "sudo: a password is required" >&2; exit 1\n')
    (root / "usr/bin/sudo").chmod(0o755)
    told = device(*words, "--idle-seconds", 0, "--power-seconds", 0.02, "--modes", "MAXN_SUPER,7W")
    assert [(mode["name"], mode["status"]) for mode in told["modes"]] == [("MAXN_SUPER", "measured"), ("7W", "refused")]
    assert told["modes"][0]["result"]["rows"][0]["status"] == "ok" and told["modes"][1]["why"]


def board_tree(root: Path, name: str) -> Path:
    """One of tests/data/boards, laid out."""
    told = json.loads((Path(__file__).resolve().parents[2] / f"data/boards/{name}.json").read_text())
    for file, contents in told["files"].items():
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents.encode())
        if "bin/" in file:
            path.chmod(0o755)
    return root


def test_bench_beside_pytorchs_logits_tells_the_drop(device: Any, device_bundle: Path, tmp_path: Path) -> None:
    data = _labelled(tmp_path)
    digests = [sha256_file(path) for path in sorted(data.rglob("*.png"))]
    reference = np.eye(3, dtype=np.float32)[[0, 0, 1, 1, 2, 2]] * 9
    np.savez(tmp_path / "reference.npz", digests=np.array(digests), logits=reference)
    words = ("bench", device_bundle, *ORT, "--precision", "fp32", "--seconds", 0.02, "--no-peaks", "--data", data)
    row = device(*words, "--reference", tmp_path / "reference.npz")["rows"][0]
    assert row["drop_pp"] == pytest.approx(100 * (1 - row["accuracy"])) and row["flips"] == 6 * (1 - row["agreement"])
    np.savez(tmp_path / "short.npz", digests=np.array(digests[:2]), logits=reference[:2])
    told = device(*words, "--reference", tmp_path / "short.npz", code=1)
    assert "the reference lacks an image" in told["error"]["what"]


def test_run_answers_a_folder_line_by_line(device: Any, device_bundle: Path, tmp_path: Path) -> None:
    data = _labelled(tmp_path)
    (data / "ant/broken.jpg").write_bytes(b"not an image")
    done = device.run("run", device_bundle, "--source", data, "--precision", "fp32", *ORT)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and len(lines) == 8
    assert [line["image"] for line in lines[:-1]] == [str(path) for path in sorted(data.rglob("*.*"))]
    assert "not an image" in lines[2]["error"]["what"] and {"preprocess", "run"} == set(lines[0]["ms"])
    totals = {name: lines[-1][name] for name in ("images", "errors", "dropped", "ended")}
    assert totals == {"images": 6, "errors": 1, "dropped": 0, "ended": "source ended"}


def test_run_follows_a_folder_until_it_is_stopped(device: Any, device_bundle: Path, tmp_path: Path) -> None:
    watched = tmp_path / "watched"
    watched.mkdir()
    words = ("run", device_bundle, "--source", watched, "--follow", "--precision", "fp32", *ORT)
    process = device.start(*words)
    try:
        source = next(_labelled(tmp_path).rglob("*.png"))
        shutil.copy(source, watched / "late.png")
        first = json.loads(process.stdout.readline())
        assert first["image"] == str(watched / "late.png")
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0 and json.loads(out)["ended"] == "stopped" and json.loads(out)["images"] == 1


@pytest.mark.parametrize("source, words", [("ftp://x", "unknown kind"), ("/no/such/folder", "no such folder")])
def test_a_source_that_is_none(device: Any, device_bundle: Path, source: str, words: str) -> None:
    assert (
        words in device("run", device_bundle, "--source", source, "--precision", "fp32", *ORT, code=1)["error"]["what"]
    )


def test_a_stream_of_frames_goes_through_gstreamer(device: Any, device_bundle: Path) -> None:
    if shutil.which("gst-launch-1.0") is None:
        told = device("run", device_bundle, "--source", "/dev/video9", "--precision", "fp32", *ORT, code=1)
        assert "gstreamer1.0-tools" in told["error"]["do"]
        pytest.skip("no gst-launch-1.0 here")
    pipeline = "gst:videotestsrc num-buffers=20 is-live=true ! video/x-raw,width=30,height=22,framerate=20/1"
    done = device.run("run", device_bundle, "--source", pipeline, "--precision", "fp32", *ORT)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and lines[-1]["images"] + lines[-1]["dropped"] >= 19, done.stderr
    assert lines[0]["image"].startswith("frame ")
    told = device("run", device_bundle, "--source", "/dev/video9", "--precision", "fp32", *ORT, code=1)
    assert "video source failed" in told["error"]["what"]


def _file(folder: Path, data: bytes) -> Path:
    path = folder / f"file-{len(data)}-{data[:1].hex()}"
    path.write_bytes(data)
    return path


def _labelled(folder: Path) -> Path:
    rng = np.random.default_rng(5)
    for label in ("ant", "bee; rm -rf ~", "cat"):
        (folder / "data" / label).mkdir(parents=True, exist_ok=True)
        for i in range(2):
            pixels = rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "data" / label / f"{i}.png")
    return folder / "data"


def _replaced(path: Path, record: dict[str, Any], array: Any) -> None:
    """The bundle with another array in a record's place."""
    from edgetl.bundle import NewArtifact, writing

    np.save(path.parent / "other.npy", array)
    with writing(path, "test") as (bundle, _):
        kept = {k: v for k, v in record.items() if k not in ("file", "sha256", "bytes")}
        bundle.add([NewArtifact(path.parent / "other.npy", "golden/other-{sha12}.npy", kept)])
