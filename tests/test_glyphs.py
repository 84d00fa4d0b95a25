"""The embedded set: the same from the same seed, exact masks, and nothing but the glyph says the class."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from payattn.data import glyphs, strokes


@pytest.fixture(scope="module")
def plain():
    return glyphs(400, seed=3)


def test_one_seed_is_one_set_and_another_seed_another(plain):
    assert glyphs(400, seed=3).digest() == plain.digest()
    other = glyphs(400, seed=4)
    assert (other.images == plain.images).float().mean() < 0.05 and not torch.equal(other.labels, plain.labels)


@pytest.mark.parametrize("variant", strokes.VARIANTS)
def test_images_do_not_depend_on_how_many_are_drawn_at_a_time(monkeypatch, variant):
    whole = glyphs(70, variant=variant, size=(20, 27)).digest()
    for block in (1, 13, 70):
        monkeypatch.setattr(strokes, "BLOCK", block)
        assert glyphs(70, variant=variant, size=(20, 27)).digest() == whole


def test_images_do_not_depend_on_the_number_of_threads(plain):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        assert glyphs(400, seed=3).digest() == plain.digest()
    finally:
        torch.set_num_threads(threads)


@settings(max_examples=10, deadline=None)
@given(n=st.integers(0, 40), more=st.integers(0, 140), classes=st.integers(2, 10))
def test_a_set_is_the_beginning_of_every_longer_set(n, more, classes):
    short, long = glyphs(n, size=9, classes=classes, seed=n), glyphs(n + more, size=9, classes=classes, seed=n)
    assert short.digest() == long.subset(slice(0, n)).digest()


@settings(max_examples=25, deadline=None)
@given(height=st.integers(8, 41), width=st.integers(8, 41), seed=st.integers(-5, 2**40),
       variant=st.sampled_from(strokes.VARIANTS))
def test_any_size_gives_a_mask_in_every_image(height, width, seed, variant):
    data = glyphs(12, size=(height, width), seed=seed, variant=variant)
    assert data.images.shape == (12, 3, height, width) and data.masks is not None
    counts = data.masks.flatten(1).sum(1)
    assert counts.min() >= 4 and (counts < 0.6 * height * width).all()


@settings(max_examples=15, deadline=None)
@given(n=st.integers(0, 60), classes=st.integers(2, 10))
def test_classes_are_balanced_to_within_one(n, classes):
    counts = glyphs(n, size=8, classes=classes).labels.bincount(minlength=classes)
    assert counts.sum() == n and counts.max() - counts.min() <= 1


def test_classes_come_in_no_fixed_order(plain):
    rounds = plain.labels.view(-1, 10)
    assert len({tuple(r) for r in rounds.tolist()}) > 30


def test_masks_cover_a_twentieth_to_a_fifth_of_the_image(plain):
    share = plain.masks.float().mean((1, 2))
    assert share.min() > 0.03 and share.max() < 0.25 and 0.06 < share.mean() < 0.16


def test_glyphs_take_between_a_third_and_two_thirds_of_the_side_and_move_about(plain):
    rows, columns = plain.masks.any(2), plain.masks.any(1)
    for line in (rows, columns):
        place = torch.arange(32).expand_as(line)
        low = torch.where(line, place, 99).min(1).values
        high = torch.where(line, place, -1).max(1).values
        extent = high - low + 1
        assert extent.min() >= 8 and extent.max() <= 29 and 12 < extent.float().mean() < 21
        assert (low + high).float().div(2).std() > 2.5
        assert (low > 0).float().mean() > 0.8 and (high < 31).float().mean() > 0.8  # whole, inside the image


def painted(monkeypatch, pieces, colour, **options):
    """The same glyphs and clutter with every stroke in one colour: 0 for clutter, ``colour`` for the glyph."""
    turns = iter(range(10**6))
    monkeypatch.setattr(strokes._Painter, "_colour",
                        lambda self, base, uniform: torch.full_like(uniform, colour if next(turns) % 2 else pieces))
    data = glyphs(40, **options)
    monkeypatch.undo()
    return data


@pytest.mark.parametrize("variant", strokes.VARIANTS)
def test_the_mask_marks_exactly_the_pixels_that_are_more_glyph_than_not(monkeypatch, variant):
    black, white = (painted(monkeypatch, 0.0, c, variant=variant) for c in (0.0, 255.0))
    # The two sets differ in the glyph's colour alone, so their difference is 255 alpha.
    alpha = (white.images.float() - black.images.float()).amax(1) / 255
    sure = (alpha - 0.5).abs() > 0.01
    assert ((alpha > 0.5) == white.masks)[sure].all()
    assert sure.float().mean() > 0.99 and torch.equal(white.masks, glyphs(40, variant=variant).masks)


def test_clutter_lies_beneath_the_glyph_is_smaller_and_says_nothing_about_the_class(monkeypatch):
    black, white = (painted(monkeypatch, c, 0.0) for c in (0.0, 255.0))
    touched = (white.images.float() - black.images.float()).amax(1) > 128
    assert not (touched & white.masks).any()
    assert (touched.flatten(1).sum(1) > 0).all()
    kinds = []
    original = strokes._Painter._frame
    monkeypatch.setattr(strokes._Painter, "_frame", lambda self, k, u: kinds.append(k) or original(self, k, u))
    labels = glyphs(1280, size=8).labels
    pieces = torch.cat([k for k in kinds if len(k) > 128])
    assert (pieces.bincount() / len(pieces) - 0.1).abs().max() < 0.02
    own = labels.repeat_interleave(4)
    assert (pieces == own).float().mean().item() == pytest.approx(0.1, abs=0.02)


def test_colour_does_not_tell_the_class():
    data = glyphs(2000, size=16, seed=5)
    weight = data.masks[:, None].float()
    colour = (data.images * weight).sum((2, 3)) / weight.sum((2, 3))
    means = torch.stack([colour[data.labels == k].mean(0) for k in range(10)])
    assert (means - colour.mean(0)).abs().max() < 4.5 * colour.std() / math.sqrt(200)


def test_the_glyph_stands_out_from_its_background(plain):
    weight = plain.masks[:, None].float()
    inside = (plain.images * weight).sum((2, 3)) / weight.sum((2, 3))
    outside = (plain.images * (1 - weight)).sum((2, 3)) / (1 - weight).sum((2, 3))
    assert (inside - outside).abs().amax(1).min() > 25


def test_distance_to_a_stroke_is_the_hand_computed_one():
    ends = torch.tensor([[[[1.0, 1.0], [3.0, 1.0]]], [[[2.0, 2.0], [2.0, 2.0]]]], dtype=torch.float64)
    grid = torch.tensor([[0.0, 2.0, 5.0]]).expand(2, -1)
    found = strokes._distance(ends, torch.tensor([0.0, 2.0]), grid, grid)
    segment = [[math.sqrt(2), 1, math.sqrt(5)], [math.sqrt(2), 1, math.sqrt(5)], [math.sqrt(17), 4, math.sqrt(20)]]
    root8, root13, root18 = math.sqrt(8), math.sqrt(13), math.sqrt(18)
    ring = [[root8 - 2, 0, root13 - 2], [0, 2, 1], [root13 - 2, 1, root18 - 2]]
    torch.testing.assert_close(found, torch.tensor([segment, ring]))


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("length", [8, 31, 224])
def test_background_weights_are_exact_fractions_that_sum_to_one(length, hard):
    weights = strokes._interpolation(length, hard)
    assert (weights.sum(1) == 1).all() and (weights >= 0).all() and ((weights * 32) % 1 == 0).all()


def neighbour_steps(data):
    """Share of neighbouring background pixels that differ by more than 24 levels."""
    off = ~(torch.nn.functional.max_pool2d(data.masks[:, None].float(), 5, 1, 2) > 0)
    step = (data.images[:, :, :, 1:].int() - data.images[:, :, :, :-1].int()).abs().amax(1, keepdim=True) > 24
    return step[off[:, :, :, 1:] & off[:, :, :, :-1]].float().mean()


def test_shift_keeps_the_classes_and_changes_texture_and_clutter(plain):
    shift = glyphs(400, variant="shift", seed=3)
    assert shift.classes == plain.classes and torch.equal(shift.labels, plain.labels)
    assert shift.name == "glyphs-shift" and neighbour_steps(shift) > 2 * neighbour_steps(plain)


def test_fine_classes_share_one_glyph_and_differ_in_a_small_mark():
    names = list(strokes.FINE)
    assert len(set(names)) == 10 and len({tuple(s[:-1]) for s in strokes.FINE.values()}) == 1
    marks = [s[-1] for s in strokes.FINE.values()]
    assert len(set(marks)) == 10 and all(x0 == -x1 and y0 == y1 for x0, y0, x1, y1 in marks)  # mirror images agree
    data = glyphs(200, variant="fine")
    assert data.classes == tuple(names)


def test_a_noise_rate_moves_that_share_of_labels_to_other_classes_evenly():
    clean, noisy = glyphs(8000, size=8), glyphs(8000, size=8, label_noise=0.3)
    assert torch.equal(noisy.images, clean.images) and torch.equal(noisy.clean_labels, clean.labels)
    moved = noisy.labels != noisy.clean_labels
    assert moved.float().mean().item() == pytest.approx(0.3, abs=0.02)
    target = (noisy.labels - noisy.clean_labels)[moved] % 10
    share = target.bincount(minlength=10)[1:] / moved.sum()
    assert (share - 1 / 9).abs().max() < 0.03
    assert torch.equal(noisy.labels, glyphs(8000, size=8, label_noise=0.3).labels)
    assert clean.clean_labels is None


def test_a_noise_matrix_is_what_the_labels_follow():
    matrix = [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.1, 0.2, 0.7]]
    data = glyphs(6000, size=8, classes=3, label_noise=torch.tensor(matrix))
    table = torch.stack([data.labels[data.clean_labels == k].bincount(minlength=3) / 2000 for k in range(3)])
    torch.testing.assert_close(table, torch.tensor(matrix), atol=0.04, rtol=0)
    assert torch.equal(table == 0, torch.tensor(matrix) == 0)


def test_noise_of_one_leaves_no_label_as_it_was():
    data = glyphs(500, size=8, label_noise=1.0)
    assert (data.labels != data.clean_labels).all() and data.labels.max() < 10


@pytest.mark.parametrize(("options", "words"), [
    ({"variant": "plane"}, "did you mean 'plain'"),
    ({"classes": 11}, "2 to 10 classes.*nearest is 10"),
    ({"classes": 1}, "nearest is 2"),
    ({"size": 7}, "at least 8 x 8"),
    ({"size": (32, 5)}, "at least 8 x 8"),
    ({"label_noise": 1.5}, r"\[0, 1\], got 1.5"),
    ({"label_noise": float("nan")}, r"\[0, 1\]"),
    ({"label_noise": torch.eye(3)}, r"\(10, 10\).*got \(3, 3\)"),
    ({"label_noise": torch.full((10, 10), 0.2)}, "sum to 1.*2.0"),
    ({"label_noise": 1.1 * torch.eye(10) - 0.01}, "sum to 1"),
])
def test_bad_arguments_are_refused_with_the_way_out(options, words):
    with pytest.raises(ValueError, match=words):
        glyphs(10, **options)


def test_a_negative_number_of_images_is_refused():
    with pytest.raises(ValueError, match="0 or more"):
        glyphs(-1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_draws_the_same_images_to_one_level():
    here, there = glyphs(200, seed=1), glyphs(200, seed=1, device="cuda").to("cpu")
    assert torch.equal(here.labels, there.labels)
    assert ((here.images.int() - there.images.int()).abs() <= 1).float().mean() > 0.999
    assert (here.masks == there.masks).float().mean() > 0.999
