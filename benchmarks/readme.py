"""The console blocks and the picture of the project's README, from one run: `python -m benchmarks.readme`.

Below a line `<!-- ran: COMMAND -->` stands what COMMAND shows, below `<!-- printed: COMMAND -->` its stdout alone, and
below `<!-- drawn: edgetl bench ... -->` the picture of its table. All run in the order of the page, in one folder with
photos/ and mobilenet_v2.pth from the sample data. Six minutes, on a machine that does nothing else.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path

from benchmarks.child import ROOT
from benchmarks.data import SAMPLES
from benchmarks.networks import weights_of
from benchmarks.picture import drawn
from edgetl.bundle import atomic_write

README, PICTURE = ROOT / "README.md", ROOT / "docs/bench.svg"
COLUMNS = 80
WIDEST = 110  # of a block: longer lines are broken, as a terminal would
TOLD_ONCE = "warning: one image with two labels"  # a line each of the sample's four
_BLOCK = re.compile(r"(<!-- (ran|printed|drawn): (.+?) -->\n)(```console\n.*?```\n)?", re.DOTALL)

Runs = Callable[[str, bool], str]  # (command, whether stderr is wanted too) -> what it says


def refreshed(text: str, runs: Runs) -> str:
    """`text` with every block made anew; the one that is drawn is run for its picture and stays as it is."""

    def block(found: re.Match[str]) -> str:
        marker, kind, command, old = found.groups()
        said = runs(command, kind == "ran")
        if kind == "drawn":
            return marker + (old or "")
        head = f"$ {command}\n" if kind == "ran" else ""
        return f"{marker}```console\n{head}{folded(said)}```\n"

    return _BLOCK.sub(block, text)


def folded(said: str) -> str:
    """Lines of WIDEST columns at most, and of those that say the same of several images the first."""
    out: list[str] = []
    seen = False
    for line in said.splitlines():
        again, seen = seen and line.startswith(TOLD_ONCE), seen or line.startswith(TOLD_ONCE)
        if again:
            out += [] if out[-1] == "..." else ["..."]
        else:
            out += textwrap.wrap(line, WIDEST, subsequent_indent="    ", break_on_hyphens=False) or [""]
    return "".join(line.rstrip() + "\n" for line in out)


def run_in(folder: Path) -> Runs:
    """Run commands in `folder` with this environment's edgetl. Raises CalledProcessError where one fails."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "COLUMNS": str(COLUMNS), "NO_COLOR": "1"}

    def run(command: str, both: bool) -> str:
        sys.stderr.write(f"$ {command}\n")
        errors = subprocess.STDOUT if both else None
        words = command.split()
        return subprocess.run(
            words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True, check=True
        ).stdout

    return run


def main() -> None:
    """Make the blocks and the picture anew; nothing is written where a command fails."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "photos").symlink_to((SAMPLES / "data/flowers5_small").resolve())
        (folder / "mobilenet_v2.pth").symlink_to(weights_of("mobilenet_v2").resolve())
        (folder / "models").mkdir()
        run, pictures = run_in(folder), []

        def runs(command: str, both: bool) -> str:
            if not command.startswith("edgetl bench"):
                return run(command, both)
            said = run(f"{command} --out bench.json", both)
            pictures.append(drawn(folder / "bench.json", command))
            return said

        text = refreshed(README.read_text(encoding="utf-8"), runs)
    atomic_write(README, text.encode("utf-8"))
    for picture in pictures:
        atomic_write(PICTURE, picture.encode("utf-8"))


if __name__ == "__main__":
    main()
