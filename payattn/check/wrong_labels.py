"""Exercises of the chapter "Wrong labels"."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from payattn.check import Exercise, numbers

# ------------------------------------------------------------------------------------------------ the noise matrix


def noise_matrix(classes: int, clean: float) -> Tensor:
    """Return Q (K, K), float64: ``clean`` on the diagonal, the rest of each row spread evenly over the others."""
    matrix = torch.full((classes, classes), (1 - clean) / (classes - 1), dtype=torch.float64)
    return matrix.fill_diagonal_(clean)


def _matrix_over_all(classes: int, clean: float) -> Tensor:
    return torch.full((classes, classes), (1 - clean) / classes, dtype=torch.float64).fill_diagonal_(clean)


def _matrix_rest_each(classes: int, clean: float) -> Tensor:
    return torch.full((classes, classes), 1 - clean, dtype=torch.float64).fill_diagonal_(clean)


def _matrix_noise_on_diagonal(classes: int, clean: float) -> Tensor:
    return noise_matrix(classes, 1 - clean)


def _matrix_replaced(classes: int, clean: float) -> Tensor:
    return clean * torch.eye(classes, dtype=torch.float64) + (1 - clean) / classes


NOISE_MATRIX = Exercise(
    [(4, 0.7), (10, 0.3), (2, 0.9)],
    noise_matrix,
    {
        "over all": ("The rows do not sum to one: the other labels number K - 1, not K.", _matrix_over_all),
        "rest each": ("Each other class gets the whole rest here. It is shared by K - 1 of them.", _matrix_rest_each),
        "exchanged": ("The clean ratio belongs on the diagonal; this puts the noise level there.",
                      _matrix_noise_on_diagonal),
        "replaced": ("This redraws from all K classes, so that the new label may be the old one: another convention.",
                     _matrix_replaced),
    },
    passed="rows sum to one, and the noise level is 1 - r.",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------ the draw


def draw_labels(labels: Tensor, matrix: Tensor, uniform: Tensor) -> Tensor:
    """Return (N,): the class in whose part of the row Q[label], laid end to end, the uniform number (N,) falls."""
    return (uniform[:, None] >= matrix.cumsum(1)[labels]).sum(1)


def _draw_from_columns(labels: Tensor, matrix: Tensor, uniform: Tensor) -> Tensor:
    return draw_labels(labels, matrix.T, uniform)


def _draw_without_sum(labels: Tensor, matrix: Tensor, uniform: Tensor) -> Tensor:
    return (uniform[:, None] >= matrix[labels]).sum(1)


def _draw_first_row(labels: Tensor, matrix: Tensor, uniform: Tensor) -> Tensor:
    return draw_labels(torch.zeros_like(labels), matrix, uniform)


def _draw_shifted(labels: Tensor, matrix: Tensor, uniform: Tensor) -> Tensor:
    return draw_labels(labels, matrix, uniform) + 1


def _draw_most_likely(labels: Tensor, matrix: Tensor, uniform: Tensor) -> Tensor:
    return matrix[labels].argmax(1)


DRAW_LABELS = Exercise(
    [
        (
            torch.tensor([0, 0, 1, 1, 2, 2, 2]),
            torch.tensor([[0.6, 0.3, 0.1], [0.0, 0.8, 0.2], [0.25, 0.25, 0.5]]),
            torch.tensor([0.59, 0.61, 0.10, 0.95, 0.20, 0.30, 0.70]),
        )
    ],
    draw_labels,
    {
        "columns": ("A row of Q belongs to one true class: take Q[label], not the column.", _draw_from_columns),
        "no sum": ("Lay the entries end to end first: compare with the running sums of the row.", _draw_without_sum),
        "one row": ("Each image has the row of its own class; here all use that of class 0.", _draw_first_row),
        "shifted": ("Count the running sums that are passed; the first class is 0, not 1.", _draw_shifted),
        "most likely": ("Nothing is drawn here: the most likely label is the true one, and no label changes.",
                        _draw_most_likely),
    },
    passed="one uniform number per image, kept with the seed, fixes all labels.",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------- gradient parts


def gradient_parts(features: Tensor, logits: Tensor, given: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """Return the parts of the gradient of the mean cross-entropy with respect to the last weight (K, D).

    ``features`` (N, D) enter the linear layer, ``logits`` (N, K) leave it; the first part comes from the images whose
    ``given`` label is the ``true`` one, the second from all others, and their sum is the gradient.
    """
    error = (logits.softmax(1) - F.one_hot(given, logits.shape[1])) / len(given)
    clean = (given == true)[:, None]
    return (clean * error).T @ features, (~clean * error).T @ features


def _parts_own_mean(features: Tensor, logits: Tensor, given: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    clean, wrong = gradient_parts(features, logits, given, true)
    count = (given == true).sum()
    return clean * len(given) / count, wrong * len(given) / (len(given) - count)


def _parts_true_labels(features: Tensor, logits: Tensor, given: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    error = (logits.softmax(1) - F.one_hot(true, logits.shape[1])) / len(given)
    clean = (given == true)[:, None]
    return (clean * error).T @ features, (~clean * error).T @ features


def _parts_sum(features: Tensor, logits: Tensor, given: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    clean, wrong = gradient_parts(features, logits, given, true)
    return clean * len(given), wrong * len(given)


def _parts_downhill(features: Tensor, logits: Tensor, given: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    clean, wrong = gradient_parts(features, logits, given, true)
    return -clean, -wrong


def _parts_by_prediction(features: Tensor, logits: Tensor, given: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    error = (logits.softmax(1) - F.one_hot(given, logits.shape[1])) / len(given)
    clean = (given == logits.argmax(1))[:, None]
    return (clean * error).T @ features, (~clean * error).T @ features


GRADIENT_PARTS = Exercise(
    [(numbers(6, 4), numbers(6, 3, seed=1), torch.tensor([0, 1, 2, 0, 1, 1]), torch.tensor([0, 1, 0, 0, 2, 1]))],
    gradient_parts,
    {
        "own mean": ("Both parts are divided by the size of the whole batch; else they do not add up to the gradient.",
                     _parts_own_mean),
        "true labels": ("The loss only sees the given labels. The true ones just sort the images.", _parts_true_labels),
        "sum": ("The loss is a mean over the batch: divide by N.", _parts_sum),
        "downhill": ("This is the step, not the gradient: p minus the one-hot label, not the reverse.",
                     _parts_downhill),
        "by prediction": ("Sorted by whether the network agrees with the label. Sort by whether the label is true.",
                          _parts_by_prediction),
    },
    passed="two parts, one sum: what is left is to compare their lengths and their directions.",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------- the filter


def filter_gain(mask: Tensor, gradient: Tensor) -> Tensor:
    """Return (N,): by what factor 1 + M, (N, C, H, W), makes the gradient of each image longer."""
    return ((1 + mask) * gradient).flatten(1).norm(dim=1) / gradient.flatten(1).norm(dim=1)


def _gain_naive(mask: Tensor, gradient: Tensor) -> Tensor:
    return (mask * gradient).flatten(1).norm(dim=1) / gradient.flatten(1).norm(dim=1)


def _gain_mean_mask(mask: Tensor, gradient: Tensor) -> Tensor:
    return (1 + mask).flatten(1).mean(1)


def _gain_squared(mask: Tensor, gradient: Tensor) -> Tensor:
    return filter_gain(mask, gradient).square()


def _gain_of_batch(mask: Tensor, gradient: Tensor) -> Tensor:
    return ((1 + mask) * gradient).norm() / gradient.norm() * torch.ones(len(mask))


def _gain_inverse(mask: Tensor, gradient: Tensor) -> Tensor:
    return 1 / filter_gain(mask, gradient)


FILTER_GAIN = Exercise(
    [(numbers(3, 2, 4, 5).sigmoid(), numbers(3, 2, 4, 5, seed=1) * torch.tensor([0.1, 1.0, 5.0]).view(3, 1, 1, 1))],
    filter_gain,
    {
        "naive": ("That is the naive form, M alone. With residual fusion the factor is 1 + M.", _gain_naive),
        "mean mask": ("The mean of 1 + M does not know where the gradient is. Weigh it with the gradient.",
                      _gain_mean_mask),
        "squared": ("That is the ratio of the squared lengths; take the root.", _gain_squared),
        "batch": ("One number per image is wanted; this is one for the whole batch.", _gain_of_batch),
        "inverse": ("Upside down: filtered over unfiltered.", _gain_inverse),
    },
    passed="it lies between 1 and 2, whatever the mask.",
)  # fmt: skip


# ----------------------------------------------------------------------------------------------- forward correction


def forward_loss(logits: Tensor, labels: Tensor, matrix: Tensor) -> Tensor:
    """Return the mean of ``-log (Q^T p)`` at the given labels, with p the softmax of the logits (N, K)."""
    return F.nll_loss((logits.softmax(1) @ matrix).log(), labels)


def _forward_plain(logits: Tensor, labels: Tensor, matrix: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels)


def _forward_transposed(logits: Tensor, labels: Tensor, matrix: Tensor) -> Tensor:
    return forward_loss(logits, labels, matrix.T)


def _forward_logarithms(logits: Tensor, labels: Tensor, matrix: Tensor) -> Tensor:
    return F.nll_loss(logits.log_softmax(1) @ matrix, labels)


def _forward_logits(logits: Tensor, labels: Tensor, matrix: Tensor) -> Tensor:
    return F.cross_entropy(logits @ matrix, labels)


def _forward_backward(logits: Tensor, labels: Tensor, matrix: Tensor) -> Tensor:
    return (-logits.log_softmax(1) @ torch.linalg.inv(matrix).T)[torch.arange(len(labels)), labels].mean()


def _forward_summed(logits: Tensor, labels: Tensor, matrix: Tensor) -> Tensor:
    return len(labels) * forward_loss(logits, labels, matrix)


FORWARD_LOSS = Exercise(
    [(numbers(5, 3), torch.tensor([0, 2, 1, 1, 0]), torch.tensor([[0.7, 0.3, 0.0], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]))],
    forward_loss,
    {
        "plain": ("This is the plain cross-entropy: Q is not used yet.", _forward_plain),
        "transposed": ("The rows of Q belong to the true class: q_j = sum over k of p_k Q_kj. Here rows and columns are"
                       " exchanged.", _forward_transposed),
        "logarithms": ("Mix the probabilities and take the logarithm then, not the other way round.",
                       _forward_logarithms),
        "logits": ("Q mixes probabilities, not logits: softmax first.", _forward_logits),
        "backward": ("This is the backward correction: the losses mixed with the inverse of Q. Here p is mixed with Q.",
                     _forward_backward),
        "sum": ("Take the mean over the images.", _forward_summed),
    },
    passed="its minimum is at the clean posterior, though no label was cleaned.",
)  # fmt: skip


# -------------------------------------------------------------------------------------------------- paper and pencil

CLEAN_RATIO = Exercise(
    (),
    0.37,
    {
        "not redrawn": ("A redrawn label is the true one in one of ten cases; those stay clean.", 0.3),
        "noise level": ("That is the noise level of the matrix; asked is r, the share that stays clean.", 0.63),
        "chance": ("That is chance. The labels that are not redrawn stay clean too.", 0.1),
        "nine": ("The redrawn label is uniform over all ten classes, so it is right in 1 of 10, not 1 of 9.",
                 0.3 + 0.7 / 9),
    },
    tolerance=1e-3,
    passed='the same words, "70 % noise", mean another r: always say whether the new label may be the old one.',
)  # fmt: skip

TIPPING_LEVELS = Exercise(
    (),
    (0.9, 0.5),
    {
        "both half": ("Half is right where all wrong labels go to one class. Spread over nine, each gets a ninth.",
                      (0.5, 0.5)),
        "both nine": ("0.9 is right for wrong labels spread over nine classes. With one other class it needs less.",
                      (0.9, 0.9)),
        "clean ratios": ("These are the clean ratios r at which it tips; asked are the noise levels 1 - r.",
                         (0.1, 0.5)),
        "exchanged": ("The order: first the symmetric matrix, then the pairs.", (0.5, 0.9)),
    },
    tolerance=1e-3,
    passed="what tips the mode is the largest wrong entry of the row, not the noise level.",
)  # fmt: skip

NOISE_FLOOR = Exercise(
    (),
    -0.9 * math.log(0.9) - 0.1 * math.log(0.1 / 9),
    {
        "two outcomes": ("The wrong labels are spread over nine classes: each has the probability 0.1/9.",
                         -0.9 * math.log(0.9) - 0.1 * math.log(0.1)),
        "zero": ("Zero is the floor for clean labels. Here one image has several labels, with probabilities.", 0.0),
        "bits": ("That is in bits. The cross-entropy of this book is in nats: use the natural logarithm.",
                 (-0.9 * math.log(0.9) - 0.1 * math.log(0.1 / 9)) / math.log(2)),
        "sure": ("That is the loss of the right class alone. A label in ten is wrong and costs more.", -math.log(0.9)),
    },
    tolerance=1e-3,
    passed="a training loss below this has learned labels, not classes.",
)  # fmt: skip

SMOOTHING_SHARE = Exercise(
    (),
    1 / 3,
    {
        "noise": ("The smoothed target gives the true class its part of the uniform share too: not 1 - r.", 0.3),
        "kept": ("That is the weight of the one-hot label; asked is the share of the uniform part.", 2 / 3),
        "entry": ("That is one wrong entry of Q. The uniform part has ten such entries.", 0.3 / 9),
        "ratio": ("That is the clean ratio r.", 0.7),
    },
    tolerance=1e-3,
    passed="symmetric noise is label smoothing, with dice.",
)  # fmt: skip

DEGRADES = Exercise(
    (),
    (10.76, 11.75),
    {
        "exchanged": ("The order: first Attention-92, then ResNet-164.", (11.75, 10.76)),
        "errors": ("These are the errors at 70 %. What is lost is error with noise minus error without.",
                   (15.75, 17.21)),
        "from 10": ("That starts at 10 % of noise. The clean errors stand in another table, T6.", (10.60, 11.28)),
        "ratios": ("These are the ratios of the errors. Asked are the differences, in points.", (3.156, 3.152)),
    },
    tolerance=2e-3,
    passed="one point of difference; as ratios the two are the same.",
)  # fmt: skip

EXERCISES = {
    "noise-matrix": NOISE_MATRIX,
    "clean-ratio": CLEAN_RATIO,
    "draw-labels": DRAW_LABELS,
    "tipping-levels": TIPPING_LEVELS,
    "noise-floor": NOISE_FLOOR,
    "smoothing-share": SMOOTHING_SHARE,
    "gradient-parts": GRADIENT_PARTS,
    "filter-gain": FILTER_GAIN,
    "forward-loss": FORWARD_LOSS,
    "degrades": DEGRADES,
}
