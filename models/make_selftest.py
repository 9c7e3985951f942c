"""Make the tiny bundle that `edgetl.device selftest` carries: graphs of both TensorRT profiles, golden photos, logits.

    python -m models.make_selftest                 # writes edgetl/device/selftest.zip, in a minute or two

A three-layer network is trained on four painted textures, and goes through the project's own line: adopt, then
export for JetPack 5 and for JetPack 6. What travels of the bundle is its manifest, its graphs and the golden cases.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn import functional as F

SIZE, WIDTH = 32, 8
LABELS = ("bars", "dots", "rings", "noise")
TARGETS = ("jetpack5", "jetpack6")
TRAVELS = ("graph", "graph-logits", "golden-image", "golden-pixels", "golden-logits")
OUT = Path(__file__).resolve().parents[1] / "edgetl/device/selftest.zip"


def painted(label: str, rng: np.random.Generator, size: int = 40) -> npt.NDArray[np.uint8]:
    """One texture, uint8 (size, size, 3), of random colour and phase with noise over it."""
    y, x = np.mgrid[:size, :size] + rng.uniform(0, 8, (2, 1, 1))
    period = rng.uniform(5, 8)
    waves = {
        "bars": np.sin(2 * np.pi * x / period),
        "dots": np.sin(2 * np.pi * x / period) * np.sin(2 * np.pi * y / period),
        "rings": np.sin(2 * np.pi * np.hypot(x - size / 2, y - size / 2) / period),
        "noise": rng.normal(0, 0.7, (size, size)),
    }
    colour = rng.uniform(60, 110, 3)
    pixels = 128 + waves[label][:, :, None] * colour + rng.normal(0, 12, (size, size, 3))
    out: npt.NDArray[np.uint8] = np.clip(pixels, 0, 255).astype(np.uint8)
    return out


def paint(folder: Path, n: int, seed: int) -> None:
    """`n` JPEGs a class under `folder`/train, twice as many in val, as many in test."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", n), ("val", 2 * n), ("test", n)):
        for label in LABELS:
            place = folder / split / label
            place.mkdir(parents=True)
            for index in range(count):
                Image.fromarray(painted(label, rng)).save(place / f"{index:02}.jpg", quality=90)


def network(seed: int) -> torch.nn.Module:
    """float32 (B, 3, SIZE, SIZE), normalised -> logits (B, 4)."""
    torch.manual_seed(seed)
    layers: list[torch.nn.Module] = []
    for before, after in ((3, WIDTH), (WIDTH, WIDTH), (WIDTH, 2 * WIDTH)):
        layers += [torch.nn.Conv2d(before, after, 3, stride=2, padding=1), torch.nn.ReLU()]
    head = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(2 * WIDTH, len(LABELS))]
    return torch.nn.Sequential(*layers, *head)


def train(model: torch.nn.Module, steps: int, seed: int) -> float:
    """Adam on fresh textures; returns the last loss."""
    rng, optimiser = np.random.default_rng(seed), torch.optim.Adam(model.parameters(), 3e-3)
    loss = torch.zeros(())
    for _ in range(steps):
        targets = rng.integers(0, len(LABELS), 32)
        pixels = np.stack([painted(LABELS[t], rng)[4:-4, 4:-4] for t in targets])
        inputs = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        loss = F.cross_entropy(model(inputs), torch.from_numpy(targets))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        optimiser.step()
    return float(loss.detach())


def bundle(work: Path, steps: int, seed: int) -> Path:
    """Train, adopt, export for each target; the finished bundle."""
    model = network(seed)
    print(f"loss after {steps} steps: {train(model, steps, seed):.4f}")
    axes = {"image": {0: "batch"}, "logits": {0: "batch"}}
    example = torch.zeros(1, 3, SIZE, SIZE)
    torch.onnx.export(
        model.eval(),
        (example,),
        work / "net.onnx",
        dynamo=False,
        opset_version=13,
        dynamic_axes=axes,
        input_names=["image"],
        output_names=["logits"],
    )
    (work / "labels.txt").write_text("\n".join(LABELS) + "\n")
    spec = {"size": SIZE, "resize": 36, "mean": [0.5] * 3, "std": [0.5] * 3}
    (work / "spec.json").write_text(json.dumps(spec))
    paint(work / "photos", 8, seed + 1)
    to = work / "bundle"
    _edgetl("adopt", work / "net.onnx", "--labels", work / "labels.txt", "--preprocess", work / "spec.json",
            "--data", work / "photos", "--to", to)  # fmt: skip
    for target in TARGETS:
        _edgetl("export", to, "--int8", "--target", target, "--rescue", "none", "--max-drop", "5")
    return to


def _edgetl(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "edgetl", *map(str, words)], check=True)


def pack(folder: Path, out: Path) -> None:
    """What travels of the bundle, as a zip without dates, in one order."""
    from edgetl.bundle import Bundle

    opened = Bundle.open(folder)
    files = ["manifest.json", *(r["file"] for kind in TRAVELS for r in opened.artifacts(kind))]
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, (folder / name).read_bytes())
    print(f"{out}: {out.stat().st_size} bytes, {len(files)} files")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--to", type=Path, default=OUT)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        pack(bundle(Path(work), given.steps, given.seed), given.to)


if __name__ == "__main__":
    main()
