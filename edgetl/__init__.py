"""edgetl: image folder in, proven engine out."""

import os

__version__ = "0.1.0"

# The builds of onnxruntime on PyPI (seen with 1.31) keep an identifier in the home folder and send events to Microsoft
# unless this is set before they are loaded. Nothing of ours may do so on anybody's machine; who wants it says 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
