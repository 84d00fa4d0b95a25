"""What every registered network promises, checked on each of them at a tiny width."""

from __future__ import annotations

import copy
import io
import pickle
import re
from fnmatch import fnmatch
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import payattn
from payattn.models import create, list_models

NAMES = list_models()
ATTENTION = [name for name in NAMES if "-att" in name]  # with levels, a query and their options
REPRESENTATIVE = [
    "vgg-gap", "vgg-pan", "vgg-att3-indep-additive", "rn-164", "rn-164-att2-concat-dp", "attention-56", "wrn-10-1",
    "nin-thin", "mobile-v2",
]  # fmt: skip
ACTIVATIONS = ("wrn-", "nin-", "mobile-", "resnet-")  # networks of Attention Transfer
RESIDUAL = ("attention-", "attentionnext-", "attentioninception-")  # Residual Attention Networks


def small(name: str) -> dict[str, Any]:
    """Options that make a network tiny: few channels, and one block or module per stage."""
    if name.startswith(RESIDUAL):
        shallow: dict[str, Any] = {"modules": 1, "units": (1, 1, 1), "pools": (2, 1, 1)}
        if name.endswith("-imagenet"):
            return shallow | {"width": 0.125 if "inception" in name else 0.03125}
        return shallow | {"width": 0.125, "stem": 4}
    if name.startswith(("wrn-", "resnet-")):
        return {"width": 0.125}
    if name.startswith("mobile-"):
        return {"width": 0.15}  # with one channel its 1x1 convolutions only scale, which batch norm undoes
    return {"width": 0.125, "depth": 11} if name.startswith("rn-") else {"width": 0.05}


def tiny(name: str, *, seed: int = 0, **options: Any) -> Any:
    if name.startswith("resnet-"):
        pytest.importorskip("torchvision")
    torch.manual_seed(seed)
    return create(name, 5, **(small(name) | options))


def softmax_levels(name: str) -> tuple[str, ...]:
    """Levels whose map sums to one; class activation maps, masks of sigmoids and activation maps do not."""
    levels: tuple[str, ...] = () if name.startswith((*RESIDUAL, *ACTIVATIONS)) else tiny(name).levels
    return {"vgg-gap": (), "vgg-pan": ("layer13",)}.get(name, levels)


SOFTMAX = [name for name in NAMES if softmax_levels(name)]


def pictures(n: int = 2, height: int = 16, width: int = 16, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, height, width), generator=generator, dtype=torch.uint8)


def floats(*args: int, **options: int) -> Tensor:
    return pictures(*args, **options) / 255


def assert_same(one: Any, two: Any, exact: bool = False, **tolerance: Any) -> None:
    """Logits and maps of two calls with ``return_maps``."""
    assert list(one[1]) == list(two[1])
    for x, y in [(one[0], two[0]), *((one[1][level], two[1][level]) for level in one[1])]:
        assert x.shape == y.shape
        assert torch.equal(x, y) if exact else torch.allclose(x, y, **tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_bytes_and_floats_give_the_same_output(name: str) -> None:
    model, images = tiny(name).eval(), pictures()
    assert_same(model(images, return_maps=True), model(images / 255, return_maps=True), exact=True)


@pytest.mark.parametrize("name", NAMES)
def test_maps_are_asked_for_and_named_by_level(name: str) -> None:
    model, images = tiny(name).eval(), floats()
    logits = model(images)
    assert isinstance(logits, Tensor)
    assert logits.shape == (2, 5)
    again, maps = model(images, return_maps=True)
    assert torch.equal(logits, again)
    assert tuple(maps) == model.levels
    assert all(a.shape[0] == 2 and a.ndim == 3 for a in maps.values())


@pytest.mark.parametrize("name", NAMES)
def test_any_height_and_width_goes(name: str) -> None:
    model: Any = tiny(name)
    for height, width in [(1, 1), (5, 7), (17, 23), (32, 32), (33, 64)]:
        model.train(height > 1)  # batch norm needs more than one value per channel to train on
        logits, maps = model(pictures(3, height, width), return_maps=True)
        assert logits.shape == (3, 5)
        assert logits.isfinite().all()
        if name.endswith("-imagenet"):  # a strided convolution and a pool come first
            height, width = (max(1, -(-side // 2) // 2) for side in (height, width))
        shapes = [(-(-height // k), -(-width // k)) for k in (1, 2, 4)][-len(maps) :] if maps else []
        if name.startswith("nin-"):  # its pools round down
            shapes = [(max(1, height // k), max(1, width // k)) for k in (1, 2, 4)]
        if name.startswith("resnet-"):
            shapes = [(-(-height // k), -(-width // k)) for k in (4, 8, 16, 32)]
        if name.startswith("mobile-"):
            shapes = [(-(-height // k), -(-width // k)) for k in (2, 4, 8, 16)]
        assert [tuple(a.shape[1:]) for a in maps.values()] == shapes


@pytest.mark.parametrize("name", NAMES)
def test_one_image_alone_gives_what_it_gives_in_a_batch(name: str) -> None:
    model, images = tiny(name).eval(), floats(3)
    together, alone = model(images, return_maps=True), model(images[1:2], return_maps=True)
    picked = together[0][1:2], {level: a[1:2] for level, a in together[1].items()}
    assert_same(picked, alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", SOFTMAX)
def test_maps_are_non_negative_and_sum_to_one(name: str) -> None:
    for mode in (True, False):
        _, maps = tiny(name).train(mode)(floats(), return_maps=True)
        assert all((a >= 0).all() for a in maps.values())
        for level in softmax_levels(name):
            a = maps[level]
            torch.testing.assert_close(a.sum(dim=(1, 2)), torch.ones(2), rtol=0, atol=1e-5, msg=level)


@pytest.mark.parametrize("name", NAMES)
def test_maps_stay_in_float32_under_autocast(name: str) -> None:
    model, images = tiny(name).eval(), floats()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits, maps = model(images, return_maps=True)
    assert all(a.dtype == torch.float32 for a in maps.values())
    exact = model(images).detach()
    # the logits of Residual Attention Networks grow with their depth, and the error of bfloat16 with them
    size = float(exact.abs().max().clamp_min(1)) if name.startswith(RESIDUAL) else 1.0
    assert torch.allclose(logits.float(), exact, rtol=0.1, atol=0.1 * size)
    for level in softmax_levels(name):  # in bfloat16 the sum would miss one by a per cent
        torch.testing.assert_close(maps[level].sum(dim=(1, 2)), torch.ones(2), rtol=0, atol=1e-5, msg=level)


def test_attention_computes_in_float32_on_the_half_precision_features_of_autocast() -> None:
    model = tiny("vgg-att2-concat-dp").train()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        local, x = model.local_features(floats())
        query = model._query(x)
        out = model.attention["layer13"](local["layer13"], query)
    assert local["layer13"].dtype == torch.bfloat16
    exact = torch.einsum("nmhw,nm->nhw", local["layer13"].double(), query.double())
    assert torch.allclose(out.scores.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_models_can_be_cast_to_another_precision(name: str, kind: torch.dtype) -> None:
    logits, maps = tiny(name).eval().to(kind)(floats(), return_maps=True)
    assert logits.is_floating_point()
    assert all(a.dtype == torch.promote_types(kind, torch.float32) for a in maps.values())


@pytest.mark.parametrize("name", NAMES)
def test_channels_last_gives_the_same_output(name: str) -> None:
    model, images = tiny(name).eval(), floats()
    expected = model(images, return_maps=True)
    model.to(memory_format=torch.channels_last)
    out = model(images.to(memory_format=torch.channels_last), return_maps=True)
    assert_same(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_pickle_deepcopy_and_state_dict_keep_the_model(name: str) -> None:
    model, images = tiny(name).eval(), floats()
    expected = model(images, return_maps=True)
    other = tiny(name, seed=1).eval()
    assert not torch.equal(other(images), expected[0])
    saved = io.BytesIO()
    torch.save(model.state_dict(), saved)
    saved.seek(0)
    other.load_state_dict(torch.load(saved, weights_only=True))
    for again in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), other):
        assert_same(again(images, return_maps=True), expected, exact=True)
        assert again.spec == model.spec


@pytest.mark.parametrize("name", NAMES)
def test_the_spec_builds_the_model_again(name: str) -> None:
    options: dict[str, Any] = small(name) | {"width": 0.04, "dropout": 0.5, "mean": (0.4, 0.5, 0.6)}
    if name in ATTENTION:
        options |= {"norm": "sigmoid-mean", "project": "local", "gradient_merge": "mean"}
    if name.startswith("vgg"):
        options |= {"layout": "cub"} | ({"tap": "post"} if name in ATTENTION else {})
    model = tiny(name, **options)
    assert model.spec == {"name": name, "classes": 5, "options": options}
    again: Any = create(model.spec["name"], model.spec["classes"], **model.spec["options"])
    again.load_state_dict(model.state_dict())
    images = floats()
    assert_same(again.eval()(images, return_maps=True), model.eval()(images, return_maps=True), exact=True)


@pytest.mark.parametrize("name", NAMES)
def test_neither_images_nor_query_are_changed(name: str) -> None:
    model, images = tiny(name), floats()
    before = images.clone()
    query = torch.randn(2, getattr(model, "query_length", 1))
    query_before = query.clone()
    model(images, return_maps=True, **({"query": query} if name in ATTENTION else {}))[0].sum().backward()
    assert torch.equal(images, before)
    assert torch.equal(query, query_before)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_network_and_the_same_dropout(name: str) -> None:
    one, two = (tiny(name)(floats(), return_maps=True) for _ in range(2))
    assert_same(one, two, exact=True)


@pytest.mark.parametrize("name", NAMES)
def test_features_are_what_the_last_linear_layer_sees(name: str) -> None:
    model, images = tiny(name).eval(), floats()
    linear = [module for module in model.head.modules() if isinstance(module, nn.Linear)]
    if "-indep-" in name:  # one classifier per level, side by side
        seen, widths = model.features(images), [layer.in_features for layer in linear]
        assert seen.shape == (2, sum(widths))
        return
    (last,) = linear
    torch.testing.assert_close(last(model.features(images)), model(images))


@pytest.mark.parametrize("name", NAMES)
def test_images_of_a_wrong_shape_or_type_are_refused(name: str) -> None:
    model = tiny(name).eval()
    for shape in [(3, 8, 8), (2, 1, 8, 8), (2, 8, 8, 3)]:
        with pytest.raises(ValueError, match=re.escape(f"images must be RGB, (N, 3, H, W), got {shape}")):
            model(torch.zeros(shape))
    with pytest.raises(TypeError, match=re.escape("uint8 in 0..255 or floating in [0, 1], got torch.int64")):
        model(torch.zeros(2, 3, 8, 8, dtype=torch.int64))


# Compilers


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_a_compiled_network_gives_the_same_logits_and_maps(name: str) -> None:
    torch._dynamo.reset()
    model, images = tiny(name).eval(), floats()
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_same(compiled(images, return_maps=True), model(images, return_maps=True), rtol=1e-5, atol=1e-6)


def test_a_compiled_network_gives_the_same_gradients() -> None:
    torch._dynamo.reset()
    model, images = tiny("vgg-att-dp", gradient_merge="mean", dropout=0.0), floats()
    weights: list[Tensor] = []
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    for network in (model, compiled):
        model.zero_grad()
        F.cross_entropy(network(images), torch.tensor([0, 1])).backward()
        weights.append(model.trunk.layer3[0].weight.grad.clone())
    assert weights[0].abs().max() > 0
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_an_exported_network_gives_the_same_for_any_batch_size(name: str) -> None:
    model = tiny(name).eval()
    batch = {"images": {0: torch.export.Dim("n")}, "return_maps": None}
    program = torch.export.export(model, (floats(3),), {"return_maps": True}, dynamic_shapes=batch)
    images = floats(5, seed=2)
    exported = program.module()(images, return_maps=True)
    assert_same(exported, model(images, return_maps=True), rtol=1e-5, atol=1e-6)


# Every parameter learns

# All parameters that get no gradient in training mode. An entry names the parameters and the models (shell patterns),
# the options under which it holds, and the reason.
BIAS = "the batch norm that follows subtracts the mean, and the bias with it"
CANCELS = "the softmax over positions cancels what is the same at all of them: here all that the query adds"
UNASKED = "uniform weights do not look at the query"
SHIFT = "the softmax over positions cancels a constant added to all scores"
BOTH = "it shifts all scores alike and moves the descriptor by a constant, which the batch norm behind it subtracts"
QUERY_BRANCH = ("trunk.layer14.*", "trunk.layer15.*", "fc1.*", "attention.layer7.project_query.*")
OWN_BRANCH = ("layer14.*", "layer15.*", "fc1.*")
RESIDUAL_BRANCH = ("norm.*", "layer.*", "fc1.*", "attention.stage2.project_query.*")
DEAD: list[tuple[str, str, dict[str, str], str]] = [
    ("trunk.layer*.0.bias", "vgg*", {}, BIAS),
    ("fc1.1.bias", "vgg", {}, BIAS),
    ("fc1.1.bias", "vgg-att-control", {}, BIAS),
    *[(branch, "vgg-att*-pc", {"norm": "softmax"}, CANCELS) for branch in QUERY_BRANCH],
    *[(branch, "vgg-att*-uniform", {}, UNASKED) for branch in QUERY_BRANCH[:3]],
    *[
        (f"attention.{level}.bias", f"vgg-att*-{score}", {"norm": "softmax"}, SHIFT)
        for level in ("layer7", "layer10", "layer13")
        for score in ("pc", "additive")
    ],
    *[
        ("attention.layer7.project_local.bias", f"vgg-att3-*-{score}", {"norm": "softmax"}, BOTH)
        for score in ("pc", "dp", "scaled-dp", "uniform")
    ],
    ("branch.layer*.0.bias", "vgg-pan", {}, BIAS),
    ("branch.fc1.1.bias", "vgg-pan", {"level": "layer7"}, BIAS),
    *[(branch, "vgg-pan", {}, CANCELS) for branch in QUERY_BRANCH[:3]],
    ("attention.layer13.bias", "vgg-pan", {}, SHIFT),
    *[(f"branch.{layer}", "vgg-pan", {"mask": "softmax"}, CANCELS) for layer in OWN_BRANCH],
    ("attention.layer10.bias", "vgg-pan", {"mask": "softmax"}, SHIFT),
    ("branches.layer*.layer*.0.bias", "vgg-att3-concat-dp", {"queries": "separate"}, BIAS),
    ("branches.layer7.fc1.1.bias", "vgg-att3-concat-dp", {"queries": "separate"}, BIAS),
    *[(f"branches.*.{layer}", "vgg-att3-concat-pc", {"queries": "separate"}, CANCELS) for layer in OWN_BRANCH],
    ("group*.conv*.bias", "nin-wide", {}, BIAS),
    ("group*.conv*.bias", "nin-thin", {}, BIAS),
    ("stage*.*.body.7.bias", "mobile-v2", {}, BIAS),
    ("layer.0.bias", "rn-164-att*", {}, BIAS),
    ("fc1.1.bias", "rn-164-att-control", {}, BIAS),
    *[(branch, "rn-164-att2-concat-pc", {"norm": "softmax"}, CANCELS) for branch in RESIDUAL_BRANCH],
    *[(branch, "rn-164-att2-concat-uniform", {}, UNASKED) for branch in RESIDUAL_BRANCH[:3]],
    *[
        (f"attention.{level}.bias", f"rn-164-att2-concat-{score}", {"norm": "softmax"}, SHIFT)
        for level in ("stage2", "stage3")
        for score in ("pc", "additive")
    ],
    *[
        ("attention.stage2.project_local.bias", f"rn-164-att2-concat-{score}", {"norm": "softmax"}, BOTH)
        for score in ("pc", "dp", "scaled-dp", "uniform")
    ],
]


def dead_by_the_table(name: str, options: dict[str, Any], parameters: list[str]) -> set[str]:
    options = {"norm": "softmax"} | options
    return {
        parameter
        for parameter in parameters
        for pattern, models, when, _ in DEAD
        if fnmatch(parameter, pattern) and fnmatch(name, models) and when.items() <= options.items()
    }


def silent_parameters(model: nn.Module) -> set[str]:
    """Parameters whose largest gradient, over two batches, is rounding noise beside that of the others."""
    largest = {name: 0.0 for name, _ in model.named_parameters()}
    for seed in range(2):
        model.zero_grad()
        images = floats(12, seed=seed).double()
        F.cross_entropy(model(images), torch.arange(12) % 5).backward()
        for name, p in model.named_parameters():
            largest[name] = max(largest[name], 0.0 if p.grad is None else p.grad.abs().max().item())
    typical = sorted(largest.values())[-len(largest) // 4]
    return {name for name, gradient in largest.items() if gradient < 1e-9 * typical}


CASES: list[tuple[str, dict[str, Any]]] = [
    *[(name, {}) for name in NAMES],
    *[(name, {"norm": "sigmoid-sum"}) for name in ATTENTION if "-concat-" in name],
    *[(name, {"project": "local"}) for name in ATTENTION if name.startswith(("vgg-att3-concat-", "rn-164-att2-"))],
    *[("vgg-pan", options) for options in ({"mask": "softmax"}, {"level": "layer7"})],
    *[(f"vgg-att3-concat-{score}", {"queries": "separate"}) for score in ("dp", "pc")],
]


@pytest.mark.parametrize(("name", "options"), CASES, ids=lambda value: value if isinstance(value, str) else str(value))
def test_every_parameter_learns_except_those_of_the_table(name: str, options: dict[str, Any]) -> None:
    model = tiny(name, dropout=0.0, **options).double().train()
    expected = dead_by_the_table(name, options, [parameter for parameter, _ in model.named_parameters()])
    silent = silent_parameters(model)
    assert silent - expected == set(), "these get no gradient, and the table does not say why"
    assert expected - silent == set(), "the table says that these get no gradient, but they do"


def test_every_entry_of_the_table_is_needed() -> None:
    used = set()
    for name, options in CASES:
        parameters = [parameter for parameter, _ in tiny(name, **options).named_parameters()]
        options = {"norm": "softmax"} | options
        for number, (pattern, models, when, _) in enumerate(DEAD):
            if (
                fnmatch(name, models)
                and when.items() <= options.items()
                and any(fnmatch(p, pattern) for p in parameters)
            ):
                used.add(number)
    assert used == set(range(len(DEAD)))


@pytest.mark.parametrize("name", ["vgg", "vgg-gap", "vgg-att3-concat-dp"])
def test_in_evaluation_the_biases_before_batch_norm_count(name: str) -> None:
    model = tiny(name, dropout=0.0).eval()
    F.cross_entropy(model(floats()), torch.tensor([0, 1])).backward()
    assert all(p.grad.abs().max() > 0 for key, p in model.named_parameters() if fnmatch(key, "trunk.layer*.0.bias"))


def test_the_package_and_the_module_hold_one_registry() -> None:
    assert payattn.list_models() == NAMES
    assert payattn.create is create
