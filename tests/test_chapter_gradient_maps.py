"""What the chapter "Gradient maps and double backpropagation" states as equations and no other file tests."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from payattn.check.gradient_maps import gradient_along, passes, two_terms, two_weight_gradient
from payattn.models import create
from payattn.transfer import GradientTransfer, gradient_loss, input_gradient

NUMBER = st.floats(-3, 3).map(lambda value: round(value, 2))


@given(w=NUMBER, v=NUMBER, x=NUMBER, target=NUMBER)
def test_the_second_gradient_of_two_weights_is_that_of_autograd(w: float, v: float, x: float, target: float) -> None:
    weights = torch.tensor([w, v], dtype=torch.float64, requires_grad=True)
    pixel = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    loss = (weights.prod() * pixel - target).square() / 2
    (j,) = torch.autograd.grad(loss, pixel, create_graph=True)
    (second,) = torch.autograd.grad(j.square() / 2, weights)
    assert second.tolist() == pytest.approx(two_weight_gradient(w, v, x, target), abs=1e-9)


def test_the_worked_numbers_of_two_weights() -> None:
    assert two_weight_gradient(2, 3, 1, 5) == (126, 84)


def small(*parts: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3), *parts, nn.Conv2d(4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*layers).double()


def pictures() -> tuple[Tensor, Tensor]:
    return torch.rand(2, 3, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), torch.tensor([2, 0])


class Summed(nn.Module):
    def __init__(self, net: nn.Module, labels: Tensor) -> None:
        super().__init__()
        self.net, self.labels = net, labels

    def forward(self, x: Tensor) -> Tensor:
        return F.cross_entropy(self.net(x), self.labels, reduction="sum")


def second(net: nn.Module, x: Tensor, labels: Tensor) -> list[Tensor]:
    """Autograd's gradient of the sum over images of half the square of J."""
    penalty = len(x) * gradient_loss(input_gradient(net, x, labels, create_graph=True))
    found = torch.autograd.grad(penalty, list(net.parameters()), allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for w, g in zip(net.parameters(), found, strict=True)]


def test_the_second_gradient_is_a_difference_of_first_gradients() -> None:
    net, (x, labels) = small(nn.Softplus()), pictures()
    along = gradient_along(Summed(net, labels), x, input_gradient(net, x, labels), 1e-5)
    for one, two in zip(along, second(net, x, labels), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("part", [nn.ReLU(), nn.Softplus(), nn.Sequential(nn.ReLU(), nn.MaxPool2d(2, 1))])
def test_the_second_gradient_has_two_sources(part: nn.Module) -> None:
    net, (x, labels) = small(part), pictures()
    chain, curvature = two_terms(net, x, labels)
    for one, two, both in zip(chain, curvature, second(net, x, labels), strict=True):
        torch.testing.assert_close(one + two, both)
    assert max(g.abs().max() for g in chain) > 1e-4
    assert max(g.abs().max() for g in curvature) > 1e-4


def test_with_relu_no_logit_is_curved_in_the_images_but_its_slope_depends_on_the_weights() -> None:
    net, (x, labels) = small(nn.ReLU(), nn.MaxPool2d(2, 1)), pictures()
    x.requires_grad_()
    (slope,) = torch.autograd.grad(net(x)[:, 0].sum(), x, create_graph=True)
    curved = torch.autograd.grad(slope.square().sum(), x, allow_unused=True, retain_graph=True)[0]
    assert curved is None or curved.abs().max() == 0
    of_weight, of_bias = torch.autograd.grad(slope.square().sum(), [net[0].weight, net[0].bias], allow_unused=True)
    assert of_weight is not None
    assert of_weight.abs().max() > 1e-4
    assert of_bias is None or of_bias.abs().max() == 0, "a bias moves no slope"
    j = input_gradient(net, x, labels, create_graph=True)
    assert torch.autograd.grad(j.square().sum(), net[0].bias)[0].abs().max() > 1e-6, "through the softmax it does"


def coupling(net: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    losses = F.cross_entropy(net(x), labels, reduction="none")
    rows = [torch.autograd.grad(one, x, retain_graph=True)[0].flatten(1).norm(dim=1) for one in losses]
    return torch.stack(rows)


def test_batch_norm_in_training_mode_couples_images_and_running_statistics_do_not() -> None:
    net, (x, labels) = small(nn.BatchNorm2d(4), nn.ReLU()), pictures()
    beside = ~torch.eye(2, dtype=torch.bool)
    assert coupling(net.train(), x, labels)[beside].min() > 1e-4
    assert coupling(net.eval(), x, labels)[beside].max() == 0
    together, alone = (input_gradient(net.train(), part, labels[: len(part)]) for part in (x, x[:1]))
    torch.testing.assert_close(together[:1], alone)


@pytest.mark.parametrize("kind", ["min-l2", "symmetry", "gradient"])
def test_the_cost_of_a_step_is_the_counted_passes(kind: str) -> None:
    student, x, labels = create("nin-thin-nobn", width=0.1), torch.rand(2, 3, 12, 12), torch.tensor([0, 1])
    teacher = create("nin-wide", width=0.1) if kind == "gradient" else None

    def count(step: Any) -> int:
        with FlopCounterMode(display=False) as counter:
            step()
        return int(counter.get_total_flops())

    forward = count(lambda: student(x))
    times = 0.0 if teacher is None else count(lambda: teacher(x)) / forward
    objective = GradientTransfer(student, teacher, kind=kind)
    assert count(lambda: objective.loss(x, labels)[0].backward()) / forward == pytest.approx(passes(kind, times))
    plain = count(lambda: F.cross_entropy(student(x.requires_grad_()), labels).backward())
    assert plain / forward == pytest.approx(passes("plain"))


def test_a_gradient_without_a_graph_changes_nothing_and_the_objective_keeps_the_graph() -> None:
    net, (x, labels) = small(nn.ReLU()), pictures()

    def step(penalty: Any) -> list[Tensor]:
        student = copy.deepcopy(net)
        (F.cross_entropy(student(x), labels) + 1000 * penalty(student)).backward()
        return [w.grad for w in student.parameters() if w.grad is not None]

    plain = step(lambda student: 0)
    forgotten = step(lambda student: gradient_loss(input_gradient(student, x, labels)))
    kept = step(lambda student: gradient_loss(input_gradient(student, x, labels, create_graph=True)))
    assert all(torch.equal(a, b) for a, b in zip(plain, forgotten, strict=True))
    assert not all(torch.allclose(a, b) for a, b in zip(plain, kept, strict=True))
