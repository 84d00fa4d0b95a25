"""Judging a map by the network: does the decision hang on what the map marks, and the map on what was learned?

Two experiments on the pixels, :func:`deletion` and :func:`insertion`, replace them in the order of the map and watch
the probability of one class.  Two on the weights, :func:`randomise` and :func:`compare`, replace what was learned and
watch the map.  None of them looks at a mask: a map can be faithful to a network that looks beside the object, see
:mod:`payattn.localize` for the other question.

:func:`band` says how far a mean over images can be trusted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from payattn.attention import choose, promote
from payattn.localize import rescale
from payattn.maps import check_labels, frozen, logits_of
from payattn.models import unit_range

BASELINES = ("zero", "blur", "mean")

Method = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""``method(model, images, target) -> maps (N, h, w)``, as in :mod:`payattn.maps`."""


# ------------------------------------------------------------------------------------------- pixels in and out


@dataclass(frozen=True)
class Curve:
    """The probability of one class while pixels go or come.

    Args:
        fractions: (S + 1,), share of the pixels that are replaced, from 0 to 1.
        scores: (N, S + 1), the probability for each image.

    Example:
        >>> Curve(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([[1.0, 0.2, 0.0]])).auc
        tensor([0.3500])
    """

    fractions: Tensor
    scores: Tensor

    @property
    def auc(self) -> Tensor:
        r"""Area under each image's curve by the trapezoid rule, (N,).

        .. math:: A = \sum_{k=1}^{S} (f_k - f_{k-1}) \frac{s_k + s_{k-1}}{2}
        """
        return torch.trapezoid(self.scores, self.fractions, dim=1)


def deletion(
    model: nn.Module,
    images: Tensor,
    maps: Tensor,
    target: Tensor | None = None,
    *,
    steps: int = 16,
    baseline: str | Tensor = "zero",
    generator: torch.Generator | None = None,
    batch_size: int = 256,
) -> Curve:
    r"""The probability of a class while the pixels leave, the highest of the map first.

    .. math:: s_k = p_c\bigl(x \odot (1 - m_k) + b \odot m_k\bigr)

    with b the baseline and m_k one on the ``f_k`` share of pixels with the highest map.  The lower the area under
    the curve, the sooner the network loses what the map marks.  Only the order of the enlarged map's pixels counts;
    equal pixels go in a random order, so a constant map deletes at random.

    Args:
        model: maps images to logits; left as found.
        images: (N, C, H, W), uint8, or float in the units of the model.
        maps: (N, h, w), of any size and scale; enlarged bilinearly to the images.
        target: class of each image, int64 (N,); None is the predicted one.
        steps: S; the pixels leave in so many groups of one size, up to rounding.
        baseline: what takes their place: ``"zero"``, ``"blur"``, ``"mean"``, see :func:`reference`, or images.
        generator: orders equal pixels, on the CPU; None is a fresh one with seed 0.
        batch_size: images per forward pass.

    Returns:
        The :class:`Curve`; ``auc`` from 0 to 1.

    Raises:
        TypeError, ValueError: a model, images, maps, classes, steps or a baseline that do not fit.

    Source: Petsiuk, Das, Saenko, "RISE", BMVC 2018, section 4.3; the area by trapezoids as there.

    Example:
        >>> class Net(nn.Module):                                     # class 1 has the probability of the first pixel
        ...     def forward(self, images): return torch.stack([1 - images[:, 0, 0, 0], images[:, 0, 0, 0]], 1).log()
        >>> images, first = torch.ones(1, 1, 1, 2), torch.tensor([[[2.0, 1.0]]])
        >>> deletion(Net(), images, first, steps=2).scores, deletion(Net(), images, -first, steps=2).scores
        (tensor([[1., 0., 0.]]), tensor([[1., 1., 0.]]))
    """
    return _watch(model, images, maps, target, steps, baseline, generator, batch_size, leave=True)


def insertion(
    model: nn.Module,
    images: Tensor,
    maps: Tensor,
    target: Tensor | None = None,
    *,
    steps: int = 16,
    baseline: str | Tensor = "zero",
    generator: torch.Generator | None = None,
    batch_size: int = 256,
) -> Curve:
    r"""The probability of a class while the pixels come, the highest of the map first, on top of a baseline.

    .. math:: s_k = p_c\bigl(b \odot (1 - m_k) + x \odot m_k\bigr)

    The higher the area under the curve, the sooner what the map marks suffices for the class.

    Args:
        model, images, maps, target, steps, baseline, generator, batch_size: as for :func:`deletion`.

    Returns:
        The :class:`Curve`; ``auc`` from 0 to 1.

    Raises:
        TypeError, ValueError: as :func:`deletion`.

    Source: Petsiuk, Das, Saenko, "RISE", BMVC 2018, section 4.3, which inserts into a blurred image.

    Example:
        >>> class Net(nn.Module):
        ...     def forward(self, images): return torch.stack([1 - images[:, 0, 0, 0], images[:, 0, 0, 0]], 1).log()
        >>> images, first = torch.ones(1, 1, 1, 2), torch.tensor([[[2.0, 1.0]]])
        >>> insertion(Net(), images, first, torch.tensor([1]), steps=2).auc
        tensor([0.7500])
    """
    return _watch(model, images, maps, target, steps, baseline, generator, batch_size, leave=False)


def reference(images: Tensor, baseline: str = "zero", sigma: float = 0.125) -> Tensor:
    r"""What pixels are replaced by: an image that should say nothing.

    - ``"zero"``: zeros: black for images in [0, 1], the mean colour where the caller has subtracted it;
    - ``"mean"``: each image's own mean colour;
    - ``"blur"``: the image under a Gaussian of standard deviation ``sigma`` times each side; the border is repeated.

    No baseline is neutral.  Black pixels are edges that no image has, a mean colour shows the shape of what was cut
    out, and a blurred image still shows large things.

    Args:
        images: (N, C, H, W), uint8 or floating.
        baseline: one of the three.
        sigma: of the blur, a share of each side.

    Returns:
        Floating (N, C, H, W).

    Raises:
        TypeError, ValueError: images, a name or a sigma that do not fit.

    Example:
        >>> images = torch.tensor([0.0, 0.0, 0.9]).view(1, 1, 1, 3)
        >>> reference(images, "mean").flatten()
        tensor([0.3000, 0.3000, 0.3000])
    """
    pixels = _pixels(images)
    choose("baseline", baseline, BASELINES)
    if not (isinstance(sigma, (int, float)) and 0 < sigma < math.inf):
        raise ValueError(f"sigma must be positive, a share of the side, got {sigma}")
    if baseline == "zero":
        return torch.zeros_like(pixels)
    if baseline == "mean":
        return pixels.mean((2, 3), keepdim=True).expand_as(pixels).clone()
    return _blurred(_blurred(pixels, sigma).mT, sigma).mT.contiguous()


def _blurred(pixels: Tensor, sigma: float) -> Tensor:
    """Each row under a Gaussian, cut off after three standard deviations, with the border repeated."""
    width = sigma * pixels.shape[-1]
    reach = max(1, math.ceil(3 * width))
    places = torch.arange(-reach, reach + 1, device=pixels.device, dtype=pixels.dtype)
    bell = torch.exp(-0.5 * (places / width).square())
    rows = F.pad(pixels.flatten(0, 2)[:, None], (reach, reach), mode="replicate")
    return F.conv1d(rows, (bell / bell.sum()).view(1, 1, -1)).view(pixels.shape)


def _pixels(images: Tensor) -> Tensor:
    if images.ndim != 4 or images[:1].numel() == 0:
        raise ValueError(f"images must be (N, C, H, W) with N at least 1, got {tuple(images.shape)}")
    return promote(unit_range(images)).detach()


def _replacement(pixels: Tensor, baseline: str | Tensor) -> Tensor:
    if isinstance(baseline, str):
        return reference(pixels, baseline)
    try:
        return _pixels(baseline).to(pixels).expand_as(pixels)
    except RuntimeError:
        shapes = f"{tuple(baseline.shape)} and {tuple(pixels.shape)}"
        raise ValueError(f"a baseline of your own must be images of the same shape, got {shapes}") from None


def ranks(maps: Tensor, size: int | tuple[int, int], generator: torch.Generator | None = None) -> Tensor:
    r"""The place of each pixel in the order of its map, 0 for the highest.

    The map is enlarged bilinearly.  Equal pixels are shuffled, anew for each image: an order that came from the
    layout of the memory would reward or punish a flat map by where the objects are.

    Args:
        maps: (N, h, w), any scale.
        size: (H, W), or one number for a square.
        generator: for the shuffle, on the CPU; None is a fresh one with seed 0.

    Returns:
        int64 (N, H, W), each image a permutation of 0 .. HW - 1.

    Raises:
        ValueError: maps that are not (N, h, w) or not finite.

    Example:
        >>> ranks(torch.tensor([[[0.1, 0.9, 0.5]]]), (1, 3))
        tensor([[[2, 0, 1]]])
    """
    height, width = (size, size) if isinstance(size, int) else size
    values = F.interpolate(rescale(maps).double()[:, None], (height, width), mode="bilinear", align_corners=False)
    # the weights of the interpolation sum to 1 up to rounding, which must not order the pixels of a plateau
    values = (values * 2.0**40).round().flatten(1)
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    shuffles = [torch.randperm(height * width, generator=generator) for _ in range(len(values))]
    shuffled = torch.stack(shuffles).to(values.device)
    order = shuffled.gather(1, values.gather(1, shuffled).argsort(dim=1, descending=True, stable=True))
    return order.argsort(dim=1).view(-1, height, width)


def _watch(
    model: nn.Module,
    images: Tensor,
    maps: Tensor,
    target: Tensor | None,
    steps: int,
    baseline: str | Tensor,
    generator: torch.Generator | None,
    batch_size: int,
    leave: bool,
) -> Curve:
    pixels = _pixels(images)
    total = pixels.shape[2] * pixels.shape[3]
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= total:
        raise ValueError(f"steps must be a whole number from 1 to the {total} pixels of an image, got {steps!r}")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be a whole number, 1 or more, got {batch_size!r}")
    if maps.ndim != 3 or len(maps) != len(pixels):
        raise ValueError(f"maps must be ({len(pixels)}, h, w), one per image, got {tuple(maps.shape)}")
    other = _replacement(pixels, baseline)
    old, new = (pixels, other) if leave else (other, pixels)
    place = ranks(maps.detach(), (pixels.shape[2], pixels.shape[3]), generator).to(pixels.device)
    counts = torch.linspace(0, total, steps + 1, dtype=torch.float64).round().long().to(pixels.device)
    with frozen(model, gradients=False):
        classes = classes_of(model, pixels, target, batch_size)
        parts = (x.split(max(1, batch_size // (steps + 1))) for x in (old, new, place, classes))
        scores = torch.cat(
            [_probabilities(model, *four, counts, batch_size) for four in zip(*parts, strict=True)]  # type: ignore[call-arg]
        )
    return Curve(counts.to(scores) / total, scores)


def _probabilities(
    model: nn.Module, old: Tensor, new: Tensor, place: Tensor, classes: Tensor, counts: Tensor, batch_size: int
) -> Tensor:
    """Probabilities (n, S + 1) of a few images with the first ``counts`` pixels exchanged."""
    exchanged = place[:, None] < counts.view(1, -1, 1, 1)
    mixed = torch.where(exchanged[:, :, None], new[:, None], old[:, None]).flatten(0, 1)
    logits = torch.cat([logits_of(model, part) for part in mixed.split(batch_size)])
    return logits.softmax(1).gather(1, classes.repeat_interleave(len(counts))[:, None]).view(len(old), -1)


def classes_of(model: nn.Module, images: Tensor, target: Tensor | None = None, batch_size: int = 256) -> Tensor:
    """The class that is asked for, one per image: the given one after a check, or the predicted one.

    Args:
        model: maps images to logits.
        images: (N, C, H, W), as the model takes them.
        target: int64 (N,); None is the predicted class.
        batch_size: images per forward pass.

    Returns:
        int64 (N,), on the device of the images.

    Raises:
        TypeError, ValueError: a model or classes that do not fit.

    Example:
        >>> classes_of(nn.Flatten(), torch.eye(3).view(3, 3, 1, 1))
        tensor([0, 1, 2])
    """
    with frozen(model, gradients=False):
        if target is not None:
            logits = logits_of(model, images[:1]).expand(len(images), -1)
            return check_labels(target, logits).to(images.device)
        return torch.cat([logits_of(model, part).argmax(1) for part in images.split(batch_size)])


# ------------------------------------------------------------------------------------------- how sure is a mean


class Band(NamedTuple):
    """A mean over images with its confidence band; three tensors of one shape, or three numbers' worth of one."""

    mean: Tensor
    low: Tensor
    high: Tensor


def band(
    values: Tensor, *, level: float = 0.95, resamples: int = 1000, generator: torch.Generator | None = None
) -> Band:
    r"""The mean over images and how far it moves when other images of the kind had been drawn (percentile bootstrap).

    .. math:: \bar v^{*} = \frac{1}{N} \sum_{n=1}^{N} v_{r_n}, \quad r_n \in \{1, \dots, N\} \text{ drawn with
        replacement}

    The band holds the middle ``level`` of the means of ``resamples`` such draws.  It speaks of the choice of the
    images, not of another training of the network.  To compare two maps of the same images take the band of the
    *difference* of their values, image by image.

    Args:
        values: (N, ...), one row per image: areas (N,), or the scores (N, S + 1) of a :class:`Curve`, each column
            with a band of its own.
        level: between 0 and 1.
        resamples: number of draws.
        generator: on the CPU; None is a fresh one with seed 0.

    Returns:
        ``mean``, ``low``, ``high``, each (...).

    Raises:
        ValueError: fewer than two images, values that are not finite, or a level or number that do not fit.

    Source: Efron, Tibshirani, "An introduction to the bootstrap", 1993, section 13.3.

    Example:
        >>> found = band(torch.tensor([0.0, 1.0] * 50))
        >>> found.mean, bool(found.low < 0.45), bool(found.high > 0.55)
        (tensor(0.5000), True, True)
    """
    if values.ndim < 1 or len(values) < 2:
        raise ValueError(f"a band needs the values of two images or more, (N, ...), got {tuple(values.shape)}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    if not isinstance(resamples, int) or resamples < 1:
        raise ValueError(f"resamples must be a whole number, 1 or more, got {resamples!r}")
    kind = promote(values).dtype
    rows = values.detach().double().flatten(1) if values.ndim > 1 else values.detach().double()[:, None]
    if not rows.isfinite().all():
        raise ValueError("values must be finite, and these hold nan or inf")
    n = len(rows)
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(n, (resamples, n), generator=generator).to(rows.device)
    times = torch.zeros(resamples, n, dtype=rows.dtype, device=rows.device)
    times.scatter_add_(1, drawn, torch.ones_like(times))
    middle = rows.mean(0)
    means = middle + times @ (rows - middle) / n  # around the mean, or rounding gives a constant a band
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=rows.dtype, device=rows.device)
    low, high = means.quantile(ends, dim=0)
    return Band(*(x.view(values.shape[1:]).to(kind) for x in (middle, low, high)))
