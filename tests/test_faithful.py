"""Judging maps by the network: by hand, by definition, and against plain NumPy, SciPy and scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from payattn.faithful import (
    BASELINES,
    Curve,
    band,
    compare,
    deletion,
    insertion,
    maps_by,
    randomise,
    ranks,
    reference,
    spearman,
    ssim,
)
from payattn.maps import gradient_saliency


class Light(nn.Module):
    """Class 1 has the probability of the weighted mean of the pixels: every curve can be done by hand."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights / weights.sum())
        self.dropout = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> Tensor:
        share = (self.dropout(images).mean(1) * self.weights).sum((1, 2)).clamp(1e-12, 1 - 1e-7)
        return torch.stack([1 - share, share], 1).log()


ONE = torch.tensor([1])
ROW = torch.tensor([[5.0, 3.0, 2.0]])


def net(seed: int = 0, classes: int = 4) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Dropout(0.5), nn.Linear(5, classes),
        )  # fmt: skip


# ------------------------------------------------------------------------------------------- the curves


def test_three_pixels_by_hand() -> None:
    model, images = Light(ROW), torch.ones(1, 3, 1, 3)  # the pixels are worth 0.5, 0.3 and 0.2
    good, bad = torch.tensor([[[9.0, 4.0, 1.0]]]), torch.tensor([[[1.0, 4.0, 9.0]]])
    first = deletion(model, images, good, ONE, steps=3)
    assert first.fractions.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert first.scores[0].tolist() == pytest.approx([1, 0.5, 0.2, 0], abs=1e-6)
    assert first.auc.item() == pytest.approx((1.5 / 2 + 0.7 / 2 + 0.2 / 2) / 3, abs=1e-6)
    assert deletion(model, images, bad, ONE, steps=3).auc.item() == pytest.approx((1.8 + 1.3 + 0.5) / 6, abs=1e-6)
    entered = insertion(model, images, good, ONE, steps=3)
    assert entered.scores[0].tolist() == pytest.approx([0, 0.5, 0.8, 1], abs=1e-6)
    assert entered.auc.item() == pytest.approx((0.5 + 1.3 + 1.8) / 6, abs=1e-6)


def test_the_area_of_a_polygon_is_exact() -> None:
    curve = Curve(torch.tensor([0.0, 0.25, 1.0]), torch.tensor([[1.0, 0.5, 0.0], [0.25, 0.25, 0.25]]))
    assert curve.auc.tolist() == [0.1875 + 0.1875, 0.25]


def plain(model: nn.Module, image: np.ndarray, order: list[int], other: np.ndarray, label: int, steps: int) -> list:
    """Deletion as one would write it: pixel after pixel, image after image."""
    found, now = [], image.copy()
    width, done = image.shape[2], 0
    for k in range(steps + 1):
        until = round(k * len(order) / steps)
        for pixel in order[done:until]:
            now[:, pixel // width, pixel % width] = other[:, pixel // width, pixel % width]
        done = until
        with torch.no_grad():
            logits = model(torch.from_numpy(now)[None])[0].double().numpy()
        e = np.exp(logits - logits.max())
        found.append(e[label] / e.sum())
    return found


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("leave", [True, False])
def test_curves_equal_those_of_plain_numpy(baseline: str, leave: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    model, images = net().eval(), torch.rand(5, 3, 6, 7, generator=generator)
    maps, target = torch.rand(5, 6, 7, generator=generator), torch.tensor([0, 1, 2, 3, 0])
    other = reference(images, baseline)
    curve = (deletion if leave else insertion)(model, images, maps, target, steps=10, baseline=baseline, batch_size=25)
    for n in range(5):
        order = sorted(range(42), key=lambda i: -maps[n].flatten()[i].item())
        old, new = (images, other) if leave else (other, images)
        expected = plain(model, old[n].numpy(), order, new[n].numpy(), int(target[n]), 10)
        assert curve.scores[n].tolist() == pytest.approx(expected, abs=1e-5)


def test_maps_of_another_size_are_enlarged_bilinearly() -> None:
    maps, size = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0)), (7, 9)
    large = F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    assert torch.equal(ranks(maps, size), ranks(large, size))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), h=st.integers(1, 5), w=st.integers(1, 5), scale=st.sampled_from([100.0, 0.01, 1e20]))
def test_ranks_are_a_permutation_in_falling_order_and_know_no_scale(seed: int, h: int, w: int, scale: float) -> None:
    maps = torch.randn(3, h, w, generator=torch.Generator().manual_seed(seed))
    place = ranks(maps, (h, w)).flatten(1)
    assert torch.equal(place.sort(1).values, torch.arange(h * w).expand(3, -1))
    ordered = maps.flatten(1).gather(1, place.argsort(1))
    assert (ordered.diff(dim=1) <= 0).all()
    assert torch.equal(ranks(scale * maps, (9, 8)), ranks(maps, (9, 8)))
    assert torch.equal(ranks(maps + 3, (h, w)), ranks(maps, (h, w)))


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -7.3])
def test_equal_pixels_go_in_an_order_that_favours_no_place(value: float) -> None:
    place = ranks(torch.full((4000, 3, 3), value), (4, 5)).flatten(1).double()
    assert (place.mean(0) - 9.5).abs().max() < 0.5  # the standard error is 0.09
    assert not torch.equal(place[0], place[1])
    again = ranks(torch.full((4000, 3, 3), value), (4, 5), torch.Generator().manual_seed(0))
    assert torch.equal(again.flatten(1).double(), place)
    other = ranks(torch.full((4000, 3, 3), value), (4, 5), torch.Generator().manual_seed(1))
    assert not torch.equal(other, again)


def test_a_plateau_of_a_small_map_stays_one_when_it_is_enlarged() -> None:
    maps = torch.full((2000, 7, 7), 0.1)
    maps[:, 3, 3], maps[:, 6, 6] = 0.7, -0.2  # the plateau is neither the least nor the largest
    place = ranks(maps, 24).double()
    corner = place[:, :8, :8].mean(0)  # far from both: all equal, up to the rounding of the interpolation
    assert (corner - corner.mean()).abs().max() < 5 * 576 / 12**0.5 / 2000**0.5


def test_a_constant_map_deletes_like_a_random_one() -> None:
    model, images = Light(torch.arange(1.0, 26).view(5, 5)), torch.ones(300, 3, 5, 5)
    target = torch.ones(300, dtype=torch.long)
    flat = deletion(model, images, torch.zeros(300, 5, 5), target, steps=25).scores.mean(0)
    assert torch.allclose(flat, torch.linspace(1, 0, 26), atol=0.03)


def test_the_ends_of_the_curves_are_the_image_and_the_baseline() -> None:
    model, images = net().eval(), torch.rand(3, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    maps = torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        known, p = model(images).argmax(1), model(images).softmax(1)
        empty = model(reference(images, "mean")).softmax(1)
    gone = deletion(model, images, maps, steps=4, baseline="mean").scores
    come = insertion(model, images, maps, steps=4, baseline="mean").scores
    for first, last in ((gone[:, 0], gone[:, -1]), (come[:, -1], come[:, 0])):
        assert torch.allclose(first, p.gather(1, known[:, None])[:, 0], atol=1e-6)
        assert torch.allclose(last, empty.gather(1, known[:, None])[:, 0], atol=1e-6)


def test_chunks_uint8_and_float_give_the_same_and_the_model_is_left_as_found() -> None:
    model = net().train()
    model[0].weight.requires_grad_(False)
    images = torch.randint(0, 256, (7, 3, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    maps, state = torch.zeros(7, 2, 3), {k: v.clone() for k, v in model.state_dict().items()}
    whole = deletion(model, images, maps, steps=5)
    for size in (1, 4, 13):
        assert torch.allclose(deletion(model, images, maps, steps=5, batch_size=size).scores, whole.scores, atol=1e-6)
    assert torch.allclose(deletion(model, images / 255, maps, steps=5).scores, whole.scores, atol=1e-6)
    assert model.training and model[5].training and not model[0].weight.requires_grad and model[6].weight.requires_grad
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and not whole.scores.requires_grad


def test_images_in_the_units_of_a_foreign_model_pass() -> None:
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(2 * 12, 3)), torch.randn(2, 2, 3, 4)
    assert deletion(model, images, torch.rand(2, 3, 4), steps=12).scores.shape == (2, 13)


# ------------------------------------------------------------------------------------------- baselines


def test_the_blur_is_the_gaussian_of_scipy_and_keeps_what_is_flat() -> None:
    from scipy.ndimage import gaussian_filter1d

    images = torch.rand(1, 2, 9, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours = reference(images, "blur", sigma=0.25)
    theirs = images.numpy()
    for axis, side in ((2, 9), (3, 12)):
        width = 0.25 * side
        theirs = gaussian_filter1d(theirs, width, axis=axis, mode="nearest", radius=int(np.ceil(3 * width)))
    assert np.allclose(ours.numpy(), theirs, atol=1e-12)
    flat = torch.full((1, 3, 5, 7), 0.3)
    assert torch.allclose(reference(flat, "blur"), flat) and torch.allclose(reference(flat, "mean"), flat)


def test_a_baseline_of_ones_own_is_taken_as_it_is() -> None:
    model, images = Light(ROW), torch.ones(2, 3, 1, 3)
    half, target = torch.full((1, 3, 1, 3), 0.5), torch.tensor([1, 1])
    curve = deletion(model, images, torch.zeros(2, 1, 3), target, steps=1, baseline=half)
    assert curve.scores.flatten().tolist() == pytest.approx([1, 0.5, 1, 0.5], abs=1e-6)
    assert torch.equal(half, torch.full((1, 3, 1, 3), 0.5))


BAD: list[tuple[dict, str]] = [
    ({"maps": torch.zeros(1, 3, 3)}, r"maps must be \(2, h, w\)"),
    ({"maps": torch.full((2, 3, 3), float("nan"))}, "must be finite"),
    ({"steps": 0}, "from 1 to the 12 pixels"),
    ({"steps": 13}, "from 1 to the 12 pixels"),
    ({"batch_size": 0}, "batch_size"),
    ({"baseline": "blurr"}, "did you mean 'blur'"),
    ({"baseline": torch.zeros(3, 3, 3, 4)}, "a baseline of your own"),
    ({"target": torch.tensor([0, 4])}, "classes 0 to 3"),
    ({"images": torch.zeros(2, 3, 4)}, r"\(N, C, H, W\)"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_what_does_not_fit_is_refused(change: dict, message: str) -> None:
    given = {"images": torch.zeros(2, 3, 3, 4), "maps": torch.zeros(2, 3, 3), "steps": 2} | change
    with pytest.raises(ValueError, match=message):
        deletion(net(), **given)


# ------------------------------------------------------------------------------------------- bands


def test_the_band_of_a_mean_is_that_of_scipy_and_of_the_normal_law() -> None:
    from scipy.stats import bootstrap

    values = torch.randn(200, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = band(values, resamples=4000)
    theirs = bootstrap((values.numpy(),), np.mean, method="percentile", n_resamples=4000, random_state=0)
    assert found.low.item() == pytest.approx(theirs.confidence_interval.low, abs=0.01)
    assert found.high.item() == pytest.approx(theirs.confidence_interval.high, abs=0.01)
    error = 1.96 * values.std().item() / 200**0.5
    assert (found.high - found.low).item() == pytest.approx(2 * error, rel=0.08)
    assert found.mean.item() == pytest.approx(values.mean().item())
    narrow = band(values, level=0.5, resamples=4000)
    assert (narrow.high - narrow.low).item() == pytest.approx(2 * 0.674 * error / 1.96, rel=0.1)


def test_each_column_has_its_own_band_with_the_same_draws() -> None:
    values = torch.rand(30, 2, 3, generator=torch.Generator().manual_seed(0))
    whole = band(values)
    assert whole.mean.shape == (2, 3) and whole.low.dtype == torch.float32
    for i in range(2):
        for j in range(3):
            one = band(values[:, i, j])
            assert torch.allclose(torch.stack([one.low, one.high]), torch.stack([whole.low[i, j], whole.high[i, j]]))
    assert (whole.low < whole.mean).all() and (whole.mean < whole.high).all()
    assert [x.tolist() for x in band(torch.full((7,), 0.1))] == pytest.approx([0.1] * 3, abs=1e-7)
    same = band(torch.full((7,), 0.1))
    assert same.low == same.high == same.mean


def test_the_draws_are_seeded() -> None:
    values = torch.rand(20, generator=torch.Generator().manual_seed(0))
    assert band(values) == band(values, generator=torch.Generator().manual_seed(0))
    assert band(values) != band(values, generator=torch.Generator().manual_seed(1))


def test_a_band_of_differences_decides_only_on_one_side_of_zero() -> None:
    one, rest = torch.ones(9), torch.tensor([-1.0, 1.0] * 5)
    assert [band(x).answer() for x in (one, -one, rest, 0 * one)] == ["yes", "no"] + 2 * ["not decided here"]
    assert band(0.125 * one).text(3) == "0.125 (0.125 to 0.125)"


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (torch.rand(1), {}, "two images or more"),
        (torch.tensor([0.0, float("nan")]), {}, "finite"),
        (torch.rand(3), {"level": 95}, "level"),
        (torch.rand(3), {"resamples": 0}, "resamples"),
    ],
)
def test_a_band_that_cannot_be_is_refused(values: Tensor, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        band(values, **options)


# ------------------------------------------------------------------------------------------- likeness of maps


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), levels=st.integers(2, 30), sign=st.sampled_from([1.0, -1.0]))
def test_rank_correlation_is_that_of_scipy_with_ties(seed: int, levels: int, sign: float) -> None:
    from scipy.stats import spearmanr

    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(levels, (3, 4, 5), generator=generator).float()
    second = torch.randint(levels, (3, 4, 5), generator=generator).float() + first * 0.5
    first[:, 0, 0], second[:, 0, :2] = -1, torch.tensor([-2.0, -3.0])  # none of them is constant
    found = spearman(first, sign * 100 * second)
    for n in range(3):
        expected = spearmanr(first[n].flatten(), second[n].flatten()).statistic
        assert found[n].item() == pytest.approx(sign * expected, abs=1e-6)


@pytest.mark.parametrize(("h", "w", "side"), [(9, 11, 7), (7, 7, 7), (6, 8, 5), (3, 20, 3)])
def test_structural_similarity_is_that_of_scikit_image(h: int, w: int, side: int) -> None:
    from skimage.metrics import structural_similarity

    generator = torch.Generator().manual_seed(0)
    first = torch.rand(3, h, w, generator=generator)
    second = first + torch.rand(3, h, w, generator=generator)
    found = ssim(first, 100 * second - 7)
    for n in range(3):
        a, b = (((x - x.min()) / (x.max() - x.min())).double().numpy() for x in (first[n], second[n]))
        expected = structural_similarity(a, b, win_size=side, data_range=1.0, use_sample_covariance=False)
        assert found[n].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("alike", [spearman, ssim])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 2), (8, 8)])
def test_a_map_is_like_itself_at_any_scale_and_flat_maps_are_legal(alike, size: tuple[int, int]) -> None:  # type: ignore[no-untyped-def]
    maps = torch.rand(2, *size, generator=torch.Generator().manual_seed(0))
    flat = torch.full((2, *size), 0.1)
    assert torch.allclose(alike(maps, 100 * maps), torch.ones(2))
    assert torch.allclose(alike(flat, torch.zeros(2, *size)), torch.ones(2))
    if size == (8, 8):
        assert (alike(maps, flat).abs() < 0.1).all() and (alike(flat, maps).abs() < 0.1).all()


def test_maps_of_different_shapes_and_even_windows_are_refused() -> None:
    for alike in (spearman, ssim):
        with pytest.raises(ValueError, match="of one shape"):
            alike(torch.zeros(1, 2, 2), torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match="odd"):
        ssim(torch.zeros(1, 8, 8), torch.zeros(1, 8, 8), window=6)


# ------------------------------------------------------------------------------------------- randomised weights


def blind(model: nn.Module, images: Tensor, target: Tensor | None) -> Tensor:
    """Edges: what many a map shows of an image without asking the network."""
    return images.float().mean(1).diff(dim=1).abs()


def test_the_cascade_goes_from_the_logits_down_and_a_blind_map_survives_it() -> None:
    model, images = net(), torch.rand(6, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    found = randomise(model, images, gradient_saliency)
    assert found.stages == ("trained", "6", "1", "0")
    assert found.maps.shape == (4, 6, 6, 6) and found.spearman.shape == found.ssim.shape == (4, 6)
    assert torch.allclose(found.spearman[0], torch.ones(6)) and torch.allclose(found.ssim[0], torch.ones(6))
    assert (found.spearman[3] < 0.9).all()
    for measure in (randomise(model, images, blind).spearman, randomise(model, images, blind).ssim):
        assert torch.allclose(measure, torch.ones(4, 6))


def test_the_model_is_left_as_found_bit_for_bit_even_if_the_method_fails() -> None:
    model = net().train()
    model[0].weight.requires_grad_(False)
    model[1].running_var.fill_(3.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images, calls = torch.rand(2, 3, 5, 5), []

    def failing(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
        calls.append({name: value.clone() for name, value in model.state_dict().items()})
        if len(calls) == 4:
            raise RuntimeError("no map")
        return images.mean(1)

    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="no map"):
        randomise(model, images, failing)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and not model[0].weight.requires_grad and model[6].weight.requires_grad
    assert not any(module._forward_hooks for module in model.modules())
    # what each stage had changed: the classifier, then the norm with its statistics, then the convolution
    changed = [{name for name in before if not torch.equal(call[name], before[name])} for call in calls]
    assert changed[0] == set() and changed[1] == {"6.weight", "6.bias"}
    assert (
        changed[2] - changed[1] <= {name for name in before if name.startswith("1.")} and "1.running_var" in changed[2]
    )
    assert changed[3] - changed[2] == {"0.weight", "0.bias"}


def test_draws_are_seeded_and_stages_can_be_named() -> None:
    model, images = net(), torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    found = [randomise(model, images, gradient_saliency, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(found[0].maps, found[1].maps) and not torch.equal(found[0].maps, found[2].maps)
    assert torch.equal(found[0].maps, randomise(model, images, gradient_saliency).maps)
    assert randomise(model, images, gradient_saliency, layers=["6", "0"]).stages == ("trained", "6", "0")
    nested = nn.Sequential(net()[:6], nn.Linear(5, 4))
    assert randomise(nested, images, gradient_saliency, layers=["1", "0"]).stages == ("trained", "1", "0")
    with pytest.raises(ValueError, match="valid: '0'"):
        randomise(model, images, gradient_saliency, layers=["66"])
    with pytest.raises(ValueError, match="no parameters to draw"):
        randomise(model, images, gradient_saliency, layers=["2"])


def test_the_order_is_that_of_the_pass_and_parameters_without_a_reset_are_drawn_too() -> None:
    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(4, 3)  # registered first, called last
            self.first = nn.Conv2d(3, 4, 1)
            self.scale = nn.Parameter(torch.full((4,), 2.0))
            self.silent = nn.ModuleDict({"gain": nn.Linear(4, 4)})  # read, never called

        def forward(self, images: Tensor) -> Tensor:
            features = self.first(images).mean((2, 3)) * self.scale
            return self.last(F.linear(features, self.silent["gain"].weight))

    model, images, seen = Crossed(), torch.rand(2, 3, 4, 4), []

    def method(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
        seen.append(model.scale.detach().clone())
        return gradient_saliency(model, images, target)

    stages = randomise(model, images, method).stages
    assert stages == ("trained", "silent.gain", "", "last", "first")
    assert torch.equal(seen[1], torch.full((4,), 2.0)) and not torch.equal(seen[2], seen[1])
    assert torch.equal(model.scale, torch.full((4,), 2.0))


def test_the_target_of_all_stages_is_the_class_of_the_trained_network() -> None:
    model, images, asked = net(), torch.rand(5, 3, 5, 5, generator=torch.Generator().manual_seed(0)), []

    def method(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
        asked.append(target)
        return images.mean(1)

    randomise(model, images, method, batch_size=2)
    known = model.eval()(images).argmax(1)
    assert len(asked) == 4 * 3
    for stage in range(4):
        assert torch.equal(torch.cat(asked[3 * stage : 3 * stage + 3]), known)


def test_two_networks_are_compared_for_the_class_of_the_first() -> None:
    one, two = net(0), net(1)
    images = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    found = compare(one, two, images, gradient_saliency, batch_size=3)
    target = one.eval()(images).argmax(1)
    expected = [gradient_saliency(model, images, target) for model in (one, two)]
    assert torch.allclose(found.maps, torch.stack(expected), atol=1e-6)
    assert torch.allclose(found.spearman[1], spearman(*expected)) and torch.allclose(found.ssim[1], ssim(*expected))
    assert found.stages == ("true labels", "shuffled labels")
    assert torch.allclose(compare(one, one, images, gradient_saliency).spearman, torch.ones(2, 4))
    with pytest.raises(ValueError, match="one map per image"):
        maps_by(lambda model, images, target: images.mean((1, 2)), one, images)
