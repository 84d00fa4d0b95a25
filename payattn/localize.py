"""Judging a map against the mask of the object: does it point at it, and does it cover it?

Both measures enlarge a map (N, h, w) to the size of its mask (N, H, W) bilinearly (``align_corners=False``), the
way the maps are drawn.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
