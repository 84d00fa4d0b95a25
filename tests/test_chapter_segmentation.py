"""What the chapter "Segmentation without masks" states as equations and no other file tests."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from payattn import glyphs
from payattn.check.segmentation import best_cells, bilinear_weights, otsu_split
from payattn.localize import binarise, jaccard, oracle_threshold, otsu
from payattn.measures import segmentation
from payattn.models import create

SIDES = st.integers(1, 9)


@settings(max_examples=30, deadline=None)
@given(SIDES, SIDES, st.integers(9, 30), st.integers(0, 10**6))
def test_two_matrices_of_bilinear_weights_enlarge_a_map_as_torch_does(h: int, w: int, side: int, seed: int) -> None:
    a = torch.rand(2, h, w, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    rows, columns = bilinear_weights(h, side).double(), bilinear_weights(w, side).double()
    expected = F.interpolate(a[:, None], size=(side, side), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(rows @ a @ columns.T, expected, atol=1e-5, rtol=1e-5)
    assert torch.allclose(rows.sum(1), torch.ones(side).double()) and (rows >= 0).all()


def test_two_cells_on_four_pixels_by_hand() -> None:
    assert (bilinear_weights(2, 4) @ torch.tensor([0.0, 4.0])).tolist() == [0.0, 1.0, 3.0, 4.0]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=3, max_size=30).filter(lambda v: len(set(v)) > 2))
def test_the_variance_is_the_sum_of_its_two_parts_and_otsu_leaves_least_within(values: list[int]) -> None:
    v = torch.tensor(values, dtype=torch.float64)

    def within(t: float) -> float:
        return float(sum(part.var(correction=0) * len(part) for part in (v[v <= t], v[v > t])) / len(v))

    def between(t: float) -> float:
        low, high = v[v <= t], v[v > t]
        return float(len(low) * len(high) / len(v) ** 2 * (low.mean() - high.mean()) ** 2)

    cuts = [float(t) for t in v.unique()[:-1]]
    assert all(within(t) + between(t) == pytest.approx(float(v.var(correction=0))) for t in cuts)
    assert within(otsu_split(v)) == pytest.approx(min(within(t) for t in cuts))
    assert between(otsu_split(v)) == pytest.approx(max(between(t) for t in cuts))


def test_bins_may_move_a_pixel_of_the_threshold_s_own_bin_and_cost_dense_maps_next_to_nothing() -> None:
    few = torch.tensor([[[0.0, 1.0, 6.0]]])
    assert otsu_split(few.flatten()) == 1.0
    assert binarise(few, "otsu").flatten().tolist() == [False, True, True]
    dense = torch.rand(1, 24, 24, generator=torch.Generator().manual_seed(0)) ** 2
    parts = [(dense > t).double() for t in (otsu_split(dense.flatten()), otsu(dense)[0])]
    exact, binned = (p.mean() * (1 - p.mean()) * (dense[p > 0].mean() - dense[p == 0].mean()) ** 2 for p in parts)
    assert binned.item() == pytest.approx(exact.item(), rel=2e-3)


def test_the_six_pixels_of_the_chapter_by_hand() -> None:
    row = torch.tensor([0.0, 1, 1, 2, 4, 10])
    assert otsu_split(row) == 4.0
    assert binarise(row.view(1, 1, 6), "otsu").sum() == 1 and binarise(row.view(1, 1, 6), "mean").sum() == 2


def test_a_rule_for_each_map_can_beat_the_best_common_threshold() -> None:
    maps = torch.tensor([[[1.0, 0.4]], [[0.3, 0.0]]])
    masks = torch.tensor([[[True, False]], [[True, False]]])
    assert jaccard(binarise(maps, oracle_threshold(maps, masks)), masks).mean() == 0.75
    assert jaccard(binarise(maps, "mean"), masks).mean() == 1.0


@pytest.mark.parametrize(("width", "slip"), [(2, 1), (3, 1), (5, 4), (4, 0)])
def test_a_slip_of_a_stroke_costs_what_the_formula_says(width: int, slip: int) -> None:
    stroke = torch.zeros(1, 7, 20).bool()
    stroke[:, :, 3 : 3 + width] = True
    score = jaccard(stroke.roll(slip, dims=2), stroke).item()
    assert score == pytest.approx((width - slip) / (width + slip))


@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize("marked", [0.1, 0.5, 1.0])
def test_blind_regions_score_what_the_formula_says(share: float, marked: float) -> None:
    generator = torch.Generator().manual_seed(0)
    masks, regions = (torch.rand(400, 64, 64, generator=generator) < p for p in (share, marked))
    expected = marked * share / (marked + share - marked * share)
    assert jaccard(regions, masks).mean().item() == pytest.approx(expected, rel=0.02)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 0.9))
def test_no_union_of_cells_beats_the_best_cells(seed: int, share: float) -> None:
    mask = torch.rand(9, 6, generator=torch.Generator().manual_seed(seed)) < share
    mask[0, 0] = True
    best = 0.0
    for k in range(1, 10):
        for cells in combinations(range(9), k):
            chosen = torch.zeros(9)
            chosen[list(cells)] = 1
            region = F.interpolate(chosen.view(1, 1, 3, 3), size=(9, 6))[0] > 0
            best = max(best, jaccard(region, mask[None]).item())
    assert best_cells(mask, 3) == pytest.approx(best)


def test_the_best_region_holds_the_cells_that_are_fuller_than_the_bar() -> None:
    for mask in glyphs(5, size=32, seed=3).masks:
        best = best_cells(mask, 8)
        full = F.avg_pool2d(mask[None, None].float(), 4)
        region = F.interpolate((full >= best / (1 + best) - 1e-6).float(), size=(32, 32))[0] > 0
        assert jaccard(region, mask[None]).item() == pytest.approx(best)


def test_the_mean_over_classes_of_the_measure_is_not_that_over_images_when_classes_differ_in_number() -> None:
    data = glyphs(40, size=24, seed=0)
    kept = data.subset(torch.cat([(data.labels == 0).nonzero()[:, 0], (data.labels == 1).nonzero()[:1, 0]]))
    torch.manual_seed(0)
    found = segmentation(create("vgg-gap", width=1 / 32).eval(), {"glyphs": (kept, kept)}, {}, lambda _: None)
    part = found["glyphs"]["centre"]["otsu"]
    counts = [int((kept.labels == k).sum()) for k in (0, 1)]
    classes = list(part["classes"].values())
    assert part["jaccard"] == pytest.approx(sum(n * j for n, j in zip(counts, classes, strict=True)) / sum(counts))
    assert part["jaccard"] != pytest.approx(sum(classes) / 2)
