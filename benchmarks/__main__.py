"""Command line: run suites, or write the tables of README.md from the rows.

python -m benchmarks                    every suite (hours on two cores)
python -m benchmarks recipe --quick     one suite, tiny: does it work at all
python -m benchmarks suite cpu          a suite of benchmarks/suites, or a .toml file
python -m benchmarks tables             benchmarks/README.md from benchmarks/results/*.jsonl
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks import (
    adaptation,
    bench_suite,
    checks,
    choice,
    contract,
    cpu_int8,
    distance,
    distillation,
    hard,
    memory,
    peers,
    peers_latency,
    recipe,
    repeat,
    scale,
    startup,
    strategies,
    tables,
)
from benchmarks.rows import RESULTS, Row, append
from benchmarks.suite import Suite, find, load
from edgetl.errors import EdgetlError

RUNNERS: dict[str, Callable[[Suite, bool], Iterator[Row]]] = {"bench": bench_suite.run, "peers": peers_latency.run}


def run_suite(name: str, quick: bool) -> Iterator[Row]:
    """The rows of a suite by its name or file. Raises InputError for a suite that is not there or not right."""
    suite = load(find(name))
    return RUNNERS[suite.measures](suite, quick)


SUITES: dict[str, Callable[[bool], Iterator[Row]]] = {
    "checks": checks.run,
    "repeat": repeat.run,
    "startup": startup.run,
    "memory": memory.run,
    "scale": scale.run,
    "scale_fit": scale.run_fit,
    "recipe": recipe.run,
    "strategies": strategies.run,
    "distillation": distillation.run,
    "adaptation": adaptation.run,
    "distance": distance.run,
    "choice": choice.run,
    "choice_time": choice.run_time,
    "cpu_int8": cpu_int8.run,
    "contract": contract.run,
    "hard": hard.run,
    "peers": peers.run,
    "bench": partial(run_suite, "cpu"),
    "peers_latency": partial(run_suite, "peers_latency"),
}


def main(argv: list[str] | None = None) -> int:
    """Exit 0 when every chosen suite gave its rows."""
    known = ", ".join(SUITES)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    said = f"suites ({known}); suite and names or files of TOML; or tables; default: all suites"
    parser.add_argument("what", nargs="*", help=said)
    parser.add_argument("--quick", action="store_true", help="tiny settings; the rows say so and no table shows them")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the *.jsonl files")
    options = parser.parse_args(argv)
    if options.what[:1] == ["suite"]:
        if not options.what[1:]:
            parser.error("suite wants a name or a file")
        return _run([partial(run_suite, name) for name in options.what[1:]], options)
    unknown = sorted(set(options.what) - set(SUITES) - {"tables"})
    if unknown:
        parser.error(f"unknown suite: {unknown[0]} (known: {known}, or: suite NAME)")
    code = _run([run for name, run in SUITES.items() if name in options.what or not options.what], options)
    if code == 0 and ("tables" in options.what or (not options.what and not options.quick)):
        tables.write(options.results)
    return code


def _run(runs: list[Callable[[bool], Iterator[Row]]], options: argparse.Namespace) -> int:
    try:
        for run in runs:
            for row in run(options.quick):
                append(row, options.results)
                print(tables.line(row), flush=True)
    except EdgetlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
