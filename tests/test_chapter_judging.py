"""What the chapter "Judging a map" states as equations and no other file tests."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from payattn.check.judging import area, energy, rank_correlation
from payattn.faithful import Curve, band, deletion, insertion, spearman
from payattn.localize import energy as package_energy


class Additive(nn.Module):
    """The probability of class 1 is the sum of the worths of the pixels that are there."""

    def __init__(self, worths: Tensor) -> None:
        super().__init__()
        self.worths = nn.Parameter(worths)

    def forward(self, images: Tensor) -> Tensor:
        p = (images.mean(1).flatten(1) * self.worths).sum(1).clamp(1e-9, 1 - 1e-9)
        return torch.stack([1 - p, p], 1).log()


@settings(max_examples=10, deadline=None)
@given(worths=st.lists(st.floats(0.01, 0.24), min_size=4, max_size=4, unique=True))
def test_for_an_additive_network_the_order_of_the_worths_has_the_least_area(worths: list[float]) -> None:
    model, image, one = Additive(torch.tensor(worths, dtype=torch.float64)), torch.ones(1, 3, 1, 4), torch.tensor([1])
    areas = {}
    for order in permutations(range(4)):
        places = torch.tensor([[[4.0 - order.index(i) for i in range(4)]]])
        gone = deletion(model, image.double(), places, one, steps=4).auc.item()
        come = insertion(model, image.double(), places, one, steps=4).auc.item()
        by_hand = sum((r + 0.5) * worths[i] for r, i in enumerate(order)) / 4
        assert gone == pytest.approx(by_hand, abs=1e-6) and come == pytest.approx(sum(worths) - by_hand, abs=1e-6)
        areas[order] = gone
    assert areas[tuple(sorted(range(4), key=lambda i: -worths[i]))] <= min(areas.values()) + 1e-6


def test_the_band_of_a_difference_has_the_width_that_the_covariance_gives() -> None:
    generator = torch.Generator().manual_seed(0)
    hard = torch.randn(300, generator=generator, dtype=torch.float64)
    first = hard + 0.2 * torch.randn(300, generator=generator, dtype=torch.float64)
    second = hard + 0.2 * torch.randn(300, generator=generator, dtype=torch.float64) - 0.1
    covariance = torch.cov(torch.stack([first, second]))
    spread = (covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]).sqrt()
    paired, alone = band(first - second, resamples=4000), band(first, resamples=4000)
    assert (paired.high - paired.low).item() == pytest.approx(2 * 1.96 * spread.item() / 300**0.5, rel=0.08)
    assert paired.answer() == "yes" and alone.low < band(second).mean < alone.high  # what overlapping bands hide


@given(seed=st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_the_solutions_of_the_chapter_agree_with_the_package(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps, masks = torch.randn(2, 3, 4, generator=generator), torch.rand(2, 3, 4, generator=generator) < 0.5
    masks[:, 0, 0], maps[:, 0, 0] = True, 1.0
    assert torch.allclose(energy(maps, masks), package_energy(maps, masks))
    fractions = torch.rand(6, generator=generator).sort().values
    scores = torch.rand(2, 6, generator=generator)
    assert torch.allclose(area(fractions, scores), Curve(fractions, scores).auc)
    other = torch.randn(2, 3, 4, generator=generator)
    expected = [rank_correlation(a.flatten(), b.flatten()).item() for a, b in zip(maps, other, strict=True)]
    assert spearman(maps, other).tolist() == pytest.approx(expected, abs=1e-6)
