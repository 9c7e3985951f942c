"""Plain reads of /proc, /sys and /etc below a root, and the vendor's few commands. No root needed. Python 3.8."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Union

_FOLDERS = ("usr/sbin", "usr/bin", "sbin", "bin", "usr/local/bin")


class System:
    """The machine as its files tell it. `root` is where /proc, /sys, /etc and commands are looked up.

    What is absent or may not be read is None or empty: on an unknown board nothing here fails.
    """

    def __init__(self, root: Union[str, Path] = "/") -> None:
        self.root = Path(root)

    def raw(self, path: str) -> Optional[bytes]:
        """The bytes of a file."""
        try:
            return (self.root / path).read_bytes()
        except OSError:  # not there, not for us, or a sensor that is off (EAGAIN)
            return None

    def text(self, path: str) -> Optional[str]:
        """A file's text without the NULs, spaces and line ends around it."""
        data = self.raw(path)
        return None if data is None else data.decode("utf-8", "replace").strip("\0 \t\r\n") or None

    def number(self, path: str) -> Optional[int]:
        """A file that holds one whole number."""
        try:
            return int(self.text(path) or "")
        except ValueError:
            return None

    def glob(self, pattern: str) -> List[str]:
        """The paths below root that match, in order, as `text` takes them."""
        try:
            return sorted(path.relative_to(self.root).as_posix() for path in self.root.glob(pattern))
        except OSError:
            return []

    def find(self, name: str) -> Optional[str]:
        """The path of a command, looked up below root; on the real root also along PATH."""
        for folder in _FOLDERS:
            path = self.root / folder / name
            if path.is_file() and os.access(str(path), os.X_OK):
                return str(path)
        return shutil.which(name) if str(self.root) == "/" else None

    def command(self, name: str, *arguments: str, **how: float) -> Optional[str]:
        """What a command printed on stdout, in English; None where it is not there, hangs, or prints nothing.

        Its exit status is not looked at: `nvpmodel -q` fails after it has said the mode where it is not root.
        """
        path = self.find(name)
        if path is None:
            return None
        environment = dict(os.environ, LC_ALL="C")
        try:
            done = subprocess.run(
                [path] + list(arguments),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                timeout=how.get("timeout", 10.0),
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.decode("utf-8", "replace").strip() or None

    def packages(self, names: Sequence[str]) -> Dict[str, str]:
        """Versions of installed Debian packages, read from dpkg's own status file; those not installed are left out."""
        wanted, found = set(names), {}
        for stanza in (self.raw("var/lib/dpkg/status") or b"").split(b"\n\n"):
            name = stanza.partition(b"\n")[0].partition(b":")[2].strip().decode("ascii", "replace")
            if name not in wanted:
                continue
            fields = dict(line.partition(": ")[::2] for line in stanza.decode("utf-8", "replace").splitlines())
            if fields.get("Status", "").endswith(" installed"):
                found[name] = fields.get("Version", "")
        return found
