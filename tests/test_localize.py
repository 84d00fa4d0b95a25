"""Judging maps by masks: by hand, by definition, and against scikit-image, SciPy and torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from skimage.filters import threshold_otsu
from torchmetrics.classification import BinaryJaccardIndex

from payattn.localize import (
    binarise,
    boxes,
    combine,
    corloc,
    energy,
    iou_at_true_area,
    jaccard,
    largest_component,
    oracle_threshold,
    otsu,
    peak_distance,
    pointing_game,
    rescale,
    scores,
    segment,
    usual_tolerance,
    ways,
    widen,
)


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


# Segmentation with maps alone

affine = {"scale": st.sampled_from([0.01, 0.5, 3.0, 1000.0]), "shift": st.sampled_from([-5.0, 0.0, 0.3])}


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_rescale_by_hand_in_half_precision_and_of_a_constant_map() -> None:
    maps = torch.tensor([[[2.0, 6.0], [4.0, 3.0]], [[-7.0, -7.0], [-7.0, -7.0]]])
    assert rescale(maps).tolist() == [[[0, 1], [0.5, 0.25]], [[0, 0], [0, 0]]]
    assert torch.equal(rescale(maps.half()), rescale(maps)) and rescale(maps.half()).dtype == torch.float32


def test_rounding_is_not_stretched_into_a_pattern() -> None:
    constant = torch.full((1, 5, 5), 1 / 25)
    noisy = constant.clone()
    noisy[0, 2, 2] = torch.nextafter(noisy[0, 2, 2], torch.tensor(1.0))
    assert not torch.equal(noisy, constant)
    assert rescale(noisy).eq(0).all()
    # bilinear weights that do not sum to exactly one make such noise as well
    assert F.interpolate(constant[None], size=(13, 13), mode="bilinear").unique().numel() > 1
    assert combine({"layer10": constant}, 13, "max").eq(0).all()


@given(seed=st.integers(0, 999), **affine)
def test_rescaling_runs_from_0_to_1_and_forgets_scale_and_shift(seed: int, scale: float, shift: float) -> None:
    maps = drawn(seed, 3, 4, 5)
    found = rescale(scale * maps + shift)
    assert found.amin((1, 2)).tolist() == [0, 0, 0] and found.amax((1, 2)).tolist() == [1, 1, 1]
    torch.testing.assert_close(found, rescale(maps), rtol=0, atol=2e-3 if scale < 0.1 else 1e-5)


@pytest.mark.parametrize("function", [rescale, otsu, binarise])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_maps_that_are_not_finite_are_refused(function, value: float) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="nan or inf"):
        function(torch.tensor([[[0.0, value]]]))
    with pytest.raises(ValueError, match=r"maps must be \(N, h, w\).*got \(2, 2\)"):
        function(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="at least 1"):
        function(torch.zeros(0, 2, 2))


def test_combine_by_hand() -> None:
    maps = {"layer10": torch.tensor([[[0.0, 1.0, 2.0, 4.0]]]), "layer13": torch.tensor([[[10.0, 20.0]]])}
    # layer13 enlarged: 10 12.5 17.5 20, rescaled 0 1/4 3/4 1
    assert combine(maps, (1, 4)).tolist() == [[pytest.approx([0, 1 / 16, 3 / 8, 1])]]
    assert combine(maps, (1, 4), "mean").tolist() == [[pytest.approx([0, 1 / 4, 5 / 8, 1])]]
    assert combine(maps, (1, 4), "max").tolist() == [[pytest.approx([0, 1 / 4, 3 / 4, 1])]]
    assert combine(maps, 4).shape == (1, 4, 4)


@given(seed=st.integers(0, 999), constant=st.sampled_from([0.0, 1 / 25, 0.3, 7.0]))
def test_a_constant_map_changes_no_product_and_no_maximum_and_scales_the_mean(seed: int, constant: float) -> None:
    one = {"layer10": drawn(seed, 2, 5, 7)}
    both = one | {"layer13": torch.full((2, 5, 5), constant)}
    for how in ("product", "max"):
        assert torch.equal(combine(both, (11, 13), how), combine(one, (11, 13)))
    torch.testing.assert_close(combine(both, (11, 13), "mean"), combine(one, (11, 13)) / 2)


def test_a_constant_map_in_one_image_does_not_touch_the_other_images() -> None:
    maps = drawn(0, 2, 4, 4)
    flat = maps.clone()
    flat[0] = 0.5
    found = combine({"a": maps, "b": flat}, 4)
    assert torch.equal(found[0], rescale(maps)[0])
    torch.testing.assert_close(found[1], rescale(maps)[1].square())
    assert combine({"a": flat, "b": flat}, 4)[0].eq(0).all()


@given(seed=st.integers(0, 999), **affine)
def test_the_combination_forgets_the_scale_of_each_level(seed: int, scale: float, shift: float) -> None:
    maps = {"layer10": drawn(seed, 2, 4, 4), "layer13": drawn(seed + 1, 2, 2, 2)}
    changed = maps | {"layer13": scale * maps["layer13"] + shift}
    for how in ("product", "mean", "max"):
        torch.testing.assert_close(combine(changed, 8, how), combine(maps, 8, how), rtol=0, atol=2e-3)


def test_combine_says_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="did you mean 'product'"):
        combine({"a": torch.zeros(1, 2, 2)}, 4, "produkt")
    with pytest.raises(ValueError, match="no map"):
        combine({}, 4)
    with pytest.raises(ValueError, match=r"same images.*'a': 1, 'b': 2"):
        combine({"a": torch.zeros(1, 2, 2), "b": torch.zeros(2, 2, 2)}, 4)


def test_otsu_by_hand() -> None:
    # ten bins of 0.1: values in bins 0, 1, 1, 9, 9; parting after bin 1 is best, and its centre is the threshold
    maps = torch.tensor([[[0.0, 0.12, 0.13, 0.93, 1.0]]])
    assert otsu(maps, bins=10).tolist() == pytest.approx([0.15])
    assert binarise(maps).tolist() == [[[False, False, False, True, True]]]
    assert otsu(torch.full((1, 2, 2), 0.7)).tolist() == pytest.approx([0.7])


@given(seed=st.integers(0, 999), bins=st.sampled_from([2, 10, 256]), kind=st.sampled_from(["flat", "two", "few"]))
def test_otsu_agrees_with_scikit_image(seed: int, bins: int, kind: str) -> None:
    maps = drawn(seed, 4, 6, 7).double()
    if kind == "two":
        maps = maps.square() + 2 * (drawn(seed + 1, 4, 6, 7) < 0.3)
    elif kind == "few":
        maps = (5 * maps).round()
    expected = [threshold_otsu(values, nbins=bins) for values in maps.numpy()]
    assert otsu(maps, bins).tolist() == pytest.approx(expected, abs=1e-12)


@given(seed=st.integers(0, 999), rule=st.sampled_from(["otsu", "mean"]), **affine)
def test_the_region_forgets_scale_and_shift(seed: int, rule: str, scale: float, shift: float) -> None:
    maps = drawn(seed, 3, 6, 7).double()
    assert torch.equal(binarise(maps, rule), binarise(scale * maps + shift, rule))
    masks = drawn(seed + 1, 3, 6, 7) < 0.5
    masks[:, 0, 0] = True
    assert torch.equal(jaccard(binarise(maps, rule), masks), jaccard(binarise(scale * maps + shift, rule), masks))


def test_binarise_by_the_mean_and_by_a_number() -> None:
    maps = torch.tensor([[[0.0, 0.0, 0.0, 4.0]], [[1.0, 2.0, 3.0, 4.0]]])
    assert binarise(maps, "mean").int().tolist() == [[[0, 0, 0, 1]], [[0, 0, 1, 1]]]
    assert binarise(maps, 2).int().tolist() == [[[0, 0, 0, 1]], [[0, 0, 1, 1]]]
    assert binarise(maps, 0.0).int().tolist() == [[[0, 0, 0, 1]], [[1, 1, 1, 1]]]


@pytest.mark.parametrize("value", [0.1, 1 / 49, -3.3])
def test_a_constant_map_marks_nothing(value: float) -> None:
    for rule in ("otsu", "mean"):
        assert not binarise(torch.full((1, 7, 7), value), rule).any()


@pytest.mark.parametrize("rule", [True, None, torch.nan])
def test_a_rule_that_is_none_is_refused(rule: object) -> None:
    with pytest.raises(ValueError, match="rule must be 'otsu' or 'mean' or a number"):
        binarise(torch.zeros(1, 2, 2), rule)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="did you mean 'otsu'"):
        binarise(torch.zeros(1, 2, 2), "otso")
    with pytest.raises(ValueError, match="bins must be"):
        otsu(torch.zeros(1, 2, 2), bins=1)


@given(seed=st.integers(0, 999))
def test_jaccard_agrees_with_torchmetrics(seed: int) -> None:
    predicted, masks = drawn(seed, 3, 5, 6) < 0.4, drawn(seed + 1, 3, 5, 6) < 0.4
    masks[:, 0, 0] = True
    expected = [BinaryJaccardIndex()(p.int(), m.int()).item() for p, m in zip(predicted, masks, strict=True)]
    assert jaccard(predicted, masks).tolist() == pytest.approx(expected)


def test_jaccard_says_what_does_not_fit() -> None:
    mask = box("#.")
    assert jaccard(box(".."), mask).tolist() == [0]
    with pytest.raises(TypeError, match=r"must be bool.*binarise"):
        jaccard(mask.float(), mask)
    with pytest.raises(ValueError, match=r"combine\(maps, size\)"):
        jaccard(box("#"), mask)
    with pytest.raises(ValueError, match="masks are empty"):
        jaccard(mask, box(".."))


def test_the_largest_region_by_hand_corners_touch() -> None:
    mask = box("##..#", "...#.", "..#..", "##...")
    assert torch.equal(largest_component(mask), box("....#", "...#.", "..#..", "##..."))
    assert torch.equal(largest_component(box("#.#")), box("#.."))  # of two equals the first to end
    assert not largest_component(box("...")).any()
    with pytest.raises(ValueError, match=r"masks\[None\]"):
        largest_component(mask[0])


@given(seed=st.integers(0, 999), share=st.sampled_from([0.2, 0.4, 0.6]))
def test_the_largest_region_agrees_with_scipy(seed: int, share: float) -> None:
    masks = drawn(seed, 3, 12, 9) < share
    for mask, found in zip(masks, largest_component(masks), strict=True):
        labels, n = ndimage.label(mask.numpy(), structure=np.ones((3, 3)))
        sizes = [(labels == k).sum() for k in range(1, n + 1)]
        assert int(found.sum()) == max(sizes, default=0)
        if found.any():
            assert (torch.from_numpy(labels)[found] == labels[found.numpy()][0]).all()


def test_a_long_snake_is_one_region() -> None:
    snake = torch.zeros(1, 41, 41, dtype=torch.bool)
    snake[:, ::2] = True
    snake[:, 1::4, -1] = snake[:, 3::4, 0] = True
    assert torch.equal(largest_component(snake), snake)


def test_correct_localisation_compares_the_boxes_of_the_largest_region_and_of_the_mask() -> None:
    mask = box("####.", "####.", ".....")  # a box of 8
    assert corloc(box("#..#.", ".##..", "....."), mask).tolist() == [True]  # one region by corners, with the same box
    assert corloc(box("##..#", "##...", "....#"), mask).tolist() == [False]  # 4 of 8 is not more than half
    assert corloc(box("###.#", "###..", "....#"), mask).tolist() == [True]  # specks elsewhere do not widen the box
    assert corloc(box(".....", ".....", "....."), mask).tolist() == [False]


@given(seed=st.integers(0, 999))
def test_no_threshold_beats_the_oracle(seed: int) -> None:
    maps, masks = (8 * drawn(seed, 3, 4, 5)).round() / 8, drawn(seed + 1, 3, 4, 5) < 0.4
    masks[:, 0, 0] = True
    best = jaccard(binarise(maps, oracle_threshold(maps, masks)), masks).mean().item()
    tried = [jaccard(binarise(maps, t), masks).mean().item() for t in [*maps.unique().tolist(), -1.0]]
    assert best == pytest.approx(max(tried))


def test_the_oracle_may_take_every_pixel_and_enlarges_small_maps() -> None:
    maps = torch.tensor([[[0.0, 1.0]]])
    assert binarise(maps, oracle_threshold(maps, box("##"))).all()
    threshold = oracle_threshold(maps, box("..##"))  # enlarged: 0 1/4 3/4 1
    assert 0.25 <= threshold < 0.75
    with pytest.raises(ValueError, match="masks are empty"):
        oracle_threshold(maps, box(".."))


def test_segment_measures_every_way_with_every_rule() -> None:
    maps = {"layer10": drawn(0, 4, 8, 8), "layer13": drawn(1, 4, 4, 4)}
    masks = drawn(2, 4, 16, 16) < 0.3
    scores = segment(maps, masks)
    assert list(scores) == ["layer10", "layer13", "product", "mean", "max"]
    for how, rules in scores.items():
        levels, way = (maps, how) if how in ("product", "mean", "max") else ({how: maps[how]}, "mean")
        one = combine(levels, (16, 16), way)
        assert list(rules) == ["otsu", "mean", "oracle"]
        assert torch.equal(rules["otsu"], jaccard(one > otsu(one)[:, None, None], masks))
        assert torch.equal(rules["mean"], jaccard(one > one.mean((1, 2), keepdim=True), masks))
        assert rules["oracle"].mean() >= binarise_best(one, masks) - 1e-6


def binarise_best(maps: torch.Tensor, masks: torch.Tensor) -> float:
    return max(jaccard(maps > t, masks).mean().item() for t in torch.linspace(0, 1, 21).tolist())


def test_the_mask_as_a_map_is_found_whole() -> None:
    masks = drawn(3, 5, 9, 7) < 0.3
    for rules in segment({"layer10": masks.float(), "layer13": 3 * masks.float()}, masks).values():
        for score in rules.values():
            assert score.tolist() == [1, 1, 1, 1, 1]


def test_segment_says_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="may not be called 'max'"):
        segment({"max": torch.rand(1, 2, 2)}, box("#."))
    with pytest.raises(ValueError, match="no map"):
        segment({}, box("#."))
    with pytest.raises(ValueError, match="masks are empty"):
        segment({"layer10": torch.rand(1, 2, 2)}, box(".."))


def test_one_level_alone_has_nothing_to_be_joined_with() -> None:
    maps = {"layer13": drawn(1, 4, 4, 4)}
    found = ways(maps, 16)
    assert list(found) == ["layer13"]
    assert torch.equal(found["layer13"], combine(maps, 16, "mean"))


def test_the_scores_are_the_means_of_their_measures() -> None:
    maps, masks = drawn(5, 12, 8, 8), drawn(6, 12, 64, 64) < 0.02
    found = scores(maps, masks)
    assert usual_tolerance(64) == 2
    by_hand = {"pointing": pointing_game(maps, masks, 2), "pointing_exact": pointing_game(maps, masks),
               "pointing_box": pointing_game(maps, boxes(masks)), "iou": iou_at_true_area(maps, masks)}  # fmt: skip
    assert found == {name: pytest.approx(values.double().mean().item()) for name, values in by_hand.items()}
    assert found["pointing"] > found["pointing_exact"], "the tolerance must count"


def test_energy_by_hand() -> None:
    maps = torch.tensor([[[3.0, 1.0, -2.0], [0.0, 4.0, 2.0]]])
    assert energy(maps, box("#..", ".#.")).item() == pytest.approx(0.7)  # 7 of 10; the negative value is no mass
    assert energy(maps, box("..#", "...")).item() == 0
    assert energy(maps.clamp_min(0), box("#..", ".#.")).item() == pytest.approx(0.7)


@given(
    seed=st.integers(0, 999), h=st.integers(1, 5), w=st.integers(1, 5), scale=st.sampled_from([100.0, 1e-30, 1e30, 4.0])
)
def test_energy_is_the_share_of_score_cam_and_knows_no_scale(seed: int, h: int, w: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(3, 6, 5, generator=generator) < 0.4
    masks[:, 0, 0] = True
    maps = torch.rand(3, h, w, generator=generator)
    found = energy(maps, masks)
    assert ((found >= 0) & (found <= 1 + 1e-6)).all()
    assert energy(scale * maps, masks).tolist() == pytest.approx(found.tolist(), rel=1e-5)
    large = F.interpolate(maps[:, None], (6, 5), mode="bilinear", align_corners=False)[:, 0].double()
    for n in range(3):  # as the paper writes it: inside over inside plus outside
        inside, outside = large[n][masks[n]].sum(), large[n][~masks[n]].sum()
        assert found[n].item() == pytest.approx((inside / (inside + outside)).item(), rel=1e-5)


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0, 1e38])
def test_a_flat_map_has_the_energy_of_the_masks_share(value: float) -> None:
    assert energy(torch.full((1, 2, 2), value), box("##..", "....")).item() == pytest.approx(0.25)


def test_energy_refuses_what_the_others_refuse() -> None:
    with pytest.raises(ValueError, match="masks are empty"):
        energy(torch.ones(1, 1, 2), box(".."))
    with pytest.raises(ValueError, match="must be finite"):
        energy(torch.full((1, 1, 2), float("inf")), box("#."))
    with pytest.raises(ValueError, match="with the same N"):
        energy(torch.ones(2, 1, 2), box("#."))
