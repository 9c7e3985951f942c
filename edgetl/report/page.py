"""The page: facts, pictures and words through one template, everything inside the file."""

from __future__ import annotations

import shlex
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from edgetl import __version__
from edgetl.report import words
from edgetl.report.accuracy import MATRIX
from edgetl.report.facts import Facts
from edgetl.report.figures import figures, p50_interval
from edgetl.report.photos import Pictures
from edgetl.report.privacy import relative, without_paths
from edgetl.report.rows import Measured
from edgetl.report.xray import shortened

TOP_CONFUSIONS = 12
TOP_LAYERS = 20


def environment() -> Environment:
    """Templates of this package; whatever is no Markup is escaped, and an unknown name is an error."""
    made = Environment(
        loader=PackageLoader("edgetl.report"),
        autoescape=select_autoescape(("html", "j2.html"), default=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("percent", "between", "points", "range_pp", "milliseconds", "megabytes", "count", "day", "called"):
        made.filters[name] = getattr(words, name)
    made.filters["shell"] = shlex.quote
    made.filters["without_paths"] = without_paths
    made.filters["relative"] = relative
    return made


def page(facts: Facts, pictures: Pictures) -> str:
    """The whole page as HTML: no script, no link to anything outside it."""
    made = environment()
    return made.get_template("page.html").render(
        facts=facts,
        pictures=pictures,
        charts=figures(facts),
        say=words,
        version=__version__,
        table=[_cells(one) for one in facts.measured],
        noise=[(words.called(one), said) for one in facts.measured for said in [_noise(one)] if said],
        layers=_layers(facts),
        top_confusions=TOP_CONFUSIONS,
        whole=MATRIX,
    )


def _cells(one: Measured) -> dict[str, Any]:
    """One row of the table of all measurements; None is "-" there."""
    row, latency = one.row, one.row.latency_ms or {}
    return {
        "one": one,
        "row": row,
        "name": words.called(one),
        "kind": words.kind(one),
        "latency": latency,
        "p50_ci": p50_interval(one),
        "streams": {n: found for n, found in (row.throughput_by_streams or {}).items() if found and n != "1"},
        "noisy": bool((row.noise or {}).get("noisy")),
        "evidence": _come_by(row.accuracy_evidence, row.latency_evidence),
        "error": without_paths(row.error) if row.error else "",
    }


def _come_by(accuracy: str | None, latency: str | None) -> str:
    said = [words.SHORT.get(found or "", found or "") for found in (accuracy, latency)]
    if not said[1]:
        return f"{said[0]}, no speed"
    return said[0] if said[0] == said[1] else f"{said[0]}; speed {said[1]}"


def _noise(one: Measured) -> str:
    """What disturbed this row, as the bench says, or how the device was set; "" where nothing was recorded."""
    found = one.row.noise or {}
    if found.get("noisy"):
        return without_paths("; ".join(str(why) for why in found["why"]).replace("+-", "\N{PLUS-MINUS SIGN}"))
    conditions = one.extra.get("conditions")
    if not isinstance(conditions, dict):
        return ""
    known = {key: value for key, value in conditions.items() if isinstance(value, str | int | float)}
    return without_paths("; ".join(f"{key.replace('_', ' ')} {_short(value)}" for key, value in known.items()))


def _short(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _layers(facts: Facts) -> list[dict[str, Any]]:
    if facts.layers is None:
        return []
    rows = facts.layers.rows[:TOP_LAYERS]
    names = shortened([str(row["node"]) for row in rows], 60)
    return [{"name": name, **row} for name, row in zip(names, rows, strict=True)]
