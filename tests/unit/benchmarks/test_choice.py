"""The benchmark of `rank`: how its rows become the table's, and that it runs at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import choice, tables
from benchmarks.rows import Case, append, read, row


def values(data: str, network: str, score: float, test: float, **others: Any) -> dict[str, Any]:
    counts = {"size": 64, "n_train": 80, "n_val": 20, "n_test": 100}
    scores = {"stage_accuracy": score, "probe_accuracy": score, "logme": score - 1, "h_score": 10 - score}
    scores |= {"knn_accuracy": score, "leep": None, "imagenet_accuracy": 0.7}
    tuned = {"test_accuracy": test, "probe_val_accuracy": 0.5, "chosen": "lp-ft", "seconds": 9.0}
    return {"data": data, "network": network, **counts, **scores, **tuned, **others}


ROWS = [
    values("flowers", "birds", 0.4, 0.70),
    values("flowers", "imagenet", 0.6, 0.78),
    values("flowers", "insects", 0.5, 0.80),
    values("flowers", "random", 0.2, 0.40),
]


def test_the_points_that_the_first_choice_loses() -> None:
    found = choice.agreed("flowers", ROWS)
    assert (found["first"], found["best"], found["networks"]) == ("imagenet", "insects", 4)
    assert found["regret_pp"]["probe_accuracy"] == found["regret_pp"]["rank"] == pytest.approx(2.0)
    assert found["regret_pp"]["h_score"] == pytest.approx(40.0)  # it chose the random one
    assert 0 < found["tau"]["probe_accuracy"] < 1 and found["tau"]["h_score"] < 0


def test_a_networks_accuracy_is_the_mean_over_its_seeds() -> None:
    again = [values("flowers", "imagenet", 0.6, test, seed=seed) for seed, test in ((1, 0.82), (2, 0.83))]
    (found,) = choice.by_set([{"values": v} for v in [*ROWS, *again]])
    assert found["values"]["networks"] == 4 and found["values"]["seeds"] == [3]
    assert (found["values"]["best"], found["values"]["best_accuracy"]) == ("imagenet", pytest.approx(0.81))


def test_tau_is_one_for_the_same_order_and_none_for_two() -> None:
    assert choice.tau([1.0, 2.0, 3.0], [0.5, 0.6, 0.9]) == pytest.approx(1.0)
    assert choice.tau([3.0, 2.0, 1.0], [0.5, 0.6, 0.9]) == pytest.approx(-1.0)
    assert choice.tau([1.0, 2.0], [0.5, 0.6]) is None


def test_rows_are_gathered_by_set_and_shown(tmp_path: Path) -> None:
    for found in [*ROWS, values("digits", "birds", 0.9, 0.97)]:
        append(row(Case("choice", f"{found['data']}: {found['network']}", quick=False), 2, found), tmp_path)
    text = tables.table("choice", list(read(tmp_path)))
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(lines) == 4  # header, rule, two sets
    assert "| flowers | 4 |" in lines[2] and "**2.0**" in lines[2] and "insects, 80.0 %" in lines[2]
    assert "| digits | 1 | - | - | - | - | - | - | birds |" in lines[3]


def test_classes_of_several_domains_are_pooled(make_folder: Any, tmp_path: Path) -> None:
    folders = [make_folder(n=10, name=name, seed=seed) for seed, name in enumerate(("photo", "sketch"))]
    counts = choice.laid_out(folders, tmp_path / "links", quick=True)
    links = sorted(p.relative_to(tmp_path / "links").as_posix() for p in (tmp_path / "links").rglob("*.png"))
    assert sum(counts.values()) == len(links) == 40
    assert {link.split("/")[1] for link in links} == {"left", "right"}
    assert {Path(link).name.split("-")[0] for link in links} == {"photo", "sketch"}


@pytest.mark.slow
def test_time_is_measured_on_small_things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "SAMPLES", tmp_path / "none")
    monkeypatch.setattr(choice, "networks", lambda: [choice.Network("embedded", "smallnet", "embedded")])
    (found,) = choice.run_time(quick=True)
    assert found["values"]["n_images"] == 50 and found["values"]["ratio"] > 0.5
