"""The equations of the chapter "Attention for your own CNN"."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from payattn.check.own_cnn import gate_gradient, kept, receptive_field, side
from payattn.residual import residual_fusion


@pytest.mark.parametrize(
    ("n", "kernel", "stride", "padding"), [(24, 7, 2, 3), (12, 3, 2, 1), (3, 3, 2, 1), (9, 2, 2, 0)]
)
def test_the_side_is_that_of_a_convolution_and_of_a_pool(n: int, kernel: int, stride: int, padding: int) -> None:
    x = torch.zeros(1, 1, n, n)
    assert nn.Conv2d(1, 1, kernel, stride, padding)(x).shape[2] == side(n, kernel, stride, padding)
    assert nn.MaxPool2d(kernel, stride, padding)(x).shape[2] == side(n, kernel, stride, padding)


@pytest.mark.parametrize("layers", [[(3, 1), (3, 2), (3, 1)], [(7, 2), (3, 2), (3, 1)], [(5, 3), (1, 1), (2, 2)]])
def test_the_receptive_field_is_where_the_gradient_is_not_zero(layers: list[tuple[int, int]]) -> None:
    convolutions = [nn.Conv2d(1, 1, kernel, stride, bias=False) for kernel, stride in layers]
    net = nn.Sequential(*convolutions)
    for convolution in convolutions:
        nn.init.ones_(convolution.weight)
    images = torch.ones(1, 1, 80, 80, requires_grad=True)
    found = net(images)
    field, jump = receptive_field(layers)
    starts = []
    for k in (0, 1):
        (gradient,) = torch.autograd.grad(found[0, 0, k, 0], images, retain_graph=True)
        rows = gradient[0, 0].abs().sum(1).nonzero().flatten()
        assert len(rows) == field
        starts.append(int(rows[0]))
    assert starts[1] - starts[0] == jump


def test_the_gradients_of_a_gated_mask_are_those_of_autograd() -> None:
    generator = torch.Generator().manual_seed(0)
    features, mask, g = (torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    for start in (0.0, 0.7):
        gamma = torch.tensor(start, dtype=torch.float64)
        leaves = [x.clone().requires_grad_() for x in (gamma, mask, features)]
        fused = residual_fusion(leaves[2], leaves[0] * leaves[1])
        for found, expected in zip(
            torch.autograd.grad((g * fused).sum(), leaves), gate_gradient(features, mask, gamma, g), strict=True
        ):
            torch.testing.assert_close(found, expected)


def test_running_statistics_forget_by_a_tenth_in_each_step() -> None:
    norm = nn.BatchNorm2d(1)
    before = copy.deepcopy(norm.running_mean)
    norm.running_mean.fill_(4.0)
    batch = torch.full((2, 1, 3, 3), 1.0)
    for steps in range(1, 6):
        norm(batch)
        torch.testing.assert_close(norm.running_mean, torch.tensor([1.0 + kept(steps) * 3.0]))
    assert before == 0
