"""The equations of the chapter "A project"."""

from __future__ import annotations

import statistics

import pytest
import torch

from payattn.check.project import any_by_luck, images_needed, paired


def test_so_many_images_bring_the_error_of_an_accuracy_to_the_aim() -> None:
    n = round(images_needed(0.8, 0.05))
    draws = torch.rand(20000, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64) < 0.8
    assert n == 64
    assert draws.double().mean(1).std().item() == pytest.approx(0.05, rel=0.03)


@pytest.mark.parametrize(("share", "claims"), [(1 / 20, 1), (1 / 20, 6), (0.3, 3)])
def test_one_or_more_claims_come_out_by_luck_as_often_as_counted(share: float, claims: int) -> None:
    draws = torch.rand(200000, claims, generator=torch.Generator().manual_seed(0), dtype=torch.float64) < share
    assert draws.any(1).double().mean().item() == pytest.approx(any_by_luck(share, claims), abs=0.004)


def test_the_paired_difference_takes_out_what_a_seed_does_to_both_sides() -> None:
    a, b = [0.61, 0.72, 0.83], [0.60, 0.70, 0.82]
    mean, error = paired(a, b)
    differences = [x - y for x, y in zip(a, b, strict=True)]
    assert mean == pytest.approx(statistics.mean(differences))
    assert error == pytest.approx(statistics.stdev(differences) / 3**0.5)
    moved = paired([x + s for x, s in zip(a, (0.1, -0.3, 0.2), strict=True)],
                   [x + s for x, s in zip(b, (0.1, -0.3, 0.2), strict=True)])  # fmt: skip
    assert moved == pytest.approx((mean, error))
