"""--keep: each penalty against its definition on small arrays."""

from pathlib import Path

import numpy as np
import pytest
import torch

from edgetl.images import Sample
from edgetl.spec import Preprocess
from edgetl.transfer import backbones, keep
from edgetl.transfer.network import Deployed
from edgetl.transfer.probe import Probe
from edgetl.transfer.step import ExtraLoss, Step

ROW = backbones.row("smallnet")
SPEC = Preprocess(size=16, resize=16)
IMAGES = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 60 + 120
TARGETS = torch.tensor([0, 1, 2, 0, 1, 2])
FITTED = Probe(np.random.default_rng(0).normal(size=(3, 192)).astype(np.float32) * 0.1, np.zeros(3, np.float32), 1.0)


def _network() -> Deployed:
    torch.manual_seed(0)
    return Deployed(backbones.build("smallnet", 3, 16), SPEC).eval()


def _step(network: Deployed, images: torch.Tensor = IMAGES, unlabelled: int = 0) -> Step:
    """One forward pass in which the last `unlabelled` images have no label."""
    found = network(images)
    labelled = len(images) - unlabelled
    samples = [Sample(f"{i}.png", 0, f"{i:064x}") for i in range(len(images))]
    return Step(
        network,
        samples[:labelled],
        images[:labelled],
        TARGETS[:labelled],
        (found[:labelled],),
        images[labelled:],
        (found[labelled:],),
        samples[labelled:],
        1,
        0,
        0.0,
    )


def _moved(network: Deployed) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))


def test_l2sp_is_the_squared_way_from_the_start_and_the_heads_square() -> None:
    network = _network()
    penalty = keep.L2SP(network.backbone, ROW)
    start = {k: v.detach().clone() for k, v in network.backbone.named_parameters()}
    _moved(network)
    body = sum(
        float((v.detach() - start[k]).square().sum())
        for k, v in network.backbone.named_parameters()
        if not k.startswith("fc.")
    )
    head = sum(float(v.detach().square().sum()) for k, v in network.backbone.named_parameters() if k.startswith("fc."))
    assert float(penalty(_step(network)).detach()) == pytest.approx(0.005 * body + 0.005 * head, rel=1e-4)
    assert not list(penalty.parameters()) and not penalty.state_dict(), "nothing of it trains, or is saved along"


def test_l2sp_pulls_back_to_the_start() -> None:
    network = _network()
    penalty = keep.L2SP(network.backbone, ROW)
    _moved(network)
    moved = network.backbone.get_submodule("stem.0").weight.detach().clone()
    penalty(_step(network)).backward()
    gradient = network.backbone.get_submodule("stem.0").weight.grad
    start = _network().backbone.get_submodule("stem.0").weight
    torch.testing.assert_close(gradient, 0.01 * (moved - start.detach()))


def test_bss_is_the_smallest_squared_singular_value_of_the_labelled_images() -> None:
    network = _network()
    penalty = keep.Bss(network.backbone, ROW)
    step = _step(network, unlabelled=2)
    with backbones.headless(network.backbone, ROW), torch.no_grad():
        features = network(IMAGES[:4]).numpy()
    smallest = np.linalg.svd(features, compute_uv=False)[-1]
    found = penalty(step)
    assert float(found.detach()) == pytest.approx(1e-3 * smallest**2, rel=1e-3)
    found.backward()
    assert network.backbone.get_submodule("stem.0").weight.grad is not None
    matrix = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.5]))
    assert float(keep.smallest_singular(matrix, 2)) == pytest.approx(0.25 + 1.0)


def test_attended_is_the_weighted_mean_square_by_channel() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(size=(2, 2, 3, 4)).astype(np.float32)
    weights = np.array([0.5, 2.0, 0.5], np.float32)
    expected = sum(weights[j] * np.linalg.norm(ours[i, j] - theirs[i, j]) ** 2 / 4 for i in range(2) for j in range(3))
    found = keep.attended(*(torch.from_numpy(a) for a in (ours, theirs, weights)))
    assert float(found) == pytest.approx(expected / 2, rel=1e-5)


def test_delta_is_nothing_but_the_head_at_the_start_and_grows_when_maps_move() -> None:
    network = _network()
    penalty = keep.Delta(network, ROW, FITTED, IMAGES, TARGETS)
    head = 0.005 * sum(float(p.square().sum()) for p in network.backbone.get_submodule("fc").parameters())
    assert float(penalty(_step(network))) == pytest.approx(head, rel=1e-5)
    assert not penalty.state_dict(), "the frozen copy is not saved with the run"
    _moved(network)
    moved = penalty(_step(network, unlabelled=2))
    head = 0.005 * sum(float(p.square().sum()) for p in network.backbone.get_submodule("fc").parameters())
    assert float(moved) > head + 1e-4
    moved.backward()
    assert network.backbone.get_submodule("stem.0").weight.grad is not None
    hooks = [m._forward_hooks for m in network.modules()]
    assert any(hooks)
    penalty.close()
    assert not any(m._forward_hooks for m in network.modules())


def test_deltas_attention_has_mean_one_and_ranks_channels_by_what_their_removal_costs() -> None:
    network = _network()
    penalty = keep.Delta(network, ROW, FITTED, IMAGES, TARGETS)
    assert all(float(attention.mean()) == pytest.approx(1, rel=1e-4) for attention in penalty._attention)
    name, attention = penalty._names[-1], penalty._attention[-1]
    penalty.close()
    backbones.set_head(network.backbone, ROW, torch.from_numpy(FITTED.weight), torch.from_numpy(FITTED.bias))

    def loss_without(channel: int | None) -> float:
        def hook(_: torch.nn.Module, __: object, output: torch.Tensor) -> torch.Tensor:
            kept = torch.ones(output.shape[1])
            if channel is not None:
                kept[channel] = 0
            return output * kept[None, :, None, None]

        handle = network.get_submodule(name).register_forward_hook(hook)
        with torch.no_grad():
            found = float(torch.nn.functional.cross_entropy(network(IMAGES), TARGETS))
        handle.remove()
        return found

    rises = np.array([loss_without(j) for j in range(0, len(attention), 3)]) - loss_without(None)
    assert np.corrcoef(rises, attention[::3].log())[0, 1] > 0.8


SMALL_VIT = {"num_layers": 5, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64}


def test_channels_are_the_layers_own_wherever_they_lie() -> None:
    maps = torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
    conv, linear = torch.nn.Conv2d(1, 3, 1), torch.nn.Linear(1, 3)
    expected = maps.float().flatten(2)
    assert torch.equal(keep.channels(conv, maps), expected)
    assert torch.equal(keep.channels(linear, maps.permute(0, 2, 3, 1)), expected)
    assert torch.equal(keep.channels(linear, maps[:, :, 0, 0]), expected[:, :, :1])


@pytest.mark.parametrize("name", ["mobilenet_v2", "squeezenet1_0", "vit_b_32"])
def test_delta_and_bss_work_on_every_kind_of_network(name: str) -> None:
    """In-place activations without norms, heads that are convolutions, tokens instead of maps."""
    spec = backbones.row(name)
    arguments = SMALL_VIT if name.startswith("vit") else {}
    network = Deployed(backbones.build(name, 3, 64, arguments), Preprocess(size=64, resize=64)).eval()
    images = torch.rand(2, 3, 64, 64) * 255
    width = backbones.head_of(network.backbone, spec).weight.shape[1]
    fitted = Probe(np.ones((3, width), np.float32), np.zeros(3, np.float32), 1.0)
    extras: list[ExtraLoss] = []
    for kind in ("delta", "bss", "l2sp"):
        extras += keep.penalties(kind, network, spec, fitted, images, TARGETS[:2])
    network.requires_grad_(True)
    loss = sum((extra(_step(network, images)) for extra in extras), start=torch.zeros(()))
    assert torch.isfinite(loss)
    loss.backward()
    for extra in extras:
        extra.close()
    network(images)


def test_none_adds_nothing(tmp_path: Path) -> None:
    assert keep.penalties("none", _network(), ROW, FITTED, IMAGES, TARGETS) == []
