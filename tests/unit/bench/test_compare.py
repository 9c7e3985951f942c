"""Two benches side by side: what counts as a change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edgetl.bench import Change, Compared, changes
from edgetl.bench.compare import legend
from edgetl.measure.rows import Row

HERE = {"e": {"cpu": "fast", "versions": {"torch": "2.15"}, "load_1m": 0.1}}
QUIET = {"noisy": False, "why": [], "spread": 0.01, "reference_spread": 0.01}
NOISY = {"noisy": True, "why": ["others"], "spread": 0.2, "reference_spread": 0.1}


def summary(p50: float, p90: float) -> dict[str, Any]:
    return {"p50": p50, "p90": p90, "p95": None, "p99": None, "mean": p50, "n": 200}


ROW = Row(
    id="a",
    environment="e",
    backend="onnxruntime",
    provider="CPUExecutionProvider",
    profile="trt10",
    precision="int8",
    graph_sha256="1" * 64,
    engine_key=None,
    status="ok",
    error=None,
    split="test",
    batch=1,
    n_images=100,
    accuracy=0.90,
    accuracy_ci=(0.85, 0.95),
    drop_pp=0.0,
    drop_ci_pp=(-1.0, 1.0),
    latency_ms=summary(10, 11),
)


def told(p50: float, ratio: float, half: float = 0.01, noise: dict[str, Any] = QUIET) -> Row:
    """A row with a ratio to the row "ref", known to +- half."""
    ends = (ratio, ratio * (1 - half), ratio * (1 + half))
    return replace(ROW, latency_ms=summary(p50, p50 * 1.1), ratio_p50=ends, ratio_to="ref", noise=noise)


def only(before: Row, now: Row) -> dict[str, Change]:
    return {change.figure: change for change in changes(Compared([before], HERE), Compared([now], HERE))}


def test_the_same_bench_again_changes_nothing_beyond_noise() -> None:
    assert list(only(ROW, ROW)) == ["latency_ms.p50"]
    assert only(ROW, ROW)["latency_ms.p50"].beyond is False


def test_accuracy_within_and_beyond_its_interval() -> None:
    near = replace(ROW, accuracy=0.89, accuracy_ci=(0.84, 0.94), drop_pp=1.0, drop_ci_pp=(0.0, 2.0))
    far = replace(ROW, accuracy=0.5, accuracy_ci=(0.4, 0.6), drop_pp=40.0, drop_ci_pp=(38.0, 42.0))
    assert (only(ROW, near)["accuracy"].beyond, only(ROW, near)["drop_pp"].beyond) == (False, False)
    assert (only(ROW, far)["accuracy"].beyond, only(ROW, far)["drop_pp"].beyond) == (True, True)
    unknown = replace(far, accuracy_ci=None)
    assert only(ROW, unknown)["accuracy"].beyond is None


def test_other_images_cannot_be_compared() -> None:
    found = only(ROW, replace(ROW, split="val", n_images=40, accuracy=0.5))["accuracy"]
    assert found.beyond is None
    assert found.note == "on other images: test 100, now val 40"


def test_without_ratios_a_time_counts_when_the_median_leaves_the_spread() -> None:
    assert only(ROW, replace(ROW, latency_ms=summary(10.5, 12)))["latency_ms.p50"].beyond is False
    assert only(ROW, replace(ROW, latency_ms=summary(12, 13)))["latency_ms.p50"].beyond is True
    assert only(ROW, replace(ROW, latency_ms=summary(5, 6)))["latency_ms.p50"].beyond is True
    assert "latency_ms.p50" not in only(ROW, replace(ROW, latency_ms=None))


@pytest.mark.parametrize(
    ("now", "beyond"),
    [
        (told(20, 0.50), False),  # the whole machine became slower
        (told(10, 0.52), False),  # within what two benches differ by
        (told(10, 0.53), True),
        (told(10, 0.47), True),
        (told(10, 0.53, half=0.10), False),  # the ratio itself is not known so well
        (told(10, 0.53, noise=NOISY), None),
        (told(10, 0.50, noise=NOISY), None),  # nor can it be told that nothing changed
        (told(10, 2.00, noise=NOISY), True),  # more than any such noise
    ],
)
def test_a_time_is_judged_by_its_ratio_to_the_reference(now: Row, beyond: bool | None) -> None:
    found = only(told(10, 0.50), now)
    assert found["ratio_p50"].beyond is beyond
    assert (found["ratio_p50"].before, found["ratio_p50"].now) == (0.50, now.ratio_p50[0] if now.ratio_p50 else None)
    assert found["latency_ms.p50"].beyond is beyond
    assert found["latency_ms.p50"].note == ("noisy now" if beyond is None else "by its ratio")


def test_the_legend_explains_the_notes_that_are_there() -> None:
    quiet = changes(Compared([told(10, 0.5)], HERE), Compared([told(10, 0.53)], HERE))
    assert [line.partition(":")[0] for line in legend(quiet)] == ["by its ratio"]
    both = changes(Compared([told(10, 0.5, noise=NOISY)], HERE), Compared([told(10, 0.53, noise=NOISY)], HERE))
    assert both[0].note == "noisy then and now"
    assert [line.partition(":")[0] for line in legend(both)] == ["noisy"]
    assert legend([]) == []


def test_other_clocks_are_judged_by_their_own_ratio() -> None:
    def bench(whole: float, reference_whole: float) -> Compared:
        rest = {"p90": None, "p95": None, "p99": None}
        pair = [
            replace(row, end_to_end_ms=summary(p50, p50), end_to_end_ci_ms={"p50": [p50 * 0.99, p50 * 1.01], **rest})
            for row, p50 in ((told(10, 0.5), whole), (replace(told(20, 1.0), id="ref"), reference_whole))
        ]
        return Compared(pair, HERE)

    def beyond(now: Compared) -> dict[str, bool | None]:
        return {c.id: c.beyond for c in changes(bench(15, 25), now) if c.figure == "end_to_end_ms.p50"}

    assert beyond(bench(30, 50)) == {"a": False, "ref": None}
    assert beyond(bench(30, 25)) == {"a": True, "ref": None}


def test_the_reference_itself_shows_the_drift_of_the_machine() -> None:
    before, now = (replace(told(p50, 1.0), id="ref") for p50 in (10, 30))
    found = only(before, now)
    assert list(found) == ["latency_ms.p50"]
    assert found["latency_ms.p50"].beyond is None
    assert "drift" in found["latency_ms.p50"].note


def test_another_reference_is_no_ground() -> None:
    found = only(told(10, 0.5), replace(told(10, 0.9), ratio_to="another"))
    assert "ratio_p50" not in found
    assert (found["latency_ms.p50"].beyond, found["latency_ms.p50"].note) == (False, "the machine's drift is not known")


def test_figures_of_nothing_are_no_ground_either() -> None:
    zero = replace(told(0, 0.0), latency_ms=summary(0, 0))
    assert only(zero, told(10, 0.5))["ratio_p50"].note == "the machine's drift is not known"


@pytest.mark.parametrize(
    ("there", "note"),
    [
        ({"cpu": "slow"}, "measured in another environment (cpu: fast, now slow)"),
        ({"versions": {"torch": "2.16"}}, "measured in another environment (versions: torch 2.15, now 2.16)"),
        ({"cpu": "slow", "versions": {}}, "measured in another environment (cpu: fast, now slow and 1 more)"),
        ({"cpu": "fast", "load_1m": 7.0, "smt": True}, ""),  # it tells more than an older edgetl did
    ],
)
def test_environments_are_compared_by_what_both_tell(there: dict[str, Any], note: str) -> None:
    now = replace(told(99, 0.9), environment="f")
    found = {c.figure: c for c in changes(Compared([told(10, 0.5)], HERE), Compared([now], {"f": there}))}
    for figure in ("ratio_p50", "latency_ms.p50"):
        assert found[figure].beyond is (None if note else True)
        assert not note or found[figure].note == note


def test_an_environment_that_is_not_told_is_another() -> None:
    now = replace(told(99, 0.9), environment="f")
    found = {c.figure: c for c in changes(Compared([told(10, 0.5)], {}), Compared([now], {"f": {}}))}
    assert (found["ratio_p50"].beyond, found["ratio_p50"].note) == (None, "measured in another environment")


def test_rows_that_come_go_fail_or_recover() -> None:
    failed = replace(ROW, status="failed", error="no memory")
    assert only(ROW, failed)["status"].note == "no memory"
    assert only(failed, ROW)["status"].now == "ok"
    assert only(failed, failed) == {}
    gone = changes(Compared([ROW], HERE), Compared([replace(ROW, id="b")], HERE))
    assert [(c.id, c.now) for c in gone] == [("b", "new"), ("a", None)]


def test_another_graph_is_said() -> None:
    found = only(ROW, replace(ROW, graph_sha256="2" * 64))
    assert found["graph_sha256"].beyond is True
    assert found["graph_sha256"].as_json()["before"] == "1" * 64
