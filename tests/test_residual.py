"""The Residual Attention Network: the attention module, its functions, and the networks of the paper.

Numbers in the names (``golden_07``) are those of the golden checks in the specification of the Residual Attention
Network. What must hold for every registered network alike stands in ``test_contracts.py``.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from payattn.cost import multiply_adds, saved_bytes
from payattn.data.strokes import noisy_labels
from payattn.models import CIFARAttention, ImageNetAttention, create, list_models
from payattn.residual import (
    ACTIVATIONS,
    AttentionModule,
    InceptionUnit,
    MaskScale,
    ResNeXtUnit,
    SoftMask,
    channel_activation,
    channel_mean,
    max_pool,
    mixed_activation,
    naive_fusion,
    preactivation_unit,
    residual_fusion,
    resize,
    spatial_activation,
)
from payattn.train import Settings, learning_rate

CIFAR = [f"attention-{depth}" for depth in (56, 92, 128, 164, 236, 452)]
IMAGENET = list_models("atten*-imagenet")
BOTH = [residual_fusion, naive_fusion]
FUNCTIONS = {"mixed": mixed_activation, "channel": channel_activation, "spatial": spatial_activation}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pictures(n: int = 4, height: int = 16, width: int = 16, seed: int = 1) -> Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tiny(name: str = "attention-56", *, seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    narrow = 0.03125 if name.endswith("-imagenet") else 0.0625
    return create(name, 5, **({"width": narrow} | options)).double()


def module(channels: int = 4, depth: int = 2, *, seed: int = 0, **options: Any) -> AttentionModule:
    torch.manual_seed(seed)
    return AttentionModule(channels, depth, **options).double()


@functools.cache
def bare(name: str, classes: int = 10, **options: Any) -> Any:
    """A network to count, built once: the large ones on the meta device, where a call costs more than on a CPU."""
    large = name.endswith("-imagenet") and "width" not in options
    with torch.device("meta" if large else "cpu"):
        return create(name, classes, **options).eval()


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


# G1 to G3: fusion


def test_golden_01_fusion_of_two_numbers() -> None:
    trunk, mask = torch.tensor([2.0, -4.0]), torch.tensor([0.25, 0.5])
    assert residual_fusion(trunk, mask).tolist() == [2.5, -6.0]
    assert naive_fusion(trunk, mask).tolist() == [0.5, -2.0]


def test_golden_02_masks_of_zero_and_one_are_the_limits() -> None:
    trunk = drawn(2, 3, 4, 5)
    zero, one = torch.zeros_like(trunk), torch.ones_like(trunk)
    assert torch.equal(residual_fusion(trunk, zero), trunk)
    assert torch.equal(residual_fusion(trunk, one), 2 * trunk)
    assert torch.equal(naive_fusion(trunk, zero), zero)
    assert torch.equal(naive_fusion(trunk, one), trunk)


@pytest.mark.parametrize(("fuse", "of_trunk"), [(residual_fusion, 4.5), (naive_fusion, 1.5)])
def test_golden_03_the_mask_filters_the_gradient_of_the_trunk(fuse: Any, of_trunk: float) -> None:
    trunk, mask = (torch.tensor([v], requires_grad=True) for v in (2.0, 0.5))
    fuse(trunk, mask).backward(torch.tensor([3.0]))
    assert trunk.grad is not None and mask.grad is not None
    assert (trunk.grad.item(), mask.grad.item()) == (of_trunk, 6.0)


@pytest.mark.parametrize(("fuse", "slope"), [(residual_fusion, 3.75), (naive_fusion, 0.75)])
def test_golden_03_the_mask_filters_the_update_of_a_parameter(fuse: Any, slope: float) -> None:
    phi = torch.tensor(2.0, requires_grad=True)
    fuse((phi * 3.0)[None], torch.tensor([0.25])).sum().backward()
    assert phi.grad is not None
    assert phi.grad.item() == slope


@pytest.mark.parametrize(("fuse", "offset"), [(residual_fusion, 1.0), (naive_fusion, 0.0)])
def test_golden_03_gradients_of_random_tensors_are_those_of_the_equations(fuse: Any, offset: float) -> None:
    trunk, mask, g = (drawn(2, 3, 4, 5, seed=k) for k in range(3))
    trunk.requires_grad_()
    mask.requires_grad_()
    fuse(trunk, mask).backward(g)
    torch.testing.assert_close(trunk.grad, ((offset + mask) * g).detach())
    torch.testing.assert_close(mask.grad, (trunk * g).detach())


# G4: activations


def test_golden_04_mixed_and_channel_activation_of_three_and_four() -> None:
    def column(*values: float) -> Tensor:
        return torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)

    assert mixed_activation(column(3, 4)).flatten().tolist() == pytest.approx([0.952574, 0.982014], abs=1e-6)
    assert channel_activation(column(3, 4)).flatten().tolist() == pytest.approx([0.6, 0.8])
    assert channel_activation(column(3, 4, 0)).flatten().tolist() == pytest.approx([0.6, 0.8, 0])


def test_golden_04_spatial_activation_uses_the_population_spread() -> None:
    z = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]], dtype=torch.float64)
    found = spatial_activation(z).flatten().tolist()
    assert found == pytest.approx([0.207240, 0.390023, 0.609977, 0.792760], abs=2e-6)
    assert found != pytest.approx([0.238323, 0.404368, 0.595632, 0.761677], abs=1e-3)


@given(seed=st.integers(0, 999), scale=st.floats(0.1, 10), shift=st.floats(-5, 5))
def test_golden_04_activations_ignore_what_they_normalise_away(seed: int, scale: float, shift: float) -> None:
    z = drawn(2, 3, 4, 5, seed=seed)
    per_position = scale * (1 + drawn(2, 1, 4, 5, seed=seed + 1).abs())
    per_channel = scale * (1 + drawn(2, 3, 1, 1, seed=seed + 1).abs())
    torch.testing.assert_close(channel_activation(per_position * z), channel_activation(z))
    large = 100 * z  # so that the floor on the variance does not count
    torch.testing.assert_close(
        spatial_activation(per_channel * large + shift), spatial_activation(large), rtol=1e-4, atol=1e-6
    )
    torch.testing.assert_close(channel_activation(z).square().sum(1), torch.ones(2, 4, 5, dtype=torch.float64))
    assert (spatial_activation(z).mean(dim=(2, 3)) - 0.5).abs().max() < 0.1


def test_golden_04_degenerate_logits_give_finite_masks_and_gradients() -> None:
    for shape in [(1, 3, 2, 2), (1, 3, 1, 1)]:
        for name, value in (("mixed", 0.5), ("channel", 0.0), ("spatial", 0.5)):
            z = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
            mask = FUNCTIONS[name](z)
            assert (mask == value).all(), name
            mask.sum().backward()
            assert z.grad is not None
            assert z.grad.isfinite().all(), name


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_and_fusions_have_exact_gradients_in_float64(name: str) -> None:
    z = drawn(2, 3, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(FUNCTIONS[name], z)
    trunk = drawn(2, 3, 3, 4, seed=1).requires_grad_()
    for fuse in BOTH:
        assert torch.autograd.gradcheck(lambda t, m, fuse=fuse: fuse(t, FUNCTIONS[name](m)), (trunk, z))


def test_masks_are_float32_for_half_precision_logits_and_fused_features_stay_half() -> None:
    z = drawn(2, 3, 4, 5).bfloat16()
    for name in ACTIVATIONS:
        assert FUNCTIONS[name](z).dtype == torch.float32
        for fuse in BOTH:
            assert fuse(z, FUNCTIONS[name](z)).dtype == torch.bfloat16


# G5: exact scaling


@pytest.mark.parametrize(("fusion", "factor"), [("residual", 1.5), ("naive", 0.5)])
def test_golden_05_silenced_modules_scale_by_three_halves_or_one_half(fusion: str, factor: float) -> None:
    modules = nn.Sequential(*(module(fusion=fusion, seed=k) for k in range(4))).eval()
    for part in modules.modules():
        if isinstance(part, AttentionModule):
            nn.init.zeros_(part.soft_mask.head[-1].weight)  # type: ignore[arg-type]
        elif hasattr(part, "conv3"):
            nn.init.zeros_(part.conv3.weight)  # type: ignore[arg-type, union-attr]
    x = drawn(2, 4, 9, 7)
    torch.testing.assert_close(modules(x), factor**4 * x)
    assert factor**4 in (5.0625, 0.0625)


# G6 and G7: down and up


def test_golden_06_the_pool_has_no_padding_and_rounds_up() -> None:
    assert max_pool(torch.arange(16.0).view(1, 1, 4, 4)).flatten().tolist() == [10, 11, 14, 15]
    assert max_pool(torch.arange(25.0).view(1, 1, 5, 5)).flatten().tolist() == [12, 14, 22, 24]
    sides = {2: 1, 3: 1, 5: 2, 7: 3, 14: 7, 33: 16, 57: 28, 113: 56}
    assert {n: max_pool(torch.zeros(1, 1, n, 8)).shape[2] for n in sides} == sides


def test_golden_06_the_pool_is_the_authors_and_leaves_a_side_of_one_pixel() -> None:
    for height, width in [(2, 2), (5, 8), (7, 3), (2, 9)]:
        x = drawn(2, 3, height, width)
        assert torch.equal(max_pool(x), nn.MaxPool2d(3, 2, padding=0, ceil_mode=True)(x))
    assert torch.equal(max_pool(torch.tensor([[[[1.0, 5.0, 2.0]]]])), torch.tensor([[[[5.0]]]]))
    assert max_pool(torch.full((1, 1, 1, 1), 3.0)).tolist() == [[[[3.0]]]]


def test_golden_07_the_resize_keeps_the_corners() -> None:
    assert resize(torch.tensor([[[[1.0, 3.0]]]]), (1, 4)).flatten().tolist() == pytest.approx([1, 5 / 3, 7 / 3, 3])
    ramp = resize(torch.tensor([[[[0.0, 3.0], [6.0, 9.0]]]]), (4, 4))[0, 0]
    torch.testing.assert_close(ramp, torch.tensor([[0.0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7], [6, 7, 8, 9]]))
    row = resize(torch.tensor([[[[0.0, 1.0, 4.0]]]]), (1, 7)).flatten().tolist()
    assert row == pytest.approx([0, 1 / 3, 2 / 3, 1, 2, 3, 4])
    assert (resize(torch.full((1, 1, 1, 1), 5.0), (3, 3)) == 5).all()


# G8 and G9: counts

CIFAR_TABLE = {  # parameters for 10 and 100 classes, multiply-adds for 10: section 3.5 of the specification
    "attention-56": (1_030_362, 1_053_492, 122_825_216),
    "attention-92": (1_841_242, 1_864_372, 211_913_216),
    "attention-128": (2_652_122, 2_675_252, 301_001_216),
    "attention-164": (3_463_002, 3_486_132, 390_089_216),
    "attention-236": (5_084_762, 5_107_892, 568_265_216),
    "attention-452": (10_181_210, 10_204_340, 984_386_048),
}
IMAGENET_TABLE = {  # parameters, of convolutions and linear layers, of BN, with running statistics, layers: section 3.4
    "attention-56-imagenet": (31_810_728, 31_738_024, 72_704, 31_883_432, 110, 107),
    "attention-92-imagenet": (52_466_344, 52_332_712, 133_632, 52_599_976, 179, 176),
    "attentionnext-56-imagenet": (31_318_824, 31_220_392, 98_432, 31_417_256, 110, 107),
    "attentionnext-92-imagenet": (52_102_952, 51_931_816, 171_136, 52_274_088, 179, 173),
}
IMAGENET_COST = {  # multiply-adds at 224 and 320 px
    "attention-56-imagenet": (6_270_836_736, 12_795_494_400),
    "attention-92-imagenet": (10_533_789_696, 21_495_398_400),
    "attentionnext-56-imagenet": (6_419_106_816, 13_098_086_400),
    "attentionnext-92-imagenet": (10_704_337_920, 21_843_456_000),
}


def test_golden_08_every_network_of_the_paper_is_registered() -> None:
    assert list_models("attention-*[0-9]") == CIFAR == list(CIFAR_TABLE)
    assert [*IMAGENET_TABLE, "attentioninception-56-imagenet"] == IMAGENET


@pytest.mark.parametrize("name", CIFAR)
def test_golden_08_and_09_cifar_networks_have_the_counts_of_the_table(name: str) -> None:
    ten = bare(name)
    of_features = count(ten) - count(ten.head)
    assert (count(ten), of_features + 257 * 100, multiply_adds(ten, 3, 32, 32)) == CIFAR_TABLE[name]
    if name != "attention-452":
        assert count(ten) == 219_482 + 810_880 * ((ten.depth - 20) // 36)


def test_golden_08_and_09_a_hundred_classes_change_the_last_layer_alone() -> None:
    hundred = bare("attention-56", 100)
    assert (count(hundred), multiply_adds(hundred, 3, 32, 32)) == (CIFAR_TABLE["attention-56"][1], 122_825_216 + 23_040)


@pytest.mark.parametrize("name", IMAGENET_TABLE)
def test_golden_08_imagenet_networks_have_the_counts_of_the_table(name: str) -> None:
    model = bare(name, 1000)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    statistics = sum(m.running_mean.numel() + m.running_var.numel() for m in norms)  # type: ignore[union-attr]
    counts = count(model), count(*convolutions, model.head), count(*norms), count(model) + statistics
    assert (*counts, len(convolutions), len(norms)) == IMAGENET_TABLE[name]


@pytest.mark.parametrize("name", IMAGENET_COST)
def test_golden_09_imagenet_networks_have_the_cost_of_the_table(name: str) -> None:
    model = bare(name, 1000)
    assert tuple(multiply_adds(model, 3, side, side) for side in (224, 320)) == IMAGENET_COST[name]


@pytest.mark.parametrize(
    ("name", "calls"), [("attention-56-imagenet", (7, 6, 3)), ("attention-92-imagenet", (11, 10, 6))]
)
def test_golden_08_imagenet_networks_pool_resize_and_squash_as_often_as_the_authors_files(
    name: str, calls: tuple[int, int, int]
) -> None:
    class Counting(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen[function] += 1
            return function(*args, **(kwargs or {}))

    seen: Counter[Any] = Counter()
    model = bare(name, 1000)
    with Counting():
        model(torch.empty(1, 3, 64, 64, device="meta"))
    pools = sum(number for function, number in seen.items() if function is F.max_pool2d)
    pools = pools or sum(number for function, number in seen.items() if function is torch.max_pool2d)
    assert (pools, seen[F.interpolate], seen[torch.sigmoid]) == calls


def test_golden_08_attention_inception_has_about_the_printed_size_and_cost() -> None:
    model = bare("attentioninception-56-imagenet", 1000)
    assert count(model) == pytest.approx(31.9e6, rel=0.05)
    assert multiply_adds(model, 3, 224, 224) == pytest.approx(6.3e9, rel=0.05)


def test_golden_08_and_09_narrow_networks_have_the_stated_counts() -> None:
    for options, expected in [
        ({"width": 0.25, "stem": 16}, (68_090, 8_075_392)),
        ({"width": 0.25, "stem": 16, "modules": 2}, (121_050, 13_643_392)),
        ({"width": 0.125, "stem": 8}, (18_234, 2_129_600)),
    ]:
        model = bare("attention-56", **options)
        assert (count(model), multiply_adds(model, 3, 32, 32)) == expected


def test_golden_08_and_09_the_baseline_has_the_stated_counts() -> None:
    model = bare("rn-164", strided="3x3")
    assert (count(model), count(bare("rn-164", 100)), multiply_adds(model, 3, 32, 32)) == (
        1_703_258, 1_726_388, 247_646_720,
    )  # fmt: skip


def test_golden_08_units_have_the_closed_forms() -> None:
    with torch.device("meta"):
        for c, expected in {
            64: 4_544, 128: 17_792, 256: 70_400, 512: 280_064, 1024: 1_117_184, 2048: 4_462_592,
        }.items():  # fmt: skip
            assert count(preactivation_unit(c, c)) == expected == 17 * c * c // 16 + 3 * c
            assert count(ResNeXtUnit(c, c)) == 137 * c * c // 128 + 4 * c
        for (a, b), expected in {
            (64, 256): 74_112, (256, 512): 377_856, (512, 1024): 1_509_376, (1024, 2048): 6_033_408,
            (16, 64): 4_704, (64, 128): 23_808, (128, 256): 94_720,
        }.items():  # fmt: skip
            inside = b // 4
            closed = a * inside + 9 * inside**2 + inside * b + a * b + 2 * (a + 2 * inside)
            assert count(preactivation_unit(a, b, 2)) == expected == closed


@pytest.mark.parametrize(
    ("channels", "depth", "expected"),
    [
        (256, 3, 976_896), (512, 2, 3_046_912), (1024, 1, 8_804_352), (64, 3, 62_976), (128, 2, 193_408),
        (256, 1, 554_496),
    ],
)  # fmt: skip
def test_golden_08_modules_have_the_closed_form(channels: int, depth: int, expected: int) -> None:
    with torch.device("meta"):
        assert count(AttentionModule(channels, depth)) == expected
        unit = count(preactivation_unit(channels, channels))
        for p, t, r in [(1, 2, 1), (2, 4, 3), (0, 1, 2)]:
            closed = (2 * p + t + 2 * depth * r + depth - 1) * unit + 2 * channels**2 + 4 * channels
            assert count(AttentionModule(channels, depth, p=p, t=t, r=r)) == closed


@pytest.mark.parametrize(("depth", "r", "units"), [(3, 1, 8), (2, 1, 5), (1, 1, 2), (5, 1, 14), (3, 3, 20)])
def test_golden_08_a_mask_of_any_depth_has_the_stated_units(depth: int, r: int, units: int) -> None:
    assert units == 2 * depth * r + depth - 1
    with torch.device("meta"):
        assert sum(hasattr(part, "conv3") for part in MaskScale(8, depth, r).modules()) == units


@pytest.mark.parametrize(
    ("channels", "side", "depth", "cost", "mask_cost", "mask_parameters"),
    [
        (256, 56, 3, 1_496_047_616, 622_583_808, 695_296),
        (512, 28, 2, 1_475_575_808, 602_112_000, 1_926_656),
        (1024, 14, 1, 1_393_688_576, 520_224_768, 4_335_616),
    ],
)
def test_golden_09_modules_at_224_pixels_have_the_stated_cost(
    channels: int, side: int, depth: int, cost: int, mask_cost: int, mask_parameters: int
) -> None:
    with torch.device("meta"):
        whole = AttentionModule(channels, depth)
    shape = channels, side, side
    assert multiply_adds(whole, *shape) == cost
    assert multiply_adds(whole.soft_mask, *shape) == mask_cost
    assert count(whole.soft_mask) == mask_parameters
    assert multiply_adds(whole.after, *shape) == 218_365_952


@pytest.mark.parametrize(
    ("channels", "side", "depth", "units"), [(64, 32, 3, 0.969), (128, 16, 2, 0.875), (256, 8, 1, 0.5)]
)
def test_golden_09_the_hourglass_costs_less_than_one_unit_at_full_size(
    channels: int, side: int, depth: int, units: float
) -> None:
    with torch.device("meta"):
        hourglass, local = SoftMask(channels, depth), SoftMask(channels, depth, mask="local", local_units=1)
    shape = channels, side, side
    one, head = multiply_adds(local.body, *shape), multiply_adds(local.head, *shape)
    assert (one, head) == (4_456_448, 8_388_608)
    assert multiply_adds(hourglass.body, *shape) / one == pytest.approx(units, abs=5e-4)
    assert multiply_adds(hourglass, *shape) == multiply_adds(hourglass.body, *shape) + head


# The blocks, written out


def test_a_unit_carries_its_stride_on_the_3x3_and_projects_the_activated_input() -> None:
    torch.manual_seed(0)
    unit: Any = preactivation_unit(8, 16, stride=2).double().eval()
    x = drawn(2, 8, 7, 6)
    a = torch.relu(unit.bn1(x))
    y = F.conv2d(a, unit.conv1.weight)
    y = F.conv2d(torch.relu(unit.bn2(y)), unit.conv2.weight, stride=2, padding=1)
    y = F.conv2d(torch.relu(unit.bn3(y)), unit.conv3.weight)
    torch.testing.assert_close(unit(x), y + F.conv2d(a, unit.shortcut.weight, stride=2))
    same: Any = preactivation_unit(8, 8)
    assert same.shortcut is None
    assert preactivation_unit(8, 8, stride=2).shortcut is not None


def test_a_resnext_unit_is_post_activated_with_32_groups() -> None:
    torch.manual_seed(0)
    unit: Any = ResNeXtUnit(64, 128, stride=2).double().eval()
    x = drawn(2, 64, 5, 6)
    reduce, grouped, expand, norm = unit.residual
    assert (grouped[0].groups, grouped[0].stride, grouped[0].in_channels) == (32, (2, 2), 64)
    y = norm(expand(grouped(reduce(x))))
    torch.testing.assert_close(unit(x), torch.relu(y + unit.shortcut(x)))
    assert isinstance(ResNeXtUnit(64, 64).shortcut, nn.Identity)
    assert ResNeXtUnit(24, 24).residual[1][0].groups == 4  # type: ignore[index]


def test_an_inception_unit_joins_three_paths() -> None:
    torch.manual_seed(0)
    unit = InceptionUnit(32, 32).double().eval()
    x = drawn(2, 32, 5, 6)
    assert [tuple(path(x).shape) for path in unit.paths] == [(2, 4, 5, 6)] * 3
    kernels = [[m.kernel_size[0] for m in path.modules() if isinstance(m, nn.Conv2d)] for path in unit.paths]
    assert kernels == [[1], [1, 3], [1, 3, 3]]
    torch.testing.assert_close(unit(x), torch.relu(x + unit.join(torch.cat([path(x) for path in unit.paths], 1))))


def by_hand(part: AttentionModule, x: Tensor, double_skip: bool) -> tuple[Tensor, Tensor]:
    """The module with a mask of three scales, as section 3.2 of the specification lists it, without recursion."""
    x = part.before(x)
    trunk = part.trunk(x)
    top: Any = part.soft_mask.body
    middle, low = top.inner, top.inner.inner
    h1 = top.down(max_pool(x))
    h2 = middle.down(max_pool(h1))
    h3 = low.down(max_pool(h2))
    u = resize(low.up(h3), h2.shape[2:])
    u = u + middle.skip(h2) + (h2 if double_skip else 0)
    u = resize(middle.up(u), h1.shape[2:])
    u = u + top.skip(h1) + (h1 if double_skip else 0)
    u = resize(top.up(u), x.shape[2:]) + (trunk if double_skip else 0)
    layers = [m for m in part.soft_mask.head.modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d))]
    norm, first, second_norm, second = layers
    mask = torch.sigmoid(second(torch.relu(second_norm(first(torch.relu(norm(u)))))))
    return part.after((1 + mask) * trunk), mask


@pytest.mark.parametrize("double_skip", [False, True])
def test_the_recursive_mask_is_the_listed_one_and_the_peers_double_skip_adds_its_tensors(double_skip: bool) -> None:
    part = module(8, 3, double_skip=double_skip).eval()
    x = drawn(2, 8, 17, 13)
    output, mask = part(x, return_mask=True)
    expected = by_hand(part, x, double_skip)
    torch.testing.assert_close((output, mask), expected)
    other = by_hand(part, x, not double_skip)
    assert not torch.allclose(mask, other[1], atol=1e-4)
    assert count(part) == count(module(8, 3))


def test_the_local_mask_has_no_pooling() -> None:
    torch.manual_seed(0)
    part = SoftMask(32, 2, mask="local", local_units=2).double().eval()
    x = drawn(1, 32, 9, 9).requires_grad_()
    assert len(part.body) == 2  # type: ignore[arg-type]
    part(x)[0, :, 4, 4].sum().backward()
    assert x.grad is not None
    assert (x.grad.abs().sum((0, 1)) > 0).nonzero().amin(0).tolist() == [2, 2], "two 3x3 convolutions see 5x5"


def test_post_activated_masks_have_no_norm_before_their_first_convolution() -> None:
    assert isinstance(SoftMask(8, 1, unit="resnext").head[0], nn.Identity)
    assert isinstance(SoftMask(8, 1).head[0], nn.Sequential)


@pytest.mark.parametrize("options", [
    {"depth": 1}, {"depth": 3}, {"fusion": "naive"}, {"activation": "channel"}, {"activation": "spatial"},
    {"mask": "local"}, {"double_skip": True}, {"unit": "resnext"}, {"unit": "inception"},
])  # fmt: skip
def test_a_module_has_exact_gradients_in_float64(options: dict[str, Any]) -> None:
    part = module(**({"depth": 2, "p": 0, "t": 1} | options)).eval()
    assert torch.autograd.gradcheck(part, drawn(1, 4, 5, 4).requires_grad_(), fast_mode=True)


# G10: shapes


@pytest.mark.parametrize("size", [(9, 7), (8, 8), (1, 1), (2, 30), (33, 8)])
@pytest.mark.parametrize("depth", [1, 3, 5])
def test_golden_10_mask_and_trunk_have_the_shape_of_the_input(size: tuple[int, int], depth: int) -> None:
    found = module(depth=depth).eval().branches(drawn(2, 4, *size))
    assert {tuple(x.shape) for x in found} == {(2, 4, *size)}


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((33, 33), [(33, 33), (17, 17), (9, 9)]), ((31, 31), [(31, 31), (16, 16), (8, 8)]),
        ((17, 17), [(17, 17), (9, 9), (5, 5)]), ((9, 9), [(9, 9), (5, 5), (3, 3)]), ((8, 8), [(8, 8), (4, 4), (2, 2)]),
        ((37, 29), [(37, 29), (19, 15), (10, 8)]),
    ],
)  # fmt: skip
def test_golden_10_cifar_networks_take_any_size_from_eight_pixels_on(
    size: Any, expected: list[tuple[int, int]]
) -> None:
    logits, maps = tiny()(pictures(2, *size), return_maps=True)
    assert logits.shape == (2, 5)
    assert [tuple(a.shape[1:]) for a in maps.values()] == expected


def test_golden_10_imagenet_networks_take_any_size() -> None:
    torch.manual_seed(0)
    for name in ("attention-56-imagenet", "attentionnext-92-imagenet", "attentioninception-56-imagenet"):
        model = create(name, 7, width=0.03125).eval()
        for height, width in [(64, 64), (193, 193), (225, 224), (320, 320), (31, 200)]:
            with torch.no_grad():
                logits, maps = model(torch.rand(2, 3, height, width), return_maps=True)
            assert logits.shape == (2, 7)
            sides = [(-(-height // 2) // 2, -(-width // 2) // 2)]
            sides += [tuple(-(-side // k) for side in sides[0]) for k in (2, 4)]  # type: ignore[arg-type]
            stages = {level.split(".")[0]: tuple(a.shape[1:]) for level, a in maps.items()}
            assert list(stages.values()) == sides


def test_golden_10_masks_at_224_pixels_go_down_to_seven() -> None:
    lowest = []
    model = bare("attention-56-imagenet", width=0.0625).eval()
    for part in model.modules():
        if isinstance(part, MaskScale) and part.inner is None:
            part.up.register_forward_hook(lambda _, __, out: lowest.append(tuple(out.shape[2:])))
    with torch.no_grad():
        maps = model(torch.zeros(1, 3, 224, 224), return_maps=True)[1]
    assert lowest == [(7, 7)] * 3
    assert [tuple(a.shape[1:]) for a in maps.values()] == [(56, 56), (28, 28), (14, 14)]


# G11 and G12: range and depth


@pytest.mark.parametrize("activation", ["mixed", "spatial"])
def test_golden_11_fused_features_lie_between_the_trunk_and_its_double(activation: str) -> None:
    for fusion in ("residual", "naive"):
        _, _, mask, fused, _ = (found := module(fusion=fusion, activation=activation).branches(drawn(2, 4, 9, 7)))
        assert ((mask >= 0) & (mask <= 1)).all()
        size = found.trunk.abs()
        if fusion == "residual":
            assert torch.equal(fused.sign(), found.trunk.sign())
            assert ((fused.abs() >= size) & (fused.abs() <= 2 * size)).all()
        else:
            assert (fused.abs() <= size).all()


def test_golden_11_channel_masks_lie_between_minus_one_and_one() -> None:
    mask = module(activation="channel").branches(drawn(2, 4, 9, 7)).mask
    assert mask.min() < 0
    assert mask.abs().max() <= 1


def test_golden_12_the_depth_in_a_name_is_that_of_the_longest_path() -> None:
    for name in [*CIFAR, *IMAGENET[:4]]:
        model = bare(name, 1000 if name.endswith("-imagenet") else 10)
        layers = [
            part
            for key, part in model.named_modules()
            if isinstance(part, (nn.Conv2d, nn.Linear)) and "soft_mask" not in key and "shortcut" not in key
        ]
        assert len(layers) == model.depth == int(name.split("-")[1])
    assert bare("attention-56", modules=12, width=0.0625).depth == bare("attention-452").depth == 452


def test_modules_stand_where_the_tables_put_them() -> None:
    two = bare("attention-92")
    assert [name for name, _ in two.stage2.named_children()] == ["unit1", "attention1", "attention2", "unit2"]
    before = bare("attention-92", extra_units="before")
    assert [name for name, _ in before.stage2.named_children()] == ["unit1", "unit2", "attention1", "attention2"]
    assert (count(before), before.depth) == (count(two), two.depth)
    assert multiply_adds(before, 3, 32, 32) == multiply_adds(two, 3, 32, 32)
    large = bare("attention-92-imagenet", 1000)
    assert [len(stage) for stage in (large.stage1, large.stage2, large.stage3, large.stage4)] == [2, 3, 4, 3]
    for model in (two, large):
        assert all(isinstance(model.get_submodule(level), AttentionModule) for level in model.levels)


# G13 and G14: what learns, and equal budgets

VARIANTS: list[dict[str, Any]] = [
    {"fusion": "naive"}, {"activation": "channel"}, {"activation": "spatial"}, {"mask": "local", "local_units": 1},
    {"double_skip": True}, {"unit": "resnext"}, {"unit": "inception"}, {"extra_units": "before", "units": (0, 1, 2)},
]  # fmt: skip


@pytest.mark.parametrize("options", [{}, *VARIANTS], ids=str)
def test_golden_13_every_parameter_gets_a_gradient(options: dict[str, Any]) -> None:
    model = tiny(**options)
    F.cross_entropy(model(pictures(6)), torch.arange(6) % 5).backward()
    silent = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert silent == []


@pytest.mark.parametrize("name", ["attention-56", "attention-56-imagenet", "attentionnext-56-imagenet"])
def test_golden_14_fusions_and_activations_cost_the_same(name: str) -> None:
    options: list[dict[str, Any]] = [{}, {"fusion": "naive"}, *({"activation": kind} for kind in ACTIVATIONS)]
    models = [bare(name, width=0.0625, **chosen) for chosen in [*options, {"double_skip": True}]]
    assert len({(count(model), multiply_adds(model, 3, 64, 64)) for model in models}) == 1


# G15 and G16: label noise and schedule


@pytest.mark.parametrize(("level", "expected", "spread"), [
    (0.1, 5_000, 67), (0.3, 15_000, 102), (0.5, 25_000, 112), (0.7, 35_000, 102),
])  # fmt: skip
def test_golden_15_label_noise_changes_as_many_labels_as_the_matrix_says(
    level: float, expected: int, spread: int
) -> None:
    labels = torch.arange(50_000) % 10
    noisy = noisy_labels(labels, 10, level, seed=0)
    assert noisy is not None
    changed = noisy != labels
    assert abs(int(changed.sum()) - expected) < 4 * spread
    q = torch.full((10, 10), level / 9, dtype=torch.float64).fill_diagonal_(1 - level)
    torch.testing.assert_close(q.sum(1), torch.ones(10, dtype=torch.float64))
    assert torch.equal(noisy, noisy_labels(labels, 10, q, seed=0))  # type: ignore[arg-type]
    assert torch.equal(noisy, noisy_labels(labels, 10, level, seed=0))  # type: ignore[arg-type]
    assert not torch.equal(noisy, noisy_labels(labels, 10, level, seed=1))  # type: ignore[arg-type]
    drawn_to = torch.bincount((noisy - labels)[changed] % 10, minlength=10)
    assert drawn_to[0] == 0, "a changed label never equals the original"
    share = expected / 9
    assert (drawn_to[1:] - share).abs().max() < 5 * math.sqrt(share)


def test_golden_15_test_labels_stay_clean() -> None:
    import payattn

    clean, noisy = (
        payattn.load("glyphs", n_train=60, n_test=40, size=16, device="cpu", label_noise=level) for level in (0.0, 0.5)
    )
    assert not torch.equal(clean[0].labels, noisy[0].labels)
    assert torch.equal(clean[1].labels, noisy[1].labels)


@pytest.mark.parametrize("steps", [1000, 782])  # images in whole batches of 50, or 50,000 in batches of 64
def test_golden_16_the_learning_rate_falls_at_64_and_96_thousand_steps(steps: int) -> None:
    settings = Settings(lr=0.1, schedule="steps", milestones={64_000: 0.1, 96_000: 0.1}, epochs=205, nesterov=True)
    expected = {0: 0.1, 63_999: 0.1, 64_000: 0.01, 95_999: 0.01, 96_000: 0.001, 159_999: 0.001}
    found = {t: learning_rate(settings, 1 + t // steps, t % steps, steps) for t in expected}
    assert found == pytest.approx(expected)


def test_steps_and_milestones_go_together() -> None:
    with pytest.raises(ValueError, match=r"schedule='steps' and milestones=\{step: factor\}; one came alone"):
        Settings(schedule="steps")
    with pytest.raises(ValueError, match="reset_momentum works at epochs"):
        Settings(schedule="steps", milestones={5: 0.1}, reset_momentum=True)


# G17 and G18: response and evaluation


def test_golden_17_with_residual_fusion_the_signal_grows_and_with_naive_fusion_it_dies() -> None:
    images = 0.5 + 0.25 * drawn(2, 3, 32, 32).float()
    found = {}
    for fusion in ("residual", "naive"):
        torch.manual_seed(0)
        model: Any = create("attention-164", fusion=fusion).train()
        with torch.no_grad():
            found[fusion] = model.responses(images)
    residual, naive = found["residual"], found["naive"]
    assert residual["stage3"] / naive["stage3"] > 5
    assert list(residual)[:5] == [f"stage1.attention{k}" for k in (1, 2, 3, 4)] + ["stage1"]
    assert residual["stage1.attention4"] / residual["stage1.attention1"] > 2
    assert naive["stage3.attention4"] < naive["stage3.attention1"]


def test_responses_are_the_mean_size_of_the_outputs() -> None:
    model, images = tiny().eval(), pictures()
    responses = model.responses(images)
    for level, found in model.branches(images).items():
        torch.testing.assert_close(responses[level], found.output.abs().mean())
    assert list(responses) == [*(key for k in (1, 2, 3) for key in (f"stage{k}.attention1", f"stage{k}"))]


def test_golden_18_in_evaluation_an_image_does_not_see_the_others() -> None:
    model, images = tiny().train(), pictures(6)
    with torch.no_grad():
        model(images)  # so that the running statistics are not those of the start
    model.eval()
    together, alone = model(images, return_maps=True), model(images[2:3], return_maps=True)
    torch.testing.assert_close(alone[0], together[0][2:3])
    for level in model.levels:
        torch.testing.assert_close(alone[1][level], together[1][level][2:3])
    masks = model.masks(images)
    assert all((mask[0] - mask[1]).abs().max() > 1e-3 for mask in masks.values())


def test_maps_are_the_means_of_the_full_masks_over_channels() -> None:
    for options in ({}, {"activation": "channel"}):
        model, images = tiny(**options).eval(), pictures()
        maps, masks = model(images, return_maps=True)[1], model.masks(images)
        assert tuple(maps) == tuple(masks) == model.levels
        assert [mask.shape[1] for mask in masks.values()] == [4, 8, 16]
        for level in model.levels:
            torch.testing.assert_close(maps[level], masks[level].mean(1))
            torch.testing.assert_close(channel_mean(masks[level]), maps[level])


def test_the_mean_of_a_class_map_is_the_logit_of_its_class() -> None:
    model, images = tiny().eval(), pictures(3)
    target = torch.tensor([0, 4, 2])
    maps = model.class_map(images, target)
    torch.testing.assert_close(maps.mean(dim=(1, 2)) + model.head.bias[target], model(images)[range(3), target])


def test_convolutions_start_as_he_et_al_and_norms_at_one() -> None:
    torch.manual_seed(0)
    model = create("attention-56", width=0.5)
    for name, part in model.named_modules():
        if isinstance(part, nn.Conv2d) and part.weight.numel() > 2000:
            fan_out = part.kernel_size[0] * part.kernel_size[1] * part.out_channels
            assert part.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.1), name
        elif isinstance(part, nn.BatchNorm2d):
            assert (part.weight == 1).all() and (part.bias == 0).all()
    torch.manual_seed(0)
    other = create("attention-56", width=0.5, init="default").get_parameter("stage3.unit2.conv2.weight")
    assert other.abs().max() <= 1 / math.sqrt(other[0].numel())


# Errors


def test_impossible_modules_are_refused() -> None:
    for options, message in [
        ({"fusion": "arl"}, "fusion is 'arl'"),
        ({"fusion": "residul"}, "fusion is 'residul'; did you mean 'residual'"),
        ({"activation": "chanel"}, "activation is 'chanel'; did you mean 'channel'"),
        ({"mask": "hour-glass"}, "mask is 'hour-glass'; did you mean 'hourglass'"),
        ({"unit": "resnet"}, "unit is 'resnet'; did you mean 'resnext'"),
        ({"depth": 0}, "depth must be a whole number, 1 or more, got 0; for a mask without pooling take mask='local'"),
        ({"t": 0}, "t must be a whole number, 1 or more, got 0"),
        ({"p": -1}, "p must be a whole number, 0 or more, got -1"),
        ({"r": 1.5}, "r must be a whole number, 1 or more, got 1.5"),
        ({"mask": "local", "local_units": 0}, "local_units must be a whole number, 1 or more, got 0"),
        ({"mask": "local", "double_skip": True}, "double_skip=True needs mask='hourglass'"),
        ({"channels": 6}, "a pre-activation unit needs a multiple of 4 channels, got 6; nearest: 8"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            AttentionModule(**({"channels": 8, "depth": 2} | options))  # type: ignore[arg-type]


def test_tensors_that_do_not_fit_are_refused() -> None:
    for fuse in BOTH:
        with pytest.raises(ValueError, match=re.escape("must have one shape, got (1, 2, 4, 4) and (1, 2, 2, 2)")):
            fuse(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 2, 2))
    for function in FUNCTIONS.values():
        with pytest.raises(ValueError, match=re.escape("mask logits z must be (N, C, H, W), got (3, 4, 4)")):
            function(torch.zeros(3, 4, 4))
    for shape in [(1, 3, 8, 8), (4, 8, 8)]:
        with pytest.raises(ValueError, match=re.escape(f"reads (N, 4, H, W), got {shape}")):
            module()(torch.zeros(shape))
    with pytest.raises(ValueError, match="the mask also reads the trunk: give trunk=T"):
        SoftMask(4, 2, double_skip=True)(torch.zeros(1, 4, 8, 8))


def test_impossible_networks_are_refused() -> None:
    for depth, near in ((55, 56), (100, 92), (163, 164), (20, 56), (-3, 56)):
        message = f"depth must be 36 m + 20 with m attention modules per stage, or 452, got {depth}; nearest: {near}"
        with pytest.raises(ValueError, match=re.escape(message)):
            CIFARAttention(depth=depth)
    with pytest.raises(ValueError, match="depth must be 56 or 92, got 101; nearest: 92"):
        ImageNetAttention(depth=101)
    for options, message in [
        ({"modules": (1, 2)}, "modules must be 3 whole numbers, 0 or more, got (1, 2)"),
        ({"modules": -1}, "modules must be 3 whole numbers, 0 or more, got -1"),
        ({"pools": (2, 1, 0)}, "pools must be 3 whole numbers, 1 or more, got (2, 1, 0)"),
        ({"units": (1, 2)}, "units (p, t, r) must be 3 whole numbers, 0 or more, got (1, 2)"),
        ({"units": (1, 0, 1)}, "t must be a whole number, 1 or more, got 0"),
        ({"stem": 0}, "stem must be 1 whole numbers, 1 or more, got 0"),
        ({"extra_units": "after"}, "extra_units is 'after'"),
        ({"width": 0.0}, "width must be positive"),
        ({"init": "papr"}, "init is 'papr'; did you mean 'paper'"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            create("attention-56", **({"width": 0.0625} | options))
    with pytest.raises(TypeError, match="attention-56 has no option 'depth'"):
        create("attention-56", depth=92)


# Recomputation


@pytest.mark.parametrize("depth_options", [{}, {"double_skip": True}, {"mask": "local", "local_units": 1}])
def test_recomputation_changes_no_number(depth_options: dict[str, Any]) -> None:
    """Loss, gradients, running statistics and their count are equal bit for bit."""
    images, labels = torch.rand(4, 3, 16, 16), torch.arange(4)
    nets = [create("attention-56", 10, width=0.125, recompute=again, **depth_options) for again in (False, True)]
    nets[1].load_state_dict(nets[0].state_dict())
    losses = []
    for net in nets:
        loss = F.cross_entropy(net(images), labels)
        loss.backward()
        losses.append(loss)
    assert torch.equal(*losses)
    for (name, a), b in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        assert a.grad is not None and b.grad is not None and torch.equal(a.grad, b.grad), name
    for (name, a), b in zip(nets[0].named_buffers(), nets[1].buffers(), strict=True):
        assert torch.equal(a, b), name
    assert all(m.momentum == 0.1 for m in nets[1].modules() if isinstance(m, nn.BatchNorm2d))


def test_recomputation_runs_the_module_twice_and_only_where_a_gradient_is_wanted() -> None:
    net, calls = create("attention-56", 10, width=0.125, recompute=True), []
    net.stage1.attention1.trunk.register_forward_hook(lambda *_: calls.append(1))
    net(torch.rand(2, 3, 8, 8)).sum().backward()
    assert len(calls) == 2
    with torch.no_grad():
        net(torch.rand(2, 3, 8, 8))
    assert len(calls) == 3
    logits, maps = net.eval()(torch.rand(2, 3, 8, 8), return_maps=True)
    assert set(maps) == set(net.levels) and logits.requires_grad


def test_with_recomputation_far_less_is_kept() -> None:
    image, plain = torch.rand(4, 3, 16, 16), create("attention-92", 10, width=0.125)
    saving = create("attention-92", 10, width=0.125, recompute=True)
    kept = [saved_bytes(lambda net=net: net(image), without=net)[1] for net in (plain, saving)]
    assert kept[1] < 0.35 * kept[0]


def test_the_baseline_starts_as_the_attention_networks_do() -> None:
    net = create("rn-164", 10, depth=29, strided="3x3", init="he")
    for conv in (m for m in net.modules() if isinstance(m, nn.Conv2d)):
        if conv.weight.numel() > 2000:
            fan_out = conv.out_channels * conv.kernel_size[0] ** 2
            assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.1)
    assert all((m.weight == 1).all() for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    with pytest.raises(ValueError, match="did you mean 'he'"):
        create("rn-164", 10, init="hee")
