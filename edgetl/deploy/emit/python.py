"""A minimal Python example: the deployment's own app as a library, so that pixels and answers are the app's."""

from __future__ import annotations

from edgetl.deploy.emit.served import Served
from edgetl.deploy.remote import HOME
from edgetl.spec import Profile

SOURCE = "classify.py"


def texts(model: Served) -> dict[str, str]:
    """The script; it runs on Python 3.8 with numpy and Pillow."""
    backend = "onnxruntime" if model.profile is Profile.CPU else "tensorrt"
    values = {"NAME": model.name, "FOLDER": f"{HOME}/{model.name}", "BACKEND": backend}
    source = _SOURCE
    for key, value in values.items():
        source = source.replace(f"@{key}@", value)
    return {SOURCE: source}


_SOURCE = '''\
#!/usr/bin/env python3
"""@NAME@: name the class of image files, with what `edgetl deploy` put on this device.

    python3 classify.py photo.jpg ...

Nothing is installed for it: it wants the system's Python (3.8 or newer), numpy, Pillow and @BACKEND@. Decoding and
resizing are those the network was trained with, and the variant is the one that the last deploy switched to.
"""

import json
import sys
from pathlib import Path

DEPLOYMENT = Path.home() / "@FOLDER@"
sys.path.insert(0, str(DEPLOYMENT / "app.pyz"))

from edgetl.bundle import Bundle  # noqa: E402  (it lies in the app)
from edgetl.device.chosen import Wish, choose  # noqa: E402
from edgetl.device.stream import Answering  # noqa: E402
from edgetl.images import read_bytes, to_input  # noqa: E402

answering = Answering(choose(Bundle.open(DEPLOYMENT / "current"), Wish("@BACKEND@")), top=3)
try:
    for name in sys.argv[1:]:
        pixels = to_input(read_bytes(name), answering.preprocess, name)  # uint8 (S, S, 3), RGB
        print(json.dumps(dict(image=name, **answering.answer(pixels)), ensure_ascii=False))
finally:
    answering.close()
'''
