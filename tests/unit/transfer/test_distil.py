"""--teacher: the loss against its definition, and the teacher's own eyes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgetl.bundle import Bundle
from edgetl.errors import BundleError, InputError
from edgetl.images import ReadOptions, Sample, read_data
from edgetl.monitor import Monitor
from edgetl.transfer import FinetuneOptions, distil, finetune
from edgetl.transfer.network import TorchBackend
from edgetl.transfer.processes import Group
from edgetl.transfer.step import Step


@pytest.fixture
def folder(make_folder: Callable[..., Path]) -> Path:
    return make_folder(n=20, size=24)


def _teacher(folder: Path, to: Path, size: int = 24, **options: Any) -> Path:
    given: dict[str, Any] = {"backbone": "smallnet", "weights": "none", "strategy": "linear-probe", "amp": "off"}
    finetune(read_data(str(folder)), to, FinetuneOptions(**{**given, "image_size": size, **options}))
    return to


def test_the_soft_loss_is_t_squared_times_the_divergence_of_the_softened_answers() -> None:
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 5, 4)) * 3
    soft = [np.exp(x / 2) / np.exp(x / 2).sum(1, keepdims=True) for x in (student, teacher)]
    expected = 4 * (soft[1] * np.log(soft[1] / soft[0])).sum(1).mean()
    found = distil.soft_loss(torch.from_numpy(student), torch.from_numpy(teacher), temperature=2.0)
    assert float(found) == pytest.approx(expected, rel=1e-9)
    assert float(distil.soft_loss(torch.from_numpy(teacher), torch.from_numpy(teacher))) == pytest.approx(0, abs=1e-9)


def test_the_loss_is_over_labelled_and_unlabelled_images_each_with_its_own_answer() -> None:
    samples = [Sample(f"{i}.png", 0, f"{i:064x}") for i in range(4)]
    logits = np.arange(12, dtype=np.float32).reshape(4, 3) ** 0.5
    loss = distil.Distillation(samples, logits)
    student = torch.randn(3, 3, requires_grad=True)
    order = [samples[2], samples[0], samples[3]]
    step = Step(None, order[:2], None, None, (student[:2],), None, (student[2:],), order[2:], 1, 0, 0.0)  # type: ignore[arg-type]
    expected = distil.soft_loss(student, torch.from_numpy(logits[[2, 0, 3]]))
    share = distil.SHARE / (1 - distil.SHARE)
    assert float(loss(step).detach()) == pytest.approx(share * float(expected.detach()), rel=1e-5)
    loss(step).backward()
    assert student.grad is not None and student.grad.abs().min() > 0
    assert not list(loss.parameters()) and not loss.state_dict()


def test_the_teacher_sees_each_image_as_it_would_where_it_is_deployed(tmp_path: Path, folder: Path) -> None:
    """Its own size, not the student's: what it says is what its bundle's reference says."""
    data = read_data(str(folder))
    teacher = distil.open_teacher(_teacher(folder, tmp_path / "t", size=20), data)
    samples = data.split("val")
    found = teacher.logits(tmp_path / "t.f32", data.root, samples, torch.device("cpu"))
    backend = TorchBackend(Bundle.open(tmp_path / "t"))
    from edgetl.images import to_batch, to_input

    spec = Bundle.open(tmp_path / "t").preprocess
    assert spec.size == 20
    pixels = np.stack([to_input((data.root / s.path).read_bytes(), spec) for s in samples])
    np.testing.assert_allclose(found, backend.run(to_batch(pixels, "float32")), rtol=1e-4, atol=1e-4)


def test_a_teacher_with_other_labels_is_refused_and_they_are_named(
    tmp_path: Path, folder: Path, make_folder: Callable[..., Path]
) -> None:
    teacher = _teacher(folder, tmp_path / "t")
    other = read_data(str(make_folder(classes=("left", "wrong"), name="other")))
    with pytest.raises(InputError, match="only here: wrong; only there: right"):
        distil.open_teacher(teacher, other)


def test_what_is_no_trained_bundle_cannot_teach(
    tmp_path: Path, folder: Path, graph_bundle: Callable[..., Path]
) -> None:
    data = read_data(str(folder))
    with pytest.raises(BundleError):
        distil.open_teacher(tmp_path / "nowhere", data)
    with pytest.raises(BundleError, match="no checkpoint"):
        distil.open_teacher(graph_bundle({}), data)


def test_a_teacher_that_was_trained_on_held_out_images_is_warned_of(tmp_path: Path, folder: Path) -> None:
    warned: list[str] = []
    monitor = Monitor()
    monitor.warn = warned.append  # type: ignore[method-assign]
    distil.open_teacher(_teacher(folder, tmp_path / "same"), read_data(str(folder)), monitor)
    assert warned == [], "the same splits hold out the same images"
    distil.open_teacher(tmp_path / "same", read_data(str(folder), ReadOptions(seed=5)), monitor)
    assert "val and test images" in warned[0]


@pytest.mark.parametrize("parts", [(4, 1), (5, 0), (2, 3)])
def test_the_mean_of_the_processes_losses_is_the_loss_of_the_whole_step(parts: tuple[int, int]) -> None:
    """Five labelled images, unevenly divided (who has none passes one for form's sake), and three unlabelled ones."""
    samples = [Sample(f"{i}.png", 0, f"{i:064x}") for i in range(8)]
    rng = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(2, 8, 3, generator=rng)
    loss = distil.Distillation(samples, teacher.numpy())
    others = (samples[5:7], samples[7:])

    def step(rows: slice, passed: list[Sample], own: list[Sample], group: Group) -> Step:
        first = int(own[0].path[0])
        outputs = (student[rows],), None, (student[first : first + len(own)],), own
        place = (rows.start, 5), (first - 5, 3)
        return Step(None, passed, None, None, *outputs, 1, 0, 0.0, group, *place)  # type: ignore[arg-type]

    whole = loss(step(slice(0, 5), samples[:5], samples[5:], Group()))
    pair = Group()
    pair.size = 2
    bounds = ((0, parts[0]), (parts[0], 5))
    found = [
        loss(step(slice(*bound), samples[slice(*bound)] or samples[:1], own, pair))
        for bound, own in zip(bounds, others, strict=True)
    ]
    assert float(sum(found) / 2) == pytest.approx(float(whole), rel=1e-6)


def test_folds_that_hold_out_what_the_teacher_was_trained_on_are_warned_of(tmp_path: Path, folder: Path) -> None:
    """val and test of the run are new to it, so nothing is said of them; a fold holds out the run's training images."""
    warned: list[str] = []
    monitor = Monitor()
    monitor.warn = warned.append  # type: ignore[method-assign]
    given: dict[str, Any] = {
        "weights": "embedded",
        "epochs": 1,
        "amp": "off",
        "teacher": _teacher(folder, tmp_path / "t"),
    }
    finetune(read_data(str(folder)), tmp_path / "b", FinetuneOptions(**given), monitor)
    assert warned == []
    result = finetune(read_data(str(folder)), tmp_path / "f", FinetuneOptions(**given, folds=2), monitor)
    (line,) = warned
    assert f"{result['n']['train']} of the 40 images that the folds hold out" in line


def test_corrupt_unlabelled_images_are_named_to_a_teacher_too(tmp_path: Path, folder: Path) -> None:
    unlabelled = tmp_path / "more"
    unlabelled.mkdir()
    (unlabelled / "bad.png").write_bytes(b"no image")
    (unlabelled / "good.png").write_bytes((folder / "left" / "000.png").read_bytes() + b"\0")
    warned: list[str] = []
    monitor = Monitor()
    monitor.warn = warned.append  # type: ignore[method-assign]
    given: dict[str, Any] = {"weights": "embedded", "epochs": 1, "amp": "off", "skip_corrupt": True}
    teacher = {"teacher": _teacher(folder, tmp_path / "t"), "unlabelled": unlabelled}
    finetune(read_data(str(folder)), tmp_path / "b", FinetuneOptions(**given, **teacher), monitor)
    assert [line for line in warned if "bad.png" in line]
