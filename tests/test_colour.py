"""The first layers: YUV with local contrast normalisation, and what it is fed.

Numbers in the names (``golden_13``) are those of the golden checks in the specification of Learn To Pay Attention.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import correlate1d
from torch import Tensor
from torch.nn import functional as F

from payattn.data import glyphs
from payattn.models import Normalize, YUVLocalContrast, colour_statistics, create, first_layer, local_contrast, to_yuv


def pictures(n: int = 4, height: int = 12, width: int = 15, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, height, width), generator=generator, dtype=torch.uint8)


def tiny(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    small = {"width": 0.125, "depth": 11} if name.startswith("rn-") else {"width": 0.05}
    return create(name, 5, **(small | {"colour": "yuv-lcn"} | options))


# Local contrast normalisation


def test_golden_13_a_constant_image_becomes_zero() -> None:
    for value in (0.0, 1.0, 127.3, 255.0):
        out = local_contrast(torch.full((2, 1, 32, 20), value, dtype=torch.float64))
        assert out.abs().max() < 1e-6
    for layer in (YUVLocalContrast(), YUVLocalContrast().double()):
        grey = torch.full((1, 3, 32, 32), 201, dtype=torch.uint8)
        assert layer(grey)[:, 0].abs().max() < 1e-6
        assert layer(grey / 255)[:, 0].abs().max() < 1e-6


def test_golden_13_a_ramp_becomes_zero_in_the_centre_and_the_stated_values_at_its_ends() -> None:
    for step in (1.0, 8.0):
        ramp = (step * torch.arange(32, dtype=torch.float64)).expand(1, 32, 32)
        row = local_contrast(ramp)[0, 16]
        assert row[[0, -1]].tolist() == pytest.approx([-1.14244, 1.14244], abs=5e-6)
        assert row[6:26].abs().max() < 1e-9
        torch.testing.assert_close(row, -row.flip(0))


def by_scipy(x: np.ndarray) -> np.ndarray:
    """The definition with another library's convolution."""
    taps = np.exp(-0.5 * ((np.arange(7) - 3) / 1.75) ** 2)
    assert [round(float(t), 4) for t in taps[:4]] == [0.2301, 0.5205, 0.8494, 1.0]
    taps /= taps.sum()

    def mu(z: np.ndarray) -> np.ndarray:
        return correlate1d(correlate1d(z, taps, axis=0, mode="constant"), taps, axis=1, mode="constant")

    kappa = mu(np.ones_like(x))
    y = x - mu(x) / kappa
    sigma = np.sqrt(mu(y**2)) / kappa
    return y / np.where(sigma <= 1e-4, 1e-4, sigma)


@pytest.mark.parametrize("shape", [(32, 32), (5, 9), (1, 1), (1, 40), (80, 33)])
def test_local_contrast_agrees_with_its_definition_in_another_library(shape: tuple[int, int]) -> None:
    x = np.random.default_rng(0).uniform(0, 255, shape)
    x[: shape[0] // 2, : shape[1] // 2] = 40.0  # flat in part
    out = local_contrast(torch.from_numpy(x)[None])[0].numpy()
    np.testing.assert_allclose(out, by_scipy(x), rtol=1e-9, atol=1e-8)


@given(st.floats(0.1, 10), st.floats(-50, 50))
def test_brightness_and_contrast_of_the_whole_image_do_not_matter(factor: float, shift: float) -> None:
    x = to_yuv(pictures(2))[:, :1]
    torch.testing.assert_close(local_contrast(factor * x + shift), local_contrast(x), rtol=1e-8, atol=1e-8)


def test_a_flat_part_of_an_image_stays_zero_and_is_not_amplified_rounding() -> None:
    images = pictures(1, 40, 40)
    images[..., :20] = torch.tensor([255, 250, 253], dtype=torch.uint8)[:, None, None]
    for given_as in (images, images / 255, (images / 255).half()):
        assert YUVLocalContrast()(given_as)[0, 0, :, 7:13].abs().max() < 1e-6


def test_a_mirrored_image_gives_the_mirrored_output() -> None:
    layer, images = YUVLocalContrast().double(), pictures(2)
    torch.testing.assert_close(layer(images.flip(-1)), layer(images).flip(-1))


# Colour


def test_primary_colours_have_the_published_components() -> None:
    primaries = torch.eye(3)[:, :, None, None]
    expected = 255 * torch.tensor([[0.299, -0.14713, 0.615], [0.587, -0.28886, -0.51499], [0.114, 0.436, -0.10001]])
    torch.testing.assert_close(to_yuv(primaries)[:, :, 0, 0], expected.double(), rtol=1e-6, atol=1e-6)


def test_bytes_and_floats_are_the_same_image() -> None:
    images, layer = pictures(), YUVLocalContrast(-4.0, 13.0, 2.0, 16.0)
    assert torch.equal(layer(images), layer(images / 255))
    assert layer(images).dtype == torch.float32
    torch.testing.assert_close(layer(images).double(), layer.double()(images.double() / 255), rtol=1e-4, atol=1e-4)


def test_u_and_v_are_standardised_by_the_constants_of_the_training_set() -> None:
    images = pictures(40)
    out = YUVLocalContrast.fit(images).double()(images)
    assert out[:, 1:].mean(dim=(0, 2, 3)).abs().max() < 1e-6
    torch.testing.assert_close(out[:, 1:].std(dim=(0, 2, 3), correction=0), torch.ones(2).double(), rtol=1e-6, atol=0)
    layer = YUVLocalContrast(u_mean=-4.0, u_std=2.0, v_mean=3.0, v_std=5.0).double()
    yuv = to_yuv(images)
    torch.testing.assert_close(layer(images)[:, 1], (yuv[:, 1] + 4) / 2)
    torch.testing.assert_close(layer(images)[:, 2], (yuv[:, 2] - 3) / 5)
    assert set(layer.state_dict()) == {"mean", "std"}


def test_luminance_is_normalised_image_by_image() -> None:
    layer, images = YUVLocalContrast(), pictures(3)
    torch.testing.assert_close(layer(images)[1:2], layer(images[1:2]))


# Gradients reach the pixels


def test_gradients_reach_the_pixels_and_agree_with_finite_differences() -> None:
    images = (pictures(1, 5, 6).double() / 255).requires_grad_()
    assert torch.autograd.gradcheck(YUVLocalContrast().double(), images)


def test_gradients_are_finite_where_an_image_is_flat() -> None:
    images = torch.full((1, 3, 16, 16), 0.5)
    images[..., 8:] = pictures(1, 16, 8) / 255
    for start in (images, torch.full_like(images, 0.3), torch.zeros_like(images)):
        leaf = start.clone().requires_grad_()
        YUVLocalContrast()(leaf).square().sum().backward()
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("name", ["vgg", "vgg-pan", "vgg-att2-concat-dp", "rn-164"])
def test_an_attack_s_epsilon_is_in_pixels_and_raises_the_loss(name: str) -> None:
    model, images, labels = tiny(name).double().eval(), glyphs(6).images.double() / 255, torch.arange(6) % 5
    leaf = images.clone().requires_grad_()
    before = F.cross_entropy(model(leaf), labels)
    before.backward()
    assert leaf.grad is not None
    assert leaf.grad.shape == images.shape
    moved = images + 1e-4 * leaf.grad.sign()
    assert (moved - images).abs().max() <= 1.01e-4
    assert F.cross_entropy(model(moved), labels) > before


# Statistics


def test_statistics_of_rgb_are_those_of_the_image_set() -> None:
    data = glyphs(50)
    known = colour_statistics(data.images)
    assert known == {"mean": data.mean, "std": data.std}


@given(st.integers(1, 5), st.integers(0, 1000))
def test_statistics_of_u_and_v_are_mean_and_spread_over_all_pixels(n: int, seed: int) -> None:
    images = pictures(n, 6, 5, seed)
    known = colour_statistics(images, "yuv-lcn")
    chroma = to_yuv(images.double() / 255)[:, 1:]
    assert known["mean"] == pytest.approx(chroma.mean(dim=(0, 2, 3)).tolist(), abs=1e-9)
    assert known["std"] == pytest.approx(chroma.std(dim=(0, 2, 3), correction=0).tolist(), rel=1e-9)


def test_a_set_of_one_colour_can_be_standardised_too() -> None:
    grey = torch.full((3, 3, 4, 4), 77, dtype=torch.uint8)
    assert colour_statistics(grey)["std"] == (1 / 255,) * 3
    assert colour_statistics(grey, "yuv-lcn")["std"] == (1.0, 1.0)
    assert YUVLocalContrast.fit(grey)(grey).abs().max() < 1e-4


def test_a_network_takes_the_statistics_as_options() -> None:
    images = glyphs(20).images
    model = tiny("vgg-gap", **colour_statistics(images, "yuv-lcn"))
    assert isinstance(model.normalize, YUVLocalContrast)
    torch.testing.assert_close(model.normalize(images), YUVLocalContrast.fit(images)(images))
    again: Any = create(model.spec["name"], model.spec["classes"], **model.spec["options"])
    assert torch.equal(again.normalize(images), model.normalize(images))


# Contracts of networks with this layer


@pytest.mark.parametrize("name", ["vgg", "vgg-gap", "vgg-pan", "vgg-att3-concat-dp", "rn-164-att2-concat-pc"])
def test_networks_with_this_layer_take_any_size_and_precision(name: str) -> None:
    for height, width in [(8, 8), (9, 31), (32, 32)]:
        logits, maps = tiny(name).train()(pictures(3, height, width), return_maps=True)
        assert logits.isfinite().all()
        assert all(a.isfinite().all() for a in maps.values())
    model, images = tiny(name).eval(), pictures()
    expected = model(images)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.allclose(model(images).float(), expected, rtol=0.1, atol=0.1)
        assert torch.equal(model.normalize(images), tiny(name).normalize(images))
    assert model.to(torch.bfloat16)(images).dtype == torch.bfloat16


def test_networks_with_this_layer_compile_and_export() -> None:
    torch._dynamo.reset()
    model, images = tiny("vgg-gap").eval(), pictures(3) / 255
    compiled: Any = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images), model(images))
    program = torch.export.export(model, (images,), dynamic_shapes={"images": {0: torch.export.Dim("n")}})
    more = pictures(5) / 255
    torch.testing.assert_close(program.module()(more), model(more))


def test_the_layer_can_be_built_without_memory() -> None:
    with torch.device("meta"):
        assert create("vgg", width=0.05, colour="yuv-lcn")(torch.empty(2, 3, 32, 32)).shape == (2, 10)


# Errors


def test_wrong_colours_means_and_spreads_are_named() -> None:
    with pytest.raises(ValueError, match="colour is 'yuv'; did you mean 'yuv-lcn'"):
        create("vgg", colour="yuv")
    with pytest.raises(ValueError, match="colour is 'rbg'; did you mean 'rgb'"):
        colour_statistics(pictures(), "rbg")
    with pytest.raises(ValueError, match=r"mean must be one number or two, for U and V .*colour_statistics"):
        first_layer("yuv-lcn", mean=(0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match=r"std must be one number or two"):
        first_layer("yuv-lcn", std=(1.0,))
    with pytest.raises(ValueError, match=r"standard deviations of U and V must be positive, got 0\.0 and 16\.0"):
        YUVLocalContrast(u_std=0.0)
    assert isinstance(first_layer("rgb"), Normalize)


def test_images_of_a_wrong_shape_or_type_are_refused() -> None:
    for shape in [(3, 8, 8), (2, 1, 8, 8), (2, 8, 8, 3)]:
        message = re.escape(f"images must be RGB, (N, 3, H, W), got {shape}")
        with pytest.raises(ValueError, match=message):
            YUVLocalContrast()(torch.zeros(shape))
        with pytest.raises(ValueError, match=message):
            colour_statistics(torch.zeros(shape, dtype=torch.uint8))
    with pytest.raises(TypeError, match=re.escape("uint8 in 0..255 or floating in [0, 1], got torch.int64")):
        YUVLocalContrast()(torch.zeros(2, 3, 8, 8, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"images must be uint8 and not empty, got torch\.float32"):
        colour_statistics(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match="not empty"):
        colour_statistics(pictures()[:0])
