"""Exercises of the chapter "Segmentation without masks"."""

from __future__ import annotations

import torch
from torch import Tensor

from payattn.check import Exercise, numbers

# -------------------------------------------------------------------------------------------- bilinear weights


def bilinear_weights(cells: int, pixels: int) -> Tensor:
    """Return W (pixels, cells) that enlarges one axis: half-pixel centres (align_corners=False), edges repeated."""
    places = ((torch.arange(pixels) + 0.5) * cells / pixels - 0.5).clamp(0, cells - 1)
    return _tent(places, cells)


def _tent(places: Tensor, cells: int) -> Tensor:
    return (1 - (places[:, None] - torch.arange(cells)).abs()).clamp(min=0)


def _weights_corners(cells: int, pixels: int) -> Tensor:
    return _tent(torch.arange(pixels) * (cells - 1) / (pixels - 1), cells)


def _weights_without_half(cells: int, pixels: int) -> Tensor:
    return _tent((torch.arange(pixels) * cells / pixels).clamp(0, cells - 1), cells)


def _weights_without_clamp(cells: int, pixels: int) -> Tensor:
    return _tent((torch.arange(pixels) + 0.5) * cells / pixels - 0.5, cells)


def _weights_nearest(cells: int, pixels: int) -> Tensor:
    return (bilinear_weights(cells, pixels) > 0.5).float()


def _weights_transposed(cells: int, pixels: int) -> Tensor:
    return bilinear_weights(cells, pixels).T


BILINEAR = Exercise(
    [(2, 4), (3, 7)],
    bilinear_weights,
    {
        "corners": ("This is align_corners=True: the outer cells lie on the outer pixels. Use half-pixel centres.",
                    _weights_corners),
        "no half": ("Half a pixel is missing: pixel i has its centre at i + 1/2, and cell k at k + 1/2.",
                    _weights_without_half),
        "no clamp": ("At the edges the weights of a pixel do not sum to 1. Clamp its place to 0 .. h - 1.",
                     _weights_without_clamp),
        "nearest": ("Every pixel copies one cell: that is nearest. Weight the two neighbours by 1 - distance.",
                    _weights_nearest),
        "transposed": ("W must be (pixels, cells), so that W @ a is the enlarged row. Here it is transposed.",
                       _weights_transposed),
    },
    passed="every row sums to 1, so no enlarged value leaves the range of the map.",
)  # fmt: skip


# -------------------------------------------------------------------------------------------- Otsu's threshold


def otsu_split(values: Tensor) -> float:
    """Return the threshold t among the values (n,) for which w0 w1 (mu0 - mu1)^2 of [v <= t] and [v > t] is largest."""
    return _split(values, lambda w, low, high: w * (1 - w) * (low - high) ** 2)


def _split(values: Tensor, score) -> float:  # type: ignore[no-untyped-def]
    def worth(t: Tensor) -> float:
        low = values <= t
        return float(score(low.float().mean(), values[low].mean(), values[~low].mean()))

    return float(max(values.unique()[:-1], key=worth))


def _otsu_mean(values: Tensor) -> float:
    return float(values.mean())


def _otsu_unweighted(values: Tensor) -> float:
    return _split(values, lambda w, low, high: (low - high) ** 2)


def _otsu_smallest(values: Tensor) -> float:
    return _split(values, lambda w, low, high: -w * (1 - w) * (low - high) ** 2)


def _otsu_upper(values: Tensor) -> float:
    return float(values[values > otsu_split(values)].min())


def _otsu_even(values: Tensor) -> float:
    return _split(values, lambda w, low, high: w * (1 - w))


def _otsu_range(values: Tensor) -> float:
    return float((values.min() + values.max()) / 2)


OTSU = Exercise(
    [
        (torch.tensor([0.0, 1.0, 1.0, 2.0, 4.0, 10.0]),),
        (torch.tensor([0.0, 0.0, 0.0, 1.0, 5.0, 6.0, 9.0]),),
    ],
    otsu_split,
    {
        "mean": ("That is the mean of all values: another rule. Try each value as t and score the split.", _otsu_mean),
        "unweighted": ("The weights w0 w1 are missing: without them one far pixel makes a class of its own.",
                       _otsu_unweighted),
        "smallest": ("This minimises the variance between the classes. It is the variance within that must be small.",
                     _otsu_smallest),
        "upper": ("This is the lowest value of the upper class. The region is v > t, so t belongs below.", _otsu_upper),
        "even": ("Only w0 w1 is used, so the classes are of even size. Multiply by the squared distance of the means.",
                 _otsu_even),
        "range": ("That is the middle of the range, which looks at two pixels only.", _otsu_range),
    },
    passed="the same split as the package's, which sorts the values into 256 bins first.",
)  # fmt: skip


# ---------------------------------------------------------------------------------------------- Jaccard's index


def jaccard_index(predicted: Tensor, masks: Tensor) -> Tensor:
    """Return (N,): for each image the pixels in both of bool (N, H, W), divided by the pixels in either."""
    return (predicted & masks).sum((1, 2)) / (predicted | masks).sum((1, 2))


def _jaccard_dice(predicted: Tensor, masks: Tensor) -> Tensor:
    return 2 * (predicted & masks).sum((1, 2)) / (predicted.sum((1, 2)) + masks.sum((1, 2)))


def _jaccard_accuracy(predicted: Tensor, masks: Tensor) -> Tensor:
    return (predicted == masks).float().mean((1, 2))


def _jaccard_precision(predicted: Tensor, masks: Tensor) -> Tensor:
    return (predicted & masks).sum((1, 2)) / predicted.sum((1, 2))


def _jaccard_recall(predicted: Tensor, masks: Tensor) -> Tensor:
    return (predicted & masks).sum((1, 2)) / masks.sum((1, 2))


def _jaccard_pooled(predicted: Tensor, masks: Tensor) -> Tensor:
    return (predicted & masks).sum() / (predicted | masks).sum()


def _jaccard_twice(predicted: Tensor, masks: Tensor) -> Tensor:
    return (predicted & masks).sum((1, 2)) / (predicted.sum((1, 2)) + masks.sum((1, 2)))


JACCARD = Exercise(
    [
        (torch.tensor([[[1, 1, 0], [1, 0, 0]], [[0, 0, 1], [0, 1, 1]]]).bool(),
         torch.tensor([[[0, 1, 1], [0, 0, 0]], [[0, 0, 1], [0, 0, 1]]]).bool()),
        (numbers(3, 4, 5) > 0, numbers(3, 4, 5, seed=1) > 0.5),
    ],
    jaccard_index,
    {
        "dice": ("That is Dice's index, 2 |P and M| / (|P| + |M|), which is never smaller. Divide by the union.",
                 _jaccard_dice),
        "accuracy": ("That is the share of pixels that are right, ground included: high for small objects always.",
                     _jaccard_accuracy),
        "precision": ("You divide by the predicted region alone: what was missed costs nothing.", _jaccard_precision),
        "recall": ("You divide by the mask alone: marking the whole image would score 1.", _jaccard_recall),
        "pooled": ("One number for all images, in which large objects count more. Sum over H and W only.",
                   _jaccard_pooled),
        "counted twice": ("Pixels in both regions are counted twice below the line. Divide by the union.",
                          _jaccard_twice),
    },
    passed="what is missed and what is too much both cost.",
)  # fmt: skip


# ------------------------------------------------------------------------------------- the best region of whole cells


def best_cells(mask: Tensor, cells: int) -> float:
    """Return the largest Jaccard index that a union of whole cells can reach on mask (H, W); cells divides both."""
    counts, area = _counts(mask, cells)
    found = counts.sort(descending=True).values.cumsum(0)
    taken = area * torch.arange(1, len(found) + 1)
    return float((found / (mask.sum() + taken - found)).max())


def _counts(mask: Tensor, cells: int) -> tuple[Tensor, int]:
    """Object pixels in each cell, and pixels per cell."""
    height, width = (side // cells for side in mask.shape)
    parts = mask.float().unflatten(0, (cells, height)).unflatten(2, (cells, width))
    return parts.sum((1, 3)).flatten(), height * width


def _score(mask: Tensor, chosen: Tensor, counts: Tensor, area: int) -> float:
    found = counts[chosen].sum()
    return float(found / (mask.sum() + area * chosen.sum() - found))


def _cells_touched(mask: Tensor, cells: int) -> float:
    counts, area = _counts(mask, cells)
    return _score(mask, counts > 0, counts, area)


def _cells_majority(mask: Tensor, cells: int) -> float:
    counts, area = _counts(mask, cells)
    return _score(mask, 2 * counts >= area, counts, area)


def _cells_true_area(mask: Tensor, cells: int) -> float:
    counts, area = _counts(mask, cells)
    k = round(float(mask.sum()) / area)
    chosen = torch.zeros(len(counts), dtype=torch.bool)
    chosen[counts.argsort(descending=True)[:k]] = True
    return _score(mask, chosen, counts, area)


def _cells_best_single(mask: Tensor, cells: int) -> float:
    counts, area = _counts(mask, cells)
    return float((counts / (mask.sum() + area - counts)).max())


def _cells_coverage(mask: Tensor, cells: int) -> float:
    counts, area = _counts(mask, cells)
    return float((counts.sort(descending=True).values / area)[0])


_BLOCKS = torch.tensor([
    [1, 1, 0, 0, 0, 0, 0, 0],
    [1, 1, 0, 0, 0, 0, 0, 0],
    [1, 0, 1, 0, 0, 0, 0, 0],
    [1, 0, 0, 0, 0, 0, 0, 0],
    [1, 1, 0, 0, 0, 0, 1, 0],
    [0, 1, 0, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 0, 0, 0],
]).bool()  # fmt: skip
_SPARSE = torch.tensor([
    [1, 0, 0, 1],
    [0, 0, 0, 0],
    [0, 0, 0, 0],
    [0, 1, 0, 0],
]).bool()  # fmt: skip

CELLS = Exercise(
    [(_BLOCKS, 4), (_SPARSE, 2)],
    best_cells,
    {
        "touched": ("This takes every cell the object touches. A cell with one pixel in it costs more than it gives.",
                    _cells_touched),
        "majority": ("This takes the cells that are at least half full. The best bar depends on the score: try each k.",
                     _cells_majority),
        "true area": ("This takes as many cells as the object has area. The best number may be larger or smaller.",
                      _cells_true_area),
        "single": ("This scores each cell alone. Take the k fullest cells together, for every k.", _cells_best_single),
        "coverage": ("That is how full the fullest cell is, not the score of a region.", _cells_coverage),
    },
    passed="no map of this many cells, enlarged by copying, can score more.",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------ paper and pencil

STROKE = Exercise(
    (),
    1 / 3,
    {
        "share": ("That is the share of the stroke that is found (and Dice's index). Divide by the union.", 1 / 2),
        "twice": ("You divide by |P| + |M|. The pixel in both regions is counted twice there.", 1 / 4),
        "width": ("Two over three: the union is right. How wide is the part in both?", 2 / 3),
        "none": ("The two strokes still share a column of pixels.", 0.0),
    },
    tolerance=2e-3,
    passed="(w - d) / (w + d): a slip of one pixel costs two thirds of the score.",
)  # fmt: skip

EMPTY = Exercise(
    (),
    (0.40, 0.60),
    {
        "ignored": ("That is the mean over the images with an object. Here the others count too.", (0.50, 0.50)),
        "same": ("The first is right. An empty region on an empty mask now counts as 1, not as 0.", (0.40, 0.40)),
        "added": ("The first is right. The 20 images add 1 each to a sum that is divided by 100.", (0.40, 0.70)),
        "exchanged": ("The two are exchanged.", (0.60, 0.40)),
        "divided": ("You divide the sum by 80, the images with an object. The mean runs over all 100.", (0.50, 0.75)),
    },
    tolerance=2e-3,
    passed="one set of maps, three scores: a paper must say which images it counts.",
)  # fmt: skip

JOINED = Exercise(
    (),
    (1, 1, 0),
    {
        "first level": ("You followed the first level alone. Join the two numbers of each pixel.", (0, 0, 0)),
        "second level": ("You followed the second level alone. Join the two numbers of each pixel.", (1, 1, 1)),
        "mean": ("Product and maximum are right. For the mean, add the two numbers of each pixel.", (1, 0, 0)),
        "product": ("Mean and maximum are right. 1.0 times 0.2 is less than 0.5 times 0.9.", (0, 1, 0)),
    },
    tolerance=1e-6,
    passed="the product wants both, the maximum is content with one.",
)  # fmt: skip

EXERCISES = {
    "bilinear-weights": BILINEAR,
    "otsu-split": OTSU,
    "jaccard-index": JACCARD,
    "best-cells": CELLS,
    "stroke-shift": STROKE,
    "empty-masks": EMPTY,
    "joined-levels": JOINED,
}
