"""What the chapter "What a map is" states as equations and no other file tests."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from payattn.attention import attend, attention_weights
from payattn.check.what_a_map_is import grad_cam_of, gradient_input, strips_lost
from payattn.maps import grad_cam, gradient_times_input, occlusion, smooth_grad
from payattn.transfer import tap


def tiny() -> nn.Sequential:
    """The chapter's network: two features of one pixel each, their means, two classes."""
    net = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2, bias=False)
    )
    with torch.no_grad():
        net[0].weight[:, 0, 0, 0], net[0].bias[:] = torch.tensor([1.0, -1.0]), torch.tensor([-1.0, 3.0])
        net[4].weight[:] = torch.tensor([[2.0, -1.0], [0.0, 1.0]])
    return net.double()


def row(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(1, 1, 1, -1)


@given(seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_shares_of_pixels_and_constants_add_up_to_the_logit(seed: int) -> None:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3)
    )
    images = torch.rand(1, 3, 6, 6)
    logit = net(images)[0, 1]
    constants = [value for name, value in net.named_parameters() if name.endswith("bias")]
    slopes = torch.autograd.grad(logit, constants, allow_unused=True)
    rest = sum((b * g).sum() for b, g in zip(constants, slopes, strict=True) if g is not None)
    shares = gradient_times_input(net, images, torch.tensor([1])).sum()
    torch.testing.assert_close(shares + rest, logit, atol=1e-5, rtol=1e-4)


def test_the_answers_on_paper_are_those_of_the_tiny_network() -> None:
    from payattn.check import exercises

    image, first = row(4, 4, 0, 0), torch.tensor([0])
    shares = gradient_times_input(tiny(), image, first).sum().item()
    expected = exercises()["map-constants"].solution
    assert (shares, tiny()(image)[0, 0].item() - shares) == pytest.approx(expected)
    features, slopes = row(2, 0), row(1, -1)
    assert exercises()["map-cancel"].solution == (grad_cam_of(features, slopes).max(), (features * slopes).sum())
    asked = []
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))
    net.register_forward_pre_hook(lambda module, given: asked.append(len(given[0])))
    occlusion(net, torch.rand(1, 3, 32, 32), window=8, stride=4)
    assert sum(asked) == exercises()["map-passes"].solution


def test_smooth_grad_is_the_gradient_of_a_blurred_logit() -> None:
    image, first = row(0, 2, 4, 5), torch.tensor([0])
    bell = torch.distributions.Normal(0, 1)
    expected = (2 * bell.cdf(image - 1) + bell.cdf(3 - image))[0] / 4  # noise of 0.2 times the range 5 is sigma 1
    found = smooth_grad(tiny(), image, first, samples=2000, noise=0.2)
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0)


@given(seed=st.integers(0, 999))
def test_shares_of_places_under_attention_add_up_to_the_logit(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    local, scores = torch.randn(2, 5, 3, 4, generator=generator), torch.randn(2, 3, 4, generator=generator)
    weight, bias = torch.randn(6, 5, generator=generator), torch.randn(6, generator=generator)
    a = attention_weights(scores)
    logits = attend(local, a) @ weight.T + bias
    shares = a[:, None] * torch.einsum("nkhw,ck->nchw", local, weight)
    torch.testing.assert_close(shares.sum((2, 3)) + bias, logits)
    flat = attention_weights(torch.zeros(2, 3, 4))  # equal weights: the class activation map over n
    cam = torch.einsum("nkhw,ck->nchw", local, weight)
    torch.testing.assert_close(flat[:, None] * cam, cam / 12)


def test_the_solutions_of_the_exercises_are_the_maps_of_the_package() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3))
    images, target = torch.rand(2, 3, 6, 5), torch.tensor([2, 0])
    with tap(net, ["1"], copy=True) as found:
        score = net(images.requires_grad_()).gather(1, target[:, None]).sum()
    slopes = torch.autograd.grad(score, [images, found["1"]])
    torch.testing.assert_close(gradient_input(images, slopes[0]).detach(), gradient_times_input(net, images, target))
    ours = grad_cam_of(found["1"], slopes[1]).detach()
    torch.testing.assert_close(ours, grad_cam(net, images, target, layer="1"))
    weight, image = torch.randn(4, 7), torch.rand(4, 7)
    line = nn.Sequential(nn.Flatten(), nn.Linear(28, 1, bias=False))
    line[1].weight.data[0] = weight.flatten()
    maps = occlusion(line, image.view(1, 1, 4, 7), window=(4, 2), stride=(4, 2), baseline="zero")
    torch.testing.assert_close(maps[0, 0], strips_lost(image, weight, 2))
