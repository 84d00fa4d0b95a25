"""Exercises of the chapter "The attention estimator"."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from payattn.check import Exercise, numbers

# ------------------------------------------------------------------------------------------ dot product: c = <l, g>


def dp_scores(local: Tensor, query: Tensor) -> Tensor:
    """Return (N, H, W): the dot product of every local feature (N, M, H, W) with the query (N, M)."""
    return (local * query[:, :, None, None]).sum(1)


def _dp_scaled(local: Tensor, query: Tensor) -> Tensor:
    return dp_scores(local, query) / local.shape[1] ** 0.5


def _dp_mean(local: Tensor, query: Tensor) -> Tensor:
    return (local * query[:, :, None, None]).mean(1)


def _dp_over_positions(local: Tensor, query: Tensor) -> Tensor:
    return (local * query[:, :, None, None]).sum((2, 3))


def _dp_cosine(local: Tensor, query: Tensor) -> Tensor:
    return torch.cosine_similarity(local, query[:, :, None, None], dim=1)


def _dp_first_query(local: Tensor, query: Tensor) -> Tensor:
    return (local * query[0][:, None, None]).sum(1)


def _dp_without_sum(local: Tensor, query: Tensor) -> Tensor:
    return local * query[:, :, None, None]


DP = Exercise(
    [
        (torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]]), torch.tensor([[math.log(3), 0.0]])),
        (numbers(2, 3, 2, 4), numbers(2, 3, seed=1)),
    ],
    dp_scores,
    {
        "scaled": ("These scores are divided by the square root of M. That is scaled dp, a useful variant, not the "
                   "paper's dp.", _dp_scaled),
        "mean": ("mean() divides the dot product by M. Sum over the channels.", _dp_mean),
        "positions": ("The sum runs over the positions. A score belongs to a position: sum over the channels, axis 1.",
                      _dp_over_positions),
        "cosine": ("This divides by both lengths (cosine similarity). The paper's dot product keeps them.", _dp_cosine),
        "first query": ("Every image is scored with the query of the first. Keep the batch axis of the query.",
                        _dp_first_query),
        "no sum": ("These are the products, still one per channel. Sum over the channels, axis 1.", _dp_without_sum),
    },
    passed="one score per position.",
)  # fmt: skip


# ---------------------------------------------------------------------------------- parametrised: c = <u, l + g>


def pc_scores(local: Tensor, query: Tensor, weight: Tensor) -> Tensor:
    """Return (N, H, W): the dot product of u (M,) with local feature plus query."""
    return ((local + query[:, :, None, None]) * weight[:, None, None]).sum(1)


def _pc_product(local: Tensor, query: Tensor, weight: Tensor) -> Tensor:
    return (local * query[:, :, None, None] * weight[:, None, None]).sum(1)


def _pc_without_query(local: Tensor, query: Tensor, weight: Tensor) -> Tensor:
    return (local * weight[:, None, None]).sum(1)


def _pc_query_unweighted(local: Tensor, query: Tensor, weight: Tensor) -> Tensor:
    return _pc_without_query(local, query, weight) + query.sum(1)[:, None, None]


def _pc_without_weight(local: Tensor, query: Tensor, weight: Tensor) -> Tensor:
    return (local + query[:, :, None, None]).sum(1)


def _pc_is_dp(local: Tensor, query: Tensor, weight: Tensor) -> Tensor:
    return dp_scores(local, query)


PC = Exercise(
    [
        (torch.tensor([[[[1.0, 2.0]], [[3.0, 5.0]]]]), torch.tensor([[10.0, 20.0]]), torch.tensor([1.0, -1.0])),
        (numbers(2, 3, 2, 4), numbers(2, 3, seed=1), numbers(3, seed=2)),
    ],
    pc_scores,
    {
        "product": ("Local feature and query are multiplied. pc adds them, then takes the dot product with u.",
                    _pc_product),
        "no query": ("The query is missing. It will cancel in the softmax, but the score <u, l + g> contains it.",
                     _pc_without_query),
        "unweighted query": ("u multiplies l only. It multiplies the sum l + g.", _pc_query_unweighted),
        "no weight": ("The channels are summed without u: these are the scores for u = (1, ..., 1).",
                      _pc_without_weight),
        "dp": ("These are the dp scores <l, g>. In pc the learned u takes the place of the query.", _pc_is_dp),
    },
    passed="now take the softmax with two queries and compare the maps.",
)  # fmt: skip


# ----------------------------------------------------------------------------- additive: c = <u, tanh(l + g)>


def additive_scores(local: Tensor, query: Tensor, weight: Tensor) -> Tensor:
    """Return (N, H, W): the dot product of u (M,) with tanh(local feature plus query)."""
    return ((local + query[:, :, None, None]).tanh() * weight[:, None, None]).sum(1)


def _additive_tanh_outside(local: Tensor, query: Tensor, weight: Tensor) -> Tensor:
    return pc_scores(local, query, weight).tanh()


def _additive_tanh_apart(local: Tensor, query: Tensor, weight: Tensor) -> Tensor:
    return pc_scores(local.tanh(), query.tanh(), weight)


def _additive_sigmoid(local: Tensor, query: Tensor, weight: Tensor) -> Tensor:
    return ((local + query[:, :, None, None]).sigmoid() * weight[:, None, None]).sum(1)


def _additive_weight_inside(local: Tensor, query: Tensor, weight: Tensor) -> Tensor:
    return ((local + query[:, :, None, None]) * weight[:, None, None]).tanh().sum(1)


ADDITIVE = Exercise(
    [*PC.inputs[1:], (torch.tensor([[[[0.0, 1.0]]]]), torch.tensor([[-0.5]]), torch.tensor([2.0]))],
    additive_scores,
    {
        "no tanh": ("tanh is missing: these are the pc scores, in which the query cancels.", pc_scores),
        "outside": ("tanh stands around the score. It belongs around l + g, channel by channel, before u.",
                    _additive_tanh_outside),
        "apart": ("tanh(l) + tanh(g) is linear in each part again, so the query cancels. Take tanh of the sum l + g.",
                  _additive_tanh_apart),
        "sigmoid": ("This uses the sigmoid. The additive score uses tanh.", _additive_sigmoid),
        "inside": ("u stands inside tanh. It multiplies tanh(l + g).", _additive_weight_inside),
    },
    passed="a nonlinearity between sum and u, and the query counts again.",
)  # fmt: skip


# ---------------------------------------------------------------------------- gradient: dL/dc_i = a_i (v_i - v_bar)


def score_gradient(local: Tensor, weights: Tensor, delta: Tensor) -> Tensor:
    """Return dL/dc (N, H, W) from local (N, M, H, W), weights a (N, H, W) and delta = dL/dg_a (N, M)."""
    values = dp_scores(local, delta)
    return weights * (values - (weights * values).sum((1, 2), keepdim=True))


def _gradient_not_centred(local: Tensor, weights: Tensor, delta: Tensor) -> Tensor:
    return weights * dp_scores(local, delta)


def _gradient_without_weights(local: Tensor, weights: Tensor, delta: Tensor) -> Tensor:
    values = dp_scores(local, delta)
    return values - (weights * values).sum((1, 2), keepdim=True)


def _gradient_plain_mean(local: Tensor, weights: Tensor, delta: Tensor) -> Tensor:
    values = dp_scores(local, delta)
    return weights * (values - values.mean((1, 2), keepdim=True))


def _gradient_diagonal(local: Tensor, weights: Tensor, delta: Tensor) -> Tensor:
    return weights * (1 - weights) * dp_scores(local, delta)


def _gradient_of_weights(local: Tensor, weights: Tensor, delta: Tensor) -> Tensor:
    return dp_scores(local, delta)


def _gradient_inputs() -> list[tuple[Tensor, Tensor, Tensor]]:
    weights = numbers(2, 2, 4, seed=1).flatten(1).softmax(1).reshape(2, 2, 4)
    golden = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]]), torch.tensor([[[0.75, 0.25]]]), torch.tensor([[1.0, 0.0]])
    return [golden, (numbers(2, 3, 2, 4), weights, numbers(2, 3, seed=2))]


GRADIENT = Exercise(
    _gradient_inputs(),
    score_gradient,
    {
        "not centred": ("The mean is missing: raising one score lowers all other weights. Subtract sum a_j v_j.",
                        _gradient_not_centred),
        "no weights": ("The factor a_i is missing: a position without weight can hardly change anything.",
                       _gradient_without_weights),
        "plain mean": ("v_bar is the plain mean of v. It is the mean weighted by a.", _gradient_plain_mean),
        "diagonal": ("a_i (1 - a_i) v_i is the effect through the own weight only. Score i moves every weight.",
                     _gradient_diagonal),
        "weights": ("This is v = dL/da. It still has to go through the softmax to the scores.", _gradient_of_weights),
    },
    passed="the gradients of the scores of one image sum to 0.",
)  # fmt: skip


# ------------------------------------------------------------------------------- dp: dL/dg = sum_i gamma_i l_i


def dp_query_gradient(local: Tensor, gamma: Tensor) -> Tensor:
    """Return dL/dg (N, M) of dp from local (N, M, H, W) and gamma = dL/dc (N, H, W)."""
    return (gamma[:, None] * local).sum((2, 3))


def _query_gradient_zero(local: Tensor, gamma: Tensor) -> Tensor:
    return gamma.sum((1, 2))[:, None] * local.mean((2, 3))


def _query_gradient_mean(local: Tensor, gamma: Tensor) -> Tensor:
    return (gamma[:, None] * local).mean((2, 3))


def _query_gradient_scores(local: Tensor, gamma: Tensor) -> Tensor:
    return gamma.sum((1, 2))[:, None].expand(local.shape[:2])


def _query_gradient_uniform(local: Tensor, gamma: Tensor) -> Tensor:
    return local.sum((2, 3))


QUERY_GRADIENT = Exercise(
    [
        (_gradient_inputs()[0][0], score_gradient(*_gradient_inputs()[0])),
        (numbers(2, 3, 2, 4), numbers(2, 2, 4, seed=3)),
    ],
    dp_query_gradient,
    {
        "sum first": ("gamma is summed before it meets l, and sums to 0. Weight each l_i by its own gamma_i, then sum.",
                      _query_gradient_zero),
        "mean": ("mean() divides by the number of positions. Every score depends on g: sum.", _query_gradient_mean),
        "no local": ("The local features are missing: c_i = <l_i, g>, so dc_i/dg = l_i.", _query_gradient_scores),
        "no gamma": ("gamma is missing: this sums dc_i/dg = l_i, but each score has its own effect on the loss.",
                     _query_gradient_uniform),
    },
    passed="the query moves toward features that lower the loss: a covariance.",
)  # fmt: skip


# ----------------------------------------------------------- additive: dL/dg = u * sum_i gamma_i (1 - tanh(l_i + g)^2)


def additive_query_gradient(local: Tensor, query: Tensor, weight: Tensor, gamma: Tensor) -> Tensor:
    """Return dL/dg (N, M) of the additive score from local, query, u (M,) and gamma = dL/dc (N, H, W)."""
    inner = (local + query[:, :, None, None]).tanh()
    return weight * ((1 - inner**2) * gamma[:, None]).sum((2, 3))


def _additive_gradient_without_slope(local: Tensor, query: Tensor, weight: Tensor, gamma: Tensor) -> Tensor:
    return weight * (torch.ones_like(local) * gamma[:, None]).sum((2, 3))


def _additive_gradient_of_weight(local: Tensor, query: Tensor, weight: Tensor, gamma: Tensor) -> Tensor:
    return ((local + query[:, :, None, None]).tanh() * gamma[:, None]).sum((2, 3))


def _additive_gradient_without_weight(local: Tensor, query: Tensor, weight: Tensor, gamma: Tensor) -> Tensor:
    return ((1 - (local + query[:, :, None, None]).tanh() ** 2) * gamma[:, None]).sum((2, 3))


def _additive_gradient_of_local(local: Tensor, query: Tensor, weight: Tensor, gamma: Tensor) -> Tensor:
    inner = (local + query[:, :, None, None]).tanh()
    return weight[:, None, None] * (1 - inner**2) * gamma[:, None]


def _additive_gradient_times_local(local: Tensor, query: Tensor, weight: Tensor, gamma: Tensor) -> Tensor:
    inner = (local + query[:, :, None, None]).tanh()
    return weight * ((1 - inner**2) * local * gamma[:, None]).sum((2, 3))


def _additive_gradient_without_gamma(local: Tensor, query: Tensor, weight: Tensor, gamma: Tensor) -> Tensor:
    return weight * (1 - (local + query[:, :, None, None]).tanh() ** 2).sum((2, 3))


ADDITIVE_GRADIENT = Exercise(
    [
        (torch.tensor([[[[0.0, 1.0]]]]), torch.tensor([[-0.5]]), torch.tensor([2.0]), torch.tensor([[[0.25, -0.5]]])),
        (numbers(2, 3, 2, 4), numbers(2, 3, seed=1), numbers(3, seed=2), numbers(2, 2, 4, seed=3)),
    ],
    additive_query_gradient,
    {
        "no slope": ("The derivative of tanh is missing: 1 - tanh(l + g)^2. Without it this is pc, where gamma sums "
                     "to 0.", _additive_gradient_without_slope),
        "of u": ("That is the gradient of u. The query stands inside tanh: dc_i/dg = u (1 - tanh(l_i + g)^2).",
                 _additive_gradient_of_weight),
        "no u": ("u is missing: every channel of the query acts through its own entry of u.",
                 _additive_gradient_without_weight),
        "of local": ("That is the way through the score to each l_i. One query serves all positions: sum over them.",
                     _additive_gradient_of_local),
        "times local": ("There is a factor l_i too much: the query is added to l, not multiplied with it.",
                        _additive_gradient_times_local),
        "no gamma": ("gamma is missing: each score has its own effect on the loss.", _additive_gradient_without_gamma),
    },
    passed="the slope of tanh differs from position to position, so the sum does not vanish and the query learns.",
)  # fmt: skip


# --------------------------------------------------------------------------------------- temperature and entropy


def softmax_temperature(scores: Tensor, temperature: float) -> Tensor:
    """Return softmax(c / T) over the positions of (N, H, W)."""
    return (scores / temperature).flatten(1).softmax(1).reshape(scores.shape)


def _temperature_multiplied(scores: Tensor, temperature: float) -> Tensor:
    return softmax_temperature(scores, 1 / temperature)


def _temperature_after(scores: Tensor, temperature: float) -> Tensor:
    return softmax_temperature(scores, 1.0) / temperature


def _temperature_ignored(scores: Tensor, temperature: float) -> Tensor:
    return softmax_temperature(scores, 1.0)


def _temperature_subtracted(scores: Tensor, temperature: float) -> Tensor:
    return (scores / temperature).softmax(-1)


TEMPERATURE = Exercise(
    [(numbers(2, 2, 3), 2.0), (numbers(1, 3, 3, seed=1), 0.25)],
    softmax_temperature,
    {
        "multiplied": ("A high temperature must flatten the map; here it sharpens it. Divide the scores by T.",
                       _temperature_multiplied),
        "after": ("The weights are divided by T, so they sum to 1/T. Divide the scores, before the softmax.",
                  _temperature_after),
        "ignored": ("The temperature is not used: this is T = 1. Divide the scores by T.", _temperature_ignored),
        "rows": ("Each row sums to 1. The softmax runs over all H W positions: flatten(1).", _temperature_subtracted),
    },
    passed="a longer query is a lower temperature: 2 g has the scores of T = 1/2.",
)  # fmt: skip


def normalised_entropy(weights: Tensor) -> Tensor:
    """Return (N,) entropy of each map (N, H, W) divided by log(H W): 1 for uniform, 0 for one-hot."""
    return -torch.special.xlogy(weights, weights).sum((1, 2)) / math.log(weights[0].numel())


def _entropy_not_normalised(weights: Tensor) -> Tensor:
    return -torch.special.xlogy(weights, weights).sum((1, 2))


def _entropy_sign(weights: Tensor) -> Tensor:
    return -normalised_entropy(weights)


def _entropy_nan(weights: Tensor) -> Tensor:
    return -(weights * weights.log()).sum((1, 2)) / math.log(weights[0].numel())


def _entropy_rows(weights: Tensor) -> Tensor:
    return -torch.special.xlogy(weights, weights).sum((1, 2)) / math.log(weights.shape[-1])


def _entropy_without_weights(weights: Tensor) -> Tensor:
    return -weights.log().mean((1, 2)) / math.log(weights[0].numel())


ENTROPY = Exercise(
    [
        (torch.tensor([[[0.5, 0.25], [0.25, 0.0]], [[0.0, 1.0], [0.0, 0.0]]]),),
        (softmax_temperature(numbers(3, 2, 4), 0.5),),
    ],
    normalised_entropy,
    {
        "not normalised": ("This is the entropy in nats. Divide by log(H W), its largest value, so that 1 is uniform.",
                           _entropy_not_normalised),
        "sign": ("The sign is wrong: log of a weight is negative, entropy is not.", _entropy_sign),
        "nan": ("A weight of 0 gives 0 times minus infinity, NaN. Its share is 0: use torch.special.xlogy.",
                _entropy_nan),
        "rows": ("This divides by log W. The map has H W positions.", _entropy_rows),
        "unweighted": ("Each log a_i counts with its weight a_i. A plain mean is not the entropy.",
                       _entropy_without_weights),
    },
    passed="1 is a uniform map, 0 a single position.",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------ paper and pencil

UNIFORM_ENTROPY = Exercise(
    (),
    math.log(2),
    {
        "bits": ("That is the entropy in bits (log base 2). With the natural logarithm it is smaller.", 1.0),
        "one term": ("That is one term of the sum, -0.5 log 0.5. Two positions give two of them.", 0.5 * math.log(2)),
        "sign": ("log 0.5 is negative, and the entropy has a minus in front.", -math.log(2)),
        "zero": ("0 is the entropy of a one-hot map. Two equal weights are as uncertain as can be.", 0.0),
    },
    tolerance=3e-3,
    passed="the entropy of n equal weights is log n.",
)

PC_QUERY_GRADIENT = Exercise(
    (),
    (0.0, 0.0),
    {
        "weight": ("That is u. It is multiplied by the sum of the gamma_i; what is this sum?", (math.log(3), 0.0)),
        "dp": ("That is the gradient of dp, sum of gamma_i l_i. In pc every dc_i/dg is u.", (0.1875, -0.1875)),
        "one position": ("That is the share of the first position, gamma_1 u. The second has -gamma_1 u.",
                         (0.1875 * math.log(3), 0.0)),
    },
    tolerance=2e-3,
    passed="u times the sum of gamma, which is 0: the query of pc with softmax never learns.",
)  # fmt: skip

SCORE_SPREAD = Exercise(
    (),
    math.sqrt(512),
    {
        "variance": ("That is the variance, 512 terms with variance 1 each. Take its root.", 512.0),
        "one": ("Each term has standard deviation 1, but the score is a sum of 512 of them.", 1.0),
        "mean": ("That is the spread of the mean of the products. A dot product does not divide.", 1 / math.sqrt(512)),
        "two": ("Each product has variance 1 times 1, which is 1, not 2.", 32.0),
    },
    tolerance=2e-3,
    passed="about 23: the exponential of such scores puts all weight on one position.",
)  # fmt: skip

DEAD_PARAMETERS = Exercise(
    (),
    4_984_320,
    {
        "no norm": ("The BatchNorms are missing: a scale and a shift for each of 512 channels, in both layers.",
                    4_982_272),
        "no bias": ("The biases are missing: 512 in each of the two convolutions and in FC-1.", 4_982_784),
        "one layer": ("One convolution is missing: the branch has two, layers 14 and 15.", 2_623_488),
        "no linear": ("FC-1 is missing: 512 times 512 weights and 512 biases.", 4_721_664),
        "weights alone": ("These are the weights alone. Add the biases, and scale and shift of the BatchNorms.",
                          4_980_736),
    },
    tolerance=1e-8,
    passed="a quarter of the network: 4,984,320 of 19,720,780 parameters of att2 with pc.",
)  # fmt: skip

EXERCISES = {
    "dp-scores": DP,
    "pc-scores": PC,
    "additive-scores": ADDITIVE,
    "score-gradient": GRADIENT,
    "dp-query-gradient": QUERY_GRADIENT,
    "additive-query-gradient": ADDITIVE_GRADIENT,
    "softmax-temperature": TEMPERATURE,
    "normalised-entropy": ENTROPY,
    "uniform-entropy": UNIFORM_ENTROPY,
    "pc-query-gradient": PC_QUERY_GRADIENT,
    "score-spread": SCORE_SPREAD,
    "dead-parameters": DEAD_PARAMETERS,
}
