"""Counts of a network: multiply-adds, activations, bytes kept for the backward pass, parameters that do not learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from payattn import cost
from payattn.models import create
from payattn.residual import AttentionModule, preactivation_unit


def on_meta(name: str, classes: int = 10, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return create(name, classes, **options)


def test_one_convolution_by_hand() -> None:
    net = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    assert cost.layers(net, 4, 5, 8) == {
        "": cost.Layer("Conv2d", 6 * 2 * 9 + 6, 3 * 4 * 6 * 2 * 9, 4 * 5 * 8, 6 * 3 * 4)
    }


@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution_uses_its_weights_once_at_every_position_of_its_input(groups: int) -> None:
    net = nn.ConvTranspose2d(4, 6, 3, stride=2, groups=groups)
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 4, 5, 7))
    assert cost.multiply_adds(net, 4, 5, 7) == 5 * 7 * 4 * 6 * 9 // groups == counter.get_total_flops() // 2


def test_linear_layers_count_every_row_they_read_and_norms_cost_nothing() -> None:
    net = nn.Sequential(nn.Flatten(2), nn.Linear(12, 5), nn.BatchNorm1d(3))
    found = cost.layers(net, 3, 3, 4)
    assert found["1"] == cost.Layer("Linear", 65, 3 * 60, 36, 15)
    assert found["2"] == cost.Layer("BatchNorm1d", 6, 0, 15, 15)


def test_a_layer_that_is_called_twice_adds_up_and_one_that_is_not_called_is_missing() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.a(self.a(x))
            return found

    found = cost.layers(Twice(), 3, 2, 2)
    assert list(found) == ["a"]
    assert (found["a"].parameters, found["a"].multiply_adds, found["a"].read) == (12, 2 * 4 * 9, 2 * 12)


@pytest.mark.parametrize("name", ["attention-56", "attentionnext-56-imagenet", "vgg-att2-concat-pc", "rn-164"])
def test_the_multiply_adds_are_half_of_the_flops_of_pytorch(name: str) -> None:
    net = create(name, 7, width=0.0625).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, 3, 40, 36))
    counted = cost.multiply_adds(net, 3, 40, 36)
    scores = counter.get_flop_counts()["Global"]
    others = sum(n for kind, n in scores.items() if "bmm" in str(kind))  # scores of attention are no layers
    assert 2 * counted == counter.get_total_flops() - others


def test_the_counts_are_the_same_on_the_meta_device_and_leave_the_network_as_it_was() -> None:
    real = create("attention-56", width=0.0625).train()
    real.stage1.eval()  # type: ignore[union-attr]
    before = {key: value.clone() for key, value in real.state_dict().items()}
    found = cost.layers(real, 3, 24, 24)
    assert found == cost.layers(on_meta("attention-56", width=0.0625), 3, 24, 24)
    assert real.training and not real.stage1.training  # type: ignore[union-attr]
    assert all(torch.equal(value, before[key]) for key, value in real.state_dict().items())
    assert not any(part._forward_hooks for part in real.modules())


@pytest.mark.parametrize(("name", "millions"), [("attention-56-imagenet", 35.7), ("attention-92-imagenet", 50.2)])
def test_outputs_of_convolutions_and_norms_at_224_pixels_are_those_of_the_specification(
    name: str, millions: float
) -> None:
    found = cost.layers(on_meta(name, 1000), 3, 224, 224)
    assert round(cost.total(found, "written") / 1e6, 1) == millions


def test_a_network_that_fails_is_left_as_it_was() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 1)).train()
    with pytest.raises(RuntimeError):
        cost.layers(net, 3, 4, 4)
    assert net.training
    assert not net[0]._forward_hooks
    for shape in [(), (3, 0, 4), (3, -1)]:
        with pytest.raises(ValueError, match="shape must be that of one input"):
            cost.layers(net, *shape)
    with pytest.raises(ValueError, match="count is 'multiply_add'; did you mean 'multiply_adds'"):
        cost.total({}, "multiply_add")


def test_saved_bytes_count_each_memory_once_and_no_parameters() -> None:
    x = torch.ones(3, 4, requires_grad=True)
    assert cost.saved_bytes(lambda: x.sigmoid())[1] == 48  # its own output
    assert cost.saved_bytes(lambda: x.sigmoid() + x)[1] == 48
    assert cost.saved_bytes(lambda: x * x.exp())[1] == 2 * 48  # x, and exp(x) for both
    assert cost.saved_bytes(lambda: x.double().exp())[1] == 96
    linear = nn.Linear(4, 5)
    assert cost.saved_bytes(lambda: linear(x), linear)[1] == 48
    assert cost.saved_bytes(lambda: linear(x))[1] == 48 + 80
    with torch.no_grad():
        assert cost.saved_bytes(lambda: x.sigmoid())[1] == 0
    with pytest.raises(ValueError, match="needs real tensors"):
        cost.saved_bytes(lambda: torch.ones(2, device="meta", requires_grad=True).exp())


def test_what_a_backward_pass_does_not_reach_is_found() -> None:
    net = nn.ModuleDict({"used": nn.Linear(2, 1), "zero": nn.Linear(2, 1), "dead": nn.Linear(2, 1)})
    with pytest.raises(ValueError, match=r"run loss.backward\(\) first"):
        cost.unlearned(net)
    x = torch.ones(1, 2)
    (net["used"](x) + 0 * net["zero"](x)).sum().backward()
    assert cost.unlearned(net) == {
        "zero.weight": "zero", "zero.bias": "zero", "dead.weight": "no gradient", "dead.bias": "no gradient",
    }  # fmt: skip


def test_gradients_that_are_only_rounding_need_a_tolerance() -> None:
    torch.manual_seed(0)
    net = create("vgg-gap", width=0.0625, dropout=0.0).double().train()
    F.cross_entropy(net(torch.rand(6, 3, 16, 16).double()), torch.arange(6)).backward()
    found = cost.unlearned(net, 1e-12)
    biases = {key for key, part in net.named_parameters() if key.startswith("trunk") and key.endswith("0.bias")}
    assert set(found) == biases, "a bias before BatchNorm is subtracted again"
    assert len(cost.unlearned(net)) < len(biases)


# ------------------------------------------------------------------------------ what a unit and a module keep


@pytest.mark.parametrize(("channels", "height", "width"), [(8, 9, 7), (16, 12, 12)])
def test_a_unit_keeps_three_tensors_of_its_size(channels: int, height: int, width: int) -> None:
    unit = preactivation_unit(channels, channels).train()
    x = torch.randn(3, channels, height, width, requires_grad=True)
    _, kept = cost.saved_bytes(lambda: unit(x), unit)
    statistics = 2 * (channels + channels // 4 + channels // 4)  # mean and spread of the three norms
    assert kept == 4 * (3 * x.numel() + statistics)


@pytest.mark.parametrize(
    ("depth", "p", "t", "r"), [(3, 1, 2, 1), (2, 1, 2, 1), (1, 1, 2, 1), (2, 2, 4, 3), (1, 0, 1, 2)]
)
def test_a_module_keeps_what_the_formula_says(depth: int, p: int, t: int, r: int) -> None:
    channels, side = 8, 16
    module = AttentionModule(channels, depth, p=p, t=t, r=r).train()
    x = torch.randn(2, channels, side, side, requires_grad=True)
    _, kept = cost.saved_bytes(lambda: module(x), module)
    hourglass = sum((2 * r + (k < depth)) / 4**k for k in range(1, depth + 1))
    indices = sum(2 / 4**k for k in range(1, depth + 1))  # of the pools, eight bytes each
    tensors = 3 * (2 * p + t + hourglass) + 7 + indices
    statistics = 3 * channels * (2 * p + t + 2 * depth * r + depth - 1) + 4 * channels
    assert kept == 4 * (tensors * x.numel() + statistics)
