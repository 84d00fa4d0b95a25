"""Exercises of the chapter "GAP, PAN and ResNet"."""

from __future__ import annotations

import torch
from torch import Tensor

from payattn.check import Exercise, numbers

# ------------------------------------------------------------------------------------- maps of all classes, centred


def centred_maps(features: Tensor, weight: Tensor) -> Tensor:
    """Return (N, C, H, W): class activation maps of features (N, K, H, W) and weight (C, K), minus their class mean."""
    return torch.einsum("nkhw,ck->nchw", features, weight - weight.mean(0))


def _maps_as_they_are(features: Tensor, weight: Tensor) -> Tensor:
    return torch.einsum("nkhw,ck->nchw", features, weight)


def _maps_minus_their_logit(features: Tensor, weight: Tensor) -> Tensor:
    maps = _maps_as_they_are(features, weight)
    return maps - maps.mean((2, 3), keepdim=True)


def _maps_of_centred_rows(features: Tensor, weight: Tensor) -> Tensor:
    return _maps_as_they_are(features, weight - weight.mean(1, keepdim=True))


def _maps_softmax(features: Tensor, weight: Tensor) -> Tensor:
    return _maps_as_they_are(features, weight).softmax(1)


def _maps_minus_smallest(features: Tensor, weight: Tensor) -> Tensor:
    maps = _maps_as_they_are(features, weight)
    return maps - maps.amin(1, keepdim=True)


CENTRED = Exercise(
    [(numbers(2, 4, 2, 3), numbers(5, 4, seed=1)), (numbers(1, 3, 2, 2, seed=2), 1 + numbers(4, 3, seed=3))],
    centred_maps,
    {
        "not centred": ("These are the maps as they are. Take away their mean over the classes.", _maps_as_they_are),
        "over positions": ("The mean over the positions is taken away, and with it the logit. Average over classes.",
                           _maps_minus_their_logit),
        "over channels": ("The mean over the channels of each row is taken away. Average weight over its first axis.",
                          _maps_of_centred_rows),
        "softmax": ("A softmax over the classes is no centring: the means over positions are no logits any more.",
                    _maps_softmax),
        "smallest": ("The smallest class is taken away instead of the mean of all.", _maps_minus_smallest),
    },
    passed="adding one vector to the weights of all classes changes no probability, and no centred map.",
)  # fmt: skip


# ---------------------------------------------------------------------------------------------------- a sigmoid gate


def gate(local: Tensor, query: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return (N, M, H, W): local times sigmoid(<u, l + g> + b), from query (N, M), weight u (M,) and a scalar bias."""
    return local * _scores(local, query, weight, bias).sigmoid()[:, None]


def _scores(local: Tensor, query: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.einsum("nmhw,m->nhw", local + query[:, :, None, None], weight) + bias


def _gate_softmax(local: Tensor, query: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    scores = _scores(local, query, weight, bias)
    return local * scores.flatten(1).softmax(1).view_as(scores)[:, None]


def _gate_summed(local: Tensor, query: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return gate(local, query, weight, bias).sum((2, 3))


def _gate_alone(local: Tensor, query: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return _scores(local, query, weight, bias).sigmoid()


def _gate_without_query(local: Tensor, query: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return gate(local, torch.zeros_like(query), weight, bias)


def _gate_without_bias(local: Tensor, query: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return gate(local, query, weight, torch.zeros_like(bias))


def _gate_of_sum(local: Tensor, query: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return (local + query[:, :, None, None]) * _gate_alone(local, query, weight, bias)[:, None]


def _gate_residual(local: Tensor, query: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return local * (1 + _gate_alone(local, query, weight, bias))[:, None]


GATE = Exercise(
    [(numbers(2, 3, 2, 4), numbers(2, 3, seed=1), numbers(3, seed=2), torch.tensor(0.5))],
    gate,
    {
        "softmax": ("The weights share a total of one. A gate takes each position by itself: sigmoid, not softmax.",
                    _gate_softmax),
        "summed": ("The positions are summed to a descriptor. A gate passes the whole map on.", _gate_summed),
        "alone": ("These are the gates. Multiply the local features by them: (N, 1, H, W) times (N, M, H, W).",
                  _gate_alone),
        "no query": ("The query is missing: the score is the product of u with l + g.", _gate_without_query),
        "no bias": ("The bias is missing. In a softmax it would cancel; in a sigmoid it sets where a gate starts.",
                    _gate_without_bias),
        "sum passed on": ("The query is passed on with the features. It only makes the score; multiply l alone.",
                          _gate_of_sum),
        "residual": ("This multiplies by 1 + m, as residual attention does. Progressive attention multiplies by m.",
                     _gate_residual),
    },
    passed="a map goes in and a map of the same shape comes out.",
)  # fmt: skip


# ------------------------------------------------------------------------------------- the gradient of a gate's query


def gate_query_gradient(local: Tensor, gates: Tensor, weight: Tensor, delta: Tensor) -> Tensor:
    """Return (N, M), dL/dg = u sum_i m_i (1 - m_i) <delta_i, l_i>; delta (N, M, H, W) arrives at the gated map."""
    return weight * _gamma(local, gates, delta).sum((1, 2))[:, None]


def _gamma(local: Tensor, gates: Tensor, delta: Tensor) -> Tensor:
    return gates * (1 - gates) * (delta * local).sum(1)


def _gradient_without_slope(local: Tensor, gates: Tensor, weight: Tensor, delta: Tensor) -> Tensor:
    return weight * (delta * local).sum((1, 2, 3))[:, None]


def _gradient_half_slope(local: Tensor, gates: Tensor, weight: Tensor, delta: Tensor) -> Tensor:
    return weight * (gates * (delta * local).sum(1)).sum((1, 2))[:, None]


def _gradient_of_softmax(local: Tensor, gates: Tensor, weight: Tensor, delta: Tensor) -> Tensor:
    return torch.zeros(local.shape[:2], dtype=local.dtype)


def _gradient_of_dp(local: Tensor, gates: Tensor, weight: Tensor, delta: Tensor) -> Tensor:
    return torch.einsum("nhw,nmhw->nm", _gamma(local, gates, delta), local)


def _gradient_mean(local: Tensor, gates: Tensor, weight: Tensor, delta: Tensor) -> Tensor:
    return weight * _gamma(local, gates, delta).mean((1, 2))[:, None]


def _gradient_without_features(local: Tensor, gates: Tensor, weight: Tensor, delta: Tensor) -> Tensor:
    return weight * (gates * (1 - gates) * delta.sum(1)).sum((1, 2))[:, None]


GATE_GRADIENT = Exercise(
    [(numbers(2, 3, 2, 4), numbers(2, 2, 4, seed=1).sigmoid(), numbers(3, seed=2), numbers(2, 3, 2, 4, seed=3))],
    gate_query_gradient,
    {
        "no slope": ("The slope of the sigmoid is missing: m (1 - m) at each position.", _gradient_without_slope),
        "half a slope": ("The slope of the sigmoid is m (1 - m), not m.", _gradient_half_slope),
        "zero": ("Right for a softmax, where the gradients of the scores sum to zero. Behind a sigmoid they do not.",
                 _gradient_of_softmax),
        "dp": ("This is dp's: there the score is a product with l. In pc the query meets u, so the result is along u.",
               _gradient_of_dp),
        "mean": ("The positions are averaged. Each gate's share of the gradient is added.", _gradient_mean),
        "no features": ("The gradient at a gate is the product of delta with l at that position, not the sum of delta.",
                        _gradient_without_features),
    },
    passed="it has the direction of u, whatever the image: the query can only open or close all gates together.",
)  # fmt: skip


# ------------------------------------------------------------------------------------------- counting a bottleneck


def bottleneck_parameters(channels: int, planes: int, first: bool) -> int:
    """Return the parameters of a pre-activation bottleneck from channels to 4 planes; a first block has a shortcut."""
    norms = 2 * (channels + planes + planes)
    return norms + channels * planes + 9 * planes**2 + 4 * planes**2 + 4 * channels * planes * first


def _bottleneck_without_norms(channels: int, planes: int, first: bool) -> int:
    return bottleneck_parameters(channels, planes, first) - 2 * (channels + 2 * planes)


def _bottleneck_without_shortcut(channels: int, planes: int, first: bool) -> int:
    return bottleneck_parameters(channels, planes, False)


def _bottleneck_always_shortcut(channels: int, planes: int, first: bool) -> int:
    return bottleneck_parameters(channels, planes, True)


def _bottleneck_biased(channels: int, planes: int, first: bool) -> int:
    return bottleneck_parameters(channels, planes, first) + 6 * planes + 4 * planes * first


def _bottleneck_post_norm(channels: int, planes: int, first: bool) -> int:
    return bottleneck_parameters(channels, planes, first) - 2 * channels + 8 * planes


def _bottleneck_shortcut_norm(channels: int, planes: int, first: bool) -> int:
    return bottleneck_parameters(channels, planes, first) + 2 * channels * first


def _bottleneck_wide(channels: int, planes: int, first: bool) -> int:
    return bottleneck_parameters(channels, planes, first) + 8 * 4 * planes**2


BOTTLENECK = Exercise(
    [(16, 16, True), (64, 16, False), (128, 64, True)],
    bottleneck_parameters,
    {
        "no norms": ("The three BatchNorms are missing: a scale and a shift per channel.", _bottleneck_without_norms),
        "no shortcut": ("The first block of a stage has a 1 x 1 convolution in its shortcut, to 4 planes channels.",
                        _bottleneck_without_shortcut),
        "always": ("Only the first block of a stage has a convolution in its shortcut; the others add x as it is.",
                   _bottleneck_always_shortcut),
        "biases": ("These convolutions have no bias: the BatchNorm that follows would take it away.",
                   _bottleneck_biased),
        "norm behind": ("Pre-activation: a BatchNorm stands before each convolution, so the first is over `channels`.",
                        _bottleneck_post_norm),
        "own norm": ("The shortcut has no BatchNorm of its own: it shares the first of the block.",
                     _bottleneck_shortcut_norm),
        "all 3 x 3": ("The last convolution is 1 x 1, from planes to 4 planes.", _bottleneck_wide),
    },
    passed="eighteen of them in each of three stages make nearly all of RN-164.",
)  # fmt: skip


# -------------------------------------------------------------------------------------------------- paper and pencil

GAP_LOGIT = Exercise(
    (),
    2.0,
    {
        "no bias": ("The bias is missing.", 1.5),
        "sum": ("The positions are added. Global average pooling divides by their number.", 6.5),
        "relu": ("The negative number counts too: it speaks against the class.", 2.25),
        "maximum": ("That is the highest position and the bias. The logit is made of the mean.", 5.5),
    },
    tolerance=1e-3,
    passed="mean of the map, plus the bias.",
)

NEW_QUERY = Exercise(
    (),
    (0.75, 0.9),
    {
        "unchanged": ("That is the softmax's answer, where the query cancels. In a sigmoid it counts.", (0.5, 0.75)),
        "closed": ("The sign: the product of u with the change is +ln 3, so the gates open.", (0.25, 0.5)),
        "shared": ("Gates share no total: do not divide by their sum.", (0.4545, 0.5455)),
        "added": ("The change adds to the score, before the sigmoid, not to the gate.", (1.5986, 1.8486)),
        "times three": ("The odds m / (1 - m) are multiplied by three, not the gate.", (1.5, 2.25)),
    },
    tolerance=1e-3,
    passed="all odds are multiplied by the same number: that is all that a query can say here.",
)

STARVED = Exercise(
    (),
    0.1226,
    {
        "no eps": ("BatchNorm would undo any factor, but for its eps: here 0.001 is more than the variance.", 1.0),
        "no norm": ("That is what enters the BatchNorm. It multiplies by one over the root of variance plus eps.",
                    0.00390625),
        "no root": ("BatchNorm divides by the root of variance plus eps.", 0.01503),
        "eps outside": ("eps is added to the variance, under the root.", 0.7962),
    },
    tolerance=2e-3,
    passed="an eighth of what the layer gave without the softmax; with 1024 positions it is a thirtieth.",
)  # fmt: skip

QUERY_WORK = Exercise(
    (),
    9_437_184,
    {
        "before the pool": ("The pool comes first: the convolution runs on 4 x 4 positions, not on 8 x 8.", 37_748_736),
        "one position": ("These are its weights. Each is used once at each of the 4 x 4 positions.", 589_824),
        "after two pools": ("Only one pool of 2 stands before the convolution: 4 x 4 positions.", 2_359_296),
        "1 x 1": ("The kernel is 3 x 3: nine weights per pair of channels.", 1_048_576),
    },
    tolerance=1e-6,
    passed="nearly all of the ten million that attention adds to 244 million.",
)

EXERCISES = {
    "centred-class-maps": CENTRED,
    "sigmoid-gate": GATE,
    "gate-query-gradient": GATE_GRADIENT,
    "bottleneck-parameters": BOTTLENECK,
    "gap-logit": GAP_LOGIT,
    "gates-of-a-new-query": NEW_QUERY,
    "starved-norm": STARVED,
    "query-branch-work": QUERY_WORK,
}
