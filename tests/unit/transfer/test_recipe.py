from pathlib import Path

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
    for strategy in ("scratch", "full", "lp-ft"):
        random = FinetuneOptions(weights="none", strategy=strategy)
        assert not recipe.recipe_for(random, 100).freeze_statistics, "random weights have none to keep"


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


def test_gradual_opens_a_stage_an_epoch_from_the_head_and_all_by_the_middle_of_a_short_run() -> None:
    long, short = (recipe.recipe_for(FinetuneOptions(strategy="gradual", epochs=n), 100) for n in (20, 4))
    assert [long.open_stages(e) for e in range(1, 8)] == [1, 2, 3, 4, 5, 5, 5]
    assert [short.open_stages(e) for e in range(1, 5)] == [1, 3, 5, 5]
    late = recipe.recipe_for(FinetuneOptions(strategy="gradual", epochs=20, head_epochs=2), 100)
    assert [late.open_stages(e) for e in range(1, 6)] == [0, 0, 1, 2, 3]
    assert recipe.recipe_for(FinetuneOptions(epochs=20), 100).open_stages(1) == recipe.STAGES
    assert long.stage_decay == pytest.approx(1 / 2.6)


@pytest.mark.parametrize("name", ["smallnet", "mobilenet_v2", "squeezenet1_0", "convnext_tiny", "swin_t", "googlenet"])
def test_stages_hold_the_whole_body_once_in_the_order_of_depth(name: str) -> None:
    spec = backbones.row(name)
    model = backbones.build(name, 3, max(64, spec.min_size), init=False)
    stages = recipe.stages_of(model, spec)
    body = [id(p) for stage in stages for m in stage for p in m.parameters(recurse=False)]
    own = {id(p) for p in backbones.head_of(model, spec).parameters()}
    assert sorted(body) == sorted(id(p) for p in model.parameters() if id(p) not in own)
    assert min(len(stage) for stage in stages) > 0


@pytest.mark.parametrize("open_stages", range(recipe.STAGES + 1))
def test_stages_that_are_not_open_stay_bit_identical_in_parameters_and_buffers(open_stages: int) -> None:
    model = backbones.build("smallnet", 3, 32)
    before = _train_step(model, open_stages, freeze=False)
    place = {id(m): i for i, stage in enumerate(recipe.stages_of(model, ROW)) for m in stage}
    for name, module in model.named_modules():
        if id(module) not in place:
            continue
        own = [
            name + "." + k for k, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        ]
        moved = [not torch.equal(model.state_dict()[k], before[k]) for k in own]
        assert all(m == (place[id(module)] >= recipe.STAGES - open_stages) for m in moved), own


def _train_step(model: torch.nn.Module, open_stages: int, freeze: bool) -> dict[str, torch.Tensor]:
    before = {k: v.clone() for k, v in model.state_dict().items()}
    recipe.set_mode(model, ROW, open_stages, freeze)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(torch.randn(8, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    return before


def test_a_frozen_phase_leaves_parameters_and_buffers_bit_identical() -> None:
    """requires_grad alone would let BatchNorm's running statistics move."""
    model = backbones.build("smallnet", 3, 32)
    before = _train_step(model, open_stages=0, freeze=False)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) != key.startswith("fc."), key


@pytest.mark.parametrize("freeze", [True, False])
def test_frozen_statistics_stay_while_the_weights_move(freeze: bool) -> None:
    model = backbones.build("smallnet", 3, 32)
    before = _train_step(model, open_stages=recipe.STAGES, freeze=freeze)
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
        {"strategy": "gradually"},
        {"keep": "everything"},
        {"keep": "l2sp", "strategy": "linear-probe"},
        {"keep": "delta", "strategy": "features"},
        {"keep": "bss", "strategy": "scratch"},
        {"keep": "l2sp", "strategy": "lp-ft", "weights": "none"},
        {"teacher": Path("b"), "strategy": "linear-probe"},
        {"teacher": Path("b"), "strategy": "features"},
        {"unlabelled": Path("photos")},
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
    recipe.set_mode(model, backbones.row("mobilenet_v3_small"), open_stages=recipe.STAGES, freeze_statistics=False)
    images = 3 + 2 * torch.randn(16, 3, 32, 32)
    stem = torch.nn.Sequential(model.features[0][0], model.features[0][1])  # the convolution and its norm
    with torch.no_grad():
        for _ in range(50):
            trained = stem(images)
        torch.testing.assert_close(stem.eval()(images), trained, rtol=0.05, atol=0.05)
