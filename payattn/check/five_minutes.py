"""Exercises of the chapter "Attention in five minutes"."""

from __future__ import annotations

import torch
from torch import Tensor

from payattn.check import Exercise, numbers

# ------------------------------------------------------------------------------------------ softmax over positions


def softmax_positions(scores: Tensor) -> Tensor:
    """Return weights (N, H, W) that are positive and sum to 1 over the H W positions of each image."""
    return scores.flatten(1).softmax(1).reshape(scores.shape)


def _softmax_of_rows(scores: Tensor) -> Tensor:
    return scores.softmax(-1)


def _softmax_of_columns(scores: Tensor) -> Tensor:
    return scores.softmax(-2)


def _softmax_of_batch(scores: Tensor) -> Tensor:
    return scores.flatten().softmax(0).reshape(scores.shape)


def _softmax_over_images(scores: Tensor) -> Tensor:
    return scores.softmax(0)


def _exp_not_divided(scores: Tensor) -> Tensor:
    return scores.exp()


def _divided_without_exp(scores: Tensor) -> Tensor:
    return scores / scores.sum((1, 2), keepdim=True)


def _softmax_overflows(scores: Tensor) -> Tensor:
    weights = scores.exp()
    return weights / weights.sum((1, 2), keepdim=True)


SOFTMAX = Exercise(
    [(numbers(2, 2, 3),), (200 * numbers(2, 3, 3, seed=1),)],
    softmax_positions,
    {
        "rows": ("Each row sums to 1, not each image. Make one axis of the H W positions first: flatten(1).",
                 _softmax_of_rows),
        "columns": ("Each column sums to 1, not each image. On (N, H, W) the axis -2 is the height alone.",
                    _softmax_of_columns),
        "batch": ("All images share one sum, so they compete for attention. Keep the axis of the images: flatten(1).",
                  _softmax_of_batch),
        "images": ("The softmax runs over the images: axis 0 is the batch. It belongs over the positions of one image.",
                   _softmax_over_images),
        "no sum": ("The weights are exp(c), but they do not sum to 1. Divide by their sum over the positions.",
                   _exp_not_divided),
        "no exp": ("Scores can be negative, weights cannot: take exp before dividing by the sum.",
                   _divided_without_exp),
        "overflow": ("Right for small scores, but exp(200) overflows to infinity. Use torch.softmax, or subtract the "
                     "largest score of each image first, which changes no weight.", _softmax_overflows),
    },
    passed="each image's weights are positive and sum to 1, also for large scores.",
)  # fmt: skip


# ---------------------------------------------------------------------------------------------- weighted average


def attend(local: Tensor, weights: Tensor) -> Tensor:
    """Return the descriptor (N, M): the sum over positions of weight times local feature."""
    return (local * weights[:, None]).sum((2, 3))


def _attend_mean(local: Tensor, weights: Tensor) -> Tensor:
    return (local * weights[:, None]).mean((2, 3))


def _attend_without_sum(local: Tensor, weights: Tensor) -> Tensor:
    return local * weights[:, None]


def _attend_over_channels(local: Tensor, weights: Tensor) -> Tensor:
    return (local * weights[:, None]).sum(1)


def _attend_unweighted(local: Tensor, weights: Tensor) -> Tensor:
    return local.mean((2, 3))


def _attend_hard(local: Tensor, weights: Tensor) -> Tensor:
    best = weights.flatten(1).argmax(1)
    return local.flatten(2)[torch.arange(len(local)), :, best]


ATTEND = Exercise(
    [
        (torch.tensor([[[[1.0, 2.0]], [[3.0, 5.0]]]]), torch.tensor([[[0.75, 0.25]]])),
        (numbers(2, 3, 2, 4), softmax_positions(numbers(2, 2, 4, seed=1))),
    ],
    attend,
    {
        "mean": ("The weights sum to 1 already: a sum over the positions is the average. mean() divides by n again.",
                 _attend_mean),
        "no sum": ("This is every local feature times its weight. Sum it over the positions, axes 2 and 3.",
                   _attend_without_sum),
        "channels": ("The sum runs over the channels. Sum over the positions: one number per channel is left.",
                     _attend_over_channels),
        "unweighted": ("This is global average pooling: the weights are not used.", _attend_unweighted),
        "hard": ("This takes the one best position (hard attention). Soft attention takes all, by their weights.",
                 _attend_hard),
    },
    passed="a weighted average of the local features, one number per channel.",
)  # fmt: skip


# ------------------------------------------------------------------------------------- GAP is uniform attention


def gap_by_attention(local: Tensor) -> Tensor:
    """Return global average pooling (N, M) of local (N, M, H, W), written with weights 1 / (H W)."""
    n, _, height, width = local.shape
    return attend(local, torch.full((n, height, width), 1 / (height * width)))


def _gap_ones(local: Tensor) -> Tensor:
    return local.sum((2, 3))


def _gap_height(local: Tensor) -> Tensor:
    return local.sum((2, 3)) / local.shape[2]


def _gap_channels(local: Tensor) -> Tensor:
    return local.sum((2, 3)) / local.shape[1]


def _gap_max(local: Tensor) -> Tensor:
    return local.amax((2, 3))


def _gap_over_channels(local: Tensor) -> Tensor:
    return local.mean(1)


GAP = Exercise(
    [(torch.arange(12.0).reshape(1, 2, 2, 3),), (numbers(3, 4, 2, 5),)],
    gap_by_attention,
    {
        "ones": ("The weights are 1 everywhere, so they sum to n and not to 1. Uniform weights are 1/n.", _gap_ones),
        "height": ("The weights are 1/H. There are n = H W positions, so a uniform weight is 1/(H W).", _gap_height),
        "channels": ("The sum is divided by the number of channels. Count the positions instead: H W.", _gap_channels),
        "max": ("This is max pooling: all weight on the largest value of each channel.", _gap_max),
        "axis": ("This averages over the channels. Average over the positions, axes 2 and 3.", _gap_over_channels),
    },
    passed="global average pooling is attention that does not attend.",
)  # fmt: skip


# ------------------------------------------------------------------------------------------- the pointing game


def pointing_game(maps: Tensor, masks: Tensor) -> Tensor:
    """Return (N,) bool: whether the largest value of each map lies on the mask of its image."""
    best = maps.flatten(1).argmax(1, keepdim=True)
    return masks.flatten(1).gather(1, best)[:, 0]


def _pointing_smallest(maps: Tensor, masks: Tensor) -> Tensor:
    return masks.flatten(1).gather(1, maps.flatten(1).argmin(1, keepdim=True))[:, 0]


def _pointing_any_overlap(maps: Tensor, masks: Tensor) -> Tensor:
    return ((maps > maps.mean((1, 2), keepdim=True)) & masks).flatten(1).any(1)


def _pointing_whole_batch(maps: Tensor, masks: Tensor) -> Tensor:
    return (masks & (maps == maps.max())).flatten(1).any(1)


def _pointing_rate(maps: Tensor, masks: Tensor) -> Tensor:
    return pointing_game(maps, masks).float().mean()


def _pointing_exchanged(maps: Tensor, masks: Tensor) -> Tensor:
    best, height = maps.flatten(1).argmax(1), maps.shape[1]
    return masks[torch.arange(len(maps)), best % height, best // height]


POINTING = Exercise(
    [
        (torch.tensor([[[1.0, 2.0, 6.0], [0.0, 4.0, 3.0]]]), torch.tensor([[[0, 0, 1], [0, 0, 0]]]).bool()),
        (numbers(8, 3, 4, seed=2), numbers(8, 3, 4, seed=3) > 0),
    ],
    pointing_game,
    {
        "smallest": ("This follows the smallest value of the map. The network looks where the map is largest: argmax.",
                     _pointing_smallest),
        "overlap": ("This asks whether any bright part touches the object. The pointing game takes the one largest "
                    "value.", _pointing_any_overlap),
        "batch": ("The largest value of the whole batch decides. Each map has its own maximum: flatten(1).argmax(1).",
                  _pointing_whole_batch),
        "rate": ("This is the hit rate, one number. Return the hits of each image; their mean is the rate.",
                 _pointing_rate),
        "exchanged": ("Row and column are exchanged. An index k of a flattened (H, W) map is row k // W, column k % W.",
                      _pointing_exchanged),
    },
    passed="one hit or miss per image; the mean over a test set is the hit rate.",
)  # fmt: skip


# -------------------------------------------------------------------------------------- IoU at the object's area


def iou_at_area(attention: Tensor, mask: Tensor) -> Tensor:
    """Return the IoU of a mask (H, W) with the k largest cells of a map (H, W), k the number of cells of the mask."""
    k = int(mask.sum())
    chosen = torch.zeros(mask.numel(), dtype=torch.bool)
    chosen[attention.flatten().topk(k).indices] = True
    chosen = chosen.reshape(mask.shape)
    return (chosen & mask).sum() / (chosen | mask).sum()


def _chosen(attention: Tensor, mask: Tensor) -> Tensor:
    return attention >= attention.flatten().sort(descending=True).values[int(mask.sum()) - 1]


def _iou_recall(attention: Tensor, mask: Tensor) -> Tensor:
    return (_chosen(attention, mask) & mask).sum() / mask.sum()


def _iou_half_of_maximum(attention: Tensor, mask: Tensor) -> Tensor:
    chosen = attention >= attention.max() / 2
    return (chosen & mask).sum() / (chosen | mask).sum()


def _iou_double_count(attention: Tensor, mask: Tensor) -> Tensor:
    chosen = _chosen(attention, mask)
    return (chosen & mask).sum() / (chosen.sum() + mask.sum())


def _iou_mean_threshold(attention: Tensor, mask: Tensor) -> Tensor:
    chosen = attention >= attention.mean()
    return (chosen & mask).sum() / (chosen | mask).sum()


def _iou_inputs() -> list[tuple[Tensor, Tensor]]:
    first = torch.tensor([[0.40, 0.21, 0.01], [0.02, 0.22, 0.14]])
    second = torch.arange(16.0).reshape(4, 4) ** 2
    masks = torch.tensor([[1, 1, 0], [0, 0, 0]]).bool(), (torch.arange(16).reshape(4, 4) % 4 >= 2)
    return [(first, masks[0]), (second, masks[1])]


IOU = Exercise(
    _iou_inputs(),
    iou_at_area,
    {
        "recall": ("This divides by the mask's area: the share of the object that is found. IoU divides by the union.",
                   _iou_recall),
        "half": ("The threshold is half of the maximum. Here the k largest cells count, k the area of the mask.",
                 _iou_half_of_maximum),
        "mean": ("The threshold is the mean of the map. Here the k largest cells count, k the area of the mask.",
                 _iou_mean_threshold),
        "double": ("The intersection counts twice below the line. The union is A + B minus the intersection.",
                   _iou_double_count),
    },
    passed="with the area given, the IoU asks for the shape and the place alone.",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------ paper and pencil

UNIFORM_WEIGHT = Exercise(
    (),
    1 / 64,
    {
        "side": ("1/8 is right for a row of 8 positions. A map of 8 x 8 has more.", 1 / 8),
        "both sides": ("A map of 8 x 8 has 8 times 8 positions, not 8 plus 8.", 1 / 16),
        "count": ("That is the number of positions. Their weights sum to 1.", 64.0),
    },
    tolerance=5e-4,
    passed="64 positions share a sum of 1. Compare the numbers under a map with this one.",
)

THREE_POSITIONS = Exercise(
    (),
    (1 / 8, 2 / 8, 5 / 8),
    {
        "exchanged": ("The larger score gets the larger weight.", (5 / 8, 2 / 8, 1 / 8)),
        "no exp": ("The weights follow exp(c), not c: a score of 0 still gets weight, since exp(0) = 1.",
                   (0.0, 0.301, 0.699)),
        "no sum": ("These are exp(c). Divide each by their sum.", (1.0, 2.0, 5.0)),
        "by the largest": ("This divides by the largest exponential. Divide by the sum of all three.", (0.2, 0.4, 1.0)),
        "sigmoid": ("Each weight is a sigmoid of its own score. Softmax weights share a sum of 1.",
                    (1 / 2, 2 / 3, 5 / 6)),
    },
    tolerance=5e-3,
    passed="the weights are as 1 to 2 to 5, and sum to 1.",
)  # fmt: skip

EXERCISES = {
    "softmax-positions": SOFTMAX,
    "attend": ATTEND,
    "gap-by-attention": GAP,
    "pointing-game": POINTING,
    "iou-at-area": IOU,
    "uniform-weight": UNIFORM_WEIGHT,
    "three-positions": THREE_POSITIONS,
}
