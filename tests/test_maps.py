"""Maps of any network: by hand, against captum, and that the network is left as it was found."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from captum.attr import Saliency
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from payattn.maps import centre_prior, class_activation, frozen, gradient_saliency, random_maps
from payattn.models import Normalize, create


def pictures(n: int = 3, height: int = 8, width: int = 6, seed: int = 1) -> Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(seed))


def small(seed: int = 0, in_place: bool = False) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(
        Normalize(0.4, 0.3), nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(in_place), nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 4),
    )  # fmt: skip
    net[2].running_mean.uniform_(-1, 1)
    return net


class Pooled(nn.Module):
    """Global average pooling with the class map that VGG-GAP has."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.local = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(5, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.local(images).mean((2, 3)))

    def class_map(self, images: Tensor, target: Tensor | None) -> Tensor:
        local = self.local(images)
        if target is None:
            target = self.head(local.mean((2, 3))).argmax(1)
        return torch.einsum("nkhw,nk->nhw", local, self.head.weight[target])


def state_of(model: nn.Module) -> dict[str, Any]:
    return {
        "modes": [module.training for module in model.modules()],
        "learns": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "values": {name: value.clone() for name, value in model.state_dict().items()},
    }


def assert_as_found(model: nn.Module, before: dict[str, Any]) -> None:
    after = state_of(model)
    assert after["modes"] == before["modes"] and after["learns"] == before["learns"]
    torch.testing.assert_close(after["gradients"], before["gradients"], rtol=0, atol=0)
    torch.testing.assert_close(after["values"], before["values"], rtol=0, atol=0)


def mixed(model: nn.Module) -> nn.Module:
    """Training mode with one module in evaluation mode, one parameter that does not learn, and one with a gradient."""
    model.train()
    norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    norm.eval()
    first, *_, last = model.parameters()
    first.requires_grad_(False)
    last.grad = torch.ones_like(last)
    return model


@pytest.mark.parametrize("call", [gradient_saliency, class_activation])
def test_the_network_is_left_as_it_was_found(call) -> None:  # type: ignore[no-untyped-def]
    model = mixed(Pooled())
    before = state_of(model)
    assert len(set(before["modes"])) == 2 and len(set(before["learns"])) == 2
    found = call(model, pictures())
    assert not found.requires_grad
    assert_as_found(model, before)
    with pytest.raises(ValueError, match="classes must be"):
        call(model, pictures(), torch.tensor([0]))
    assert_as_found(model, before)
    assert torch.equal(found, call(model.eval(), pictures())), "dropout or batch statistics were at work"


def test_frozen_turns_gradients_on_or_off_whatever_holds_outside() -> None:
    model, x = nn.Linear(2, 2), torch.ones(1, 2)
    for outside in (torch.no_grad, torch.inference_mode):
        with outside(), frozen(model):
            assert model(x.clone().requires_grad_()).requires_grad
    with frozen(model, gradients=False):
        assert not model(x.requires_grad_()).requires_grad
    with pytest.raises(KeyError), frozen(model):
        raise KeyError
    assert model.training and all(p.requires_grad for p in model.parameters())


def test_under_autocast_the_gradient_is_that_of_full_precision() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        inside = gradient_saliency(small(), pictures())
    assert inside.dtype == torch.float32 and torch.equal(inside, gradient_saliency(small(), pictures()))


@pytest.mark.parametrize("target", [None, torch.tensor([3, 0, 1])])
def test_the_saliency_is_captums(target: Tensor | None) -> None:
    model, images = small().eval(), pictures()
    classes = model(images).argmax(1) if target is None else target
    expected = Saliency(copy.deepcopy(model)).attribute(images.clone().requires_grad_(), classes).amax(1)
    torch.testing.assert_close(gradient_saliency(model, images, target), expected)


def test_the_saliency_is_the_slope_found_by_finite_differences() -> None:
    model, images = small().double().eval(), pictures(1, 4, 3).double()
    expected, step = torch.zeros(3, 4, 3), 1e-5
    for k, i, j in torch.cartesian_prod(*map(torch.arange, (3, 4, 3))).tolist():
        change = torch.zeros_like(images)
        change[0, k, i, j] = step
        expected[k, i, j] = ((model(images + change) - model(images - change))[0, 2] / (2 * step)).abs()
    found = gradient_saliency(model, images, torch.tensor([2]))[0]
    torch.testing.assert_close(found, expected.amax(0).double(), rtol=1e-4, atol=1e-6)


def test_uint8_and_float_images_and_layers_that_work_in_place_give_one_saliency() -> None:
    images = (255 * pictures()).round().to(torch.uint8)
    expected = gradient_saliency(small(), images)
    assert torch.equal(expected, gradient_saliency(small(in_place=True), images / 255))
    assert gradient_saliency(nn.Sequential(nn.ReLU(inplace=True), small()), images).shape == (3, 8, 6)


class Rounding(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return (255 * images).long().float().mean((2, 3))


class Detached(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return images.mean((2, 3))


@pytest.mark.parametrize("model", [Rounding(), Detached()])
def test_a_model_that_cuts_the_gradient_is_told_apart_from_one_with_gradient_zero(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="do not depend on the images by differentiable steps"):
        gradient_saliency(model, pictures())
    assert gradient_saliency(nn.Sequential(nn.Flatten(), nn.Threshold(9, 0)), pictures()).eq(0).all()


def test_bad_images_and_bad_models_get_clear_errors() -> None:
    with pytest.raises(ValueError, match=r"lie in \[0, 1\], got 0 to 255"):
        gradient_saliency(small(), 255 * torch.eye(8, 6).expand(1, 3, 8, 6))
    with pytest.raises(ValueError, match=r"lie in \[0, 1\]"):
        gradient_saliency(small(), torch.full((1, 3, 8, 6), torch.nan))
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\), got \(3, 8, 6\)"):
        gradient_saliency(small(), pictures()[0])
    with pytest.raises(TypeError, match="int64"):
        gradient_saliency(small(), pictures(), torch.zeros(3))
    with pytest.raises(ValueError, match="classes 0 to 3, got 0 to 4"):
        gradient_saliency(small(), pictures(), torch.tensor([0, 1, 4]))
    with pytest.raises(ValueError, match="to logits"):
        gradient_saliency(nn.Identity(), pictures())
    with pytest.raises(TypeError, match=r"to logits \(N, C\), got tuple"):
        gradient_saliency(Pair(), pictures())


class Pair(nn.Module):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images, images


def test_the_class_activation_map_averages_to_the_logit_without_the_bias() -> None:
    model, images = Pooled().eval(), pictures()
    target = torch.tensor([3, 0, 1])
    logits = model(images)
    maps = class_activation(model, (255 * images).to(torch.uint8), target)
    assert maps.shape == (3, 8, 6)
    torch.testing.assert_close(
        class_activation(model, images, target).mean((1, 2)),
        (logits - model.head.bias).gather(1, target[:, None])[:, 0].detach(),
    )
    assert torch.equal(class_activation(model, images), class_activation(model, images, logits.argmax(1)))


@pytest.mark.parametrize(("name", "options"), [("vgg-gap", {}), ("rn-164", {"depth": 11})])
def test_networks_with_global_average_pooling_have_class_activation_maps(name: str, options: dict[str, int]) -> None:
    torch.manual_seed(0)
    model, images = create(name, 4, width=0.125, **options), pictures(3, 24, 16)
    target = torch.tensor([3, 0, 1])
    maps = class_activation(model, images, target)
    assert model.training and not maps.requires_grad
    logits = model.eval()(images).detach()
    spread = maps.mean((1, 2)) - logits.gather(1, target[:, None])[:, 0]
    (bias,) = (module.bias.detach() for module in model.modules() if isinstance(module, nn.Linear))
    torch.testing.assert_close(spread, -bias[target])
    assert torch.equal(class_activation(model, images), class_activation(model, images, logits.argmax(1)))


def test_a_model_without_class_maps_is_told_what_to_use() -> None:
    with pytest.raises(TypeError, match=r"Sequential has no class_map.*vgg-gap.*gradient_saliency"):
        class_activation(small(), pictures())


def test_the_centre_prior_by_hand() -> None:
    prior = centre_prior(2, (3, 5), sigma=0.5)
    assert prior.shape == (2, 3, 5) and prior.dtype == torch.float32 and prior[0, 1, 2] == 1
    assert prior[1, 0, 2].item() == pytest.approx(torch.exp(torch.tensor(-0.5 * (1 / 1.5) ** 2)).item())
    assert prior[0, 1, 4].item() == pytest.approx(torch.exp(torch.tensor(-0.5 * (2 / 2.5) ** 2)).item())
    prior[0] = 0  # the maps share no memory
    assert prior[1].max() == 1


@given(height=st.integers(1, 9), width=st.integers(1, 9), sigma=st.sampled_from([0.1, 0.25, 2.0]))
def test_the_centre_prior_is_symmetric_and_falls_from_the_middle(height: int, width: int, sigma: float) -> None:
    prior = centre_prior(1, (height, width), sigma)
    assert torch.equal(prior, prior.flip(1)) and torch.equal(prior, prior.flip(2))
    half = prior[0, : (height + 1) // 2, 0]
    assert (half.diff() >= 0).all() and prior.max() == prior[0, height // 2, width // 2]


def test_random_maps_repeat_with_their_seed_and_have_few_cells() -> None:
    def draw(seed: int, **options: int) -> Tensor:
        return random_maps(300, (16, 12), torch.Generator().manual_seed(seed), **options)

    assert draw(0).shape == (300, 16, 12) and torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))
    assert draw(0).min() >= 0 and draw(0).max() <= 1 and draw(0).mean().item() == pytest.approx(0.5, abs=0.02)
    # one cell is one value everywhere; with as many cells as pixels nothing is enlarged
    assert draw(0, cells=1).std((1, 2)).max() < 1e-6
    raw = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    assert torch.equal(random_maps(5, 4, torch.Generator().manual_seed(3), cells=4), raw[:, 0])


def test_sizes_that_make_no_map_are_refused() -> None:
    generator = torch.Generator()
    for call in (lambda: centre_prior(0, 4), lambda: centre_prior(1, (4, 0)), lambda: random_maps(1, 0, generator)):
        with pytest.raises(ValueError, match="at least 1"):
            call()
    with pytest.raises(ValueError, match="cells"):
        random_maps(1, 4, generator, cells=0)
    for sigma in (0.0, torch.nan):
        with pytest.raises(ValueError, match="sigma must be positive"):
            centre_prior(1, 4, sigma)
