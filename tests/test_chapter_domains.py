"""What the chapter "New domains and fine detail" states as equations and no other file tests."""

from __future__ import annotations

import pytest
import torch
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from torch import Tensor, nn

from payattn import localize, measures
from payattn.attention import attention_weights
from payattn.check.domains import class_numbers, detail_weight, squared_hinge, standardise, svm_gradient
from payattn.data import ImageSet, glyphs
from payattn.generalize import shared_classes


def test_the_small_part_of_a_fine_glyph_is_its_mark() -> None:
    data = glyphs(200, variant="fine", seed=5)
    mark = localize.small_parts(data.masks)
    found, dot = mark.flatten(1).sum(1), torch.tensor([name.startswith("dot") for name in data.classes])[data.labels]
    assert (found > 0).float().mean() > 0.95, "here and there a dash touches the glyph"
    assert found[dot].max() < 10 < found[~dot & (found > 0)].float().mean()
    assert not (mark & ~data.masks).any()
    assert not localize.small_parts(mark.new_ones(1, 4, 4)).any()


class Pointer(nn.Module):
    """A network whose one map is one pixel: the middle of the mark, or that of the rest."""

    levels = ("layer13",)

    def __init__(self, maps: Tensor) -> None:
        super().__init__()
        self.maps = nn.Parameter(maps.float())

    def forward(self, images: Tensor, return_maps: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.zeros(len(images), 10), {"layer13": self.maps[: len(images)]}


def test_the_measure_of_detail_tells_a_map_on_the_part_from_a_map_on_the_object() -> None:
    data = glyphs(60, variant="fine", seed=5)
    parts = localize.small_parts(data.masks)
    whole = parts.flatten(1).any(1)
    rest = (data.masks & ~localize.widen(parts, 1))[whole]
    on = {"glyphs-fine": (data, data)}
    there = measures.detail(Pointer(parts[whole]), on, {}, lambda name: nn.Identity())["glyphs-fine"]
    away = measures.detail(Pointer(rest), on, {}, lambda name: nn.Identity())["glyphs-fine"]
    assert there["layer13"] == pytest.approx({"part": 1, "object": 1, "weight": 1})
    assert away["layer13"] == pytest.approx({"part": 0, "object": 1, "weight": 0})
    assert there["centre"] == away["centre"]
    assert there["random"]["weight"] == pytest.approx(parts[whole].float().mean().item())
    assert there["random"]["part"] > there["random"]["weight"], "a tolerance of one pixel makes the part larger"


def test_the_measure_of_detail_needs_masks() -> None:
    data = glyphs(20, variant="fine")
    bare = ImageSet(data.images, data.labels, data.classes)
    with pytest.raises(ValueError, match="has no masks"):
        measures.detail(nn.Identity(), {"bare": (bare, bare)}, {}, lambda name: nn.Identity())


def clouds(n: int = 60, length: int = 5) -> tuple[Tensor, Tensor]:
    """Points of two classes that overlap, and their signs."""
    generator = torch.Generator().manual_seed(4)
    signs = torch.where(torch.arange(n) % 2 > 0, 1.0, -1.0).double()
    return torch.randn(n, length, generator=generator).double() + 0.6 * signs[:, None], signs


def test_standardising_is_scikit_learns_with_dead_features_kept() -> None:
    x = clouds()[0].relu() * torch.tensor([50, 0.1, 1, 0, 3])
    scaler = StandardScaler().fit(x[:40].numpy())
    assert torch.allclose(standardise(x[:40], x[40:]), torch.from_numpy(scaler.transform(x[40:].numpy())))


@pytest.mark.parametrize("cost", [0.01, 1.0])
def test_linear_svc_stops_where_the_gradient_of_our_objective_is_zero(cost: float) -> None:
    x, signs = clouds()
    machine = LinearSVC(C=cost, dual=False, tol=1e-10, max_iter=100_000).fit(x.numpy(), signs.numpy())
    w = torch.from_numpy(machine.coef_[0]).double()
    w = torch.cat([w, torch.from_numpy(machine.intercept_).double()])
    padded = torch.cat([x, torch.ones(len(x), 1).double()], 1)
    assert svm_gradient(w, padded, signs, cost).abs().max() < 1e-6, "the offset counts in the length, too"
    assert svm_gradient(w + 0.01, padded, signs, cost).abs().max() > 1e-3


def test_the_gradient_of_the_svm_by_hand_is_autograds() -> None:
    x, signs = clouds()
    w = torch.randn(5, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(1))

    def objective(w: Tensor) -> Tensor:
        return w @ w / 2 + 0.3 * squared_hinge(x @ w, signs).sum()

    auto = torch.autograd.grad(objective(w), w)[0]
    assert torch.allclose(svm_gradient(w.detach(), x, signs, 0.3), auto)
    assert torch.autograd.gradcheck(objective, w)


@pytest.mark.parametrize(("advantage", "cells", "positions"), [(0.0, 1, 64), (4.14, 1, 64), (2.0, 4, 256)])
def test_the_weight_of_a_detail_is_the_softmax(advantage: float, cells: int, positions: int) -> None:
    scores = torch.zeros(1, 1, positions, dtype=torch.float64)
    scores[..., :cells] = advantage
    assert detail_weight(advantage, cells, positions) == pytest.approx(
        attention_weights(scores)[..., :cells].sum().item())


def test_the_exercise_maps_classes_as_the_package_does() -> None:
    learned = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    new = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
    aliases = {"car": "automobile"}
    assert class_numbers(learned, new, aliases) == shared_classes(learned, new, aliases).tolist()
