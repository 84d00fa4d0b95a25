"""Exercises of the chapter "Attention for your own CNN"."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from payattn.check import Exercise, numbers

# ------------------------------------------------------------------------------------------------ sides and fields


def side(n: int, kernel: int, stride: int, padding: int) -> int:
    """Return the side of what a convolution or pool puts out: ``floor((n + 2 p - k) / s) + 1``."""
    return (n + 2 * padding - kernel) // stride + 1


def receptive_field(layers: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return field r and jump j, in pixels, behind layers (kernel, stride), the first layer first."""
    field, jump = 1, 1
    for kernel, stride in layers:
        field += (kernel - 1) * jump
        jump *= stride
    return field, jump


def _field_jump_first(layers: Sequence[tuple[int, int]]) -> tuple[int, int]:
    field, jump = 1, 1
    for kernel, stride in layers:
        jump *= stride
        field += (kernel - 1) * jump
    return field, jump


def _field_no_jump(layers: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return 1 + sum(kernel - 1 for kernel, _ in layers), receptive_field(layers)[1]


def _field_whole_kernel(layers: Sequence[tuple[int, int]]) -> tuple[int, int]:
    field, jump = 1, 1
    for kernel, stride in layers:
        field += kernel * jump
        jump *= stride
    return field, jump


def _field_backwards(layers: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return receptive_field(list(layers)[::-1])


def _field_added_strides(layers: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return receptive_field(layers)[0], sum(stride for _, stride in layers)


def _field_alone(layers: Sequence[tuple[int, int]]) -> int:
    return receptive_field(layers)[0]


FIELD = Exercise(
    [([(3, 1), (3, 2), (3, 1)],), ([(7, 2), (3, 2), (3, 1), (3, 1)],), ([(5, 3), (1, 1), (2, 2), (3, 1)],)],
    receptive_field,
    {
        "jump first": ("A layer's kernel steps over the cells of its *input*: use the jump before you multiply it by "
                       "this layer's stride.", _field_jump_first),
        "no jump": ("Behind a stride one step of a kernel is several pixels: multiply k - 1 by the jump.",
                    _field_no_jump),
        "whole kernel": ("A kernel of one cell sees nothing new: add k - 1 steps, not k.", _field_whole_kernel),
        "backwards": ("You went through the layers from the last to the first.", _field_backwards),
        "added strides": ("Strides multiply: two layers of stride 2 jump over four pixels.", _field_added_strides),
        "field alone": ("Return both numbers, (field, jump).", _field_alone),
    },
    passed="the side of the square of pixels that one cell can see, and the pixels from one cell to the next.",
)  # fmt: skip

RESOLUTION = Exercise(
    [],
    2,
    {
        "layer2": ("That is layer2. One more halving follows, rounded up.", 3),
        "layer4": ("That is layer4: 24 is halved five times before its end, four times before that of layer3.", 1),
        "fraction": ("A side is a whole number: with this padding a halving rounds up, 3 becomes 2.", 1.5),
        "no pool": ("The max-pool behind the first convolution halves, too.", 3.0 + 1),
        "cells": ("Asked is the side of the map, not the number of its cells.", 16),
    },
    passed="four cells to say where something is: the strides were made for 224 pixels.",
)

# ------------------------------------------------------------------------------------------- statistics that move


def kept(steps: int, momentum: float = 0.1) -> float:
    """Return the weight of the first running statistic after so many steps in training mode: ``(1 - m)^t``."""
    return (1 - momentum) ** steps


DRIFT = Exercise(
    [],
    44,
    {
        "one short": ("After 43 steps a little more than a hundredth is left. One step more.", 43),
        "exponential": ("Close: exp(-t/10) is not 0.9^t. Take logarithms of 0.9^t < 0.01.", 46),
        "one momentum": ("After 1/m = 10 steps more than a third is left.", 10),
        "hundred": ("That is 1/0.01. The weight falls by a tenth of itself with each step.", 100),
    },
    passed="a single short epoch is enough to forget what the backbone was trained with.",
)

# ------------------------------------------------------------------------------------------------ the gate of a mask


def gate_gradient(features: Tensor, mask: Tensor, gamma: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return dL/dgamma, dL/dM and dL/dF of ``H = (1 + gamma M) F`` for ``g = dL/dH``."""
    return (mask * features * g).sum(), gamma * features * g, (1 + gamma * mask) * g


def _gate_not_summed(features: Tensor, mask: Tensor, gamma: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    _, of_mask, of_features = gate_gradient(features, mask, gamma, g)
    return mask * features * g, of_mask, of_features


def _gate_mean(features: Tensor, mask: Tensor, gamma: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    _, of_mask, of_features = gate_gradient(features, mask, gamma, g)
    return (mask * features * g).mean(), of_mask, of_features


def _gate_mask_ungated(features: Tensor, mask: Tensor, gamma: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    of_gamma, _, of_features = gate_gradient(features, mask, gamma, g)
    return of_gamma, features * g, of_features


def _gate_no_identity(features: Tensor, mask: Tensor, gamma: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    of_gamma, of_mask, _ = gate_gradient(features, mask, gamma, g)
    return of_gamma, of_mask, gamma * mask * g


def _gate_features_ungated(features: Tensor, mask: Tensor, gamma: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    of_gamma, of_mask, _ = gate_gradient(features, mask, gamma, g)
    return of_gamma, of_mask, (1 + mask) * g


def _gate_swapped(features: Tensor, mask: Tensor, gamma: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    of_gamma, of_mask, of_features = gate_gradient(features, mask, gamma, g)
    return of_gamma, of_features, of_mask


def _gate_inputs(seed: int, gamma: float) -> tuple[Tensor, ...]:
    shape = (2, 3, 2, 2)
    features, mask, g = (numbers(*shape, seed=seed + k) for k in range(3))
    return features, mask.sigmoid(), torch.tensor(gamma), g


GATE = Exercise(
    [_gate_inputs(0, 0.5), _gate_inputs(3, 0.0), _gate_inputs(6, -0.7)],
    gate_gradient,
    {
        "not summed": ("Gamma is one number for all positions and channels: sum its gradient over them.",
                       _gate_not_summed),
        "mean": ("The gradient of a shared number is the sum over its uses, not their mean.", _gate_mean),
        "mask ungated": ("M is multiplied by gamma before it reaches F: the factor is missing from dL/dM.",
                         _gate_mask_ungated),
        "no identity": ("The 1 of (1 + gamma M) is missing from dL/dF; it is the path that is there at the start.",
                        _gate_no_identity),
        "features ungated": ("Gamma is missing from dL/dF.", _gate_features_ungated),
        "swapped": ("The order is gamma, M, F.", _gate_swapped),
    },
    passed="at gamma = 0 the mask gets no gradient, gamma does, and the block learns as if nothing were there.",
)  # fmt: skip

# ------------------------------------------------------------------------------------------------ pixels and rates


def to_input(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return what a backbone with its normalisation outside takes, for bytes (N, 3, H, W)."""
    return (images / 255 - mean[:, None, None]) / std[:, None, None]


def _input_bytes(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return (images.float() - mean[:, None, None]) / std[:, None, None]


def _input_raw(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return images / 255


def _input_no_std(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return images / 255 - mean[:, None, None]


def _input_variance(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return (images / 255 - mean[:, None, None]) / std.square()[:, None, None]


def _input_last_axis(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return (images / 255 - mean) / std


def _input_of_batch(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    x = images / 255
    return (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)


def _bytes(*shape: int, seed: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


_MEAN, _STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.3])

INPUT = Exercise(
    [(_bytes(2, 3, 3, 3, seed=0), _MEAN, _STD), (_bytes(1, 3, 2, 3, seed=1), _STD + 0.2, _MEAN)],
    to_input,
    {
        "bytes": ("Mean and std are those of pixels in [0, 1]: divide the bytes by 255 first.", _input_bytes),
        "raw": ("These are pixels in [0, 1]. The backbone was trained on normalised ones.", _input_raw),
        "no std": ("The mean is gone, the scale is not: divide by std.", _input_no_std),
        "variance": ("You divided by the square of std.", _input_variance),
        "last axis": ("Mean and std belong to the colours, axis 1; as they are they meet the last axis, the columns.",
                      _input_last_axis),
        "of the batch": ("These are mean and std of this batch. Use those the backbone was trained with, for every "
                         "batch the same.", _input_of_batch),
    },
    passed="what the first layer of attach(mean=, std=) does, and what is forgotten most often.",
)  # fmt: skip


def learning_rates(names: Sequence[str], lr: float, factor: float) -> dict[str, float]:
    """Return the rate of each parameter by name: ``factor * lr`` in the backbone, ``lr`` in the new parts."""
    return {name: lr * factor if name.startswith("backbone.") else lr for name in names}


def _rates_anywhere(names: Sequence[str], lr: float, factor: float) -> dict[str, float]:
    return {name: lr * factor if "backbone" in name else lr for name in names}


def _rates_swapped(names: Sequence[str], lr: float, factor: float) -> dict[str, float]:
    return {name: lr if name.startswith("backbone.") else lr * factor for name in names}


def _rates_same(names: Sequence[str], lr: float, factor: float) -> dict[str, float]:
    return dict.fromkeys(names, lr)


def _rates_divided(names: Sequence[str], lr: float, factor: float) -> dict[str, float]:
    return {name: lr / factor if name.startswith("backbone.") else lr for name in names}


def _rates_dropped(names: Sequence[str], lr: float, factor: float) -> dict[str, float]:
    return {name: lr for name in names if not name.startswith("backbone.")}


_PARAMETERS = ["backbone.stage1.0.weight", "backbone.fc.bias", "attention.stage2.weight", "head.backbone_scale"]

RATES = Exercise(
    [(_PARAMETERS, 0.1, 0.1), (_PARAMETERS[::-1], 0.02, 0.5)],
    learning_rates,
    {
        "anywhere": ("A new part may carry the word in its name: ask how the name *starts*, with the dot.",
                     _rates_anywhere),
        "swapped": ("The other way round: the new parts know nothing yet and take the full rate.", _rates_swapped),
        "same": ("One rate for all. The backbone has something to lose.", _rates_same),
        "divided": ("factor multiplies the rate of the backbone.", _rates_divided),
        "dropped": ("The backbone's parameters are missing: that is a frozen backbone.", _rates_dropped),
    },
    passed="two groups of one optimiser.",
)  # fmt: skip

EXERCISES = {
    "own-field": FIELD,
    "own-resolution": RESOLUTION,
    "own-drift": DRIFT,
    "own-gate": GATE,
    "own-input": INPUT,
    "own-rates": RATES,
}
