"""The picture of a bench in README.md: `python -m benchmarks.picture bench.json docs/bench.svg "edgetl bench ..."`."""

from __future__ import annotations

import argparse
import io
import re
from pathlib import Path

from rich.console import Console

from edgetl.bench.table import render_table
from edgetl.bundle import atomic_write, read_json
from edgetl.measure.rows import rows_of

WIDTH = 80  # columns; the table fits


def drawn(bench: Path, command: str) -> str:
    """The table of the object that `edgetl bench --out` wrote, as SVG that loads nothing from elsewhere."""
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    console.print(render_table(rows_of(read_json(bench, "bench"), bench), command))
    svg = re.sub(r"@font-face \{.*?\}\n", "", console.export_svg(title="edgetl bench"), flags=re.DOTALL)
    return "".join(line.rstrip() + "\n" for line in svg.splitlines())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bench", type=Path, help="what `edgetl bench --out FILE` wrote")
    parser.add_argument("svg", type=Path)
    parser.add_argument("command", help="what stands above the table")
    asked = parser.parse_args()
    atomic_write(asked.svg, drawn(asked.bench, asked.command).encode("utf-8"))
