"""Exercises of the chapter "Maps and the transfer loss"."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from payattn.check import Exercise, numbers
from payattn.transfer import activation_map, attention_map, paper_beta

# ----------------------------------------------------------------------------------------------------- the sum map


def _map_of_sum(features: Tensor, p: float) -> Tensor:
    return features.sum(1).abs().pow(p)


def _map_signed(features: Tensor, p: float) -> Tensor:
    return features.pow(p).sum(1)


def _map_rooted(features: Tensor, p: float) -> Tensor:
    return activation_map(features, p).pow(1 / p)


def _map_over_batch(features: Tensor, p: float) -> Tensor:
    return features.abs().pow(p).sum(0)


def _map_largest(features: Tensor, p: float) -> Tensor:
    return activation_map(features, p, "max")


SUM_MAP = Exercise(
    [(numbers(2, 3, 4, 5), 1), (numbers(2, 3, 4, 5, seed=1), 2), (numbers(2, 3, 4, 5, seed=2), 3)],
    activation_map,
    {
        "sum first": ("You add the channels before the absolute value: opposite signs cancel.", _map_of_sum),
        "signed": ("An odd power keeps the sign: take the absolute value before the power.", _map_signed),
        "rooted": ("No root at the end: the paper's map is the sum of the powers itself.", _map_rooted),
        "over batch": ("That is the sum over images, axis 0. Channels are axis 1.", _map_over_batch),
        "largest": ("That is F_max, the largest channel. Here all channels are added.", _map_largest),
    },
    passed="one number per position, never negative, whatever the channels.",
)  # fmt: skip


# ---------------------------------------------------------------------------------------------------- the exponent

PEAK = Exercise(
    [],
    7,
    {
        "one too few": ("Two to the sixth is 64: the smaller cell is still above a hundredth.", 6),
        "one too many": ("That is small enough, but there is a smaller exponent that already is.", 8),
        "of squares": ("That is the exponent for the squares of the cells. Compare the cells themselves.", 4),
    },
    passed="the ratio of two cells is raised to the power p; unit length does not change it.",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------- the angle

ANGLE = Exercise(
    [],
    (0.08, 0.04),
    {
        "raw maps": ("That is the distance of the raw maps. Divide each by its length first.", (2.0, 1.0)),
        "no mean": ("The first is right. The code form takes the mean over the two positions.", (0.08, 0.08)),
        "cosine": ("The first is the cosine. The squared distance is two minus twice the cosine.", (0.96, 0.48)),
        "one minus": ("One minus the cosine is half of the squared distance.", (0.04, 0.02)),
    },
    passed="two minus twice the cosine, and the mean over two positions.",
)  # fmt: skip


# -------------------------------------------------------------------------------------------------- weights of beta


def _beta_without_half(beta: float, size: tuple[int, int], batch: int) -> float:
    return paper_beta(beta, size, batch) / 2


def _beta_without_batch(beta: float, size: tuple[int, int], batch: int) -> float:
    return paper_beta(beta, size, batch) * batch


def _beta_of_side(beta: float, size: tuple[int, int], batch: int) -> float:
    return 2 * beta / (batch * size[0])


def _beta_inverse(beta: float, size: tuple[int, int], batch: int) -> float:
    return beta * batch * size[0] * size[1] / 2


BETA = Exercise(
    [(1000.0, (8, 8), 128), (10.0, (3, 5), 4)],
    paper_beta,
    {
        "half": ("The paper's form has a half in front of the square: twice as much weight makes up for it.",
                 _beta_without_half),
        "batch": ("The mean of the code runs over the images too: divide by the batch as well.", _beta_without_batch),
        "side": ("A map has height times width positions; this divides by one side.", _beta_of_side),
        "inverse": ("That is the way back, from the paper's weight to the code's.", _beta_inverse),
    },
    passed="one weight in the code is another weight per map size and batch in the paper's form.",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------ the gradient


def map_gradient(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the gradient (B, N) of the code form with respect to the student's raw maps q (B, N), by hand.

    ``2 / (B N ||q||) (s <s, t> - t)``, with s and t the maps of unit length.
    """
    length = student.norm(dim=1, keepdim=True)
    s, t = student / length, teacher / teacher.norm(dim=1, keepdim=True)
    return 2 / (student.numel() * length) * (s * (s * t).sum(1, keepdim=True) - t)


def _gradient_not_through_length(student: Tensor, teacher: Tensor) -> Tensor:
    length = student.norm(dim=1, keepdim=True)
    return 2 / (student.numel() * length) * (student / length - teacher / teacher.norm(dim=1, keepdim=True))


def _gradient_without_length(student: Tensor, teacher: Tensor) -> Tensor:
    return map_gradient(student, teacher) * student.norm(dim=1, keepdim=True)


def _gradient_of_sum(student: Tensor, teacher: Tensor) -> Tensor:
    return map_gradient(student, teacher) * student.numel()


def _gradient_uphill(student: Tensor, teacher: Tensor) -> Tensor:
    return -map_gradient(student, teacher)


def _gradient_one_cosine(student: Tensor, teacher: Tensor) -> Tensor:
    length = student.norm(dim=1, keepdim=True)
    s, t = student / length, teacher / teacher.norm(dim=1, keepdim=True)
    return 2 / (student.numel() * length) * (s * (s * t).sum() - t)


MAP_GRADIENT = Exercise(
    [(numbers(3, 6).abs() + 0.1, numbers(3, 6, seed=1).abs() + 0.1)],
    map_gradient,
    {
        "length held fixed": ("You hold the length of q fixed. It changes with q: that adds the part along s.",
                              _gradient_not_through_length),
        "no length": ("The inner derivative of the division is missing: one over the length of q.",
                      _gradient_without_length),
        "sum": ("The code form is a mean: divide by all B N elements.", _gradient_of_sum),
        "sign": ("The sign is reversed: this is the step that makes the loss smaller.", _gradient_uphill),
        "one cosine": ("Each image has its own cosine; here one sum over the whole batch is used.",
                       _gradient_one_cosine),
    },
    passed="what is left of the teacher's map after its part along the student's is taken away.",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------ two sizes


def map_at_size(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Return (B, h, w): the map F_sum^2 of features (B, C, H, W), averaged over areas to ``size``, of unit length."""
    return attention_map(features, size=size)


def _pooled_features(features: Tensor, size: tuple[int, int]) -> Tensor:
    return attention_map(F.adaptive_avg_pool2d(features, size))


def _unit_first(features: Tensor, size: tuple[int, int]) -> Tensor:
    return F.adaptive_avg_pool2d(attention_map(features)[:, None], size)[:, 0]


def _largest_of_area(features: Tensor, size: tuple[int, int]) -> Tensor:
    maps = F.adaptive_max_pool2d(activation_map(features)[:, None], size)[:, 0]
    return maps / maps.flatten(1).norm(dim=1).view(-1, 1, 1)


def _sums_to_one(features: Tensor, size: tuple[int, int]) -> Tensor:
    maps = attention_map(features, size=size)
    return maps / maps.sum((1, 2), keepdim=True)


def _not_unit(features: Tensor, size: tuple[int, int]) -> Tensor:
    return F.adaptive_avg_pool2d(activation_map(features)[:, None], size)[:, 0]


MAP_AT_SIZE = Exercise(
    [(numbers(2, 3, 4, 6), (2, 3)), (numbers(2, 2, 6, 6, seed=1), (3, 2))],
    map_at_size,
    {
        "features pooled": ("Features are averaged before the square, so opposite signs cancel. Square first.",
                            _pooled_features),
        "unit first": ("Averaging a unit map makes it shorter than one: bring it to unit length at the very end.",
                       _unit_first),
        "largest": ("This keeps the largest cell of an area; take the mean of the area.", _largest_of_area),
        "sums to one": ("This map sums to one. The transfer loss wants Euclidean length one.", _sums_to_one),
        "not unit": ("Size and squares are right; the division by the length is missing.", _not_unit),
    },
    passed="square, average, divide: in this order nothing cancels and the length is one.",
)  # fmt: skip

EXERCISES = {
    "transfer-sum-map": SUM_MAP,
    "transfer-peak": PEAK,
    "transfer-angle": ANGLE,
    "transfer-beta": BETA,
    "transfer-map-gradient": MAP_GRADIENT,
    "transfer-map-at-size": MAP_AT_SIZE,
}
