"""The zipapp on the interpreters of the supported JetPacks, where they are given.

    EDGETL_OLD_PYTHONS=/path/to/python3.8:/path/to/python3.10 pytest tests/functional/device/test_oldest_python.py

each with numpy and Pillow alone (JetPack 5: numpy 1.17, Pillow 7.0 built against libjpeg-turbo, as Ubuntu does: the
wheel on PyPI has another JPEG decoder, and other pixels), and with onnxruntime or without.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

PYTHONS = [path for path in os.environ.get("EDGETL_OLD_PYTHONS", "").split(os.pathsep) if path]


@pytest.mark.skipif(not PYTHONS, reason="EDGETL_OLD_PYTHONS names no interpreters")
@pytest.mark.parametrize("python", PYTHONS)
def test_the_app_runs_and_proves_itself(python: str, tmp_path: Path) -> None:
    from edgetl.deploy.app import write_app

    app, digest = write_app(tmp_path)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = {"capture_output": True, "text": True, "env": environment, "cwd": tmp_path}
    probed = json.loads(subprocess.run([python, str(app), "probe"], check=False, **run).stdout)  # type: ignore[call-overload]
    assert probed["probe"]["app"]["sha256"] == digest
    told = json.loads(subprocess.run([python, str(app), "selftest", "--seconds", "0.1"], check=False, **run).stdout)  # type: ignore[call-overload]
    if told["backends"]["onnxruntime"]["ok"]:
        assert told["ok"], told["error"]
    else:
        assert "neither TensorRT nor onnxruntime" in told["error"]["value"]
