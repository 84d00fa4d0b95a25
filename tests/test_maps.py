"""Maps of any network: by hand, against captum and torchcam, and that the network is left as it was found."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torchcam.methods
import torchvision
from captum.attr import InputXGradient, LayerGradCam, NoiseTunnel, Occlusion, Saliency
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models import resnet18

from payattn.maps import (
    METHODS,
    centre_prior,
    class_activation,
    frozen,
    grad_cam,
    gradient_saliency,
    gradient_times_input,
    last_layer,
    occlusion,
    random_maps,
    reference,
    smooth_grad,
    windows,
)
from payattn.models import Normalize, create
from payattn.transfer import tap

SEEING = {name: method for name, method in METHODS.items() if name not in ("centre", "random")}


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
        "hooks": [
            len(hooks)
            for module in model.modules()
            for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        ],
    }


def assert_as_found(model: nn.Module, before: dict[str, Any]) -> None:
    after = state_of(model)
    assert all(after[what] == before[what] for what in ("modes", "learns", "hooks"))
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


@pytest.mark.parametrize("name", SEEING)
def test_the_network_is_left_as_it_was_found(name: str) -> None:
    model, call = mixed(Pooled()), SEEING[name]
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


# ------------------------------------------------------------------------------------------- one signature for all


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_one_map_per_image_for_odd_and_rectangular_images(name: str) -> None:
    model, images = Pooled(), pictures(3, 9, 7)
    maps = METHODS[name](model, images, torch.tensor([3, 0, 1]))
    assert maps.shape == (3, 9, 7) and maps.dtype == torch.float32 and not maps.requires_grad
    whole = (255 * images).round().to(torch.uint8)
    assert torch.equal(METHODS[name](model, whole), METHODS[name](model, whole.float() / 255))
    assert torch.equal(METHODS[name](model, images), METHODS[name](model, images)), "without a generator it repeats"


@pytest.mark.parametrize("name", [name for name in METHODS if name != "random"])
def test_a_batch_gives_what_its_images_give_one_by_one(name: str) -> None:
    model, images, target = Pooled(), pictures(5, 9, 7), torch.tensor([3, 0, 1, 2, 2])
    alone = torch.cat([METHODS[name](model, images[n : n + 1], target[n : n + 1]) for n in range(5)])
    torch.testing.assert_close(METHODS[name](model, images, target), alone)


@pytest.mark.parametrize("name", [name for name in SEEING if name != "cam"])
def test_a_foreign_network_takes_the_numbers_it_was_trained_on(name: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    images = 3 * torch.randn(2, 1, 9, 7, generator=torch.Generator().manual_seed(1))
    maps = SEEING[name](net, images)
    assert len(maps) == 2 and maps.isfinite().all() and maps.abs().max() > 0
    with pytest.raises(ValueError, match="finite"):
        SEEING[name](net, images / 0)
    with pytest.raises(ValueError, match=r"images must be \(N, C, H, W\), got \(1, 9, 7\)"):
        SEEING[name](net, images[0])
    with pytest.raises(TypeError, match="uint8"):
        SEEING[name](net, images.long())
    ours = nn.Sequential(Normalize(), nn.Flatten(), nn.Linear(3 * 9 * 7, 3))
    with pytest.raises(ValueError, match=r"lie in \[0, 1\]"):
        SEEING[name](ours, images.expand(2, 3, 9, 7))


@pytest.mark.parametrize(
    ("name", "layer"), [("densenet121", "features"), ("squeezenet1_1", "classifier.2"), ("shufflenet_v2_x0_5", "conv5")]
)
def test_the_last_layer_with_places_is_found_in_networks_of_others(name: str, layer: str) -> None:
    torch.manual_seed(0)
    net, images = getattr(torchvision.models, name)(num_classes=5), torch.randn(1, 3, 75, 91)
    before = state_of(net)
    assert last_layer(net, images) == layer
    found = grad_cam(net, images, relu=False)
    assert found.shape[1] * found.shape[2] > 1 and found.abs().max() > 0
    assert_as_found(net, before)


def test_the_normalisation_of_a_foreign_network_may_stand_inside_or_outside() -> None:
    torch.manual_seed(0)
    net, images = resnet18(num_classes=5), pictures(2, 40, 56)
    inside, outside = nn.Sequential(Normalize(0.4, 0.3), net), Normalize(0.4, 0.3)(images)
    assert last_layer(net, images) == "layer4" and last_layer(inside, images) == "1.layer4"
    torch.testing.assert_close(grad_cam(inside, images), grad_cam(net, outside))
    torch.testing.assert_close(gradient_saliency(inside, images), gradient_saliency(net, outside) / 0.3)
    assert grad_cam(net, outside).shape == (2, 2, 2) and grad_cam(net, outside, layer="layer2").shape == (2, 5, 7)
    local = nn.Sequential(*list(net.eval().children())[:-2])(outside)
    cam = torch.einsum("nkhw,nk->nhw", local, net.fc.weight[net(outside).argmax(1)]).detach()
    torch.testing.assert_close(grad_cam(net, outside), cam.relu() / 4, atol=1e-6, rtol=1e-4)


# ------------------------------------------------------------------------------------------- gradients at the pixels


def homogeneous(seed: int = 0) -> nn.Sequential:
    """Convolutions, ReLUs and maxima without a constant: scaling the image scales the logits."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.LazyLinear(4, bias=False)
    )


@given(seed=st.integers(0, 50), height=st.integers(4, 9), width=st.integers(4, 9))
@settings(max_examples=20, deadline=None)
def test_without_constants_gradient_times_input_adds_up_to_the_logit(seed: int, height: int, width: int) -> None:
    model, images = homogeneous(seed), pictures(2, height, width, seed)
    logits = model(images).detach()
    maps = gradient_times_input(model, images, torch.tensor([3, 1]))
    torch.testing.assert_close(maps.sum((1, 2)), logits[[0, 1], [3, 1]], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("target", [None, torch.tensor([3, 0, 1])])
def test_gradient_times_input_is_captums(target: Tensor | None) -> None:
    model, images = small().eval(), pictures()
    classes = model(images).argmax(1) if target is None else target
    expected = InputXGradient(copy.deepcopy(model)).attribute(images.clone().requires_grad_(), classes).sum(1)
    torch.testing.assert_close(gradient_times_input(model, images, target), expected.detach())


class Square(nn.Module):
    """Two logits, the second twice the sum of the squares: its gradient is 4 x."""

    def forward(self, images: Tensor) -> Tensor:
        total = images.square().sum((1, 2, 3))
        return torch.stack([-total, 2 * total], 1)


def test_smooth_grad_by_hand_where_the_gradient_is_known() -> None:
    images = pictures(2, 4, 3)
    generator = torch.Generator().manual_seed(7)
    noise = torch.stack([torch.randn(3, 4, 3, generator=generator) for _ in range(5)]).mean(0)
    spread = 0.2 * (images.amax((1, 2, 3)) - images.amin((1, 2, 3))).view(2, 1, 1, 1)
    expected = (4 * (images + spread * noise)).abs().amax(1)
    found = smooth_grad(Square(), images, samples=5, noise=0.2, generator=generator.manual_seed(7))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(smooth_grad(Square(), images, noise=0.0), gradient_saliency(Square(), images))
    flat = torch.full((1, 3, 4, 3), 0.5)
    torch.testing.assert_close(smooth_grad(Square(), flat), gradient_saliency(Square(), flat))


def test_smooth_grad_asks_for_the_class_of_the_image_without_noise() -> None:
    model, images = small().eval(), pictures()
    clean = model(images).argmax(1)
    assert any((model(images + 3 * torch.randn_like(images)).argmax(1) != clean).any() for _ in range(9))
    assert torch.equal(smooth_grad(model, images, noise=3.0), smooth_grad(model, images, clean, noise=3.0))


def test_smooth_grad_is_captums_noise_tunnel_with_the_same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images, target = small().eval(), pictures(2), torch.tensor([3, 0])
    drawn = torch.randn(6, 1, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    spread = 0.15 * (images.amax((1, 2, 3)) - images.amin((1, 2, 3))).view(2, 1, 1, 1)

    def same(image: Tensor, stdev: float, n: int) -> Tensor:
        return (image + spread * drawn).transpose(0, 1).reshape(2 * n, 3, 8, 6)

    monkeypatch.setattr(NoiseTunnel, "_add_noise_to_input", staticmethod(same))
    tunnel = NoiseTunnel(Saliency(copy.deepcopy(model)))
    signed = tunnel.attribute(images, "smoothgrad", 6, target=target, abs=False).abs().amax(1)
    torch.testing.assert_close(smooth_grad(model, images, target, samples=6), signed)
    # captum's saliency takes absolute values before the mean unless told otherwise: then noise does not cancel
    unsigned = tunnel.attribute(images, "smoothgrad", 6, target=target).amax(1)
    assert (unsigned >= signed - 1e-6).all() and (unsigned > 1.01 * signed).any()


# ------------------------------------------------------------------------------------------- features of a layer


def test_grad_cam_by_hand() -> None:
    net = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        net[2].weight[0] = torch.tensor([1.0, 3.0, -2.0, 0.0])
    features = torch.tensor([[[[1.0, 2.0]], [[0.0, 4.0]]]])  # alpha = (1 + 3) / 2 and (-2 + 0) / 2
    found = grad_cam(net, features, torch.tensor([0]), layer="0", relu=False)
    assert found.tolist() == [[[2.0, 0.0]]]  # 2 * 1 - 1 * 0 and 2 * 2 - 1 * 4
    assert grad_cam(net, -features, torch.tensor([0]), layer="0").tolist() == [[[0.0, 0.0]]]


def test_at_global_average_pooling_grad_cam_is_the_class_activation_map() -> None:
    model, images, target = Pooled(), pictures(3, 9, 7), torch.tensor([3, 0, 1])
    signed = grad_cam(model, images, target, layer="local", relu=False)
    torch.testing.assert_close(signed, class_activation(model, images, target) / 63)
    torch.testing.assert_close(grad_cam(model, images, target, layer="local"), signed.relu())
    assert last_layer(model, images) == "local"
    torch.testing.assert_close(grad_cam(model, images, target), signed.relu())
    net = create("vgg-gap", 10, width=0.0625)
    cam, local = class_activation(net, images), grad_cam(net, images)
    assert last_layer(net, images) == "trunk.layer13"
    torch.testing.assert_close(local, cam.relu() / cam[0].numel(), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("layer", ["1", "2", "3"])
@pytest.mark.parametrize("relu", [True, False])
def test_grad_cam_is_captums_at_any_layer(layer: str, relu: bool) -> None:
    model, images, target = small().eval(), pictures(), torch.tensor([3, 0, 1])
    theirs = LayerGradCam(copy.deepcopy(model), None)
    theirs.layer = theirs.forward_func.get_submodule(layer)
    expected = theirs.attribute(images, target, relu_attributions=relu)[:, 0].detach()
    torch.testing.assert_close(grad_cam(model, images, target, layer=layer, relu=relu), expected)


def torchcams(kind: str, model: nn.Module, images: Tensor, target: Tensor, *names: str, **options: bool) -> Tensor:
    with getattr(torchcam.methods, kind)(model, *names) as extractor:
        scores = model(images)
        return extractor(target.tolist(), scores, **options)[0]


def test_grad_cam_and_cam_are_torchcams_where_that_does_not_rescale() -> None:
    model, images, target = Pooled().eval(), pictures(), torch.tensor([3, 0, 1])
    theirs = torchcams("GradCAM", model, images, target, "local", normalized=False)
    torch.testing.assert_close(grad_cam(model, images, target), theirs)
    cam = torchcams("CAM", model, images, target, "local", "head", normalized=False)
    torch.testing.assert_close(class_activation(model, images, target), cam)
    assert cam.min() < 0, "its docstring has a ReLU, its code has none"


def test_where_torchcam_differs_from_us_and_why() -> None:
    model, images, target = Pooled().eval(), pictures(), torch.tensor([3, 0, 1])
    # by default it stretches each map to [0, 1]: strength is lost, and what is weak looks like what is strong
    stretched = torchcams("CAM", model, images, target, "local", "head")
    ours = class_activation(model, images, target)
    assert torch.allclose(stretched.amin((1, 2)), torch.zeros(3))
    assert torch.allclose(stretched.amax((1, 2)), torch.ones(3))
    assert not torch.allclose(ours.amax((1, 2)), torch.ones(3), atol=0.05)
    # it has hooks on the network from its construction until it is told to remove them, and takes any mode
    extractor = torchcam.methods.GradCAM(model, "local")
    assert len(model.local._forward_hooks) == 2
    extractor.remove_hooks()
    assert not model.local._forward_hooks
    dropping = Pooled().train()
    torch.manual_seed(0)
    first, second = (torchcams("GradCAM", dropping, images, target, "local", normalized=False) for _ in range(2))
    assert not torch.equal(first, second), "dropout was at work"
    assert torch.equal(grad_cam(Pooled().train(), images, target), grad_cam(model, images, target))


def test_captum_takes_the_mode_it_finds_and_we_take_the_network_as_it_decides() -> None:
    model, images, target = small().train(), pictures(), torch.tensor([3, 0, 1])
    torch.manual_seed(0)
    first, second = (Saliency(model).attribute(images.clone().requires_grad_(), target) for _ in range(2))
    assert not torch.equal(first, second), "dropout was at work"
    assert not torch.equal(model[2].running_mean, small()[2].running_mean), "and batch statistics were counted"
    model, before = small().train(), state_of(small())
    assert torch.equal(gradient_saliency(model, images, target), gradient_saliency(small().eval(), images, target))
    assert_as_found(model, before)


def smooth() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Softplus(), nn.Conv2d(4, 3, 2), nn.Tanh(), nn.Flatten(), nn.LazyLinear(2)
    )


@pytest.mark.parametrize("layer", ["0", "1", "3"])
def test_grad_cam_can_be_differentiated(layer: str) -> None:
    model, images, target = smooth(), pictures(2, 5, 4), torch.tensor([1, 0])
    model(images)
    model.double()

    def mapped(x: Tensor) -> Tensor:
        return grad_cam(model, x, target, layer=layer, relu=False, create_graph=True)

    assert torch.autograd.gradcheck(mapped, images.double().requires_grad_())
    before = state_of(model)
    loss = grad_cam(model, images.double(), target, layer=layer, create_graph=True).square().sum()
    assert_as_found(model, before)
    weight = model[0].weight
    (slope,) = torch.autograd.grad(loss, weight)
    step = torch.zeros_like(weight)
    step[1, 2, 0, 1] = 1e-6
    with torch.no_grad():
        ends = []
        for sign in (1, -1):
            weight += sign * step
            ends.append(grad_cam(model, images.double(), target, layer=layer).square().sum())
            weight -= sign * step
    torch.testing.assert_close(slope[1, 2, 0, 1], (ends[0] - ends[1]) / 2e-6, rtol=1e-5, atol=1e-9)


def test_a_loss_on_the_map_reaches_only_the_parameters_that_learn() -> None:
    model, images = Pooled().train(), pictures()
    model.local[0].bias.requires_grad_(False)
    grad_cam(model, images, layer="local", create_graph=True).sum().backward()
    assert model.local[0].weight.grad is not None and model.head.weight.grad is not None
    assert model.local[0].bias.grad is None and model.training
    with torch.no_grad():
        assert grad_cam(model, images, layer="local", create_graph=True).requires_grad


class InPlace(nn.Module):
    """DenseNet's end: a ReLU in place, called as a function, on what the last module put out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.local, self.head = nn.Conv2d(3, 5, 3), nn.Linear(5, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.relu_(self.local(images)).mean((2, 3)))


def test_a_layer_behind_that_works_in_place_does_not_change_what_grad_cam_reads() -> None:
    model, images, target = InPlace(), pictures(), torch.tensor([3, 0, 1])
    with pytest.raises(ValueError, match="changed in place"), tap(model, ["local"]):
        model(images)
    with tap(model, ["local"], copy=True) as found:
        model(images)
    before = model.local(images).detach()
    assert before.min() < 0 and torch.equal(found["local"], before)
    alpha = model.head.weight[target][:, :, None, None] * (before > 0).float().mean((2, 3), keepdim=True) / 24
    expected = (alpha * before).sum(1).relu().detach()
    torch.testing.assert_close(grad_cam(model, images, target), expected)


def test_wrong_layers_get_the_candidates_with_their_shapes() -> None:
    model, images = Pooled(), pictures(1, 9, 7)
    with pytest.raises(ValueError, match=r"no layer 'lokal'; did you mean 'local'.*at 9x7: local \(5, 9, 7\)"):
        grad_cam(model, images, layer="lokal")
    with pytest.raises(ValueError, match=r"'head' puts out \(1, 4\)"):
        grad_cam(model, images, layer="head")
    with pytest.raises(TypeError, match="layer must be the name of a module, got Linear"):
        grad_cam(model, images, layer=model.head)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Sequential has no layer with more than one position; layers: none that"):
        grad_cam(nn.Sequential(nn.Flatten(), nn.Linear(3 * 9 * 7, 3)), images)
    unused = Pooled()
    unused.aside = nn.Conv2d(3, 2, 1)
    unused.local.register_forward_pre_hook(lambda module, given: given if unused.aside(given[0]).ndim else None)
    with pytest.raises(ValueError, match="do not depend on layer 'aside'"):
        grad_cam(unused, images, layer="aside")


# ------------------------------------------------------------------------------------------- covering parts


def test_occlusion_by_hand() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 1, bias=False))
    with torch.no_grad():
        net[1].weight[0] = torch.tensor([1.0, 2.0, -4.0, 8.0])
    image = torch.tensor([[[[1.0, 1.0, 1.0, 3.0]]]])
    # windows of two pixels lose 1 + 2, 2 - 4, -4 + 24; each pixel takes the mean of those that cover it
    found = occlusion(net, image, window=(1, 2), stride=1, baseline="zero")
    assert found.tolist() == [[[3.0, 0.5, 9.0, 20.0]]]
    # windows 0-1 and 2-3 with the mean, 1.5, in their place
    found = occlusion(net, image, window=(1, 2), stride=(1, 2))
    assert found.tolist() == [[[-1.5, -1.5, 14.0, 14.0]]]
    own = torch.tensor([[[[0.0, 1.0, 1.0, 1.0]]]])
    assert occlusion(net, image, window=1, stride=1, baseline=own).tolist() == [[[1.0, 0.0, 0.0, 16.0]]]


def test_for_a_straight_line_covering_single_pixels_is_gradient_times_input() -> None:
    torch.manual_seed(0)
    net, images = nn.Sequential(nn.Flatten(), nn.Linear(3 * 5 * 4, 3)), pictures(2, 5, 4)
    covered = occlusion(net, images, window=1, stride=1, baseline="zero", batch_size=7)
    torch.testing.assert_close(covered, gradient_times_input(net, images))


@pytest.mark.parametrize(("window", "stride"), [((3, 2), (2, 1)), ((4, 4), (3, 3)), ((9, 7), (1, 1)), ((2, 3), (2, 3))])
def test_occlusion_is_captums(window: tuple[int, int], stride: tuple[int, int]) -> None:
    model, images, target = small().eval(), pictures(3, 9, 7), torch.tensor([3, 0, 1])
    theirs = Occlusion(copy.deepcopy(model)).attribute(images, (3, *window), (3, *stride), 0, target)
    found = occlusion(model, images, target, window=window, stride=stride, baseline="zero")
    torch.testing.assert_close(found, theirs[:, 0])
    for size in (1, 5, 1000):
        again = occlusion(model, images, target, window=window, stride=stride, baseline="zero", batch_size=size)
        torch.testing.assert_close(found, again)
    blurred = occlusion(model, images, target, window=window, stride=stride, baseline=reference(images, "blur"))
    assert torch.equal(blurred, occlusion(model, images, target, window=window, stride=stride, baseline="blur"))


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_the_windows_cover_every_pixel_and_differ(data: st.DataObject) -> None:
    size = data.draw(st.tuples(st.integers(1, 11), st.integers(1, 11)))
    window = tuple(data.draw(st.integers(1, side)) for side in size)
    stride = tuple(data.draw(st.integers(1, side)) for side in window)
    covers = windows(size, window, stride)
    assert covers.any(0).all() and len(covers.flatten(1).unique(dim=0)) == len(covers)
    assert covers[0].sum() == window[0] * window[1] and (covers.flatten(1).sum(1) <= window[0] * window[1]).all()
    default = windows(size, tuple(max(1, side // 4) for side in size), 1)
    assert default.any(0).all()


def test_occlusion_needs_no_gradient() -> None:
    assert occlusion(Rounding(), pictures()).abs().max() > 0
    assert occlusion(Detached(), pictures()).abs().max() > 0


def test_options_that_make_no_map_are_refused() -> None:
    model, images = Pooled(), pictures()
    for call, said in (
        (lambda: occlusion(model, images, window=9), r"window \(9, 9\) must fit into the image \(8, 6\)"),
        (lambda: occlusion(model, images, window=2, stride=3), "never be covered"),
        (lambda: occlusion(model, images, window=0), "window must be a whole number of pixels, 1 or more"),
        (lambda: occlusion(model, images, window=(2, 2, 2)), "or two of them"),
        (lambda: occlusion(model, images, baseline="blurr"), "did you mean 'blur'"),
        (lambda: occlusion(model, images, baseline=torch.zeros(2, 3, 8, 6)), "images of the same shape"),
        (lambda: occlusion(model, images, batch_size=0), "batch_size"),
        (lambda: smooth_grad(model, images, samples=0), "samples must be a whole number"),
        (lambda: smooth_grad(model, images, noise=-0.1), "noise is a share"),
    ):
        with pytest.raises(ValueError, match=said):
            call()


def test_random_as_a_method_takes_a_generator() -> None:
    first, second = (METHODS["random"](None, pictures(), generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    assert not torch.equal(first, second)
