"""Exercises of the chapter "Attention in VGG"."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from payattn.check import Exercise, numbers

# ----------------------------------------------------------------------------------------------- sizes of the maps

Sizes = tuple[tuple[int, int], ...]


def map_sizes(height: int, width: int) -> Sizes:
    """Return ((h, w), (h, w), (h, w)) of the maps at layers 7, 10, 13: taken before the pool, pools in ceil mode."""
    return tuple((math.ceil(height / by), math.ceil(width / by)) for by in (1, 2, 4))


def _sizes_after_pool(height: int, width: int) -> Sizes:
    return tuple((math.ceil(height / by), math.ceil(width / by)) for by in (2, 4, 8))


def _sizes_floor(height: int, width: int) -> Sizes:
    return tuple((height // by, width // by) for by in (1, 2, 4))


def _sizes_of_baseline(height: int, width: int) -> Sizes:
    return tuple((math.ceil(height / by), math.ceil(width / by)) for by in (4, 8, 16))


def _sizes_exchanged(height: int, width: int) -> Sizes:
    return map_sizes(width, height)


def _sizes_reversed(height: int, width: int) -> Sizes:
    return map_sizes(height, width)[::-1]


MAP_SIZES = Exercise(
    [(32, 32), (33, 47)],
    map_sizes,
    {
        "after the pool": ("These are the sizes after the pool that follows each level. The features are taken before.",
                           _sizes_after_pool),
        "floor": ("Right for 32 x 32, but the pools are in ceil mode: 33 becomes 17, not 16.", _sizes_floor),
        "baseline": ("These are the sizes in the plain VGG. VGG-att drops its first two pools.", _sizes_of_baseline),
        "exchanged": ("Height and width are exchanged. A size is (h, w), as in (N, C, H, W).", _sizes_exchanged),
        "reversed": ("The order is reversed. Layer 7 comes first and has the largest map.", _sizes_reversed),
    },
    passed="the early level has the finest map.",
)  # fmt: skip


# ---------------------------------------------------------------------------------------------- parameters of a unit


def pc_parameters(channels: int, query_channels: int) -> int:
    """Return the number of parameters of a pc unit: u, its bias, and BN and Linear of the query if needed."""
    score = channels + 1
    if query_channels == channels:
        return score
    return score + 2 * query_channels + query_channels * channels + channels


def _parameters_without_bias(channels: int, query_channels: int) -> int:
    return pc_parameters(channels, query_channels) - 1


def _parameters_without_norm(channels: int, query_channels: int) -> int:
    return pc_parameters(channels, query_channels) - 2 * query_channels * (channels != query_channels)


def _parameters_projection_bias(channels: int, query_channels: int) -> int:
    return pc_parameters(channels, query_channels) - channels * (channels != query_channels)


def _parameters_without_projection(channels: int, query_channels: int) -> int:
    return channels + 1


def _parameters_always_projected(channels: int, query_channels: int) -> int:
    return channels + 1 + 2 * query_channels + query_channels * channels + channels


def _parameters_local_projected(channels: int, query_channels: int) -> int:
    if channels == query_channels:
        return channels + 1
    return query_channels + 1 + channels * query_channels + query_channels


PC_PARAMETERS = Exercise(
    [(512, 512), (256, 512), (16, 64)],
    pc_parameters,
    {
        "no bias": ("One is missing: the score is a 1 x 1 convolution with bias (which cancels, but is counted).",
                    _parameters_without_bias),
        "no norm": ("The projection starts with BatchNorm over the query: a scale and a shift per channel of g.",
                    _parameters_without_norm),
        "projection bias": ("The projection of the query is a Linear layer with bias: one more per local channel.",
                            _parameters_projection_bias),
        "no projection": ("Right where l and g have the same length. At layer 7 the query is projected: 512 to 256.",
                          _parameters_without_projection),
        "always": ("Right where the lengths differ. Equal lengths need no projection.", _parameters_always_projected),
        "local": ("Here the local features are projected up to the query. The paper projects the query down.",
                  _parameters_local_projected),
    },
    passed="513 at layers 10 and 13, 132,609 at layer 7: the projection is nearly all of it.",
)  # fmt: skip


# -------------------------------------------------------------------------------------------- independent heads


def average_probabilities(logits: Tensor) -> Tensor:
    """Return (N, C): the mean over levels of the softmax of each level's logits (S, N, C)."""
    return logits.softmax(-1).mean(0)


def _average_logits(logits: Tensor) -> Tensor:
    return logits.mean(0).softmax(-1)


def _product_of_experts(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1).sum(0).softmax(-1)


def _sum_of_probabilities(logits: Tensor) -> Tensor:
    return logits.softmax(-1).sum(0)


def _largest_probability(logits: Tensor) -> Tensor:
    return logits.softmax(-1).amax(0)


def _softmax_over_levels(logits: Tensor) -> Tensor:
    return logits.softmax(0).mean(0)


def _softmax_twice(logits: Tensor) -> Tensor:
    return logits.softmax(-1).mean(0).softmax(-1)


INDEP = Exercise(
    [
        (torch.tensor([[[0.70, 0.29, 0.01]], [[0.05, 0.35, 0.60]]]).log(),),
        (numbers(3, 2, 4),),
    ],
    average_probabilities,
    {
        "logits": ("The logits are averaged before the softmax. The paper averages probabilities: softmax first.",
                   _average_logits),
        "product": ("Adding log-probabilities multiplies the probabilities: that is the authors' code, not the paper.",
                    _product_of_experts),
        "sum": ("The probabilities are added, so they sum to S. Take their mean over the levels.",
                _sum_of_probabilities),
        "largest": ("This takes the largest probability over the levels, which no longer sums to 1. Take the mean.",
                    _largest_probability),
        "axis": ("The softmax runs over the levels. It belongs over the classes, the last axis.",
                 _softmax_over_levels),
        "twice": ("A second softmax flattens the probabilities. Their mean sums to 1 already.", _softmax_twice),
    },
    passed="on the first input the mean chooses class 0, where a product of the experts chooses class 1.",
)  # fmt: skip


# ------------------------------------------------------------------------------------------ projecting the query


def project_query(query: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return W ReLU(g) + b (N, M) from query (N, M'), weight (M, M'), bias (M,); BN and dropout left out."""
    return query.relu() @ weight.T + bias


def _project_without_relu(query: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return query @ weight.T + bias


def _project_relu_after(query: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return (query @ weight.T + bias).relu()


def _project_without_bias(query: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return query.relu() @ weight.T


def _project_transposed(query: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return query.relu() @ weight + bias


def _project_cut(query: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return query[:, : len(bias)]


PROJECT = Exercise(
    [
        (torch.tensor([[1.0, -2.0]]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([0.5, -9.0])),
        (numbers(3, 6), numbers(4, 6, seed=1), numbers(4, seed=2)),
    ],
    project_query,
    {
        "no relu": ("ReLU is missing: it stands before the Linear layer.", _project_without_relu),
        "relu after": ("ReLU stands after the Linear layer. It comes before, so the projected query can be negative.",
                       _project_relu_after),
        "no bias": ("The bias is missing. The Linear layer of the projection has one.", _project_without_bias),
        "transposed": ("weight is (M, M'), as in nn.Linear: multiply by its transpose.", _project_transposed),
        "cut": ("This keeps the first M channels. A projection mixes all M' with learned weights.", _project_cut),
    },
    passed="the query has the length of the local features.",
)  # fmt: skip


# ---------------------------------------------------------------------------------------- class activation maps


def class_activation(features: Tensor, weight: Tensor, classes: Tensor) -> Tensor:
    """Return (N, H, W): the sum over channels of features (N, K, H, W) times the weights (C, K) of class (N,)."""
    return (features * weight[classes][:, :, None, None]).sum(1)


def _cam_first_class(features: Tensor, weight: Tensor, classes: Tensor) -> Tensor:
    return class_activation(features, weight, torch.zeros_like(classes))


def _cam_without_weights(features: Tensor, weight: Tensor, classes: Tensor) -> Tensor:
    return features.sum(1)


def _cam_relu(features: Tensor, weight: Tensor, classes: Tensor) -> Tensor:
    return class_activation(features, weight, classes).relu()


def _cam_mean_class(features: Tensor, weight: Tensor, classes: Tensor) -> Tensor:
    return (features * weight.mean(0)[:, None, None]).sum(1)


def _cam_logit(features: Tensor, weight: Tensor, classes: Tensor) -> Tensor:
    return class_activation(features, weight, classes).mean((1, 2))


CAM = Exercise(
    [(numbers(3, 4, 2, 3), numbers(5, 4, seed=1), torch.tensor([4, 0, 2]))],
    class_activation,
    {
        "first class": ("Every map is that of class 0. Take the row of weight of each image's own class.",
                        _cam_first_class),
        "no weights": ("The channels are summed without weights, so the map does not depend on the class.",
                       _cam_without_weights),
        "relu": ("ReLU is Grad-CAM's. A class activation map keeps what speaks against the class.", _cam_relu),
        "mean class": ("The weights of all classes are averaged. Choose one class per image.", _cam_mean_class),
        "logit": ("The mean over positions is the logit (without bias). The map is what comes before the mean.",
                  _cam_logit),
    },
    passed="its mean over the positions is the logit of the class, without the bias.",
)  # fmt: skip


# --------------------------------------------------------------------------------------------- multiply-adds

Layer = tuple[int, int, int, int]
"""A 3 x 3 convolution: input channels, output channels, height and width of its map."""


def multiply_adds(layers: list[Layer]) -> int:
    """Return the number of multiply-adds of 3 x 3 convolutions, ``sum 9 C_in C_out H W``, for one image."""
    return sum(9 * c_in * c_out * height * width for c_in, c_out, height, width in layers)


def _macs_as_parameters(layers: list[Layer]) -> int:
    return sum(9 * c_in * c_out for c_in, c_out, _, _ in layers)


def _macs_without_kernel(layers: list[Layer]) -> int:
    return multiply_adds(layers) // 9


def _macs_as_operations(layers: list[Layer]) -> int:
    return 2 * multiply_adds(layers)


def _macs_one_input(layers: list[Layer]) -> int:
    return sum(9 * c_out * height * width for _, c_out, height, width in layers)


def _macs_square(layers: list[Layer]) -> int:
    return sum(9 * c_in * c_out * height * height for c_in, c_out, height, _ in layers)


MULTIPLY_ADDS = Exercise(
    [([(3, 64, 32, 32), (64, 128, 16, 16)],), ([(8, 4, 5, 7)],)],
    multiply_adds,
    {
        "parameters": ("These are the weights. Each weight is used once at every position: multiply by H W.",
                       _macs_as_parameters),
        "kernel": ("The kernel is missing: a 3 x 3 window needs nine products per pair of channels.",
                   _macs_without_kernel),
        "operations": ("A multiply-add counts as one. Twice as many is the count of single operations (FLOP).",
                       _macs_as_operations),
        "one input": ("Every output channel reads all input channels: multiply by C_in too.", _macs_one_input),
        "square": ("Right for square maps only. The map has H W positions.", _macs_square),
    },
    passed="the size of the map counts, not the number of weights.",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------ receptive field


def receptive_field(layers: str) -> int:
    """Return the side in pixels of what one position sees, after layers "C" (3 x 3 convolution) and "P" (2 x 2 pool).

    ``r`` starts at 1 and the step ``j`` between neighbours at 1; a convolution adds 2 j, a pool adds j and doubles j.
    """
    side, step = 1, 1
    for layer in layers:
        side += 2 * step if layer == "C" else step
        step *= 2 if layer == "P" else 1
    return side


def _field_without_step(layers: str) -> int:
    return 1 + sum(2 if layer == "C" else 1 for layer in layers)


def _field_pool_adds_nothing(layers: str) -> int:
    side, step = 1, 1
    for layer in layers:
        side, step = (side + 2 * step, step) if layer == "C" else (side, 2 * step)
    return side


def _field_kernel(layers: str) -> int:
    side, step = 1, 1
    for layer in layers:
        side, step = (side + 3 * step, step) if layer == "C" else (side + 2 * step, 2 * step)
    return side


def _field_step_first(layers: str) -> int:
    side, step = 1, 1
    for layer in layers:
        step *= 2 if layer == "P" else 1
        side += 2 * step if layer == "C" else step
    return side


def _field_from_zero(layers: str) -> int:
    return receptive_field(layers) - 1


RECEPTIVE_FIELD = Exercise(
    [("C",), ("CCPC",), ("CCCCCCCPCCC",)],
    receptive_field,
    {
        "step": ("After a pool neighbours lie two pixels apart, so every later layer adds twice as much.",
                 _field_without_step),
        "pool": ("The pool itself looks at two neighbours: it adds one step before it doubles the step.",
                 _field_pool_adds_nothing),
        "kernel": ("A 3 x 3 window reaches one neighbour to each side: it adds two steps, not three. A pool adds one.",
                   _field_kernel),
        "order": ("The pool adds the old step and then doubles it; here it is doubled first.", _field_step_first),
        "zero": ("One is missing: before any layer a position sees its own pixel.", _field_from_zero),
    },
    passed="15 pixels at layer 7 and 28 at layer 10 of VGG-att.",
)  # fmt: skip


# ---------------------------------------------------------------------------------------------- dampened momentum

STEADY_STEP = Exercise(
    (),
    (1.0, 1.0, 10.0),
    {
        "no momentum": ("This leaves the momentum out. Let v no longer change: v = momentum v + (1 - d) g.",
                        (0.1, 0.1, 1.0)),
        "no dampening": ("The first is dampened: each new gradient enters with weight 1 - 0.9 only.",
                         (10.0, 1.0, 10.0)),
        "first steps": ("These are the very first steps. Give the step after many, when v no longer changes.",
                        (1.0, 0.1, 1.0)),
        "sign": ("The weights fall, so the steps are negative; give their sizes.", (-1.0, -1.0, -10.0)),
    },
    tolerance=1e-6,
    passed="lr 1 with dampening 0.9 is lr 0.1 without; lr 1 without is ten times too large.",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------ spread over seeds


def mean_and_spread(values: list[float]) -> tuple[float, float]:
    """Return mean and sample standard deviation (divided by n - 1) of the results over seeds."""
    points = torch.tensor(values, dtype=torch.float64)
    return points.mean().item(), points.std().item()


def _spread_population(values: list[float]) -> tuple[float, float]:
    points = torch.tensor(values, dtype=torch.float64)
    return points.mean().item(), points.std(correction=0).item()


def _spread_error_of_mean(values: list[float]) -> tuple[float, float]:
    mean, deviation = mean_and_spread(values)
    return mean, deviation / len(values) ** 0.5


def _spread_variance(values: list[float]) -> tuple[float, float]:
    mean, deviation = mean_and_spread(values)
    return mean, deviation**2


def _spread_range(values: list[float]) -> tuple[float, float]:
    return mean_and_spread(values)[0], max(values) - min(values)


def _spread_best(values: list[float]) -> tuple[float, float]:
    return max(values), mean_and_spread(values)[1]


SPREAD = Exercise(
    [([0.80, 0.90, 0.85],), ([0.1, 0.5, 0.6, 0.9, 0.2],)],
    mean_and_spread,
    {
        "population": ("This divides by n. A few seeds are a sample, so the deviation divides by n - 1.",
                       _spread_population),
        "error": ("This is the standard error of the mean. Give the standard deviation of the seeds.",
                  _spread_error_of_mean),
        "variance": ("This is the variance. Take its square root, which has the unit of the values.", _spread_variance),
        "range": ("This is the range. It grows with the number of seeds; give the standard deviation.", _spread_range),
        "best": ("This is the best seed. Report the mean: the best of n seeds rises with n.", _spread_best),
    },
    passed="report both, with the number of seeds.",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------ paper and pencil

HEAD_PARAMETERS = Exercise(
    (),
    12_298,
    {
        "no norm": ("That is the Linear layer alone. Each level's descriptor passes a BatchNorm first.", 10_250),
        "no bias": ("Nearly: the Linear layer has one bias per class.", 12_288),
        "indep": ("That is the indep head, with a classifier and a bias for each level.", 12_308),
        "one level": ("That is the head of one level, 512 channels. att2 joins two.", 6_154),
    },
    tolerance=1e-6,
    passed="two BatchNorms of 512 channels and one Linear layer from 1024 to 10.",
)

PRODUCT_CLASS = Exercise(
    (),
    (0, 1),
    {
        "exchanged": ("Exchanged: the mean is led by the level that is sure, the product punishes its doubt.", (1, 0)),
        "both mean": ("The mean is right. For the product multiply 0.7 by 0.05 and 0.29 by 0.35.", (0, 0)),
        "both product": ("The product is right. For the mean add 0.7 and 0.05, and 0.29 and 0.35.", (1, 1)),
        "last": ("Class 2 has 0.6 at one level but 0.01 at the other; work out all three classes.", (2, 2)),
    },
    tolerance=1e-6,
    passed="two readings of one head, two classes.",
)

EXERCISES = {
    "map-sizes": MAP_SIZES,
    "pc-parameters": PC_PARAMETERS,
    "average-probabilities": INDEP,
    "project-query": PROJECT,
    "class-activation": CAM,
    "multiply-adds": MULTIPLY_ADDS,
    "receptive-field": RECEPTIVE_FIELD,
    "steady-step": STEADY_STEP,
    "mean-and-spread": SPREAD,
    "head-parameters": HEAD_PARAMETERS,
    "mean-or-product": PRODUCT_CLASS,
}
