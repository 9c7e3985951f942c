"""How the console blocks of the project's README are made anew."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import readme

PAGE = """# edgetl
<!-- ran: edgetl --version -->
```console
$ edgetl --version
of last week
```
between
<!-- printed: edgetl finetune photos -->
text
<!-- drawn: edgetl bench models/flowers -->
```console
$ edgetl bench models/flowers
```
"""


def test_each_block_is_what_its_command_says_and_the_rest_is_kept() -> None:
    asked: list[tuple[str, bool]] = []

    def runs(command: str, both: bool) -> str:
        asked.append((command, both))
        return f"said by {command.split()[1]}\n"

    text = readme.refreshed(PAGE, runs)
    assert asked == [
        ("edgetl --version", True),
        ("edgetl finetune photos", False),
        ("edgetl bench models/flowers", False),
    ]
    assert "last week" not in text and "$ edgetl --version\nsaid by --version\n```\nbetween\n" in text
    assert "<!-- printed: edgetl finetune photos -->\n```console\nsaid by finetune\n```\ntext\n" in text
    assert text.endswith(PAGE[PAGE.index("<!-- drawn") :])
    assert readme.refreshed(text, runs) == text


def test_long_lines_are_broken_and_what_is_said_of_each_image_is_said_once() -> None:
    told = [f"{readme.TOLD_ONCE}: {name}.jpg" for name in "abc"]
    folded = readme.folded("\n".join([*told, "epoch 1", "word " * 50])).splitlines()
    assert folded[:3] == [told[0], "...", "epoch 1"]
    assert max(map(len, folded)) <= readme.WIDEST and sum(line.count("word") for line in folded) == 50


def test_commands_run_with_this_environments_edgetl(tmp_path: Path) -> None:
    run = readme.run_in(tmp_path)
    assert run("edgetl --version", True).startswith("edgetl ")
    assert "Usage: edgetl inspect" in run("edgetl inspect --help", False)
    with pytest.raises(subprocess.CalledProcessError):
        run(f"{sys.executable} -c 1/0", True)


def test_the_page_has_a_block_for_each_command_of_the_line() -> None:
    found = re.findall(
        r"^<!-- (?:ran|printed|drawn): edgetl ([a-z]+)", readme.README.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert found == ["demo", "finetune", "export", "build", "bench"]
