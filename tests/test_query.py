"""The query's effect on a map: by hand, by algebra, and that a query that cancels changes exactly nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression
from torch import Tensor, nn

from payattn.models import create
from payattn.query import maps_with_sum_one, swap, temperature_between, total_variation


def spread(seed: int, n: int = 3, h: int = 4, w: int = 5, scale: float = 1.0) -> Tensor:
    """Softmax maps in float64."""
    scores = scale * torch.randn(n, h, w, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return scores.flatten(1).softmax(1).view(n, h, w)


def sharpened(maps: Tensor, k: float) -> Tensor:
    return (k * maps.log()).flatten(1).softmax(1).view_as(maps)


def test_total_variation_by_hand() -> None:
    a = torch.tensor([[[0.5, 0.5, 0.0]], [[1.0, 0.0, 0.0]], [[0.2, 0.3, 0.5]]])
    b = torch.tensor([[[0.2, 0.4, 0.4]], [[0.0, 0.0, 1.0]], [[0.2, 0.3, 0.5]]])
    assert total_variation(a, b).tolist() == pytest.approx([0.4, 1, 0])


@given(seed=st.integers(0, 999))
def test_total_variation_is_a_distance_and_the_largest_difference_in_weight_of_any_region(seed: int) -> None:
    a, b, c = spread(seed), spread(seed + 1), spread(seed + 2)
    torch.testing.assert_close(total_variation(a, b), total_variation(b, a))
    assert (total_variation(a, c) <= total_variation(a, b) + total_variation(b, c) + 1e-12).all()
    gains = ((a - b) * (a > b)).sum((1, 2))
    torch.testing.assert_close(total_variation(a, b), gains)


@given(seed=st.integers(0, 999), k=st.sampled_from([0.1, 0.84, 1.0, 3.0]))
def test_a_pure_temperature_has_its_slope_and_leaves_nothing(seed: int, k: float) -> None:
    a = spread(seed)
    for kind, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        fit = temperature_between(a.to(kind), sharpened(a, k).to(kind))
        assert fit.slope.dtype == kind
        assert fit.slope.tolist() == pytest.approx([k] * 3, abs=tolerance)
        assert fit.r2.tolist() == pytest.approx([1] * 3, abs=tolerance)
        assert fit.residual.tolist() == pytest.approx([0] * 3, abs=tolerance) and fit.used.tolist() == [1, 1, 1]


@given(seed=st.integers(0, 999))
def test_the_fit_is_a_linear_regression_of_the_logarithms(seed: int) -> None:
    a, b = spread(seed), spread(seed + 1)
    fit = temperature_between(a, b)
    for i in range(3):
        x, y = a[i].flatten().log().numpy()[:, None], b[i].flatten().log().numpy()
        witness = LinearRegression().fit(x, y)
        assert fit.slope[i].item() == pytest.approx(witness.coef_[0])
        assert fit.r2[i].item() == pytest.approx(witness.score(x, y), abs=1e-9)
        assert fit.residual[i].item() == pytest.approx(np.sqrt(np.mean((y - witness.predict(x)) ** 2)))


def test_other_places_are_no_temperature() -> None:
    a = torch.tensor([[[0.7, 0.1, 0.1, 0.1]]])
    fit = temperature_between(a, a.flip(2))
    # logs centred: log 7 times (3, -1, -1, -1) / 4 and its mirror, whose product is -1/3 of the square
    assert fit.slope.item() == pytest.approx(-1 / 3) and fit.r2.item() == pytest.approx(1 / 9)
    assert fit.residual.item() == pytest.approx(math.log(7) * math.sqrt((1 - 1 / 9) * 12 / 16 / 4))


def test_places_of_weight_zero_are_left_out_and_counted() -> None:
    a = torch.tensor([[[0.2, 0.8, 0.0, 0.0]]])
    b = torch.tensor([[[0.1, 0.4, 0.5, 0.0]]])
    fit = temperature_between(a, b)
    assert fit.used.item() == 0.5 and fit.slope.item() == pytest.approx(1) and fit.r2.item() == pytest.approx(1)
    nothing = temperature_between(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]]))
    assert nothing.used.item() == 0 and nothing.slope.isnan() and nothing.r2.isnan()


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_a_constant_map_has_no_slope_and_a_flattened_one_slope_zero(kind: torch.dtype) -> None:
    a, constant = spread(0, 1).to(kind), torch.full((1, 4, 5), 1 / 20, dtype=kind)
    noise = constant * (1 + torch.finfo(kind).eps * torch.arange(20).view(1, 4, 5).remainder(3)).to(kind)
    for flat in (constant, noise):
        fit = temperature_between(flat, a)
        assert fit.slope.isnan() and fit.r2.isnan()
        fit = temperature_between(a, flat)
        assert fit.slope.item() == pytest.approx(0, abs=1e-6) and fit.r2.item() == 1


@pytest.mark.parametrize("function", [total_variation, temperature_between])
def test_maps_that_spread_no_weight_of_one_are_refused(function) -> None:  # type: ignore[no-untyped-def]
    good = torch.full((1, 1, 4), 0.25)
    for bad in (2 * good, good - 1, good * torch.nan, torch.tensor([[[1.5, -0.5, 0.0, 0.0]]])):
        with pytest.raises(ValueError, match="b must be non-negative and sum to one"):
            function(good, bad)
    with pytest.raises(ValueError, match="one shape"):
        function(good, good.view(1, 2, 2))
    with pytest.raises(ValueError, match=r"\(N, H, W\)"):
        function(good[0], good[0])


def net(name: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return create(name, 4, width=0.1, **options)


IMAGES = torch.rand(3, 3, 16, 12, generator=torch.Generator().manual_seed(1))
TEMPLATE = torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(2))


def test_residual_networks_are_swapped_as_well() -> None:
    same, other = (
        swap(net(f"rn-164-att2-concat-{score}", depth=11, init="default"), IMAGES, TEMPLATE) for score in ("pc", "dp")
    )
    assert len(same) == 2 and set(same) == set(other)
    assert all(values["total_variation"].eq(0).all() for values in same.values())
    assert all((values["total_variation"] > 0).all() for values in other.values())


@pytest.mark.parametrize("name", ["vgg-att-pc", "vgg-att2-concat-pc", "vgg-att3-indep-pc", "vgg-att2-concat-uniform"])
def test_where_the_query_cancels_a_swap_changes_exactly_nothing(name: str) -> None:
    model = net(name)
    with torch.no_grad():
        for parameter in model.fc1.parameters():
            parameter.mul_(100)  # a large query, which rounding in float32 would show
    single = model.eval()(IMAGES, return_maps=True)[1]
    found = swap(model, IMAGES, TEMPLATE)
    for level in model.levels:
        level_found = found[level]
        assert level_found["total_variation"].tolist() == [0, 0, 0]
        assert torch.equal(level_found["own"], level_found["swapped"])
        torch.testing.assert_close(level_found["own"], single[level])
        if "pc" in name:
            assert level_found["slope"].tolist() == [1, 1, 1] and level_found["r2"].tolist() == [1, 1, 1]
        else:
            assert level_found["slope"].isnan().all()


@pytest.mark.parametrize("name", ["vgg-att2-concat-dp", "vgg-att2-concat-scaled-dp", "vgg-att3-indep-additive"])
def test_where_the_query_counts_a_swap_gives_the_maps_of_the_other_query(name: str) -> None:
    model = net(name, init="default").eval()
    found = swap(model, (255 * IMAGES).round().to(torch.uint8), TEMPLATE)
    pixels = (255 * IMAGES).round() / 255
    own = model(pixels, return_maps=True)[1]
    other = model(pixels, return_maps=True, query=model.query(TEMPLATE[None]))[1]
    assert set(found) == set(model.levels)
    for level, values in found.items():
        torch.testing.assert_close(values["own"], own[level], rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(values["swapped"], other[level], rtol=1e-3, atol=1e-6)
        assert (values["total_variation"] > 0).all() and (values["r2"] <= 1).all()
        assert all(value.dtype == torch.float32 for value in values.values())


def test_the_own_image_as_template_changes_nothing_and_each_image_may_have_its_own() -> None:
    model = net("vgg-att2-concat-dp", init="default")
    assert all(v["total_variation"].eq(0).all() for v in swap(model, IMAGES, IMAGES).values())
    turned = swap(model, IMAGES, IMAGES.roll(1, 0))
    single = swap(model, IMAGES[:1], IMAGES[2])
    for level in model.levels:
        torch.testing.assert_close(turned[level]["swapped"][:1], single[level]["swapped"])


class Louder(nn.Module):
    """Asked for its query, it gives a multiple of it."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def query(self, images: Tensor) -> Tensor:
        return self.factor * self.model.query(images)

    def forward(self, *arguments: object, **options: object) -> object:
        return self.model(*arguments, **options)


def test_a_doubled_query_is_a_temperature_for_the_dot_product() -> None:
    found = swap(Louder(net("vgg-att2-concat-dp", init="default"), 2.0), IMAGES, IMAGES)["layer13"]
    torch.testing.assert_close(found["slope"], torch.full((3,), 2.0))
    torch.testing.assert_close(found["r2"], torch.ones(3))
    assert (found["total_variation"] > 0).all()


def test_rounding_is_not_reported_as_a_change() -> None:
    louder = Louder(net("vgg-att2-concat-pc").double().eval(), 1000.0)
    images = IMAGES.double()
    maps = [louder(images, return_maps=True, query=q)[1] for q in (None, louder.query(images))]
    assert any((maps[0][level] != maps[1][level]).any() for level in maps[0]), "nothing is rounded: this tests nothing"
    for values in swap(louder, images, images).values():
        assert values["total_variation"].tolist() == [0, 0, 0] and values["slope"].tolist() == [1, 1, 1]


def test_the_model_is_left_as_it_was_found() -> None:
    model = net("vgg-att2-concat-dp")
    model.trunk.eval()
    modes = [module.training for module in model.modules()]
    kinds = [parameter.dtype for parameter in model.parameters()]
    values = {name: value.clone() for name, value in model.state_dict().items()}
    swap(model, IMAGES, TEMPLATE)
    assert [module.training for module in model.modules()] == modes
    assert [parameter.dtype for parameter in model.parameters()] == kinds
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    torch.testing.assert_close(dict(model.state_dict()), values, rtol=0, atol=0)


def test_swap_says_what_does_not_fit() -> None:
    with pytest.raises(TypeError, match=r"VGG has no query\(images\)"):
        swap(net("vgg"), IMAGES, TEMPLATE)
    with pytest.raises(ValueError, match="has no map"):
        swap(net("vgg-att-control"), IMAGES, TEMPLATE)
    with pytest.raises(ValueError, match="one for each of 3, got 2"):
        swap(net("vgg-att-dp"), IMAGES, IMAGES[:2])
    with pytest.raises(ValueError, match=r"lie in \[0, 1\]"):
        swap(net("vgg-att-dp"), IMAGES, 255 * TEMPLATE)


def test_an_error_inside_the_model_is_not_taken_for_missing_maps() -> None:
    class Broken(nn.Module):
        def forward(self, images: Tensor, return_maps: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
            raise TypeError("something else")

    with pytest.raises(TypeError, match="something else"):
        maps_with_sum_one(Broken(), IMAGES)


def test_sigmoid_maps_are_divided_by_their_sum() -> None:
    model = net("vgg-att-dp", norm="sigmoid-sum").eval()
    raw = model(IMAGES, return_maps=True)[1]["layer13"]
    found = maps_with_sum_one(model, IMAGES)["layer13"]
    torch.testing.assert_close(found.sum((1, 2)), torch.ones(3))
    torch.testing.assert_close(found * raw.sum((1, 2), keepdim=True), raw)
