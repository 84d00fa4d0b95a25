"""The networks of Attention Transfer: wide residual networks, network in network, ResNet-18 and -34.

Golden check 10 of the specification of Attention Transfer.  What must hold for every registered network alike stands
in ``test_contracts.py``.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from payattn import cost
from payattn.checkpoint import load_model, save_weights
from payattn.models import NIN, ImageNetResNet, InvertedResidual, WideBlock, WideResNet, create, list_models
from payattn.models.nin import THIN, WIDE, mean_pool
from payattn.transfer import Distill, activation_map

HALF = tuple(c // 2 for c in WIDE)
# parameters for 10 classes, with the means and variances of batch norm, for 100 classes; convolutions; multiply-adds
WRN = {
    "wrn-16-1": (175_066, 175_994, 180_916, 15, 26.66),
    "wrn-16-2": (691_674, 693_498, 703_284, 16, 101.11),
    "wrn-40-1": (563_930, 566_650, 569_780, 39, 83.28),
    "wrn-40-2": (2_243_546, 2_248_954, 2_255_156, 40, 327.60),
    "wrn-10-1": (77_850, 78_330, 83_700, 9, None),
}


def pictures(n: int = 2, height: int = 16, width: int = 16, seed: int = 1) -> Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(seed))


def tiny(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return create(name, 5, **({"width": 0.25} | options)).eval()


@functools.cache
def bare(name: str, classes: int = 10, **options: Any) -> Any:
    with torch.device("meta"):
        return create(name, classes, **options).eval()


# Wide residual networks


@pytest.mark.parametrize("name", WRN)
def test_golden_10_counts_of_wide_residual_networks(name: str) -> None:
    ten, with_buffers, hundred, convolutions, millions = WRN[name]
    model = bare(name)
    assert cost.parameters(model) == ten
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert ten + sum(2 * norm.num_features for norm in norms) == with_buffers
    assert cost.parameters(bare(name, 100)) == hundred
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == convolutions
    if millions is not None:
        assert cost.multiply_adds(model, 3, 32, 32) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize(("name", "k"), [("wrn-16-1", 1), ("wrn-16-2", 2), ("wrn-40-2", 2)])
def test_golden_10_shapes_of_the_groups(name: str, k: int) -> None:
    groups = bare(name).stages(torch.zeros(2, 3, 32, 32, device="meta"))
    expected = [(2, 16 * k, 32, 32), (2, 32 * k, 16, 16), (2, 64 * k, 8, 8)]
    assert [tuple(a.shape) for a in groups.values()] == expected


def authors_block(block: Any, x: Tensor) -> Tensor:
    """The block as the authors' code has it, without modules."""

    def normalised(x: Tensor, bn: Any) -> Tensor:
        return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, False, 0.1, 1e-5)

    o1 = F.relu(normalised(x, block.bn0))
    y = F.conv2d(o1, block.conv0.weight, stride=block.conv0.stride, padding=1)
    o2 = F.relu(normalised(y, block.bn1))
    z = F.conv2d(o2, block.conv1.weight, stride=1, padding=1)
    if block.shortcut is None:
        return z + x
    return z + F.conv2d(o1, block.shortcut.weight, stride=block.conv0.stride)


@pytest.mark.parametrize(("channels", "stride"), [((4, 4), 1), ((4, 8), 2), ((4, 8), 1)])
def test_the_block_is_that_of_the_authors(channels: tuple[int, int], stride: int) -> None:
    torch.manual_seed(0)
    block = WideBlock(*channels, stride).eval()
    for norm in (block.bn0, block.bn1):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        nn.init.uniform_(norm.weight)
    x = torch.randn(2, channels[0], 7, 6)
    torch.testing.assert_close(block(x), authors_block(block, x))


def test_maps_are_sums_of_squares_of_the_raw_residual_sums() -> None:
    model, images = tiny("wrn-16-1"), pictures()
    groups = model.stages(images)
    assert (groups["group1"] < 0).any()
    for name, a in model(images, return_maps=True)[1].items():
        torch.testing.assert_close(a, groups[name].square().sum(1))


@pytest.mark.parametrize("name", ["wrn-16-2", "nin-wide", "nin-thin-nobn"])
def test_the_groups_are_submodules_of_these_names(name: str) -> None:
    model, images, seen = tiny(name), pictures(), {}
    for level in model.levels:
        model.get_submodule(level).register_forward_hook(lambda m, i, out, level=level: seen.update({level: out}))
    _, maps = model(images, return_maps=True)
    assert list(seen) == list(maps) == ["group0", "group1", "group2"]
    for level, features in seen.items():
        assert torch.equal(activation_map(features), maps[level])


def test_the_start_is_that_of_the_authors_code() -> None:
    torch.manual_seed(0)
    model: Any = WideResNet(10, depth=16, widen=2)
    weight = model.group2[1].conv1.weight
    assert weight.std().item() == pytest.approx((2 / (9 * weight.shape[1])) ** 0.5, rel=0.03)
    assert model.stem.weight.std().item() == pytest.approx((2 / 27) ** 0.5, rel=0.1)  # fan in, not fan out
    assert model.head.bias.abs().max() == 0
    assert model.head.weight.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.1)
    gammas = torch.cat([m.weight for m in model.modules() if isinstance(m, nn.BatchNorm2d)])
    assert 0 <= gammas.min() < 0.05
    assert 0.95 < gammas.max() <= 1
    assert gammas.mean().item() == pytest.approx(0.5, abs=0.05)
    default: Any = WideResNet(10, init="default")
    assert (default.norm.weight == 1).all()


def test_k_may_be_a_fraction_and_is_cut() -> None:
    widths = [a.shape[1] for a in WideResNet(10, depth=10, widen=1.3).eval().stages(pictures()).values()]
    assert widths == [20, 41, 83]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 18}, "depth must be 6 n \\+ 4 .* got 18; nearest: 16"),
        ({"depth": 4}, "nearest: 10"),
        ({"widen": 0}, "widen is the factor k"),
        ({"init": "papr"}, "did you mean 'paper'"),
        ({"width": -1}, "width must be positive"),
    ],
)
def test_a_wide_network_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WideResNet(10, **options)
    with pytest.raises(ValueError, match="stride 2 must change"):
        WideBlock(4, 4, 2)


# Network in network


@pytest.mark.parametrize(
    ("channels", "bn", "bias", "parameters"),
    [
        (WIDE, True, False, 1_005_642),
        (WIDE, True, True, 1_007_242),
        (WIDE, False, True, 1_004_042),
        (HALF, True, False, 256_298),
        (HALF, False, True, 255_498),
        (THIN, True, False, 195_546),
        (THIN, False, True, 194_874),
    ],
)
def test_golden_10_counts_of_network_in_network(
    channels: tuple[int, ...], bn: bool, bias: bool, parameters: int
) -> None:
    with torch.device("meta"):
        assert cost.parameters(NIN(10, channels=channels, bn=bn, bias=bias)) == parameters


def test_golden_10_registered_network_in_network_and_its_shapes() -> None:
    assert list_models("nin-*") == ["nin-wide", "nin-wide-nobn", "nin-thin", "nin-thin-nobn"]
    assert cost.parameters(bare("nin-wide")) == 1_007_242
    assert cost.parameters(bare("nin-thin", bias=False)) == 195_546
    assert cost.parameters(bare("nin-thin-nobn")) == 194_874
    shapes = [tuple(a.shape) for a in bare("nin-wide").stages(torch.zeros(2, 3, 32, 32, device="meta")).values()]
    assert shapes == [(2, 96, 32, 32), (2, 192, 16, 16), (2, 192, 8, 8)]


def test_network_in_network_is_what_the_specification_lists() -> None:
    model, images = tiny("nin-wide", width=0.05), pictures(2, 32, 32)

    def unit(x: Tensor, group: Any, j: int) -> Tensor:
        conv, bn = group[3 * j], group[3 * j + 1]
        y = F.conv2d(x, conv.weight, conv.bias, padding=conv.weight.shape[-1] // 2)
        return F.relu(F.batch_norm(y, bn.running_mean, bn.running_var, bn.weight, bn.bias))

    x = model.normalize(images)
    for g, level in enumerate(model.levels):
        for j in range(3):
            x = unit(x, model.get_submodule(level), j)
        if g == 0:
            x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        elif g == 1:
            x = F.avg_pool2d(x, 3, 2, ceil_mode=True)
    logits = F.linear(F.avg_pool2d(x, 8).flatten(1), model.head.weight, model.head.bias)
    torch.testing.assert_close(model(images), logits)


@pytest.mark.parametrize(
    ("name", "options", "ends"),
    [
        ("nin-thin", {}, True),
        ("nin-thin-nobn", {}, False),
        ("nin-wide", {"relu_before_pool": False}, False),
        ("nin-thin-nobn", {"relu_before_pool": True}, True),
    ],
)
def test_without_batch_norm_a_group_ends_in_a_convolution(name: str, options: dict[str, Any], ends: bool) -> None:
    model = tiny(name, **options)
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == (not name.endswith("nobn"))
    for features in model.stages(pictures()).values():
        assert bool((features < 0).any()) != ends


def test_the_average_pool_counts_only_what_is_there() -> None:
    assert (mean_pool(torch.ones(1, 2, 16, 7)) == 1).all()
    assert mean_pool(torch.ones(1, 2, 16, 7)).shape == (1, 2, 8, 3)
    assert mean_pool(torch.ones(1, 2, 1, 2)).shape == (1, 2, 1, 1)


def test_a_network_in_network_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="channels must be nine numbers"):
        NIN(10, channels=(8, 8, 8))
    with pytest.raises(ValueError, match="without BatchNorm the convolutions need a bias"):
        NIN(10, bn=False, bias=False)


@pytest.mark.parametrize("name", ["wrn-10-1", "nin-thin"])
def test_the_mean_of_a_class_map_is_the_logit_without_its_bias(name: str) -> None:
    model, images = tiny(name), pictures()
    target = torch.tensor([1, 3])
    logit = model(images).gather(1, target[:, None])[:, 0] - model.head.bias[target]
    torch.testing.assert_close(model.class_map(images, target).mean((1, 2)), logit)


# ResNet-18 and ResNet-34


def imagenet(classes: int = 1000, **options: Any) -> Any:
    pytest.importorskip("torchvision")
    with torch.device("meta"):
        return ImageNetResNet(classes, **options)


def test_golden_10_counts_of_imagenet_networks() -> None:
    assert cost.parameters(imagenet(depth=18)) == 11_689_512
    assert cost.parameters(imagenet(depth=18, shortcut_bn=False)) == 11_687_720
    assert cost.parameters(imagenet(depth=34)) == 21_797_672
    models = pytest.importorskip("torchvision").models
    with torch.device("meta"):  # the slip in the authors' table of depths
        slip = cost.parameters(models.ResNet(models.resnet.BasicBlock, [3, 4, 6, 5]))
    assert slip - 2 * (128 + 256 + 512) == 31_237_160
    shapes = [tuple(a.shape) for a in imagenet(depth=18).stages(torch.zeros(1, 3, 224, 224, device="meta")).values()]
    assert shapes == [(1, 64, 56, 56), (1, 128, 28, 28), (1, 256, 14, 14), (1, 512, 7, 7)]


@pytest.mark.parametrize(
    ("classes", "depth", "parameters", "learning", "norms"),
    [
        (200, 18, 11_279_112, 11_122_056, 9_600),
        (200, 34, 21_387_272, 21_149_064, 17_024),
        (67, 18, 11_210_883, 11_053_827, 9_600),
        (67, 34, 21_319_043, 21_080_835, 17_024),
    ],
)
def test_golden_10_counts_of_fine_tuning(classes: int, depth: int, parameters: int, learning: int, norms: int) -> None:
    model = imagenet(classes, depth=depth, fixed=True)
    assert cost.parameters(model) == parameters
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == learning
    assert cost.parameters([m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]) == norms


def test_fixed_batch_norm_stays_in_evaluation_mode() -> None:
    model = imagenet(5, depth=18, fixed=True).train()
    assert model.training
    assert not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert all(m.training for m in imagenet(5, depth=18).train().modules())


def test_distillation_reads_the_resnet_of_torchvision_by_layer_names(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision").models
    torch.manual_seed(0)
    foreign, images = models.resnet18(num_classes=1000).eval(), pictures(2, 32, 32)
    torch.save(foreign.state_dict(), tmp_path / "resnet18.pth")
    teacher: Any = ImageNetResNet(1000, depth=18, pretrained=tmp_path / "resnet18.pth").eval()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(teacher(images), foreign((images - mean) / std))
    student: Any = create("wrn-10-1", 1000, width=0.25)
    for layers, of in (([("layer3", "group1"), ("layer4", "group2")], foreign), ([("layer1", "group0")], teacher)):
        objective = Distill(of, student, layers, kd=0.5)
        loss, _ = objective.loss(images, torch.tensor([1, 2]))
        loss.backward()
        assert student.group0[0].conv0.weight.grad.abs().max() > 0
        assert all(p.grad is None for p in of.parameters())
    with pytest.raises(ValueError, match=r"no layer 'layer5'; did you mean 'layer4'\? .*layer4 \(512, 1, 1\)"):
        Distill(foreign, student, [("layer5", "group2")])
    with pytest.raises(ValueError, match=r"'layer1\.0\.bn1' is changed in place"):
        Distill(foreign, student, [("layer1.0.bn1", "group0")]).loss(images, torch.tensor([1, 2]))


def test_weights_that_cannot_be_had_say_where_they_belong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(*args: Any, **options: Any) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(ConnectionError, match=r"fetch https://.*resnet34-.*pth and put it at .*checkpoints"):
        ImageNetResNet(depth=34, pretrained=True)
    with pytest.raises(FileNotFoundError, match=r"no weights at nowhere\.pth; the file is https://"):
        ImageNetResNet(depth=18, pretrained="nowhere.pth")
    with pytest.raises(ValueError, match="depth must be 18 or 34, got 50"):
        ImageNetResNet(depth=50)
    with pytest.raises(ValueError, match="BatchNorm in their shortcuts"):
        ImageNetResNet(depth=18, pretrained=True, shortcut_bn=False)
    with pytest.raises(ValueError, match=r"pretrained weights are those of width 1, got width 0\.5"):
        ImageNetResNet(depth=18, pretrained=True, width=0.5)


# MobileNetV2 for small images


@pytest.mark.parametrize(
    ("width", "classes", "parameters", "millions"),
    [(0.5, 100, 812_836, 6.524), (0.5, 10, 697_546, 6.408), (1.0, 10, 2_237_770, 22.266)],
)
def test_counts_of_mobilenet_for_small_images(width: float, classes: int, parameters: int, millions: float) -> None:
    model = bare("mobile-v2", classes, width=width)
    assert cost.parameters(model) == parameters
    assert cost.multiply_adds(model, 3, 32, 32) / 1e6 == pytest.approx(millions, abs=0.0005)
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == 3 * 17 + 2


def mobile_by_hand(classes: int, width: float) -> int:
    """Its parameters by the table of the architecture, without the code of the model."""
    stem = last = int(32 * width)
    total = 27 * stem + 2 * stem
    rows = [(1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1)]
    for expansion, channels, blocks in rows:
        for _ in range(blocks):
            inside, wide = last * expansion, int(channels * width)
            total += last * inside + 2 * inside + 9 * inside + 2 * inside + inside * wide + 2 * wide
            last = wide
    return total + last * 1280 + 2 * 1280 + 1280 * classes + classes


def test_the_parameters_of_mobilenet_are_those_of_its_table() -> None:
    for width, classes in ((0.5, 100), (0.5, 10), (1.0, 10), (0.25, 7)):
        assert cost.parameters(bare("mobile-v2", classes, width=width)) == mobile_by_hand(classes, width)


def test_inverted_residuals_add_their_input_only_where_shapes_agree() -> None:
    model = bare("mobile-v2")
    adds = [part.adds for part in model.modules() if isinstance(part, InvertedResidual)]
    assert adds == [False] * 2 + [True] + [False, True, True] + [False] + [True] * 3 + [False] + [True] * 2 + [
        False, True, True, False]  # fmt: skip
    block = InvertedResidual(4, 4, expansion=2).eval()
    nn.init.zeros_(block.body[-1].weight)
    x = pictures(2, 5, 6)[:, [0, 1, 2, 0]] - 0.5
    assert torch.equal(block(x), x)
    assert all(part.groups == part.in_channels for part in block.body if getattr(part, "kernel_size", 0) == (3, 3))


def test_a_mobilenet_meets_the_maps_of_a_wide_network_at_two_sizes() -> None:
    teacher, student = tiny("wrn-10-1").stages(pictures(1, 24, 24)), tiny("mobile-v2").stages(pictures(1, 24, 24))
    assert [a.shape[2:] for a in (teacher["group1"], teacher["group2"])] == [
        a.shape[2:] for a in (student["stage1"], student["stage2"])]  # fmt: skip


def test_a_narrow_resnet_has_the_stages_of_torchvisions_and_is_one_where_the_width_is_one(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    wide, narrow = bare("resnet-18", 5), bare("resnet-18", 5, width=0.25)
    assert list(narrow.state_dict())[-2:] == list(wide.state_dict())[-2:] == ["head.weight", "head.bias"]
    x = torch.zeros(1, 3, 64, 64, device="meta")
    for net, c in ((narrow, 16), (wide, 64)):
        shapes = [tuple(a.shape[1:]) for a in net.stages(x).values()]
        assert shapes == [(c, 16, 16), (2 * c, 8, 8), (4 * c, 4, 4), (8 * c, 2, 2)]
    assert cost.parameters(bare("resnet-34", 200)) == 21_387_272
    assert cost.parameters(bare("resnet-18", 67)) == 11_210_883


def test_a_checkpoint_of_a_finetuned_network_needs_no_pretrained_weights(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    net = create("resnet-18", 5, width=0.125)
    net.spec["options"]["pretrained"] = True
    save_weights(net, tmp_path / "net.safetensors")
    again = load_model(tmp_path / "net.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True))
