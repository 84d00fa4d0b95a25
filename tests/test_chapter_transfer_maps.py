"""What the chapter "Maps and the transfer loss" states as equations and no other file tests."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from payattn.check.transfer_maps import map_at_size, map_gradient
from payattn.transfer import activation_map, at_loss, map_loss


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(seed=st.integers(0, 999))
def test_the_gradient_by_hand_is_that_of_autograd_and_orthogonal_to_the_map(seed: int) -> None:
    q, target = drawn(3, 12, seed=seed).square().requires_grad_(), drawn(3, 12, seed=seed + 1).square()
    (found,) = torch.autograd.grad(map_loss(q.view(3, 3, 4), target.view(3, 3, 4)), q)
    torch.testing.assert_close(map_gradient(q.detach(), target), found)
    assert (map_gradient(q.detach(), target) * q.detach()).sum(1).abs().max() < 1e-12


@given(seed=st.integers(0, 999), factor=st.floats(0.01, 100))
def test_the_gradient_is_orthogonal_to_the_features_and_as_large_as_they_are_small(seed: int, factor: float) -> None:
    student, teacher = drawn(2, 3, 3, 4, seed=seed), drawn(2, 5, 3, 4, seed=seed + 1)

    def slope(features: torch.Tensor) -> torch.Tensor:
        features = features.clone().requires_grad_()
        return torch.autograd.grad(at_loss(features, teacher), features)[0]

    one, other = slope(student), slope(factor * student)
    assert (one * student).sum((1, 2, 3)).abs().max() < 1e-12
    torch.testing.assert_close(other, one / factor)


@given(seed=st.integers(0, 999), p=st.floats(1, 64))
def test_the_root_of_a_sum_map_lies_between_the_largest_channel_and_its_bound(seed: int, p: float) -> None:
    features = drawn(2, 5, 3, 4, seed=seed)
    root, largest = activation_map(features, p).pow(1 / p), activation_map(features, 1, "max")
    assert (root >= largest * (1 - 1e-9)).all()
    assert (root <= 5 ** (1 / p) * largest * (1 + 1e-9)).all()


def test_a_map_at_another_size_is_squared_first_and_has_unit_length() -> None:
    cancel = torch.tensor([[[[1.0, -1.0], [1.0, -1.0]]]])
    assert map_at_size(cancel, (1, 1)).item() == pytest.approx(1)
    found = map_at_size(drawn(2, 3, 6, 4), (3, 2))
    assert found.flatten(1).norm(dim=1).tolist() == pytest.approx([1, 1])
