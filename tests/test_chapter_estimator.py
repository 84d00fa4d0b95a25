"""What the chapter "The attention estimator" claims, where no other test holds it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from payattn.attention import additive_scores, attention_weights, dot_product_scores, normalised_entropy
from payattn.check import check, exercises
from payattn.models import create


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(seed=st.integers(0, 2**31 - 3), length=st.floats(0.05, 20.0))
def test_a_query_k_times_as_long_is_a_softmax_with_temperature_one_over_k(seed: int, length: float) -> None:
    local, query = draw(seed, 2, 4, 3, 5), draw(seed + 1, 2, 4)
    scores = dot_product_scores(local, query)
    softmax_temperature = exercises()["softmax-temperature"].solution
    longer = attention_weights(dot_product_scores(local, length * query))
    torch.testing.assert_close(longer, softmax_temperature(scores, 1 / length), rtol=0, atol=1e-10)


@given(seed=st.integers(0, 2**31 - 3))
def test_a_longer_query_never_blurs_a_dot_product_map(seed: int) -> None:
    local, query = draw(seed, 1, 4, 3, 5).expand(5, -1, -1, -1), draw(seed + 1, 1, 4)
    lengths = torch.tensor([0.0, 0.5, 1.0, 2.0, 4.0], dtype=torch.float64)
    entropies = normalised_entropy(attention_weights(dot_product_scores(local, lengths[:, None] * query)))
    assert (entropies.diff() < 1e-9).all()


def test_the_additive_query_gradient_of_the_exercise_equals_autograd() -> None:
    def by_autograd(local: Tensor, query: Tensor, weight: Tensor, gamma: Tensor) -> Tensor:
        query = query.clone().requires_grad_()
        return torch.autograd.grad(additive_scores(local, query, weight), query, gamma)[0]

    assert check("additive-query-gradient", by_autograd).passed


def test_the_dead_parameters_of_the_exercise_are_those_of_the_network() -> None:
    with torch.device("meta"):
        net = create("vgg-att2-concat-pc", classes=10)
    branch = [net.get_submodule(name) for name in ("trunk.layer14", "trunk.layer15", "fc1")]
    assert check("dead-parameters", sum(p.numel() for part in branch for p in part.parameters())).passed


def test_scores_of_unit_features_spread_by_the_root_of_their_length() -> None:
    scores = dot_product_scores(draw(0, 50, 512, 4, 4), draw(1, 50, 512))
    assert scores.std().item() == pytest.approx(512**0.5, rel=0.1)
    assert check("score-spread", 512**0.5).passed
