"""Two sets of features as a picture in two dimensions: source beside target, and by class where both have classes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgetl.bundle import atomic_write

if TYPE_CHECKING:
    from edgetl.transfer.domains import Side

_COLOURS = ("#0072B2", "#D55E00")  # source, target: told apart without colour vision too (Okabe & Ito)
_MARKS = ("o", "^")
_CLASSES_SHOWN = 10
_PERPLEXITY = 30.0


def projected(features: list[npt.NDArray[np.floating]], kind: str, seed: int) -> tuple[list[Any], tuple[str, str]]:
    """([float (M, 2), float (N, 2)], names of the axes): both sets in one plane.

    "pca": the two directions of largest variance of both together, and each one's share of it. "tsne": neighbours
    stay neighbours (van der Maaten & Hinton 2008), after PCA to 50 dimensions; lengths and sizes mean nothing there.
    """
    both = np.concatenate(features).astype(np.float64)
    centred = both - both.mean(0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    if kind == "tsne":
        from sklearn.manifold import TSNE

        reduced = left[:, :50] * values[:50]
        perplexity = min(_PERPLEXITY, (len(both) - 1) / 3)
        plane = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced)
        axes = ("t-SNE 1", "t-SNE 2")
    else:
        plane = left[:, :2] * values[:2]
        shares = values[:2] ** 2 / max(float((values**2).sum()), 1e-30)
        axes = (f"first principal axis ({shares[0]:.0%})", f"second principal axis ({shares[1]:.0%})")
    return np.split(plane, [len(features[0])]), axes


def draw(
    path: Path,
    sides: list[Side],
    features: list[npt.NDArray[np.floating]],
    kind: str,
    title: str,
    seed: int,
) -> None:
    """Write the picture as .png or .svg, by the suffix of `path`. Raises DiskError."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    planes, axes = projected(features, kind, seed)
    labelled = all(side.labels for side in sides) and bool({*sides[0].labels} & {*sides[1].labels})
    # The same input gives the same bytes: no date, and names of SVG elements from a fixed salt.
    with mpl.rc_context({"svg.hashsalt": "edgetl", "font.size": 9}):
        figure = Figure(figsize=(11 if labelled else 5.8, 5), layout="constrained")
        panels = figure.subplots(1, 2 if labelled else 1, squeeze=False)[0]
        names = [f"{which}: {_short(side.name)} ({len(side.samples)})" for which, side in _named(sides)]
        for plane, name, colour, mark in zip(planes, names, _COLOURS, _MARKS, strict=True):
            panels[0].scatter(*plane.T, s=14, c=colour, marker=mark, alpha=0.6, linewidths=0, label=name)
        if labelled:
            _by_class(panels[1], planes, sides)
        for panel in panels:
            panel.set_xlabel(axes[0])
            panel.set_ylabel(axes[1])
            panel.legend(loc="best", fontsize=8, framealpha=0.8)
        figure.suptitle(_plain(f"Features of {title}"))
        out = io.BytesIO()
        form = path.suffix.lower().removeprefix(".")
        figure.savefig(out, format=form, dpi=150, metadata={"Date": None} if form == "svg" else {"Software": None})
    atomic_write(path, out.getvalue())


def _named(sides: list[Side]) -> list[tuple[str, Side]]:
    return list(zip(("source", "target"), sides, strict=True))


def _by_class(panel: Any, planes: list[Any], sides: list[Side]) -> None:
    """Colour is the class, form is the domain; classes of one side alone, and beyond the first ten, are grey."""
    shown = sorted({*sides[0].labels} & {*sides[1].labels})[:_CLASSES_SHOWN]
    colours = [f"C{number}" for number in range(_CLASSES_SHOWN)]
    for plane, side, mark in zip(planes, sides, _MARKS, strict=True):
        labels = np.array(side.labels)
        others = ~np.isin(labels, shown)
        panel.scatter(*plane[others].T, s=10, c="0.8", marker=mark, linewidths=0)
        for name, colour in zip(shown, colours, strict=False):
            label = _plain(name) if mark == _MARKS[0] else None
            panel.scatter(
                *plane[labels == name].T, s=14, color=colour, marker=mark, alpha=0.7, linewidths=0, label=label
            )


def _short(name: str) -> str:
    return _plain(name if len(name) <= 32 else "..." + name[-29:])


def _plain(text: str) -> str:
    """matplotlib would set what is between dollars as a formula, and hide a label that begins with an underscore."""
    return text.replace("$", r"\$") if not text.startswith("_") else " " + text.replace("$", r"\$")
