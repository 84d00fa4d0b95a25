"""Exercises of the chapter "The mask branch"."""

from __future__ import annotations

import torch
from torch import Tensor

from payattn.check import Exercise, numbers

# ---------------------------------------------------------------------------------------------- sizes in the hourglass


def mask_sizes(height: int, width: int, depth: int) -> list[tuple[int, int]]:
    """Return the sizes of a map on its way down, from (height, width) over each of the depth poolings."""
    sizes = [(height, width)]
    for _ in range(depth):
        height, width = max(1, height // 2), max(1, width // 2)
        sizes.append((height, width))
    return sizes


def _sizes_padded(height: int, width: int, depth: int) -> list[tuple[int, int]]:
    return [(-(-height // 2**k), -(-width // 2**k)) for k in range(depth + 1)]


def _sizes_vanish(height: int, width: int, depth: int) -> list[tuple[int, int]]:
    return [(height // 2**k, width // 2**k) for k in range(depth + 1)]


def _sizes_floor(height: int, width: int, depth: int) -> list[tuple[int, int]]:
    sizes = [(height, width)]
    for _ in range(depth):
        height, width = max(1, (height - 1) // 2), max(1, (width - 1) // 2)
        sizes.append((height, width))
    return sizes


def _sizes_short(height: int, width: int, depth: int) -> list[tuple[int, int]]:
    return mask_sizes(height, width, depth)[1:]


def _sizes_square(height: int, width: int, depth: int) -> list[tuple[int, int]]:
    return mask_sizes(height, height, depth)


SIZES = Exercise(
    [(32, 32, 3), (33, 29, 3), (7, 5, 3)],
    mask_sizes,
    {
        "padded": ("These sizes round up, as with a padding of 1. Without padding, in ceil mode, n becomes n // 2.",
                   _sizes_padded),
        "vanishing": ("A side of one pixel stays one pixel; here it becomes 0.", _sizes_vanish),
        "floor mode": ("This is floor mode: the last window is dropped where it hangs over. Ceil mode keeps it.",
                       _sizes_floor),
        "without input": ("The list begins with the size of the input, before the first pooling.", _sizes_short),
        "square": ("The width has its own size; not every image is square.", _sizes_square),
    },
    passed="on the way up the same sizes come back, each handed down as a target.",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------- aligned corners


def aligned_weights(cells: int, pixels: int) -> Tensor:
    """Return W (pixels, cells) that resizes one axis with aligned corners: W @ row has ``pixels`` values."""
    places = torch.arange(pixels) * (cells - 1) / max(pixels - 1, 1)
    return _tent(places, cells)


def _tent(places: Tensor, cells: int) -> Tensor:
    return (1 - (places[:, None] - torch.arange(cells)).abs()).clamp(min=0)


def _aligned_half(cells: int, pixels: int) -> Tensor:
    return _tent(((torch.arange(pixels) + 0.5) * cells / pixels - 0.5).clamp(0, cells - 1), cells)


def _aligned_counts(cells: int, pixels: int) -> Tensor:
    return _tent((torch.arange(pixels) * cells / pixels).clamp(0, cells - 1), cells)


def _aligned_pixels(cells: int, pixels: int) -> Tensor:
    return _tent(torch.arange(pixels) * (cells - 1) / pixels, cells)


def _aligned_nearest(cells: int, pixels: int) -> Tensor:
    return (aligned_weights(cells, pixels) > 0.5).float()


def _aligned_transposed(cells: int, pixels: int) -> Tensor:
    return aligned_weights(cells, pixels).T


ALIGNED = Exercise(
    [(2, 4), (3, 7), (5, 8), (1, 3)],
    aligned_weights,
    {
        "half pixel": ("These are half-pixel centres (align_corners=False). Here pixel k reads at k (n - 1) / (N - 1).",
                       _aligned_half),
        "counts": ("Divide distances, not counts: from the first to the last of n cells it is n - 1 steps.",
                   _aligned_counts),
        "one too many": ("The last pixel must read the last cell: divide by pixels - 1.", _aligned_pixels),
        "nearest": ("Every pixel copies one cell. Weight the two neighbours by 1 - distance.", _aligned_nearest),
        "transposed": ("W must be (pixels, cells), so that W @ row is the resized row.", _aligned_transposed),
    },
    passed="corners stay corners, and one cell is copied everywhere.",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------- units of the mask


def mask_units(depth: int, r: int = 1) -> int:
    """Return the residual units of a hourglass with ``depth`` poolings and ``r`` units between two of them."""
    below = 0 if depth == 1 else mask_units(depth - 1, r) + 1
    return 2 * r + below


UNITS = Exercise(
    [(1, 1), (3, 1), (2, 3), (5, 2)],
    mask_units,
    {
        "no skips": ("The lateral skips are missing: one unit at every scale but the lowest.",
                     lambda depth, r: 2 * depth * r),
        "a skip too many": ("The lowest scale has nothing to skip over: d - 1 skips, not d.",
                            lambda depth, r: 2 * depth * r + depth),
        "long skips": ("A lateral skip is one unit, whatever r is.",
                       lambda depth, r: 2 * depth * r + (depth - 1) * r),
        "one way": ("There are r units on the way down and r on the way up.",
                    lambda depth, r: depth * r + depth - 1),
        "bottom once": ("The lowest scale too has r units behind the pool and r before the resize.",
                        lambda depth, r: 2 * depth * r - r + depth - 1),
    },
    passed="2 d r + d - 1: 8, 5 and 2 units in the three stages.",
)  # fmt: skip


# ---------------------------------------------------------------------------------------------- gradient of the fusion


def fusion_gradients(trunk: Tensor, mask: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    """Return dL/dT and dL/dM of H = (1 + M) T for the upstream gradient dL/dH; all of one shape."""
    return (1 + mask) * upstream, trunk * upstream


_GRADIENT_INPUTS = [
    (torch.tensor([2.0]), torch.tensor([0.5]), torch.tensor([3.0])),
    (numbers(2, 3, 4, 5), numbers(2, 3, 4, 5, seed=1).sigmoid(), numbers(2, 3, 4, 5, seed=2)),
]
GRADIENTS = Exercise(
    _GRADIENT_INPUTS,
    fusion_gradients,
    {
        "naive": ("dL/dT is that of the naive fusion M T. Here the trunk also reaches H without the mask.",
                  lambda trunk, mask, upstream: (mask * upstream, trunk * upstream)),
        "path only": ("dL/dT lacks the part that runs through the mask's factor: H = T + M T has two terms.",
                      lambda trunk, mask, upstream: (upstream, trunk * upstream)),
        "one plus trunk": ("dL/dM is T times upstream: the 1 stands beside M and is constant.",
                           lambda trunk, mask, upstream: ((1 + mask) * upstream, (1 + trunk) * upstream)),
        "exchanged": ("The two are exchanged: return dL/dT first.",
                      lambda trunk, mask, upstream: (trunk * upstream, (1 + mask) * upstream)),
        "no upstream": ("These are the factors alone. Multiply both by the gradient that arrives at H.",
                        lambda trunk, mask, upstream: (1 + mask, trunk)),
    },
    passed="the mask scales what the trunk learns, the trunk scales what the mask learns.",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------ contrast gain


def contrast_gain(trunk: Tensor, mask: Tensor, objects: Tensor) -> Tensor:
    r"""Return how much more (1 + M) T prefers the object than T does, one number per image, between 1/2 and 2.

    With ``s(X)`` the sum of ``|X|`` over channels and object positions divided by that over the other positions,
    the gain is ``s((1 + M) T) / s(T)``.

    Args:
        trunk: T, (N, C, H, W).
        mask: M, the same shape, in [0, 1].
        objects: (N, H, W), true or 1 on the object; shares of a coarse cell are weights.
    """
    return _preference((1 + mask) * trunk, objects) / _preference(trunk, objects)


def _preference(features: Tensor, objects: Tensor) -> Tensor:
    size, weight = features.abs().sum(1), objects.to(features.dtype)
    return (size * weight).sum((1, 2)) / (size * (1 - weight)).sum((1, 2))


def _gain_pooled(trunk: Tensor, mask: Tensor, objects: Tensor) -> Tensor:
    def preference(features: Tensor) -> Tensor:
        size, weight = features.abs().sum(1), objects.to(features.dtype)
        return (size * weight).sum() / (size * (1 - weight)).sum()

    return preference((1 + mask) * trunk) / preference(trunk)


def _gain_object_only(trunk: Tensor, mask: Tensor, objects: Tensor) -> Tensor:
    size, weight = trunk.abs().sum(1), objects.to(trunk.dtype)
    return (((1 + mask) * trunk).abs().sum(1) * weight).sum((1, 2)) / (size * weight).sum((1, 2))


_HALF = torch.zeros(2, 3, 4)
_HALF[0, :2, :2] = 1
_HALF[1, 1:, 3] = 1
GAIN = Exercise(
    [
        (torch.tensor([[[[2.0, 1.0]]]]), torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[1.0, 0.0]]])),
        (numbers(2, 3, 3, 4), numbers(2, 3, 3, 4, seed=1).mul(2).sigmoid(), _HALF),
    ],
    contrast_gain,
    {
        "naive": ("This uses M T. The module hands on (1 + M) T.",
                  lambda trunk, mask, objects: _preference(mask * trunk, objects) / _preference(trunk, objects)),
        "mask alone": ("This judges the factor 1 + M alone. Where T is zero, the mask has nothing to scale.",
                       lambda trunk, mask, objects: _preference(1 + mask, objects)),
        "fused alone": ("This is the preference of H. Divide by that of T: the trunk has one of its own.",
                        lambda trunk, mask, objects: _preference((1 + mask) * trunk, objects)),
        "signed": ("Features have signs that cancel in the sums. Take absolute values.",
                   lambda trunk, mask, objects: _signed((1 + mask) * trunk, objects) / _signed(trunk, objects)),
        "object only": ("This is the mean factor on the object. It is above 1 for every mask; compare with the ground.",
                        _gain_object_only),
        "pooled": ("One number for all images together. Sum over channels and positions only.", _gain_pooled),
        "upside down": ("The two are exchanged: what the module does stands on top.",
                        lambda trunk, mask, objects: 1 / contrast_gain(trunk, mask, objects)),
    },
    passed="no mask in (0, 1) can raise it above 2, or push it below one half.",
)  # fmt: skip


def _signed(features: Tensor, objects: Tensor) -> Tensor:
    total, weight = features.sum(1), objects.to(features.dtype)
    return (total * weight).sum((1, 2)) / (total * (1 - weight)).sum((1, 2))


# ----------------------------------------------------------------------------------------- where the mask's spread lies


def mask_shares(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the shares of a mask's variance that lie between channels, between places, and in the image; sum 1.

    Args:
        mask: M, (N, C, H, W): ``M = mean_c + (mean_ci - mean_c) + (M - mean_ci)``, with ``mean_c`` over images and
            positions and ``mean_ci`` over images.
    """
    channel = mask.mean((0, 2, 3), keepdim=True)
    place = mask.mean(0, keepdim=True)
    total = (mask - mask.mean()).square().mean()
    parts = channel - mask.mean(), place - channel, mask - place
    first, second, third = (part.square().mean() / total for part in parts)
    return first, second, third


def _shares_roots(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    first, second, third = (share.sqrt() for share in mask_shares(mask))
    return first, second, third


def _shares_absolute(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    total = (mask - mask.mean()).square().mean()
    first, second, third = (share * total for share in mask_shares(mask))
    return first, second, third


def _shares_overlap(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    total, place = (mask - mask.mean()).square().mean(), mask.mean(0, keepdim=True)
    first, _, third = mask_shares(mask)
    return first, (place - mask.mean()).square().mean() / total, third


def _shares_all_channels(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    total, place = (mask - mask.mean()).square().mean(), mask.mean((0, 1), keepdim=True)
    first, _, _ = mask_shares(mask)
    second = (place - mask.mean()).square().mean() / total
    return first, second, 1 - first - second


SHARES = Exercise(
    [
        (torch.tensor([[[[0.0, 0.0]], [[0.5, 0.5]]], [[[0.0, 0.0]], [[1.0, 0.5]]]]),),
        (numbers(3, 4, 2, 5).sigmoid(),),
    ],
    mask_shares,
    {
        "roots": ("These are shares of standard deviations; only variances add up to the whole.", _shares_roots),
        "absolute": ("These are variances. Divide each by the variance of all values.", _shares_absolute),
        "overlap": ("The second share still holds the first: subtract the channel's mean before you square.",
                    _shares_overlap),
        "one pattern": ("Each channel has its own pattern of places: average over images alone, not over channels.",
                        _shares_all_channels),
    },
    passed="three parts that do not overlap: they sum to 1 for every mask.",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------ paper and pencil

UNIT = Exercise(
    (),
    (7, -7, 2, 0),
    {
        "rectified shortcut": (
            "The shortcut reads x itself, before BN and ReLU: its negative numbers pass.",
            (7, -6, 2, 3),
        ),
        "no ReLU": (
            "BN and ReLU stand before the first convolution: the two negative numbers do not enter the sum.",
            (1, -1, 2, -3),
        ),
        "no shortcut": ("That is what the three convolutions give. Add the input.", (6, -6, 0, 3)),
        "ReLU at the end": ("Nothing stands behind the sum: this is the pre-activation unit.", (7, 0, 2, 0)),
    },
    tolerance=1e-6,
    passed="the second number is negative, and stays so: the sum is raw.",
)

COST = Exercise(
    (),
    31 / 32,
    {
        "full size": ("Eight units, but none at full size. A quarter of the positions is a quarter of the work.", 8.0),
        "no skips": ("The lateral skips are missing: one unit each at the two upper scales.", 21 / 32),
        "sides": ("Half the side is a quarter of the positions.", 2.5),
        "bottom once": ("The lowest scale has two units, one behind the pool and one before the resize.", 61 / 64),
    },
    tolerance=2e-3,
    passed="a mask of eight units costs less than one unit at full size; its head costs more.",
)

STACK = Exercise(
    (),
    (125 / 64, 1 / 64),
    {
        "added": ("Factors of modules in a row are multiplied, not added up.", (1.75, 0.75)),
        "one module": ("That is one module; there are three in a row.", (1.25, 0.25)),
        "exchanged": ("The two are exchanged: residual first.", (1 / 64, 125 / 64)),
        "half open": ("Those are masks of one half. Here M is one quarter.", (27 / 8, 1 / 8)),
    },
    tolerance=1e-3,
    passed="residual grows mildly where naive is nearly gone.",
)

ADDITIONS = Exercise(
    (),
    (2, 5),
    {
        "skip at the top": ("There are d - 1 lateral skips: nothing is added after the last resize.", (3, 6)),
        "trunk forgotten": (
            "Such code adds one tensor more: at the full size, before the head, the trunk's output.",
            (2, 4),
        ),
        "trunk only": (
            "Such code adds the running tensor at every scale with a skip too, not the trunk alone.",
            (2, 3),
        ),
        "at every resize": ("Of d resizes the last has no lateral skip, in any reading.", (3, 5)),
        "exchanged": ("The two are exchanged: the authors' reading first.", (5, 2)),
    },
    tolerance=1e-6,
    passed="d - 1 against 2 (d - 1) + 1: the second tensor of a resize is a size, not a summand.",
)

EXERCISES = {
    "mask-sizes": SIZES,
    "aligned-weights": ALIGNED,
    "mask-units": UNITS,
    "fusion-gradients": GRADIENTS,
    "contrast-gain": GAIN,
    "mask-shares": SHARES,
    "unit-by-hand": UNIT,
    "mask-branch-cost": COST,
    "stacked-modules": STACK,
    "skip-additions": ADDITIONS,
}
