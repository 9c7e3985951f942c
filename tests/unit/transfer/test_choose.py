"""What is kept: by val, the simplest of equals; averages of probe and fine-tuned weights; auto's pick."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgetl.images import read_data
from edgetl.monitor import Monitor
from edgetl.spec import Preprocess
from edgetl.transfer import auto, backbones, wise
from edgetl.transfer.choose import Candidate, Choice, choose
from edgetl.transfer.network import Deployed
from edgetl.transfer.options import FinetuneOptions
from edgetl.transfer.pixels import PixelStore
from edgetl.transfer.prepare import prepare
from edgetl.transfer.probe import Probe, fit
from edgetl.transfer.run import Probed, Run
from edgetl.transfer.train import Progress


@pytest.fixture
def make_run(tmp_path: Path, make_folder: Callable[..., Path]) -> Callable[..., Run]:
    def make(strategy: str = "lp-ft", weights: str = "embedded") -> Run:
        data = read_data(str(make_folder(n=40, size=20)))
        options = FinetuneOptions(backbone="smallnet", weights=weights, strategy=strategy, image_size=16, amp="off")
        start = prepare(data, options)
        store = PixelStore(tmp_path / "work", data.root, start.preprocess)
        store.fill(data.all(), False)
        return Run(data, start, options, tmp_path / "work", store, Monitor())

    return make


def _probed(run: Run, weight: Any) -> Probed:
    samples = [*run.data.split("train"), *run.data.split("val")]
    found = run.features(samples)
    n = len(run.data.split("train"))
    fitted = Probe(weight, np.zeros(2, np.float32), 1.0)
    return Probed(fitted, fitted, found[:n], found[n:], accuracy=0.5)


def _state(run: Run) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in run.start.network.backbone.state_dict().items()}


def _opposed(run: Run) -> tuple[Probed, Progress, dict[str, torch.Tensor]]:
    """A probe and a tuned network that are both wrong by a bias, in opposite directions: their middle is right."""
    run.before = _state(run)
    weight = np.zeros((2, 192), np.float32)
    found = _probed(run, weight)
    parting = fit(found.val, run.targets("val"), 2, seed=0)  # as many features as a dozen images need to be parted
    direction = parting.weight[1] - parting.weight[0]
    low, high = (np.sort(found.val[run.targets("val") == c] @ direction)[-1 + c] for c in (0, 1))
    weight[1] = direction / (high - low) * 20
    middle = 20 * float(low + high) / 2 / (high - low)
    lean = 100.0
    fitted = Probe(weight, np.array([0, -middle - lean], np.float32), 1.0)
    run.fold(Probe(weight, np.array([0, -middle + lean], np.float32), 1.0))
    tuned = Progress(epoch=1, best=_state(run), best_epoch=1, best_score=(0.5, 0.0))
    return replace(found, fitted=fitted, cooled=fitted), tuned, run.before


def test_an_average_that_is_better_on_val_is_kept_with_its_alpha(make_run: Callable[..., Run]) -> None:
    run = make_run()
    probed, tuned, before = _opposed(run)
    choice = choose(run, probed, tuned)
    assert (choice.kept.name, choice.kept.alpha) == ("wise-ft", 0.5)
    assert choice.kept.accuracy > 0.9 > max(c.accuracy for c in choice.candidates if c.alpha is None)
    selection = choice.selection()
    assert selection["alpha"] == 0.5
    assert [c["name"] for c in selection["candidates"]] == ["linear-probe", "lp-ft", *["wise-ft"] * 3]
    assert f"wise-ft is best on val: {choice.kept.accuracy:.3f} (linear-probe 0.500)" in selection["why"]
    kept = _state(run)
    expected = 0.5 * (torch.from_numpy(probed.fitted.bias) + tuned.best["fc.bias"])  # type: ignore[index]
    torch.testing.assert_close(kept["fc.bias"], expected)
    assert all(torch.equal(v, before[k]) for k, v in kept.items() if not k.startswith("fc."))
    np.testing.assert_allclose(run.logits("val"), choice.kept.logits, rtol=1e-5, atol=1e-5)


def test_an_average_that_is_no_better_is_not_kept(make_run: Callable[..., Run]) -> None:
    run = make_run()
    probed, tuned, before = _opposed(run)
    weight, bias = probed.fitted.weight, probed.fitted.bias
    right = Probe(weight * 3, 3 * (bias + np.array([0, 100], np.float32)), 1.0)  # surer than any average
    choice = choose(run, replace(probed, fitted=right, cooled=right), tuned)
    assert (choice.kept.name, choice.kept.alpha) == ("linear-probe", None)
    assert choice.selection()["alpha"] is None
    assert all(torch.equal(v, before[k]) for k, v in _state(run).items() if not k.startswith("fc."))
    np.testing.assert_allclose(run.logits("val"), right.logits(probed.val), rtol=1e-3, atol=1e-3)


def test_of_equals_the_simplest_is_kept(make_run: Callable[..., Run]) -> None:
    run = make_run()
    run.before = _state(run)
    probed = _probed(run, np.zeros((2, 192), np.float32))
    run.fold(probed.fitted)
    choice = choose(run, probed, Progress(epoch=1, best=_state(run), best_epoch=1))
    assert choice.kept.name == "linear-probe"


def test_equal_accuracies_are_told_apart_by_their_losses_and_that_is_said() -> None:
    nothing = np.zeros((0, 2), np.float32)
    probe, average = Candidate("linear-probe", nothing, 0.5, 0.9), Candidate("wise-ft", nothing, 0.5, 0.7, alpha=0.25)
    why = Choice(average, (probe, average), ()).selection()["why"]
    assert why == "wise-ft is best on val: 0.500, as the linear probe; the loss decides, 0.700 against 0.900"


def test_what_was_compared_with_nothing_is_not_called_the_best() -> None:
    scratch = Candidate("scratch", np.zeros((0, 2), np.float32), 0.333, 1.4)
    assert Choice(scratch, (scratch,), ()).selection()["why"] == "scratch is kept as asked for; on val: 0.333"


def test_auto_never_ends_below_the_probe_on_val(make_run: Callable[..., Run]) -> None:
    run = make_run("auto")
    probed, tuned, _ = _opposed(run)
    run.plan = auto.decide(10, None, True, 0.5).plan
    choice = choose(run, probed, tuned, ("because",))
    names = {c.name for c in choice.candidates}
    assert {"linear-probe", "features", "lp-ft", "wise-ft"} == names
    probe = next(c for c in choice.candidates if c.name == "linear-probe")
    assert all((choice.kept.accuracy, -choice.kept.loss) >= (c.accuracy, -c.loss) for c in choice.candidates)
    assert choice.kept.accuracy >= probe.accuracy
    assert choice.selection()["why"].startswith("because; ")


def test_averaged_is_the_straight_line_between_the_two() -> None:
    probe = {"w": torch.tensor([0.0, 2.0]), "n": torch.tensor(3)}
    tuned = {"w": torch.tensor([4.0, 0.0]), "n": torch.tensor(9)}
    found = wise.averaged(probe, tuned, 0.25)
    assert found["w"].tolist() == [1.0, 1.5]
    assert int(found["n"]) == 9


def test_images_unlike_the_source_are_farther_by_batchnorms_memory() -> None:
    """A network whose statistics were made on some images: those are near, brighter ones are not."""
    torch.manual_seed(0)
    spec = Preprocess(size=16, resize=16)
    network = Deployed(backbones.build("smallnet", 2, 16), spec)
    source = torch.rand(64, 3, 16, 16) * 255
    network.train()
    with torch.no_grad():
        for _ in range(60):
            network(source)
    near, far = auto.shift(network, source), auto.shift(network, source / 4 + 190)
    assert near is not None and far is not None
    assert near < 0.1 < 0.5 < far
    assert not any(m._forward_pre_hooks for m in network.modules())
    assert not network.training
    vit = backbones.build("vit_b_32", 2, 64, {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 16})
    assert auto.shift(Deployed(vit, Preprocess(size=64, resize=64)), torch.rand(2, 3, 64, 64)) is None


@pytest.mark.parametrize(
    ("situation", "plan", "said"),
    [
        ((10, 0.3, True, 0.5), "lp-ft", "10 images a class, few, near"),
        ((10, 0.9, True, 0.5), "lp-ft", "far from the source domain (0.90)"),
        ((500, 0.3, True, 0.5), "lp-ft", "500 images a class, near"),
        ((10, None, True, 0.5), "lp-ft", "no BatchNorm"),
        ((10, 0.3, True, 1.0), "features", "right on all of val"),
        ((10, None, False, 0.5), "scratch", "no pretrained weights"),
    ],
)
def test_autos_pick_follows_from_weights_probe_size_and_distance(situation: Any, plan: str, said: str) -> None:
    pick = auto.decide(*situation)
    assert pick.plan.name == plan
    assert said in pick.reasons[0]


def test_autos_pick_is_noted_for_resume(make_run: Callable[..., Run]) -> None:
    run = make_run("auto")
    probed = _probed(run, np.zeros((2, 192), np.float32))
    first = auto.pick(run, probed)
    with torch.no_grad():
        for parameter in run.start.network.parameters():
            parameter.zero_()
    assert auto.pick(run, probed) == first
