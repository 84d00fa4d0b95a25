"""What the chapter "The mask branch" states as equations and no other file tests."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from payattn.check.mask_branch import (
    aligned_weights,
    contrast_gain,
    fusion_gradients,
    mask_shares,
    mask_sizes,
    mask_units,
)
from payattn.residual import AttentionModule, MaskScale, SoftMask, max_pool, preactivation_unit, resize

SIDES = st.integers(1, 40)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_unit_by_hand_lets_negative_numbers_pass_through_its_shortcut() -> None:
    unit: Any = preactivation_unit(4, 4).eval()
    with torch.no_grad():
        unit.conv1.weight.fill_(1.0)
        unit.conv2.weight.fill_(0.5)
        unit.conv3.weight.copy_(torch.tensor([1.0, 0, -1, 0]).view(4, 1, 1, 1))
        out = unit(torch.tensor([-2.0, 3, 0, 1]).view(1, 4, 1, 1)).flatten()
    assert out.tolist() == pytest.approx([0, 3, -2, 1], abs=1e-3)


@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, st.integers(1, 4))
def test_the_sizes_of_the_exercise_are_those_of_the_pool(height: int, width: int, depth: int) -> None:
    x, found = torch.zeros(1, 1, height, width), [(height, width)]
    for _ in range(depth):
        x = max_pool(x)
        found.append((x.shape[2], x.shape[3]))
    assert mask_sizes(height, width, depth) == found


@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, st.integers(0, 10**6))
def test_two_matrices_of_aligned_weights_resize_as_the_package_does(
    h: int, w: int, high: int, wide: int, s: int
) -> None:
    a = drawn(2, 3, h, w, seed=s)
    rows, columns = aligned_weights(h, high).double(), aligned_weights(w, wide).double()
    torch.testing.assert_close(rows @ a @ columns.T, resize(a, (high, wide)), atol=1e-5, rtol=1e-5)


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3))
def test_the_recursion_of_units_is_the_closed_form_and_the_module(depth: int, r: int) -> None:
    with torch.device("meta"):
        found = sum(hasattr(part, "conv3") for part in MaskScale(8, depth, r).modules())
    assert mask_units(depth, r) == found == 2 * depth * r + depth - 1


def test_the_head_of_the_mask_is_two_convolutions_with_norms_before_them_and_a_sigmoid() -> None:
    torch.manual_seed(0)
    part: Any = SoftMask(8, 1).double().eval()
    u = drawn(2, 8, 4, 5)
    (norm, _), first, second_norm, _, second = part.head
    z = F.conv2d(torch.relu(norm(u)), first.weight)
    z = F.conv2d(torch.relu(second_norm(z)), second.weight)
    assert first.bias is second.bias is None
    part.body = nn.Identity()
    torch.testing.assert_close(part(u), torch.sigmoid(z))


def test_gradients_of_the_fusion_are_those_of_autograd() -> None:
    trunk, mask, g = drawn(2, 3, 4, 5).requires_grad_(), drawn(2, 3, 4, 5, seed=1).sigmoid(), drawn(2, 3, 4, 5, seed=2)
    mask.requires_grad_()
    found = torch.autograd.grad(((1 + mask) * trunk * g).sum(), (trunk, mask))
    torch.testing.assert_close(fusion_gradients(trunk, mask, g), found)


def test_the_mask_knows_the_trunks_weights_only_in_the_peers_reading() -> None:
    for double_skip in (False, True):
        torch.manual_seed(0)
        module = AttentionModule(8, 2, double_skip=double_skip).double()
        mask = module.branches(drawn(2, 8, 9, 7)).mask
        found = torch.autograd.grad(mask.sum(), list(module.trunk.parameters()), allow_unused=True)
        assert all((g is not None) == double_skip for g in found)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 20))
def test_no_mask_gains_more_contrast_than_two_or_less_than_one_half(seed: int, sharp: float) -> None:
    trunk, z = drawn(3, 4, 5, 6, seed=seed), sharp * drawn(3, 4, 5, 6, seed=seed + 1)
    objects = drawn(3, 5, 6, seed=seed + 2).sigmoid()
    gain = contrast_gain(trunk, z.sigmoid(), objects)
    assert ((gain > 0.5) & (gain < 2)).all()
    inside = objects.gt(0.5).double()
    best = contrast_gain(trunk, inside[:, None].expand_as(trunk), inside)
    torch.testing.assert_close(best, torch.full((3,), 2.0, dtype=torch.float64))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_the_three_shares_of_a_masks_variance_sum_to_one(seed: int) -> None:
    mask = drawn(3, 4, 5, 6, seed=seed).sigmoid()
    assert sum(mask_shares(mask)).item() == pytest.approx(1)  # type: ignore[union-attr]
    fixed = mask.mean((0, 2, 3), keepdim=True).expand_as(mask)
    torch.testing.assert_close(torch.stack(mask_shares(fixed)), torch.tensor([1.0, 0, 0], dtype=torch.float64))
    same = mask[:1].expand_as(mask)
    assert mask_shares(same)[2].item() == pytest.approx(0, abs=1e-12)
