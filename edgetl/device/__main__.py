"""`python3 -m edgetl.device`, and the zipapp that travels."""

from __future__ import annotations

import sys

from edgetl.device.entry import main

if __name__ == "__main__":
    sys.exit(main())
