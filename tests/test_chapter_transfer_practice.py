"""What the chapter "Transfer in practice" states as equations and no other file tests."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from payattn import cost
from payattn.check.transfer_practice import (
    basic_block,
    best_of,
    cache_bytes,
    distilled_target,
    joint_loss,
    pairs_by_size,
    rescaled_beta,
    running_after,
    size_shares,
    standard_error,
    transfer_share,
)
from payattn.models import create
from payattn.transfer import Distill, at_loss, kd_loss, layer_shapes, tap


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("batches", [1, 3, 20])
def test_running_statistics_move_by_the_formula_even_without_gradients(batches: int) -> None:
    norm = nn.BatchNorm2d(1).double().train()
    norm.running_mean.fill_(2.0)  # type: ignore[union-attr]
    x = drawn(4, 1, 3, 3)
    with torch.no_grad():
        for _ in range(batches):
            norm(x)
    expected = running_after(2.0, x.mean().item(), batches)
    assert norm.running_mean.item() == pytest.approx(expected)  # type: ignore[union-attr,operator]


def test_a_copy_of_the_teacher_has_no_loss_on_the_same_view_and_a_floor_on_another() -> None:
    torch.manual_seed(0)
    net = create("wrn-10-1", 3, width=0.25).eval()
    images = torch.rand(4, 3, 16, 16)

    def features(x: Tensor) -> Tensor:
        with torch.no_grad(), tap(net, ["group0"]) as found:
            net(x)
        return found["group0"]

    here, there = features(images[..., 2:]), features(images[..., :-2])
    assert at_loss(here, features(images[..., 2:])) == 0
    assert at_loss(here, there) > 1e-5
    common = [here[..., 3:-5], there[..., 5:-3]]  # the same pixels, away from the borders
    assert at_loss(*common).item() == pytest.approx(0, abs=1e-9)


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=5))
def test_shares_of_maps_are_those_of_the_largest_losses(sizes: list[tuple[int, int]]) -> None:
    largest = torch.stack([at_loss(*_disjoint(size)) if size != (1, 1) else torch.tensor(2.0) for size in sizes])
    torch.testing.assert_close(size_shares(sizes), (largest / largest.sum()).double(), rtol=1e-5, atol=1e-7)


def _disjoint(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    left, right = torch.zeros(1, 1, *size), torch.zeros(1, 1, *size)
    left[..., 0, 0], right[..., -1, -1] = 1, 1
    return left, right


@pytest.mark.parametrize("points", [1, 2, 3, 8])
def test_the_rescaled_beta_keeps_the_total_weight(points: int) -> None:
    student, teacher = drawn(2, 3, 4, 4), drawn(2, 5, 4, 4, seed=1)
    one = at_loss(student, teacher)
    torch.testing.assert_close(rescaled_beta(1000, points) * sum([one] * points), 3 * 1000 * one)


def test_the_joint_loss_is_that_of_one_process_and_a_sum_multiplies_beta() -> None:
    student, teacher = drawn(8, 3, 4, 4), drawn(8, 5, 4, 4, seed=1)
    whole = at_loss(student, teacher)
    counts = torch.tensor([5, 3])
    parts = torch.stack([at_loss(s, t) for s, t in zip(student.split([5, 3]), teacher.split([5, 3]), strict=True)])
    torch.testing.assert_close(joint_loss(parts, counts), whole)
    halves = [at_loss(s, t) for s, t in zip(student.split(4), teacher.split(4), strict=True)]
    torch.testing.assert_close(halves[0] + halves[1], 2 * whole)


@pytest.mark.parametrize(("accuracy", "images"), [(0.8, 50), (0.5, 7)])
def test_the_standard_error_is_that_of_the_binomial_distribution(accuracy: float, images: int) -> None:
    hits = range(images + 1)
    chance = [math.comb(images, k) * accuracy**k * (1 - accuracy) ** (images - k) for k in hits]
    variance = sum(p * (k / images - accuracy) ** 2 for k, p in zip(hits, chance, strict=True))
    assert standard_error(accuracy, images) == pytest.approx(math.sqrt(variance))


@pytest.mark.parametrize(
    ("candidates", "expected"), [(1, 0), (2, 1 / math.sqrt(math.pi)), (3, 1.5 / math.sqrt(math.pi))]
)
def test_the_best_of_several_equals_is_expected_above_all_of_them(candidates: int, expected: float) -> None:
    assert best_of(candidates) == pytest.approx(expected, abs=1e-6)
    assert drawn(20_000, candidates).amax(1).mean().item() == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("kd", [0.0, 0.9])
def test_the_cache_takes_what_the_formula_says(kd: float) -> None:
    torch.manual_seed(0)
    teacher, student = (create("wrn-10-1", 7, width=0.25) for _ in range(2))
    distill = Distill(teacher, student, ["group0", "group2"], kd=kd)
    assert distill.cache(torch.rand(5, 3, 12, 16)) == cache_bytes(5, [(12, 16), (3, 4)], 7 if kd else 0)


def test_a_basic_block_has_the_parameters_of_the_formula_and_the_typo_two_blocks_more() -> None:
    resnet = pytest.importorskip("torchvision.models.resnet")
    assert cost.parameters(resnet.BasicBlock(512, 512)) == basic_block(512)
    with torch.device("meta"):
        correct, typed = (resnet.ResNet(resnet.BasicBlock, [3, 4, 6, n]) for n in (3, 5))
    norms = 2 * (128 + 256 + 512)
    assert cost.parameters(correct) == 21_797_672
    assert cost.parameters(typed) - norms == 21_797_672 - norms + 2 * basic_block(512) == 31_237_160


@given(seed=st.integers(0, 999), alpha=st.floats(0.05, 0.95))
def test_no_prediction_has_a_smaller_distillation_loss_than_the_mixture(seed: int, alpha: float) -> None:
    teacher, labels = drawn(3, 4, seed=seed), torch.tensor([0, 3, 1])
    best = distilled_target(teacher.softmax(1), labels, alpha).log().requires_grad_()
    loss = kd_loss(best, teacher, labels, temperature=1.0, alpha=alpha)
    (gradient,) = torch.autograd.grad(loss, best)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)
    other = best.detach() + 0.1 * drawn(3, 4, seed=seed + 1)
    assert kd_loss(other, teacher, labels, temperature=1.0, alpha=alpha) >= loss


def test_the_teachers_share_of_a_step() -> None:
    assert transfer_share(1, 1) == 1 / 4
    with torch.device("meta"):
        one, two = (cost.multiply_adds(create(name), 3, 32, 32) for name in ("wrn-16-1", "wrn-16-2"))
    assert transfer_share(one, two) == pytest.approx(101.11 / (3 * 26.66 + 101.11), abs=1e-3)


def test_pairs_by_size_can_be_distilled() -> None:
    torch.manual_seed(0)
    teacher, student = create("wrn-10-1", 3, width=0.25), create("nin-thin", 3, width=0.25)
    shapes = [
        {name: shape for name, shape in layer_shapes(net, (16, 16)).items() if "." not in name}
        for net in (teacher, student)
    ]
    pairs = pairs_by_size(*shapes)
    assert pairs == [("group0", "group0"), ("group1", "group1"), ("norm", "group2")]
    loss, _ = Distill(teacher, student, pairs).loss(torch.rand(2, 3, 16, 16), torch.tensor([0, 1]))
    assert loss.isfinite()
