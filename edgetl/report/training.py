"""What fine-tuning recorded: its epochs, the linear probe beside what was kept, labels against accuracy, adaptation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgetl.bundle import Bundle
from edgetl.report.accuracy import Scores, of_metrics
from edgetl.stats import Interval


@dataclass(frozen=True)
class Epoch:
    """One epoch: losses in nats, accuracy 0-1 on val."""

    epoch: int
    train_loss: float | None
    val_loss: float | None
    val_accuracy: float | None


@dataclass(frozen=True)
class Budget:
    """Accuracy on val with so many labels a class, with its interval."""

    labels: int
    accuracy: float
    accuracy_ci: Interval


@dataclass(frozen=True)
class Training:
    """How the network came about. `tuned` is what was kept, on val; `budgets` by strategy."""

    strategy: str
    chosen: str
    why: str
    best_epoch: int | None
    history: tuple[Epoch, ...]
    probe: Scores | None
    tuned: Scores | None
    test: Scores | None
    seconds: float | None
    device: str | None
    budgets: Mapping[str, tuple[Budget, ...]]
    budget_answer: str
    folds: str
    temperature: float | None
    ece: tuple[float, float, int, str] | None  # as it came, after the temperature, images, split


def training(bundle: Bundle) -> Training | None:
    """None where the bundle was not trained here (adopted)."""
    found = bundle.manifest["training"]
    if not found.get("metrics"):
        return None
    metrics, result, labels = found["metrics"], found.get("result") or {}, bundle.labels
    confidence = bundle.manifest.get("confidence") or {}
    scored = {
        name: of_metrics(called, split, metrics[name], labels) if metrics.get(name) else None
        for name, called, split in (
            ("linear_probe", "linear probe", "val"),
            ("val", str(found.get("chosen")), "val"),
            ("test", str(found.get("chosen")), "test"),
        )
    }
    budget = result.get("label_budget") or {}
    return Training(
        strategy=str(found.get("strategy", "")),
        chosen=str(found.get("chosen", "")),
        why=str((result.get("selection") or {}).get("why", "")),
        best_epoch=found.get("best_epoch"),
        history=tuple(_epoch(line) for line in found.get("history") or []),
        probe=scored["linear_probe"],
        tuned=scored["val"],
        test=scored["test"],
        seconds=result.get("seconds"),
        device=(found.get("options") or {}).get("device"),
        budgets=_budgets(budget),
        budget_answer=str(budget.get("answer", "")),
        folds=_folds(result.get("folds")),
        temperature=confidence.get("temperature"),
        ece=_calibration(confidence),
    )


def _epoch(line: Mapping[str, Any]) -> Epoch:
    return Epoch(int(line["epoch"]), line.get("train_loss"), line.get("val_loss"), line.get("val_accuracy"))


def _budgets(found: Mapping[str, Any]) -> dict[str, tuple[Budget, ...]]:
    rows = found.get("rows") or []
    names = [name for name in ("linear_probe", "strategy") if rows and all(row.get(name) for row in rows)]
    return {
        name: tuple(
            Budget(int(row["labels"]), float(row[name]["accuracy"]), tuple(row[name]["accuracy_ci"])) for row in rows
        )
        for name in names
    }


def _folds(found: Mapping[str, Any] | None) -> str:
    if not found:
        return ""
    low, high = found["accuracy_ci"]
    return (
        f"Cross-validated in {found['k']} folds, each of {found['n']} images held out once: accuracy "
        f"{100 * found['accuracy']:.1f} % (95 % interval {100 * low:.1f} to {100 * high:.1f})"
    )


def _calibration(confidence: Mapping[str, Any]) -> tuple[float, float, int, str] | None:
    split = "test" if confidence.get("test") else "val"
    found = confidence.get(split)
    return (found["ece"], found["ece_calibrated"], int(found["n"]), split) if found else None
