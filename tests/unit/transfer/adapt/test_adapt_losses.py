"""Each loss against its definition, written out as loops, and against skada where it has one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from edgetl.transfer.adapt import adversarial, confusion, discrepancy
from edgetl.transfer.adapt.losses import Cdan, Codes, Dann, loss_of
from edgetl.transfer.adapt.methods import METHODS


def _rows(seed: int, n: int, width: int, shift: float = 0.0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(shift, 1, (n, width)))


def _kernel_by_hand(x: torch.Tensor, y: torch.Tensor, spread: float) -> float:
    squared = sum(float(a - b) ** 2 for a, b in zip(x, y, strict=True))
    return sum(math.exp(-squared / (scale * spread)) for scale in (0.25, 0.5, 1, 2, 4)) / 5


def _spread(both: torch.Tensor) -> float:
    n = len(both)
    squared = [float((both[i] - both[j]).square().sum()) for i in range(n) for j in range(n) if i != j]
    return sum(squared) / len(squared)


def _mmd_by_hand(source: list[torch.Tensor], target: list[torch.Tensor]) -> float:
    """Over layers: the kernel is their product."""
    spreads = [_spread(torch.cat(pair)) for pair in zip(source, target, strict=True)]

    def k(xs: list[torch.Tensor], i: int, ys: list[torch.Tensor], j: int) -> float:
        return math.prod(_kernel_by_hand(x[i], y[j], s) for x, y, s in zip(xs, ys, spreads, strict=True))

    m, n = len(source[0]), len(target[0])
    xx = sum(k(source, i, source, j) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    yy = sum(k(target, i, target, j) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    xy = sum(k(source, i, target, j) for i in range(m) for j in range(n)) / (m * n)
    return xx + yy - 2 * xy


def test_mmd_is_the_unbiased_sum_over_pairs() -> None:
    source, target = _rows(0, 5, 3), _rows(1, 7, 3, 0.5)
    assert float(discrepancy.mk_mmd(source, target)) == pytest.approx(_mmd_by_hand([source], [target]), abs=1e-12)


def test_joint_mmd_multiplies_the_layers_kernels() -> None:
    layers = [(_rows(0, 5, 3), _rows(1, 6, 3, 0.5)), (_rows(2, 5, 4).softmax(1), _rows(3, 6, 4).softmax(1))]
    source, target = ([pair[side] for pair in layers] for side in (0, 1))
    assert float(discrepancy.joint_mmd(source, target)) == pytest.approx(_mmd_by_hand(source, target), abs=1e-12)


def test_mmd_is_zero_on_average_for_equal_distributions_and_grows_with_the_shift() -> None:
    equal = [float(discrepancy.mk_mmd(_rows(2 * i, 20, 4), _rows(2 * i + 1, 20, 4))) for i in range(200)]
    assert abs(np.mean(equal)) < 3 * np.std(equal) / len(equal) ** 0.5
    assert min(equal) < 0, "unbiased: it can be below zero"
    shifted = [float(discrepancy.mk_mmd(_rows(0, 20, 4), _rows(1, 20, 4, shift))) for shift in (0.5, 1.0, 2.0)]
    assert max(equal) < shifted[1] < shifted[2]


def test_no_gradient_flows_through_the_bandwidth() -> None:
    source = _rows(0, 6, 3).requires_grad_()
    target = _rows(1, 6, 3, 1.0)
    discrepancy.mk_mmd(source, target).backward()
    spread = _spread(torch.cat([source.detach(), target]))
    again = source.detach().clone().requires_grad_()
    both = torch.cat([again, target])
    squared = discrepancy.squared_distances(both)
    gram = sum(torch.exp(-squared / (scale * spread)) for scale in discrepancy.SCALES) / 5
    discrepancy.unbiased(torch.as_tensor(gram), 6).backward()
    assert source.grad is not None
    assert again.grad is not None
    assert torch.allclose(source.grad, again.grad, atol=1e-12)


def test_coral_is_the_squared_difference_of_covariances_over_four_d_squared() -> None:
    source, target = _rows(0, 9, 3), 2 * _rows(1, 7, 3, 0.5)
    covariances = [np.cov(rows.numpy().T) for rows in (source, target)]
    by_hand = sum((covariances[0][i, j] - covariances[1][i, j]) ** 2 for i in range(3) for j in range(3)) / (4 * 9)
    assert float(discrepancy.coral(source, target)) == pytest.approx(by_hand)


def _mcc_by_hand(logits: np.ndarray, temperature: float) -> float:
    n, classes = logits.shape
    y = np.exp(logits / temperature)
    y /= y.sum(1, keepdims=True)
    raw = [1 + math.exp(sum(p * math.log(p) for p in row)) for row in y]
    weights = [n * w / sum(raw) for w in raw]
    matrix = [[sum(weights[i] * y[i, a] * y[i, b] for i in range(n)) for b in range(classes)] for a in range(classes)]
    off = [matrix[a][b] / sum(matrix[a]) for a in range(classes) for b in range(classes) if a != b]
    return sum(off) / classes


def test_class_confusion_is_its_definition() -> None:
    logits = 3 * _rows(0, 8, 4)
    by_hand = _mcc_by_hand(logits.numpy(), 2.5)
    assert float(confusion.class_confusion(logits)) == pytest.approx(by_hand)
    certain = 100 * torch.eye(4, dtype=torch.float64).repeat(3, 1)
    assert float(confusion.class_confusion(certain)) == pytest.approx(0, abs=1e-9)


def test_a_class_that_no_answer_knows_confuses_nothing() -> None:
    """Logits so far apart that its probability is 0 in every answer: the loss stays a number, and its gradient too."""
    logits = torch.zeros(6, 3)
    logits[:, 2] = -2000
    logits[:3, 0] = 1.0
    logits.requires_grad_()
    value = confusion.class_confusion(logits)
    value.backward()
    two = confusion.class_confusion(logits.detach()[:, :2])
    assert value.item() == pytest.approx(float(two) * 2 / 3, rel=1e-5), "its row is empty, the mean is over all three"
    assert logits.grad is not None and logits.grad.isfinite().all() and logits.grad.abs().sum() > 0


def test_rows_that_differ_by_rounding_are_no_distance_apart() -> None:
    """The same picture in another place of a batch: features differ in their last bits, and not by chance."""
    row = 5 * _rows(0, 1, 40)
    last_bit = 1e-7 * torch.sign(_rows(1, 1, 40))
    source, target = row.repeat(20, 1), (row * (1 + last_bit)).repeat(20, 1)
    assert abs(float(discrepancy.mk_mmd(source, target))) < 1e-3
    assert float(discrepancy.mk_mmd(source, target * 1.01)) > 0.1, "what is more than rounding is seen"


def test_against_skada() -> None:
    pytest.importorskip("skorch", reason="skada's losses want skorch")
    from skada.deep import losses as theirs  # type: ignore[import-not-found, unused-ignore]

    source, target = _rows(0, 12, 5), _rows(1, 12, 5, 0.3)
    assert float(discrepancy.coral(source, target)) == pytest.approx(float(theirs.deepcoral_loss(source, target)))
    logits = 3 * _rows(2, 12, 4)
    ours = float(confusion.class_confusion(logits, 2.5))
    assert ours == pytest.approx(float(theirs.mcc_loss(logits, T=2.5)), rel=1e-5)  # their logarithm has an epsilon


def test_the_reversal_follows_ganins_schedule() -> None:
    assert [round(adversarial.reversal(p), 4) for p in (0.0, 0.1, 0.5, 1.0)] == [0.0, 0.4621, 0.9866, 0.9999]
    x = torch.ones(3, requires_grad=True)
    (adversarial.reverse(x, 0.25) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [-0.25, -0.5, -0.75]


def _codes(seed: int, shift: float = 0.0) -> Codes:
    features = _rows(seed, 6, 5, shift).float().requires_grad_()
    return Codes(features, features[:, :3] * 2)


def test_dann_is_the_mean_of_both_domains_cross_entropies_and_pushes_features_the_other_way() -> None:
    torch.manual_seed(0)
    loss = Dann(5, 8)
    source, target = _codes(0), _codes(1, 2.0)
    value = loss(source, target, 0.5)
    logits = loss.discriminator(torch.cat([source.features, target.features]))[:, 0]
    right = [float(torch.sigmoid(z)) for z in logits.detach()]
    by_hand = -0.5 * (sum(math.log(p) for p in right[:6]) + sum(math.log(1 - p) for p in right[6:])) / 6
    assert float(value) == pytest.approx(by_hand, rel=1e-5)
    value.backward()
    plain = adversarial.domain_loss(loss.discriminator(torch.cat([source.features, target.features])), 6)
    (direct,) = torch.autograd.grad(plain, source.features)
    assert source.features.grad is not None
    assert torch.allclose(source.features.grad, -adversarial.reversal(0.5) * direct, atol=1e-6)


def test_cdan_sees_the_outer_product_and_weighs_certain_answers_more() -> None:
    torch.manual_seed(0)
    loss = Cdan(5, 3, 8)
    source, target = _codes(0), _codes(1, 2.0)
    value = loss(source, target, 1.0)
    probabilities = torch.cat([source.logits, target.logits]).softmax(1).detach()
    features = torch.cat([source.features, target.features])
    outer = torch.stack([torch.outer(f, g).flatten() for f, g in zip(features, probabilities, strict=True)])
    right = torch.sigmoid(loss.discriminator(outer)[:, 0]).tolist()
    raw = [1 + math.exp(sum(p * math.log(p) for p in row)) for row in probabilities.tolist()]
    parts = []
    for rows, sign in ((range(6), 1), (range(6, 12), 0)):
        weights = [raw[i] * 6 / sum(raw[j] for j in rows) for i in rows]
        terms = [math.log(right[i] if sign else 1 - right[i]) for i in rows]
        parts.append(-sum(w * t for w, t in zip(weights, terms, strict=True)) / 6)
    assert float(value) == pytest.approx(sum(parts) / 2, rel=1e-5)


def test_cdans_random_map_keeps_inner_products_in_expectation() -> None:
    torch.manual_seed(0)
    wide = adversarial.ConditionalMap(256, 31)
    assert (adversarial.ConditionalMap(256, 16).random, wide.random, wide.width) == (False, True, 1024)
    features, answers = _rows(0, 40, 256).float(), (3 * _rows(1, 40, 31)).float().softmax(1)
    mapped = wide(features, answers)
    exact = torch.einsum("bd,bc->bdc", features, answers).flatten(1)
    found = np.corrcoef((mapped @ mapped.T).flatten().numpy(), (exact @ exact.T).flatten().numpy())[0, 1]
    assert found > 0.9


@pytest.mark.parametrize("method", ["mmd", "jmmd", "coral", "mcc"])  # a duel's course is not monotone
def test_every_loss_brings_two_shifted_domains_closer_or_makes_answers_surer(method: str) -> None:
    torch.manual_seed(0)
    loss = loss_of(method, 4, 3, 16)
    assert METHODS[method].weight > 0 < METHODS[method].frozen_weight
    source, target = _rows(0, 64, 4).float(), (3 * _rows(1, 64, 4, 1.0)).float()
    layer, head = nn.Linear(4, 4), nn.Linear(4, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(4))
    optimizer = torch.optim.Adam([*layer.parameters(), *loss.parameters()], lr=0.02)

    def measured() -> tuple[float, float]:
        with torch.no_grad():
            sure = confusion.class_confusion(head(layer(target)))
            return float(discrepancy.mk_mmd(source, layer(target))), float(sure)

    before = measured()
    for step in range(60):
        moved = layer(target)
        value = loss(Codes(source, head(source)), Codes(moved, head(moved)), step / 60)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    after = measured()
    assert after[method == "mcc"] < before[method == "mcc"]
