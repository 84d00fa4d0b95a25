"""What the chapter "GAP, PAN and ResNet" states as equations and no other file tests, and the comparison of runs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from payattn import localize, results
from payattn.attention import SpatialAttention, attention_weights, parametrised_scores
from payattn.check.gap_pan_resnet import bottleneck_parameters, centred_maps, gate, gate_query_gradient
from payattn.models import Bottleneck, ConvBlock, class_activation, create


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------------- GAP


@given(seed=st.integers(0, 10_000), size=st.floats(0.1, 100))
def test_one_vector_added_to_all_class_weights_keeps_probabilities_and_centred_maps_but_no_map(
    seed: int, size: float
) -> None:
    features, weight, extra = draw(seed, 3, 4, 2, 5), draw(seed + 1, 6, 4), size * draw(seed + 2, 4)
    before, after = (features.mean((2, 3)) @ w.T for w in (weight, weight + extra))
    torch.testing.assert_close(before.softmax(1), after.softmax(1))
    torch.testing.assert_close(centred_maps(features, weight), centred_maps(features, weight + extra))
    target = torch.tensor([0, 5, 2])
    maps = [class_activation(features, w, target) for w in (weight, weight + extra)]
    torch.testing.assert_close(maps[1] - maps[0], torch.einsum("nkhw,k->nhw", features, extra))


def test_a_centred_map_explains_its_class_against_the_mean_of_all() -> None:
    features, weight = draw(0, 3, 4, 2, 5), draw(1, 6, 4)
    logits = features.mean((2, 3)) @ weight.T
    maps = centred_maps(features, weight)
    torch.testing.assert_close(maps.mean((2, 3)), logits - logits.mean(1, keepdim=True))
    torch.testing.assert_close(maps.sum(1), torch.zeros_like(maps[:, 0]))


def test_enlarging_bilinearly_by_hand_and_never_out_of_range() -> None:
    enlarged = localize.combine({"map": torch.tensor([[[0.0, 4.0]]])}, (1, 4))
    assert enlarged.tolist() == [[[0.0, 0.25, 0.75, 1.0]]]
    maps = draw(0, 5, 3, 4)
    large = F.interpolate(maps[:, None], size=(17, 31), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(localize.combine({"map": maps}, (17, 31)), localize.rescale(large))
    assert (large.amax((1, 2)) <= maps.amax((1, 2)) + 1e-12).all()
    assert (large.amin((1, 2)) >= maps.amin((1, 2)) - 1e-12).all()


# ------------------------------------------------------------------------------------------------------------- PAN


@given(seed=st.integers(0, 10_000))
def test_the_gate_is_the_sigmoid_unit_of_the_package_and_is_multiplied_not_summed(seed: int) -> None:
    local, query = draw(seed, 3, 4, 2, 5), draw(seed + 1, 3, 4)
    unit = SpatialAttention(4, norm="sigmoid-sum").double()
    gated = gate(local, query, unit.weight, unit.bias)
    torch.testing.assert_close(gated, local * unit(local, query).map[:, None])
    torch.testing.assert_close(gated.sum((2, 3)), unit(local, query).descriptor)


@given(seed=st.integers(0, 10_000), size=st.floats(0.1, 1))
def test_a_new_query_multiplies_the_odds_of_all_gates_by_one_number(seed: int, size: float) -> None:
    local, query, step, weight = (size * draw(seed + i, *s) for i, s in enumerate([(2, 4, 3, 3), (2, 4), (2, 4), (4,)]))
    before, after = (
        attention_weights(parametrised_scores(local, g, weight), "sigmoid-sum") for g in (query, query + step)
    )
    odds = (step @ weight).exp()[:, None, None] * before / (1 - before)
    torch.testing.assert_close(after, odds / (1 + odds))


def test_the_gradients_of_a_gate_by_hand_are_those_of_autograd_and_of_differences() -> None:
    local, query, weight = (draw(i, *s).requires_grad_() for i, s in enumerate([(2, 3, 2, 4), (2, 3), (3,)]))
    bias, delta = torch.tensor(0.3, dtype=torch.float64, requires_grad=True), draw(5, 2, 3, 2, 4)
    assert torch.autograd.gradcheck(gate, (local, query, weight, bias))
    m = attention_weights(parametrised_scores(local, query, weight, bias), "sigmoid-sum")
    gamma = m * (1 - m) * (delta * local).sum(1)
    by_hand = (
        m[:, None] * delta + gamma[:, None] * weight[:, None, None],
        gate_query_gradient(local, m, weight, delta),
        (gamma[:, None] * (local + query[:, :, None, None])).sum((0, 2, 3)),
        gamma.sum(),
    )
    auto = torch.autograd.grad(gate(local, query, weight, bias), (local, query, weight, bias), delta)
    for hand, by_autograd in zip(by_hand, auto, strict=True):
        torch.testing.assert_close(hand, by_autograd)


def with_eps(channels: int, out: int, eps: float) -> ConvBlock:
    torch.manual_seed(0)
    block = ConvBlock(channels, out).double()
    block[1].eps = eps
    return block


@pytest.mark.parametrize("factor", [1.0, 1 / 256, 1 / 1024])
def test_batch_norm_undoes_a_factor_only_as_far_as_its_eps_allows(factor: float) -> None:
    x = draw(0, 8, 16, 6, 6).abs()
    conv, norm, _ = with_eps(16, 4, 1e-3)
    spread = conv(x).std((0, 2, 3), correction=0)
    found = norm(conv(factor * x)).std((0, 2, 3), correction=0)
    torch.testing.assert_close(found, factor * spread / (factor**2 * spread**2 + 1e-3).sqrt())
    tiny = with_eps(16, 4, 1e-20)
    torch.testing.assert_close(tiny(factor * x), tiny(x))  # without eps no factor would be seen


def test_a_softmax_mask_hands_on_a_hundredth_of_what_a_sigmoid_mask_does() -> None:
    given_on = {}
    for mask in ("sigmoid", "softmax"):
        torch.manual_seed(0)
        net = create("vgg-pan", width=1 / 16, mask=mask, score_init="default").eval()
        m = net(torch.rand(4, 3, 32, 32), return_maps=True)[1]["layer10"]
        given_on[mask] = m.mean().item()
    assert given_on["softmax"] == pytest.approx(1 / 256)
    assert given_on["sigmoid"] > 0.1


# -------------------------------------------------------------------------------------------------------- residual


@pytest.mark.parametrize(("channels", "planes", "first"), [(16, 16, True), (64, 16, False), (128, 64, True)])
def test_a_bottleneck_has_the_parameters_of_the_formula(channels: int, planes: int, first: bool) -> None:
    block = Bottleneck(channels, planes, first=first)
    assert sum(p.numel() for p in block.parameters()) == bottleneck_parameters(channels, planes, first)


def test_rn_164_is_its_stem_54_bottlenecks_a_norm_and_a_linear_layer() -> None:
    blocks = [
        bottleneck_parameters(before if i == 0 else 4 * planes, planes, i == 0)
        for before, planes in ((16, 16), (64, 32), (128, 64))
        for i in range(18)
    ]
    assert 9 * 3 * 16 + sum(blocks) + 2 * 256 + 257 * 10 == 1_703_258


def test_a_residual_sum_is_the_first_block_plus_what_each_later_one_adds() -> None:
    torch.manual_seed(0)
    trunk = create("rn-164", depth=29, width=0.25).double().eval().trunk
    x = trunk.stem(draw(0, 2, 3, 16, 16))
    states = [trunk.stage1[0](x)]
    for block in trunk.stage1[1:]:
        states.append(block(states[-1]))
    added = sum(after - before for before, after in pairwise(states))
    torch.testing.assert_close(states[0] + added, trunk(draw(0, 2, 3, 16, 16))["stage1"])


def attended(net: nn.Module, images: Tensor) -> Iterator[Tensor]:
    for level in net.attend(images).values():
        yield level.descriptor


def test_the_baseline_rectifies_before_it_averages_and_attention_after() -> None:
    torch.manual_seed(0)
    images = torch.rand(4, 3, 16, 16, dtype=torch.float64)
    plain = create("rn-164", depth=11, width=0.25).double().eval()
    local = plain.trunk(plain.normalize(images))["stage3"]
    torch.testing.assert_close(plain.features(images), plain.norm(local).relu().mean((2, 3)))
    net = create("rn-164-att2-concat-pc", depth=11, width=0.25).double().eval()
    paths = [path(x) for path, x in zip(net.head.paths, attended(net, images), strict=True)]
    torch.testing.assert_close(net.features(images), torch.cat(paths, 1))
    assert all(isinstance(path[1], nn.ReLU) and (p >= 0).all() for path, p in zip(net.head.paths, paths, strict=True))


# ---------------------------------------------------------------------------------------------------- comparing runs


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), n=st.integers(2, 4), m=st.integers(2, 4))
def test_the_comparison_of_runs_is_the_permutation_test_of_scipy(seed: int, n: int, m: int) -> None:
    a, b = draw(seed, n).tolist(), draw(seed + 1, m).tolist()
    found = results.compare(a, b)
    scipy = stats.permutation_test(
        (a, b), lambda x, y: abs(x.mean() - y.mean()), permutation_type="independent", alternative="greater"
    )
    assert found["share"] == pytest.approx(scipy.pvalue)
    assert found["difference"] == pytest.approx(sum(a) / n - sum(b) / m)


def test_two_groups_are_apart_when_their_ranges_do_not_touch() -> None:
    assert results.compare([0.9, 0.8], [0.7, 0.6])["apart"]
    assert results.compare([0.6], [0.7, 0.9])["apart"]
    assert not results.compare([0.9, 0.7], [0.7, 0.6])["apart"]
    with pytest.raises(ValueError, match="at least one value in each group, got 0 and 1"):
        results.compare([], [1.0])


def test_a_table_of_results_holds_its_rows_and_no_other_table() -> None:
    rows = results.table("glyphs")
    assert {"control", "gap", "pc"} <= set(rows)
    assert all(run["recipe"] == f"learn-to-pay-attention/glyphs/{row}" for row, runs in rows.items() for run in runs)
    assert not any(run["small"] for runs in rows.values() for run in runs)


# ------------------------------------------------------------------------------------------------------ judging maps


def test_the_judgement_of_maps_is_that_of_the_four_measures() -> None:
    maps, masks = draw(0, 6, 3, 4), draw(1, 6, 24, 20) > 1.2
    found = localize.judge(maps, masks)
    assert found["on the object"] == localize.pointing_game(maps, masks, 1).float().mean().item()
    assert found["in its box"] == localize.pointing_game(maps, localize.boxes(masks)).float().mean().item()
    assert found["IoU"] == localize.iou_at_true_area(maps, masks).mean().item()
    assert found["pixels from its middle"] == localize.peak_distance(maps, masks).mean().item()
