"""Exercises of the chapter "Judging a map"."""

from __future__ import annotations

import torch
from torch import Tensor

from payattn.check import Exercise, numbers

# -------------------------------------------------------------------------------------------- energy inside the mask


def energy(maps: Tensor, masks: Tensor) -> Tensor:
    """Share of the positive mass inside the mask, for maps at the size of their masks."""
    mass = maps.clamp_min(0)
    return (mass * masks).sum((1, 2)) / mass.sum((1, 2))


def _energy_signed(maps: Tensor, masks: Tensor) -> Tensor:
    return (maps * masks).sum((1, 2)) / maps.sum((1, 2))


def _energy_absolute(maps: Tensor, masks: Tensor) -> Tensor:
    return energy(maps.abs(), masks)


def _energy_mean_inside(maps: Tensor, masks: Tensor) -> Tensor:
    mass = maps.clamp_min(0)
    return (mass * masks).sum((1, 2)) / masks.sum((1, 2))


def _energy_odds(maps: Tensor, masks: Tensor) -> Tensor:
    mass = maps.clamp_min(0)
    return (mass * masks).sum((1, 2)) / (mass * ~masks).sum((1, 2))


def _energy_whole_batch(maps: Tensor, masks: Tensor) -> Tensor:
    mass = maps.clamp_min(0)
    return (mass * masks).sum() / mass.sum()


def _masks(*shape: int, seed: int) -> Tensor:
    return numbers(*shape, seed=seed) > 0.3


ENERGY = Exercise(
    [(numbers(2, 3, 4), _masks(2, 3, 4, seed=1)), (numbers(3, 5, 5, seed=2), _masks(3, 5, 5, seed=3))],
    energy,
    {
        "signed": ("Negative values are no mass: they make the shares leave 0 to 1. Clip them first.", _energy_signed),
        "absolute": ("The absolute value counts evidence against the class as mass. Clip instead.", _energy_absolute),
        "mean inside": ("You divide by the area of the mask. Divide by the mass of the map.", _energy_mean_inside),
        "odds": ("That is inside over outside. A share is inside over everything.", _energy_odds),
        "whole batch": ("Sum over rows and columns only: each image has its own share.", _energy_whole_batch),
    },
    passed="one share per image, the same if the map is multiplied by 100.",
)  # fmt: skip


# ------------------------------------------------------------------------------------------- the area under a curve


def area(fractions: Tensor, scores: Tensor) -> Tensor:
    """Area under each image's curve, by trapezoids."""
    return ((scores[:, 1:] + scores[:, :-1]) / 2 * fractions.diff()).sum(1)


def _area_mean(fractions: Tensor, scores: Tensor) -> Tensor:
    return scores.mean(1)


def _area_left(fractions: Tensor, scores: Tensor) -> Tensor:
    return (scores[:, :-1] * fractions.diff()).sum(1)


def _area_right(fractions: Tensor, scores: Tensor) -> Tensor:
    return (scores[:, 1:] * fractions.diff()).sum(1)


def _area_even(fractions: Tensor, scores: Tensor) -> Tensor:
    return ((scores[:, 1:] + scores[:, :-1]) / 2).mean(1)


def _area_of_steps(fractions: Tensor, scores: Tensor) -> Tensor:
    return ((scores[:, 1:] + scores[:, :-1]) / 2).sum(1)


AREA = Exercise(
    [
        (torch.tensor([0.0, 0.25, 1.0]), torch.tensor([[1.0, 0.5, 0.0], [0.9, 0.8, 0.1]])),
        (torch.tensor([0.0, 0.1, 0.4, 1.0]), numbers(3, 4).sigmoid()),
    ],
    area,
    {
        "mean": ("The mean gives the two ends the weight of a whole step, and ignores the fractions.", _area_mean),
        "left": ("You take the left end of each step. A trapezoid takes the mean of both ends.", _area_left),
        "right": ("You take the right end of each step. A trapezoid takes the mean of both ends.", _area_right),
        "even steps": ("The steps here are not of one width: multiply by the differences of fractions.", _area_even),
        "no width": ("Each trapezoid needs its width, the difference of two fractions.", _area_of_steps),
    },
    passed="exact for the polygon through the points, whatever the steps.",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------- rank correlation


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's correlation of two vectors (n,) without equal values."""
    r, q = (x.argsort().argsort().double() for x in (first, second))
    r, q = r - r.mean(), q - q.mean()
    return (r * q).sum() / (r.square().sum() * q.square().sum()).sqrt()


def _ranks_once(first: Tensor, second: Tensor) -> Tensor:
    r, q = (x.argsort().double() for x in (first, second))
    r, q = r - r.mean(), q - q.mean()
    return (r * q).sum() / (r.square().sum() * q.square().sum()).sqrt()


def _values(first: Tensor, second: Tensor) -> Tensor:
    r, q = (x.double() - x.double().mean() for x in (first, second))
    return (r * q).sum() / (r.square().sum() * q.square().sum()).sqrt()


def _not_centred(first: Tensor, second: Tensor) -> Tensor:
    r, q = (x.argsort().argsort().double() for x in (first, second))
    return (r * q).sum() / (r.square().sum() * q.square().sum()).sqrt()


def _covariance(first: Tensor, second: Tensor) -> Tensor:
    r, q = (x.argsort().argsort().double() for x in (first, second))
    return ((r - r.mean()) * (q - q.mean())).mean()


RANKS = Exercise(
    [(numbers(7), numbers(7, seed=1)), (numbers(6, seed=2).exp(), numbers(6, seed=3))],
    rank_correlation,
    {
        "argsort once": ("One argsort gives the order, not the ranks. The argsort of the order does.", _ranks_once),
        "values": ("That is the correlation of the values. Replace them by their ranks first.", _values),
        "not centred": ("Subtract the mean rank from both, or two unrelated maps look alike.", _not_centred),
        "covariance": ("Divide by the spread of both ranks, so that the result lies between -1 and 1.", _covariance),
    },
    passed="1 for any rising change of a map, -1 for any falling one.",
)  # fmt: skip


# ---------------------------------------------------------------------------------------------- paper and pencil

ADDITIVE = Exercise(
    [],
    1.4 / 3,
    {
        "insertion": ("That is insertion: the probability that has come. Deletion counts what is left.", 1.6 / 3),
        "best": ("That is the order 5, 3, 2, the best one. Here the middle pixel goes first.", 0.4),
        "sum": ("Divide by the number of pixels: each step is a third wide.", 1.4),
        "left ends": ("You took the left end of each step. A trapezoid takes the mean of both.", 1.9 / 3),
    },
    passed="between the best order and the worst.",
)

EITHER = Exercise(
    [],
    (2.5 / 3, 2.5 / 3),
    {
        "both needed": ("That is a network that needs both pixels. Here one of the two is enough.", (0.5 / 3, 0.5 / 3)),
        "deletion low": ("After A is deleted, B alone still gives the class.", (0.5 / 3, 2.5 / 3)),
        "insertion low": ("When A has come, the probability is 1 and stays there.", (2.5 / 3, 0.5 / 3)),
        "mean of points": ("That is the mean of the four points. The ends of the curve count half.", (0.75, 0.75)),
    },
    passed="the best value insertion can have, and the worst that deletion can have.",
)

BOOTSTRAP = Exercise(
    [],
    8 / 27,
    {
        "one image": ("That is one certain image drawn three times. Two of the images have the value 0.", 1 / 27),
        "one draw": ("That is one draw. A mean of zero needs three zeros in a row.", 2 / 3),
        "two draws": ("You have drawn twice. Three images make a new sample of three.", 4 / 9),
        "without replacement": ("Without replacement every sample is the old one. Draw with replacement.", 0.0),
    },
    passed="so a band from three images would reach down to 0 at nearly every level.",
)

EXERCISES = {
    "judge-energy": ENERGY,
    "judge-area": AREA,
    "judge-ranks": RANKS,
    "judge-order": ADDITIVE,
    "judge-either": EITHER,
    "judge-bootstrap": BOOTSTRAP,
}
