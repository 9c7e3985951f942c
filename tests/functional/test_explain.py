"""`edgetl classify --explain`: the maps lie where the evidence was planted, and the pictures are named with care."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from edgetl.bundle import Bundle
from edgetl.cli.app import app
from edgetl.cli.explanations import Explanations, picture_name
from edgetl.images import fitted, placement, resized
from edgetl.monitor import Monitor
from edgetl.spec import Fit, Preprocess
from edgetl.transfer import backbones
from edgetl.transfer.explain import Explainer, overlay

SIDE, SQUARE = 48, 14


class Lines(Monitor):
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def warn(self, line: str) -> None:
        """One more."""
        self.lines.append(line)


COLOURS = {"red": (220, 60, 40), "green": (60, 200, 70)}


def edgetl(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def planted(label: str, rng: np.random.Generator) -> tuple[npt.NDArray[np.uint8], tuple[int, int]]:
    """A grey noise image with a square of the class's colour, and where its upper left corner is."""
    pixels = np.repeat(rng.integers(40, 200, (SIDE, SIDE, 1)), 3, 2)
    y, x = rng.integers(0, SIDE - SQUARE + 1, 2)
    pixels[y : y + SQUARE, x : x + SQUARE] = np.array(COLOURS[label]) + rng.integers(-20, 20, (SQUARE, SQUARE, 1))
    return pixels.astype(np.uint8), (int(y), int(x))


# Convolutions whose places look at the corners of their cells, and tokens.
LEAST_INSIDE = {"smallnet": 0.7, "vit_b_16": 0.5}  # of the map; such a window has .3 of the image
NETWORKS = {
    "smallnet": ("--epochs", 3),
    "vit_b_16": ("--backbone-args", "num_layers=2,num_heads=2,hidden_dim=32,mlp_dim=64,patch_size=8", "--epochs", 30),
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A network of each kind, trained from scratch to tell the colour of a square that may be anywhere."""
    folder = tmp_path_factory.mktemp("explain")
    rng = np.random.default_rng(0)
    for label in COLOURS:
        (folder / "photos" / label).mkdir(parents=True)
        for i in range(60):
            Image.fromarray(planted(label, rng)[0]).save(folder / "photos" / label / f"{i}.png")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, how in NETWORKS.items():
        done = edgetl(
            *("finetune", folder / "photos", "--to", folder / name, "--backbone", name, "--weights", "none"),
            *("--image-size", SIDE, "--device", "cpu", "--amp", "off", "--lr", 0.003, *how),
        )
        assert done.exit_code == 0, done.stderr
    torch.set_num_threads(threads)
    return {name: folder / name for name in NETWORKS}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_map_lies_on_what_decides(bundles: dict[str, Path], name: str) -> None:
    bundle = Bundle.open(bundles[name])
    explainer = Explainer(bundle)
    rng = np.random.default_rng(7)
    inside, off = [], []
    for turn in range(24):
        label = list(COLOURS)[turn % 2]
        pixels, (y, x) = planted(label, rng)
        found = explainer.map(pixels, bundle.labels.index(label))
        assert found.shape == (SIDE, SIDE) and found.dtype == np.float32
        if not found.any():
            continue  # nothing speaks for one class: it is named for want of the other, as two classes allow
        assert float(found.min()) >= 0 and float(found.max()) == pytest.approx(1)
        cell = 8  # a place of the map cannot be finer than its cell
        window = found[max(0, y - cell) : y + SQUARE + cell, max(0, x - cell) : x + SQUARE + cell]
        inside.append(float(window.sum() / found.sum()))
        ys, xs = np.mgrid[:SIDE, :SIDE]
        strong = found > 0.5
        off.append((ys[strong].mean() - (y + SQUARE / 2 - 0.5), xs[strong].mean() - (x + SQUARE / 2 - 0.5)))
    assert len(inside) >= 18, "of 24"
    assert np.mean(inside) > LEAST_INSIDE[name]
    assert np.abs(np.mean(off, axis=0)).max() < 4, "no drift to one side"


def test_pictures_and_json_name_each_other(bundles: dict[str, Path], tmp_path: Path) -> None:
    photos = [bundles["smallnet"].parent / "photos" / label / "0.png" for label in COLOURS]
    odd = tmp_path / "a b;[x]\n日本.png"
    odd.write_bytes(photos[0].read_bytes()[:-12] + photos[0].read_bytes()[-12:])
    done = edgetl("classify", bundles["smallnet"], *photos, odd, "--explain", tmp_path / "maps/new", "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)["predictions"]
    paths = [Path(prediction["explanation"]) for prediction in found]
    assert sorted(p.name for p in (tmp_path / "maps/new").iterdir()) == sorted({p.name for p in paths})
    assert len(set(paths)) == 3, "same name in two folders, same content under two names"
    for path in paths:
        with Image.open(path) as image:
            assert image.format == "PNG" and image.size == (224, 224)
            assert len(set(image.convert("L").getdata())) > 20
    assert paths[2].name.startswith("a b__x__日本-".replace(" ", "_"))
    before = {p: p.read_bytes() for p in paths}
    again = edgetl("classify", bundles["smallnet"], *photos, odd, "--explain", tmp_path / "maps/new")
    assert again.exit_code == 0 and str(tmp_path / "maps/new") in again.stdout.replace("\n", "")
    assert {p: p.read_bytes() for p in paths} == before


def test_a_picture_without_colours_is_told_of(bundles: dict[str, Path], tmp_path: Path) -> None:
    """A class that nothing speaks for, here by a head without weights."""
    told = Lines()
    explanations = Explanations(Bundle.open(bundles["smallnet"]), tmp_path / "maps", told)
    photo = bundles["smallnet"].parent / "photos/red/0.png"
    network = explanations._explainer._cam.model
    head = backbones.head_of(network.backbone, backbones.row("smallnet"))
    torch.nn.init.zeros_(head.weight)
    path = explanations.save(photo, photo.read_bytes(), "red")
    assert len(told.lines) == 1 and str(photo) in told.lines[0] and "nothing in it speaks for red" in told.lines[0]
    with Image.open(path) as drawn, Image.open(photo) as plain:
        shown = np.asarray(plain.resize(drawn.size, Image.Resampling.BICUBIC), np.int64)
        assert np.abs(np.asarray(drawn, np.int64) - shown).max() <= 1


def test_without_explain_there_is_no_such_key_and_no_torch(
    bundles: dict[str, Path], tiny_graph: Callable[..., Path], graph_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    graphs = graph_bundle({("trt10", "fp32"): tiny_graph(classes=5, size=32)})
    photo = bundles["smallnet"].parent / "photos/red/0.png"
    code = (
        "import sys; from edgetl.cli.app import app; from typer.testing import CliRunner; "
        f"done = CliRunner().invoke(app, ['classify', {str(graphs)!r}, {str(photo)!r}, '--json']); "
        "assert done.exit_code == 0 and 'explanation' not in done.stdout, done.output; "
        "print(sorted({'torch', 'pytorch_grad_cam', 'matplotlib'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
    refused = edgetl("classify", graphs, photo, "--explain", tmp_path / "maps", "--json")
    assert refused.exit_code == 1
    assert "PyTorch" in json.loads(refused.stdout)["error"]["what"]
    assert not (tmp_path / "maps").exists()


def test_a_file_in_the_way_and_a_bad_photo_leave_nothing(bundles: dict[str, Path], tmp_path: Path) -> None:
    photo = bundles["smallnet"].parent / "photos/red/0.png"
    (tmp_path / "file").write_text("mine")
    done = edgetl("classify", bundles["smallnet"], photo, "--explain", tmp_path / "file")
    assert done.exit_code == 1 and "wants a folder" in done.stderr
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "text.png").write_text("no image")
    done = edgetl("classify", bundles["smallnet"], tmp_path / "text.png", "--explain", tmp_path / "maps")
    assert done.exit_code == 1 and not (tmp_path / "maps").exists()


@pytest.mark.parametrize("stem", ["../../up", "x" * 300, "日" * 200, "..", "\udcff", "a\nb"])
def test_any_file_name_becomes_one_name_in_the_folder(stem: str) -> None:
    name = picture_name(Path("in") / (stem + ".jpg"), b"bytes")
    assert "/" not in name and not name.startswith(".") and name.endswith("-cam.png")
    assert len(name.encode()) < 150 and name.isprintable()
    assert name != picture_name(Path("in") / (stem + ".jpg"), b"other bytes")


@pytest.mark.parametrize("fit", Fit)
@pytest.mark.parametrize("size", [(90, 40), (40, 90), (33, 33)])
def test_an_overlay_puts_the_map_where_the_network_saw_it(fit: Fit, size: tuple[int, int]) -> None:
    """A dot is drawn into a photo, found in the network's input, and must come back to the dot."""
    spec = Preprocess(size=24, resize=30 if fit is Fit.CROP else 24, fit=fit)
    photo = np.zeros((size[1], size[0], 3), np.uint8)
    x, y = size[0] // 2 + 4, size[1] // 2 - 5
    photo[y - 2 : y + 3, x - 2 : x + 3] = 255
    given = [
        np.asarray(fitted(resized(Image.fromarray(image), spec), spec))[..., 0].astype(np.float32)
        for image in (photo, np.zeros_like(photo))
    ]
    dot = given[0] - given[1]  # without the bars of a letterbox
    cam = np.where(dot > dot.max() / 2, dot, 0) / dot.max()
    drawn = overlay(np.full_like(photo, 90), cam.astype(np.float32), spec).astype(int)
    assert min(drawn.shape[:2]) >= 224 or max(drawn.shape[:2]) == 640
    heat = np.abs(drawn - drawn.mean(2, keepdims=True)).sum(2)
    ys, xs = np.nonzero(heat > heat.max() / 2)
    scale = drawn.shape[1] / size[0]
    assert abs(xs.mean() / scale - (x + 0.5)) < 1.5
    assert abs(ys.mean() / scale - (y + 0.5)) < 1.5
    left, top = placement(size, spec)[2:]
    dark = (drawn.max(2) < 40).any()
    assert dark == (fit is Fit.CROP and (left > 0 or top > 0))


# --- where the places of each network's last map look

SMALL_VIT = {"num_layers": 1, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 32}
GEOMETRY = [
    *(("smallnet", 64, {}), ("mobilenet_v2", 128, {"width_mult": 0.25}), ("squeezenet1_1", 128, {})),
    *(("vit_b_16", 64, SMALL_VIT), ("shufflenet_v2_x0_5", 128, {})),
]
SLOW_GEOMETRY = [
    *(("resnet18", 128, {}), ("mobilenet_v3_small", 128, {}), ("efficientnet_b0", 160, {}), ("convnext_tiny", 128, {})),
    *(("regnet_y_400mf", 128, {}), ("densenet121", 128, {}), ("mnasnet0_5", 128, {}), ("vgg11", 128, {})),
    *(("googlenet", 160, {}), ("inception_v3", 160, {}), ("swin_t", 128, {}), ("swin_v2_t", 128, {})),
    *(("alexnet", 224, {}), ("maxvit_t", 224, {})),
]


@pytest.mark.parametrize(
    ("name", "size", "arguments"), [*GEOMETRY, *(pytest.param(*row, marks=pytest.mark.slow) for row in SLOW_GEOMETRY)]
)
def test_a_place_looks_where_its_row_says(name: str, size: int, arguments: dict[str, int]) -> None:
    """The middle of what a place depends on, by the gradient's energy, mean over the diagonal, in cells."""
    from edgetl.transfer.explain import _LAYOUTS

    torch.manual_seed(0)
    spec = backbones.row(name)
    model = backbones.build(name, 3, size, arguments).eval()
    outputs: list[torch.Tensor] = []
    backbones.last_map_of(model, spec).register_forward_hook(lambda module, given, made: outputs.append(made))
    image = torch.randn(2, 3, size, size, requires_grad=True)
    model(image)
    found = (_LAYOUTS[spec.map_layout] or (lambda same: same))(outputs[0])
    places = found.shape[-1]
    cell, off = size / places, []
    for i in range(places):
        direction = torch.randn(found.shape[:2])
        (gradient,) = torch.autograd.grad((found[:, :, i, i] * direction).sum(), image, retain_graph=True)
        energy = gradient.square().sum((0, 1))
        middle = (energy.sum(0) * (torch.arange(size) + 0.5)).sum() / energy.sum()
        off.append(float(middle) / cell - (i + 0.5))
    assert found.shape[-2] == places >= 2
    assert (np.mean(off) < -0.2) == spec.map_corner
    assert abs(np.mean(off)) < 0.2 or spec.map_corner
