"""What a stage tells whoever watches. Stages never print; the CLI hands them a Monitor that does.

Python 3.8, standard library only.
"""

from __future__ import annotations


class Monitor:
    """Silent by itself; the CLI's subclass draws progress bars and prints lines on stderr."""

    def progress(self, what: str, done: int, total: int) -> None:
        """`done` of `total` of the work called `what`; done == total ends its bar."""

    def say(self, line: str) -> None:
        """A line worth reading on the way to the result."""

    def warn(self, line: str) -> None:
        """Something the user should know and may want to change."""


SILENT = Monitor()
