"""The run's log: one JSON line an epoch, and the same figures for TensorBoard."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from edgetl.bundle import Bundle, atomic_write

Epoch = dict[str, Any]


class EpochLog:
    """Written while training runs in `folder`; `keep` moves it into the finished bundle."""

    def __init__(self, folder: Path, done: Sequence[Epoch] = ()) -> None:
        self._folder = folder
        self.lines = list(done)
        self._writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=len(self.lines) + 1)

    def add(self, line: Epoch) -> None:
        """One finished epoch."""
        self.lines.append(line)
        for key, value in line.items():
            if key != "epoch":
                self._writer.add_scalar(key, value, line["epoch"])
        self._writer.flush()
        atomic_write(self._folder / "epochs.jsonl", "".join(json.dumps(e) + "\n" for e in self.lines).encode())

    def close(self) -> None:
        """Close TensorBoard's file."""
        self._writer.close()


def keep(bundle: Bundle, folder: Path, history: Sequence[Epoch]) -> None:
    """Put the logs of a finished run under the bundle's runs/: finetune.jsonl and tensorboard/<generation>/."""
    if not history:
        return
    generation = int(bundle.manifest["generation"])
    bundle.append_rows("finetune", [json.dumps(dict(line, generation=generation)) for line in history])
    events = folder / "tensorboard"
    if events.is_dir():
        shutil.copytree(events, bundle.path / "runs" / "tensorboard" / str(generation), dirs_exist_ok=True)
