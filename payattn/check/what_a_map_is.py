"""Exercises of the chapter "What a map is"."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from payattn.check import Exercise, numbers

# ------------------------------------------------------------------------------------------------ gradient x input


def gradient_input(images: Tensor, slopes: Tensor) -> Tensor:
    """Return (N, H, W): the sum over colours of pixel times slope, for images and slopes (N, 3, H, W)."""
    return (images * slopes).sum(1)


def _absolute(images: Tensor, slopes: Tensor) -> Tensor:
    return (images * slopes).abs().sum(1)


def _strongest(images: Tensor, slopes: Tensor) -> Tensor:
    return (images * slopes).abs().amax(1)


def _grey(images: Tensor, slopes: Tensor) -> Tensor:
    return images.sum(1) * slopes.sum(1)


def _mean_colour(images: Tensor, slopes: Tensor) -> Tensor:
    return (images * slopes).mean(1)


def _over_images(images: Tensor, slopes: Tensor) -> Tensor:
    return (images * slopes).sum(0)


GRADIENT_INPUT = Exercise(
    [(numbers(2, 3, 4, 5), numbers(2, 3, 4, 5, seed=1))],
    gradient_input,
    {
        "absolute": ("Shares have a sign: what speaks against the class is negative. Leave the absolute value out.",
                     _absolute),
        "strongest": ("That is the way of saliency. Shares of three colours add up.", _strongest),
        "grey": ("Multiply colour by colour first, then add: the product of two sums mixes the colours.", _grey),
        "mean": ("A mean over the colours is a third of the sum, and the shares no longer add up to the logit.",
                 _mean_colour),
        "images": ("You add over the images, axis 0. Colours are axis 1.", _over_images),
    },
    passed="one share per pixel, of either sign.",
)  # fmt: skip


# ------------------------------------------------------------------------------------------- what the constants add

CONSTANTS = Exercise(
    [],
    (4.0, -2.5),
    {
        "no input": ("A share is pixel times slope. These are the slopes, added.", (1.5, 0.0)),
        "logit": ("The first number is the sum of the shares. The logit is the sum of both numbers.", (1.5, -2.5)),
        "no sign": ("The second is the logit minus the shares, and it is negative here.", (4.0, 2.5)),
    },
    passed="the constants take away what the pixels alone would give.",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------- Grad-CAM


def grad_cam_of(features: Tensor, slopes: Tensor) -> Tensor:
    """Return (N, h, w): Grad-CAM of features (N, K, h, w) with the slopes of the logit at them."""
    return (slopes.mean((2, 3), keepdim=True) * features).sum(1).relu()


def _cam_signed(features: Tensor, slopes: Tensor) -> Tensor:
    return (slopes.mean((2, 3), keepdim=True) * features).sum(1)


def _cam_of_sums(features: Tensor, slopes: Tensor) -> Tensor:
    return (slopes.sum((2, 3), keepdim=True) * features).sum(1).relu()


def _cam_local(features: Tensor, slopes: Tensor) -> Tensor:
    return (slopes * features).sum(1).relu()


def _cam_positive_weights(features: Tensor, slopes: Tensor) -> Tensor:
    return (slopes.mean((2, 3), keepdim=True).relu() * features).sum(1).relu()


def _cam_relu_first(features: Tensor, slopes: Tensor) -> Tensor:
    return (slopes.mean((2, 3), keepdim=True) * features).relu().sum(1)


def _cam_of_batch(features: Tensor, slopes: Tensor) -> Tensor:
    return (slopes.mean((0, 2, 3), keepdim=True) * features).sum(1).relu()


GRAD_CAM = Exercise(
    [(numbers(3, 4, 3, 5), numbers(3, 4, 3, 5, seed=1))],
    grad_cam_of,
    {
        "signed": ("Weights and sum are right. At the end Grad-CAM keeps the positive part only.", _cam_signed),
        "sum": ("The weight of a channel is the mean of its slopes over the positions, not their sum.", _cam_of_sums),
        "local": ("You multiply position by position. Grad-CAM first takes the mean of the slopes: one weight per "
                  "channel.", _cam_local),
        "weights cut": ("Channels with a negative weight count too; the ReLU comes after the sum.",
                        _cam_positive_weights),
        "relu first": ("The ReLU comes after the sum over channels, or nothing can speak against a place.",
                       _cam_relu_first),
        "batch": ("Each image has weights of its own: do not take the mean over the batch.", _cam_of_batch),
    },
    passed="one weight per channel and image, one sum, one ReLU.",
)  # fmt: skip


# ------------------------------------------------------------------------------------------ slopes that cancel

CANCEL = Exercise(
    [],
    (0.0, 2.0),
    {
        "no mean": ("That multiplies place by place. Grad-CAM takes the mean of the slopes first, and here it is zero.",
                    (2.0, 2.0)),
        "both zero": ("The first is right. Position by position the products are 2 and 0, and their sum is not zero.",
                      (0.0, 0.0)),
        "order": ("Two right numbers in the wrong order: Grad-CAM first.", (2.0, 0.0)),
    },
    passed="a mean over the positions forgets which position had which slope.",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------ occlusion


def strips_lost(image: Tensor, weight: Tensor, side: int) -> Tensor:
    """Return (W,): what the logit ``(weight * image).sum()`` loses by strips of ``side`` columns set to zero.

    The strips lie side by side; ``image`` and ``weight`` are (H, W), and each column gets the loss of its strip.
    """
    lost = (weight * image).sum(0)
    pieces = F.pad(lost, (0, -len(lost) % side)).view(-1, side).sum(1)
    return pieces.repeat_interleave(side)[: len(lost)]


def _what_is_left(image: Tensor, weight: Tensor, side: int) -> Tensor:
    return (weight * image).sum() - strips_lost(image, weight, side)


def _gain(image: Tensor, weight: Tensor, side: int) -> Tensor:
    return -strips_lost(image, weight, side)


def _shared_out(image: Tensor, weight: Tensor, side: int) -> Tensor:
    return strips_lost(image, weight, side) / side


def _each_column(image: Tensor, weight: Tensor, side: int) -> Tensor:
    return (weight * image).sum(0)


def _only_the_weights(image: Tensor, weight: Tensor, side: int) -> Tensor:
    return strips_lost(torch.ones_like(image), weight, side)


OCCLUSION = Exercise(
    [(numbers(3, 7), numbers(3, 7, seed=1), 2), (numbers(2, 6, seed=2), numbers(2, 6, seed=3), 3)],
    strips_lost,
    {
        "left": ("That is the logit of the covered image. The map is what was lost: before minus after.",
                 _what_is_left),
        "sign": ("The sign is reversed: before minus after, so that a place the class needs is positive.", _gain),
        "shared": ("Do not divide by the width: each column gets the whole loss of the strip that covered it.",
                   _shared_out),
        "column": ("That covers single columns. A strip covers several at once.", _each_column),
        "weights": ("What is lost depends on what was there: the image is missing.", _only_the_weights),
    },
    passed="for a linear logit, the loss is the sum of what was covered; the last strip may be cut off.",
)  # fmt: skip


# --------------------------------------------------------------------------------------------- how many passes

PASSES = Exercise(
    [],
    50,
    {
        "without the whole": ("Those are the covered copies. The image itself is asked once, too.", 49),
        "side by side": ("That is for windows side by side. A stride of half a window makes them overlap.", 17),
        "borders": ("The last window begins 8 pixels before the border, at 24: it does not start at 28.", 65),
    },
    passed="seven places in each direction, and the image itself.",
)

EXERCISES = {
    "map-gradient-input": GRADIENT_INPUT,
    "map-constants": CONSTANTS,
    "map-grad-cam": GRAD_CAM,
    "map-cancel": CANCEL,
    "map-occlusion": OCCLUSION,
    "map-passes": PASSES,
}
