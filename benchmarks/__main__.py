"""Command line: run suites, or write the tables of README.md from the rows.

python -m benchmarks                    every suite (hours on two cores)
python -m benchmarks recipe --quick     one suite, tiny: does it work at all
python -m benchmarks tables             benchmarks/README.md from benchmarks/results/*.jsonl
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import (
    adaptation,
    choice,
    contract,
    cpu_int8,
    hard,
    memory,
    peers,
    recipe,
    scale,
    startup,
    strategies,
    tables,
)
from benchmarks.rows import RESULTS, Row, append

SUITES: dict[str, Callable[[bool], Iterator[Row]]] = {
    "startup": startup.run,
    "memory": memory.run,
    "scale": scale.run,
    "recipe": recipe.run,
    "strategies": strategies.run,
    "adaptation": adaptation.run,
    "choice": choice.run,
    "choice_time": choice.run_time,
    "cpu_int8": cpu_int8.run,
    "contract": contract.run,
    "hard": hard.run,
    "peers": peers.run,
}


def main(argv: list[str] | None = None) -> int:
    """Exit 0 when every chosen suite gave its rows."""
    known = ", ".join(SUITES)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", help=f"suites ({known}), or tables; default: all suites")
    parser.add_argument("--quick", action="store_true", help="tiny settings; the rows say so and no table shows them")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the *.jsonl files")
    options = parser.parse_args(argv)
    unknown = sorted(set(options.what) - set(SUITES) - {"tables"})
    if unknown:
        parser.error(f"unknown suite: {unknown[0]} (known: {known})")
    for name in [n for n in SUITES if n in options.what or not options.what]:
        for row in SUITES[name](options.quick):
            append(row, options.results)
            print(tables.line(row), flush=True)
    if "tables" in options.what or (not options.what and not options.quick):
        tables.write(options.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
