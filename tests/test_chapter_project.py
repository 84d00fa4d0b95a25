"""The equations of the chapter "A project"."""

from __future__ import annotations

import statistics
from itertools import combinations

import pytest
import torch

from payattn import results
from payattn.check.project import paired, smallest_share, standard_error


def test_the_standard_error_is_the_spread_of_accuracies_over_test_sets() -> None:
    draws = torch.rand(20000, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64) < 0.8
    spread = draws.double().mean(1).std().item()
    assert spread == pytest.approx(standard_error(0.8, 50), rel=0.03)


@pytest.mark.parametrize(("a", "b"), [(3, 3), (4, 4), (2, 5), (5, 5)])
def test_the_smallest_share_counts_the_splits_that_separate(a: int, b: int) -> None:
    ranks = range(a + b)
    apart = [min(first) > max(set(ranks) - set(first)) for first in combinations(ranks, a)]
    assert sum(apart) / len(apart) == pytest.approx(smallest_share(a, b))
    if a == b:
        both = results.compare([float(r) for r in range(b, a + b)], [float(r) for r in range(b)])["share"]
        assert both == pytest.approx(2 * smallest_share(a, b))


def test_the_paired_difference_takes_out_what_a_seed_does_to_both_sides() -> None:
    a, b = [0.61, 0.72, 0.83], [0.60, 0.70, 0.82]
    mean, error = paired(a, b)
    differences = [x - y for x, y in zip(a, b, strict=True)]
    assert mean == pytest.approx(statistics.mean(differences))
    assert error == pytest.approx(statistics.stdev(differences) / 3**0.5)
    moved = paired([x + s for x, s in zip(a, (0.1, -0.3, 0.2), strict=True)],
                   [x + s for x, s in zip(b, (0.1, -0.3, 0.2), strict=True)])  # fmt: skip
    assert moved == pytest.approx((mean, error))
