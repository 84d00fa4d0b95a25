"""The VGG networks of Learn To Pay Attention: counts, shapes, initialisation, gradients and the external query.

Numbers in the names (``golden_07``) are those of the golden checks in the specification of Learn To Pay Attention.
What must hold for every registered network alike stands in ``test_contracts.py``.
"""

from __future__ import annotations

import inspect
import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from payattn import models
from payattn.attention import SpatialAttention
from payattn.cost import layers
from payattn.models import ConvBlock, Normalize, create, list_models, pool, scale_gradient, shrink, unit_range

TINY = 0.05


def tiny(name: str, classes: int = 5, *, seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    options = {"width": TINY, "dropout": 0.0} | options
    return create(name, classes, **options).double()


def pictures(n: int = 4, height: int = 32, width: int = 32, seed: int = 1) -> Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def train_once(model: nn.Module, images: Tensor) -> None:
    logits = model(images)
    F.cross_entropy(logits, torch.arange(len(images)) % logits.shape[1]).backward()


def largest_gradient(model: nn.Module, prefix: str) -> float:
    grads = [p.grad for name, p in model.named_parameters() if name.startswith(prefix)]
    assert grads, f"no parameter starts with {prefix}"
    return max(0.0 if g is None else g.abs().max().item() for g in grads)


# Parameter counts and shapes

COUNTS: dict[str, tuple[int, int, int]] = {  # for 10, 100 and 200 classes: section 3.2 of the specification
    "vgg": (14_991_946, 15_038_116, 15_089_416),
    "vgg-gap": (14_728_266, 14_774_436, 14_825_736),
    "vgg-pan": (24_698_956, 24_745_126, 24_796_426),
    "vgg-att-control": (19_713_610, 19_759_780, 19_811_080),
    "vgg-att-dp": (19_713_610, 19_759_780, 19_811_080),
    "vgg-att-pc": (19_714_123, 19_760_293, 19_811_593),
    "vgg-att2-concat-dp": (19_719_754, 19_812_004, 19_914_504),
    "vgg-att2-concat-pc": (19_720_780, 19_813_030, 19_915_530),
    "vgg-att2-indep-dp": (19_719_764, 19_812_104, 19_914_704),
    "vgg-att2-indep-pc": (19_720_790, 19_813_130, 19_915_730),
    "vgg-att3-concat-dp": (19_855_178, 19_970_468, 20_098_568),
    "vgg-att3-concat-pc": (19_856_461, 19_971_751, 20_099_851),
    "vgg-att3-indep-dp": (19_855_198, 19_970_668, 20_098_968),
    "vgg-att3-indep-pc": (19_856_481, 19_971_951, 20_100_251),
}


def count(name: str, classes: int, **options: Any) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in create(name, classes, **options).parameters())


def count_under(model: nn.Module, *names: str) -> int:
    return sum(p.numel() for name in names for p in model.get_submodule(name).parameters())


@pytest.mark.parametrize("name", COUNTS)
def test_golden_09_parameter_counts_are_those_of_the_table(name: str) -> None:
    assert tuple(count(name, classes) for classes in (10, 100, 200)) == COUNTS[name]


def test_golden_09_parameter_counts_with_projected_local_features() -> None:
    counts = [count("vgg-att3-concat-pc", classes, project="local") for classes in (10, 100)]
    assert counts == [19_860_045, 19_998_375]


@pytest.mark.parametrize("classes", [10, 200])
def test_golden_09_scores_and_heads_differ_by_the_stated_counts(classes: int) -> None:
    for levels, head in [("", ""), ("2", "-concat"), ("2", "-indep"), ("3", "-concat"), ("3", "-indep")]:
        pc, additive, dp, scaled = (
            count(f"vgg-att{levels}{head}-{score}", classes) for score in ("pc", "additive", "dp", "scaled-dp")
        )
        assert pc - dp == {"": 513, "2": 1026, "3": 1283}[levels]
        assert (additive, scaled) == (pc, dp)
    for number, score in [(2, "pc"), (2, "dp"), (3, "pc"), (3, "dp")]:
        concat, indep = (count(f"vgg-att{number}-{kind}-{score}", classes) for kind in ("concat", "indep"))
        assert indep - concat == (number - 1) * classes


def test_golden_09_blocks_have_the_stated_counts() -> None:
    with torch.device("meta"):
        model = create("vgg-att3-concat-pc", 10)
    assert count_under(model, *(f"trunk.layer{n}" for n in range(1, 8))) == 1_737_792
    assert count_under(model, *(f"trunk.layer{n}" for n in (8, 9, 10))) == 5_902_848
    assert count_under(model, *(f"trunk.layer{n}" for n in (11, 12, 13))) == 7_082_496
    assert count_under(model, "trunk.layer14", "trunk.layer15", "fc1") == 4_984_320
    assert count_under(model, "attention.layer7") == 132_609
    assert count_under(model, "attention.layer10") == count_under(model, "attention.layer13") == 513
    assert count_under(model, "head") == 15_370


def test_golden_08_maps_features_query_and_head_have_the_paper_s_shapes() -> None:
    with torch.device("meta"):
        model: Any = create("vgg-att3-concat-pc", 10)
        images = torch.empty(2, 3, 32, 32)
        logits, maps = model(images, return_maps=True)
        local, _ = model.local_features(images)
        features = model.features(images)
        query = model.query(images)
    assert logits.shape == (2, 10)
    assert [tuple(a.shape) for a in maps.values()] == [(2, 32, 32), (2, 16, 16), (2, 8, 8)]
    assert [tuple(x.shape) for x in local.values()] == [(2, 256, 32, 32), (2, 512, 16, 16), (2, 512, 8, 8)]
    assert query.shape == (2, 512)
    assert features.shape == (2, 1280)
    assert model.head.classifier.in_features == 1280


def test_golden_08_levels_are_named_as_in_the_paper() -> None:
    levels = {name: create(name, width=TINY).levels for name in list_models("vgg*")}
    assert levels["vgg"] == levels["vgg-att-control"] == ()
    assert levels["vgg-gap"] == levels["vgg-att-pc"] == ("layer13",)
    assert levels["vgg-att2-indep-dp"] == levels["vgg-pan"] == ("layer10", "layer13")
    assert levels["vgg-att3-concat-additive"] == ("layer7", "layer10", "layer13")


SIDES = {  # of the map that each of the layers 1, 2, ... gives for 32 px: table 3.1 of the specification
    "vgg": [32, 32, 16, 16, 8, 8, 8, 4, 4, 4, 2, 2, 2],
    "vgg-gap": [32, 32, 32, 32, 32, 32, 32, 16, 16, 16, 8, 8, 8],
    "vgg-att-control": [32, 32, 32, 32, 32, 32, 32, 16, 16, 16, 8, 8, 8, 4, 2],
    "vgg-att3-concat-pc": [32, 32, 32, 32, 32, 32, 32, 16, 16, 16, 8, 8, 8, 4, 2],
}
MULTIPLY_ADDS = {"vgg": 313e6, "vgg-gap": 3.739e9, "vgg-att-control": 3.786e9, "vgg-att3-concat-pc": 3.786e9}


@pytest.mark.parametrize("name", SIDES)
def test_golden_08_layers_give_maps_of_the_stated_sizes_at_the_stated_cost(name: str) -> None:
    sides: list[int] = []
    cost = 0

    def record(module: nn.Module, inputs: Any, out: Tensor) -> None:
        nonlocal cost
        assert isinstance(module, nn.Conv2d)
        sides.append(out.shape[-1])
        cost += out[0, 0].numel() * module.weight.numel()

    with torch.device("meta"):
        model = create(name, 10)
        for module in model.get_submodule("trunk").modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(record)
        model.eval()(torch.empty(1, 3, 32, 32))
    assert sides == SIDES[name]
    assert cost == pytest.approx(MULTIPLY_ADDS[name], rel=2e-3)


def multiply_adds(name: str, side: int, **options: Any) -> float:
    """Of all convolutions, for one image."""
    with torch.device("meta"):
        found = layers(create(name, 10, **options), 3, side, side)
    return sum(layer.multiply_adds for layer in found.values() if layer.kind == "Conv2d")


def test_golden_08_progressive_attention_costs_what_the_table_says() -> None:
    assert multiply_adds("vgg-pan", 32) == pytest.approx(3.833e9, rel=2e-4)


# The layout for 80 pixels (CUB)


def test_golden_08_the_layout_for_80_pixels_has_the_stated_maps() -> None:
    for name, expected in {
        "vgg-att2-concat-pc": [(16, 16), (8, 8)], "vgg-att3-concat-pc": [(32, 32), (16, 16), (8, 8)],
        "vgg-pan": [(16, 16), (8, 8)], "vgg-gap": [(8, 8)],
    }.items():  # fmt: skip
        with torch.device("meta"):
            maps = create(name, 200, layout="cub")(torch.empty(2, 3, 80, 80), return_maps=True)[1]
        assert [tuple(a.shape[1:]) for a in maps.values()] == expected, name


def test_golden_08_the_layout_for_80_pixels_has_the_stated_sides_and_cost() -> None:
    sides: list[int] = []
    with torch.device("meta"):
        model = create("vgg", 200, layout="cub")
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda m, i, out: sides.append(out.shape[-1]))
        model.eval()(torch.empty(1, 3, 80, 80))
    assert sides == [80, 80, 40, 40, 20, 20, 20, 10, 10, 10, 5, 5, 3]
    assert multiply_adds("vgg", 80, layout="cub") == pytest.approx(1.92e9, rel=3e-3)
    assert multiply_adds("vgg-att2-concat-pc", 80, layout="cub") == pytest.approx(13.1e9, rel=4e-3)


@pytest.mark.parametrize("name", ["vgg", "vgg-gap", "vgg-pan", "vgg-att2-concat-pc", "vgg-att3-concat-pc"])
def test_golden_09_the_layout_changes_no_parameter(name: str) -> None:
    assert count(name, 200, layout="cub") == COUNTS[name][2]
    torch.manual_seed(0)
    one = create(name, 5, width=TINY)
    torch.manual_seed(0)
    two = create(name, 5, width=TINY, layout="cub")
    two.load_state_dict(one.state_dict())  # the paper starts on CUB from a network trained on CIFAR-100
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_golden_15_the_first_level_at_80_pixels_is_an_adaptive_pool_to_32() -> None:
    for height, width in ((80, 80), (40, 15)):
        x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
        doubled = F.interpolate(x, scale_factor=2, mode="nearest")
        assert torch.equal(shrink(x), F.max_pool2d(doubled, 5))
        assert torch.equal(pool(shrink(x)), pool(x, 5))
    x = torch.randn(1, 2, 80, 80)
    assert torch.equal(shrink(x), F.adaptive_max_pool2d(x, 32))
    model = tiny("vgg-att3-concat-dp", layout="cub").eval()
    images = pictures(1, 80, 80)
    local = model.local_features(images)[0]
    expected = F.adaptive_max_pool2d(model.trunk.run(model.normalize(images), 1, 7), 32)
    assert torch.equal(local["layer7"], expected)
    fewer = tiny("vgg-att2-concat-dp", layout="cub").eval()
    fewer.trunk.load_state_dict(model.trunk.state_dict())
    assert torch.equal(fewer.local_features(images)[0]["layer10"], local["layer10"])


@pytest.mark.parametrize("name", ["vgg", "vgg-gap", "vgg-pan", "vgg-att3-concat-dp"])
def test_both_layouts_train_on_any_size_from_eight_pixels_on(name: str) -> None:
    for layout in ("cifar", "cub"):
        for size in ((8, 8), (9, 23), (81, 40)):
            model = tiny(name, layout=layout)
            train_once(model, pictures(4, *size))
            assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
            model.eval()(pictures(2, 1, 1))


# Progressive attention


def test_golden_07_of_progressive_attention_the_first_query_learns_and_the_second_does_not() -> None:
    for seed in range(3):
        model = tiny("vgg-pan", seed=seed)
        train_once(model, pictures(seed=seed))
        for prefix in ("trunk.layer14", "trunk.layer15", "fc1", "attention.layer13.bias"):
            assert largest_gradient(model, prefix) < 1e-12, prefix
        for prefix in (
            "branch.layer14.0.weight", "branch.layer15.0.weight", "branch.fc1.1.weight", "branch.fc1.1.bias",
            "attention.layer10.weight", "attention.layer10.bias", "attention.layer13.weight", "trunk.layer1.0.weight",
        ):  # fmt: skip
            assert largest_gradient(model, prefix) > 1e-10, prefix


def test_progressive_attention_masks_layer_10_and_classifies_layer_13_alone() -> None:
    model = tiny("vgg-pan").eval()
    images = pictures(3)
    x = model.trunk.run(model.normalize(images), 1, 10)
    unit, branch = model.attention["layer10"], model.branch
    g = F.max_pool2d(branch.layer14(F.max_pool2d(x, 4)), 2)
    g = F.max_pool2d(branch.layer15(g), 2)
    assert g.shape[2:] == (1, 1)
    g = branch.fc1(g.flatten(1))
    mask = torch.sigmoid(torch.einsum("nmhw,m->nhw", x + g[:, :, None, None], unit.weight) + unit.bias)
    local = model.trunk.run(F.max_pool2d(x * mask[:, None], 2), 11, 13)
    a = torch.einsum("nmhw,m->nhw", local, model.attention["layer13"].weight).flatten(1).softmax(1).view(3, 8, 8)
    logits, maps = model(images, return_maps=True)
    torch.testing.assert_close(maps["layer10"], mask)
    torch.testing.assert_close(maps["layer13"], a)
    by_hand = model.head([torch.einsum("nmhw,nhw->nm", local, a)])
    torch.testing.assert_close(logits, by_hand)
    assert model.features(images).shape == (3, 26)
    early = [p for key, p in model.named_parameters() if key.startswith(("trunk.layer1.", "trunk.layer10."))]
    grads = [torch.autograd.grad(out.square().sum(), early) for out in (logits, by_hand)]
    assert all(torch.allclose(one, two, rtol=1e-7, atol=1e-12) for one, two in zip(*grads, strict=True))
    assert max(g.abs().max() for g in grads[0]) > 1e-6


def test_a_mask_is_a_weight_per_position_and_a_softmax_mask_sums_to_one() -> None:
    pans = [tiny("vgg-pan", mask=mask).eval() for mask in ("sigmoid", "softmax")]
    sigmoid, softmax = (model(pictures(), return_maps=True)[1] for model in pans)
    assert ((sigmoid["layer10"] > 0) & (sigmoid["layer10"] < 1)).all()
    assert not torch.allclose(sigmoid["layer10"].sum(dim=(1, 2)), torch.ones(4).double(), rtol=0.1)
    torch.testing.assert_close(softmax["layer10"].sum(dim=(1, 2)), torch.ones(4).double())


def test_the_mask_can_lie_on_layer_7_with_the_query_projected_down() -> None:
    with torch.device("meta"):
        model: Any = create("vgg-pan", 10, level="layer7")
        maps = model(torch.empty(2, 3, 32, 32), return_maps=True)[1]
        at_80 = create("vgg-pan", 10, level="layer7", layout="cub")(torch.empty(2, 3, 80, 80), return_maps=True)[1]
    for found in (maps, at_80):
        assert {level: tuple(a.shape) for level, a in found.items()} == {"layer7": (2, 32, 32), "layer13": (2, 8, 8)}
    assert count_under(model, "attention.layer7") == 132_609
    for wrong in ({"level": "layer13"}, {"mask": "softmx"}, {"score_init": "papr"}, {"layout": "cubs"}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is "):
            create("vgg-pan", width=TINY, **wrong)  # type: ignore[arg-type]


# Queries of their own


def test_each_level_but_the_last_can_have_a_query_branch_of_its_own() -> None:
    with torch.device("meta"):
        shared, separate = (create("vgg-att2-concat-dp", 10, queries=kind) for kind in ("shared", "separate"))
    one, more = (sum(p.numel() for p in model.parameters()) for model in (shared, separate))
    assert (one, more) == (19_719_754, 19_719_754 + 4_984_320)
    for name in ("vgg-att2-concat-dp", "vgg-att3-indep-dp"):
        for tap in ("pre", "post"):
            model = tiny(name, queries="separate", tap=tap)
            train_once(model, pictures())
            for level in model.levels[:-1]:
                assert largest_gradient(model, f"branches.{level}.layer14.0.weight") > 1e-10, level
    images = pictures()
    attended, (local, _) = model.eval().attend(images), model.local_features(images)
    for level, branch in model.branches.items():
        out = model.attention[level](local[level], branch(local[level]))
        torch.testing.assert_close(attended[level].map, out.map)
    assert tuple(model.branches) == model.levels[:-1]


def test_averaging_of_gradients_is_refused_for_separate_queries() -> None:
    with pytest.raises(ValueError, match="gradient_merge='mean' is a rule for one shared query"):
        create("vgg-att2-concat-dp", width=TINY, queries="separate", gradient_merge="mean")


def test_taps_lie_before_the_pool_or_after_it() -> None:
    before, after = (tiny("vgg-att3-concat-dp", tap=tap) for tap in ("pre", "post"))
    images = pictures(2)
    post = after.local_features(images)[0]
    for level, pre in before.local_features(images)[0].items():
        torch.testing.assert_close(F.max_pool2d(pre, 2), post[level])
    assert [tuple(a.shape[1:]) for a in after(images, return_maps=True)[1].values()] == [(16, 16), (8, 8), (4, 4)]


def test_the_trunk_is_made_of_the_stated_layers() -> None:
    model = create("vgg-att3-concat-pc", 10, width=TINY)
    blocks = {n: model.get_submodule(f"trunk.layer{n}") for n in range(1, 16)}
    rates = {n: [m.p for m in block.modules() if isinstance(m, nn.Dropout)] for n, block in blocks.items()}
    assert [n for n, rate in rates.items() if rate == []] == [2, 4, 7, 10, 13]
    assert rates[1] == [0.3]
    assert all(rates[n] == [0.4] for n in (3, 5, 6, 8, 9, 11, 12, 14, 15))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.eps == 1e-3
        if isinstance(module, nn.BatchNorm1d):
            assert module.eps == 1e-5
    others = {m.p for name, m in model.named_modules() if isinstance(m, nn.Dropout) and not name.startswith("trunk")}
    assert others == {0.5}


def test_a_block_is_convolution_norm_relu_and_then_dropout() -> None:
    torch.manual_seed(0)
    block: Any = ConvBlock(3, 4, dropout=0.5).double().train()
    x = pictures(2, 5, 7)
    y = F.conv2d(x, block[0].weight, block[0].bias, padding=1)
    mean, var = y.mean(dim=(0, 2, 3), keepdim=True), y.var(dim=(0, 2, 3), keepdim=True, unbiased=False)
    expected = ((y - mean) / (var + 1e-3).sqrt()).clamp_min(0)
    out = block(x)
    kept = out != 0
    assert 0.15 < kept.double().mean() < 0.35  # half by the ReLU, then half of the rest
    torch.testing.assert_close(out[kept], 2 * expected[kept])


def test_dropout_is_a_factor_on_the_published_rates() -> None:
    half = [m.p for m in create("vgg-att2-concat-pc", width=TINY, dropout=0.5).modules() if isinstance(m, nn.Dropout)]
    assert set(half) == {0.15, 0.2, 0.25}
    none = [m.p for m in create("vgg-att2-concat-pc", width=TINY, dropout=0.0).modules() if isinstance(m, nn.Dropout)]
    assert set(none) <= {0.0}


def test_pools_round_up() -> None:
    assert pool(torch.rand(1, 1, 5, 1)).shape == (1, 1, 3, 1)
    assert pool(torch.tensor([[[[1.0, 3.0, 2.0]]]])).flatten().tolist() == [3.0, 2.0]


# The query: what learns and what does not


@pytest.mark.parametrize("name", ["vgg-att-pc", "vgg-att2-indep-pc", "vgg-att3-concat-pc"])
def test_golden_07_with_parametrised_scores_the_query_branch_gets_no_gradient(name: str) -> None:
    model = tiny(name)
    train_once(model, pictures())
    dead = ["trunk.layer14", "trunk.layer15", "fc1"] + [f"attention.{level}.bias" for level in model.levels]
    if "layer7" in model.levels:
        dead.append("attention.layer7.project_query")
    for prefix in dead:
        assert largest_gradient(model, prefix) < 1e-12, prefix
    for level in model.levels:
        assert largest_gradient(model, f"attention.{level}.weight") > 1e-6, level
    for number in range(1, 14):
        assert largest_gradient(model, f"trunk.layer{number}.0.weight") > 1e-6, number


@pytest.mark.parametrize(
    "name", ["vgg-att-dp", "vgg-att2-indep-scaled-dp", "vgg-att3-concat-dp", "vgg-att3-concat-additive"]
)
def test_golden_07_with_the_other_scores_the_query_branch_learns(name: str) -> None:
    model = tiny(name)
    train_once(model, pictures())
    branches = ["trunk.layer14", "trunk.layer15", "fc1"]
    if "layer7" in model.levels:
        branches.append("attention.layer7.project_query")
    for prefix in branches:
        assert largest_gradient(model, prefix) > 1e-6, prefix


def test_golden_14_weight_decay_alone_acts_on_the_dead_query_branch() -> None:
    model = tiny("vgg-att2-concat-pc", dropout=1.0)
    start = model.fc1[1].weight.detach().clone()
    other = model.head.classifier.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.05)
    for step in range(5):
        optimizer.zero_grad()
        train_once(model, pictures(seed=step))
        optimizer.step()
    factor = (1 - 0.1 * 0.05) ** 5
    assert factor == pytest.approx(0.9752488, abs=1e-7)
    torch.testing.assert_close(model.fc1[1].weight.detach(), start * factor, rtol=1e-8, atol=0)
    assert not torch.allclose(model.head.classifier.weight, other * factor, rtol=1e-3)


def test_the_query_is_the_output_of_fc_1_without_norm_or_relu() -> None:
    model = tiny("vgg-att2-concat-dp").eval()
    images = pictures()
    seen: list[Tensor] = []
    model.fc1[1].register_forward_hook(lambda m, i, out: seen.append(out))
    query = model.query(images)
    assert torch.equal(query, seen[0])
    assert query.min() < 0


@pytest.mark.parametrize("name", ["vgg-att-dp", "vgg-att3-concat-dp", "vgg-att2-indep-pc", "vgg-att-control"])
def test_the_own_query_given_from_outside_changes_nothing(name: str) -> None:
    model = tiny(name).eval()
    images = pictures()
    logits, maps = model(images, return_maps=True)
    again, again_maps = model(images, return_maps=True, query=model.query(images))
    assert torch.equal(logits, again)
    assert all(torch.equal(maps[level], again_maps[level]) for level in maps)


@pytest.mark.parametrize("name", ["vgg-att2-concat-dp", "vgg-att3-concat-dp", "vgg-att2-concat-additive"])
def test_one_query_for_all_images_equals_that_query_repeated(name: str) -> None:
    model = tiny(name).eval()
    images, query = pictures(), model.query(pictures(1, seed=9))
    one, one_maps = model(images, return_maps=True, query=query)
    many, many_maps = model(images, return_maps=True, query=query.expand(4, -1))
    torch.testing.assert_close(one, many)
    for level in one_maps:
        torch.testing.assert_close(one_maps[level], many_maps[level])


@pytest.mark.parametrize(
    ("score", "options", "changes"),
    [
        ("dp", {}, True), ("scaled-dp", {}, True), ("additive", {}, True), ("pc", {}, False), ("uniform", {}, False),
        ("pc", {"norm": "sigmoid-sum"}, True), ("pc", {"project": "local"}, False), ("dp", {"project": "local"}, True),
    ],
)  # fmt: skip
def test_a_swapped_query_changes_every_map_except_those_of_pc_and_uniform(
    score: str, options: dict[str, Any], changes: bool
) -> None:
    model = tiny(f"vgg-att3-concat-{score}", **options).train()
    images = pictures()
    query = model.query(images)
    _, own = model(images, return_maps=True, query=query)
    _, swapped = model(images, return_maps=True, query=10 * query.flip(0))
    for level in model.levels:
        difference = (own[level] - swapped[level]).abs().max().item()
        assert difference > 1e-6 if changes else difference < 1e-12, level


@pytest.mark.parametrize("name", ["vgg-att3-concat-dp", "vgg-att3-concat-uniform", "vgg-att-control"])
def test_a_wrong_query_is_named_with_the_shape_it_should_have(name: str) -> None:
    model = tiny(name).eval()
    for shape in [(4, 7), (3, 26), (26,), (4, 26, 1)]:
        message = re.escape(f"query must be (4, 26), or (1, 26) for all images, got {shape}")
        with pytest.raises(ValueError, match=message):
            model(pictures(), query=torch.zeros(shape, dtype=torch.float64))


def test_the_control_classifies_the_query_itself() -> None:
    model = tiny("vgg-att-control").eval()
    images = pictures()
    torch.testing.assert_close(model(images), model.head(model.query(images)))
    assert model(images, query=torch.zeros(1, 26, dtype=torch.float64)).shape == (4, 5)


# What the head sees


@pytest.mark.parametrize("name", ["vgg-att2-concat-dp", "vgg-att3-indep-pc"])
def test_logits_come_from_the_descriptors_alone(name: str) -> None:
    model = tiny(name).eval()
    images = pictures()
    attended = model.attend(images)
    torch.testing.assert_close(model(images), model.head([a.descriptor for a in attended.values()]))
    for level, features in model.local_features(images)[0].items():
        a = attended[level]
        torch.testing.assert_close(a.descriptor, torch.einsum("nmhw,nhw->nm", features, a.map))
        torch.testing.assert_close(a.map, a.scores.flatten(1).softmax(dim=1).view_as(a.scores))
    assert model.features(images).shape == (4, sum(a.descriptor.shape[1] for a in attended.values()))


def test_golden_10_the_network_multiplies_or_averages_the_predictions_of_its_levels() -> None:
    images = pictures()
    for combine in ("product", "mean"):
        model = tiny("vgg-att2-indep-pc", combine=combine).eval()
        features = model.features(images).split([26, 26], dim=1)
        one, two = (classify(x).softmax(1) for classify, x in zip(model.head.classifiers, features, strict=True))
        joined = F.normalize(one * two, p=1, dim=1) if combine == "product" else (one + two) / 2
        torch.testing.assert_close(model(images).softmax(dim=1), joined)


def test_uniform_attention_is_global_average_pooling() -> None:
    model = tiny("vgg-att2-concat-uniform").eval()
    images = pictures()
    for level, features in model.local_features(images)[0].items():
        torch.testing.assert_close(model.attend(images)[level].descriptor, features.mean(dim=(2, 3)))


def test_the_mean_of_the_gap_map_is_the_logit_of_the_predicted_class() -> None:
    model = tiny("vgg-gap").eval()
    logits, maps = model(pictures(4, 17, 23), return_maps=True)
    top, which = logits.max(dim=1)
    torch.testing.assert_close(maps["layer13"].mean(dim=(1, 2)) + model.head.bias[which], top)


def test_a_class_map_of_any_class_has_that_class_s_logit_as_its_mean() -> None:
    model = tiny("vgg-gap").eval()
    images = pictures(4, 17, 23)
    logits, maps = model(images, return_maps=True)
    target = torch.tensor([4, 0, 2, 2])
    chosen = model.class_map(images, target)
    torch.testing.assert_close(chosen.mean(dim=(1, 2)) + model.head.bias[target], logits[range(4), target])
    torch.testing.assert_close(model.class_map(images), maps["layer13"])
    for wrong in (target[:3], target.double()):
        with pytest.raises(ValueError, match=r"target must be one class per image, \(4,\) int64"):
            model.class_map(images, wrong)
    with pytest.raises(ValueError, match=re.escape("target must lie in 0..4, got [4, 0, 2, 5]")):
        model.class_map(images, torch.tensor([4, 0, 2, 5]))


@pytest.mark.parametrize(
    ("name", "length"), [("vgg", 512), ("vgg-gap", 512), ("vgg-pan", 512), ("vgg-att2-concat-pc", 1024)]
)
def test_features_have_the_published_lengths(name: str, length: int) -> None:
    with torch.device("meta"):
        assert create(name, 10).features(torch.empty(2, 3, 32, 32)).shape == (2, length)


# Merging of gradients


def merged_by_hand(model: Any, images: Tensor, labels: Tensor, mean: bool) -> dict[str, Tensor]:
    """The authors' backward written out: one piece of the network after the other, averaged where branches meet."""
    tap, share = (0.5, 1 / 3) if mean else (1.0, 1.0)
    inputs: dict[int, Tensor] = {}
    local: dict[int, Tensor] = {}
    x = model.normalize(images)
    for first, number in ((1, 7), (8, 10), (11, 13)):
        inputs[number] = x.detach().requires_grad_()
        local[number] = model.trunk.run(inputs[number], first, number)
        x = pool(local[number])
    last = x.detach().requires_grad_()
    g = model.fc1(pool(model.trunk.run(last, 14, 15)).amax(dim=(2, 3)))

    leaves: Any = {number: features.detach().requires_grad_() for number, features in local.items()}
    query: Any = g.detach().requires_grad_()
    units = [model.attention[f"layer{number}"](leaves[number], query).descriptor for number in (7, 10, 13)]
    F.cross_entropy(model.head(units), labels).backward()
    g.backward(query.grad * share)
    chain = last.grad
    for number in (13, 10, 7):
        through_pool = torch.autograd.grad(pool(leaves[number]), leaves[number], chain)[0]
        local[number].backward((through_pool + leaves[number].grad) * tap)
        chain = inputs[number].grad
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["vgg-att3-concat-dp", "vgg-att3-indep-pc"])
@pytest.mark.parametrize("merge", ["sum", "mean"])
def test_merged_gradients_follow_the_rule_written_out_by_hand(name: str, merge: str) -> None:
    model = tiny(name, gradient_merge=merge)
    images, labels = pictures(), torch.tensor([0, 1, 2, 3])
    by_hand = merged_by_hand(model, images, labels, mean=merge == "mean")
    model.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    for key, p in model.named_parameters():
        assert torch.allclose(p.grad, by_hand[key], rtol=1e-7, atol=1e-13), key


def test_merging_changes_gradients_and_never_the_output() -> None:
    summed, averaged = (tiny("vgg-att3-concat-dp", gradient_merge=merge) for merge in ("sum", "mean"))
    assert torch.equal(summed(pictures()), averaged(pictures()))
    for model in (summed, averaged):
        train_once(model, pictures())
    torch.testing.assert_close(summed.head.classifier.weight.grad, averaged.head.classifier.weight.grad)
    one, two = (model.trunk.layer1[0].weight.grad for model in (summed, averaged))
    assert not torch.allclose(one, two, rtol=0.1)


def test_a_scaled_gradient_leaves_the_value() -> None:
    x = torch.tensor([2.0, 3.0], requires_grad=True)
    y = scale_gradient(x, 0.25)
    assert torch.equal(y, x)
    y.pow(2).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 1.5]


# Initialisation


def test_convolutions_and_norms_start_as_in_the_authors_code() -> None:
    torch.manual_seed(0)
    model = create("vgg-att3-concat-pc", 10, width=0.25, project="local")
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.1), name
            assert module.bias is not None
            assert not module.bias.any(), name
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert not module.bias.any(), name
        if isinstance(module, nn.Linear):
            assert module.weight.abs().max().item() == pytest.approx(1 / math.sqrt(module.in_features), rel=0.02), name
    gammas = torch.cat([m.weight for m in model.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))])
    assert gammas.min() >= 0
    assert gammas.max() <= 1
    assert gammas.mean().item() == pytest.approx(0.5, abs=0.03)
    assert gammas.std().item() == pytest.approx(math.sqrt(1 / 12), abs=0.02)


def test_the_default_initialisation_is_the_one_of_pytorch() -> None:
    torch.manual_seed(0)
    model: Any = create("vgg-att2-concat-pc", 10, width=0.25, init="default")
    assert all((m.weight == 1).all() for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    weight = model.trunk.layer9[0].weight
    assert weight.abs().max().item() == pytest.approx(1 / math.sqrt(9 * 128), rel=0.02)
    assert model.attention["layer13"].weight.abs().max().item() <= 1 / math.sqrt(128)


def test_learned_directions_start_with_a_spread_of_the_root_of_two() -> None:
    units = [u for seed in range(3) for u in tiny("vgg-att2-concat-pc", seed=seed, width=0.5).attention.values()]
    directions = torch.cat([unit.weight.detach() for unit in units])
    assert directions.std().item() == pytest.approx(1.414, abs=0.07)
    assert all(unit.bias.item() == 0 for unit in units)


def test_the_score_can_start_as_in_pytorch_while_the_trunk_starts_as_in_the_paper() -> None:
    model = tiny("vgg-att2-concat-pc", width=0.5, score_init="default")
    assert all(u.weight.abs().max() <= 1 / math.sqrt(256) for u in model.attention.values())
    gamma = model.trunk.layer13[1].weight
    assert 0 <= gamma.min() < gamma.max() < 1


def entropy(maps: Tensor) -> Tensor:
    """Of each map, divided by that of a uniform one."""
    p = maps.flatten(1)
    return -torch.special.xlogy(p, p).sum(dim=1) / math.log(p.shape[1])


def test_first_maps_are_almost_one_hot_as_in_the_paper_and_almost_uniform_by_default() -> None:
    """On random pixels and in training mode, three images at full width.

    The specification measures entropies of 0.06 to 0.14 and top weights of 0.66 to 0.89 for the paper's start, and
    entropies of at least 0.995 for PyTorch's start of u. Over six seeds and three levels we see means of 0.00 to 0.20,
    0.52 to 1.00, and at least 0.993; the bands leave room for other seeds.
    """
    torch.manual_seed(0)
    model: Any = create("vgg-att3-concat-pc", 10).train()
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        local, _ = model.local_features(images)
        for init in ("paper", "default"):
            for level, unit in model.attention.items():
                assert isinstance(unit, SpatialAttention)
                unit.reset_parameters(init)
                a = unit(local[level], torch.zeros(3, 512)).map
                if init == "paper":
                    assert entropy(a).mean() < 0.3, level
                    assert a.amax(dim=(1, 2)).mean() > 0.4, level
                else:
                    assert entropy(a).min() > 0.98, level


# First layer


def test_pixels_are_normalised_per_channel() -> None:
    layer = Normalize(mean=(0.1, 0.2, 0.3), std=(1.0, 0.5, 0.25))
    out = layer(torch.full((1, 3, 1, 2), 51, dtype=torch.uint8))
    assert out[0, :, 0, 0].tolist() == pytest.approx([0.1, 0.0, -0.4])
    assert layer.double()(pictures(1)).dtype == torch.float64
    assert set(layer.state_dict()) == {"mean", "std"}


def test_unit_range_divides_bytes_and_lets_floats_pass() -> None:
    floats = torch.rand(1, 3, 2, 2)
    assert unit_range(floats) is floats
    assert unit_range(torch.tensor([255], dtype=torch.uint8)).item() == 1.0
    with pytest.raises(TypeError, match=re.escape("uint8 in 0..255 or floating in [0, 1], got torch.int64")):
        unit_range(torch.zeros(1, dtype=torch.int64))


def test_a_wrong_mean_or_spread_is_refused() -> None:
    with pytest.raises(ValueError, match="mean must be one number or three"):
        create("vgg", mean=(0.5, 0.5))
    with pytest.raises(ValueError, match="std must be positive"):
        create("vgg", std=(0.2, 0.0, 0.2))


# The registry and its errors


def test_the_registry_holds_every_network_of_the_paper_by_name() -> None:
    names = set(list_models())
    assert set(COUNTS) <= names
    scores = ("dp", "pc", "additive", "scaled-dp", "uniform")
    built = {f"vgg-att{s}-{h}-{score}" for s in (2, 3) for h in ("concat", "indep") for score in scores}
    built |= {f"vgg-att-{score}" for score in scores} | {"vgg", "vgg-gap", "vgg-pan", "vgg-att-control", "rn-164"}
    built |= {f"rn-164-att2-concat-{score}" for score in scores} | {"rn-164-att-control"}
    assert built <= names
    assert list_models("*att3-indep-*") == [f"vgg-att3-indep-{score}" for score in scores]
    assert list_models("nothing*") == []


def test_an_unknown_name_lists_the_nearest_ones() -> None:
    with pytest.raises(ValueError, match=r"no model 'vgg-att2-concat-cp'; nearest: vgg-att2-concat-"):
        create("vgg-att2-concat-cp")
    with pytest.raises(ValueError, match=r"no model 'VGG-GAP'"):
        create("VGG-GAP")


def test_an_unknown_option_names_the_nearest_one_and_all() -> None:
    with pytest.raises(
        TypeError, match=r"vgg-att-pc has no option 'widht'; did you mean 'width'\? \(valid: head, norm"
    ):
        create("vgg-att-pc", widht=0.5)
    with pytest.raises(TypeError, match="vgg has no option 'norm'"):
        create("vgg", norm="softmax")
    with pytest.raises(TypeError, match="vgg-att-pc has no option 'score'"):  # the name already says it
        create("vgg-att-pc", score="dp")


@pytest.mark.parametrize(
    ("option", "wrong", "near"),
    [
        ("norm", "sigmoid_sum", "sigmoid-sum"), ("project", "locals", "local"), ("tap", "pres", "pre"),
        ("combine", "means", "mean"), ("gradient_merge", "summ", "sum"), ("init", "papers", "paper"),
        ("head", "indepp", "indep"), ("score_init", "defaults", "default"), ("queries", "seperate", "separate"),
        ("layout", "cups", "cub"),
    ],
)  # fmt: skip
def test_an_unknown_choice_is_refused_even_where_it_has_no_use(option: str, wrong: str, near: str) -> None:
    options: dict[str, Any] = {"width": TINY, option: wrong}
    for name in ("vgg-att-pc", "vgg-att-control"):
        with pytest.raises(ValueError, match=f"{option} is '{wrong}'; did you mean '{near}'"):
            create(name, **options)


@pytest.mark.parametrize("name", ["vgg", "vgg-gap", "vgg-att-control", "vgg-att2-concat-dp"])
def test_impossible_sizes_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="classes must be at least 2, got 1"):
        create(name, classes=1)
    with pytest.raises(ValueError, match="width must be positive"):
        create(name, width=0.0)
    with pytest.raises(ValueError, match=re.escape("dropout is a factor in [0, 1] on the published rates, got 2")):
        create(name, dropout=2.0)
    with pytest.raises(ValueError, match=r"^init is 'papr'; did you mean 'paper'"):
        create(name, width=TINY, init="papr")


def test_only_zero_to_three_levels_exist() -> None:
    with pytest.raises(ValueError, match=re.escape("levels must be 0 (the control), 1, 2 or 3, got 4")):
        models.VGGAttention(levels=4, width=TINY)


# Documentation


def test_every_public_function_and_class_has_a_docstring_with_an_example() -> None:
    public = [
        value
        for name, value in vars(models).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith(models.__name__)
        and (inspect.isfunction(value) or inspect.isclass(value))
    ]  # fmt: skip
    assert len(public) >= 10
    assert [value.__name__ for value in public if ">>>" not in (value.__doc__ or "")] == []
