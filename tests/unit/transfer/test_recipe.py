import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgetl.errors import InputError
from edgetl.transfer import backbones, recipe
from edgetl.transfer.options import STRATEGIES, FinetuneOptions

ROW = backbones.row("smallnet")


def test_small_sets_get_more_epochs_and_frozen_statistics() -> None:
    few, many = (recipe.recipe_for(FinetuneOptions(), n) for n in (100, 50_000))
    assert few.epochs > many.epochs >= recipe.FEWEST_EPOCHS
    assert few.freeze_statistics
    assert not many.freeze_statistics
    assert not recipe.recipe_for(FinetuneOptions(weights="none"), 100).freeze_statistics, "scratch has none to keep"


def test_options_win_over_the_recipes_own_choice() -> None:
    found = recipe.recipe_for(FinetuneOptions(epochs=7, lr=0.5, batch_size=3, head_epochs=9), 100)
    assert (found.epochs, found.lr, found.batch, found.head_epochs) == (7, 0.5, 3, 7)


@given(st.integers(1, 5000), st.floats(0, 0.5))
def test_the_schedule_rises_and_falls_within_bounds(steps: int, warm_up: float) -> None:
    factors = [recipe.schedule(s, steps, warm_up) for s in range(steps)]
    assert all(0 <= f <= 1 for f in factors)
    assert max(factors) == pytest.approx(1) or steps == 1
    peak = factors.index(max(factors))
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


@given(st.integers(1, 100_000))
def test_the_average_forgets_where_it_started(steps: int) -> None:
    """A decay that does not fit the number of steps still holds the initial weights at the end."""
    left = 1.0
    for step in range(steps):
        left *= recipe.ema_decay(step, steps)
        if left < 1e-6:
            break
    assert left < 0.1 or steps < 3


def test_every_parameter_is_in_one_group_and_the_head_learns_fastest() -> None:
    model = backbones.build("smallnet", 3, 32)
    plan = recipe.recipe_for(FinetuneOptions(), 100)
    groups = recipe.parameter_groups(model, ROW, plan)
    placed = [id(p) for g in groups for p in g["params"]]
    assert sorted(placed) == sorted(id(p) for p in model.parameters())
    peak = {id(p): g["peak"] for g in groups for p in g["params"]}
    assert peak[id(model.fc.weight)] == plan.lr
    body = [peak[id(p)] for n, p in model.named_parameters() if not n.startswith("fc.")]
    assert max(body) == plan.body_lr < plan.lr, "the head's learning rate is not used for the body"
    assert body == sorted(body), "earlier layers learn no faster than later ones"
    assert all(g["weight_decay"] == 0 for g in groups for p in g["params"] if p.ndim == 1)


def _train_step(model: torch.nn.Module, head_only: bool, freeze: bool) -> dict[str, torch.Tensor]:
    before = {k: v.clone() for k, v in model.state_dict().items()}
    recipe.set_mode(model, ROW, head_only, freeze)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(torch.randn(8, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    return before


def test_a_frozen_phase_leaves_parameters_and_buffers_bit_identical() -> None:
    """requires_grad alone would let BatchNorm's running statistics move."""
    model = backbones.build("smallnet", 3, 32)
    before = _train_step(model, head_only=True, freeze=False)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) != key.startswith("fc."), key


@pytest.mark.parametrize("freeze", [True, False])
def test_frozen_statistics_stay_while_the_weights_move(freeze: bool) -> None:
    model = backbones.build("smallnet", 3, 32)
    before = _train_step(model, head_only=False, freeze=freeze)
    after = model.state_dict()
    assert not torch.equal(after["stem.0.weight"], before["stem.0.weight"])
    assert torch.equal(after["stem.1.running_mean"], before["stem.1.running_mean"]) == freeze
    assert torch.equal(after["stem.1.num_batches_tracked"], before["stem.1.num_batches_tracked"]) == freeze


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"head_epochs": -1},
        {"batch_size": 0},
        {"image_size": 0},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"device": "tpu"},
        {"amp": "int8"},
        {"strategy": "gradual"},
        {"strategy": "scratch", "weights": "embedded"},
    ],
)
def test_an_option_that_means_nothing_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        FinetuneOptions(**wrong)  # type: ignore[arg-type]


def test_the_strategy_follows_from_the_weights() -> None:
    assert FinetuneOptions().plan is STRATEGIES["lp-ft"]
    assert FinetuneOptions(weights="none").plan is STRATEGIES["scratch"]
    assert FinetuneOptions(weights="none", strategy="linear-probe").plan is STRATEGIES["linear-probe"]
    assert FinetuneOptions(strategy="scratch").source == "none", "nothing is downloaded to be thrown away"


def test_the_statistics_of_a_slow_batchnorm_follow_a_short_run() -> None:
    """MobileNetV3's momentum of 0.01 left them at 0 and 1 after five epochs, and validation at chance."""
    model = backbones.build("mobilenet_v3_small", 3, 32, {"width_mult": 0.5})
    recipe.set_mode(model, backbones.row("mobilenet_v3_small"), head_only=False, freeze_statistics=False)
    images = 3 + 2 * torch.randn(16, 3, 32, 32)
    stem = torch.nn.Sequential(model.features[0][0], model.features[0][1])  # the convolution and its norm
    with torch.no_grad():
        for _ in range(50):
            trained = stem(images)
        torch.testing.assert_close(stem.eval()(images), trained, rtol=0.05, atol=0.05)
