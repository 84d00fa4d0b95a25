"""The attention estimator against values by hand, its properties, and PyTorch's own attention.

Numbers in the names (``golden_01``) are those of the golden checks in the specification of Learn To Pay Attention.
"""

from __future__ import annotations

import inspect
import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from payattn import attention
from payattn.attention import (
    NORMS,
    SCORES,
    ConcatHead,
    IndepHead,
    SpatialAttention,
    additive_scores,
    attend,
    attention_weights,
    dot_product_scores,
    independent_logits,
    normalised_entropy,
    parametrised_scores,
    promote,
)

LN3 = math.log(3.0)
seeds = st.integers(0, 2**31 - 1)
sides = st.integers(1, 6)


def two_positions() -> Tensor:
    """l_1 = (1, 0) and l_2 = (0, 1), side by side."""
    return torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]], dtype=torch.float64)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def part(module: torch.nn.Module, name: str) -> Any:
    return module.get_submodule(name)


def score_of(kind: str, local: Tensor, query: Tensor, u: Tensor, bias: Tensor | None = None) -> Tensor:
    if kind == "pc":
        return parametrised_scores(local, query, u, bias)
    if kind == "additive":
        return additive_scores(local, query, u, bias)
    return dot_product_scores(local, query, scaled=kind == "scaled-dp")


def descriptor_of(kind: str, local: Tensor, query: Tensor, u: Tensor, norm: str = "softmax") -> Tensor:
    return attend(local, attention_weights(score_of(kind, local, query, u), norm))


# Golden checks


def test_golden_01_two_position_dot_product() -> None:
    local = two_positions().requires_grad_()
    query = torch.tensor([[LN3, 0.0]], dtype=torch.float64, requires_grad=True)
    scores = dot_product_scores(local, query)
    weights = attention_weights(scores)
    descriptor = attend(local, weights)
    assert scores.flatten().tolist() == pytest.approx([1.0986, 0.0], abs=1e-4)
    assert weights.flatten().tolist() == pytest.approx([0.75, 0.25])
    assert descriptor.flatten().tolist() == pytest.approx([0.75, 0.25])
    descriptor[0, 0].backward()
    assert query.grad is not None
    assert local.grad is not None
    assert query.grad.flatten().tolist() == pytest.approx([0.1875, -0.1875])
    assert local.grad[0, :, 0, 0].tolist() == pytest.approx([0.95599, 0.0], abs=1e-5)
    assert local.grad[0, :, 0, 1].tolist() == pytest.approx([0.04401, 0.0], abs=1e-5)


@pytest.mark.parametrize("shift", [0.0, 1e3, -7.0])
def test_golden_02_parametrised_weights_are_the_same_for_every_query(shift: float) -> None:
    query = torch.full((1, 2), shift, dtype=torch.float64)
    scores = parametrised_scores(two_positions(), query, torch.tensor([LN3, 0.0], dtype=torch.float64))
    assert attention_weights(scores).flatten().tolist() == pytest.approx([0.75, 0.25], abs=1e-12)


@pytest.mark.parametrize("kind", ["dp", "scaled-dp", "pc", "additive"])
def test_golden_03_uniform_scores_average_over_space(kind: str) -> None:
    local, zero = draw(0, 3, 4, 5, 7), torch.zeros(4, dtype=torch.float64)
    query = zero.expand(3, 4) if "dp" in kind else draw(1, 3, 4)
    weights = attention_weights(score_of(kind, local, query, zero))
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 35))
    torch.testing.assert_close(attend(local, weights), local.mean(dim=(2, 3)))


@given(seed=seeds, shift=st.floats(-1e3, 1e3))
def test_golden_04_a_shift_of_all_scores_changes_nothing(seed: int, shift: float) -> None:
    scores, local = draw(seed, 2, 3, 5), draw(seed + 1, 2, 4, 3, 5)
    before, after = attention_weights(scores), attention_weights(scores + shift)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-11)
    torch.testing.assert_close(attend(local, after), attend(local, before), rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden_04_one_huge_score_picks_its_position_with_finite_gradients(dtype: torch.dtype) -> None:
    scores = draw(0, 1, 3, 5).to(dtype)
    scores[0, 1, 2] += 1e4
    scores.requires_grad_()
    local = draw(1, 1, 4, 3, 5).to(dtype).requires_grad_()
    weights = attention_weights(scores)
    assert weights[0, 1, 2].item() == 1.0
    assert weights.sum().item() == 1.0
    descriptor = attend(local, weights)
    assert torch.equal(descriptor, local[:, :, 1, 2])
    descriptor.pow(2).sum().backward()
    assert scores.grad is not None
    assert local.grad is not None
    assert scores.grad.isfinite().all()
    assert local.grad.isfinite().all()


@given(seed=seeds, height=sides, width=sides, kind=st.sampled_from(["dp", "pc", "additive", "scaled-dp"]))
def test_golden_05_weights_sum_to_one_and_the_descriptor_stays_in_range(
    seed: int, height: int, width: int, kind: str
) -> None:
    local, query, u = draw(seed, 2, 4, height, width).float(), draw(seed + 1, 2, 4).float(), draw(seed + 2, 4).float()
    weights = attention_weights(score_of(kind, local, query, u))
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(dim=(1, 2)), torch.ones(2), rtol=0, atol=1e-6)
    descriptor = attend(local, weights)
    assert (descriptor <= local.amax(dim=(2, 3)) + 1e-5).all()
    assert (descriptor >= local.amin(dim=(2, 3)) - 1e-5).all()


@given(seed=seeds, height=sides, width=sides, kind=st.sampled_from(["dp", "pc", "additive", "scaled-dp"]))
def test_golden_06_permuting_positions_permutes_the_map_and_leaves_the_descriptor(
    seed: int, height: int, width: int, kind: str
) -> None:
    local, query, u = draw(seed, 2, 4, height, width), draw(seed + 1, 2, 4), draw(seed + 2, 4)
    order = torch.randperm(height * width, generator=torch.Generator().manual_seed(seed))
    permuted = local.flatten(2)[:, :, order].view_as(local)
    before = attention_weights(score_of(kind, local, query, u))
    after = attention_weights(score_of(kind, permuted, query, u))
    torch.testing.assert_close(after.flatten(1), before.flatten(1)[:, order], rtol=0, atol=1e-12)
    torch.testing.assert_close(attend(permuted, after), attend(local, before), rtol=0, atol=1e-12)


@given(seed=seeds, height=sides, width=sides, kind=st.sampled_from(["dp", "pc", "additive", "scaled-dp"]))
def test_golden_06_a_horizontal_flip_of_the_features_flips_the_map(
    seed: int, height: int, width: int, kind: str
) -> None:
    local, query, u = draw(seed, 2, 4, height, width), draw(seed + 1, 2, 4), draw(seed + 2, 4)
    before = attention_weights(score_of(kind, local, query, u))
    after = attention_weights(score_of(kind, local.flip(3), query, u))
    torch.testing.assert_close(after, before.flip(2), rtol=0, atol=1e-12)


def test_golden_10_independent_predictions_mean_and_product_choose_different_classes() -> None:
    one = torch.tensor([[0.7, 0.29, 0.01]], dtype=torch.float64)
    two = torch.tensor([[0.05, 0.35, 0.6]], dtype=torch.float64)
    logits = [one.log() + 3.0, two.log() - 5.0]  # a constant per level is no part of its prediction
    mean = independent_logits(logits, "mean").softmax(dim=1)
    product = independent_logits(logits, "product").softmax(dim=1)
    assert mean[0].tolist() == pytest.approx([0.375, 0.32, 0.305])
    assert product[0].tolist() == pytest.approx([0.2456, 0.7123, 0.0421], abs=5e-5)
    assert mean.argmax().item() == 0
    assert product.argmax().item() == 1


# Values by hand


def test_parametrised_scores_are_u_times_the_sum_plus_the_bias() -> None:
    local = torch.tensor([[[[1.0, 4.0]], [[2.0, -1.0]]]])
    scores = parametrised_scores(local, torch.tensor([[10.0, 20.0]]), torch.tensor([3.0, 0.5]), torch.tensor(7.0))
    # 3 * (1 + 10) + 0.5 * (2 + 20) + 7 and 3 * (4 + 10) + 0.5 * (-1 + 20) + 7
    assert scores.flatten().tolist() == [51.0, 58.5]


def test_additive_scores_put_the_tanh_between_the_sum_and_u() -> None:
    local = torch.tensor([[[[0.5, -0.5]], [[1.0, 0.0]]]])
    scores = additive_scores(local, torch.tensor([[0.5, -1.0]]), torch.tensor([2.0, 3.0]), torch.tensor(0.25))
    expected = [2 * math.tanh(1.0) + 0.25, 3 * math.tanh(-1.0) + 0.25]
    assert scores.flatten().tolist() == pytest.approx(expected)


def test_scaled_scores_are_dot_products_over_the_root_of_the_length() -> None:
    local, query = draw(0, 2, 9, 3, 5), draw(1, 2, 9)
    scaled = dot_product_scores(local, query, scaled=True)
    torch.testing.assert_close(scaled, dot_product_scores(local, query) / 3)
    by_loop = sum(local[1, m, 2, 4] * query[1, m] for m in range(9)) / 3
    assert scaled[1, 2, 4].item() == pytest.approx(float(by_loop))


def test_sigmoid_sum_and_sigmoid_mean_differ_by_the_number_of_positions() -> None:
    scores = torch.tensor([[[0.0, LN3, -LN3]]], dtype=torch.float64)
    local = torch.tensor([[[[1.0, 2.0, 4.0]]]], dtype=torch.float64)
    assert attention_weights(scores, "sigmoid-sum").flatten().tolist() == pytest.approx([0.5, 0.75, 0.25])
    assert attention_weights(scores, "sigmoid-mean").flatten().tolist() == pytest.approx([0.5 / 3, 0.25, 0.25 / 3])
    assert attend(local, attention_weights(scores, "sigmoid-sum")).item() == pytest.approx(0.5 + 1.5 + 1.0)
    assert attend(local, attention_weights(scores, "sigmoid-mean")).item() == pytest.approx(1.0)


def test_softmax_runs_over_the_positions_of_one_image_only() -> None:
    scores = draw(0, 3, 4, 5)
    together, alone = attention_weights(scores), attention_weights(scores[1:2])
    assert torch.equal(together[1:2], alone)
    by_hand = scores[1].exp() / scores[1].exp().sum()
    torch.testing.assert_close(together[1], by_hand)


def test_the_entropy_of_a_map_runs_from_one_position_to_uniform() -> None:
    maps = torch.zeros(3, 4, 2, dtype=torch.float64)
    maps[0] = 1 / 8
    maps[1, 0, 1] = 1
    maps[2, :2, 0] = 0.5  # two of eight positions: log 2 / log 8
    assert normalised_entropy(maps).tolist() == pytest.approx([1.0, 0.0, 1 / 3])
    for wrong in (2 * maps, maps - 0.25, maps[0], maps[:, :1, :1]):
        with pytest.raises(ValueError, match="weights must be"):
            normalised_entropy(wrong)


# Gradients (section 2.5)


def softmax_score_gradient(weights: Tensor, local: Tensor, delta: Tensor) -> Tensor:
    """gamma_i = a_i (v_i - mean_a v), with v_i = <delta, l_i>."""
    v = (delta[:, :, None, None] * local).sum(dim=1)
    return weights * (v - (weights * v).sum(dim=(1, 2), keepdim=True))


@pytest.mark.parametrize("kind", ["dp", "scaled-dp", "pc", "additive"])
def test_gradients_by_hand_equal_autograd(kind: str) -> None:
    local, query = draw(0, 2, 4, 3, 5).requires_grad_(), draw(1, 2, 4).requires_grad_()
    u, delta = draw(2, 4).requires_grad_(), draw(3, 2, 4)
    scores = score_of(kind, local, query, u)
    scores.retain_grad()
    weights = attention_weights(scores)
    attend(local, weights).backward(delta)

    with torch.no_grad():
        gamma = softmax_score_gradient(weights, local, delta)
        by_gamma = (gamma[:, None] * local).sum(dim=(2, 3))
        straight = weights[:, None] * delta[:, :, None, None]
        if kind == "pc":
            of_query, of_u = torch.zeros_like(query), by_gamma.sum(dim=0)
            of_local = straight + gamma[:, None] * u[:, None, None]
        elif kind == "additive":
            inner = torch.tanh(local + query[:, :, None, None])
            slope = gamma[:, None] * u[:, None, None] * (1 - inner**2)
            of_query, of_u = slope.sum(dim=(2, 3)), (gamma[:, None] * inner).sum(dim=(0, 2, 3))
            of_local = straight + slope
        else:
            scale = 1 / 2 if kind == "scaled-dp" else 1.0  # the length is 4
            of_query, of_u = by_gamma * scale, None
            of_local = straight + gamma[:, None] * query[:, :, None, None] * scale
    torch.testing.assert_close(scores.grad, gamma, rtol=0, atol=1e-12)
    torch.testing.assert_close(gamma.sum(dim=(1, 2)), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(query.grad, of_query, rtol=0, atol=1e-12)
    torch.testing.assert_close(local.grad, of_local, rtol=0, atol=1e-12)
    if of_u is not None:
        torch.testing.assert_close(u.grad, of_u, rtol=0, atol=1e-12)


def test_dot_product_query_gradient_is_the_covariance_of_features_and_values() -> None:
    local, query, delta = draw(0, 1, 4, 3, 5), draw(1, 1, 4).requires_grad_(), draw(2, 1, 4)
    weights = attention_weights(dot_product_scores(local, query))
    attend(local, weights).backward(delta)
    a, points = weights.detach().flatten(), local[0].flatten(1)
    v = delta[0] @ points
    covariance = (a * (points - (points @ a)[:, None]) * (v - v @ a)).sum(dim=1)
    assert query.grad is not None
    torch.testing.assert_close(query.grad[0], covariance, rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", ["dp", "scaled-dp", "pc", "additive"])
def test_gradients_equal_finite_differences(kind: str, norm: str) -> None:
    inputs = [draw(k, *shape).requires_grad_() for k, shape in enumerate([(2, 3, 2, 3), (2, 3), (3,), ()])]

    def descriptor(local: Tensor, query: Tensor, u: Tensor, bias: Tensor) -> Tensor:
        return attend(local, attention_weights(score_of(kind, local, query, u, bias), norm))

    assert torch.autograd.gradcheck(descriptor, inputs)


def test_independent_logits_have_correct_gradients() -> None:
    for combine in ("product", "mean"):
        levels = [draw(k, 2, 3).requires_grad_() for k in range(3)]
        assert torch.autograd.gradcheck(lambda *x, c=combine: independent_logits(x, c), levels)


# What depends on the query


@given(seed=seeds, size=st.floats(0.1, 50.0))
def test_with_a_softmax_the_parametrised_map_ignores_any_query(seed: int, size: float) -> None:
    local, u = draw(seed, 2, 4, 3, 5), draw(seed + 1, 4)
    one, two = (attention_weights(parametrised_scores(local, size * draw(seed + k, 2, 4), u)) for k in (2, 3))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("kind", "norm"),
    [("dp", "softmax"), ("scaled-dp", "softmax"), ("additive", "softmax"), ("pc", "sigmoid-sum")],
)
@given(seed=seeds)
def test_every_other_map_follows_the_query(kind: str, norm: str, seed: int) -> None:
    local, u = draw(seed, 2, 4, 3, 5), draw(seed + 1, 4)
    one, two = (attention_weights(score_of(kind, local, draw(seed + k, 2, 4), u), norm) for k in (2, 3))
    assert (one - two).abs().max() > 1e-6


@given(seed=seeds)
def test_with_a_sigmoid_the_query_shifts_all_parametrised_scores_alike(seed: int) -> None:
    local, u = draw(seed, 2, 4, 3, 5), draw(seed + 1, 4)
    weights = attention_weights(parametrised_scores(local, draw(seed + 2, 2, 4), u), "sigmoid-sum")
    without = attention_weights(parametrised_scores(local, torch.zeros(2, 4, dtype=torch.float64), u), "sigmoid-sum")
    shift = weights.logit() - without.logit()
    torch.testing.assert_close(shift, shift[:, :1, :1].expand_as(shift), rtol=0, atol=1e-6)


@given(seed=seeds)
def test_additive_scores_come_close_to_parametrised_ones_for_small_inputs(seed: int) -> None:
    local, query, u = 1e-3 * draw(seed, 2, 4, 3, 5), 1e-3 * draw(seed + 1, 2, 4), draw(seed + 2, 4)
    largest = (local + query[:, :, None, None]).abs().max()
    bound = u.abs().sum() * largest**3 / 3  # |tanh x - x| <= |x|^3 / 3
    assert ((additive_scores(local, query, u) - parametrised_scores(local, query, u)).abs() <= bound + 1e-18).all()


# Independent witness


@pytest.mark.parametrize("scaled", [True, False])
def test_dot_product_attention_equals_the_one_of_pytorch(scaled: bool) -> None:
    local, query = draw(0, 3, 8, 5, 7), draw(1, 3, 8)
    ours = attend(local, attention_weights(dot_product_scores(local, query, scaled=scaled)))
    keys = local.flatten(2).transpose(1, 2)
    theirs = F.scaled_dot_product_attention(query[:, None], keys, keys, scale=None if scaled else 1.0)
    torch.testing.assert_close(ours, theirs[:, 0], rtol=0, atol=1e-12)


def test_parametrised_scores_equal_a_1x1_convolution_of_the_sum() -> None:
    local, query, u, bias = draw(0, 2, 4, 3, 5), draw(1, 2, 4), draw(2, 4), draw(3, 1)
    theirs = F.conv2d(local + query[:, :, None, None], u[None, :, None, None], bias)[:, 0]
    torch.testing.assert_close(parametrised_scores(local, query, u, bias[0]), theirs, rtol=0, atol=1e-12)


# The module


def test_the_module_gives_what_the_functions_give() -> None:
    local, query = draw(0, 2, 8, 3, 5).float(), draw(1, 2, 8).float()
    for kind in SCORES:
        level = SpatialAttention(8, score=kind, norm="sigmoid-mean")
        u, bias = getattr(level, "weight", torch.zeros(8)), getattr(level, "bias", None)
        scores = torch.zeros(2, 3, 5) if kind == "uniform" else score_of(kind, local, query, u, bias)
        out = level(local, query)
        assert torch.equal(out.scores, scores), kind
        assert torch.equal(out.map, attention_weights(scores, "sigmoid-mean")), kind
        assert torch.equal(out.descriptor, attend(local, out.map)), kind


def test_the_query_is_projected_down_by_norm_relu_and_linear() -> None:
    torch.manual_seed(0)
    level = SpatialAttention(4, 6, score="dp", dropout=0.0)
    local, query = torch.randn(3, 4, 5, 7), torch.randn(3, 6)
    norm = (query - query.mean(dim=0)) / (query.var(dim=0, unbiased=False) + 1e-5).sqrt()
    linear = part(level, "project_query.3")
    projected = norm.clamp_min(0) @ linear.weight.T + linear.bias
    torch.testing.assert_close(level(local, query).scores, dot_product_scores(local, projected), rtol=1e-4, atol=1e-5)
    assert level.out_channels == 4


def test_projected_local_features_are_what_is_averaged() -> None:
    torch.manual_seed(0)
    level = SpatialAttention(4, 6, score="uniform", project="local")
    local = torch.randn(3, 4, 5, 7)
    convolution = part(level, "project_local")
    expected = local.mean(dim=(2, 3)) @ convolution.weight[:, :, 0, 0].T + convolution.bias
    out = level(local, torch.randn(3, 6))
    torch.testing.assert_close(out.descriptor, expected)
    assert out.descriptor.shape == (3, level.out_channels) == (3, 6)


def test_dropout_acts_on_the_projected_query_in_training_only() -> None:
    torch.manual_seed(0)
    level = SpatialAttention(4, 64, score="dp", dropout=0.5)
    part(level, "project_query.0").eval()  # the batch statistics would hide the difference
    local, query = torch.randn(2, 4, 5, 7), torch.randn(2, 64)
    assert not torch.equal(level(local, query).map, level(local, query).map)
    level.eval()
    assert torch.equal(level(local, query).map, level(local, query).map)


def test_the_learned_direction_starts_with_the_stated_spread() -> None:
    torch.manual_seed(0)
    paper = SpatialAttention(40_000, score="pc")
    assert paper.weight.std().item() == pytest.approx(math.sqrt(2), rel=0.02)
    assert paper.weight.mean().item() == pytest.approx(0.0, abs=0.03)
    assert paper.bias.item() == 0.0
    default = SpatialAttention(40_000, score="additive", init="default")
    assert default.weight.abs().max().item() == pytest.approx(1 / 200, rel=0.01)
    assert default.weight.std().item() == pytest.approx(1 / 200 / math.sqrt(3), rel=0.02)


def test_each_descriptor_passes_norm_relu_and_dropout_before_the_classifier() -> None:
    torch.manual_seed(0)
    head = ConcatHead([3, 5], classes=4, dropout=0.5).eval()
    descriptors = [torch.randn(2, 3), torch.randn(2, 5)]
    features = torch.cat(descriptors, dim=1).clamp_min(0) / math.sqrt(1 + 1e-5)  # fresh running statistics: 0 and 1
    torch.testing.assert_close(head.features(descriptors), features)
    torch.testing.assert_close(head(descriptors), features @ head.classifier.weight.T + head.classifier.bias)
    head.train()
    dropped = head.features([torch.randn(64, 3), torch.randn(64, 5)])
    assert ((dropped == 0).float().mean(dim=0) > 0.6).all()  # half by the ReLU, then half of the rest
    assert part(head, "paths.0.0").eps == 1e-5


@pytest.mark.parametrize("combine", ["product", "mean"])
def test_the_independent_head_combines_one_classifier_per_level(combine: str) -> None:
    torch.manual_seed(0)
    head = IndepHead([3, 5], classes=4, combine=combine).eval()
    descriptors = [torch.randn(2, 3), torch.randn(2, 5)]
    one, two = (
        (path(d) @ classify.weight.T + classify.bias).softmax(dim=1)
        for path, classify, d in zip(head.paths, head.classifiers, descriptors, strict=True)
    )
    joined = one * two / (one * two).sum(dim=1, keepdim=True) if combine == "product" else (one + two) / 2
    torch.testing.assert_close(head(descriptors).softmax(dim=1), joined)
    assert head.features(descriptors).shape == (2, 8)


# Precision


def test_half_precision_goes_up_and_double_precision_stays() -> None:
    for given_type, expected in [
        (torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)
    ]:  # fmt: skip
        local, query, u = (torch.ones(s, dtype=given_type) for s in ((1, 2, 3, 3), (1, 2), (2,)))
        assert promote(local).dtype == expected
        for kind in ("dp", "scaled-dp", "pc", "additive"):
            scores = score_of(kind, local, query, u)
            assert scores.dtype == attention_weights(scores).dtype == expected
            assert attend(local, attention_weights(scores).to(given_type)).dtype == expected


def test_sums_of_many_half_precision_products_stay_exact() -> None:
    local, query = torch.ones(1, 4096, 1, 2, dtype=torch.float16), torch.ones(1, 4096, dtype=torch.float16)
    local[:, 0, 0, 0] = 2.0
    assert dot_product_scores(local, query).flatten().tolist() == [4097.0, 4096.0]


# Bad input

GOOD_LOCAL, GOOD_QUERY, GOOD_U = torch.zeros(2, 4, 3, 5), torch.zeros(2, 4), torch.zeros(4)


@pytest.mark.parametrize("kind", ["dp", "scaled-dp", "pc", "additive"])
def test_scores_say_which_shape_is_wrong(kind: str) -> None:
    with pytest.raises(ValueError, match=re.escape("local features must be (N, M, H, W), got (2, 4, 15)")):
        score_of(kind, torch.zeros(2, 4, 15), GOOD_QUERY, GOOD_U)
    with pytest.raises(ValueError, match=re.escape("query must be (N, 4) to match local features (2, 4, 3, 5), got")):
        score_of(kind, GOOD_LOCAL, torch.zeros(2, 5), GOOD_U)
    with pytest.raises(ValueError, match=re.escape("query must be (N, 4)")):
        score_of(kind, GOOD_LOCAL, torch.zeros(4), GOOD_U)
    with pytest.raises(ValueError, match="query has 3 rows for 2 images"):
        score_of(kind, GOOD_LOCAL, torch.zeros(3, 4), GOOD_U)


@pytest.mark.parametrize("kind", ["pc", "additive"])
def test_a_wrong_weight_is_named_with_its_shape(kind: str) -> None:
    with pytest.raises(ValueError, match=re.escape("weight u must have shape (4,), got (4, 1)")):
        score_of(kind, GOOD_LOCAL, GOOD_QUERY, torch.zeros(4, 1))


def test_weights_and_descriptors_say_which_shape_is_wrong() -> None:
    with pytest.raises(ValueError, match=re.escape("scores must be (N, H, W), got (2, 1, 3, 5)")):
        attention_weights(torch.zeros(2, 1, 3, 5))
    with pytest.raises(ValueError, match=re.escape("got (2, 4, 3, 5) and (2, 5, 3)")):
        attend(GOOD_LOCAL, torch.zeros(2, 5, 3))
    with pytest.raises(ValueError, match="at least one level, got none"):
        independent_logits([])


def test_an_unknown_choice_names_the_nearest_valid_one() -> None:
    with pytest.raises(ValueError, match="norm is 'softmx'; did you mean 'softmax'"):
        attention_weights(torch.zeros(1, 2, 2), "softmx")
    with pytest.raises(ValueError, match="score is 'aditive'; did you mean 'additive'"):
        SpatialAttention(4, score="aditive")
    with pytest.raises(ValueError, match="project is 'queries'; did you mean 'query'"):
        SpatialAttention(4, project="queries")
    with pytest.raises(ValueError, match="init is 'papers'; did you mean 'paper'"):
        SpatialAttention(4, init="papers")
    with pytest.raises(ValueError, match="combine is 'prod'; did you mean 'product'"):
        independent_logits([torch.zeros(1, 2)], "prod")
    with pytest.raises(ValueError, match=r"valid: 'softmax', 'sigmoid-sum', 'sigmoid-mean'"):
        attention_weights(torch.zeros(1, 2, 2), "xyz")


# Documentation


def test_every_public_function_and_class_has_a_docstring_with_an_example() -> None:
    public = [
        value
        for name, value in vars(attention).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == attention.__name__
        and (inspect.isfunction(value) or inspect.isclass(value))
    ]  # fmt: skip
    assert len(public) >= 12
    assert [value.__name__ for value in public if ">>>" not in (value.__doc__ or "")] == []
