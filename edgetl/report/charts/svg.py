"""Inline SVG written by hand: elements, scales, ticks, and names that stay within their place."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from markupsafe import Markup

SIZE = 12  # px of text; a viewBox is drawn at about its own size on a phone
_ISOLATE, _END = "\u2068", "\u2069"  # an Arabic or Hebrew name does not turn its neighbours round


class Svg:
    """A picture of `width` x `height` px whose `title` and `text` say what it shows to those who do not see it.

    `key` is unique on the page: the ids of title and text are made of it.
    """

    def __init__(self, key: str, title: str, text: str, width: float, height: float) -> None:
        self.width, self.height = width, height
        self._key, self._title, self._text = key, title, text
        self._parts: list[str] = []

    def add(self, tag: str, content: str | None = None, **attributes: object) -> None:
        """An element; `class_` is its class, underscores become hyphens, floats are rounded, None is left out."""
        self._parts.append(element(tag, content, **attributes))

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        """A straight line of class `kind`."""
        self.add("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=kind)

    def text(self, x: float, y: float, content: str, kind: str = "", anchor: str = "start", **more: object) -> None:
        """Text whose baseline begins (middle, end: is centred, ends) at (x, y)."""
        self.add(
            "text", content, x=x, y=y, class_=kind or None, text_anchor=None if anchor == "start" else anchor, **more
        )

    def path(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        """A line through points."""
        self.add("path", d="M" + "L".join(f"{_short(x)} {_short(y)}" for x, y in points), class_=kind)

    def whisker(self, at: tuple[float, float], low: float, high: float, kind: str, upright: bool = False) -> None:
        """An interval through the point `at`, from low to high along x (`upright`: along y), with caps."""
        x, y = at
        for one in (low, high):
            if upright:
                self.line(x - 3, one, x + 3, one, kind)
            else:
                self.line(one, y - 3, one, y + 3, kind)
        ends = (x, low, x, high) if upright else (low, y, high, y)
        self.line(*ends, kind)

    def mark(self, x: float, y: float, kind: str) -> None:
        """A point; its shape tells what its colour tells too: fp32 round, fp16 square, int8 a diamond."""
        if "int8" in kind:
            self.add("path", d=f"M{_short(x)} {_short(y - 6)}l6 6l-6 6l-6-6z", class_=kind)
        elif "fp16" in kind:
            self.add("rect", x=x - 4.5, y=y - 4.5, width=9, height=9, class_=kind)
        else:
            self.add("circle", cx=x, cy=y, r=5, class_=kind)

    def done(self) -> Markup:
        """The element as it stands in the page."""
        head = (
            f'<svg class="chart" role="img" viewBox="0 0 {_short(self.width)} {_short(self.height)}" '
            f'style="--w:{_short(self.width)}px" aria-labelledby="{self._key}-t {self._key}-d">'
            f'<title id="{self._key}-t">{escape(self._title)}</title>'
            f'<desc id="{self._key}-d">{escape(self._text)}</desc>'
        )
        return Markup(head + "".join(self._parts) + "</svg>")  # every part was escaped when it was added


def element(tag: str, content: str | None = None, **attributes: object) -> str:
    """One element, its text and its values escaped."""
    given = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items() if value is not None}
    words = "".join(f' {name}="{escape(_plain(value))}"' for name, value in given.items())
    return f"<{tag}{words}/>" if content is None else f"<{tag}{words}>{escape(content)}</{tag}>"


def _plain(value: object) -> str:
    return _short(value) if isinstance(value, float) else str(value)


def _short(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")


@dataclass(frozen=True)
class Scale:
    """From a value in low..high to px in start..end; `log` for times."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The place of `value` in px."""
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int = 5) -> list[float]:
        """Round values within the range, about `most` of them."""
        return _log_ticks(self.low, self.high, most) if self.log else _ticks(self.low, self.high, most)


def _ticks(low: float, high: float, most: int) -> list[float]:
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    for factor in (1, 2, 2.5, 5, 10):
        if (high - low) / (step * factor) <= most:
            step *= factor
            break
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 3, 4, 5, 6, 8), (1, 2, 5), (1, 3), (1,)):
        found = [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]
        if len(found) <= most:
            break
    if len(found) < 2:
        return _ticks(low, high, most)  # within one step of 1, 2, 5
    return found[:: 1 + (len(found) - 1) // most]


def around(values: Sequence[float], margin: float = 0.08, least: float = 1e-6) -> tuple[float, float]:
    """A range that holds `values` with some air; never empty."""
    low, high = min(values), max(values)
    air = max((high - low) * margin, least)
    return low - air, high + air


def around_log(values: Sequence[float], factor: float = 1.35) -> tuple[float, float]:
    """The same for a log scale; values are above zero."""
    return min(values) / factor, max(values) * factor


def number(value: float) -> str:
    """A tick's label: as short as it can be."""
    return f"{value:g}"


def isolated(name: str) -> str:
    """A name in whatever script, kept apart from what stands around it."""
    return _ISOLATE + name + _END


def width_of(text: str) -> float:
    """About how wide text of SIZE is, in px; East Asian characters and emoji are as wide as they are high."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return SIZE * (0.56 * (len(text) - wide) + 1.02 * wide)


def cut(name: str, room: float) -> str:
    """`name` isolated, its end replaced by an ellipsis where it is wider than `room` px."""
    if width_of(name) <= room:
        return isolated(name)
    kept = name
    while kept and width_of(kept + "\N{HORIZONTAL ELLIPSIS}") > room:
        kept = kept[:-1]
    return isolated(kept + "\N{HORIZONTAL ELLIPSIS}")


def room_for(names: Sequence[str], most: float = 130.0) -> float:
    """Px that the longest of `names` takes, at most `most`."""
    return min(most, max((width_of(name) for name in names), default=0.0)) + 8


def apart(places: Sequence[float], gap: float) -> list[float]:
    """`places` moved as little as lets neighbours be `gap` apart, in their order: labels do not cover each other."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    out = list(places)
    for before, after in pairwise(order):
        out[after] = max(out[after], out[before] + gap)
    shift = sum(out[i] - places[i] for i in order) / max(1, len(order))
    return [place - shift for place in out]


def axes(svg: Svg, x: Scale, y: Scale, names: tuple[str, str], most: int = 5) -> None:
    """Grid lines and labels of both axes; `names` carry their units."""
    for value in y.ticks(most):
        svg.line(x.start, y(value), x.end, y(value), "gridline")
        svg.text(x.start - 6, y(value) + 4, number(value), "tick", "end")
    for value in x.ticks(most):
        svg.line(x(value), y.start, x(value), y.start + 4, "axis")
        svg.text(x(value), y.start + 17, number(value), "tick", "middle")
    svg.line(x.start, y.start, x.end, y.start, "axis")
    svg.text((x.start + x.end) / 2, y.start + 34, names[0], "name", "middle")
    svg.text(2, y.end - 12, names[1], "name")


def ruler(svg: Svg, x: Scale, top: float, bottom: float, unit: str) -> None:
    """Upright grid lines from top to bottom with their values below, and what they are in."""
    for value in x.ticks():
        svg.line(x(value), top, x(value), bottom, "gridline")
        svg.text(x(value), bottom + 15, number(value), "tick", "middle")
    svg.text((x.start + x.end) / 2, bottom + 33, unit, "name", "middle")
