"""What the chapter "Adversarial images" states as equations and no other file tests; what it reads of recorded runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from payattn import measures, recipes
from payattn.check.adversarial import lost_and_fooled
from payattn.data import ImageSet, glyphs
from payattn.models import Normalize
from payattn.robust import curve, fgsm, fooling_rate, margin


def squares(n: int = 40, classes: int = 2, seed: int = 0) -> tuple[Any, Tensor, Tensor]:
    """A linear model and images of 4 x 4 pixels far from 0 and 1, in float64."""
    generator = torch.Generator().manual_seed(seed)
    model: Any = nn.Sequential(nn.Flatten(), nn.Linear(48, classes)).double()
    model[1].weight.data = torch.randn(classes, 48, generator=generator, dtype=torch.float64)
    model[1].bias.data = -0.5 * model[1].weight.data.sum(1)
    images = 0.3 + 0.4 * torch.rand(n, 3, 4, 4, generator=generator, dtype=torch.float64)
    return model, images, torch.randint(classes, (n,), generator=generator)


@given(seed=st.integers(0, 99))
def test_no_change_within_the_bound_gains_more_than_the_sign_of_the_gradient(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    model, images, labels = squares(3, seed=seed)
    step = fgsm(model, images, labels, 0.05) - images
    (slope,) = torch.autograd.grad(margin(model(images.requires_grad_()), labels).sum(), images)
    best = (slope * step).flatten(1).sum(1)
    torch.testing.assert_close(best, 0.05 * slope.abs().flatten(1).sum(1))
    for _ in range(20):
        other = 0.05 * (2 * torch.rand(images.shape, generator=generator, dtype=torch.float64) - 1)
        assert ((slope * other).flatten(1).sum(1) <= best).all()


def test_random_signs_gain_nothing_on_average_and_spread_like_the_euclidean_length() -> None:
    generator = torch.Generator().manual_seed(0)
    slope = torch.randn(500, generator=generator, dtype=torch.float64)
    signs = 2.0 * torch.randint(0, 2, (20_000, 500), generator=generator).double() - 1
    gains = signs @ slope
    assert abs(gains.mean()) < 0.05 * slope.norm()
    assert gains.std().item() == pytest.approx(slope.norm().item(), rel=0.02)
    assert slope.abs().sum() > 15 * slope.norm()


def test_after_the_step_the_margin_of_a_linear_model_is_larger_by_epsilon_times_the_absolute_weights() -> None:
    model, images, labels = squares()
    weight = (model[1].weight[1] - model[1].weight[0]).abs().sum()
    for epsilon in (0.0, 0.01, 0.1):
        changed = fgsm(model, images, labels, epsilon)
        torch.testing.assert_close(margin(model(changed), labels), margin(model(images), labels) + epsilon * weight)
        torch.testing.assert_close(
            F.cross_entropy(model(changed), labels, reduction="none"),
            F.softplus(margin(model(images), labels) + epsilon * weight),
        )


def test_the_accuracy_of_a_linear_model_under_attack_is_the_share_below_their_critical_size() -> None:
    model, images, _ = squares(200)
    pixels = (255 * images).round().to(torch.uint8)
    data = ImageSet(pixels, model(pixels.double() / 255).argmax(1), ("a", "b"))
    model = model.float()
    critical = -margin(model(data.images / 255), data.labels) / (model[1].weight[1] - model[1].weight[0]).abs().sum()
    sizes = [0.0, 0.005, 0.01, 0.02, 0.05]
    found = [point["accuracy"] for point in curve(model, data, sizes)]
    assert found == [(size < critical).double().mean().item() for size in sizes]
    assert found[0] == 1 and found[-1] < 0.1


def test_the_gradient_of_a_softmax_by_hand_is_autograds_and_that_of_finite_differences() -> None:
    model, images, labels = squares(4, classes=5)
    x = images.flatten(1).requires_grad_()
    weight, bias = model[1].weight.detach(), model[1].bias.detach()

    def total(x: Tensor) -> Tensor:
        return F.cross_entropy(x @ weight.T + bias, labels, reduction="sum")

    by_hand = ((x @ weight.T + bias).softmax(1) - F.one_hot(labels, 5)) @ weight
    torch.testing.assert_close(torch.autograd.grad(total(x), x)[0], by_hand)
    assert torch.autograd.gradcheck(total, x)
    torch.testing.assert_close(fgsm(model, images, labels, 0.02), images + 0.02 * by_hand.sign().view_as(images))


def test_a_step_behind_the_normalisation_is_a_step_of_its_spread_in_pixels() -> None:
    model, images, labels = squares()
    first: Any = Normalize(0.5, (0.25, 0.2, 0.1)).double()
    inner = first(images).requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(model(inner), labels, reduction="sum"), inner)
    outer = images.clone().requires_grad_()
    (through,) = torch.autograd.grad(F.cross_entropy(model(first(outer)), labels, reduction="sum"), outer)
    torch.testing.assert_close(through, slope / first.std)
    pixels = (inner + 0.1 * slope.sign()) * first.std + 0.5
    torch.testing.assert_close((pixels - images).abs().amax((0, 2, 3)).detach(), 0.1 * first.std.flatten())
    changed = fgsm(nn.Sequential(first, model), images, labels, 0.1)
    torch.testing.assert_close((changed - images).abs().amax((0, 2, 3)), torch.full((3,), 0.1).double())


@given(st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=1, max_size=12))
def test_changed_decisions_are_right_to_wrong_wrong_to_right_and_wrong_to_wrong(triples: list) -> None:
    labels, before, after = torch.tensor(triples).T
    right, moved = before == labels, before != after
    shares = [which.double().mean().item() for which in (
        right & moved, ~right & (after == labels), ~right & moved & (after != labels))]  # fmt: skip
    lost, fooled = lost_and_fooled(labels, before, after)
    assert fooled == pytest.approx(fooling_rate(before, after)) == pytest.approx(sum(shares))
    assert lost == pytest.approx(shares[0] - shares[1])
    assert lost <= fooled + 1e-12


@pytest.mark.parametrize("row", ["vgg", "control", "gap", "pan", "pc", "scaled-dp"])
def test_every_row_of_the_attack_recipes_can_be_measured_and_maps_only_where_they_spread_weight(row: str) -> None:
    data = glyphs(40, size=16)
    options = {"epsilons": [4], "n": 20, "crafted_on": ["glyphs/vgg"]}

    def network(name: str) -> nn.Module:
        return recipes.build(recipes.get(name), 0, data)

    found = measures.attack(network(f"glyphs/{row}"), {"glyphs": (data, data)}, options, network)["glyphs"]
    assert {"clean", "fgsm", "pgd", "from vgg", "shift", "check"} <= set(found)
    assert set(found["fgsm"]["4/255"]) == {"accuracy", "fooled"}
    levels = {"pan", "pc", "scaled-dp"} & {row} and {"layer10", "layer13"}
    assert set(found["shift"].get("4/255", {})) == set(levels)
