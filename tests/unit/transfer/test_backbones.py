import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchvision import models

from edgetl.errors import BackboneError
from edgetl.spec import Profile
from edgetl.transfer import backbones

# The cheapest member of each family and a size it takes.
MEMBERS = {
    "smallnet": 16,
    "plaincnn": 32,
    "resnet18": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "efficientnet_b0": 32,
    "convnext_tiny": 32,
    "regnet_y_400mf": 32,
    "shufflenet_v2_x0_5": 32,
    "squeezenet1_1": 32,
    "densenet121": 32,
    "mnasnet0_5": 32,
    "vgg11": 32,
    "alexnet": 64,
    "inception_v3": 75,
    "googlenet": 32,
    "vit_b_32": 32,
    "vit_b_16": 32,
    "swin_t": 32,
    "maxvit_t": 224,
}


def test_every_torchvision_classification_builder_has_exactly_one_row() -> None:
    there = set(models.list_models(module=models))
    assert there == set(backbones.names()) - set(backbones.OWN)
    for name in backbones.names():
        assert sum(bool(re.fullmatch(f.pattern, name)) for f in backbones.FAMILIES) == 1, name


def test_every_family_is_tried_below() -> None:
    tried = {backbones.row(name).family for name in MEMBERS}
    assert tried | {"vit14"} == {f.family for f in backbones.FAMILIES}  # vit_h_14 has 630 M parameters


HEAVY = ("vgg11", "alexnet", "vit_b_16", "maxvit_t")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in HEAVY else ()) for n in MEMBERS])
def test_logits_are_the_head_applied_to_the_features(name: str) -> None:
    spec, size = backbones.row(name), MEMBERS[name]
    model = backbones.build(name, 5, size, init=False).eval()
    images = torch.randn(2, 3, size, size)
    head = backbones.head_of(model, spec)
    weight, bias = torch.randn(5, head.weight.shape[1]), torch.randn(5)
    backbones.set_head(model, spec, weight, bias)
    with torch.inference_mode():
        logits = model(images)
        with backbones.headless(model, spec) as body:
            features = body(images)
        again = model(images)
    assert logits.shape == (2, 5)
    assert features.ndim == 2
    torch.testing.assert_close(logits, features @ weight.T + bias, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits, again), "headless gives the head back"


@pytest.mark.parametrize("name", ["densenet121", "vgg11", "alexnet", "inception_v3", "googlenet", "squeezenet1_0"])
def test_min_size_is_the_smallest_that_the_network_takes(name: str) -> None:
    least = backbones.row(name).min_size
    with torch.device("meta"):
        model = backbones.build(name, 2, least, init=False).eval()
        model(torch.empty(1, 3, least, least))
        with pytest.raises(RuntimeError):
            model(torch.empty(1, 3, least - 1, least - 1))


@pytest.mark.parametrize(
    ("name", "size", "hint"),
    [
        ("inception_v3", 64, "at least 75"),
        ("vit_b_16", 100, "multiple of 16"),
        ("maxvit_t", 256, "multiple of 224"),
        ("alexnet", 32, "at least 63"),
    ],
)
def test_a_size_that_the_backbone_cannot_take_is_refused(name: str, size: int, hint: str) -> None:
    with pytest.raises(BackboneError, match=hint):
        backbones.build(name, 2, size)


def test_an_unknown_backbone_gets_the_nearest_name() -> None:
    with pytest.raises(BackboneError, match="mobilenet_v2"):
        backbones.row("mobilnet_v2")
    with pytest.raises(BackboneError, match="torchvision classification model"):
        backbones.row("qqqqqq")


def test_squeezenet_logits_may_be_negative() -> None:
    """torchvision clips them with a ReLU, which would break the fold of the probe into the head."""
    spec = backbones.row("squeezenet1_1")
    model = backbones.build("squeezenet1_1", 3, 32).eval()
    backbones.set_head(model, spec, torch.zeros(3, 512), torch.full((3,), -2.0))
    with torch.inference_mode():
        assert model(torch.randn(1, 3, 32, 32)).tolist() == [[-2.0, -2.0, -2.0]]


def test_googlenet_normalised_by_half_equals_torchvision_with_transform_input() -> None:
    spec = backbones.row("googlenet")
    ours = backbones.build("googlenet", 7, 64, init=False).eval()
    theirs = models.googlenet(aux_logits=False, transform_input=True, init_weights=False, num_classes=7).eval()
    theirs.load_state_dict(ours.state_dict())
    pixels = torch.rand(2, 3, 64, 64)

    def normalised(mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
        return (pixels - torch.tensor(mean).reshape(3, 1, 1)) / torch.tensor(std).reshape(3, 1, 1)

    with torch.inference_mode():
        expected = theirs(normalised(backbones.IMAGENET_MEAN, backbones.IMAGENET_STD))
        torch.testing.assert_close(ours(normalised(spec.mean, spec.std)), expected, rtol=1e-4, atol=1e-5)


def test_exporter_and_profiles_follow_the_size() -> None:
    vgg = backbones.row("vgg16")
    assert (vgg.exporter_at(224), vgg.exporter_at(128)) == ("torchscript", "dynamo")
    assert Profile.TRT8 in vgg.profiles_at(224)
    assert Profile.TRT8 not in vgg.profiles_at(128)
    assert backbones.row("vit_b_16").min_opset == 14


def test_backbone_arguments_reach_the_builder() -> None:
    arguments = backbones.parse_arguments("width_mult=0.5, dropout=0.1")
    assert arguments == {"width_mult": 0.5, "dropout": 0.1}
    narrow = backbones.build("mobilenet_v2", 2, 32, arguments)
    wide = backbones.build("mobilenet_v2", 2, 32)
    assert _parameters(narrow) < _parameters(wide)


@pytest.mark.parametrize("text", ["width_mult", "**{'a': 1}", "a=print(1)", "a=1) or f(b=2", "a=__import__('os')", ")"])
def test_backbone_arguments_are_literals_only(text: str) -> None:
    with pytest.raises(BackboneError, match="--backbone-args"):
        backbones.parse_arguments(text)


@given(st.text(max_size=40))
def test_any_text_is_keywords_or_a_backbone_error(text: str) -> None:
    try:
        assert isinstance(backbones.parse_arguments(text), dict)
    except BackboneError:
        pass


@pytest.mark.parametrize(
    "arguments", [{"nonsense": 1}, {"width_mult": "wide"}, {"num_classes": 3}, {"weights": "DEFAULT"}]
)
def test_arguments_that_the_builder_refuses_are_one_error(arguments: dict[str, object]) -> None:
    with pytest.raises(BackboneError, match=r"argument|--backbone-args"):
        backbones.build("mobilenet_v2", 2, 32, arguments)


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
