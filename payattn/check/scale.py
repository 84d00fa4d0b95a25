"""Exercises of the chapter "Scale"."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from payattn.check import Exercise, numbers

# --------------------------------------------------------------------------------------------------- sizes by formula


def resnext_parameters(channels: int) -> int:
    """Return the parameters of an identity ResNeXt unit: half the channels inside, 3x3 with 32 groups, three norms."""
    inside = channels // 2
    return 2 * channels * inside + 9 * inside**2 // 32 + 2 * (2 * inside + channels)


def _resnext_no_groups(channels: int) -> int:
    inside = channels // 2
    return 2 * channels * inside + 9 * inside**2 + 2 * (2 * inside + channels)


def _resnext_quarter(channels: int) -> int:
    inside = channels // 4
    return 2 * channels * inside + 9 * inside**2 // 32 + 2 * (2 * inside + channels)


def _resnext_no_norms(channels: int) -> int:
    return resnext_parameters(channels) - 4 * channels


def _resnext_preactivated(channels: int) -> int:
    return resnext_parameters(channels) - 2 * channels + 2 * (channels // 2)


def _resnext_groups_twice(channels: int) -> int:
    inside = channels // 2
    return 2 * channels * inside + 9 * inside**2 // 32**2 + 2 * (2 * inside + channels)


RESNEXT = Exercise(
    [(64,), (256,), (1024,)],
    resnext_parameters,
    {
        "no groups": ("The 3x3 convolution has 32 groups: each output channel reads a 32nd of the channels inside.",
                      _resnext_no_groups),
        "quarter": ("That is the width inside a bottleneck. A ResNeXt unit has half of the channels inside.",
                    _resnext_quarter),
        "no norms": ("The convolutions are right. Three norms follow, with two numbers for each of their channels.",
                     _resnext_no_norms),
        "norm before": ("The norms stand behind the convolutions: the last one has all channels, not half of them.",
                        _resnext_preactivated),
        "groups twice": ("Groups divide the weights once: 32 groups of (C/64) x (C/64) channels, not one group.",
                         _resnext_groups_twice),
    },
    passed="it is 137/128 C^2 + 4 C: hardly more than a bottleneck, with twice the channels inside.",
)  # fmt: skip


MODULE_UNITS = Exercise(
    (),
    (8, 20),
    {
        "no skips": ("The lateral skips are missing: one unit at each of the upper scales.", (8, 18)),
        "a skip each": ("There is no skip at the lowest scale: d - 1 skips, not d.", (8, 21)),
        "p once": ("p units stand before the branches and p more behind the fusion.", (6, 20)),
        "r once": ("r units on the way down and r on the way up, at each scale.", (8, 11)),
        "exchanged": ("First the units on the path through the trunk, then those of the mask.", (20, 8)),
    },
    passed="and a module of Attention-452 has 28 units, where one of Attention-92 has 12.",
)

SAME_DEPTH = Exercise(
    (),
    12,
    {
        "in all": ("That is the number of modules in the three stages together.", 36),
        "with 2, 4, 3": ("That holds with {2, 4, 3}, where a module has eight units on the trunk's path.", 6),
        "no outside": ("Twenty layers lie outside the modules, not two.", 12.5),
        "units": (
            "A module has four units of three convolutions on the trunk's path: 12 layers, in three stages.",
            144,
        ),
    },
    passed="and it would have 9,950,042 parameters for ten classes: not the printed 8.6 million either.",
)


def prints_as(count: int, printed: str) -> bool:
    """Tell whether a count, in millions and rounded to the decimals of the printed text, gives that text."""
    decimals = len(printed.partition(".")[2])
    return f"{count / 1e6:.{decimals}f}" == printed


def _prints_truncated(count: int, printed: str) -> bool:
    decimals = len(printed.partition(".")[2])
    return f"{math.floor(count / 1e6 * 10**decimals) / 10**decimals:.{decimals}f}" == printed


def _prints_wide(count: int, printed: str) -> bool:
    return abs(count / 1e6 - float(printed)) <= 0.1


def _prints_one_decimal(count: int, printed: str) -> bool:
    return f"{count / 1e6:.1f}" == printed


def _prints_percent(count: int, printed: str) -> bool:
    return abs(count / 1e6 / float(printed) - 1) < 0.05


PRINTS = Exercise(
    [(1_864_372, "1.9"), (1_841_242, "1.9"), (5_107_892, "5.1"), (31_883_432, "31.9"), (31_810_728, "31.9"),
     (1_961_000, "1.9"), (60_192_808, "60"), (1_856_000, "1.86"), (1_740_000, "1.70")],
    prints_as,
    {
        "truncated": ("This cuts the digits off. A printed number is rounded, unless it says otherwise.",
                      _prints_truncated),
        "wide": ("Within 0.1 is too wide: a number with one decimal stands for half of that to either side.",
                 _prints_wide),
        "one decimal": ("Round to as many decimals as the printed text has: 60 has none and 1.86 two.",
                        _prints_one_decimal),
        "per cent": ("A share is another rule: 5 % of 60 is 3, and of 1.9 less than 0.1.", _prints_percent),
    },
    passed="a printed 1.9 stands for everything from 1.85 to 1.95 million.",
)  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- work


HOURGLASS = Exercise(
    (),
    (1 - 2 / 4**4, 1.0),
    {
        "no skips": ("The skips are missing: three units at every scale but the lowest.", (2 / 3 * (1 - 4**-4), 2 / 3)),
        "halves": ("Half the side is a quarter of the positions.", (2.75, 3.0)),
        "a skip more": ("The lowest scale has no skip: two units, not three.", (1 - 4**-4, 1.0)),
        "units": ("These are the units. At scale k each costs a 4^k-th of one at full size.", (11, math.inf)),
    },
    passed="a deeper hourglass adds parameters without end, and never the work of one more unit.",
)


def convolution_work(
    c_in: int, c_out: int, kernel: int, stride: int, groups: int, height: int, width: int
) -> int:  # fmt: skip
    """Return the multiply-adds of a convolution whose padding is (kernel - 1) / 2, on an input of height x width."""
    positions = math.ceil(height / stride) * math.ceil(width / stride)
    return positions * c_out * (c_in // groups) * kernel**2


def _work_no_groups(c_in: int, c_out: int, kernel: int, stride: int, groups: int, height: int, width: int) -> int:
    return convolution_work(c_in, c_out, kernel, stride, 1, height, width)


def _work_no_stride(c_in: int, c_out: int, kernel: int, stride: int, groups: int, height: int, width: int) -> int:
    return convolution_work(c_in, c_out, kernel, 1, groups, height, width)


def _work_floor(c_in: int, c_out: int, kernel: int, stride: int, groups: int, height: int, width: int) -> int:
    return (height // stride) * (width // stride) * c_out * (c_in // groups) * kernel**2


def _work_line(c_in: int, c_out: int, kernel: int, stride: int, groups: int, height: int, width: int) -> int:
    return convolution_work(c_in, c_out, kernel, stride, groups, height, width) // kernel


def _work_twice(c_in: int, c_out: int, kernel: int, stride: int, groups: int, height: int, width: int) -> int:
    return 2 * convolution_work(c_in, c_out, kernel, stride, groups, height, width)


def _work_stride_once(c_in: int, c_out: int, kernel: int, stride: int, groups: int, height: int, width: int) -> int:
    return math.ceil(height * width / stride) * c_out * (c_in // groups) * kernel**2


CONVOLUTION = Exercise(
    [(3, 64, 7, 2, 1, 224, 224), (64, 64, 3, 2, 32, 9, 7), (16, 32, 1, 1, 1, 5, 5)],
    convolution_work,
    {
        "no groups": ("The groups are ignored: an output channel reads c_in / groups input channels.", _work_no_groups),
        "no stride": ("The work is done at the positions of the output, and a stride leaves fewer of them.",
                      _work_no_stride),
        "floor": ("With this padding an odd side is rounded up: 9 becomes 5 at stride 2.", _work_floor),
        "a line": ("The kernel is a square: kernel ** 2 weights for each pair of channels.", _work_line),
        "twice": ("A multiplication with its addition counts as one here.", _work_twice),
        "stride once": ("The stride acts along both axes.", _work_stride_once),
    },
    passed="positions of the output times the elements of the weight.",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- memory


def recompute_peak(outside: int, inputs: Sequence[int], insides: Sequence[int]) -> int:
    """Return the most elements kept at once: outside and all inputs always, and one module's inside at a time."""
    return outside + sum(inputs) + max(insides)


def _peak_everything(outside: int, inputs: Sequence[int], insides: Sequence[int]) -> int:
    return outside + sum(inputs) + sum(insides)


def _peak_after_forward(outside: int, inputs: Sequence[int], insides: Sequence[int]) -> int:
    return outside + sum(inputs)


def _peak_no_inputs(outside: int, inputs: Sequence[int], insides: Sequence[int]) -> int:
    return outside + max(insides)


def _peak_last(outside: int, inputs: Sequence[int], insides: Sequence[int]) -> int:
    return outside + sum(inputs) + insides[-1]


def _peak_mean(outside: int, inputs: Sequence[int], insides: Sequence[int]) -> int:
    return outside + sum(inputs) + sum(insides) // len(insides)


PEAK = Exercise(
    [(10, [4, 2, 1], [90, 40, 15]), (7, [1, 3], [20, 60])],
    recompute_peak,
    {
        "everything": ("This keeps the inside of all modules. Recomputed, only one is there at a time.",
                       _peak_everything),
        "after forward": ("So it is when the forward pass ends. In the backward pass one module is computed again.",
                          _peak_after_forward),
        "no inputs": ("The inputs of all modules are kept from the forward pass on, to compute them again.",
                      _peak_no_inputs),
        "last": ("The last module comes back first, but the largest one sets the peak.", _peak_last),
        "mean": ("A peak is set by the largest module, not by the mean.", _peak_mean),
    },
    passed="an upper bound: what lies behind the module is given back before its turn comes.",
)  # fmt: skip


TWICE = Exercise(
    (),
    0.19,
    {
        "once": ("That is one update. The forward pass runs a second time in the backward pass.", 0.1),
        "added": ("The second update also shrinks what the first one left, by 0.9.", 0.2),
        "rest": ("That is what is left of the old value.", 0.81),
        "squared": ("The new part is not multiplied with itself: 1 - 0.9 ^ 2.", 0.01),
    },
    passed="as if the momentum were 0.19: the weights are right, the evaluation is a little off.",
)


# ------------------------------------------------------------------------------------------------- the ImageNet recipe


def pca_jitter(images: Tensor, vectors: Tensor, values: Tensor, alphas: Tensor) -> Tensor:
    """Return images (N, 3, H, W) plus, in all pixels alike, sum_k alphas_nk values_k times column k of vectors."""
    shift = (alphas * values) @ vectors.T
    return images + shift[:, :, None, None]


def _pca_rows(images: Tensor, vectors: Tensor, values: Tensor, alphas: Tensor) -> Tensor:
    return images + ((alphas * values) @ vectors)[:, :, None, None]


def _pca_no_values(images: Tensor, vectors: Tensor, values: Tensor, alphas: Tensor) -> Tensor:
    return images + (alphas @ vectors.T)[:, :, None, None]


def _pca_channels(images: Tensor, vectors: Tensor, values: Tensor, alphas: Tensor) -> Tensor:
    return images + (alphas * values)[:, :, None, None]


def _pca_factor(images: Tensor, vectors: Tensor, values: Tensor, alphas: Tensor) -> Tensor:
    return images * (1 + pca_jitter(torch.zeros_like(images), vectors, values, alphas))


def _pca_first(images: Tensor, vectors: Tensor, values: Tensor, alphas: Tensor) -> Tensor:
    return pca_jitter(images, vectors, values, alphas[:1].expand_as(alphas))


PCA = Exercise(
    [
        (numbers(2, 3, 2, 2).abs(), torch.linalg.qr(numbers(3, 3, seed=1))[0], torch.tensor([0.2, 0.02, 0.005]),
         numbers(2, 3, seed=2)),
        (numbers(3, 3, 1, 2, seed=3).abs(), torch.linalg.qr(numbers(3, 3, seed=4))[0], torch.tensor([0.5, 0.1, 0.01]),
         numbers(3, 3, seed=5)),
    ],
    pca_jitter,
    {
        "rows": ("The eigenvectors are the columns of `vectors`; this takes its rows.", _pca_rows),
        "no values": ("Each direction is weighted by its eigenvalue: colour varies most along the first.",
                      _pca_no_values),
        "channels": ("alpha times eigenvalue is a step along an eigenvector, not along red, green and blue.",
                     _pca_channels),
        "factor": ("The colour is added to all pixels, it does not multiply them.", _pca_factor),
        "first": ("Every image of the batch draws its own alphas.", _pca_first),
    },
    passed="one colour for all pixels of an image, along the directions in which colours of photographs vary.",
)  # fmt: skip

LARGER_BATCH = Exercise(
    (),
    (132_500, 0.4),
    {
        "same steps": ("As many steps with four times the images are four times the epochs.", (530_000, 0.4)),
        "more steps": ("A larger batch needs fewer steps for as many epochs.", (2_120_000, 0.4)),
        "same rate": ("The steps are right. The rule of thumb multiplies the rate with the batch.", (132_500, 0.1)),
        "root": ("That is the square root rule; the question asks for the linear one.", (132_500, 0.2)),
        "smaller rate": ("The rate grows with the batch: fewer steps must go as far.", (132_500, 0.025)),
    },
    passed="an expectation, not a law: whether four times the rate still trains must be tried.",
)


# ------------------------------------------------------------------------------------------------------ several parts


def combined_gradient(gradients: Tensor, counts: Tensor) -> Tensor:
    """Return (P,): the gradient of the mean loss of a batch, from gradients (K, P) of the mean losses of its parts."""
    share = counts / counts.sum()
    return (share[:, None] * gradients).sum(0)


def _gradient_mean(gradients: Tensor, counts: Tensor) -> Tensor:
    return gradients.mean(0)


def _gradient_sum(gradients: Tensor, counts: Tensor) -> Tensor:
    return gradients.sum(0)


def _gradient_counts(gradients: Tensor, counts: Tensor) -> Tensor:
    return (counts[:, None] * gradients).sum(0)


def _gradient_inverse(gradients: Tensor, counts: Tensor) -> Tensor:
    share = (1 / counts) / (1 / counts).sum()
    return (share[:, None] * gradients).sum(0)


GRADIENT = Exercise(
    [(numbers(2, 3), torch.tensor([32.0, 16.0])), (numbers(3, 4, seed=1), torch.tensor([8.0, 8.0, 1.0]))],
    combined_gradient,
    {
        "mean": ("That is right for equal parts only. Weight each part by its share of the images.", _gradient_mean),
        "sum": ("The parts' losses are means, so their gradients must not simply be added.", _gradient_sum),
        "counts": ("That is the gradient of the summed loss; divide by the number of images.", _gradient_counts),
        "inverse": ("The smaller part gets the larger weight here. It should be the other way round.",
                    _gradient_inverse),
    },
    passed="and for equal parts it is the mean that DistributedDataParallel computes.",
)  # fmt: skip


def combined_variance(means: Tensor, variances: Tensor, counts: Tensor) -> Tensor:
    """Return (C,): the variance of all values together, from means, population variances (K, C) and counts of parts."""
    share = (counts / counts.sum())[:, None]
    mean = (share * means).sum(0)
    return (share * (variances + (means - mean) ** 2)).sum(0)


def _variance_within(means: Tensor, variances: Tensor, counts: Tensor) -> Tensor:
    return ((counts / counts.sum())[:, None] * variances).sum(0)


def _variance_equal(means: Tensor, variances: Tensor, counts: Tensor) -> Tensor:
    return combined_variance(means, variances, torch.ones_like(counts))


def _variance_between(means: Tensor, variances: Tensor, counts: Tensor) -> Tensor:
    return combined_variance(means, torch.zeros_like(variances), counts)


def _variance_plain_mean(means: Tensor, variances: Tensor, counts: Tensor) -> Tensor:
    share = (counts / counts.sum())[:, None]
    return (share * (variances + (means - means.mean(0)) ** 2)).sum(0)


def _variance_of_deviations(means: Tensor, variances: Tensor, counts: Tensor) -> Tensor:
    return ((counts / counts.sum())[:, None] * variances.sqrt()).sum(0) ** 2


VARIANCE = Exercise(
    [
        (numbers(2, 3), numbers(2, 3, seed=1).abs(), torch.tensor([3.0, 1.0])),
        (numbers(3, 2, seed=2), numbers(3, 2, seed=3).abs(), torch.tensor([2.0, 5.0, 5.0])),
    ],
    combined_variance,
    {
        "within": ("The means of the parts differ, and that difference is variance too: add (mean_k - mean)^2.",
                   _variance_within),
        "equal": ("The parts count alike here. Weight them by their counts.", _variance_equal),
        "between": ("This is the variance of the means alone; the variance inside the parts is missing.",
                    _variance_between),
        "plain mean": ("The mean of all values is the weighted one when the parts are unequal.", _variance_plain_mean),
        "deviations": ("Standard deviations do not average. Average variances.", _variance_of_deviations),
    },
    passed="within plus between: two sums per channel are all that the machines must exchange.",
)  # fmt: skip

EXERCISES = {
    "resnext-parameters": RESNEXT,
    "module-units": MODULE_UNITS,
    "same-depth": SAME_DEPTH,
    "prints-as": PRINTS,
    "hourglass-work": HOURGLASS,
    "convolution-work": CONVOLUTION,
    "recompute-peak": PEAK,
    "twice-updated": TWICE,
    "pca-jitter": PCA,
    "larger-batch": LARGER_BATCH,
    "combined-gradient": GRADIENT,
    "combined-variance": VARIANCE,
}
