"""The pre-activation residual networks: counts, shapes, cost, and attention on their last two stages.

Numbers in the names (``golden_07``) are those of the golden checks in the specification of Learn To Pay Attention.
What must hold for every registered network alike stands in ``test_contracts.py``.
"""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from payattn.cost import layers
from payattn.models import Bottleneck, PreActResNet, ResNetAttention, create, list_models

NAMES = list_models("rn-164*")


def tiny(name: str, *, seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    return create(name, 5, **({"width": 0.125, "depth": 11, "dropout": 0.0} | options)).double()


def pictures(n: int = 4, height: int = 32, width: int = 32, seed: int = 1) -> Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def train_once(model: nn.Module, images: Tensor) -> None:
    F.cross_entropy(model(images), torch.arange(len(images)) % 5).backward()


def largest_gradient(model: nn.Module, prefix: str) -> float:
    grads = [p.grad for name, p in model.named_parameters() if name.startswith(prefix)]
    assert grads, f"no parameter starts with {prefix}"
    return max(0.0 if g is None else g.abs().max().item() for g in grads)


# Parameter counts, shapes and cost

COUNTS = {  # for 10, 100 and 200 classes: section 3.2 of the specification
    "rn-164": (1_703_258, 1_726_388, 1_752_088),
    "rn-164-att2-concat-pc": (2_395_484, 2_430_134, 2_468_634),
}


def on_meta(name: str, classes: int = 10, **options: Any) -> Any:
    with torch.device("meta"):
        return create(name, classes, **options)


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


@pytest.mark.parametrize("name", COUNTS)
def test_golden_09_parameter_counts_are_those_of_the_table(name: str) -> None:
    assert tuple(count(on_meta(name, classes)) for classes in (10, 100, 200)) == COUNTS[name]


def test_golden_09_parts_have_the_stated_counts() -> None:
    model = on_meta("rn-164-att2-concat-pc", 100)
    assert count(model.trunk.stem, model.trunk.stage1) == 82_384
    assert count(model.trunk.stage2) == 326_272
    assert count(model.trunk.stage3) == 1_291_520
    assert count(model.norm, model.layer, model.fc1) == 656_896
    assert count(model.attention["stage2"]) == 33_537
    assert count(model.attention["stage3"]) == 257
    assert count(model.head) == 39_268


def test_golden_09_scores_without_a_learned_direction_have_one_vector_and_bias_less_per_level() -> None:
    pc, additive, dp, scaled = (
        count(on_meta(f"rn-164-att2-concat-{score}")) for score in ("pc", "additive", "dp", "scaled-dp")
    )
    assert (pc - dp, additive, scaled) == (129 + 257, pc, dp)


def test_golden_08_maps_features_and_query_have_the_paper_s_shapes() -> None:
    model = on_meta("rn-164-att2-concat-pc")
    with torch.device("meta"):
        images = torch.empty(2, 3, 32, 32)
    logits, maps = model(images, return_maps=True)
    local, last = model.local_features(images)
    assert logits.shape == (2, 10)
    assert {level: tuple(a.shape) for level, a in maps.items()} == {"stage2": (2, 16, 16), "stage3": (2, 8, 8)}
    assert [tuple(x.shape) for x in local.values()] == [(2, 128, 16, 16), (2, 256, 8, 8)]
    assert last.shape == (2, 256, 8, 8)
    assert model.query(images).shape == (2, 256)
    assert model.features(images).shape == (2, 384)
    assert on_meta("rn-164").features(images).shape == (2, 256)
    assert on_meta("rn-164-att-control").features(images).shape == (2, 256)


@pytest.mark.parametrize(("name", "millions"), [("rn-164", 244), ("rn-164-att2-concat-pc", 254)])
def test_golden_08_multiply_adds_of_the_convolutions_are_those_of_the_table(name: str, millions: int) -> None:
    found = layers(on_meta(name), 3, 32, 32).values()
    assert round(sum(layer.multiply_adds for layer in found if layer.kind == "Conv2d") / 1e6) == millions


def test_the_network_has_164_layers_with_weights_on_its_longest_path() -> None:
    for depth in (11, 20, 164):
        model = on_meta("rn-164", depth=depth)
        layers = [m for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and "shortcut" not in n]
        assert len(layers) == depth
        assert len(model.trunk.stage2) == (depth - 2) // 9


# The blocks


def test_a_block_is_norm_relu_convolution_three_times_added_to_its_input() -> None:
    torch.manual_seed(0)
    block = Bottleneck(16, 4).double().eval()
    x = torch.randn(2, 16, 5, 6, dtype=torch.float64)
    y = x
    for norm, conv in ((block.bn1, block.conv1), (block.bn2, block.conv2), (block.bn3, block.conv3)):
        y = conv(torch.relu(norm(y)))
    torch.testing.assert_close(block(x), x + y)
    assert [c.kernel_size[0] for c in (block.conv1, block.conv2, block.conv3)] == [1, 3, 1]
    assert all(c.bias is None for c in block.modules() if isinstance(c, nn.Conv2d))


def test_the_first_block_of_a_stage_shares_its_norm_with_the_shortcut() -> None:
    torch.manual_seed(0)
    block: Any = Bottleneck(8, 4, stride=2, first=True).double().eval()
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    a = torch.relu(block.bn1(x))
    through = block.conv3(torch.relu(block.bn3(block.conv2(torch.relu(block.bn2(block.conv1(a)))))))
    torch.testing.assert_close(block(x), through + F.conv2d(a, block.shortcut.weight, stride=2))
    assert (block.conv1.stride, block.conv2.stride) == ((2, 2), (1, 1))
    trunk = on_meta("rn-164").trunk
    has = [[block.shortcut is not None for block in stage] for stage in (trunk.stage1, trunk.stage2, trunk.stage3)]
    assert has == [[True, *[False] * 17]] * 3


def test_local_features_are_raw_residual_sums() -> None:
    model = tiny("rn-164-att2-concat-dp").eval()
    images = pictures()
    local, last = model.local_features(images)
    assert all(x.min() < 0 for x in local.values())
    torch.testing.assert_close(local["stage2"], model.trunk(model.normalize(images))["stage2"])
    assert last is local["stage3"]


def test_rates_of_dropout_and_constants_of_batch_norm_are_the_published_ones() -> None:
    model = on_meta("rn-164-att2-concat-pc")
    rates = {n: m.p for n, m in model.named_modules() if isinstance(m, nn.Dropout)}
    assert {n: p for n, p in rates.items() if not n.startswith("head")} == {
        "layer.3": 0.4, "fc1.0": 0.5, "attention.stage2.project_query.2": 0.5,
    }  # fmt: skip
    assert {p for n, p in rates.items() if n.startswith("head")} == {0.3}
    eps = {n: m.eps for n, m in model.named_modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))}
    assert eps.pop("layer.1") == 1e-3
    assert set(eps.values()) == {1e-5}


def test_at_32_pixels_the_query_branch_is_the_printed_one_with_its_fixed_pools() -> None:
    model = tiny("rn-164-att2-concat-dp").eval()
    images = pictures()
    x = torch.relu(model.norm(model.local_features(images)[1]))
    x = F.max_pool2d(model.layer(F.max_pool2d(x, 2)), 4)
    assert x.shape[2:] == (1, 1)
    torch.testing.assert_close(model.query(images), model.fc1(x.flatten(1)), rtol=0, atol=0)


def test_the_baseline_averages_its_last_map_after_norm_and_relu() -> None:
    model = tiny("rn-164").eval()
    images = pictures()
    x = torch.relu(model.norm(model.trunk(model.normalize(images))["stage3"]))
    torch.testing.assert_close(model(images), model.head(F.avg_pool2d(x, 8).flatten(1)))


def test_the_mean_of_a_class_map_is_the_logit_of_its_class() -> None:
    model = tiny("rn-164").eval()
    images = pictures(4, 17, 23)
    logits = model(images)
    for target in (torch.tensor([0, 1, 4, 2]), None):
        which = logits.argmax(dim=1) if target is None else target
        maps = model.class_map(images, target)
        assert maps.shape == (4, 5, 6)
        torch.testing.assert_close(maps.mean(dim=(1, 2)) + model.head.bias[which], logits[range(4), which])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(8, 8), (9, 31), (40, 24)])
def test_any_size_from_eight_pixels_on_trains(name: str, size: tuple[int, int]) -> None:
    model = tiny(name)
    train_once(model, pictures(4, *size))
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    maps = model(pictures(2, *size), return_maps=True)[1]
    for level, factor in (("stage2", 2), ("stage3", 4)):
        if level in model.levels:
            assert maps[level].shape[1:] == tuple(math.ceil(side / factor) for side in size)


# What learns


def test_golden_07_with_parametrised_scores_the_query_branch_gets_no_gradient() -> None:
    model = tiny("rn-164-att2-concat-pc")
    train_once(model, pictures())
    dead = ["norm", "layer", "fc1", "attention.stage2.project_query"]
    for prefix in [*dead, "attention.stage2.bias", "attention.stage3.bias"]:
        assert largest_gradient(model, prefix) < 1e-12, prefix
    for prefix in ("attention.stage2.weight", "attention.stage3.weight", *(f"trunk.stage{k}" for k in (1, 2, 3))):
        assert largest_gradient(model, prefix) > 1e-6, prefix


@pytest.mark.parametrize("score", ["dp", "scaled-dp", "additive"])
def test_golden_07_with_the_other_scores_the_query_branch_learns(score: str) -> None:
    model = tiny(f"rn-164-att2-concat-{score}")
    train_once(model, pictures())
    for prefix in ("norm", "layer.0.weight", "fc1", "attention.stage2.project_query"):
        assert largest_gradient(model, prefix) > 1e-6, prefix


def test_a_swapped_query_changes_the_maps_of_dp_and_not_those_of_pc() -> None:
    images = pictures()
    for score in ("dp", "pc"):
        model = tiny(f"rn-164-att2-concat-{score}").train()
        query = model.query(images)
        own, swapped = (model(images, return_maps=True, query=q)[1] for q in (query, 10 * query.flip(0)))
        for level in model.levels:
            difference = (own[level] - swapped[level]).abs().max().item()
            assert difference > 1e-6 if score == "dp" else difference < 1e-12, level


def test_merged_gradients_are_halved_at_each_tap() -> None:
    summed, averaged = (tiny("rn-164-att2-concat-pc", gradient_merge=merge) for merge in ("sum", "mean"))
    assert torch.equal(summed(pictures()), averaged(pictures()))
    for model in (summed, averaged):
        train_once(model, pictures())
    one, two = (dict(model.named_parameters()) for model in (summed, averaged))
    for stage, factor in (("stage3", 0.5), ("stage2", None)):
        name = f"trunk.{stage}.0.conv2.weight"
        grads = one[name].grad, two[name].grad
        assert grads[0] is not None and grads[1] is not None
        if factor:
            torch.testing.assert_close(grads[1], factor * grads[0])
        else:
            assert not torch.allclose(grads[1], 0.5 * grads[0], rtol=1e-2)
    torch.testing.assert_close(one["head.classifier.weight"].grad, two["head.classifier.weight"].grad)


def test_convolutions_and_norms_start_as_in_the_authors_code() -> None:
    torch.manual_seed(0)
    model: Any = create("rn-164-att2-concat-pc", 10, depth=20)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.15), name
    gammas = torch.cat([m.weight for m in model.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))])
    assert 0 <= gammas.min() < gammas.max() <= 1
    assert gammas.mean().item() == pytest.approx(0.5, abs=0.03)
    directions = torch.cat([unit.weight.detach() for unit in model.attention.values()])
    assert directions.std().item() == pytest.approx(1.414, rel=0.15)
    default: Any = create("rn-164", 10, depth=11, init="default")
    assert (default.norm.weight == 1).all()


def test_levels_can_be_one_two_three_or_none() -> None:
    found = {k: ResNetAttention(levels=k, depth=11, width=0.125).levels for k in range(4)}
    assert found == {0: (), 1: ("stage3",), 2: ("stage2", "stage3"), 3: ("stage1", "stage2", "stage3")}


# Errors


def test_an_impossible_depth_names_the_nearest_one() -> None:
    for depth, near in ((18, 20), (110, 110), (165, 164), (2, 11), (-7, 11)):
        if depth == near:
            create("rn-164", depth=depth, width=0.125)
            continue
        message = re.escape(f"depth must be 9 n + 2 with n blocks per stage, got {depth}; nearest: {near}")
        with pytest.raises(ValueError, match=message):
            PreActResNet(depth=depth, width=0.125)


@pytest.mark.parametrize("name", ["rn-164", "rn-164-att-control", "rn-164-att2-concat-dp"])
def test_impossible_options_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="width must be positive"):
        create(name, width=0.0)
    with pytest.raises(ValueError, match="dropout is a factor"):
        create(name, dropout=2.0)
    with pytest.raises(ValueError, match="init is 'papr'; did you mean 'paper'"):
        create(name, depth=11, width=0.125, init="papr")
    with pytest.raises(TypeError, match="has no option 'layout'"):
        create(name, layout="cub")
    with pytest.raises(ValueError, match=r"levels must be 0 \(the control\), 1, 2 or 3, got 4"):
        ResNetAttention(levels=4)
    for target in (torch.tensor([0, 1, 2]), torch.tensor([0.0, 1.0])):
        with pytest.raises(ValueError, match=r"target must be one class per image, \(2,\) int64"):
            tiny("rn-164").class_map(pictures(2), target)
    with pytest.raises(ValueError, match=re.escape("target must lie in 0..4, got [0, 5]")):
        tiny("rn-164").class_map(pictures(2), torch.tensor([0, 5]))
