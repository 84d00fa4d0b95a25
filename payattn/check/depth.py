"""Exercises of the chapter "Depth: why (1 + M)"."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from payattn.check import Exercise, numbers

# ------------------------------------------------------------------------------------------------ a chain of masks

CHAIN_FACTORS = Exercise(
    (),
    (1 / 64, 125 / 64),
    {
        "exchanged": ("The other way round: the naive form multiplies by M, the residual form by 1 + M.",
                      (125 / 64, 1 / 64)),
        "added": ("The factors of modules that follow each other are multiplied, not added.", (3 / 4, 15 / 4)),
        "one at the end": ("The 1 is added in every module, not once behind the last.", (1 / 64, 65 / 64)),
        "one module": ("That is one module; the chain has three.", (1 / 4, 5 / 4)),
    },
    passed="a quarter three times, and five quarters three times.",
)  # fmt: skip


# -------------------------------------------------------------------------------------------- what a unit adds

UNIT_FAN_IN = Exercise(
    (),
    1.0,
    {
        "fan out": ("That is the answer for C_out. With C_in the variance of a weight is 2 / (C/4).", 0.25),
        "no relu": ("Each input of the last convolution has passed a ReLU, which halves its mean square.", 2.0),
        "inverse": ("The other way round: C/4 terms, each with the weight variance 2 / (C/4) and mean square 1/2.",
                    4.0),
        "half": ("The sum has C/4 terms of weight variance 2 / (C/4), each times 1/2: multiply all three.", 0.5),
    },
    passed="four times as much as with C_out: every unit would add a whole 1.",
)  # fmt: skip


# -------------------------------------------------------------------------------------------- gain of a fusion


def fusion_gain(mask: Tensor, offset: float) -> Tensor:
    """Return the mean of ``(offset + M)^2``: the factor on the mean square of a trunk that does not know its mask."""
    return (offset + mask).square().mean()


def _gain_of_mean(mask: Tensor, offset: float) -> Tensor:
    return (offset + mask.mean()).square()


def _gain_not_squared(mask: Tensor, offset: float) -> Tensor:
    return (offset + mask).mean()


def _gain_apart(mask: Tensor, offset: float) -> Tensor:
    return offset**2 + mask.square().mean()


def _gain_without_offset(mask: Tensor, offset: float) -> Tensor:
    return mask.square().mean()


FUSION_GAIN = Exercise(
    [(torch.sigmoid(numbers(2, 3, 4, 4)), 1.0), (torch.tensor([0.25, 0.75]), 0.0), (torch.tensor([0.1, 0.9]), 0.5)],
    fusion_gain,
    {
        "of the mean": ("The square of the mean leaves the spread of the mask out. Square first, then average.",
                        _gain_of_mean),
        "not squared": ("That is the factor on the signal. The mean square is multiplied by the mean of its square.",
                        _gain_not_squared),
        "apart": ("The square of a sum has a mixed term: (o + M)^2 = o^2 + 2 o M + M^2.", _gain_apart),
        "no offset": ("The offset is missing: with offset 1 a closed mask must have the gain 1.",
                      _gain_without_offset),
    },
    passed="mean and spread of the mask, both in one number.",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------ the recursion


def stage_mean_squares(start: float, gain: float, modules: int) -> list[float]:
    """Return the mean square behind each module of a stage: ``q <- gain (q + 3/4) + 1/4``, beginning at ``start``."""
    found, q = [], start
    for _ in range(modules):
        q = gain * (q + 0.75) + 0.25
        found.append(q)
    return found


def resting_mean_square(gain: float) -> float:
    """Return the mean square that ``q <- gain (q + 3/4) + 1/4`` comes to rest at, for a gain below one."""
    return (0.75 * gain + 0.25) / (1 - gain)


def _squares_units_outside(start: float, gain: float, modules: int) -> list[float]:
    found, q = [], start
    for _ in range(modules):
        q = gain * q + 1.0
        found.append(q)
    return found


def _squares_without_last(start: float, gain: float, modules: int) -> list[float]:
    found, q = [], start
    for _ in range(modules):
        q = gain * (q + 0.75)
        found.append(q)
    return found


def _squares_bare(start: float, gain: float, modules: int) -> list[float]:
    return [start * gain**k for k in range(1, modules + 1)]


def _squares_with_start(start: float, gain: float, modules: int) -> list[float]:
    return [start, *stage_mean_squares(start, gain, modules)]


def _squares_last_only(start: float, gain: float, modules: int) -> float:
    return stage_mean_squares(start, gain, modules)[-1]


STAGE_MEAN_SQUARES = Exercise(
    [(0.5, 2.25, 4), (0.75, 0.25, 3), (1.0, 1.0, 2)],
    stage_mean_squares,
    {
        "units outside": ("Three of the four units stand before the fusion: what they add is multiplied too.",
                          _squares_units_outside),
        "without last": ("The unit behind the fusion is missing; it adds its quarter too.", _squares_without_last),
        "bare": ("That is the chain of masks alone. Between the masks the units add a quarter each.", _squares_bare),
        "with start": ("The list begins behind the first module; leave the start out.", _squares_with_start),
        "last only": ("Return the list of all modules, not the last alone.", _squares_last_only),
    },
    passed="a line of algebra predicts a network of 164 layers.",
)  # fmt: skip

RESTING_POINT = Exercise(
    (),
    7 / 12,
    {
        "not squared": ("Half the signal is a quarter of its mean square: the gain is 1/4, not 1/2.", 1.25),
        "last unit only": ("Three units stand before the fusion: q = (q + 3/4) / 4 + 1/4.", 1 / 3),
        "one step": ("That is one module after an empty signal. At rest q is the same before and behind.", 7 / 16),
        "zero": ("A chain of masks alone goes to zero. Here each module adds something again.", 0.0),
    },
    passed="three quarters of it added by the module's own units: the signal does not die, it is replaced.",
)  # fmt: skip


# -------------------------------------------------------------------------------------------- the identity path


def identity_share(start: float, gain: float, modules: int) -> float:
    """Return the share of the mean square behind the modules that came along the identity path."""
    return gain**modules * start / stage_mean_squares(start, gain, modules)[-1]


def _share_without_gain(start: float, gain: float, modules: int) -> float:
    return start / stage_mean_squares(start, gain, modules)[-1]


def _share_path_alone(start: float, gain: float, modules: int) -> float:
    return gain**modules * start


def _share_once(start: float, gain: float, modules: int) -> float:
    return gain * start / stage_mean_squares(start, gain, modules)[-1]


def _share_rest(start: float, gain: float, modules: int) -> float:
    return 1 - identity_share(start, gain, modules)


IDENTITY_SHARE = Exercise(
    [(0.5, 2.25, 4), (0.75, 0.25, 3), (0.5, 1.0, 4)],
    identity_share,
    {
        "without gain": ("The path goes through the fusions too: the start is multiplied by the gain of each module.",
                         _share_without_gain),
        "path alone": ("That is the mean square of the path. Divide by that of the whole signal.", _share_path_alone),
        "once": ("The gain counts once for every module.", _share_once),
        "rest": ("That is what the residual branches put in; the share of the path is what is left.", _share_rest),
    },
    passed="with gain 1 it is what a network of plain units keeps.",
)  # fmt: skip

PLAIN_SHARE = Exercise(
    (),
    1 / 9,
    {
        "one unit each": ("Four modules have sixteen units on their trunk path, not four.", 1 / 3),
        "squared": ("The share is one of mean squares already; do not square it.", 1 / 81),
        "start at one": ("The stage starts at 1/2, not at 1.", 1 / 5),
        "rest": ("That is the share of what the units added; the rest came along the path.", 8 / 9),
    },
    passed="a plain residual network forgets its input too, only slowly: not by a power.",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------ the way back


def fusion_backward(upstream: Tensor, trunk: Tensor, mask: Tensor, offset: float) -> tuple[Tensor, Tensor]:
    """Return dL/dT and dL/dM of ``H = (offset + M) T`` for the upstream gradient g = dL/dH."""
    return (offset + mask) * upstream, trunk * upstream


def _backward_without_offset(upstream: Tensor, trunk: Tensor, mask: Tensor, offset: float) -> tuple[Tensor, Tensor]:
    return mask * upstream, trunk * upstream


def _backward_offset_in_both(upstream: Tensor, trunk: Tensor, mask: Tensor, offset: float) -> tuple[Tensor, Tensor]:
    return (offset + mask) * upstream, (offset + trunk) * upstream


def _backward_exchanged(upstream: Tensor, trunk: Tensor, mask: Tensor, offset: float) -> tuple[Tensor, Tensor]:
    return trunk * upstream, (offset + mask) * upstream


def _backward_without_chain(upstream: Tensor, trunk: Tensor, mask: Tensor, offset: float) -> tuple[Tensor, Tensor]:
    return offset + mask, trunk


FUSION_BACKWARD = Exercise(
    [
        (torch.tensor([3.0]), torch.tensor([2.0]), torch.tensor([0.5]), 1.0),
        (numbers(2, 3, 4, 4), numbers(2, 3, 4, 4, seed=1), torch.sigmoid(numbers(2, 3, 4, 4, seed=2)), 0.0),
        (numbers(1, 2, 3, 3), numbers(1, 2, 3, 3, seed=1), torch.sigmoid(numbers(1, 2, 3, 3, seed=2)), 0.5),
    ],
    fusion_backward,
    {
        "no offset": ("With offset 1 the gradient passes a closed mask: the offset is missing in dL/dT.",
                      _backward_without_offset),
        "in both": ("The offset stands beside M, not beside T: dL/dM is T g in every form.",
                    _backward_offset_in_both),
        "exchanged": ("The two are exchanged: return dL/dT first, then dL/dM.", _backward_exchanged),
        "no chain": ("These are the derivatives of H. Multiply by the gradient g that arrives.",
                     _backward_without_chain),
    },
    passed="the mask filters the gradient of the trunk, and the trunk that of the mask.",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------ an open start

MASK_BIAS = Exercise(
    (),
    math.log(9),
    {
        "sign": ("The sign: a negative bias closes the mask.", -math.log(9)),
        "ten": ("Solve 1 / (1 + exp(-b)) = 9/10: exp(-b) is 1/9, not 1/10.", math.log(10)),
        "the mask": ("That is the mask, not the number that the sigmoid needs to give it.", 0.9),
        "logarithm of the mask": ("The inverse of the sigmoid is ln(M / (1 - M)), not ln M.", math.log(0.9)),
    },
    tolerance=2e-3,
    passed="and the sigmoid's slope there is 0.09 in place of 0.25: an open mask learns more slowly.",
)  # fmt: skip


EXERCISES: dict[str, Exercise] = {
    "chain-factors": CHAIN_FACTORS,
    "unit-fan-in": UNIT_FAN_IN,
    "fusion-gain": FUSION_GAIN,
    "stage-mean-squares": STAGE_MEAN_SQUARES,
    "resting-point": RESTING_POINT,
    "identity-share": IDENTITY_SHARE,
    "plain-share": PLAIN_SHARE,
    "fusion-backward": FUSION_BACKWARD,
    "mask-bias": MASK_BIAS,
}
