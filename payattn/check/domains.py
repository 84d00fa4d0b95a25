"""Exercises of the chapter "New domains and fine detail"."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from payattn.check import Exercise, numbers

# ------------------------------------------------------------------------------------------------ standardising


def standardise(train: Tensor, test: Tensor) -> Tensor:
    """Return ``test`` (N, D) shifted and scaled by mean and deviation (over n) of ``train``, a deviation 0 as 1."""
    deviation = train.std(0, correction=0)
    return (test - train.mean(0)) / torch.where(deviation > 0, deviation, 1)


def _standardised_by_itself(train: Tensor, test: Tensor) -> Tensor:
    return standardise(test, test)


def _standardised_by_both(train: Tensor, test: Tensor) -> Tensor:
    return standardise(torch.cat([train, test]), test)


def _standardised_by_one_number(train: Tensor, test: Tensor) -> Tensor:
    return (test - train.mean()) / train.std(correction=0)


def _standardised_by_variance(train: Tensor, test: Tensor) -> Tensor:
    deviation = train.std(0, correction=0)
    return (test - train.mean(0)) / torch.where(deviation > 0, deviation**2, 1)


def _standardised_dead(train: Tensor, test: Tensor) -> Tensor:
    return (test - train.mean(0)) / train.std(0, correction=0)


def _standardised_not_centred(train: Tensor, test: Tensor) -> Tensor:
    deviation = train.std(0, correction=0)
    return test / torch.where(deviation > 0, deviation, 1)


STANDARDISE = Exercise(
    [
        (torch.tensor([[1.0, 5.0], [4.0, 5.0]]), torch.tensor([[7.0, 6.0]])),
        (torch.tensor([[1.0, 5.0, 0.0], [4.0, 5.0, 9.0], [4.0, 5.0, 3.0]]),
         torch.tensor([[7.0, 6.0, 1.0], [1.0, 5.0, 2.0]])),
    ],
    standardise,
    {
        "itself": ("Mean and deviation of the test images are used. At test time an image may come alone.",
                   _standardised_by_itself),
        "both": ("Mean and deviation of training and test images together: the test set leaks into the classifier.",
                 _standardised_by_both),
        "one number": ("One mean and one deviation for all features. Each feature, each column, has its own.",
                       _standardised_by_one_number),
        "variance": ("This divides by the variance. Divide by its root, so that the result has no unit.",
                     _standardised_by_variance),
        "dead": ("A feature that is constant in training has deviation 0, and dividing by it gives infinity or NaN.",
                 _standardised_dead),
        "centred": ("The mean is not subtracted.", _standardised_not_centred),
    },
    passed="and a feature that is dead in training may wake up abroad.",
)  # fmt: skip


# --------------------------------------------------------------------------------------------------- the margin


def squared_hinge(scores: Tensor, signs: Tensor) -> Tensor:
    """Return max(0, 1 - y s)^2 of scores s (N,) and signs y = +1 or -1 (N,)."""
    return (1 - signs * scores).clamp(min=0) ** 2


def _hinge(scores: Tensor, signs: Tensor) -> Tensor:
    return (1 - signs * scores).clamp(min=0)


def _hinge_without_margin(scores: Tensor, signs: Tensor) -> Tensor:
    return (-signs * scores).clamp(min=0) ** 2


def _hinge_without_clamp(scores: Tensor, signs: Tensor) -> Tensor:
    return (1 - signs * scores) ** 2


def _hinge_without_sign(scores: Tensor, signs: Tensor) -> Tensor:
    return (1 - scores).clamp(min=0) ** 2


def _hinge_wrong_sign(scores: Tensor, signs: Tensor) -> Tensor:
    return (1 + signs * scores).clamp(min=0) ** 2


SQUARED_HINGE = Exercise(
    [
        (torch.tensor([2.0, 0.5, -3.0, 1.0]), torch.tensor([1.0, 1.0, 1.0, -1.0])),
        (numbers(6), numbers(6, seed=1).sign()),
    ],
    squared_hinge,
    {
        "hinge": ("This is the hinge itself. LinearSVC squares it by default, which makes its slope continuous.",
                  _hinge),
        "no margin": ("A point on the right side still costs while its margin is below 1: start from 1 - y s.",
                      _hinge_without_margin),
        "no clamp": ("A point far on the right side costs nothing: cut off at 0 before you square.",
                     _hinge_without_clamp),
        "no sign": ("The sign of the class is missing. For y = -1 a low score is the good one.", _hinge_without_sign),
        "wrong sign": ("The right side is punished: the margin is y s, and it is subtracted from 1.",
                       _hinge_wrong_sign),
    },
    passed="only points with a margin below 1 cost anything.",
)  # fmt: skip


def svm_gradient(weight: Tensor, x: Tensor, signs: Tensor, cost: float) -> Tensor:
    """Return w - 2 C sum_n h_n y_n x_n (D,) with h_n = max(0, 1 - y_n <w, x_n>), x (N, D), signs (N,)."""
    hinge = (1 - signs * (x @ weight)).clamp(min=0)
    return weight - 2 * cost * (hinge * signs) @ x


def _gradient_without_weight(weight: Tensor, x: Tensor, signs: Tensor, cost: float) -> Tensor:
    return svm_gradient(weight, x, signs, cost) - weight


def _gradient_of_hinge(weight: Tensor, x: Tensor, signs: Tensor, cost: float) -> Tensor:
    inside = ((1 - signs * (x @ weight)) > 0).to(x)
    return weight - cost * (inside * signs) @ x


def _gradient_without_two(weight: Tensor, x: Tensor, signs: Tensor, cost: float) -> Tensor:
    return (svm_gradient(weight, x, signs, cost) + weight) / 2


def _gradient_uphill(weight: Tensor, x: Tensor, signs: Tensor, cost: float) -> Tensor:
    return 2 * weight - svm_gradient(weight, x, signs, cost)


def _gradient_mean(weight: Tensor, x: Tensor, signs: Tensor, cost: float) -> Tensor:
    return svm_gradient(weight, x, signs, cost / len(x))


SVM_GRADIENT = Exercise(
    [
        (torch.tensor([1.0, 0.0]), torch.tensor([[-2.0, 1.0], [-0.5, 1.0], [0.5, 1.0]]),
         torch.tensor([-1.0, -1.0, 1.0]), 1.0),
        (numbers(3), numbers(5, 3, seed=1), numbers(5, seed=2).sign(), 0.3),
    ],
    svm_gradient,
    {
        "no weight": ("The first term is missing: half the squared length of w has the gradient w.",
                      _gradient_without_weight),
        "hinge": ("This is the gradient of the hinge, all points inside count alike. Squared, they count by h.",
                  _gradient_of_hinge),
        "no two": ("The derivative of h squared is 2 h: a factor 2 is missing.", _gradient_without_two),
        "uphill": ("The sign of the second term is wrong: to go along y x raises the margin and lowers the loss.",
                   _gradient_uphill),
        "mean": ("The errors are summed, not averaged: C is the cost of one point.", _gradient_mean),
    },
    passed="points with a margin of 1 or more do not pull at all.",
)  # fmt: skip


# ------------------------------------------------------------------------------------------- classes by their name


def class_numbers(learned: list[str], new: list[str], aliases: dict[str, str]) -> list[int]:
    """Return for each new class the number of the learned class of that name (or alias), -1 where there is none."""
    names = [aliases.get(name, name) for name in new]
    return [learned.index(name) if name in learned else -1 for name in names]


def _numbers_by_place(learned: list[str], new: list[str], aliases: dict[str, str]) -> list[int]:
    return list(range(len(new)))


def _numbers_without_alias(learned: list[str], new: list[str], aliases: dict[str, str]) -> list[int]:
    return class_numbers(learned, new, {})


def _numbers_turned(learned: list[str], new: list[str], aliases: dict[str, str]) -> list[int]:
    return class_numbers(new, learned, {other: name for name, other in aliases.items()})


def _numbers_left_out(learned: list[str], new: list[str], aliases: dict[str, str]) -> list[int]:
    return [number for number in class_numbers(learned, new, aliases) if number >= 0]


def _numbers_zero(learned: list[str], new: list[str], aliases: dict[str, str]) -> list[int]:
    return [max(number, 0) for number in class_numbers(learned, new, aliases)]


CLASS_NUMBERS = Exercise(
    [
        (["cat", "automobile", "frog", "horse"], ["car", "horse", "cat", "monkey"], {"car": "automobile"}),
        (["b", "c", "a"], ["a", "x", "b", "c"], {}),
    ],
    class_numbers,
    {
        "place": ("These are the places in the new list. The network's numbers follow the list it was trained with.",
                  _numbers_by_place),
        "alias": ("The other name is not used: the new set may say car where the network learned automobile.",
                  _numbers_without_alias),
        "turned": ("This maps learned classes to new ones. For each new class give the learned number.",
                   _numbers_turned),
        "left out": ("A new class without a partner is left out, and all later ones move up. Write -1 for it.",
                     _numbers_left_out),
        "zero": ("A class without a partner became class 0, so its images can count as right. Write -1.",
                 _numbers_zero),
    },
    passed="names decide, not numbers.",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------ a small detail


def detail_weight(advantage: float, cells: int, positions: int) -> float:
    """Return the weight of ``cells`` of ``positions`` whose scores are higher by ``advantage``, after the softmax."""
    mark = cells * math.exp(advantage)
    return mark / (mark + positions - cells)


def _weight_as_average(advantage: float, cells: int, positions: int) -> float:
    return cells / positions


def _weight_of_one_cell(advantage: float, cells: int, positions: int) -> float:
    return detail_weight(advantage, cells, positions) / cells


def _weight_counted_twice(advantage: float, cells: int, positions: int) -> float:
    mark = cells * math.exp(advantage)
    return mark / (mark + positions)


def _weight_as_sigmoid(advantage: float, cells: int, positions: int) -> float:
    return 1 / (1 + math.exp(-advantage))


def _weight_without_exp(advantage: float, cells: int, positions: int) -> float:
    mark = cells * (1 + advantage)
    return mark / (mark + positions - cells)


DETAIL_WEIGHT = Exercise(
    [(math.log(63), 1, 64), (2.0, 4, 256)],
    detail_weight,
    {
        "average": ("This is the weight without attention. The scores raise it by their exponential.",
                    _weight_as_average),
        "one cell": ("This is the weight of a single cell. The detail covers several: add them up.",
                     _weight_of_one_cell),
        "twice": ("The cells of the detail are counted twice: the others are n - k.", _weight_counted_twice),
        "sigmoid": ("This is a detail of one cell against one other. There are n - k others.", _weight_as_sigmoid),
        "no exp": ("The softmax takes the exponential of the scores.", _weight_without_exp),
    },
    passed="with 64 positions an advantage of 4.1 gives one cell half of the weight.",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------ paper and pencil

MARGIN_WIDTH = Exercise(
    (),
    0.4,
    {
        "one side": ("That is the distance from the border to one margin line. The lane has two sides.", 0.2),
        "length": ("That is the length of w. The lane is wide when w is short.", 5.0),
        "inverse": ("Nearly: the lane is 2 over the length of w, and the length is a root.", 2 / 25),
        "sum": ("The length of (3, 4) is not 7: it is the root of 9 + 16.", 2 / 7),
    },
    tolerance=1e-3,
    passed="a short w is a wide lane, which is why its length is kept small.",
)

BY_NUMBER = Exercise(
    (),
    (0.48, 0.72),
    {
        "exchanged": ("Exchanged: comparing numbers loses more classes than comparing names.", (0.72, 0.48)),
        "all classes": ("By number only six classes can be right, and by name nine: one class was never learned.",
                        (0.8, 0.8)),
        "shared only": ("The first is right. The second is over all ten classes: images of monkeys count as wrong.",
                        (0.48, 0.8)),
        "seven": ("Count again: bird, car, horse and monkey stand at other numbers or are missing.", (0.56, 0.72)),
    },
    tolerance=1e-3,
    passed="0.6 and 0.9 times the accuracy on what was learned.",
)  # fmt: skip

EXERCISES = {
    "standardise": STANDARDISE,
    "squared-hinge": SQUARED_HINGE,
    "svm-gradient": SVM_GRADIENT,
    "class-numbers": CLASS_NUMBERS,
    "detail-weight": DETAIL_WEIGHT,
    "margin-width": MARGIN_WIDTH,
    "by-number": BY_NUMBER,
}
