"""Fine-tune once, or fit once to features in a file, and say what it took. Started by benchmarks.scale.

    python -m benchmarks.scale_child run DATA BUNDLE
    python -m benchmarks.scale_child fit FEATURES linear-probe|features

The last line on stdout is JSON. Of a run: seconds until the files are listed, until the first batch has passed through
the network, until the first training step is done, and in all, from the start of the listing, libraries being loaded.
Of both: the peak resident set above the baseline after the imports, in MB. Linux only (/proc).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.memory_child import baseline, taken
from edgetl.cli.console import tune_for_training

tune_for_training()

import numpy as np  # noqa: E402  # after the process was set up, as the command does
import sklearn.linear_model  # noqa: E402
import torch  # noqa: E402

from benchmarks.scale import CLASSES, WIDTH  # noqa: E402
from edgetl.images import read_data  # noqa: E402
from edgetl.monitor import Monitor  # noqa: E402
from edgetl.transfer import FinetuneOptions, classifiers, finetune, phases, probe  # noqa: E402


class Watch(Monitor):
    """Notes when each kind of work was first heard of."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.first: dict[str, float] = {}

    def progress(self, what: str, done: int, total: int) -> None:
        """The time of the first sign of life."""
        self.first.setdefault(what, time.perf_counter() - self.began)


def run(data: str, to: str) -> dict[str, Any]:
    """One epoch of lp-ft with the embedded network."""
    assert all((sklearn.linear_model, phases))
    torch.zeros(1).sum()
    before, watch = baseline(), Watch()
    listed = read_data(data)
    list_s = time.perf_counter() - watch.began
    options = FinetuneOptions(weights="embedded", epochs=1, batch_size=64, amp="off")
    result = finetune(listed, Path(to), options, watch)
    return {
        "list_s": list_s,
        "first_batch_s": watch.first["features"],
        "first_step_s": watch.first["epoch 1 of 1"],
        "seconds": time.perf_counter() - watch.began,
        "images_per_second": result["images_per_second"],
        **taken(before),
    }


def fit(features: str, fitted: str) -> dict[str, Any]:
    """The strategy `fitted` on features float32 (N, WIDTH), mapped as features.cached maps them."""
    mapped = np.memmap(features, np.float32, "r").reshape(-1, WIDTH)
    targets = np.arange(len(mapped)) % CLASSES
    before, began = baseline(), time.perf_counter()
    (probe if fitted == "linear-probe" else classifiers).fit(mapped, targets, CLASSES, seed=0)
    return {"seconds": time.perf_counter() - began, **taken(before)}


if __name__ == "__main__":
    print(json.dumps({"run": run, "fit": fit}[sys.argv[1]](*sys.argv[2:])))
