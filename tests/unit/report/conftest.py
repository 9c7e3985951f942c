"""A bundle written by the bundle's own code, with graphs, rows and answers as the stages leave them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgetl.bundle import Bundle, NewArtifact, canonical_json, create, locked, sha256_bytes
from edgetl.images import Sample, split_digest
from edgetl.measure import answers as kept
from edgetl.measure.rows import Row
from edgetl.measure.score import metrics
from edgetl.stats import paired_difference, percentiles, wilson

AT = "2026-01-02T03:04:05Z"
ODD_LABELS = (
    "菊の花",
    "وردة بيضاء",
    "🌷 tulip",
    "<script>alert(1)</script>",
    "a; rm -rf ~",
    'x" onload="y',
    "| md `x` [y](z)",
)
MACHINE = {
    "os": "Linux",
    "machine": "x86_64",
    "cpu": "CPU of a test",
    "cores": 2,
    "affinity": 2,
    "gpus": [],
    "threads": 1,
}


class Maker:
    """make(...) -> the path of a bundle called "flowers"; every part may be left out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(
        self,
        labels: Sequence[str] = ("daisy", "rose", "tulip"),
        n: int = 60,
        test: bool = True,
        graphs: Sequence[tuple[str, str]] = (("trt10", "fp32"), ("trt10", "fp16"), ("trt10", "int8")),
        bench: bool = True,
        trained: bool = True,
        photos: bool = False,
        guard: dict[str, Any] | None = None,
        wrong: int = 2,
        name: str = "flowers",
        options: dict[str, Any] | None = None,
        result: dict[str, Any] | None = None,
        layers: Sequence[dict[str, Any]] = (),
    ) -> Path:
        self.folder.mkdir(exist_ok=True)
        rng = np.random.default_rng(0)
        data = self.folder / "photos of Zoë"
        samples = [self._sample(data, i, i % len(labels), photos) for i in range(n)]
        splits = {"train": samples, "val": samples[: n // 2] or samples, "calibration": samples[:4]}
        splits |= {"test": samples} if test else {}
        logits = rng.normal(size=(n, len(labels))).astype(np.float32)
        targets = np.array([s.target for s in samples])
        logits[np.arange(n), targets] += 1.5
        found = metrics(logits, targets, labels)
        manifest: dict[str, Any] = {
            "task": "classification",
            "made_by": "finetune" if trained else "adopt",
            "labels": list(labels),
            "preprocess": {"size": 32, "resize": 32, "fit": "crop", "interpolation": "bilinear"}
            | {"mean": [0, 0, 0], "std": [1, 1, 1]},
            "model": {"backbone": "smallnet", "backbone_args": {}, "weights": {"name": "w.pth", "sha256": "ab" * 32}}
            if trained
            else {"backbone": "adopted", "file": "theirs.onnx", "sha256": "cd" * 32},
            "splits": {name: {"n": len(own), "digest": split_digest(own)} for name, own in splits.items()},
            "tolerances": {},
            "training": _training(found, test, result or {}) if trained else {},
            "confidence": CONFIDENCE if trained else {},
        }
        scratch = self.folder / "scratch"
        scratch.mkdir()
        new = [self._graph(scratch, profile, precision, guard, options or {}) for profile, precision in graphs]
        (scratch / "splits.json").write_bytes(
            canonical_json({name: [[s.path, s.target, s.digest, ""] for s in own] for name, own in splits.items()})
        )
        new.append(
            NewArtifact(scratch / "splits.json", "splits-{sha12}.json", {"kind": "splits", "made_by": "finetune"})
        )
        command = ["/opt/zoe/.venv/bin/edgetl", "finetune", str(data), "--to", "/home/zoe/models/flowers"]
        with locked(self.folder / name):
            made = create(self.folder / name, manifest, new, {"data": str(data), "command": command, "host": "zoes-pc"})
        if layers:
            self._xray(made, scratch, layers)
        if bench:
            self.bench(made, samples, logits, wrong, "test" if test else "val")
        return made.path

    def _sample(self, data: Path, i: int, target: int, photos: bool) -> Sample:
        path = f"class{target}/{i:05}.jpg"
        if not photos:
            return Sample(path, target, f"{i:064x}")
        file = data / path
        file.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 255, (300, 400, 3), dtype=np.uint8)
        Image.fromarray(noise).save(file, quality=90)
        return Sample(path, target, sha256_bytes(file.read_bytes()))

    def _graph(
        self, scratch: Path, profile: str, precision: str, guard: dict[str, Any] | None, options: dict[str, Any]
    ) -> NewArtifact:
        source = scratch / f"{profile}-{precision}.onnx"
        source.write_bytes(f"{profile} {precision}".encode() * {"fp32": 400, "fp16": 200, "int8": 100}[precision])
        judged = precision == "int8"
        record = {
            "kind": "graph",
            "made_by": "export",
            "profile": profile,
            "precision": precision,
            "input": "float32",
            "met": (guard or GUARD)["met"] if judged else None,
            "guard": (guard or GUARD) if judged else None,
            "int8_macs_share": 0.99 if judged else None,
            "options": {"target": "cpu" if profile == "cpu" else "jetpack6", "max_drop": 0.5, "method": "max"}
            | options,
            "versions": {"onnx": "1.2"},
        }
        return NewArtifact(source, f"graphs/{profile}/{precision}-{{sha12}}.onnx", record)

    def _xray(self, made: Bundle, scratch: Path, layers: Sequence[dict[str, Any]]) -> None:
        graph = made.artifact("graph", precision="int8")
        body = {"schema": 1, "method": "max", "calibration_n": 4, "evidence": "simulated", "builder": None}
        (scratch / "layers.json").write_bytes(
            canonical_json({**body, "graph": graph["sha256"], "layers": list(layers)})
        )
        record = {"kind": "layers", "made_by": "export", "made_from": graph["sha256"], "profile": graph["profile"]}
        with locked(made.path):
            made.add([NewArtifact(scratch / "layers.json", "layers-{sha12}.json", record)])

    def bench(self, made: Bundle, samples: Sequence[Sample], logits: Any, wrong: int, split: str) -> None:
        """Rows and answers; every variant but fp32 has the first `wrong` answers another."""
        outputs, rows = (
            {"torch-cpu-fp32": logits},
            [row("torch-cpu-fp32", "torch", None, "fp32", None, len(samples), split)],
        )
        for record in made.artifacts("graph"):
            name = f"onnxruntime-cpu-{record['profile']}-{record['precision']}"
            changed = logits.copy()
            if record["precision"] != "fp32":
                changed[:wrong] = np.roll(changed[:wrong], 1, axis=1)
            outputs[name] = changed
            rows.append(
                row(name, "onnxruntime", record["profile"], record["precision"], record["sha256"], len(samples), split)
            )
        targets = np.array([s.target for s in samples])
        full = []
        for one, found in zip(rows, outputs.values(), strict=True):
            was, now = logits.argmax(1) == targets, found.argmax(1) == targets
            lost, won, n = int((was & ~now).sum()), int((now & ~was).sum()), len(samples)
            low, high = paired_difference(lost, won, n)
            full.append(
                replace(
                    one,
                    accuracy=float(now.mean()),
                    accuracy_ci=wilson(int(now.sum()), n),
                    drop_pp=100 * (lost - won) / n,
                    drop_ci_pp=(100 * low, 100 * high),
                    flips=int((logits.argmax(1) != found.argmax(1)).sum()),
                    agreement=float((logits.argmax(1) == found.argmax(1)).mean()),
                )
            )
        write_rows(made, full)
        found = kept.of_outputs(outputs, "torch-cpu-fp32", split, samples, made.labels)
        kept.write(made, replace(found, at=AT))


def row(name: str, backend: str, profile: str | None, precision: str, sha: str | None, n: int, split: str) -> Row:
    """A row with times where they mean something."""
    timed = precision == "fp32" or profile == "cpu"
    times = percentiles([{"fp32": 4.0, "fp16": 3.0, "int8": 1.5}[precision] + 0.001 * i for i in range(1200)])
    return Row(
        id=f"{name}-b1",
        environment="e1",
        backend=backend,
        provider="cpu" if backend == "torch" else "CPUExecutionProvider",
        profile=profile,
        precision=precision,
        graph_sha256=sha,
        engine_key=None,
        status="ok",
        error=None,
        split=split,
        batch=1,
        n_images=n,
        accuracy_evidence="host-cpu" if timed else "simulated",
        latency_evidence="host-cpu" if timed else None,
        latency_ms=times if timed else None,
        size_bytes=4000,
        peak_rss_mb=50.0,
    )


def write_rows(made: Bundle, rows: Sequence[Row], at: str = AT, **more: Any) -> None:
    """As `edgetl bench` keeps them."""
    made.append_rows("bench", [json.dumps({"at": at, **more, **one.to_json()}) for one in rows])
    made.append_rows("environments", [json.dumps({"at": at, "id": "e1", **MACHINE, "load_1m": 0.3})])


GUARD: dict[str, Any] = {
    "verdict": "unresolved",
    "met": True,
    "drop_pp": 0.2,
    "drop_ci_pp": [-0.4, 0.8],
    "p_mcnemar": 0.5,
    "n": 900,
    "n_needed": 4000,
    "flips": 9,
    "agreement": 0.99,
    "split": "val",
    "evidence": "simulated",
    "worst_class": {"label": "rose", "drop_pp": 1.0},
    "max_drop": 0.5,
}


CONFIDENCE = {
    "temperature": 1.3,
    "abstain": [],
    "val": {"n": 30, "ece": 0.2, "ece_calibrated": 0.1},
    "test": {"n": 60, "ece": 0.25, "ece_calibrated": 0.12},
}


def _training(found: dict[str, Any], test: bool, result: dict[str, Any]) -> dict[str, Any]:
    history = [
        {"epoch": i, "train_loss": 1.0 / i, "val_loss": 1.1 / i, "val_accuracy": 0.5 + 0.1 * i, "seconds": 1.0}
        for i in (1, 2, 3)
    ]
    return {
        "strategy": "lp-ft",
        "chosen": "lp-ft",
        "best_epoch": 2,
        "options": {"seed": 0},
        "versions": {"torch": "2.0"},
        "history": history,
        "metrics": {"val": found, "linear_probe": found, "test": found if test else None},
        "result": {"seconds": 12.0, "near_duplicates": {"n": 0, "pairs": []}} | result,
    }


@pytest.fixture
def make_bundle(tmp_path: Path) -> Maker:
    return Maker(tmp_path / "home of Zoë")


MakeBundle = Callable[..., Path]
