"""The parts that pictures are made of, for any numbers and any names."""

from __future__ import annotations

from html.parser import HTMLParser
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.report.accuracy import Bin
from edgetl.report.charts.classes import counts
from edgetl.report.charts.lines import losses, reliability
from edgetl.report.charts.svg import Scale, apart, around, cut, element, width_of
from edgetl.report.charts.variants import WIDTH, Line, _rows, front, intervals
from edgetl.report.training import Epoch
from edgetl.report.variants import Point

numbers = st.floats(-1e6, 1e6, allow_nan=False)
names = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=40)


@given(st.lists(numbers, min_size=1, max_size=20), st.booleans())
def test_ticks_are_round_few_and_within_the_scale(values, log):
    values = [abs(v) + 1e-3 for v in values] if log else values
    low, high = (min(values) / 1.3, max(values) * 1.3) if log else around(values)
    found = Scale(low, high, 0, 300, log).ticks(5)
    assert 1 <= len(found) <= 6 and found == sorted(found)
    air = (high - low) * 1e-9
    assert all(low - air <= v <= high + air for v in found)


@given(st.lists(numbers, min_size=2, max_size=10))
def test_a_scale_keeps_order_and_ends(values):
    low, high = around(values)
    scale = Scale(low, high, 40, 300)
    assert scale(low) == pytest.approx(40) and scale(high) == pytest.approx(300)
    places = [scale(v) for v in sorted(values)]
    assert places == sorted(places)


@given(st.lists(st.floats(0, 300), min_size=1, max_size=12))
def test_labels_are_moved_apart_in_their_order(places):
    moved = apart(places, 14)
    order = sorted(range(len(places)), key=lambda i: places[i])
    gaps = [moved[b] - moved[a] for a, b in pairwise(order)]
    assert all(gap >= 14 - 1e-6 for gap in gaps)
    assert sum(moved) / len(moved) == pytest.approx(sum(places) / len(places), abs=1e-6)


@given(
    st.lists(
        st.tuples(st.floats(40, WIDTH), st.sampled_from(["fp32 cpu", "int8 trt10", "fp16"])), min_size=1, max_size=12
    )
)
def test_names_above_a_plot_never_meet(given_names):
    taken: dict[int, list[tuple[float, float]]] = {}
    for (_, name), (row, centre) in zip(given_names, _rows(given_names), strict=True):
        half = width_of(name) / 2 * 0.95
        assert half <= centre <= WIDTH - half + 1e-6
        assert all(centre - half >= e or centre + half <= s for s, e in taken.get(row, []))
        taken.setdefault(row, []).append((centre - half, centre + half))


@given(names, st.floats(20, 200))
def test_a_name_is_cut_to_its_room(name, room):
    assert width_of(cut(name, room)[1:-1]) <= max(room, width_of("\N{HORIZONTAL ELLIPSIS}"))


@given(names, names)
def test_text_and_values_come_back_as_they_were(text, value):
    seen = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            seen.append((tag, dict(attrs)))

        def handle_data(self, data):
            seen.append(data)

    Reader().feed(element("text", text, class_=value))
    assert seen[0] == ("text", {"class": value})
    assert "".join(seen[1:]) == text


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(1e-6, 1e6)), min_size=1, max_size=8))
def test_a_front_can_be_drawn_of_any_points(pairs):
    points = [Point(f"p{i}", "fp32", a, (max(0, a - 0.1), min(1, a + 0.1)), c, "x") for i, (a, c) in enumerate(pairs)]
    text = str(front("k", "t", points, "ms"))
    assert text.count("<circle") == len(pairs) and "nan" not in text and "inf" not in text


@settings(max_examples=30)
@given(st.lists(st.floats(-1e5, 1e5), min_size=1, max_size=6), st.booleans())
def test_intervals_can_be_drawn_of_any_values(values, marked):
    lines = [Line(f"l{i}", v, (v - 1, v + 1), "int8", "v", "x") for i, v in enumerate(values)]
    assert "nan" not in str(intervals("k", "t", lines, "u", [(0.0, "zero")] if marked else ()))


def test_a_contract_far_away_is_named_and_does_not_squeeze_the_intervals():
    lines = [Line("int8", 0.1, (0.0, 0.2), "int8", "+0.10", "x")]
    far, near = (str(intervals("k", "t", lines, "u", [(0.0, "no change"), (at, "allowed")])) for at in (5.0, 0.3))
    assert "allowed \N{RIGHTWARDS ARROW}" in far and far.count("mark-line") == 1
    assert "allowed<" in near and near.count("mark-line") == 2


def test_nothing_to_draw_is_no_picture():
    assert front("k", "t", [], "u") is None and intervals("k", "t", [], "u") is None
    assert losses([Epoch(1, None, None, None)], None) is None
    assert reliability((), None) is None and counts(["a"], {}) is None


def test_one_epoch_and_a_single_bin_are_drawn():
    assert "nan" not in str(losses([Epoch(1, 0.5, 0.5, 0.5)], 1))
    assert "n 3" in str(reliability((Bin(0.9, 1.0, (0.4, 1.0), 3),), 0.1))
