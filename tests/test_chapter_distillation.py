"""What the chapter "Distillation, hints and activations" states as equations and no other file tests."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from payattn.check.distillation import (
    activation_distance,
    adapter_parameters,
    asked,
    explained,
    first_pull,
    hint_floor,
    historic_ratio,
    limit_loss,
    mixed_target,
    soft_gradient,
    soft_loss,
)
from payattn.models import create
from payattn.transfer import (
    Distill,
    activation_loss,
    at_loss,
    hint_adapter,
    hint_loss,
    kd_loss,
    layer_shapes,
    soft_target_loss,
)

GROUPS = ["group0", "group1", "group2"]
SEEDS = st.integers(0, 10_000)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------ predictions


@given(SEEDS, st.floats(0.3, 30))
def test_softening_keeps_the_order_and_takes_the_root_of_the_odds(seed: int, tau: float) -> None:
    y = drawn(7, seed=seed)
    sharp, soft = y.softmax(0), (y / tau).softmax(0)
    assert torch.equal(sharp.argsort(), soft.argsort())
    torch.testing.assert_close(soft[0] / soft[1], (sharp[0] / sharp[1]) ** (1 / tau))
    same = soft_target_loss(y[None], y[None] + 3, tau)  # a shift is no difference
    assert abs(same) < 1e-12


@given(SEEDS, st.sampled_from([0.5, 1.0, 4.0]))
def test_the_gradient_of_softened_predictions_is_their_difference(seed: int, tau: float) -> None:
    student, teacher = drawn(3, 5, seed=seed).requires_grad_(), drawn(3, 5, seed=seed + 1)
    for loss in (soft_loss, soft_target_loss):
        (gradient,) = torch.autograd.grad(loss(student, teacher, tau), student)
        torch.testing.assert_close(gradient, soft_gradient(student.detach(), teacher, tau))
    torch.testing.assert_close(gradient.sum(1), torch.zeros(3, dtype=torch.float64))


@given(SEEDS)
def test_for_a_large_temperature_distillation_is_a_regression_of_centred_logits(seed: int) -> None:
    student, teacher = drawn(4, 6, seed=seed), drawn(4, 6, seed=seed + 1)
    limit = limit_loss(student, teacher)
    torch.testing.assert_close(soft_target_loss(student, teacher, 1e4), limit, rtol=1e-3, atol=0)
    torch.testing.assert_close(limit_loss(student + 1, teacher - 2), limit)
    centred = (student - teacher) - (student - teacher).mean(1, keepdim=True)
    torch.testing.assert_close(soft_gradient(student, teacher, 1e5), centred / 24, rtol=1e-2, atol=1e-5)


def test_the_historic_weight_falls_with_the_number_of_classes() -> None:
    assert math.isclose(historic_ratio(1000), 0.288)
    assert math.isclose(historic_ratio(10), 28.8)
    for classes in (2, 10, 1000):
        student, teacher = drawn(3, classes), drawn(3, classes, seed=1)
        ratio = soft_target_loss(student, teacher, form="historic") / soft_target_loss(student, teacher)
        assert math.isclose(ratio, 2 / classes)


def test_the_first_pulls_are_gradients_at_a_uniform_student() -> None:
    for classes in (10, 1000):
        soft, hard = first_pull(classes, confidence=0.9, temperature=4.0)
        odds = math.log(0.9 * (classes - 1) / 0.1)
        teacher = torch.zeros(1, classes, dtype=torch.float64)
        teacher[0, 0] = odds
        assert math.isclose(teacher.softmax(1)[0, 0], 0.9)
        student = torch.zeros(1, classes, dtype=torch.float64, requires_grad=True)
        (whole,) = torch.autograd.grad(kd_loss(student, teacher, torch.tensor([0])), student)
        torch.testing.assert_close(whole[0], 0.9 * soft + 0.1 * hard)


@given(SEEDS, st.floats(0, 1))
def test_at_temperature_one_distillation_rests_at_the_mixed_target(seed: int, alpha: float) -> None:
    teacher, labels = drawn(3, 4, seed=seed), torch.tensor([0, 3, 1])
    student = drawn(3, 4, seed=seed + 1).requires_grad_()
    (gradient,) = torch.autograd.grad(kd_loss(student, teacher, labels, 1.0, alpha), student)
    torch.testing.assert_close(gradient, (student.detach().softmax(1) - mixed_target(teacher, labels, alpha)) / 3)


@given(SEEDS, st.floats(0, 1))
def test_an_ignorant_teacher_is_label_smoothing(seed: int, alpha: float) -> None:
    student, labels = drawn(5, 7, seed=seed), torch.arange(5)
    smoothed = F.cross_entropy(student, labels, label_smoothing=alpha)
    taught = kd_loss(student, torch.zeros(5, 7, dtype=torch.float64), labels, 1.0, alpha)
    torch.testing.assert_close(taught, smoothed - alpha * math.log(7))


# ---------------------------------------------------------------------------------------------- activations and hints


@given(SEEDS)
def test_the_distance_of_activations_is_that_of_the_package(seed: int) -> None:
    student, teacher = drawn(3, 4, 2, 5, seed=seed), drawn(3, 4, 2, 5, seed=seed + 1)
    torch.testing.assert_close(activation_distance(student, teacher), activation_loss(student, teacher))
    assert activation_loss(student, teacher) <= 4 / (4 * 10)
    torch.testing.assert_close(activation_loss(-teacher, teacher).item(), 4 / (4 * 10))


@pytest.mark.parametrize(("small", "large"), [("wrn-16-1", "wrn-16-2"), ("wrn-16-1", "wrn-40-1")])
def test_the_parameters_of_adapters_are_counted(small: str, large: str) -> None:
    student, teacher = create(small, width=0.5), create(large, width=0.5)
    learned, taught = layer_shapes(student), layer_shapes(teacher)
    expected = sum(adapter_parameters(learned[g][0], taught[g][0]) for g in GROUPS)
    adapters = Distill(teacher, student, GROUPS, transfer="activation").parameters()
    assert sum(p.numel() for p in adapters) == expected


@given(SEEDS)
def test_an_adapter_explains_what_is_affine_and_no_more(seed: int) -> None:
    student, matrix = drawn(4, 3, 3, 2, seed=seed), drawn(5, 3, seed=seed + 1)
    affine = torch.einsum("dc,bchw->bdhw", matrix, student) + 2
    torch.testing.assert_close(explained(student, affine).item(), 1.0)
    other = drawn(4, 5, 3, 2, seed=seed + 2)
    share = explained(student, other).item()
    assert 0 <= share < 1
    adapter = nn.Conv2d(3, 5, 1).double()  # any adapter leaves at least so much
    left = (adapter(student) - other).square().sum() / (other - other.mean((0, 2, 3), keepdim=True)).square().sum()
    assert left >= 1 - share - 1e-9


def test_an_adapter_can_fit_everything_while_the_map_stays_wrong() -> None:
    student = torch.tensor([[3.0, 0.0], [0.0, 1.0]]).view(1, 2, 1, 2).requires_grad_()
    teacher = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    loss = activation_loss(student[:, 1:], teacher)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.item() == 0 and gradient.abs().max() == 0
    assert math.isclose(at_loss(student, teacher).item(), 1 - 1 / math.sqrt(82), rel_tol=1e-6)


@given(SEEDS)
def test_a_regressor_that_ends_in_relu_has_a_floor(seed: int) -> None:
    teacher = drawn(2, 3, 4, 4, seed=seed).float()
    torch.testing.assert_close(hint_loss(teacher.relu(), teacher), hint_floor(teacher))
    torch.manual_seed(seed)
    regressed = hint_adapter((2, 4, 4), (3, 4, 4))(drawn(2, 2, 4, 4, seed=seed + 1).float())
    assert hint_loss(regressed, teacher) >= hint_floor(teacher)


def test_what_a_loss_asks_is_counted_from_the_shapes() -> None:
    assert asked(3, 4, 10) == {"softened predictions": 9, "map": 3, "full activations": 11, "hint": 12}
    teacher = drawn(1, 3, 2, 2)
    for scale in (2.0, 0.5):  # one number, the scale, is free in the map and in full activations, not in a hint
        assert at_loss(scale * teacher, teacher) < 1e-15 and activation_loss(scale * teacher, teacher) < 1e-15
        assert hint_loss(scale * teacher, teacher) > 0.01


@given(SEEDS)
def test_a_map_of_squares_is_blind_to_rotations_of_the_channels_and_to_nothing_that_moves(seed: int) -> None:
    features = drawn(2, 4, 3, 3, seed=seed)
    turn = torch.linalg.qr(drawn(4, 4, seed=seed + 1))[0]
    assert at_loss(torch.einsum("dc,bchw->bdhw", turn, features), features) < 1e-15
    assert at_loss(features.roll(1, dims=3), features) > 1e-6
