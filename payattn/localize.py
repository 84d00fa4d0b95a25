"""Judging a map against the mask of the object: does it point at it, and does it cover it?

All measures enlarge a map (N, h, w) to the size of its mask (N, H, W) bilinearly (``align_corners=False``), the
way the maps are drawn.

Weakly supervised segmentation takes four steps: :func:`combine` the maps of the levels, choose a threshold
(:func:`otsu`, the mean, or the best one in hindsight), :func:`binarise`, compare with the masks (:func:`jaccard`).
:func:`segment` takes them all.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from payattn.attention import choose, promote

HOWS = ("product", "mean", "max")
RULES = ("otsu", "mean")


def _enlarged(maps: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Maps and masks as (N, H * W), after checking that they fit together."""
    if maps.ndim != 3 or masks.ndim != 3 or len(maps) != len(masks):
        shapes = f"{tuple(maps.shape)} and {tuple(masks.shape)}"
        raise ValueError(f"maps must be (N, h, w) and masks (N, H, W) with the same N, got {shapes}")
    masks = masks.bool().flatten(1)
    empty = (~masks.any(1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"{len(empty)} of the masks are empty (the first is number {empty[0]}), and nothing can be found there: "
            "leave them out with data.subset(data.masks.flatten(1).any(1))"
        )
    return maps.float(), masks


def _upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0].flatten(1)


def widen(masks: Tensor, tolerance: int) -> Tensor:
    """Masks grown by ``tolerance`` pixels in each of the eight directions.

    Args:
        masks: (N, H, W), true on the object.
        tolerance: pixels, 0 or more.

    Returns:
        bool (N, H, W).

    Example:
        >>> widen(torch.tensor([[[False, False, True]]]), 1)
        tensor([[[False,  True,  True]]])
    """
    if not isinstance(tolerance, int) or tolerance < 0:
        raise ValueError(f"tolerance must be a whole number of pixels, 0 or more, got {tolerance!r}")
    grown = F.max_pool2d(masks[:, None].float(), 2 * tolerance + 1, stride=1, padding=tolerance)
    return grown[:, 0] > 0


def boxes(masks: Tensor) -> Tensor:
    """The smallest upright box around each mask, filled.

    For objects that are outlines: the middle of a ring belongs to the ring, but not to its pixels.  Where data sets
    give boxes and no masks, boxes are what the pointing game is played on.

    Args:
        masks: (N, H, W), true on the object.

    Returns:
        bool (N, H, W), all false where a mask is empty.

    Raises:
        ValueError: masks that are not (N, H, W).

    Example:
        >>> boxes(torch.tensor([[[True, False, False], [False, False, True]]])).tolist()
        [[[True, True, True], [True, True, True]]]
    """
    if masks.ndim != 3:
        raise ValueError(f"masks must be (N, H, W), got {tuple(masks.shape)}; one mask is masks[None]")
    rows, columns = (_between(masks.bool().any(dim)) for dim in (2, 1))
    return rows[:, :, None] & columns[:, None, :]


def _between(marked: Tensor) -> Tensor:
    """Everything from the first to the last true entry of each row."""
    counted = marked.int()
    return (counted.cummax(1).values & counted.flip(1).cummax(1).values.flip(1)).bool()


def usual_tolerance(side: int) -> int:
    """The tolerance of the pointing game for images of this side: 3 % of it, in pixels.

    The game was played with 15 pixels on photographs about 500 pixels wide (Zhang et al., ECCV 2016).

    Example:
        >>> usual_tolerance(32), usual_tolerance(500)
        (1, 15)
    """
    return round(0.03 * side)


def pointing_game(maps: Tensor, masks: Tensor, tolerance: int = 0) -> Tensor:
    r"""Whether the highest point of each map lies on the object, or at most ``tolerance`` pixels beside it.

    .. math:: hit = m_{\arg\max_i a_i}

    with a the enlarged map and m the mask, widened; the first of several equal maxima counts.  A random point hits
    with the probability of the widened mask's share of the image.

    Args:
        maps: (N, h, w), any scale.
        masks: (N, H, W), true on the object.
        tolerance: pixels; see :func:`usual_tolerance`.

    Returns:
        bool (N,).

    Raises:
        ValueError: shapes that do not fit, an empty mask, or a negative tolerance.

    Source: Zhang et al., "Top-down neural attention by excitation backprop", ECCV 2016.

    Example:
        >>> masks = torch.tensor([[[True, False], [False, False]]])
        >>> pointing_game(torch.tensor([[[0.9, 0.1], [0.2, 0.3]]]), masks)
        tensor([True])
    """
    values, _ = _enlarged(maps, masks)
    points = _upsample(values, (masks.shape[1], masks.shape[2])).argmax(1, keepdim=True)
    flat = widen(masks, tolerance).flatten(1)
    return flat.gather(1, points)[:, 0]


def peak_distance(maps: Tensor, masks: Tensor) -> Tensor:
    r"""How far the highest point of each map lies from the middle of the object's bounding box.

    .. math:: d = \lVert p - q \rVert, \quad p = \arg\max_i a_i

    with q the middle of the box, both as (row, column) in pixels.  A fixed point can win the pointing game where the
    objects are large; it cannot follow them.

    Args:
        maps: (N, h, w), any scale.
        masks: (N, H, W), true on the object.

    Returns:
        float (N,), in pixels of the mask.

    Raises:
        ValueError: shapes that do not fit, or an empty mask.

    Example:
        >>> masks = torch.tensor([[[True, False, False, False]] * 3])
        >>> peak_distance(torch.eye(4)[None, 3:], masks)          # the middle of the box is row 1, column 0
        tensor([3.1623])
    """
    values, _ = _enlarged(maps, masks)
    height, width = masks.shape[1:]
    highest = _upsample(values, (height, width)).argmax(1)
    box = boxes(masks)
    down = torch.div(highest, width, rounding_mode="floor") - _middle(box.any(2))
    across = highest % width - _middle(box.any(1))
    return torch.hypot(down, across)


def _middle(marked: Tensor) -> Tensor:
    """The mean place of the true entries of each row."""
    places = torch.arange(marked.shape[1], device=marked.device)
    return (marked * places).sum(1) / marked.sum(1)


def iou_at_true_area(maps: Tensor, masks: Tensor) -> Tensor:
    r"""Intersection over union of the mask and the k highest pixels of the map, k the number of pixels of the mask.

    .. math:: IoU = |P \cap M| / |P \cup M|, \quad |P| = |M| = k

    No threshold is chosen, so the score judges only the order of the pixels; it needs the true area, and is an
    upper bound in that sense.  A random map of a mask with share s scores about s / (2 - s).

    Args:
        maps: (N, h, w), any scale.
        masks: (N, H, W), true on the object.

    Returns:
        float (N,), from 0 to 1.

    Raises:
        ValueError: shapes that do not fit, or an empty mask.

    Example:
        >>> masks = torch.tensor([[[True, True], [False, False]]])
        >>> iou_at_true_area(torch.tensor([[[0.9, 0.1], [0.2, 0.3]]]), masks)
        tensor([0.3333])
    """
    values, flat = _enlarged(maps, masks)
    order = _upsample(values, (masks.shape[1], masks.shape[2])).argsort(dim=1, descending=True, stable=True)
    area = flat.sum(1)
    chosen = torch.arange(flat.shape[1], device=flat.device) < area[:, None]
    both = (flat.gather(1, order) & chosen).sum(1)
    return both / (2 * area - both)


def energy(maps: Tensor, masks: Tensor) -> Tensor:
    r"""The share of a map's mass that lies on the object (energy-based pointing game).

    .. math:: E = \sum_i m_i a_i^+ / \sum_i a_i^+, \quad a^+ = \max(a, 0)

    with m the mask and a the map, enlarged after its negative values were set to zero: they speak against the class,
    and mass cannot be negative.  A flat map has its mass everywhere and scores the mask's share of the image; so does
    a map without a positive value, which marks no place more than another.  Multiplying a map changes nothing, adding
    to it does: the mass of a softmax or of a rectified map has a zero of its own, that of a logit has not.

    Args:
        maps: (N, h, w), any scale.
        masks: (N, H, W), true on the object; the source takes its box, see :func:`boxes`.

    Returns:
        (N,), at least float32, from 0 to 1.

    Raises:
        ValueError: shapes that do not fit, maps that are not finite, or an empty mask.

    Source: Wang et al., "Score-CAM", CVPR Workshops 2020, section 4.3.

    Example:
        >>> masks = torch.tensor([[[True, False], [False, False]]])
        >>> energy(torch.tensor([[[3.0, 1.0], [0.0, -5.0]]]), masks)
        tensor([0.7500])
    """
    _enlarged(maps, masks)
    positive = _finite(maps).clamp_min(0)
    # against an overflow of the sum; the share does not know the scale
    top = positive.amax((1, 2), keepdim=True)
    positive = torch.where(top > 0, positive / torch.where(top > 0, top, 1), 1)
    values = _upsample(positive, (masks.shape[1], masks.shape[2]))
    return (values * masks.bool().flatten(1)).sum(1) / values.sum(1)


def scores(maps: Tensor, masks: Tensor) -> dict[str, float]:
    """Where a set of maps points and what it covers, as means over the images.

    Args:
        maps: (N, h, w), any scale.
        masks: (N, H, W), true on the object.

    Returns:
        ``pointing`` (share of images whose highest point is on the mask, with the usual tolerance),
        ``pointing_exact`` (with none), ``pointing_box`` (in the object's bounding box, with none) and ``iou`` (at the
        true area).

    Raises:
        ValueError: shapes that do not fit, or an empty mask.

    Example:
        >>> masks = torch.tensor([[[True, False], [False, False]]])
        >>> scores(torch.tensor([[[0.9, 0.1], [0.2, 0.3]]]), masks)
        {'pointing': 1.0, 'pointing_exact': 1.0, 'pointing_box': 1.0, 'iou': 1.0}
    """
    found = {
        "pointing": pointing_game(maps, masks, usual_tolerance(masks.shape[-1])),
        "pointing_exact": pointing_game(maps, masks),
        "pointing_box": pointing_game(maps, boxes(masks)),
        "iou": iou_at_true_area(maps, masks),
    }
    return {name: values.float().mean().item() for name, values in found.items()}


def judge(maps: Tensor, masks: Tensor) -> dict[str, float]:
    """The measures of place as a row of a table, in words.

    Args:
        maps: (N, h, w), any scale.
        masks: (N, H, W), true on the object.

    Returns:
        ``on the object`` (pointing game with the usual tolerance), ``in its box`` (with none), ``IoU`` (at the true
        area), see :func:`scores`, and ``pixels from its middle``, see :func:`peak_distance`; means over the images.

    Raises:
        ValueError: shapes that do not fit, or an empty mask.

    Example:
        >>> masks = torch.tensor([[[True, False], [False, False]]])
        >>> judge(torch.tensor([[[0.9, 0.1], [0.2, 0.3]]]), masks)
        {'on the object': 1.0, 'in its box': 1.0, 'IoU': 1.0, 'pixels from its middle': 0.0}
    """
    found = scores(maps, masks)
    return {
        "on the object": found["pointing"],
        "in its box": found["pointing_box"],
        "IoU": found["iou"],
        "pixels from its middle": peak_distance(maps, masks).mean().item(),
    }


def rescale(maps: Tensor) -> Tensor:
    r"""Each map stretched to [0, 1]; a constant map becomes 0.

    .. math:: r_i = (a_i - \min_j a_j) / (\max_j a_j - \min_j a_j)

    Constant means up to rounding: a spread below eight units in the last place of the largest value says nothing,
    and must not be stretched into a pattern.

    Args:
        maps: (N, h, w), any scale.

    Returns:
        (N, h, w), at least float32.

    Raises:
        ValueError: maps that are not (N, h, w), hold nothing, or are not finite.

    Source: Learn To Pay Attention does not say how its maps are scaled before they are compared with masks; this is
    the usual way.

    Example:
        >>> rescale(torch.tensor([[[1.0, 2.0, 5.0]], [[3.0, 3.0, 3.0]]]))
        tensor([[[0.0000, 0.2500, 1.0000]],
                [[0.0000, 0.0000, 0.0000]]])
    """
    values = _finite(maps)
    low, high = values.amin((1, 2), keepdim=True), values.amax((1, 2), keepdim=True)
    rounding = 8 * torch.finfo(values.dtype).eps * torch.maximum(low.abs(), high.abs())
    varies = high - low > rounding
    return torch.where(varies, (values - low) / torch.where(varies, high - low, 1), 0)


def _finite(maps: Tensor) -> Tensor:
    if maps.ndim != 3 or maps[:1].numel() == 0:
        raise ValueError(f"maps must be (N, h, w) with N, h, w at least 1, got {tuple(maps.shape)}")
    values = promote(maps)
    if not values.isfinite().all():
        raise ValueError("maps must be finite, and these hold nan or inf")
    return values


def combine(maps: Mapping[str, Tensor], size: int | tuple[int, int], how: str = "product") -> Tensor:
    r"""One map per image from the maps of several levels, each enlarged bilinearly and rescaled to [0, 1].

    .. math:: p_i = \prod_s r^s_i, \qquad \tfrac{1}{S} \sum_s r^s_i \qquad \text{or} \qquad \max_s r^s_i

    A constant map knows nothing of the place.  It counts as 1 in the product, and so leaves the others as they are
    (where all are constant, the product is 0); in the maximum it counts as 0 and leaves them as well, and in the
    mean it only scales them.

    Args:
        maps: level to (N, h, w); the levels may differ in h and w.
        size: (H, W) of the result, or one number for a square.
        how: ``"product"``, ``"mean"`` or ``"max"``.

    Returns:
        (N, H, W) in [0, 1], at least float32.

    Raises:
        ValueError: no map, maps of different N, a map that is not finite, or an unknown ``how``.

    Source: the rule of Learn To Pay Attention was not published; the product is our default, and :func:`segment`
    measures the others beside it.

    Example:
        >>> maps = {"layer10": torch.tensor([[[0.0, 2.0, 4.0]]]), "layer13": torch.tensor([[[9.0, 5.0, 1.0]]])}
        >>> combine(maps, (1, 3))
        tensor([[[0.0000, 0.2500, 0.0000]]])
    """
    choose("how", how, HOWS)
    if not maps:
        raise ValueError("there is no map to combine; a network without levels has none")
    counts = {level: len(values) for level, values in maps.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"the maps must be of the same images, got {counts} of them")
    levels = torch.stack([_on(values, size) for values in maps.values()])
    if how == "mean":
        return levels.mean(0)
    if how == "max":
        return levels.amax(0)
    constant = levels.amax((2, 3), keepdim=True) == 0
    return torch.where(constant.all(0), 0, torch.where(constant, 1, levels).prod(0))


def _on(maps: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Maps enlarged to (N, H, W) and rescaled."""
    height, width = (size, size) if isinstance(size, int) else size
    return rescale(_upsample(_finite(maps), (height, width)).unflatten(1, (height, width)))


def otsu(maps: Tensor, bins: int = 256) -> Tensor:
    r"""The threshold of each map that parts its histogram into two classes as far apart as can be.

    .. math:: t = \arg\max_t \; w_0(t)\, w_1(t)\, (\mu_0(t) - \mu_1(t))^2

    with w the number of pixels of the two classes and mu their means, over the centres of ``bins`` equal bins from
    the least to the largest value.  The class above is ``maps > t``.  A constant map is its own threshold.

    Args:
        maps: (N, h, w), any scale.
        bins: of the histogram, 2 or more.

    Returns:
        float (N,), in the units of the maps.

    Raises:
        ValueError: maps that are not (N, h, w) or not finite, or fewer than two bins.

    Source: Otsu, "A threshold selection method from gray-level histograms", IEEE Trans. SMC 1979.

    Example:
        >>> otsu(torch.tensor([[[0.0, 0.1, 0.1, 0.9, 1.0]]]), bins=10)
        tensor([0.1500])
    """
    if not isinstance(bins, int) or bins < 2:
        raise ValueError(f"bins must be a whole number, 2 or more, got {bins!r}")
    kind = _finite(maps).dtype
    values = _finite(maps).flatten(1).double()
    low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    edges = low + (high - low) * torch.arange(bins + 1, device=values.device) / bins
    # the last bin holds its right edge, and a spread too small for the bins must not run past it
    places = (torch.searchsorted(edges, values, right=True) - 1).clamp(0, bins - 1)
    counts = torch.zeros(len(values), bins, dtype=values.dtype, device=values.device)
    counts.scatter_add_(1, places, torch.ones_like(values))
    centres = (edges[:, 1:] + edges[:, :-1]) / 2
    below, sums = counts.cumsum(1), (counts * centres).cumsum(1)
    above, rest = (x.flip(1).cumsum(1).flip(1) for x in (counts, counts * centres))
    # the first bin holds the minimum and the last the maximum, so no class is empty
    between = below[:, :-1] * above[:, 1:] * (sums[:, :-1] / below[:, :-1] - rest[:, 1:] / above[:, 1:]).square()
    best = between.nan_to_num(0).argmax(1, keepdim=True)
    return torch.where(high > low, centres.gather(1, best), low)[:, 0].to(kind)


def binarise(maps: Tensor, rule: str | float = "otsu") -> Tensor:
    """The pixels of each map above a threshold.

    Args:
        maps: (N, h, w), any scale.
        rule: ``"otsu"`` (see :func:`otsu`), ``"mean"`` (of each map), or one threshold for all maps, in their units.

    Returns:
        bool (N, h, w): ``maps > threshold``.  A constant map has no pixel above its own threshold.

    Raises:
        ValueError: maps that are not (N, h, w) or not finite, or an unknown rule.

    Example:
        >>> binarise(torch.tensor([[[0.0, 0.2, 1.0]]]), "mean")
        tensor([[[False, False,  True]]])
    """
    values = _finite(maps)
    if isinstance(rule, bool) or not isinstance(rule, (str, int, float)) or rule != rule:
        raise ValueError(f"rule must be {' or '.join(map(repr, RULES))} or a number, got {rule!r}")
    if not isinstance(rule, str):
        return values > rule
    if choose("rule", rule, RULES) == "otsu":
        return values > otsu(values)[:, None, None]
    # in float64, or the mean of a constant map could round to below it
    return (values.double() > values.double().mean((1, 2), keepdim=True)) & (rescale(values) > 0)


def _pair(predicted: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    if predicted.dtype != torch.bool:
        raise TypeError(f"predicted must be bool, got {predicted.dtype}; binarise(maps) makes it from maps")
    if predicted.shape != masks.shape:
        raise ValueError(
            f"predicted and masks must both be (N, H, W), got {tuple(predicted.shape)} and {tuple(masks.shape)}; "
            "combine(maps, size) enlarges maps"
        )
    _enlarged(predicted, masks)
    return predicted, masks.bool()


def jaccard(predicted: Tensor, masks: Tensor) -> Tensor:
    r"""Intersection over union of each predicted region and its mask.

    .. math:: J = |P \cap M| / |P \cup M|

    Args:
        predicted: bool (N, H, W).
        masks: (N, H, W), true on the object.

    Returns:
        float (N,), from 0 to 1.

    Raises:
        TypeError: predictions that are not bool.
        ValueError: shapes that differ, or an empty mask, as Learn To Pay Attention's protocol leaves such images out.

    Source: Learn To Pay Attention, section 5 (weakly supervised segmentation).

    Example:
        >>> jaccard(torch.tensor([[[True, True, False]]]), torch.tensor([[[False, True, True]]]))
        tensor([0.3333])
    """
    chosen, true = (x.flatten(1) for x in _pair(predicted, masks))
    return (chosen & true).sum(1) / (chosen | true).sum(1)


def largest_component(masks: Tensor) -> Tensor:
    """The largest connected region of each mask; pixels that touch at a corner are connected.

    Args:
        masks: (N, H, W).

    Returns:
        bool (N, H, W), all false where a mask is empty.  Of several regions of one size it is the one whose last
        pixel comes first in reading order.

    Raises:
        ValueError: masks that are not (N, H, W), or larger than 2**24 pixels.

    Example:
        >>> largest_component(torch.tensor([[[True, False, True, True]]]))
        tensor([[[False, False,  True,  True]]])
    """
    if masks.ndim != 3:
        raise ValueError(f"masks must be (N, H, W), got {tuple(masks.shape)}; one mask is masks[None]")
    inside = masks.bool()
    n, pixels = len(masks), inside[:1].numel()
    if pixels > 2**24:
        raise ValueError(f"a mask may have 2**24 pixels, up to which float32 counts them, got {tuple(masks.shape)}")
    numbers = torch.arange(1, pixels + 1, device=masks.device).view(1, *masks.shape[1:])
    labels, before = torch.where(inside, numbers, 0), None
    while before is None or not torch.equal(labels, before):
        before = labels
        highest = F.max_pool2d(labels[:, None].float(), 3, stride=1, padding=1)[:, 0].long() * inside
        # a label is the number of a pixel of the region: tell it what the region touches, and ask it twice
        known = F.pad(highest.flatten(1), (1, 0))
        known.scatter_reduce_(1, labels.flatten(1), highest.flatten(1), "amax")
        labels = known.gather(1, known.gather(1, highest.flatten(1))).view_as(labels)
    sizes = torch.zeros(n, pixels + 1, dtype=torch.int64, device=masks.device)
    sizes.scatter_add_(1, labels.flatten(1), inside.flatten(1).long())
    return inside & (labels == sizes.argmax(1)[:, None, None])


def small_parts(masks: Tensor) -> Tensor:
    """What each mask holds beside its largest connected region: the mark of a glyph of ``glyphs-fine``.

    Args:
        masks: (N, H, W).

    Returns:
        bool (N, H, W), all false where a mask is one region, as where a mark touches the rest of its glyph.

    Raises:
        ValueError: see :func:`largest_component`.

    Example:
        >>> small_parts(torch.tensor([[[True, False, True, True]]]))
        tensor([[[ True, False, False, False]]])
    """
    return masks.bool() & ~largest_component(masks)


def corloc(predicted: Tensor, masks: Tensor) -> Tensor:
    r"""Whether the box around the largest predicted region fits the box around the object ("correct localisation").

    .. math:: |B_P \cap B_M| / |B_P \cup B_M| > 0.5

    Args:
        predicted: bool (N, H, W).
        masks: (N, H, W), true on the object, or already its box.

    Returns:
        bool (N,).

    Raises:
        TypeError: predictions that are not bool.
        ValueError: shapes that differ, or an empty mask.

    Source: Deselaers, Alexe, Ferrari, "Weakly supervised localization and learning with generic knowledge", IJCV
    2012; the largest region: Zhou et al., "Learning deep features for discriminative localization", CVPR 2016.

    Example:
        >>> corloc(torch.tensor([[[True, False, True, True]]]), torch.tensor([[[False, True, True, True]]]))
        tensor([True])
    """
    chosen, true = _pair(predicted, masks)
    return jaccard(boxes(largest_component(chosen)), boxes(true)) > 0.5


def oracle_threshold(maps: Tensor, masks: Tensor) -> float:
    r"""The one threshold for all maps with the best mean Jaccard: it looks at the masks, and so is an upper bound.

    .. math:: t = \arg\max_t \frac{1}{N} \sum_n J(a_n > t, M_n)

    Exact: every threshold that makes a difference is tried, in one sorted pass over all pixels.

    Args:
        maps: (N, h, w) on one common scale, as :func:`rescale` gives; enlarged to the masks where smaller.
        masks: (N, H, W), true on the object.

    Returns:
        The threshold for ``binarise(maps, t)``, on the enlarged maps.

    Raises:
        ValueError: shapes that do not fit, maps that are not finite, or an empty mask.

    Example:
        >>> maps, masks = torch.tensor([[[0.1, 0.5, 0.9]]]), torch.tensor([[[False, True, True]]])
        >>> binarise(maps, oracle_threshold(maps, masks))
        tensor([[[False,  True,  True]]])
    """
    _enlarged(maps, masks)
    values = _finite(maps)
    if values.shape != masks.shape:
        values = _upsample(values, (masks.shape[1], masks.shape[2])).view(masks.shape)
    flat, true = values.flatten(1), masks.bool().flatten(1)
    order = flat.argsort(dim=1, descending=True)
    found = true.gather(1, order).cumsum(1).double()
    taken = torch.arange(1, flat.shape[1] + 1, device=flat.device)
    score = found / (taken + true.sum(1, keepdim=True) - found)  # of each image when it has k pixels
    gain = score.diff(dim=1, prepend=torch.zeros_like(score[:, :1]))
    events, turn = flat.gather(1, order).flatten().sort(descending=True, stable=True)
    total = gain.flatten()[turn].cumsum(0)
    last = F.pad(events[1:] != events[:-1], (0, 1), value=True)  # equal values fall together
    best = int(torch.where(last, total, -1.0).argmax())
    lowest = torch.nextafter(events[-1], torch.full_like(events[-1], -torch.inf))
    return float(torch.cat([events, lowest[None]])[best + 1])


def ways(maps: Mapping[str, Tensor], size: int | tuple[int, int]) -> dict[str, Tensor]:
    """Every way to make one map of the maps of a network: each level alone, and all joined where there are several.

    Args:
        maps: level to (N, h, w), as ``model(images, return_maps=True)[1]`` gives.
        size: (H, W) of the result, or one number for a square.

    Returns:
        Each level by its name, and with two levels or more ``"product"``, ``"mean"`` and ``"max"``; see
        :func:`combine`.

    Raises:
        ValueError: a level with the name of a way to combine, or what :func:`combine` refuses.

    Example:
        >>> list(ways({"layer10": torch.rand(1, 4, 4), "layer13": torch.rand(1, 2, 2)}, 8))
        ['layer10', 'layer13', 'product', 'mean', 'max']
    """
    clash = set(maps) & set(HOWS)
    if clash:
        raise ValueError(f"a level may not be called {sorted(clash)[0]!r}, which is a way to combine levels")
    alone = {level: combine({level: values}, size) for level, values in maps.items()}
    return alone | ({how: combine(maps, size, how) for how in HOWS} if len(maps) != 1 else {})


def cuts(maps: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """The regions above each threshold: Otsu's, the mean, and the oracle, the one threshold that suits the masks best.

    Args:
        maps: (N, H, W) on one common scale, as :func:`ways` gives.
        masks: (N, H, W), true on the object; only the oracle looks at them.

    Returns:
        ``"otsu"``, ``"mean"``, ``"oracle"`` to bool (N, H, W).

    Raises:
        ValueError: shapes that do not fit, maps that are not finite, or an empty mask.

    Example:
        >>> masks = torch.tensor([[[False, True, True]]])
        >>> cuts(torch.tensor([[[0.0, 0.4, 1.0]]]), masks)["oracle"]
        tensor([[[False,  True,  True]]])
    """
    return {**{rule: binarise(maps, rule) for rule in RULES}, "oracle": binarise(maps, oracle_threshold(maps, masks))}


def segment(maps: Mapping[str, Tensor], masks: Tensor) -> dict[str, dict[str, Tensor]]:
    """How well maps alone find the object's pixels: every way to combine the levels with every threshold.

    Args:
        maps: level to (N, h, w), as ``model(images, return_maps=True)[1]`` gives.
        masks: (N, H, W), true on the object.

    Returns:
        ``[way][rule]`` to the Jaccard index of each image, float (N,); see :func:`ways` and :func:`cuts`.

    Raises:
        ValueError: no maps, a level with the name of a way to combine, shapes that do not fit, or an empty mask.

    Source: Learn To Pay Attention, section 5 (weakly supervised segmentation).  How it enlarges, combines and
    thresholds is not published, hence the grid.

    Example:
        >>> masks = torch.tensor([[[False, True, True]]])
        >>> found = segment({"layer10": torch.tensor([[[0.1, 0.6, 0.9]]])}, masks)
        >>> list(found), found["layer10"]["otsu"]
        (['layer10'], tensor([1.]))
    """
    return {
        way: {rule: jaccard(region, masks) for rule, region in cuts(one, masks).items()}
        for way, one in ways(maps, (masks.shape[-2], masks.shape[-1])).items()
    }
