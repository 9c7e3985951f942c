"""What leaves this machine in a report names no folder of it, and no user: paths are cut down to their last part."""

from __future__ import annotations

import re
from collections.abc import Sequence

# An absolute path or one from a home: /a/b, ~/a, C:\a, \\server\a. Not a lone slash, nor the "/" of "4 images/s".
_ABSOLUTE = re.compile(r"(?<![\w.<])(?:~?/|[A-Za-z]:[\\/]|\\\\)[^\s\"'<>:;,()\[\]]*[^\s\"'<>:;,()\[\].]")


def without_paths(text: str) -> str:
    """`text` with every absolute path in it as its last part: ".../model.onnx"."""
    return _ABSOLUTE.sub(lambda found: ".../" + last_part(found.group()), text)


def last_part(path: str) -> str:
    """The last part of a path of any operating system; "." where there is none."""
    parts = [part for part in re.split(r"[\\/]", path) if part not in ("", "~")]
    return parts[-1] if parts else "."


def is_outside(path: str) -> bool:
    """Whether a path is absolute in any operating system, from a home, or climbs out of its folder."""
    return bool(re.match(r"^(?:~|/|\\\\|[A-Za-z]:[\\/])", path)) or ".." in re.split(r"[\\/]", path)


def relative(path: str) -> str:
    """A path as it may be shown: as it is where it stays below its folder, else its last part."""
    return last_part(path) if is_outside(path) else path


def command_line(words: Sequence[str]) -> list[str]:
    """A recorded command's words as they may be shown: its program is "edgetl", its paths are their last part."""
    shown = ["edgetl"]
    for word in words[1:]:
        option, equals, value = word.partition("=")
        if option.startswith("-") and equals:
            shown.append(option + equals + relative(value))
        else:
            shown.append(relative(word))
    return shown
