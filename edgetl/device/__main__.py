"""`python3 -m edgetl.device`, and the zipapp that travels."""

import sys

from edgetl.device.entry import main

if __name__ == "__main__":
    sys.exit(main())
