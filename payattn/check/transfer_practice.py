"""Exercises of the chapter "Transfer in practice", and the functions of its equations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from payattn.check import Exercise

Shape = tuple[int, int, int]

# ---------------------------------------------------------------------------------------------------- pairs of layers


def pairs_by_size(teacher: Mapping[str, Shape], student: Mapping[str, Shape]) -> list[tuple[str, str]]:
    """Return pairs (teacher's layer, student's layer): of each (H, W) that both have, the last layer on either side."""
    last = {shape[1:]: name for name, shape in teacher.items()}
    mine = {shape[1:]: name for name, shape in student.items()}
    return [(last[size], mine[size]) for size in last if size in mine]


def _pairs_first(teacher: Mapping[str, Shape], student: Mapping[str, Shape]) -> list[tuple[str, str]]:
    def first(shapes: Mapping[str, Shape]) -> dict[tuple[int, int], str]:
        return {shape[1:]: name for name, shape in reversed(list(shapes.items()))}

    one, two = first(teacher), first(student)
    return [(one[size], two[size]) for size in dict.fromkeys(s[1:] for s in teacher.values()) if size in two]


def _pairs_exchanged(teacher: Mapping[str, Shape], student: Mapping[str, Shape]) -> list[tuple[str, str]]:
    return [(mine, theirs) for theirs, mine in pairs_by_size(teacher, student)]


def _pairs_with_channels(teacher: Mapping[str, Shape], student: Mapping[str, Shape]) -> list[tuple[str, str]]:
    last, mine = ({shape: name for name, shape in shapes.items()} for shapes in (teacher, student))
    return [(last[shape], mine[shape]) for shape in last if shape in mine]


def _pairs_by_name(teacher: Mapping[str, Shape], student: Mapping[str, Shape]) -> list[tuple[str, str]]:
    return [(name, name) for name in teacher if name in student]


def _pairs_by_height(teacher: Mapping[str, Shape], student: Mapping[str, Shape]) -> list[tuple[str, str]]:
    last, mine = ({shape[1]: name for name, shape in shapes.items()} for shapes in (teacher, student))
    return [(last[height], mine[height]) for height in last if height in mine]


PAIRS_BY_SIZE = Exercise(
    [
        (
            {"stem": (64, 16, 12), "a": (64, 16, 12), "b": (128, 8, 6), "c": (256, 4, 3), "d": (512, 2, 2)},
            {"a": (16, 16, 12), "x": (16, 16, 12), "y": (48, 8, 6), "b": (32, 8, 8), "z": (256, 4, 3)},
        ),
        ({"one": (8, 4, 4)}, {"two": (3, 4, 4)}),
    ],
    pairs_by_size,
    {
        "first": ("These are the first layers of each size. A map is read where the work at that size is done: the"
                  " last.", _pairs_first),
        "exchanged": ("Student and teacher are exchanged: a pair is (teacher's layer, student's layer).",
                      _pairs_exchanged),
        "channels": ("You compare channels too. A map has none: only height and width must fit.", _pairs_with_channels),
        "names": ("You look for equal names. Equal names mean nothing in two networks; go by the size.",
                  _pairs_by_name),
        "height": ("You compare heights only. Images need not be square: compare height and width.", _pairs_by_height),
    },
    passed="it fits any two networks; what it proposes still wants a look.",
)  # fmt: skip

# --------------------------------------------------------------------------------------------- a teacher that changes


def running_after(start: float, mean: float, batches: int, momentum: float = 0.1) -> float:
    """Return the running mean of a batch norm in training mode after some batches that all have one mean."""
    kept = (1 - momentum) ** batches
    return kept * start + (1 - kept) * mean


RUNNING_DRIFT = Exercise(
    (),
    1 - 0.9**3,
    {
        "linear": ("Each batch takes a tenth of the way that is left, not of the whole way.", 0.3),
        "one": ("That is after one batch.", 0.1),
        "kept": ("That is what is left of the old value. Asked is the new one.", 0.9**3),
        "momentum": ("PyTorch's momentum 0.1 is the weight of the new batch, not of the old value.", 1 - 0.1**3),
    },
    tolerance=1e-3,
    passed="seven batches, and more than half of what the teacher knew about its features is replaced.",
)  # fmt: skip

# ------------------------------------------------------------------------------------------------- the weight of maps


def size_shares(sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Return the share (J,) of each map in the transfer loss where all maps are turned by the same angle."""
    inverse = torch.tensor([1 / (height * width) for height, width in sizes], dtype=torch.float64)
    return inverse / inverse.sum()


SMALLEST_SHARE = Exercise(
    (),
    16 / 21,
    {
        "equal": ("Each map gets the same angle, but its loss is divided by its number of positions.", 1 / 3),
        "largest": ("That is the share of the largest map. Dividing by N favours the smallest.", 1 / 21),
        "middle": ("That is the share of the middle map.", 4 / 21),
        "sides": ("You divided by the side. The mean is over all positions: the side squared.", 4 / 7),
        "ratio": ("That is how many times the largest map's loss it is. Asked is its share of the sum.", 16.0),
    },
    tolerance=1e-3,
    passed="one beta for all maps is mostly a beta for the last one.",
)  # fmt: skip


def rescaled_beta(beta: float, points: int, reference: int = 3) -> float:
    """Return the beta for some number of transfer points that keeps the total weight of ``reference`` points."""
    return reference * beta / points


# ---------------------------------------------------------------------------------------------------- several devices


def joint_loss(losses: Tensor, counts: Tensor) -> Tensor:
    """Return the mean over all images, from the means (G,) over the parts of a batch with ``counts`` (G,) images."""
    return (losses * counts).sum() / counts.sum()


def _joint_sum(losses: Tensor, counts: Tensor) -> Tensor:
    return losses.sum()


def _joint_plain(losses: Tensor, counts: Tensor) -> Tensor:
    return losses.mean()


def _joint_total(losses: Tensor, counts: Tensor) -> Tensor:
    return (losses * counts).sum()


def _joint_first(losses: Tensor, counts: Tensor) -> Tensor:
    return losses[0]


def _joint_twice(losses: Tensor, counts: Tensor) -> Tensor:
    return joint_loss(losses, counts) / len(losses)


JOINT_LOSS = Exercise(
    [
        (torch.tensor([0.5, 0.2, 0.4]), torch.tensor([4.0, 4.0, 2.0])),
        (torch.tensor([1.0, 3.0]), torch.tensor([1.0, 7.0])),
    ],
    joint_loss,
    {
        "sum": ("The sum of means: that is the bug. Each device more makes beta larger.", _joint_sum),
        "plain": ("A plain mean is right for equal parts only. The last batch of an epoch is rarely split evenly.",
                  _joint_plain),
        "total": ("That is the sum over all images; the loss is their mean.", _joint_total),
        "first": ("That is what the first device sees. The others have images too.", _joint_first),
        "twice": ("Divided by the number of devices once too often.", _joint_twice),
    },
    passed="now the number of devices is no hyper-parameter.",
)  # fmt: skip

# ------------------------------------------------------------------------------------------------------ choosing beta


def standard_error(accuracy: float, images: int) -> float:
    """Return the standard deviation of an accuracy that is measured on some number of images, by their draw alone."""
    return math.sqrt(accuracy * (1 - accuracy) / images)


def best_of(candidates: int) -> float:
    """Return the expected largest of some number of independent standard normal numbers."""
    z = torch.linspace(-9, 9, 18001, dtype=torch.float64)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    below = 0.5 * (1 + torch.erf(z / math.sqrt(2)))
    return torch.trapezoid(z * candidates * density * below ** (candidates - 1), z).item()


VALIDATION_SIZE = Exercise(
    (),
    1600,
    {
        "spread": ("That makes the standard deviation of a single answer fit. That of a mean falls with the root of"
                   " n.", 40),
        "half": ("You took accuracy one half, the worst case: 0.25 instead of 0.8 times 0.2.", 2500),
        "no one minus": ("The variance of one answer is a (1 - a), not a.", 8000),
        "percent": ("One point is 0.01, and its square 0.0001.", 16),
        "two errors": ("That is for two standard errors within one point. Asked is one.", 6400),
    },
    tolerance=1e-3,
    passed="and a difference of two such accuracies wants twice as many, unless both see the same images.",
)  # fmt: skip

# ------------------------------------------------------------------------------------------------------------- memory


def cache_bytes(images: int, sizes: Sequence[tuple[int, int]], classes: int = 0) -> int:
    """Return the bytes of cached maps of these sizes, of logits of ``classes`` if any, and of 16 bytes per image."""
    return images * (4 * (sum(height * width for height, width in sizes) + classes) + 16)


def _cache_no_bytes(images: int, sizes: Sequence[tuple[int, int]], classes: int = 0) -> int:
    return images * (sum(height * width for height, width in sizes) + classes + 16)


def _cache_no_logits(images: int, sizes: Sequence[tuple[int, int]], classes: int = 0) -> int:
    return cache_bytes(images, sizes)


def _cache_no_index(images: int, sizes: Sequence[tuple[int, int]], classes: int = 0) -> int:
    return cache_bytes(images, sizes, classes) - 16 * images


def _cache_once(images: int, sizes: Sequence[tuple[int, int]], classes: int = 0) -> int:
    return cache_bytes(images, sizes, classes) - 16 * images + 16


def _cache_sides(images: int, sizes: Sequence[tuple[int, int]], classes: int = 0) -> int:
    return images * (4 * (sum(height + width for height, width in sizes) + classes) + 16)


CACHE_BYTES = Exercise(
    [(100, [(8, 8), (4, 6)], 10), (50_000, [(32, 32), (16, 16), (8, 8)], 0), (7, [(5, 3)], 1000)],
    cache_bytes,
    {
        "elements": ("You counted numbers. A float32 has four bytes.", _cache_no_bytes),
        "logits": ("With distillation the teacher's logits are kept too: one number per class.", _cache_no_logits),
        "index": ("Sixteen bytes per image are missing: its fingerprint and its place.", _cache_no_index),
        "once": ("The sixteen bytes of fingerprint and place are needed for each image, not once.", _cache_once),
        "sides": ("A map has H times W numbers, not H plus W.", _cache_sides),
    },
    passed="no channels in it: this is why maps can be kept and features cannot.",
)  # fmt: skip

# ------------------------------------------------------------------------------------------------------------- counts


def basic_block(channels: int) -> int:
    """Return the parameters of a basic residual block: two 3x3 convolutions and two norms, C channels in and out."""
    return 18 * channels**2 + 4 * channels


# ----------------------------------------------------------------------------------------------------- wrong teachers


def distilled_target(teacher: Tensor, labels: Tensor, alpha: float = 0.9) -> Tensor:
    """Return (N, K): the prediction with the smallest distillation loss at temperature 1, from a teacher's (N, K)."""
    truth = torch.nn.functional.one_hot(labels, teacher.shape[1]).to(teacher)
    return alpha * teacher + (1 - alpha) * truth


def _target_exchanged(teacher: Tensor, labels: Tensor, alpha: float = 0.9) -> Tensor:
    return distilled_target(teacher, labels, 1 - alpha)


def _target_teacher(teacher: Tensor, labels: Tensor, alpha: float = 0.9) -> Tensor:
    return teacher.clone()


def _target_sum(teacher: Tensor, labels: Tensor, alpha: float = 0.9) -> Tensor:
    return alpha * teacher + torch.nn.functional.one_hot(labels, teacher.shape[1]).to(teacher)


def _target_smoothed(teacher: Tensor, labels: Tensor, alpha: float = 0.9) -> Tensor:
    return distilled_target(torch.full_like(teacher, 1 / teacher.shape[1]), labels, alpha)


def _target_hard(teacher: Tensor, labels: Tensor, alpha: float = 0.9) -> Tensor:
    hard = torch.nn.functional.one_hot(teacher.argmax(1), teacher.shape[1]).to(teacher)
    return distilled_target(hard, labels, alpha)


DISTILLED_TARGET = Exercise(
    [
        (torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]), torch.tensor([1, 2]), 0.9),
        (torch.tensor([[0.6, 0.4]]), torch.tensor([1]), 0.25),
    ],
    distilled_target,
    {
        "exchanged": ("alpha belongs to the teacher; the label has the rest.", _target_exchanged),
        "teacher": ("That is the teacher alone. The label still has the weight 1 - alpha.", _target_teacher),
        "sum": ("The two weights must sum to one, else it is no distribution.", _target_sum),
        "smoothed": ("That is label smoothing: the teacher's answer in place of the uniform one is wanted.",
                     _target_smoothed),
        "hard": ("You took the teacher's decision. Its probabilities are what distillation uses.", _target_hard),
    },
    passed="compare two of its entries, and you know when a student repeats its teacher's mistake.",
)  # fmt: skip

# --------------------------------------------------------------------------------------------------------------- cost


def transfer_share(student: float, teacher: float) -> float:
    """Return the share of the teacher's forward pass in a training step, from multiply-adds of one forward pass."""
    return teacher / (3 * student + teacher)


def _share_forward(student: float, teacher: float) -> float:
    return teacher / (student + teacher)


def _share_overhead(student: float, teacher: float) -> float:
    return teacher / (3 * student)


def _share_student(student: float, teacher: float) -> float:
    return 3 * student / (3 * student + teacher)


def _share_two(student: float, teacher: float) -> float:
    return teacher / (2 * student + teacher)


TRANSFER_SHARE = Exercise(
    [(26.66, 101.11), (1.0, 1.0), (1814.0, 3664.0)],
    transfer_share,
    {
        "forward": ("The student has a backward pass as well, of about two forward passes.", _share_forward),
        "overhead": ("That is the extra work relative to a plain step. Asked is the share of the whole step.",
                     _share_overhead),
        "student": ("That is the student's share.", _share_student),
        "two": ("Forward and backward are three forward passes: two gradients, for inputs and for weights.",
                _share_two),
    },
    passed="without augmentation a cache pays it once, not once per epoch.",
)  # fmt: skip

EXERCISES = {
    "pairs-by-size": PAIRS_BY_SIZE,
    "running-drift": RUNNING_DRIFT,
    "smallest-share": SMALLEST_SHARE,
    "joint-loss": JOINT_LOSS,
    "validation-size": VALIDATION_SIZE,
    "cache-bytes": CACHE_BYTES,
    "distilled-target": DISTILLED_TARGET,
    "transfer-share": TRANSFER_SHARE,
}
