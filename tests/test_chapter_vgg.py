"""What the chapter "Attention in VGG" states as equations and no other file tests."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from payattn.attention import dot_product_scores
from payattn.check.vgg import multiply_adds, pc_parameters, receptive_field
from payattn.models import ConvBlock, create
from payattn.widgets import table

LAYERS = {"layer7": "CCCCCCC", "layer10": "CCCCCCCPCCC", "layer13": "CCCCCCCPCCCPCCC"}


@pytest.mark.parametrize(("side", "expected"), [(32, (32, 16, 8)), (33, (33, 17, 9)), (80, (80, 40, 20))])
def test_a_map_has_the_side_of_the_image_halved_and_rounded_up_once_per_pool(side: int, expected: tuple) -> None:
    net = create("vgg-att3-concat-pc", width=1 / 64).eval()
    with torch.no_grad():
        maps = net(torch.rand(1, 3, side, side), return_maps=True)[1]
    assert tuple(a.shape[-1] for a in maps.values()) == expected
    assert expected == tuple(math.ceil(side / 2**pools) for pools in (0, 1, 2))


@pytest.mark.parametrize(("c_in", "c_out"), [(3, 64), (256, 512), (512, 512)])
def test_a_block_has_nine_weights_per_pair_of_channels_and_three_numbers_per_output(c_in: int, c_out: int) -> None:
    with torch.device("meta"):
        block = ConvBlock(c_in, c_out)
    assert sum(p.numel() for p in block.parameters()) == 9 * c_in * c_out + 3 * c_out


@pytest.mark.parametrize(("level", "channels"), [("layer7", 256), ("layer10", 512), ("layer13", 512)])
def test_a_unit_has_the_parameters_of_the_formula(level: str, channels: int) -> None:
    with torch.device("meta"):
        unit = create("vgg-att3-concat-pc").attention[level]
    assert sum(p.numel() for p in unit.parameters()) == pc_parameters(channels, 512)


@pytest.mark.parametrize(("name", "millions"), [("vgg", 313.2), ("vgg-gap", 3738.9), ("vgg-att3-concat-pc", 3786.1)])
def test_multiply_adds_counted_by_hooks_are_those_of_the_formula(name: str, millions: float) -> None:
    net, layers = create(name, width=1 / 64).eval(), []

    def record(conv: nn.Conv2d, _: object, out: torch.Tensor) -> None:
        layers.append((conv.in_channels, conv.out_channels, *out.shape[2:]))

    for module in net.trunk.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(record)
    with torch.no_grad():
        net(torch.rand(1, 3, 32, 32))
    wide = [(64 * i if i > 3 else (3 if n == 0 else 64 * i), 64 * o, h, w) for n, (i, o, h, w) in enumerate(layers)]
    assert multiply_adds(wide) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("level", LAYERS)
def test_the_gradient_of_one_position_covers_its_receptive_field_and_no_more(level: str) -> None:
    torch.manual_seed(0)
    net = create("vgg-att3-concat-pc", width=1 / 16).double().eval()
    images = torch.rand(12, 3, 80, 80, dtype=torch.float64, requires_grad=True)
    local = net.local_features(images)[0][level]
    middle = local.shape[-1] // 2
    local[:, :, middle, middle].sum().backward()
    seen = (images.grad != 0).any(0).any(0)
    assert seen.any(0).sum() == seen.any(1).sum() == receptive_field(LAYERS[level])


def test_merged_gradients_halve_at_each_tap() -> None:
    """With pc, layer 1 gets the gradient of layer 13's unit through both taps, a quarter of it."""
    grads = {}
    for merge in ("sum", "mean"):
        torch.manual_seed(0)
        net = create("vgg-att2-concat-pc", width=1 / 16, dropout=0.0, gradient_merge=merge).double()
        torch.manual_seed(1)
        images = torch.rand(8, 3, 32, 32, dtype=torch.float64)
        out = net.attend(images)["layer13"].descriptor
        out.square().sum().backward()
        grads[merge] = net.trunk.get_submodule("layer1")[0].weight.grad
    torch.testing.assert_close(grads["mean"], grads["sum"] / 4)


def test_a_table_is_html_and_text_and_refuses_rows_that_do_not_fit() -> None:
    shown = table([{"layer": "a<b", "n": 12345, "share": 0.5}, {"layer": "c", "n": None, "share": 0.25}], "Two rows.")
    assert str(shown) == "Two rows.\nlayer       n  share\na<b    12,345  0.500\nc           –  0.250"
    assert "a&lt;b" in shown.html and '<th scope="row"' in shown.html and "Two rows.</caption>" in shown.html
    assert shown.html == table([{"layer": "a<b", "n": 12345, "share": 0.5}, {"layer": "c", "n": None, "share": 0.25}],
                               "Two rows.").html  # fmt: skip
    for rows, caption in (([], "None."), ([{"a": 1}, {"b": 2}], "Keys."), ([{"a": 1}], " ")):
        with pytest.raises(ValueError, match="expected"):
            table(rows, caption)


def test_one_step_on_the_query_moves_unscaled_scores_by_the_length_times_more() -> None:
    torch.manual_seed(0)
    local, gamma = torch.randn(2, 9, 3, 4, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    change = {}
    for scaled in (False, True):
        query = torch.randn(2, 9, dtype=torch.float64, requires_grad=True)
        before = dot_product_scores(local, query, scaled)
        (gradient,) = torch.autograd.grad((gamma * before).sum(), query)
        change[scaled] = dot_product_scores(local, query - 0.1 * gradient, scaled) - before
    between = torch.einsum("nmhw,nmyx->nhwyx", local, local)
    torch.testing.assert_close(change[False], -0.1 * torch.einsum("nhw,nhwyx->nyx", gamma, between))
    torch.testing.assert_close(change[True], change[False] / 9)
