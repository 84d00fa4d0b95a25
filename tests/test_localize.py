"""Pointing game and IoU at the true area, by hand and against their definitions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from payattn.localize import boxes, iou_at_true_area, peak_distance, pointing_game, widen


def box(*rows: str) -> torch.Tensor:
    return torch.tensor([[[c == "#" for c in row] for row in rows]])


def test_by_hand_without_enlarging() -> None:
    maps = torch.tensor([[[0.1, 0.9, 0.8], [0.2, 0.7, 0.3]]])
    mask = box(".##", "..#")  # 3 pixels; the highest three of the map are .9 .8 .7
    assert pointing_game(maps, mask).tolist() == [True]
    assert iou_at_true_area(maps, mask).item() == pytest.approx(2 / 4)
    assert pointing_game(maps, box("#..", "...")).tolist() == [False]


def test_the_map_is_enlarged_bilinearly_with_half_pixel_centres() -> None:
    # one row: 0 and 1 become 0, 1/4, 3/4, 1
    maps = torch.tensor([[[0.0, 1.0]]])
    assert iou_at_true_area(maps, box("..##")).item() == 1
    assert iou_at_true_area(maps, box(".##.")).item() == pytest.approx(1 / 3)
    assert pointing_game(maps, box("...#")).tolist() == [True]
    assert pointing_game(maps, box("..#.")).tolist() == [False]


@given(seed=st.integers(0, 999), h=st.integers(1, 5), w=st.integers(1, 5))
def test_the_mask_itself_is_found_and_a_rising_change_of_the_map_changes_nothing(seed: int, h: int, w: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(3, h, w, generator=generator) < 0.4
    masks[:, 0, 0] = True
    assert pointing_game(masks.float(), masks).all()
    assert iou_at_true_area(masks.float(), masks).tolist() == [1, 1, 1]
    maps = torch.rand(3, h, w, generator=generator)
    assert torch.equal(iou_at_true_area(maps, masks), iou_at_true_area(7 * maps - 3, masks))
    score = iou_at_true_area(maps, masks)
    by_sets = []
    for a, m in zip(maps.flatten(1), masks.flatten(1), strict=True):
        chosen = set(a.topk(int(m.sum())).indices.tolist())
        true = set(m.nonzero().flatten().tolist())
        by_sets.append(len(chosen & true) / len(chosen | true))
    assert score.tolist() == pytest.approx(by_sets)


def test_a_random_map_scores_what_the_docstrings_say() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(4000, 10, 10, dtype=torch.bool)
    masks[:, 2:7, 3:9] = True  # 30 % of the image
    maps = torch.rand(4000, 10, 10, generator=generator)
    assert pointing_game(maps, masks).float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert iou_at_true_area(maps, masks).mean().item() == pytest.approx(0.3 / 1.7, abs=0.02)


def test_an_empty_mask_and_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"1 of the masks are empty \(the first is number 1\)"):
        pointing_game(torch.zeros(2, 1, 2), torch.cat([box("#."), box("..")]))
    with pytest.raises(ValueError, match="with the same N"):
        iou_at_true_area(torch.zeros(2, 1, 2), box("#."))


def test_tolerance_counts_points_beside_the_object_and_no_further() -> None:
    maps = torch.tensor([[[1.0, 0.0, 0.0, 0.0]]])
    assert pointing_game(maps, box(".#.."), tolerance=1).tolist() == [True]
    assert pointing_game(maps, box("..#."), tolerance=1).tolist() == [False]
    assert pointing_game(maps, box("..#."), tolerance=2).tolist() == [True]


@given(seed=st.integers(0, 999), tolerance=st.integers(0, 3))
def test_a_widened_mask_holds_every_pixel_within_the_tolerance(seed: int, tolerance: int) -> None:
    masks = torch.rand(2, 5, 7, generator=torch.Generator().manual_seed(seed)) < 0.15
    rows, columns = torch.meshgrid(torch.arange(5), torch.arange(7), indexing="ij")
    for mask, wide in zip(masks, widen(masks, tolerance), strict=True):
        for r, c in zip(rows.flatten().tolist(), columns.flatten().tolist(), strict=True):
            near = mask[max(r - tolerance, 0) : r + tolerance + 1, max(c - tolerance, 0) : c + tolerance + 1]
            assert wide[r, c] == near.any()


@pytest.mark.parametrize("tolerance", [-1, 1.5])
def test_a_tolerance_that_is_no_number_of_pixels_is_refused(tolerance: float) -> None:
    with pytest.raises(ValueError, match="whole number of pixels"):
        widen(box("#."), tolerance)  # type: ignore[arg-type]


def test_the_box_of_a_ring_holds_its_middle_and_an_empty_mask_has_an_empty_box() -> None:
    ring = box(".....", ".###.", ".#.#.", ".###.", ".....")
    filled = box(".....", ".###.", ".###.", ".###.", ".....")
    assert torch.equal(boxes(torch.cat([ring, torch.zeros_like(ring)])), torch.cat([filled, torch.zeros_like(ring)]))


@given(seed=st.integers(0, 999))
def test_boxes_reach_from_the_first_to_the_last_row_and_column(seed: int) -> None:
    masks = torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(seed)) < 0.1
    for mask, found in zip(masks, boxes(masks), strict=True):
        expected = torch.zeros_like(mask)
        if mask.any():
            rows, columns = mask.nonzero().T
            expected[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
        assert torch.equal(found, expected)


def test_boxes_of_one_mask_without_a_batch_say_how_to_ask() -> None:
    with pytest.raises(ValueError, match=r"masks\[None\]"):
        boxes(torch.ones(3, 3, dtype=torch.bool))


def test_the_distance_runs_from_the_highest_point_to_the_middle_of_the_box() -> None:
    ring = box(".......", ".###...", ".#.#...", ".###...")  # its middle is row 2, column 2
    maps = torch.zeros(3, 4, 7)
    maps[0, 2, 2] = maps[1, 2, 5] = maps[2, 0, 6] = 1.0
    assert peak_distance(maps, ring.expand(3, -1, -1)).tolist() == pytest.approx([0, 3, 20**0.5])


@given(seed=st.integers(0, 999))
def test_the_distance_is_that_of_the_extremes_of_the_mask(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps, masks = torch.rand(3, 5, 6, generator=generator), torch.rand(3, 5, 6, generator=generator) < 0.2
    masks[:, 1, 1] = True
    for i, mask in enumerate(masks):
        y, x = divmod(int(maps[i].argmax()), 6)
        rows, columns = mask.nonzero().T
        middle = ((rows.min() + rows.max()) / 2, (columns.min() + columns.max()) / 2)
        expected = ((y - middle[0]) ** 2 + (x - middle[1]) ** 2).sqrt().item()
        assert peak_distance(maps, masks)[i].item() == pytest.approx(expected, abs=1e-5)
