"""What a query does to a map: put another image's query in place of the own one, and compare.

With the parametrised score and a softmax the query cancels, and nothing changes.  With the dot product something
does; :func:`temperature_between` tells whether places change their order of importance, or the map only becomes
sharper or flatter.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from payattn.attention import promote
from payattn.maps import frozen, pixels_of

ROUNDING = 1e-9


def _flat(maps: Tensor, name: str) -> Tensor:
    """Maps as float64 (N, H * W), after checking that each spreads a weight of one."""
    if maps.ndim != 3 or maps[:1].numel() == 0:
        raise ValueError(f"{name} must be maps (N, H, W) with N, H, W at least 1, got {tuple(maps.shape)}")
    flat = maps.flatten(1).double()
    if not (flat >= 0).all() or ((flat.sum(1) - 1).abs() > 1e-3).any():
        raise ValueError(f"{name} must be non-negative and sum to one over the places, as softmax maps do")
    return flat


def _pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.shape != b.shape:
        raise ValueError(f"the maps must have one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    return _flat(a, "a"), _flat(b, "b")


def total_variation(a: Tensor, b: Tensor) -> Tensor:
    r"""How much weight must move to make one map the other.

    .. math:: TV = \tfrac{1}{2} \sum_i |a_i - b_i|

    Args:
        a, b: (N, H, W), non-negative, each with sum one.

    Returns:
        (N,), from 0 (the same) to 1 (no place in common), at least float32.

    Raises:
        ValueError: shapes that differ, or maps that do not sum to one.

    Example:
        >>> total_variation(torch.tensor([[[0.5, 0.5, 0.0]]]), torch.tensor([[[0.25, 0.5, 0.25]]]))
        tensor([0.2500])
    """
    one, two = _pair(a, b)
    return (one - two).abs().sum(1).div(2).to(promote(a).dtype)


class Fit(NamedTuple):
    """A line through the origin per image: slope, share of the variation it explains, root mean square of the rest.

    ``used`` is the share of the places that the fit could use: where a map is zero its logarithm is not finite.

    Example:
        >>> a = torch.tensor([[[0.2, 0.8]]])
        >>> temperature_between(a, a).slope
        tensor([1.])
    """

    slope: Tensor
    r2: Tensor
    residual: Tensor
    used: Tensor


def temperature_between(a: Tensor, b: Tensor) -> Fit:
    r"""Is one map the other at another temperature?

    A softmax of k times the scores of a has :math:`\log b_i = k \log a_i + \text{const}`.  So we centre both
    logarithms over the places and fit

    .. math:: \widetilde{\log b_i} \approx k \, \widetilde{\log a_i}

    by least squares.  r2 = 1: the change is a temperature 1 / k and nothing else; the order of the places stays.
    Small r2: the map attends elsewhere.

    Args:
        a, b: (N, H, W), non-negative, each with sum one.

    Returns:
        :class:`Fit` of (N,) each, at least float32: ``slope`` k, ``r2``, ``residual`` (root mean square, in nats) and
        ``used``.  Places where a or b is zero are left out.  A constant a has no slope: nan; a constant b has slope 0.

    Raises:
        ValueError: shapes that differ, or maps that do not sum to one.

    Example:
        >>> scores = torch.tensor([[[0.0, 1.0, 3.0]]])
        >>> fit = temperature_between(scores.softmax(2), (2 * scores).softmax(2))
        >>> fit.slope.round(decimals=4), fit.r2.round(decimals=4)
        (tensor([2.]), tensor([1.]))
    """
    one, two = _pair(a, b)
    seen = (one > 0) & (two > 0)
    n = seen.sum(1)

    def centred(weights: Tensor) -> Tensor:
        logs = torch.where(seen, weights, 1).log()
        return torch.where(seen, logs - (logs.sum(1) / n)[:, None], 0)

    def varies(logs: Tensor, weights: Tensor, maps: Tensor) -> Tensor:
        """Whether there is more variation than rounding alone would make."""
        rounding = 8 * torch.finfo(maps.dtype).eps * torch.where(seen, weights, 1).log().abs().amax(1).clamp(min=1)
        return logs.abs().amax(1) > rounding

    x, y = centred(one), centred(two)
    slope = torch.where(varies(x, one, a), (x * y).sum(1) / x.square().sum(1), torch.nan)
    rest = (y - slope[:, None] * x).square().sum(1)
    r2 = torch.where(varies(y, two, b), 1 - rest / y.square().sum(1), torch.where(slope.isnan(), torch.nan, 1.0))
    kind = promote(a).dtype
    return Fit(*(value.to(kind) for value in (slope, r2, (rest / n).sqrt(), n / seen.shape[1])))


def maps_with_sum_one(model: nn.Module, images: Tensor, **options: Any) -> dict[str, Tensor]:
    """The maps of a network, each divided by its sum.

    Args:
        model: called as ``model(images, return_maps=True, **options)``, in the mode in which it is.
        images: (N, 3, H, W).
        options: such as ``query=``.

    Returns:
        Level to (N, H, W), each map with sum one.

    Raises:
        TypeError: a model that takes no ``return_maps``.
        ValueError: a model without maps, or maps with negative values.

    Example:
        >>> class Net(nn.Module):
        ...     def forward(self, images, return_maps=False): return images.mean((2, 3)), {"layer1": images.mean(1)}
        >>> maps_with_sum_one(Net(), torch.ones(1, 3, 1, 4))
        {'layer1': tensor([[[0.2500, 0.2500, 0.2500, 0.2500]]])}
    """
    try:
        _, maps = model(images, return_maps=True, **options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise TypeError(
            f"{type(model).__name__} gives no maps: it must take return_maps=True"
            f"{' and query=' if 'query' in options else ''}, as the networks of payattn.list_models('*-att*') do"
        ) from error
    if not maps:
        raise ValueError(f"{type(model).__name__} has no map; payattn.list_models('*att*') names networks that have")
    maps = {level: promote(values) for level, values in maps.items()}
    sums = {level: values.sum((1, 2), keepdim=True) for level, values in maps.items()}
    for level, values in maps.items():
        if not ((values >= 0).all() and (sums[level] > 0).all()):
            raise ValueError(
                f"the maps of {level} have negative values or sum 0, and so spread no weight; attention maps do, class "
                "activation maps do not"
            )
    return {level: values / sums[level] for level, values in maps.items()}


def swap(model: nn.Module, images: Tensor, template: Tensor) -> dict[str, dict[str, Tensor]]:
    """The maps of images under their own query and under that of a template image.

    A copy of the network computes both in float64: there a map that the query cannot change stays the same to 1e-9,
    and less than this is returned as the same map, with a change of exactly zero.

    Args:
        model: with ``query(images)`` and ``model(images, return_maps=True, query=g)``, such as
            ``create("vgg-att2-concat-dp")``; it is not touched.
        images: (N, 3, H, W), uint8 or float in [0, 1].
        template: the image whose query is used for all, (1, 3, H, W) or (3, H, W); or one for each, (N, 3, H, W).

    Returns:
        Level to ``own`` and ``swapped``, the maps (N, H, W) with sum one; ``total_variation`` (N,), see
        :func:`total_variation`; and ``slope``, ``r2``, ``residual``, ``used`` (N,) of :func:`temperature_between`.
        All float32.

    Raises:
        TypeError: a model without queries or maps.
        ValueError: images or templates that do not fit.

    Source: Learn To Pay Attention, section 5 (query-driven attention).

    Example:
        >>> from payattn.models import create
        >>> net = create("vgg-att2-concat-pc", width=0.125)
        >>> swap(net, torch.rand(2, 3, 32, 32), torch.rand(3, 32, 32))["layer10"]["total_variation"]
        tensor([0., 0.])
    """
    if not hasattr(model, "query"):
        raise TypeError(
            f"{type(model).__name__} has no query(images); the networks of payattn.list_models('*-att*') have"
        )
    pixels, example = pixels_of(images), pixels_of(template[None] if template.ndim == 3 else template)
    if len(example) not in (1, len(pixels)):
        raise ValueError(f"give one template for all images, or one for each of {len(pixels)}, got {len(example)}")
    twin: Any = copy.deepcopy(model).double()
    with frozen(twin, gradients=False):
        query = twin.query(example.double())
        own = maps_with_sum_one(twin, pixels.double())
        swapped = maps_with_sum_one(twin, pixels.double(), query=query)
    return {level: _compared(own[level], swapped[level]) for level in own}


def _compared(own: Tensor, swapped: Tensor) -> dict[str, Tensor]:
    same = total_variation(own, swapped) < ROUNDING
    swapped = torch.where(same[:, None, None], own, swapped)
    fit = temperature_between(own, swapped)
    found = {"own": own, "swapped": swapped, "total_variation": total_variation(own, swapped), **fit._asdict()}
    return {name: value.float() for name, value in found.items()}
