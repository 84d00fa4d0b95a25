"""Attention Transfer: maps, losses, distillation, gradient maps, and the objectives a training loop calls.

Numbers in the names (``golden_07``) are those of the golden checks in the specification of Attention Transfer;
``golden_10``, the counts, stands in ``test_wide.py``.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from payattn.checkpoint import load_weights
from payattn.data import Augment, ImageSet, batches
from payattn.models import create
from payattn.train import fit
from payattn.transfer import (
    Distill,
    GradientTransfer,
    activation_loss,
    activation_map,
    adapter,
    at_loss,
    attention_map,
    beta_schedule,
    check_layers,
    code_beta,
    cosine,
    flip,
    gradient_loss,
    hint_adapter,
    hint_loss,
    input_gradient,
    kd_loss,
    layer_shapes,
    map_loss,
    paper_beta,
    resize_map,
    soft_target_loss,
    symmetry_loss,
    tap,
)

# G1: two channels on a 2x2 grid
A = torch.tensor([[[[1, 2], [2, 0]], [[0, -2], [1, 0]]]], dtype=torch.float64)
KINDS = [("sum", 1), ("sum", 2), ("sum", 4), ("max", 1), ("max", 2), ("mean", 2), ("sum", 3), ("sum", 1.5)]
GROUPS = ["group0", "group1", "group2"]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pictures(n: int = 4, side: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, 3, side, side), generator=generator).byte(), torch.arange(n) % 3


def wide(seed: int = 0, name: str = "wrn-10-1", width: float = 0.25) -> Any:
    torch.manual_seed(seed)
    return create(name, 3, width=width)


def authors_map(features: Tensor) -> Tensor:
    """``at(x)`` of the authors' code: mean of squares over channels, flattened, normalised."""
    return F.normalize(features.pow(2).mean(1).view(features.size(0), -1))


def authors_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """``at_loss(x, y)`` of the authors' code."""
    return (authors_map(student) - authors_map(teacher)).pow(2).mean()


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same_state(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# G1, G6: maps


@pytest.mark.parametrize(
    ("reduce", "p", "expected", "norm"),
    [
        ("sum", 1, [1, 4, 3, 0], math.sqrt(26)),
        ("sum", 2, [1, 8, 5, 0], math.sqrt(90)),
        ("sum", 4, [1, 32, 17, 0], math.sqrt(1314)),
        ("max", 1, [1, 2, 2, 0], 3.0),
        ("max", 2, [1, 4, 4, 0], math.sqrt(33)),
    ],
)
def test_golden_01_maps_of_two_channels(reduce: str, p: float, expected: list[float], norm: float) -> None:
    found = activation_map(A, p, reduce)
    assert found.flatten().tolist() == expected
    assert found.norm().item() == pytest.approx(norm)
    torch.testing.assert_close(attention_map(A, p, reduce), found / norm)


@pytest.mark.parametrize("p", [1, 2, 4, 8, 16, 32])
def test_golden_06_roots_of_sum_maps_tend_to_the_largest_channel(p: int) -> None:
    column = torch.tensor([3.0, -2.0, 1.0], dtype=torch.float64).view(1, 3, 1, 1)
    root = activation_map(column, p).item() ** (1 / p)
    expected = {1: 6, 2: 3.741657, 4: 3.146346, 8: 3.014443, 16: 3.000285, 32: 3.000000}[p]
    assert root == pytest.approx(expected, abs=1e-6)
    assert 3 <= root <= 3 ** (1 / p) * 3 + 1e-12


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.float16])
def test_golden_06_the_map_of_a_large_power_shows_one_place(kind: torch.dtype) -> None:
    features = torch.tensor([3.0, 2.9]).view(1, 1, 1, 2).to(kind)
    found = attention_map(features, 256).flatten()
    assert found[0].item() == pytest.approx(1, abs=1e-3)
    assert found[1].item() == pytest.approx((features[..., 1] / features[..., 0]).double().item() ** 256, rel=1e-3)
    assert 0 < found[1] < 1e-3
    tie = attention_map(torch.tensor([3.0, 3.0, 1.0]).view(1, 1, 1, 3).to(kind), 256).flatten()
    assert tie.tolist() == pytest.approx([math.sqrt(0.5), math.sqrt(0.5), 0])


# G2, G3: values and gradients of the loss


@pytest.mark.parametrize(
    ("reduce", "p", "code"),
    [("sum", 2, 0.1310676), ("sum", 1, 0.1077677), ("sum", 4, 0.1551642), ("max", 1, 0.0833333)],
)
def test_golden_02_loss_of_a_flat_student(reduce: str, p: float, code: float) -> None:
    flat = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    assert at_loss(flat, A, p, reduce).item() == pytest.approx(code, abs=5e-8)


def test_golden_02_the_three_forms_and_the_angle() -> None:
    flat = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    assert cosine(activation_map(flat), activation_map(A)).item() == pytest.approx(0.7378648, abs=5e-8)
    assert at_loss(flat, A, form="paper-squared").item() == pytest.approx(0.5242704 / 2, abs=5e-8)
    assert at_loss(flat, A, form="paper").item() == pytest.approx(0.7240652 / 2, abs=5e-8)
    assert at_loss(flat, A).item() == pytest.approx(0.5242704 / 4, abs=5e-8)


def test_golden_03_gradient_of_a_student_with_one_channel() -> None:
    student = torch.tensor([[[[1, 2], [3, 4]]]], dtype=torch.float64, requires_grad=True)
    loss = at_loss(student, A)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.item() == pytest.approx(0.28150489, abs=5e-9)
    expected = [-0.0043680, -0.0797635, -0.0507068, 0.0790039]
    assert gradient.flatten().tolist() == pytest.approx(expected, abs=5e-8)
    assert (gradient * student).sum().item() == pytest.approx(0, abs=1e-15)


@given(seed=st.integers(0, 999))
def test_golden_03_the_gradient_is_that_of_the_equation_and_knows_no_scale(seed: int) -> None:
    student, teacher = drawn(3, 2, 3, 4, seed=seed).requires_grad_(), drawn(3, 5, 3, 4, seed=seed + 1)
    (gradient,) = torch.autograd.grad(at_loss(student, teacher), student)
    torch.testing.assert_close((gradient * student).sum((1, 2, 3)), torch.zeros(3, dtype=torch.float64))
    q = student.detach().square().sum(1).flatten(1)
    s, t = q / q.norm(dim=1, keepdim=True), teacher.square().sum(1).flatten(1)
    t = t / t.norm(dim=1, keepdim=True)
    of_q = 2 / (3 * 12 * q.norm(dim=1, keepdim=True)) * (s * (s * t).sum(1, keepdim=True) - t)
    torch.testing.assert_close(gradient, of_q.view(3, 1, 3, 4) * 2 * student.detach())


@pytest.mark.parametrize("form", ["code", "paper", "paper-squared"])
@pytest.mark.parametrize(("reduce", "p"), KINDS)
def test_golden_03_gradients_are_those_of_finite_differences(reduce: str, p: float, form: str) -> None:
    student = drawn(2, 3, 2, 3)
    student = (student + 0.3 * student.sign()).requires_grad_()  # away from the kink at zero
    teacher = drawn(2, 4, 4, 2, seed=1)

    def loss(x: Tensor) -> Tensor:
        return at_loss(x, teacher, p, reduce, form)

    assert gradcheck(loss, (student,))
    assert gradgradcheck(loss, (student,))


@given(seed=st.integers(0, 999))
def test_the_loss_is_that_of_the_authors_code(seed: int) -> None:
    student, teacher = drawn(3, 2, 4, 5, seed=seed), drawn(3, 6, 4, 5, seed=seed + 1)
    torch.testing.assert_close(at_loss(student, teacher, reduce="mean"), authors_loss(student, teacher))
    one, two = (x.clone().requires_grad_() for x in (student, student))
    at_loss(one, teacher).backward()
    authors_loss(two, teacher).backward()
    torch.testing.assert_close(one.grad, two.grad)


# G4, G5, G7, G8: what changes nothing, and bounds


@given(seed=st.integers(0, 999), p=st.sampled_from([1, 2, 3, 4]), reduce=st.sampled_from(["sum", "mean", "max"]))
def test_golden_04_what_does_not_change_the_map_gives_no_loss(seed: int, p: int, reduce: str) -> None:
    features = drawn(2, 3, 4, 5, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    signs = torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64).view(1, 3, 1, 1)
    scale = drawn(2, 1, 1, 1, seed=seed + 1).exp() * torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
    for other in (
        features,
        features[:, torch.randperm(3, generator=generator)],
        features * signs,
        features * scale,
        features.repeat(1, 2, 1, 1),
        torch.cat([features, torch.zeros_like(features)], dim=1),
    ):
        assert at_loss(other, features, p, reduce).item() == pytest.approx(0, abs=1e-28)
    assert at_loss(drawn(2, 7, 4, 5, seed=seed + 2), features, p, reduce) > 1e-4


@given(seed=st.integers(0, 999), p=st.sampled_from([1, 2, 4]))
def test_golden_05_the_distance_is_bounded_by_the_angle(seed: int, p: int) -> None:
    student, teacher = drawn(3, 2, 3, 4, seed=seed), drawn(3, 5, 3, 4, seed=seed + 1)
    one, two = attention_map(student, p), attention_map(teacher, p)
    squared = (one - two).square().sum((1, 2))
    torch.testing.assert_close(squared, 2 - 2 * cosine(one, two))
    assert ((squared >= 0) & (squared <= 2)).all()
    torch.testing.assert_close(at_loss(student, teacher, p), squared.sum() / (3 * 12))


def test_golden_05_disjoint_maps_are_as_far_as_can_be() -> None:
    left, right = torch.tensor([1.0, 0, 2, 0]).view(1, 1, 2, 2), torch.tensor([0, 3.0, 0, 0]).view(1, 1, 2, 2)
    assert at_loss(left, right).item() == pytest.approx(0.5)
    assert at_loss(left, right, form="paper-squared").item() == pytest.approx(1.0)


@pytest.mark.parametrize("form", ["code", "paper", "paper-squared"])
@pytest.mark.parametrize(("reduce", "p"), KINDS)
def test_golden_05_a_student_of_zeros_gives_no_nan(reduce: str, p: float, form: str) -> None:
    student = torch.zeros(1, 3, 2, 2, requires_grad=True)
    loss = at_loss(student, A.float(), p, reduce, form)
    loss.backward()
    assert loss.item() == pytest.approx({"code": 1 / 4, "paper": 1 / 2, "paper-squared": 1 / 2}[form])
    assert student.grad is not None
    assert torch.equal(student.grad, torch.zeros_like(student))


@given(seed=st.integers(0, 999))
def test_golden_07_mean_and_sum_over_channels_and_the_batch(seed: int) -> None:
    student, teacher = drawn(4, 2, 3, 4, seed=seed), drawn(4, 5, 3, 4, seed=seed + 1)
    loss = at_loss(student, teacher)
    assert abs(at_loss(student, teacher, reduce="mean") - loss) < 1e-12
    torch.testing.assert_close(at_loss(student.repeat(2, 1, 1, 1), teacher.repeat(2, 1, 1, 1)), loss)
    halves = [at_loss(student[k : k + 2], teacher[k : k + 2]) for k in (0, 2)]
    torch.testing.assert_close(halves[0] + halves[1], 2 * loss)


@pytest.mark.parametrize("form", ["code", "paper"])
def test_golden_08_maps_and_losses_mirror(form: str) -> None:
    student, teacher = drawn(2, 3, 4, 5), drawn(2, 2, 4, 5, seed=1)
    assert torch.equal(activation_map(flip(student)), flip(activation_map(student)))
    loss = at_loss(student, teacher, form=form)
    torch.testing.assert_close(at_loss(flip(student), flip(teacher), form=form), loss)
    assert abs(at_loss(flip(student), teacher, form=form) - loss) > 1e-4
    assert torch.equal(flip(student)[..., 0, :], student[..., 0, :].flip(-1))  # the width, not the height


# Forms and weights


@given(seed=st.integers(0, 999), beta=st.floats(1, 1e4))
def test_the_conversion_of_beta_gives_the_same_loss(seed: int, beta: float) -> None:
    student, teacher = drawn(3, 2, 4, 5, seed=seed), drawn(3, 5, 4, 5, seed=seed + 1)
    converted = paper_beta(beta, (4, 5), batch=3)
    squared = at_loss(student, teacher, form="paper-squared")
    torch.testing.assert_close(beta * at_loss(student, teacher), converted * squared)
    assert code_beta(converted, (4, 5), batch=3) == pytest.approx(beta)


@pytest.mark.parametrize(
    ("side", "batch_summed", "batch_averaged", "largest"),
    [(32, 0.00763, 0.977, 1.95), (16, 0.0305, 3.91, 7.81), (8, 0.122, 15.6, 31.25), (7, None, 20.4, 40.8)],
)
def test_one_beta_weighs_small_maps_most(
    side: int, batch_summed: float | None, batch_averaged: float, largest: float
) -> None:
    if batch_summed is not None:
        assert paper_beta(1e3, (side, side), 128) / 2 == pytest.approx(batch_summed, rel=3e-3)
    assert paper_beta(1e3, (side, side), 1) / 2 == pytest.approx(batch_averaged, rel=3e-3)
    corners = torch.zeros(2, 1, 1, side, side)
    corners[0, ..., 0, 0], corners[1, ..., -1, -1] = 1, 1
    assert 1e3 * at_loss(corners[0], corners[1]).item() == pytest.approx(largest, rel=3e-3)


def test_the_slopes_of_code_and_paper_form_meet_at_the_factor_of_the_docstring() -> None:
    student, teacher = drawn(1, 2, 3, 4).requires_grad_(), drawn(1, 5, 3, 4, seed=1)
    slopes = [torch.autograd.grad(at_loss(student, teacher, form=form), student)[0] for form in ("code", "paper")]
    distance = (attention_map(student) - attention_map(teacher)).norm().item()
    torch.testing.assert_close(slopes[0], 4 * distance / 12 * slopes[1])


def test_the_paper_form_has_slope_zero_where_the_maps_are_equal() -> None:
    student = drawn(2, 3, 4, 5).requires_grad_()
    at_loss(student, student.detach(), form="paper").backward()
    assert student.grad is not None
    assert student.grad.abs().max() == 0


def test_schedules_of_beta() -> None:
    assert [beta_schedule("constant", 5, e, 4) for e in (1, 4)] == [5, 5]
    assert [beta_schedule("linear", 8, e, 4) for e in (1, 2, 3, 4)] == [8, 6, 4, 2]
    steps = [beta_schedule("step", 100, e, 200, milestones=(60, 120)) for e in (59, 60, 119, 120, 200)]
    assert steps == pytest.approx([100, 20, 20, 4, 4])
    assert [beta_schedule("constant", 5, e, 100, start=60) for e in (59, 60)] == [0, 5]
    with pytest.raises(ValueError, match="did you mean 'linear'"):
        beta_schedule("lineer", 1, 1, 1)
    with pytest.raises(ValueError, match=r"counts from 1 to epochs=4, got 5"):
        beta_schedule("linear", 1, 5, 4)
    with pytest.raises(ValueError, match="go together"):
        beta_schedule("step", 1, 1, 4)
    with pytest.raises(ValueError, match="go together"):
        beta_schedule("linear", 1, 1, 4, milestones=(2,))


# G9: sizes


def test_golden_09_maps_are_pooled_not_features() -> None:
    features = torch.tensor([[[[1.0, -1.0], [1.0, -1.0]]]], dtype=torch.float64, requires_grad=True)
    assert resize_map(activation_map(features), (1, 1)).item() == 1
    assert attention_map(features, size=(1, 1)).item() == 1
    assert attention_map(resize_map(features, (1, 1))).item() == 0, "signed features cancel"
    assert at_loss(features, torch.ones(1, 1, 1, 1, dtype=torch.float64)).item() == 0


def test_maps_shrink_by_areas_and_grow_bilinearly() -> None:
    maps = torch.arange(16.0).view(1, 4, 4)
    assert resize_map(maps, (2, 2)).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert resize_map(torch.tensor([[[0.0, 4.0]]]), (1, 4)).flatten().tolist() == [0, 1, 3, 4]
    both = resize_map(maps, (2, 8))
    assert both.shape == (1, 2, 8)
    torch.testing.assert_close(both[0, 0, 0], torch.tensor(2.0))
    assert resize_map(maps[:, None], (2, 2)).shape == (1, 1, 2, 2)


def test_of_two_sizes_the_smaller_or_the_larger_counts() -> None:
    student, teacher = drawn(2, 3, 8, 2), drawn(2, 2, 4, 4, seed=1)
    pooled = [resize_map(activation_map(x), (4, 2)) for x in (student, teacher)]
    torch.testing.assert_close(at_loss(student, teacher), map_loss(*pooled))
    grown = [resize_map(activation_map(x), (8, 4)) for x in (student, teacher)]
    torch.testing.assert_close(at_loss(student, teacher, resize="larger"), map_loss(*grown))
    assert abs(map_loss(*pooled) - map_loss(*grown)) > 1e-6
    with pytest.raises(ValueError, match=re.escape("the student's map is (8, 2) and the teacher's (4, 4)")):
        at_loss(student, teacher, resize="error")


# G11: distillation

Y_S, Y_T = (torch.tensor([v], dtype=torch.float64) for v in ([1.0, 2.0, 3.0], [2.0, 2.0, 4.0]))
LABEL = torch.tensor([2])


def test_golden_11_distillation_of_three_logits() -> None:
    student = Y_S.clone().requires_grad_()
    soft = soft_target_loss(student, Y_T)
    assert soft.item() == pytest.approx(0.10310656, abs=5e-9)
    assert soft.item() / 16 == pytest.approx(0.006444160, abs=5e-10)
    (gradient,) = torch.autograd.grad(soft, student)
    assert gradient.flatten().tolist() == pytest.approx([-0.0791736, 0.2097089, -0.1305352], abs=5e-8)
    assert kd_loss(Y_S, Y_T, LABEL, alpha=0).item() == pytest.approx(0.40760596, abs=5e-9)
    assert kd_loss(Y_S, Y_T, LABEL).item() == pytest.approx(0.13355650, abs=5e-9)
    assert kd_loss(Y_S, Y_T, LABEL, form="historic").item() == pytest.approx(0.10262453, abs=5e-9)
    assert torch.equal(kd_loss(Y_S, Y_T, LABEL, alpha=0), F.cross_entropy(Y_S, LABEL))
    assert soft_target_loss(Y_S, Y_S).item() == pytest.approx(0, abs=1e-15)


@given(seed=st.integers(0, 999), tau=st.floats(0.5, 10))
def test_golden_11_distillation_is_that_of_the_authors_code(seed: int, tau: float) -> None:
    y, t, labels = drawn(4, 5, seed=seed).requires_grad_(), drawn(4, 5, seed=seed + 1), torch.tensor([0, 4, 2, 2])
    p, q = F.log_softmax(y / tau, dim=1), F.softmax(t / tau, dim=1)
    now = F.kl_div(p, q, reduction="sum") * tau**2 / 4 * 0.7 + F.cross_entropy(y, labels) * 0.3
    then = F.kl_div(p, q, reduction="none").mean() * (tau * tau * 2.0 * 0.7) + F.cross_entropy(y, labels) * 0.3
    torch.testing.assert_close(kd_loss(y, t, labels, tau, 0.7), now)
    torch.testing.assert_close(kd_loss(y, t, labels, tau, 0.7, "historic"), then)
    (gradient,) = torch.autograd.grad(soft_target_loss(y, t, tau), y)
    torch.testing.assert_close(gradient, (tau / 4 * (p.exp() - q)).detach())
    assert gradcheck(lambda y: kd_loss(y, t, labels, tau, 0.7), (y,))


def test_distillation_in_half_precision_is_computed_in_float32() -> None:
    student = torch.tensor([[900.0, -900.0]], dtype=torch.float16, requires_grad=True)
    loss = kd_loss(student, -student.detach(), torch.tensor([1]), temperature=1)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(1800)
    assert student.grad is not None
    assert student.grad.isfinite().all()


# Full activations and hints


@pytest.mark.parametrize("form", ["code", "paper", "paper-squared"])
def test_full_activations_are_compared_at_unit_length(form: str) -> None:
    student, teacher = drawn(2, 3, 4, 5).requires_grad_(), drawn(2, 3, 4, 5, seed=1)
    one, two = (F.normalize(x.flatten(1)) for x in (student, teacher))
    squared = (one - two).square().sum(1)
    expected = {"code": squared.mean() / 60, "paper": squared.sqrt().mean() / 2, "paper-squared": squared.sum() / 2}
    torch.testing.assert_close(activation_loss(student, teacher, form), expected[form])
    assert gradcheck(lambda x: activation_loss(x, teacher, form), (student,))
    assert activation_loss(3 * teacher, teacher, form).item() == pytest.approx(0, abs=1e-12)
    assert activation_loss(-teacher, teacher, form) > 0.01, "signs count, unlike in a map"
    assert activation_loss(drawn(2, 3, 8, 10), teacher, form).isfinite()


def test_a_hint_is_a_mean_square_and_its_adapter_meets_the_size() -> None:
    student, teacher = drawn(2, 3, 4, 5).requires_grad_(), drawn(2, 3, 4, 5, seed=1)
    torch.testing.assert_close(hint_loss(student, teacher), (student - teacher).square().mean())
    assert gradcheck(lambda x: hint_loss(x, teacher), (student,))
    for mine, theirs, kernel in [
        ((8, 6, 4), (5, 6, 4), (1, 1)),
        ((8, 6, 4), (5, 3, 2), (3, 3)),
        ((8, 3, 2), (5, 6, 4), (4, 4)),
        ((8, 7, 9), (5, 5, 5), (3, 5)),
    ]:
        regress = hint_adapter(mine, theirs)
        assert regress[0].kernel_size == kernel
        assert regress(torch.rand(2, *mine)).shape == (2, *theirs)
        assert (regress(torch.rand(2, *mine)) >= 0).all()
    with pytest.raises(ValueError, match=re.escape("no hint from features (5, 7, 7) to smaller ones (8, 5, 5)")):
        hint_adapter((8, 5, 5), (5, 7, 7))
    assert isinstance(adapter(4, 4), nn.Identity)
    convolution: Any = adapter(4, 6)
    assert convolution.weight.shape == (6, 4, 1, 1)
    assert convolution.bias is not None


# G12, G13: gradient maps


class LinearNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(2, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


def smooth(seed: int = 0, channels: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = (nn.Conv2d(3, channels, 3, padding=1), nn.Softplus(), nn.Conv2d(channels, 3, 1), nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(*layers, nn.Flatten()).double()


def test_golden_12_second_backward_pass_of_a_linear_softmax_net() -> None:
    net, x, label = LinearNet(), torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([0])
    gradient = input_gradient(net, x, label, create_graph=True)
    assert gradient.flatten().tolist() == pytest.approx([-0.2689414, 0.2689414], abs=5e-8)
    penalty = gradient_loss(gradient)
    assert 2 * penalty.item() == pytest.approx(0.1446590, abs=5e-8)
    (of_weight,) = torch.autograd.grad(penalty, net.weight)
    expected = [-0.0334247, -0.0723295, 0.0334247, 0.0723295]
    assert of_weight.flatten().tolist() == pytest.approx(expected, abs=5e-8)


@given(seed=st.integers(0, 999))
def test_golden_12_the_second_gradient_is_that_of_the_closed_form(seed: int) -> None:
    net, x, label = LinearNet(), drawn(1, 2, seed=seed), torch.tensor([1])
    net.weight.data = drawn(2, 2, seed=seed + 1)
    (of_weight,) = torch.autograd.grad(gradient_loss(input_gradient(net, x, label, create_graph=True)), net.weight)
    weight = net.weight.detach()
    p = F.softmax(x @ weight.T, 1)[0]
    d = p - torch.tensor([0.0, 1.0])
    j = weight.T @ d
    h = torch.diag(p) - torch.outer(p, p)
    torch.testing.assert_close(of_weight, torch.outer(d, j) + torch.outer(h @ weight @ j, x[0]))


@pytest.mark.parametrize("form", ["squared", "paper", "normalised"])
def test_golden_12_gradients_of_all_weights_are_those_of_finite_differences(form: str) -> None:
    net, other = smooth(), smooth(seed=1)
    images, labels = torch.rand(2, 3, 3, 4, dtype=torch.float64), torch.tensor([0, 2])
    of_teacher = input_gradient(other, images, labels)
    names, weights = zip(*((n, w.detach().clone().requires_grad_()) for n, w in net.named_parameters()), strict=True)

    def loss(*weights: Tensor) -> Tensor:
        def model(x: Tensor) -> Tensor:
            return torch.func.functional_call(net, dict(zip(names, weights, strict=True)), (x,))

        wrapped: Any = nn.Module()
        wrapped.forward = model
        gradient = input_gradient(wrapped, images, labels, create_graph=True)
        return F.cross_entropy(model(images), labels) + gradient_loss(gradient, of_teacher, form)

    assert gradcheck(loss, weights)


def test_golden_13_a_copy_of_the_teacher_has_nothing_to_learn_from_it() -> None:
    teacher, (images, labels) = smooth(), pictures()
    student = copy.deepcopy(teacher)
    gradients = [input_gradient(net, images.double() / 255, labels) for net in (student, teacher)]
    assert gradient_loss(*gradients) == 0
    assert gradient_loss(gradients[0], input_gradient(smooth(seed=1), images.double() / 255, labels)) > 1e-8


def test_golden_13_a_symmetric_net_has_no_loss_of_symmetry() -> None:
    net: Any = smooth(channels=5)
    images, labels = torch.rand(3, 3, 5, 6, dtype=torch.float64), torch.tensor([0, 2, 1])

    def loss(**options: Any) -> Tensor:
        pair = [input_gradient(net, x, labels) for x in (images, flip(images))]
        return symmetry_loss(*pair, **options)

    assert loss() > 1e-6
    net[0].weight.data = (net[0].weight.data + flip(net[0].weight.data)) / 2
    assert loss().item() < 1e-15
    assert loss(form="paper").item() < 1e-15


def test_golden_13_the_mean_of_losses_makes_j_smaller_by_the_batch() -> None:
    net, images, labels = smooth(), torch.rand(5, 3, 4, 4, dtype=torch.float64), torch.arange(5) % 3
    x = images.clone().requires_grad_()
    (of_mean,) = torch.autograd.grad(F.cross_entropy(net(x), labels), x)
    torch.testing.assert_close(5 * of_mean, input_gradient(net, images, labels))


def test_the_forms_of_the_gradient_loss() -> None:
    one, two = drawn(3, 3, 2, 2), drawn(3, 3, 2, 2, seed=1)
    lengths = (one - two).flatten(1).norm(dim=1)
    torch.testing.assert_close(gradient_loss(one, two), lengths.square().mean() / 2)
    torch.testing.assert_close(gradient_loss(one, two, "paper"), lengths.mean() / 2)
    expected = (F.normalize(one.flatten(1)) - F.normalize(two.flatten(1))).square().mean()
    torch.testing.assert_close(gradient_loss(one, two, "normalised"), expected)
    torch.testing.assert_close(gradient_loss(one), one.square().sum((1, 2, 3)).mean() / 2)


def test_the_derivative_the_paper_prints_is_that_of_the_squared_form() -> None:
    net, images, labels = smooth(), torch.rand(1, 3, 3, 3, dtype=torch.float64), torch.tensor([1])
    gradient = input_gradient(net, images, labels, create_graph=True)
    difference = (gradient - input_gradient(smooth(seed=1), images, labels)).detach()
    weight = net[0].weight
    (printed,) = torch.autograd.grad(gradient, weight, difference, retain_graph=True)  # (J_S - J_T) d2L / dW dx
    (squared,) = torch.autograd.grad(gradient_loss(gradient, gradient.detach() - difference), weight)
    torch.testing.assert_close(squared, printed)


def test_the_gradient_of_an_image_does_not_depend_on_the_rest_of_the_batch() -> None:
    net, (images, labels) = wide(), pictures()
    modes = [part.training for part in net.modules()]
    before = state_of(net)
    together = input_gradient(net, images, labels)
    alone = input_gradient(net, images[1:2], labels[1:2])
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-7)
    assert [part.training for part in net.modules()] == modes
    assert same_state(net, before)
    assert all(p.grad is None for p in net.parameters())


# G15: half precision


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", ["code", "paper"])
@pytest.mark.parametrize(("reduce", "p"), KINDS)
def test_golden_15_half_precision_neither_overflows_nor_gives_nan(
    reduce: str, p: float, form: str, kind: torch.dtype
) -> None:
    for values in ([300.0, 1.0, -250.0, 0.0], [0.0] * 4, [6e4, 6e4, 1.0, -6e4], [1e-4, 0.0, 2e-4, 0.0]):
        student = torch.tensor(values).view(1, 1, 2, 2).to(kind).requires_grad_()
        loss = at_loss(student, A.to(kind), p, reduce, form)
        loss.backward()
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        assert student.grad is not None
        assert student.grad.isfinite().all()
        exact = at_loss(student.detach().double(), A, p, reduce, form)
        torch.testing.assert_close(loss.detach().double(), exact, rtol=1e-5, atol=1e-7)


def test_golden_15_under_autocast_the_loss_is_that_of_float32() -> None:
    student, teacher = drawn(2, 3, 4, 4).float(), drawn(2, 3, 4, 4, seed=1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(at_loss(student, teacher), at_loss(student, teacher))
        inside = at_loss(student, teacher), activation_loss(student, teacher), hint_loss(student, teacher)
    outside = at_loss(student, teacher), activation_loss(student, teacher), hint_loss(student, teacher)
    assert inside == outside
    assert all(loss.dtype == torch.float32 for loss in inside)


@pytest.mark.parametrize("p", [2, 3, 4, 64, 256])
def test_a_large_power_of_large_features_stays_finite_and_exact(p: int) -> None:
    student = (1e4 * drawn(2, 3, 4, 5).float()).requires_grad_()
    loss = at_loss(student, drawn(2, 2, 4, 5, seed=1).float(), p)
    loss.backward()
    exact = (1e4 * drawn(2, 3, 4, 5).float()).double().requires_grad_()
    at_loss(exact, drawn(2, 2, 4, 5, seed=1), p).backward()
    assert student.grad is not None and exact.grad is not None
    torch.testing.assert_close(student.grad.double() * 1e4, exact.grad * 1e4, rtol=2e-3, atol=1e-6)


# No loss silently has no gradient: the student's gets one, the teacher's none

PAIRED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "at code": at_loss,
    "at paper": lambda s, t: at_loss(s, t, form="paper"),
    "at paper-squared": lambda s, t: at_loss(s, t, form="paper-squared"),
    "at max": lambda s, t: at_loss(s, t, 1, "max"),
    "at resized": lambda s, t: at_loss(s[..., :2], t),
    "maps": lambda s, t: map_loss(activation_map(s), activation_map(t)),
    "activation": activation_loss,
    "hint": hint_loss,
    "soft targets": lambda s, t: soft_target_loss(s.flatten(1), t.flatten(1)),
    "distillation": lambda s, t: kd_loss(s.flatten(1), t.flatten(1), torch.tensor([0, 1])),
    "gradient": gradient_loss,
    "gradient paper": lambda s, t: gradient_loss(s, t, "paper"),
    "gradient normalised": lambda s, t: gradient_loss(s, t, "normalised"),
}


@pytest.mark.parametrize("name", PAIRED)
def test_the_student_gets_a_gradient_and_the_teacher_none(name: str) -> None:
    student, teacher = drawn(2, 3, 4, 5).requires_grad_(), drawn(2, 3, 4, 5, seed=1).requires_grad_()
    PAIRED[name](student, teacher).backward()
    assert student.grad is not None
    assert student.grad.abs().max() > 0
    assert teacher.grad is None


def test_both_images_of_the_symmetry_loss_get_a_gradient() -> None:
    one, two = drawn(2, 3, 4, 5).requires_grad_(), drawn(2, 3, 4, 5, seed=1).requires_grad_()
    symmetry_loss(one, two).backward()
    assert one.grad is not None and two.grad is not None
    torch.testing.assert_close(one.grad, -flip(two.grad))
    assert one.grad.abs().max() > 0


# Reading layers


class InPlace(nn.Module):
    """A convolution whose output the next layer overwrites."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        return self.relu(self.conv(images)).mean((2, 3))


def test_layers_are_read_in_one_pass_and_the_network_is_left_as_found() -> None:
    net, (images, _) = wide().eval(), pictures()
    with tap(net, GROUPS) as found:
        logits = net(images)
    assert torch.equal(logits, net(images))
    for name, expected in net.stages(images).items():
        assert torch.equal(found[name], expected)
    assert all(not part._forward_hooks for part in net.modules())
    with pytest.raises(RuntimeError, match="boom"), tap(net, GROUPS):
        raise RuntimeError("boom")
    assert all(not part._forward_hooks for part in net.modules())


def test_a_layer_that_cannot_be_read_says_why() -> None:
    net, images = InPlace(), torch.rand(2, 3, 5, 5)
    with pytest.raises(ValueError, match="'conv' is changed in place"), tap(net, ["conv"]):
        net(images)
    with tap(net, ["relu"]) as found:
        net(images)
    assert (found["relu"] >= 0).all()
    with pytest.raises(ValueError, match="'relu' was called 2 times"), tap(net, ["relu"]):
        net(images), net(images)
    with pytest.raises(ValueError, match="'relu' was called 0 times"), tap(net, ["relu"]):
        pass
    flat = wide()
    with pytest.raises(ValueError, match=r"'head' puts out \(4, 3\)"), tap(flat, ["head"]):
        flat(pictures()[0])


def test_a_wrong_layer_name_lists_the_candidates_with_their_shapes() -> None:
    net = wide()
    modes = [part.training for part in net.train().modules()]
    before = state_of(net)
    with pytest.raises(ValueError, match="no layer") as caught:
        check_layers(net, ["group0", "grup1"], "the teacher")
    message = str(caught.value)
    assert message.startswith(
        "the teacher has no layer 'grup1'; did you mean 'group1'? layers at 32x32: group1 (8, 16, 16)"
    )
    assert "group2 (16, 8, 8)" in message
    assert "head" not in message
    assert [part.training for part in net.modules()] == modes
    assert same_state(net, before)
    with pytest.raises(TypeError, match=re.escape("write ['group0']")):
        check_layers(net, "group0")
    small: Any = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))  # takes no image of 32 px
    with pytest.raises(ValueError, match=r"no layer 'conv'; layers: 0, 1$"):
        check_layers(small, ["conv"])


def test_shapes_of_layers_are_those_of_the_forward_pass() -> None:
    net = wide()
    shapes = layer_shapes(net, (12, 8))
    for name, features in net.eval().stages(torch.rand(1, 3, 12, 8)).items():
        assert shapes[name] == tuple(features.shape[1:])
    assert "head" not in shapes and "normalize" in shapes


# Distill


def distill(**options: Any) -> Any:
    """A wider teacher with settled batch norm, and a student."""
    teacher, student = wide(seed=5, width=0.5), wide(seed=6)
    with torch.no_grad():
        teacher.train()(pictures(16, 8, seed=9)[0])
    student.train()
    return Distill(teacher.eval(), student, **({"layers": GROUPS} | options))


def test_the_loss_is_the_sum_that_the_equations_say() -> None:
    images, labels = pictures()
    objective = distill(beta=30.0, kd=0.3, temperature=2.0)
    found, logits = objective.loss(images, labels)
    student, teacher = copy.deepcopy(objective.student), objective.teacher
    mine, theirs = student.stages(images), teacher.stages(images)
    transfer = sum(authors_loss(mine[name], theirs[name]) for name in GROUPS)
    expected = kd_loss(student(images), teacher(images), labels, 2.0, 0.3) + 30 * transfer
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(logits, student(images))
    torch.testing.assert_close(objective.last["group1"], authors_loss(mine["group1"], theirs["group1"]).detach())
    assert not any(value.requires_grad for value in objective.last.values())


def test_golden_14_the_teacher_stays_as_it_is_bit_for_bit() -> None:
    objective = distill(kd=0.5)
    teacher, (images, labels) = objective.teacher.train(), pictures()
    teacher.stem.weight.requires_grad_(False)
    modes, learns = [m.training for m in teacher.modules()], [p.requires_grad for p in teacher.parameters()]
    before, student_before = state_of(teacher), state_of(objective.student)
    optimizer = torch.optim.SGD(objective.student.parameters(), lr=0.1)
    objective.loss(images, labels)[0].backward()
    optimizer.step()
    assert same_state(teacher, before)
    assert all(p.grad is None for p in teacher.parameters())
    assert [m.training for m in teacher.modules()] == modes
    assert [p.requires_grad for p in teacher.parameters()] == learns
    assert all(not part._forward_hooks for net in (teacher, objective.student) for part in net.modules())
    after = objective.student.state_dict()
    assert all(not torch.equal(after[n], student_before[n]) for n, _ in objective.student.named_parameters())
    assert not torch.equal(after["norm.running_mean"], student_before["norm.running_mean"])


def test_the_teacher_is_read_in_evaluation_mode_whatever_its_mode() -> None:
    objective, (images, labels) = distill(kd=0.5), pictures()
    student = copy.deepcopy(objective.student.state_dict())
    one = objective.loss(images, labels)[0]
    objective.teacher.train()
    objective.student.load_state_dict(student)
    assert torch.equal(objective.loss(images, labels)[0], one)


def test_golden_14_without_weights_the_update_is_that_of_cross_entropy() -> None:
    images, labels = pictures()
    objective = distill(beta=0.0, kd=0.0)
    plain = copy.deepcopy(objective.student)
    loss = objective.loss(images, labels)[0]
    expected = F.cross_entropy(plain(images), labels)
    loss.backward()
    expected.backward()
    assert torch.equal(loss, expected)
    for p, q in zip(objective.student.parameters(), plain.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None
        assert torch.equal(p.grad, q.grad)


TRANSFERS: dict[str, dict[str, Any]] = {
    "attention": {},
    "attention, paper": {"form": "paper"},
    "attention, max": {"p": 1, "reduce": "max"},
    "activation": {"transfer": "activation"},
    "hint": {"transfer": "hint", "layers": ["group1"], "size": (8, 8)},
    "distillation": {"layers": (), "kd": 1.0},
    "pairs of two sizes": {"layers": [("group2", "group1"), ("group1", "group2")]},
}


@pytest.mark.parametrize("name", TRANSFERS)
def test_every_transfer_teaches_the_student_and_not_the_teacher(name: str) -> None:
    objective, (images, labels) = distill(**TRANSFERS[name]), pictures()
    loss, logits = objective.loss(images, labels)
    transfer = loss - F.cross_entropy(logits, labels)  # so that what is left comes from the teacher
    transfer.backward()
    learned = [p for n, p in objective.student.named_parameters() if n.startswith(("stem", "group0", "group1.0.conv0"))]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in learned)
    assert all(p.grad is None for p in objective.teacher.parameters())
    assert len(objective.parameters()) == {"activation": 6, "hint": 4}.get(name, 0)
    for p in objective.parameters():
        assert p.grad is not None


def test_full_activations_go_through_learned_adapters_of_the_same_start() -> None:
    one, two, (images, labels) = distill(transfer="activation"), distill(transfer="activation"), pictures()
    convolution = one.adapters[2]
    assert convolution.weight.shape == (32, 16, 1, 1)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))
    loss, logits = one.loss(images, labels)
    mine, theirs = two.student.stages(images), two.teacher.stages(images)
    transfer = sum(activation_loss(two.adapters[k](mine[g]), theirs[g]) for k, g in enumerate(GROUPS))
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels) + 1e3 * transfer)


def test_adapters_have_a_seed_of_their_own() -> None:
    plain, starts = distill(), []
    for seed, elsewhere in [(0, 1), (0, 2), (3, 1)]:
        torch.manual_seed(elsewhere)
        state = torch.get_rng_state()
        made = Distill(plain.teacher, plain.student, GROUPS, transfer="activation", seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        starts.append(made.parameters()[0])
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_inside_the_block_the_adapters_belong_to_the_student() -> None:
    objective = distill(transfer="activation")
    before = list(objective.student.state_dict())
    with objective:
        names = [name for name, _ in objective.student.named_parameters()]
        assert "transfer_adapters.0.weight" in names
    assert list(objective.student.state_dict()) == before
    with distill() as plain:
        assert list(plain.student.state_dict()) == before


def test_beta_follows_its_schedule_and_zero_asks_no_teacher() -> None:
    objective, (images, labels) = distill(beta=100.0, schedule="linear", start=2), pictures()
    asked = []
    objective.teacher.register_forward_hook(lambda *_: asked.append(1))
    for epoch, beta in [(1, 0), (2, 75), (4, 25)]:
        objective.start_epoch(epoch, 4)
        assert objective.beta_now == beta
        objective.loss(images, labels)
    assert len(asked) == 2


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("name", ["attention", "activation", "hint", "pairs of two sizes"])
def test_cached_and_uncached_losses_are_the_same(name: str, index: bool) -> None:
    images, labels = pictures(9)
    objective = distill(**(TRANSFERS[name] | {"kd": 0.5}))
    objective.student.eval()
    drawn_at = torch.tensor([7, 0, 3, 3])
    batch = images[drawn_at], labels[drawn_at]
    plain = objective.loss(*batch)[0]
    objective.cache(images, batch_size=4)
    asked = []
    objective.teacher.register_forward_hook(lambda *_: asked.append(1))
    channels_last = batch[0].to(memory_format=torch.channels_last)
    cached = objective.loss(channels_last, batch[1], index=drawn_at if index else None)[0]
    assert not asked
    torch.testing.assert_close(cached, plain, rtol=1e-5, atol=1e-6)
    wrong = objective.taught(images[:4]).layers
    right = objective.taught(batch[0]).layers
    assert all(not torch.allclose(wrong[g], right[g]) for g in right), "else any index would do"
    objective.forget()
    objective.loss(*batch)
    assert asked


def test_the_memory_of_a_cache_is_as_stated() -> None:
    images, _ = pictures(9, side=16)
    maps = 16 * 16 + 8 * 8 + 4 * 4
    assert distill().cache(images) == 9 * (4 * maps + 16)
    assert distill(kd=0.1).cache(images) == 9 * (4 * (maps + 3) + 16)
    full = 8 * 16 * 16 + 16 * 8 * 8 + 32 * 4 * 4
    assert distill(transfer="activation").cache(images) == 9 * (4 * full + 16)


def test_a_cache_refuses_images_it_has_not_seen() -> None:
    images, labels = pictures(6)
    objective = distill()
    with pytest.raises(ValueError, match="nothing is cached"):
        objective.loss(images[:2], labels[:2], index=torch.tensor([0, 1]))
    objective.cache(images)
    for other in (flip(images), images[:, :, 1:], images.float() / 255, 255 - images):
        with pytest.raises(ValueError, match="not the images of the cache"):
            objective.taught(other)
    with pytest.raises(ValueError, match="not the images of the cache"):
        objective.taught(images[:2], torch.tensor([1, 0]))
    with pytest.raises(ValueError, match="cache needs images"):
        objective.cache(images[:0])


def test_what_cannot_be_distilled_is_refused() -> None:
    teacher, student = wide(), wide(seed=1)
    for options, message in [
        ({"layers": ["group0", "group9"]}, "the teacher has no layer 'group9'; did you mean 'group"),
        ({"layers": [("group0", "gruop0")]}, "the student has no layer 'gruop0'; did you mean 'group0'"),
        ({"layers": [("group0", "group1"), ("group1", "group1")]}, "each layer of the student may stand once"),
        ({"layers": [("group0", "group1", "group2")]}, "pairs"),
        ({"layers": ()}, "nothing to transfer"),
        ({"kd": 1.5}, "kd must lie in"),
        ({"beta": -1.0}, "beta must be 0 or more"),
        ({"beta": float("nan")}, "beta must be 0 or more"),
        ({"temperature": 0}, "temperature must be positive"),
        ({"p": 0.5}, "p at least 1"),
        ({"reduce": "summ"}, "did you mean 'sum'"),
        ({"form": "cod"}, "did you mean 'code'"),
        ({"transfer": "hints"}, "did you mean 'hint'"),
        ({"schedule": "step"}, "go together"),
        ({"start": 0}, "start is an epoch"),
    ]:
        with pytest.raises(ValueError, match=message):
            Distill(teacher, student, **({"layers": GROUPS} | options))
    with pytest.raises(TypeError, match=re.escape("write ['group0']")):
        Distill(teacher, student, "group0")
    with pytest.raises(ValueError, match="share parameters"):
        Distill(teacher, teacher, GROUPS)
    sharing = wide()
    sharing.head = teacher.head
    with pytest.raises(ValueError, match="share parameters"):
        Distill(teacher, sharing, GROUPS)
    with pytest.raises(ValueError, match="another student"):
        Distill(teacher, student, GROUPS).loss(*pictures(), model=wide())


def test_a_transfer_that_teaches_nothing_is_an_error() -> None:
    objective, (images, labels) = distill(layers=["group0"]), pictures()
    for name, p in objective.student.named_parameters():
        p.requires_grad_(name.startswith(("group1", "group2", "norm", "head")))
    with pytest.raises(ValueError, match="the transfer loss of 'group0' has no gradient"):
        objective.loss(images, labels)
    with torch.no_grad():
        assert objective.loss(images, labels)[0].isfinite()


def test_a_wrapper_around_the_student_is_called_in_its_place() -> None:
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module
            self.calls = 0

        def forward(self, images: Tensor) -> Tensor:
            self.calls += 1
            return self.module(images)

    objective, (images, labels) = distill(), pictures()
    wrapper = Wrapper(objective.student)
    plain = distill().loss(images, labels)[0]
    torch.testing.assert_close(objective.loss(images, labels, model=wrapper)[0], plain)
    assert wrapper.calls == 1


def test_shapes_that_do_not_fit_are_refused() -> None:
    a, b = drawn(2, 3, 4, 4), drawn(3, 3, 4, 4)
    for call, message in [
        (lambda: activation_map(a[0]), "must be floating (N, C, H, W), got (3, 4, 4) float64"),
        (lambda: activation_map(a.long()), "got (2, 3, 4, 4) int64"),
        (lambda: activation_map(a, 0.5), "p must be at least 1, got 0.5"),
        (lambda: activation_map(a, 2, "mx"), "did you mean 'max'"),
        (lambda: at_loss(a, b), "of the same N >= 1 images, got (2, 4, 4) and (3, 4, 4)"),
        (lambda: map_loss(a[:0, 0], a[:0, 0]), "of the same N >= 1 images, got (0, 4, 4)"),
        (lambda: at_loss(a, a, form="papr"), "did you mean 'paper'"),
        (lambda: at_loss(a, a, resize="small"), "did you mean 'smaller'"),
        (lambda: cosine(a, b), "maps must have one shape"),
        (lambda: kd_loss(a[0, 0], b[0, 0, :, :2], LABEL), "got (4, 4) of the student and (4, 2) of the teacher"),
        (lambda: soft_target_loss(Y_S, Y_T, 0), "temperature must be positive"),
        (lambda: soft_target_loss(Y_S, Y_T, form="old"), "valid: 'current', 'historic'"),
        (lambda: kd_loss(Y_S, Y_T, LABEL, alpha=2), "alpha must lie in [0, 1], got 2"),
        (lambda: activation_loss(a, a[:, :2]), "send the student's through an adapter"),
        (lambda: hint_loss(a, a[..., :2]), "a hint needs features of one size"),
        (lambda: gradient_loss(a, b), "J must have one shape"),
        (lambda: gradient_loss(a, None, "normalised"), "teaches nothing"),
        (lambda: symmetry_loss(a, b), "J must have one shape"),
        (lambda: symmetry_loss(a, a, "normalised"), "valid: 'squared', 'paper'"),
        (lambda: paper_beta(1, (0, 4), 1), "size must be (H, W)"),
        (lambda: code_beta(1, (4, 4), 0), "all at least 1"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            call()


# GradientTransfer


def gradient_student(name: str = "nin-thin-nobn", seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return create(name, 3, width=0.1)


@pytest.mark.parametrize("kind", ["gradient", "min-l2", "symmetry"])
@pytest.mark.parametrize("name", ["nin-thin-nobn", "nin-thin"])
def test_gradient_objectives_are_the_sums_that_the_equations_say(kind: str, name: str) -> None:
    student, teacher, (images, labels) = gradient_student(name), gradient_student("nin-wide", seed=1), pictures()
    before = state_of(teacher.train())
    objective = GradientTransfer(student, teacher if kind == "gradient" else None, kind=kind, beta=3.0)
    loss, logits = objective.loss(images, labels)
    j = input_gradient(student, images, labels)
    other = {
        "gradient": input_gradient(teacher.eval(), images, labels),
        "min-l2": torch.zeros_like(j),
        "symmetry": flip(input_gradient(student, flip(images), labels)),
    }[kind]
    expected = F.cross_entropy(logits, labels) + 3 * (j - other).square().sum((1, 2, 3)).mean() / 2
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(logits, copy.deepcopy(student)(images))
    (loss - F.cross_entropy(logits, labels)).backward()
    for key, p in student.named_parameters():
        if key.endswith("weight") and "bn" not in key:
            assert p.grad is not None and p.grad.abs().max() > 0, key
    assert all(p.grad is None for p in teacher.parameters())
    assert kind != "gradient" or same_state(teacher, before)


def test_the_output_term_of_symmetry_is_off_unless_it_is_asked_for() -> None:
    student, (images, labels) = gradient_student(), pictures()
    one, two = (
        GradientTransfer(student, kind="symmetry", beta=1.0, output_weight=w).loss(images, labels)[0]
        for w in (0.0, 2.0)
    )
    outputs = (student(images) - student(flip(images))).square().sum(1).mean() / 2
    torch.testing.assert_close(two - one, 2 * outputs, rtol=1e-3, atol=1e-6)


def test_gradient_objectives_that_cannot_be_are_refused() -> None:
    student, teacher = gradient_student(), gradient_student(seed=1)
    for options, message in [
        ({}, "kind='gradient' needs a teacher"),
        ({"kind": "min-l2", "teacher": teacher}, "kind='min-l2' has no teacher"),
        ({"kind": "min-l2", "form": "normalised"}, "belongs to kind='gradient'"),
        ({"teacher": teacher, "output_weight": 1.0}, "belongs to kind='symmetry'"),
        ({"kind": "symetry"}, "did you mean 'symmetry'"),
        ({"teacher": student}, "one network"),
    ]:
        with pytest.raises(ValueError, match=message):
            GradientTransfer(student, **options)  # type: ignore[arg-type]

    class Blind(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.zeros(len(images), 3)

    with pytest.raises(ValueError, match="do not depend on the images"):
        input_gradient(Blind(), *pictures())


def test_at_beta_zero_a_gradient_objective_is_cross_entropy() -> None:
    student, (images, labels) = gradient_student(), pictures()
    loss, logits = GradientTransfer(student, kind="min-l2", beta=0.0).loss(images, labels)
    assert torch.equal(loss, F.cross_entropy(logits, labels))


# With the training loop


def small_set(n: int = 12) -> ImageSet:
    return ImageSet(*pictures(n), classes=("a", "b", "c"))


QUICK: dict[str, Any] = {"batch_size": 4, "lr": 0.01, "amp": "off", "progress": False}


def test_fit_takes_an_objective_and_gives_the_same_numbers_as_a_loop_by_hand() -> None:
    objective, data = distill(kd=0.5, beta=10.0, schedule="linear"), small_set()
    student = copy.deepcopy(objective.student)
    before = state_of(objective.teacher)
    history = fit(objective.student, data, loss=objective, epochs=2, schedule="constant", **QUICK)
    by_hand = Distill(objective.teacher, student.train(), GROUPS, kd=0.5, beta=10.0)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    generator, losses = torch.Generator().manual_seed(0), []
    for epoch in (1, 2):
        by_hand.beta_now = 10.0 * (1 - (epoch - 1) / 2)
        of_epoch = []
        for images, labels in batches(data, 4, generator=generator):
            loss, _ = by_hand.loss(images.to(memory_format=torch.channels_last), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            of_epoch.append(loss.item())
        losses.append(sum(of_epoch) / 3)
    assert history.curve("loss") == pytest.approx(losses, rel=1e-4)
    assert same_state(objective.teacher, before)
    assert all(not part._forward_hooks for part in objective.student.modules())


def test_fit_with_a_cache_is_fit_without_and_augmentation_is_refused() -> None:
    data, curves = small_set(), []
    for cached in (False, True):
        objective = distill(kd=0.5)
        if cached:
            objective.cache(data)
        curves.append(fit(objective.student, data, loss=objective, epochs=2, **QUICK).curve("loss"))
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)
    with pytest.raises(ValueError, match="not the images of the cache"):
        fit(objective.student, data, loss=objective, epochs=1, augment=Augment(pad=2), **QUICK)
    assert all(not part._forward_hooks for part in objective.student.modules())


def test_fit_trains_the_adapters_resumes_exactly_and_leaves_the_student_as_found(tmp_path: Path) -> None:
    data, file = small_set(), tmp_path / "run.safetensors"
    curves = []
    for stop in (False, True):
        objective = distill(transfer="activation", schedule="linear")
        names, first = list(objective.student.state_dict()), objective.adapters[0].weight.detach().clone()
        if stop:
            with pytest.raises(KeyboardInterrupt):
                fit(objective.student, data, loss=objective, epochs=3, checkpoint=file, on_epoch=interrupt, **QUICK)
            objective = distill(transfer="activation", schedule="linear")
        checkpoint = {"checkpoint": file} if stop else {}
        curves.append(fit(objective.student, data, loss=objective, epochs=3, **checkpoint, **QUICK).curve("loss"))
        assert list(objective.student.state_dict()) == names
        assert not torch.equal(objective.adapters[0].weight, first)
    assert curves[0] == curves[1]
    load_weights(wide(), file)
    other = distill(transfer="activation", schedule="linear", beta=5.0)
    with pytest.raises(ValueError, match=r"loss beta was 1000\.0 and is now 5\.0"):
        fit(other.student, data, loss=other, epochs=3, checkpoint=file, **QUICK)


def interrupt(record: dict[str, Any]) -> None:
    raise KeyboardInterrupt


def test_the_maps_of_the_student_come_closer_to_the_teachers() -> None:
    data = small_set(16)

    def similarity(objective: Any) -> float:
        maps = [net.eval()(data.images, return_maps=True)[1] for net in (objective.student, objective.teacher)]
        return sum(cosine(maps[0][g], maps[1][g]).mean().item() for g in GROUPS) / 3

    ends = []
    for beta in (0.0, 1e3):
        objective = distill(beta=beta)
        start = similarity(objective)
        fit(objective.student, data, loss=objective, epochs=10, **(QUICK | {"batch_size": 8}))
        ends.append(similarity(objective))
    assert ends[1] > max(ends[0], start) + 0.005


@pytest.mark.parametrize("kind", ["min-l2", "symmetry"])
def test_fit_takes_a_gradient_objective(kind: str) -> None:
    data, ends = small_set(), []
    for beta in (0.0, 3.0):
        student = gradient_student()
        objective = GradientTransfer(student, kind=kind, beta=beta)
        fit(student, data, loss=objective, epochs=4, **QUICK)
        measured = GradientTransfer(student, kind=kind)
        measured.loss(data.images, data.labels)
        ends.append(measured.last[kind].item())
    assert ends[1] < 0.5 * ends[0]


def test_what_only_one_process_can_do_is_refused_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("payattn.distributed.size", lambda: 2)
    for objective in (
        distill(transfer="activation"), distill(form="paper-squared"), GradientTransfer(wide(), kind="min-l2")
    ):  # fmt: skip
        with pytest.raises(ValueError, match="for one process"), objective:
            pass
    with distill(kd=0.5):
        pass
