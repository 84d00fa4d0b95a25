"""What the chapter "What kind of mask" states as equations and no other file tests."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from payattn import cost
from payattn.check import kinds_of_mask as own
from payattn.residual import (
    AttentionModule,
    SoftMask,
    channel_activation,
    mixed_activation,
    preactivation_unit,
    spatial_activation,
)

MEAN = 0.530210  # the most that a sigmoid of standardised numbers can have on average
GRADIENTS = [
    (mixed_activation, own.mixed_gradient),
    (channel_activation, own.channel_gradient),
    (spatial_activation, own.spatial_gradient),
]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("channels", [4, 64, 1024])
def test_the_squares_of_a_channel_mask_sum_to_one_so_wide_layers_have_small_masks(channels: int) -> None:
    mask = channel_activation(drawn(2, channels, 3, 5))
    torch.testing.assert_close(mask.square().sum(1), torch.ones(2, 3, 5, dtype=torch.float64))
    assert mask.square().mean().sqrt().item() == pytest.approx(channels**-0.5)
    assert channel_activation(-torch.ones(1, channels, 1, 1)).mean().item() == pytest.approx(-(channels**-0.5))


def test_the_bound_on_the_mean_of_a_spatial_mask_is_that_of_a_parabola_above_the_sigmoid() -> None:
    low, high = -3.81021, 1 / 3.81021
    touch = torch.tensor([[1, low, low**2], [0, 1, 2 * low], [1, high, high**2]], dtype=torch.float64)
    ends = torch.tensor([low, high], dtype=torch.float64).sigmoid()
    a, b, g = torch.linalg.solve(touch, torch.stack([ends[0], ends[0] * (1 - ends[0]), ends[1]]))
    s = torch.linspace(-100, 100, 400_001, dtype=torch.float64)
    assert (a + b * s + g * s**2 >= s.sigmoid() - 1e-9).all()
    assert (a + g).item() == pytest.approx(MEAN, abs=1e-6)


@given(seed=st.integers(0, 999), power=st.sampled_from([1, 3, 5]), sign=st.sampled_from([-1, 1]))
def test_no_logits_bring_the_mean_of_a_spatial_mask_away_from_one_half(seed: int, power: int, sign: int) -> None:
    means = spatial_activation(sign * drawn(3, 4, 5, 6, seed=seed).exp() ** power).mean((2, 3))
    assert ((means > 1 - MEAN) & (means < MEAN)).all()
    few = torch.ones(1, 1, 1, 31, dtype=torch.float64)
    few[..., :2] = 0
    assert MEAN - 1e-4 < spatial_activation(few).mean() < MEAN, "and the bound is reached"


@pytest.mark.parametrize(("open_", "places"), [(1, 5), (1, 2), (3, 4), (30, 31)])
def test_two_levels_of_logits_give_the_two_values_of_the_formula(open_: int, places: int) -> None:
    logits = torch.full((1, 1, 1, places), -7.0, dtype=torch.float64)
    logits[..., :open_] = 93
    mask = spatial_activation(logits).flatten()
    assert (mask[0].item(), mask[-1].item()) == pytest.approx(own.two_levels(open_ / places), abs=1e-6)


def test_the_nearest_masks_of_the_chapter_are_the_best_ones_by_hand() -> None:
    assert own.two_levels(0.5) == pytest.approx((0.7310586, 0.2689414))
    two = channel_activation(torch.tensor([9.0, 9.0, 0.0, 0.0]).view(1, 4, 1, 1)).flatten()
    assert two.tolist() == pytest.approx([0.5**0.5, 0.5**0.5, 0, 0])


@pytest.mark.parametrize(("activation", "gradient"), GRADIENTS, ids=["mixed", "channel", "spatial"])
def test_the_gradients_by_hand_are_those_of_autograd_and_of_differences(activation, gradient) -> None:
    z, g = drawn(2, 3, 2, 3).requires_grad_(), drawn(2, 3, 2, 3, seed=1)
    (auto,) = torch.autograd.grad((g * activation(z)).sum(), z)
    z = z.detach()
    torch.testing.assert_close(gradient(z, g), auto)
    nudges = 1e-6 * torch.eye(z.numel(), dtype=torch.float64).view(-1, *z.shape)
    finite = [(g * (activation(z + e) - activation(z - e))).sum() / 2e-6 for e in nudges]
    torch.testing.assert_close(gradient(z, g), torch.stack(finite).view_as(z), atol=1e-8, rtol=1e-6)


def test_what_a_mask_forgets_gets_no_gradient() -> None:
    z, g = drawn(2, 3, 4, 5), drawn(2, 3, 4, 5, seed=1)
    assert (own.channel_gradient(z, g) * z).sum(1).abs().max() < 1e-12
    of_spatial = own.spatial_gradient(z, g)
    assert of_spatial.sum((2, 3)).abs().max() < 1e-12
    assert (of_spatial * (z - z.mean((2, 3), keepdim=True))).sum((2, 3)).abs().max() < 1e-3
    found = own.channel_gradient(torch.tensor([3.0, 4.0]).view(1, 2, 1, 1), torch.tensor([1.0, 0.0]).view(1, 2, 1, 1))
    assert found.flatten().tolist() == pytest.approx([0.128, -0.096])


def test_the_last_weights_get_no_gradient_along_what_the_mask_forgets() -> None:
    along = {}
    for kind in ("mixed", "channel", "spatial"):
        torch.manual_seed(0)
        branch = SoftMask(8, 1, activation=kind).double()
        weight = branch.head[-1].weight
        weight.data *= 10  # large logits, so that the floor of the deviation does not count
        (gradient,) = torch.autograd.grad((drawn(3, 8, 6, 6) * branch(drawn(3, 8, 6, 6, seed=1))).sum(), weight)
        along[kind] = (gradient * weight).sum((1, 2, 3))
    assert along["channel"].sum().abs() < 1e-10 < along["channel"].abs().max()
    assert along["spatial"].abs().max() < 1e-3 < along["mixed"].abs().max()


@pytest.mark.parametrize(("channels", "side", "depth"), [(64, 32, 3), (128, 16, 2), (16, 8, 1), (8, 64, 5)])
def test_a_unit_and_an_hourglass_cost_what_the_formulas_say(channels: int, side: int, depth: int) -> None:
    with torch.device("meta"):
        unit, mask = preactivation_unit(channels, channels), SoftMask(channels, depth)
    one = cost.multiply_adds(unit, channels, side, side)
    assert one == 17 * channels**2 * side**2 // 16
    assert cost.multiply_adds(mask.body, channels, side, side) == one * own.hourglass_cost(depth)
    assert own.hourglass_cost(depth) < 1 == pytest.approx(own.hourglass_cost(30))
    assert cost.multiply_adds(mask.head, channels, side, side) == 2 * channels**2 * side**2


def seen(branch: SoftMask, side: int, position: int) -> tuple[int, int]:
    """First and last position of a row that a logit depends on, by its gradient."""
    x = drawn(6, 8, side, side).requires_grad_()
    branch.double().eval().logits(x)[:, :, position, position].sum().backward()
    assert x.grad is not None
    places = (x.grad != 0).any(0).any(0).any(0).nonzero().flatten()
    return int(places.min()), int(places.max())


@pytest.mark.parametrize("units", [1, 3])
def test_a_local_mask_sees_one_position_further_per_unit(units: int) -> None:
    torch.manual_seed(0)
    first, last = seen(SoftMask(8, 1, mask="local", local_units=units), 24, 12)
    assert (first, last) == (12 - units, 12 + units)
    assert last - first + 1 == own.local_field(units)
    assert own.units_to_cross(24) == 23


@pytest.mark.parametrize(("side", "depth"), [(32, 1), (32, 2), (32, 3), (33, 2), (64, 2), (31, 1), (8, 1)])
@pytest.mark.parametrize("part", [0.0, 0.5, 0.9])
def test_a_logit_of_the_hourglass_sees_what_the_intervals_say_and_no_more(side: int, depth: int, part: float) -> None:
    torch.manual_seed(0)
    position = int(part * side)
    assert seen(SoftMask(8, depth), side, position) == own.reach(position, side, depth)


def test_with_the_double_skip_the_mask_depends_on_the_trunk_and_without_it_does_not() -> None:
    for double_skip in (False, True):
        torch.manual_seed(0)
        module = AttentionModule(8, 2, double_skip=double_skip).double()
        module.branches(drawn(2, 8, 8, 8)).mask.sum().backward()
        reached = [p for p in module.trunk.parameters() if p.grad is not None and p.grad.abs().max() > 0]
        assert bool(reached) is double_skip


@given(seed=st.integers(0, 99))
def test_the_three_parts_of_a_mask_are_orthogonal_and_sum_to_its_variance(seed: int) -> None:
    mask = drawn(3, 4, 2, 5, seed=seed) + 2 * drawn(4, 1, 1, seed=seed + 1) + drawn(3, 1, 2, 5, seed=seed + 2)
    m = mask.mean()
    alpha, beta = mask.mean((0, 2, 3), keepdim=True) - m, mask.mean(1, keepdim=True) - m
    gamma = mask - m - alpha - beta
    for one, other in ((alpha, beta), (alpha, gamma), (beta, gamma)):
        assert abs((one * other).mean()) < 1e-12
    whole = (mask - m).square().mean()
    parts = tuple((part.square().mean() / whole).item() for part in (alpha, beta, gamma))
    assert own.variance_parts(mask) == pytest.approx(parts)
    assert sum(parts) == pytest.approx(1)


def test_the_variance_of_one_open_corner_falls_into_thirds() -> None:
    assert own.variance_parts(torch.tensor([[1.0, 0.0], [0.0, 0.0]]).view(1, 2, 1, 2)) == pytest.approx((1 / 3,) * 3)


def test_in_a_spatial_mask_no_variance_lies_between_channels() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        x = drawn(4, 16, 12, 12).float()
        modules = {kind: AttentionModule(16, 2, activation=kind).train() for kind in ("mixed", "spatial")}
        masks = {kind: module(x, return_mask=True)[1] for kind, module in modules.items()}
    assert own.variance_parts(masks["spatial"])[0] < 0.01 < own.variance_parts(masks["mixed"])[0]
