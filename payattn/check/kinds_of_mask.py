"""Exercises of the chapter "What kind of mask"."""

from __future__ import annotations

import torch
from torch import Tensor

from payattn.check import Exercise, numbers
from payattn.residual import channel_activation, spatial_activation

# ------------------------------------------------------------------------------------------------ the channel mask


def channel_mask(logits: Tensor) -> Tensor:
    """Return ``z_ic / |z_i|`` for logits (N, C, H, W): unit length over the channels at each position."""
    return channel_activation(logits)


def _channel_sum(logits: Tensor) -> Tensor:
    return logits / logits.abs().sum(1, keepdim=True)


def _channel_squared(logits: Tensor) -> Tensor:
    return logits / logits.square().sum(1, keepdim=True)


def _channel_over_positions(logits: Tensor) -> Tensor:
    return logits / torch.linalg.vector_norm(logits, dim=(2, 3), keepdim=True)


def _channel_over_all(logits: Tensor) -> Tensor:
    return logits / torch.linalg.vector_norm(logits, dim=(1, 2, 3), keepdim=True)


def _channel_softmax(logits: Tensor) -> Tensor:
    return logits.softmax(1)


def _channel_sigmoid(logits: Tensor) -> Tensor:
    return channel_activation(logits).sigmoid()


CHANNEL_MASK = Exercise(
    [(numbers(2, 3, 2, 4),), (numbers(1, 5, 3, 3, seed=1),)],
    channel_mask,
    {
        "sum": ("The lengths are sums of absolute values. Equation (5) has the Euclidean length.", _channel_sum),
        "squared": ("The root is missing: divide by the length, not by its square.", _channel_squared),
        "positions": ("The length runs over the positions of a channel. It belongs over the channels of a position.",
                      _channel_over_positions),
        "all": ("One length for the whole image. Each position has its own.", _channel_over_all),
        "softmax": ("A softmax sums to one and is never negative. f2 divides by a length and keeps the sign.",
                    _channel_softmax),
        "sigmoid": ("Equation (5) has no sigmoid; leave the signs as they are.", _channel_sigmoid),
    },
    passed="unit length at every position: what is left is which channels, not how strongly.",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------ the spatial mask


def spatial_mask(logits: Tensor) -> Tensor:
    """Return the sigmoid of logits (N, C, H, W) standardised over the positions of each channel of each image."""
    return spatial_activation(logits)


def _standardised(logits: Tensor, axes: tuple[int, ...], correction: int = 0) -> Tensor:
    variance, mean = torch.var_mean(logits, dim=axes, correction=correction, keepdim=True)
    return (logits - mean) / (variance + 1e-5).sqrt()


def _spatial_sample(logits: Tensor) -> Tensor:
    return _standardised(logits, (2, 3), correction=1).sigmoid()


def _spatial_raw(logits: Tensor) -> Tensor:
    return _standardised(logits, (2, 3))


def _spatial_over_channels(logits: Tensor) -> Tensor:
    return _standardised(logits, (1,)).sigmoid()


def _spatial_over_batch(logits: Tensor) -> Tensor:
    return _standardised(logits, (0, 2, 3)).sigmoid()


def _spatial_over_image(logits: Tensor) -> Tensor:
    return _standardised(logits, (1, 2, 3)).sigmoid()


def _spatial_variance(logits: Tensor) -> Tensor:
    variance, mean = torch.var_mean(logits, dim=(2, 3), correction=0, keepdim=True)
    return ((logits - mean) / (variance + 1e-5)).sigmoid()


def _spatial_uncentred(logits: Tensor) -> Tensor:
    return (logits / (logits.var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt()).sigmoid()


SPATIAL_MASK = Exercise(
    [(3 * numbers(2, 3, 2, 2) + 1,), (numbers(3, 2, 3, 2, seed=1),), (torch.ones(1, 2, 2, 2),)],
    spatial_mask,
    {
        "sample": ("The variance is divided by n - 1. Ours divides by n, the number of positions (correction=0).",
                   _spatial_sample),
        "no sigmoid": ("These are the standardised logits. Equation (6) puts a sigmoid around them.", _spatial_raw),
        "channels": ("Mean and spread run over the channels of a position. They belong over the positions.",
                     _spatial_over_channels),
        "batch": ("Mean and spread run over the batch too, as in BatchNorm. Each image has its own.",
                  _spatial_over_batch),
        "image": ("One mean and spread for all channels together. Each channel has its own.", _spatial_over_image),
        "no root": ("Divide by the standard deviation, the root of the variance.", _spatial_variance),
        "not centred": ("The mean is still there; subtract it before you divide.", _spatial_uncentred),
    },
    passed="and a constant map gives 0.5: what is left is where, not how much.",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------ gradients


def mixed_gradient(logits: Tensor, upstream: Tensor) -> Tensor:
    """Return ``dL/dz = M (1 - M) dL/dM`` of the mixed activation, all (N, C, H, W)."""
    mask = logits.sigmoid()
    return mask * (1 - mask) * upstream


def channel_gradient(logits: Tensor, upstream: Tensor) -> Tensor:
    """Return ``dL/dz_i = (dL/dM_i - M_i <M_i, dL/dM_i>) / |z_i|`` of the channel activation, all (N, C, H, W)."""
    length = torch.linalg.vector_norm(logits, dim=1, keepdim=True)
    mask = logits / length
    return (upstream - mask * (mask * upstream).sum(1, keepdim=True)) / length


def _channel_gradient_plain(logits: Tensor, upstream: Tensor) -> Tensor:
    return upstream / torch.linalg.vector_norm(logits, dim=1, keepdim=True)


def _channel_gradient_long(logits: Tensor, upstream: Tensor) -> Tensor:
    return channel_gradient(logits, upstream) * torch.linalg.vector_norm(logits, dim=1, keepdim=True)


def _channel_gradient_positions(logits: Tensor, upstream: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(logits, dim=1, keepdim=True)
    mask = logits / length
    return (upstream - mask * (mask * upstream).sum((2, 3), keepdim=True)) / length


def _channel_gradient_raw(logits: Tensor, upstream: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(logits, dim=1, keepdim=True)
    return (upstream - logits * (logits * upstream).sum(1, keepdim=True)) / length


def _channel_gradient_radial(logits: Tensor, upstream: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(logits, dim=1, keepdim=True)
    mask = logits / length
    return mask * (mask * upstream).sum(1, keepdim=True) / length


CHANNEL_GRADIENT = Exercise(
    [(numbers(2, 3, 2, 2), numbers(2, 3, 2, 2, seed=1))],
    channel_gradient,
    {
        "no projection": ("The length depends on z as well: take away the part of the upstream gradient along M.",
                          _channel_gradient_plain),
        "no length": ("The projection is right. Divide by the length: a long vector turns slowly.",
                      _channel_gradient_long),
        "positions": ("The product of M with the upstream gradient runs over the channels of a position.",
                      _channel_gradient_positions),
        "raw": ("Project along M, which has length one, not along z.", _channel_gradient_raw),
        "radial": ("This is the part along M, the one that must go. Keep the rest.", _channel_gradient_radial),
    },
    passed="orthogonal to z at every position: the length of z has no say, and gets none.",
)  # fmt: skip


def spatial_gradient(logits: Tensor, upstream: Tensor) -> Tensor:
    """Return dL/dz of the spatial activation, all (N, C, H, W).

    ``h = M (1 - M) dL/dM``, and ``dL/dz = (h - mean(h) - s mean(s h)) / std``, means over the positions of a channel.
    """
    s, h, std = _spatial_parts(logits, upstream)
    return (h - h.mean((2, 3), keepdim=True) - s * (s * h).mean((2, 3), keepdim=True)) / std


def _spatial_parts(logits: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Standardised logits s, ``h = M (1 - M) dL/dM`` and std."""
    variance, mean = torch.var_mean(logits, dim=(2, 3), correction=0, keepdim=True)
    std = (variance + 1e-5).sqrt()
    s = (logits - mean) / std
    return s, s.sigmoid() * (1 - s.sigmoid()) * upstream, std


def _spatial_gradient_constants(logits: Tensor, upstream: Tensor) -> Tensor:
    _, h, std = _spatial_parts(logits, upstream)
    return h / std


def _spatial_gradient_mean_only(logits: Tensor, upstream: Tensor) -> Tensor:
    _, h, std = _spatial_parts(logits, upstream)
    return (h - h.mean((2, 3), keepdim=True)) / std


def _spatial_gradient_scale_only(logits: Tensor, upstream: Tensor) -> Tensor:
    s, h, std = _spatial_parts(logits, upstream)
    return (h - s * (s * h).mean((2, 3), keepdim=True)) / std


def _spatial_gradient_no_slope(logits: Tensor, upstream: Tensor) -> Tensor:
    s, _, std = _spatial_parts(logits, upstream)
    return (upstream - upstream.mean((2, 3), keepdim=True) - s * (s * upstream).mean((2, 3), keepdim=True)) / std


def _spatial_gradient_no_std(logits: Tensor, upstream: Tensor) -> Tensor:
    return spatial_gradient(logits, upstream) * _spatial_parts(logits, upstream)[2]


def _spatial_gradient_summed(logits: Tensor, upstream: Tensor) -> Tensor:
    s, h, std = _spatial_parts(logits, upstream)
    return (h - h.sum((2, 3), keepdim=True) - s * (s * h).sum((2, 3), keepdim=True)) / std


SPATIAL_GRADIENT = Exercise(
    [(2 * numbers(2, 2, 2, 3), numbers(2, 2, 2, 3, seed=1))],
    spatial_gradient,
    {
        "constants": ("Mean and spread depend on every logit of the channel; here they are treated as constants.",
                      _spatial_gradient_constants),
        "mean only": ("The mean is taken care of, the spread is not: subtract s mean(s h) as well.",
                      _spatial_gradient_mean_only),
        "scale only": ("The spread is taken care of, the mean is not: subtract mean(h) as well.",
                       _spatial_gradient_scale_only),
        "no slope": ("The slope of the sigmoid is missing: start from h = M (1 - M) times the upstream gradient.",
                     _spatial_gradient_no_slope),
        "no std": ("Divide by the standard deviation in the end.", _spatial_gradient_no_std),
        "sums": ("Means over the positions, not sums: each logit moves the mean by 1/n only.",
                 _spatial_gradient_summed),
    },
    passed="it sums to zero in every channel, and has no part along s: neither offset nor scale can be learned.",
)  # fmt: skip


# ----------------------------------------------------------------------------------------- what f3 can open and close


def two_levels(share: float) -> tuple[float, float]:
    """Return f3's value (on the open part, on the rest) when a share of the positions has the larger of two logits."""
    odds = torch.tensor(share / (1 - share), dtype=torch.float64)
    return torch.sigmoid(odds.rsqrt()).item(), torch.sigmoid(-odds.sqrt()).item()


def _two_levels_half(share: float) -> tuple[float, float]:
    return two_levels(0.5)


def _two_levels_swapped(share: float) -> tuple[float, float]:
    high, low = two_levels(share)
    return low, high


def _two_levels_of_rest(share: float) -> tuple[float, float]:
    return two_levels(1 - share)


def _two_levels_no_root(share: float) -> tuple[float, float]:
    odds = torch.tensor(share / (1 - share), dtype=torch.float64)
    return torch.sigmoid(1 / odds).item(), torch.sigmoid(-odds).item()


def _two_levels_raw(share: float) -> tuple[float, float]:
    return ((1 - share) / share) ** 0.5, -((share / (1 - share)) ** 0.5)


TWO_LEVELS = Exercise(
    [(0.25,), (0.9,), (0.02,)],
    two_levels,
    {
        "always half": ("The values depend on the share: few open positions stand far above the mean.",
                        _two_levels_half),
        "swapped": ("Open part first, then the rest.", _two_levels_swapped),
        "rest": ("The share is that of the open part, the larger logit; here it is taken as that of the rest.",
                 _two_levels_of_rest),
        "no root": ("Divide by the standard deviation, the root of q (1 - q).", _two_levels_no_root),
        "no sigmoid": ("These are the standardised logits; put the sigmoid around them.", _two_levels_raw),
    },
    passed="f3 can open few positions or close few, but never half of each.",
)  # fmt: skip


# --------------------------------------------------------------------------------------------- parts of the variance


def variance_parts(mask: Tensor) -> tuple[float, float, float]:
    """Return the shares of a mask's variance that lie between channels, between positions, and in both together.

    ``M_nci = m + a_c + b_ni + g_nci`` for a mask (N, C, H, W): means over all images and positions give ``a``, means
    over the channels give ``b``, and the rest is ``g``. The three variances sum to that of the mask.
    """
    channels = mask.mean((0, 2, 3)).var(correction=0)
    places = mask.mean(1).var(correction=0)
    whole = mask.var(correction=0)
    return (channels / whole).item(), (places / whole).item(), ((whole - channels - places) / whole).item()


def _parts_swapped(mask: Tensor) -> tuple[float, float, float]:
    channels, places, both = variance_parts(mask)
    return places, channels, both


def _parts_unshared(mask: Tensor) -> tuple[float, float, float]:
    channels, places, both = (part * mask.var(correction=0).item() for part in variance_parts(mask))
    return channels, places, both


def _parts_per_image(mask: Tensor) -> tuple[float, float, float]:
    whole = mask.var(correction=0)
    channels, places = mask.mean((2, 3)).var(correction=0) / whole, mask.mean(1).var(correction=0) / whole
    return channels.item(), places.item(), (1 - channels - places).item()


def _parts_of_the_mean_image(mask: Tensor) -> tuple[float, float, float]:
    whole = mask.var(correction=0)
    channels, places = mask.mean((0, 2, 3)).var(correction=0) / whole, mask.mean((0, 1)).var(correction=0) / whole
    return channels.item(), places.item(), (1 - channels - places).item()


def _parts_sample(mask: Tensor) -> tuple[float, float, float]:
    whole = mask.var()
    channels, places = mask.mean((0, 2, 3)).var() / whole, mask.mean(1).var() / whole
    return channels.item(), places.item(), (1 - channels - places).item()


VARIANCE_PARTS = Exercise(
    [(numbers(2, 3, 2, 2).sigmoid(),), (numbers(3, 4, 1, 2, seed=1) + numbers(4, 1, 1, seed=2),)],
    variance_parts,
    {
        "swapped": ("Channels first, then positions. The means over images and positions belong to the channels.",
                    _parts_swapped),
        "not shares": ("These are variances. Divide by the variance of the whole mask.", _parts_unshared),
        "per image": ("The channel means are taken per image. The part of a channel is the same for all images.",
                      _parts_per_image),
        "mean image": ("The maps are averaged over the images first. Each image has a map of its own.",
                       _parts_of_the_mean_image),
        "sample": ("With n - 1 the parts no longer sum to the whole; divide by n (correction=0).", _parts_sample),
    },
    passed="three shares that sum to one: which channels, which places, and which channel in which place.",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------- cost and reach


def hourglass_cost(depth: int) -> float:
    """Return the multiply-adds of the hourglass's units, in units of full size, for r = 1 and sides that halve.

    ``sum over k < d of 3 / 4^k, plus 2 / 4^d``.
    """
    return sum(3 / 4**k for k in range(1, depth)) + 2 / 4**depth


def _cost_full_size(depth: int) -> float:
    return float(3 * depth - 1)


def _cost_no_skips(depth: int) -> float:
    return sum(2 / 4**k for k in range(1, depth + 1))


def _cost_three_at_the_bottom(depth: int) -> float:
    return sum(3 / 4**k for k in range(1, depth + 1))


def _cost_halved(depth: int) -> float:
    return sum(3 / 2**k for k in range(1, depth)) + 2 / 2**depth


def _cost_from_full(depth: int) -> float:
    return sum(3 / 4**k for k in range(depth - 1)) + 2 / 4 ** (depth - 1)


HOURGLASS_COST = Exercise(
    [(1,), (2,), (3,), (5,)],
    hourglass_cost,
    {
        "full size": ("That is their number. A unit at half the side costs a quarter.", _cost_full_size),
        "no skips": ("Two units per scale, one down and one up; above the lowest scale the lateral skip is a third.",
                     _cost_no_skips),
        "three": ("The lowest scale has no lateral skip: two units there.", _cost_three_at_the_bottom),
        "halved": ("Half the side is a quarter of the positions.", _cost_halved),
        "from full": ("The first units stand behind the first pooling, at a quarter of the cost.", _cost_from_full),
    },
    passed="never more than one unit of full size, however deep.",
)  # fmt: skip


def local_field(units: int) -> int:
    """Return the side of the square that one logit of a local mask of so many residual units sees, in positions."""
    return 1 + 2 * units


def reach(position: int, side: int, depth: int) -> tuple[int, int]:
    """Return the first and the last position of a row that one logit of the hourglass mask sees.

    Args:
        position: of the logit, from 0.
        side: positions of the row.
        depth: poolings of the hourglass, r = 1.
    """
    small = max(1, side // 2)
    steps = max(1, side - 1)
    first, last = position * (small - 1) // steps, -(-position * (small - 1) // steps)  # what the resize reads
    first, last = _widened(first, last, small)  # the unit on the way up
    if depth > 1:  # the lower scales, seen from every position of the interval, and the lateral skip
        ends = [reach(first, small, depth - 1), reach(last, small, depth - 1), _widened(first, last, small)]
        first, last = min(end[0] for end in ends), max(end[1] for end in ends)
    first, last = _widened(first, last, small)  # the unit on the way down
    return 2 * first, min(2 * last + 2, side - 1)  # what the pool reads


def _widened(first: int, last: int, side: int) -> tuple[int, int]:
    """One 3 x 3 convolution further."""
    return max(first - 1, 0), min(last + 1, side - 1)


def units_to_cross(side: int) -> int:
    """Return how many local units a logit in one corner needs to see the opposite corner of a square map."""
    return side - 1


UNITS_TO_CROSS = Exercise(
    [(8,), (16,), (33,)],
    units_to_cross,
    {
        "from the middle": ("So many are enough for the middle. The corner has the whole side before it.",
                            lambda side: side // 2),
        "wide": ("A unit has one 3 x 3 convolution: it sees one position further in each direction, not two.",
                 lambda side: (side - 1) // 2),
        "diagonal": ("A square window grows along the diagonal as well; across is no longer than along.",
                     lambda side: 2 * (side - 1)),
        "one too many": ("Count the steps between the first and the last position, not the positions.",
                         lambda side: side),
        "three each": ("The 1 x 1 convolutions of a unit see nothing new.", lambda side: -(-(side - 1) // 3)),
    },
    passed="31 units at 32 positions; the hourglass does it with eight.",
)  # fmt: skip


# -------------------------------------------------------------------------------------------------- paper and pencil

CHANNEL_BY_HAND = Exercise(
    (),
    (1 / 3, -2 / 3, 2 / 3),
    {
        "sum": ("Divided by the sum of absolute values. The Euclidean length is the root of 1 + 4 + 4.",
                (0.2, -0.4, 0.4)),
        "squared": ("Divided by 9, the square of the length.", (1 / 9, -2 / 9, 2 / 9)),
        "sigmoid": ("f2 has no sigmoid; signs stay.", (0.5826, 0.3392, 0.6608)),
        "absolute": ("The sign stays: the second channel is made weaker, not stronger.", (1 / 3, 2 / 3, 2 / 3)),
        "added": ("That is 1 + M, which multiplies the trunk. Asked is M.", (4 / 3, 1 / 3, 5 / 3)),
    },
    tolerance=2e-3,
    passed="the second channel keeps a third of its trunk, the third one gains two thirds.",
)  # fmt: skip

SPATIAL_BY_HAND = Exercise(
    (),
    (0.2689, 0.7311),
    {
        "sample": ("That is the sample deviation, with n - 1. Divide by n = 4: the spread is 2.", (0.2961, 0.7039)),
        "no scale": ("The mean is gone, the spread is not: divide by 2.", (0.1192, 0.8808)),
        "raw": ("That is f1. Standardise first.", (0.5, 0.982)),
        "no sigmoid": ("These are the standardised logits; put the sigmoid around them.", (-1.0, 1.0)),
        "swapped": ("The smaller logit first.", (0.7311, 0.2689)),
    },
    tolerance=1e-3,
    passed="half low and half high give these two numbers, whatever the two logits are.",
)

DIM_ALL = Exercise(
    (),
    0.875,
    {
        "one": ("One channel can be closed, with M = -1 there. Then nothing is left for the other 63.", 0.0),
        "shared": ("The squares share a total of one, not the values: M = -1/8 for each of 64.", 1 - 1 / 64),
        "half": ("Half is where a sigmoid would start. Here the squares of 64 equal values sum to one.", 0.5),
        "up": ("That is the strongest common gain. The sign is the other one.", 1.125),
        "mask": ("That is M. The trunk is multiplied by 1 + M.", -0.125),
    },
    tolerance=1e-3,
    passed="the wider the layer, the less a position as a whole can be dimmed.",
)

EXERCISES = {
    "channel-by-hand": CHANNEL_BY_HAND,
    "spatial-by-hand": SPATIAL_BY_HAND,
    "channel-mask": CHANNEL_MASK,
    "spatial-mask": SPATIAL_MASK,
    "channel-mask-gradient": CHANNEL_GRADIENT,
    "spatial-mask-gradient": SPATIAL_GRADIENT,
    "dim-all-channels": DIM_ALL,
    "two-levels": TWO_LEVELS,
    "variance-parts": VARIANCE_PARTS,
    "hourglass-in-units": HOURGLASS_COST,
    "units-to-cross": UNITS_TO_CROSS,
}
