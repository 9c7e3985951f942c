"""What an export recorded of an int8 graph's layers: read, and named for people. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgetl.bundle import Bundle, read_json
from edgetl.errors import BundleError

Row = dict[str, Any]

_GRAPH = ("profile", "precision", "input", "file", "sha256", "bytes", "opset", "met", "int8_macs_share")
_ABOUT = ("method", "calibration_n", "evidence", "builder")


def xray_of(bundle: Bundle, profile: str | None = None, top: int | None = None) -> dict[str, Any]:
    """{"layers": [...], "graph": {...}} of the newest int8 graph with an X-ray, `top` rows; of `profile` where given.

    Raises BundleError: no int8 graph, no X-ray of it, or a damaged file.
    """
    graph, found = _newest(bundle, profile)
    body = read_json(bundle.file(found), "X-ray")
    about = {key: graph.get(key) for key in _GRAPH} | {key: body[key] for key in _ABOUT}
    rows = body["layers"]
    counts = {"layers": len(rows), "measured": sum(row["effect_n"] is not None for row in rows)}
    return {"layers": rows[:top], "graph": {**about, **counts}}


def _newest(bundle: Bundle, profile: str | None) -> tuple[Row, Row]:
    """The records of the graph and of its X-ray."""
    graphs = bundle.artifacts("graph", precision="int8")
    wanted = [graph for graph in graphs if profile in (None, graph["profile"])]
    for graph in reversed(wanted):
        found = bundle.artifacts("layers", made_from=graph["sha256"])
        if found:
            return graph, found[-1]
    again = f"edgetl export {bundle.path} --int8"
    if wanted:
        do = f"export it again: {again}"
        raise BundleError("nothing is recorded of this int8 graph's layers", wanted[-1]["file"], do)
    if graphs:
        there = ", ".join(sorted({str(graph["profile"]) for graph in graphs}))
        raise BundleError(f"the bundle has no int8 graph of profile {profile}", bundle.path, f"it has: {there}")
    raise BundleError("the bundle has no int8 graph", bundle.path, f"make one: {again}")


def shortened(names: Sequence[str], width: int) -> list[str]:
    """`names` for people: without what all share and what a path says twice, cut in the middle to `width`.

    "/backbone/features/features.3/features.3.0/conv/conv.0/Conv" -> "features.3.0/conv.0". Where two would
    become the same, all stay as they are before the cut.
    """
    paths = [[part for part in name.split("/") if part] or [name] for name in names]
    paths = [_without_echo(path) for path in paths]
    while len(paths) > 1 and all(len(path) > 1 for path in paths) and len({path[0] for path in paths}) == 1:
        paths = [path[1:] for path in paths]
    for drop in (True, False):
        kept = [path[:-1] if drop and len(path) > 1 else path for path in paths]
        short = ["/".join(path) for path in kept]
        if len(set(short)) == len(set(names)):
            return [_cut(name, width) for name in short]
    return [_cut(name, width) for name in names]


def _without_echo(path: list[str]) -> list[str]:
    """A path less each part that the next one begins with ("conv" before "conv.0")."""
    pairs = zip(path, [*path[1:], ""], strict=True)
    return [part for part, after in pairs if not after.startswith(part + ".")]


def _cut(name: str, width: int) -> str:
    if len(name) <= width:
        return name
    tail = (width - 1) * 2 // 3
    return name[: width - 1 - tail] + "\N{HORIZONTAL ELLIPSIS}" + name[-tail:]
