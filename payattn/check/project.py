"""Exercises of the chapter "A project"."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from payattn.check import Exercise

# ------------------------------------------------------------------------------------------------ leaks


def duplicates(train: Tensor, test: Tensor) -> int:
    """Return how many test images (N, 3, H, W) are, pixel by pixel, among the training images."""
    known = {image.numpy().tobytes() for image in train}
    return sum(image.numpy().tobytes() in known for image in test)


def _duplicates_pairs(train: Tensor, test: Tensor) -> int:
    return sum(torch.equal(a, b) for a in train for b in test)


def _duplicates_in_place(train: Tensor, test: Tensor) -> int:
    return sum(torch.equal(a, b) for a, b in zip(train, test, strict=False))


def _duplicates_of_train(train: Tensor, test: Tensor) -> int:
    return duplicates(test, train)


def _duplicates_by_sum(train: Tensor, test: Tensor) -> int:
    known = {int(image.sum()) for image in train}
    return sum(int(image.sum()) in known for image in test)


def _duplicates_any(train: Tensor, test: Tensor) -> int:
    return int(duplicates(train, test) > 0)


def _some(*values: int) -> Tensor:
    """Small images of which each value makes another one; negative ones are the mirrored image."""
    base = torch.arange(12).view(3, 2, 2)
    images = [(base * abs(v)).flip(-1) if v < 0 else base * v for v in values]
    return torch.stack(images).to(torch.uint8)


DUPLICATES = Exercise(
    [(_some(1, 2, 3, 3), _some(3, 4, 1, -2, 5)), (_some(7, 8, 7), _some(1, 7)), (_some(1, 2, 3), _some(1, 1, 9, -1))],
    duplicates,
    {
        "pairs": ("A test image that stands twice in the training set is still one test image: count images, not "
                  "pairs.", _duplicates_pairs),
        "in place": ("You compare images with the same number. A copy may stand anywhere.", _duplicates_in_place),
        "of train": ("You count training images that are in the test set. Asked are the test images.",
                     _duplicates_of_train),
        "by sum": ("Two images can have the same sum: a mirrored one is another image. Compare all pixels.",
                   _duplicates_by_sum),
        "any": ("Return how many, not whether.", _duplicates_any),
    },
    passed="near copies, cropped or compressed again, need more; start with the exact ones.",
)  # fmt: skip

# ------------------------------------------------------------------------------------------------ what a test can see


def images_needed(accuracy: float, error: float) -> float:
    """Return how many test images bring the standard error of an accuracy to ``error``: ``a (1 - a) / error^2``."""
    return accuracy * (1 - accuracy) / error**2


IMAGES = Exercise(
    [],
    1600,
    {
        "no square": ("The error falls with the root of n: the aim must be squared.", 16),
        "twice the error": ("That gives two points. Half the error needs four times the images.", 400),
        "linear": ("Half the error needs four times the images, not twice.", 800),
        "only a": ("The variance of a yes or no is a (1 - a), not a.", 8000),
        "spread": ("Divide a (1 - a), not its root, by the square of the error.", 4000),
    },
    passed="and a set of 400, as many have, sees two points.",
)


def any_by_luck(share: float, claims: int) -> float:
    """Return how likely one or more of so many independent claims comes out by luck: ``1 - (1 - p)^k``."""
    return 1 - (1 - share) ** claims


LUCK = Exercise(
    [],
    any_by_luck(1 / 20, 6),
    {
        "added": ("Adding counts cases twice in which two claims come out.", 6 / 20),
        "all": ("That is the chance that all six come out.", (1 / 20) ** 6),
        "none": ("That is the chance that none does.", (19 / 20) ** 6),
        "exactly one": ("That is exactly one. Asked is one or more.", 6 * (1 / 20) * (19 / 20) ** 5),
        "single": ("That is one claim alone.", 1 / 20),
    },
    passed="more than a quarter of such projects find something where nothing is.",
)


def paired(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """Return the mean of ``a_k - b_k`` over the seeds k, and the standard error of that mean."""
    differences = [x - y for x, y in zip(a, b, strict=True)]
    mean = sum(differences) / len(differences)
    variance = sum((d - mean) ** 2 for d in differences) / (len(differences) - 1)
    return mean, math.sqrt(variance / len(differences))


def _paired_population(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    mean, error = paired(a, b)
    return mean, error * math.sqrt((len(a) - 1) / len(a))


def _paired_spread(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    mean, error = paired(a, b)
    return mean, error * math.sqrt(len(a))


def _paired_unpaired(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    def variance(x: Sequence[float]) -> float:
        return sum((v - sum(x) / len(x)) ** 2 for v in x) / (len(x) - 1)

    return paired(a, b)[0], math.sqrt((variance(a) + variance(b)) / len(a))


def _paired_reversed(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    return paired(b, a)


def _paired_variance(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    mean, error = paired(a, b)
    return mean, error**2


PAIRED = Exercise(
    [([0.81, 0.85, 0.90], [0.80, 0.82, 0.88]), ([0.5, 0.7, 0.6, 0.9], [0.6, 0.65, 0.6, 0.7])],
    paired,
    {
        "population": ("The variance of a sample is divided by n - 1.", _paired_population),
        "spread": ("That is the spread of the differences. That of their mean is smaller by the root of n.",
                   _paired_spread),
        "unpaired": ("These are two separate spreads. Take the difference seed by seed first; what a seed does to both "
                     "sides then falls out.", _paired_unpaired),
        "reversed": ("The sign is the other way round: first minus second.", _paired_reversed),
        "variance": ("That is its square; take the root.", _paired_variance),
    },
    passed="pairing pays where the seed moves both sides together.",
)  # fmt: skip

# ------------------------------------------------------------------------------------------------ choosing


def chosen(runs: Sequence[Mapping[str, float]]) -> float:
    """Return the test accuracy of the run with the best validation accuracy, the first of equals."""
    return max(runs, key=lambda run: run["validation"])["test"]


def _chosen_on_test(runs: Sequence[Mapping[str, float]]) -> float:
    return max(run["test"] for run in runs)


def _chosen_validation(runs: Sequence[Mapping[str, float]]) -> float:
    return max(run["validation"] for run in runs)


def _chosen_mean(runs: Sequence[Mapping[str, float]]) -> float:
    return sum(run["test"] for run in runs) / len(runs)


def _chosen_last(runs: Sequence[Mapping[str, float]]) -> float:
    return runs[-1]["test"]


_RUNS = [
    {"lr": 0.2, "validation": 0.71, "test": 0.73}, {"lr": 0.1, "validation": 0.80, "test": 0.78},
    {"lr": 0.05, "validation": 0.79, "test": 0.82}, {"lr": 0.02, "validation": 0.60, "test": 0.61},
]  # fmt: skip

CHOSEN = Exercise(
    [(_RUNS,), (_RUNS[::-1][:3],)],
    chosen,
    {
        "on test": ("That is the best of the test accuracies: the test set has chosen, and can no longer judge.",
                    _chosen_on_test),
        "validation": ("That is the accuracy on the validation images. They have chosen; report the test.",
                       _chosen_validation),
        "mean": ("A mean over rates is the accuracy of no network you would use.", _chosen_mean),
        "last": ("The order of the runs says nothing.", _chosen_last),
    },
    passed="lower than the best test accuracy, and honest.",
)  # fmt: skip

EXERCISES = {
    "project-duplicates": DUPLICATES,
    "project-images": IMAGES,
    "project-luck": LUCK,
    "project-paired": PAIRED,
    "project-chosen": CHOSEN,
}
