"""Judging a map by the network: does the decision hang on what the map marks, and the map on what was learned?

Two experiments on the pixels, :func:`deletion` and :func:`insertion`, replace them in the order of the map and watch
the probability of one class.  Two on the weights, :func:`randomise` and :func:`compare`, replace what was learned and
watch the map.  None of them looks at a mask: a map can be faithful to a network that looks beside the object, see
:mod:`payattn.localize` for the other question.

:func:`band` says how far a mean over images can be trusted.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from payattn.attention import choose, promote
from payattn.localize import rescale
from payattn.maps import BASELINES as BASELINES
from payattn.maps import Method, check_labels, floats_of, frozen, logits_of, replacement
from payattn.maps import reference as reference

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

    Source: Petsiuk, Das, Saenko, "RISE", BMVC 2018, section 4; the area by trapezoids, as in their code.

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

    Source: Petsiuk, Das, Saenko, "RISE", BMVC 2018, section 4, which inserts into a blurred image.

    Example:
        >>> class Net(nn.Module):
        ...     def forward(self, images): return torch.stack([1 - images[:, 0, 0, 0], images[:, 0, 0, 0]], 1).log()
        >>> images, first = torch.ones(1, 1, 1, 2), torch.tensor([[[2.0, 1.0]]])
        >>> insertion(Net(), images, first, torch.tensor([1]), steps=2).auc
        tensor([0.7500])
    """
    return _watch(model, images, maps, target, steps, baseline, generator, batch_size, leave=False)


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
    pixels = floats_of(images)
    total = pixels.shape[2] * pixels.shape[3]
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= total:
        raise ValueError(f"steps must be a whole number from 1 to the {total} pixels of an image, got {steps!r}")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be a whole number, 1 or more, got {batch_size!r}")
    if maps.ndim != 3 or len(maps) != len(pixels):
        raise ValueError(f"maps must be ({len(pixels)}, h, w), one per image, got {tuple(maps.shape)}")
    other = replacement(pixels, baseline)
    old, new = (pixels, other) if leave else (other, pixels)
    place = ranks(maps.detach(), (pixels.shape[2], pixels.shape[3]), generator).to(pixels.device)
    counts = torch.linspace(0, total, steps + 1, dtype=torch.float64).round().long().to(pixels.device)
    with frozen(model, gradients=False):
        classes = classes_of(model, pixels, target, batch_size)
        parts = zip(*(x.split(max(1, batch_size // (steps + 1))) for x in (old, new, place, classes)), strict=True)
        scores = torch.cat([_probabilities(model, a, b, p, c, counts, batch_size) for a, b, p, c in parts])
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
    """A mean over images with its confidence band: three tensors of one shape.

    Example:
        >>> found = Band(torch.tensor(0.5), torch.tensor(0.25), torch.tensor(0.75))
        >>> found.text(), found.answer()
        ('0.50 (0.25 to 0.75)', 'yes')
    """

    mean: Tensor
    low: Tensor
    high: Tensor

    def text(self, digits: int = 2) -> str:
        """One mean and its band, as tables show them."""
        mean, low, high = (f"{value.item():.{digits}f}" for value in self)
        return f"{mean} ({low} to {high})"

    def answer(self) -> str:
        """Of a band of differences: ``"yes"`` if all of it is above 0, ``"no"`` if below, else not decided."""
        return "yes" if self.low > 0 else "no" if self.high < 0 else "not decided here"


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


# ------------------------------------------------------------------------------------------- are two maps alike


def spearman(first: Tensor, second: Tensor) -> Tensor:
    r"""Rank correlation of two maps of each image.

    .. math:: \rho = \frac{\sum_i (r_i - \bar r)(q_i - \bar q)}
        {\sqrt{\sum_i (r_i - \bar r)^2 \, \sum_i (q_i - \bar q)^2}}

    with r and q the ranks of the positions; equal values share the mean of their ranks.  Two constant maps are alike
    (1); a constant map and another share nothing (0).  Signs count: take the absolute value of both maps where the
    sign has no meaning.

    Args:
        first, second: (N, h, w), any scale.

    Returns:
        (N,), at least float32, from -1 to 1.

    Raises:
        ValueError: maps of different shapes, or not finite.

    Source: Adebayo et al., "Sanity checks for saliency maps", NeurIPS 2018, section 3.

    Example:
        >>> first = torch.tensor([[[1.0, 2.0, 4.0, 9.0]]])
        >>> spearman(first, first.log()), spearman(first, first.flip(2)), spearman(first, torch.ones(1, 1, 4))
        (tensor([1.]), tensor([-1.]), tensor([0.]))
    """
    one, other = _ranked(_same(first, second)[0]), _ranked(second)
    spread = one.square().sum(1) * other.square().sum(1)
    both_flat = ((one == 0).all(1) & (other == 0).all(1)).to(one)
    shared = (one * other).sum(1) / torch.where(spread > 0, spread, 1).sqrt()
    return torch.where(spread > 0, shared, both_flat).to(promote(first).dtype)


def _same(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    if first.shape != second.shape:
        raise ValueError(
            f"the maps must be (N, h, w) of one shape, got {tuple(first.shape)} and {tuple(second.shape)}; compare "
            "them at the resolution of the coarser one"
        )
    return first, second


def _ranked(maps: Tensor) -> Tensor:
    """Ranks (N, h * w) around their mean; equal values share one."""
    values = rescale(maps).flatten(1)
    ordered = values.sort(dim=1).values
    below = torch.searchsorted(ordered, values, right=False) + torch.searchsorted(ordered, values, right=True)
    return (below.double() - values.shape[1]) / 2


def ssim(first: Tensor, second: Tensor, window: int = 7) -> Tensor:
    r"""Structural similarity of two maps of each image, after each was stretched to [0, 1].

    .. math:: \frac{(2 \mu_a \mu_b + c_1)(2 \sigma_{ab} + c_2)}
        {(\mu_a^2 + \mu_b^2 + c_1)(\sigma_a^2 + \sigma_b^2 + c_2)}, \quad c_1 = 0.01^2, \; c_2 = 0.03^2

    averaged over all windows that lie inside the map; means and (co)variances are those of the window.  In maps
    smaller than the window it shrinks to the largest odd side that fits.

    Args:
        first, second: (N, h, w), any scale.
        window: side of the square window, odd.

    Returns:
        (N,), at least float32, from -1 to 1.

    Raises:
        ValueError: maps of different shapes, or not finite; an even window.

    Source: Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment", IEEE TIP 2004, equation 13, with a flat
    window.

    Example:
        >>> maps = torch.eye(8)[None]
        >>> ssim(maps, 100 * maps)
        tensor([1.])
    """
    if not isinstance(window, int) or window < 1 or window % 2 == 0:
        raise ValueError(f"window must be odd, 1 or more, got {window!r}")
    one, other = (rescale(x).double()[:, None] for x in _same(first, second))
    fits = min(window, *first.shape[1:])
    side = fits - (fits + 1) % 2

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, side, stride=1)

    a, b, c1, c2 = mean(one), mean(other), 0.01**2, 0.03**2
    shared = mean(one * other) - a * b
    spread = mean(one * one) - a * a + mean(other * other) - b * b
    found = (2 * a * b + c1) * (2 * shared + c2) / ((a * a + b * b + c1) * (spread + c2))
    return found.mean((1, 2, 3)).to(promote(first).dtype)


# ------------------------------------------------------------------------------------------- weights in and out


@dataclass(frozen=True)
class Likeness:
    """How alike maps are, stage by stage.

    Args:
        stages: S names.
        maps: (S, N, h, w), the maps of each stage.
        spearman: (S, N), rank correlation with the maps of the trained network, see :func:`spearman`.
        ssim: (S, N), structural similarity with them, see :func:`ssim`.
    """

    stages: tuple[str, ...]
    maps: Tensor
    spearman: Tensor
    ssim: Tensor


def randomise(
    model: nn.Module,
    images: Tensor,
    method: Method,
    target: Tensor | None = None,
    *,
    layers: Sequence[str] | None = None,
    generator: torch.Generator | None = None,
    batch_size: int = 256,
) -> Likeness:
    """Cascading randomisation: what is left of the maps when the weights are lost, from the logits down?

    Stage 0 is the network as it is, ``"trained"``.  Each further stage draws the weights of one more layer anew, the
    one next to the logits first, and keeps those of the stages before.  A map that survives does not depend on what
    was learned there.  A layer is drawn by its own ``reset_parameters``, BatchNorm's running statistics included;
    parameters without one come from a normal law of their own root mean square.  In the end the model is as found,
    bit for bit.

    Args:
        model: maps images to logits.
        images: (N, C, H, W), as the method takes them.
        method: ``method(model, images, target) -> (N, h, w)``, see :mod:`payattn.maps`.
        target: class of each image, int64 (N,); None is the one that the trained network predicts, at all stages.
        layers: names of modules with all that is inside them, the first to go first; None is every module with
            parameters of its own, in the reverse of the order in which one forward pass leaves them.
        generator: draws the weights, on the CPU, so that every device sees the same; None is a fresh one with seed 0.
        batch_size: images per call of the method.

    Returns:
        The :class:`Likeness` with the maps of the trained network.

    Raises:
        ValueError: a layer that the model does not have, or that has no parameters; maps that do not fit.

    Source: Adebayo et al., "Sanity checks for saliency maps", NeurIPS 2018, section 3.1.

    Example:
        >>> from payattn.maps import gradient_saliency
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> found = randomise(net, torch.rand(2, 3, 4, 4), gradient_saliency)
        >>> found.stages, found.spearman[0], found.maps.shape
        (('trained', '3', '0'), tensor([1., 1.]), torch.Size([3, 2, 4, 4]))
    """
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    classes = classes_of(model, floats_of(images), target, batch_size)
    stages = _cascade(model, images[:1], layers)
    kept = [(tensor, tensor.detach().clone()) for tensor in (*model.parameters(), *model.buffers())]
    found = [maps_by(method, model, images, classes, batch_size)]
    try:
        for owners in stages.values():
            for owner in owners:
                _draw(owner, generator)
            found.append(maps_by(method, model, images, classes, batch_size))
    finally:
        with torch.no_grad():
            for tensor, value in kept:
                tensor.copy_(value)
    return _likeness(("trained", *stages), found)


def compare(
    model: nn.Module,
    other: nn.Module,
    images: Tensor,
    method: Method,
    target: Tensor | None = None,
    *,
    names: tuple[str, str] = ("true labels", "shuffled labels"),
    batch_size: int = 256,
) -> Likeness:
    """The label test: do the maps of a network that could learn nothing but a list look like those of a trained one?

    Train a second network on shuffled labels, until it knows its training images by heart, and hand both in.  A
    method whose maps are the same for both shows the image, or the architecture, but not what was learned.

    Args:
        model: trained on the true labels.
        other: of the same form, trained on shuffled ones; or any other network, such as one with another seed, which
            is what the answer should be held against.
        images: (N, C, H, W), as the method takes them.
        method: ``method(model, images, target) -> (N, h, w)``, see :mod:`payattn.maps`.
        target: class of each image, int64 (N,), asked of both; None is the one that ``model`` predicts.
        names: of the two stages.
        batch_size: images per call of the method.

    Returns:
        The :class:`Likeness` with the maps of ``model``, of two stages.

    Raises:
        ValueError: maps of different shapes.

    Source: Adebayo et al., "Sanity checks for saliency maps", NeurIPS 2018, section 3.2 (data randomisation test).

    Example:
        >>> from payattn.maps import gradient_saliency
        >>> one, two = (nn.Sequential(nn.Flatten(), nn.Linear(12, 2)) for _ in range(2))
        >>> compare(one, two, torch.rand(3, 3, 2, 2), gradient_saliency).spearman.shape
        torch.Size([2, 3])
    """
    classes = classes_of(model, floats_of(images), target, batch_size)
    found = [maps_by(method, each, images, classes, batch_size) for each in (model, other)]
    return _likeness(names, found)


def maps_by(
    method: Method, model: nn.Module, images: Tensor, target: Tensor | None = None, batch_size: int = 256
) -> Tensor:
    """The maps of a method in batches, cut off from any graph.

    Args:
        method: ``method(model, images, target) -> (n, h, w)``.
        model: handed to it.
        images: (N, C, H, W), so many of them at once.
        target: int64 (N,), or None, which is handed on as it is.
        batch_size: images per call.

    Returns:
        (N, h, w).

    Raises:
        ValueError: what came back is not one map per image.

    Example:
        >>> maps_by(lambda model, images, target: images.mean(1), nn.Flatten(), torch.ones(3, 3, 2, 2), None, 2).shape
        torch.Size([3, 2, 2])
    """
    parts = []
    for places in torch.arange(len(images)).split(batch_size):
        some = slice(int(places[0]), int(places[-1]) + 1)
        maps = method(model, images[some], None if target is None else target[some]).detach()
        if maps.ndim != 3 or len(maps) != len(places):
            raise ValueError(f"the method must give ({len(places)}, h, w), one map per image, got {tuple(maps.shape)}")
        parts.append(maps)
    return torch.cat(parts)


def _likeness(stages: tuple[str, ...], maps: list[Tensor]) -> Likeness:
    return Likeness(
        stages,
        torch.stack([_same(each, maps[0])[0] for each in maps]),
        torch.stack([spearman(maps[0], each) for each in maps]),
        torch.stack([ssim(maps[0], each) for each in maps]),
    )


def _cascade(model: nn.Module, images: Tensor, layers: Sequence[str] | None) -> dict[str, list[nn.Module]]:
    """Names of the stages to the modules whose own parameters they draw anew."""
    named = dict(model.named_modules())
    owners = {name: module for name, module in named.items() if any(True for _ in module.parameters(recurse=False))}
    if layers is None:
        left = _left(model, images)
        # of layers that leave together the one that stands last in the model goes first
        order = {name: (_when(name, left), place) for place, name in enumerate(owners)}
        return {name: [owners[name]] for name in sorted(owners, key=order.__getitem__, reverse=True)}
    stages = {}
    for layer in layers:
        choose("layer", layer, [name for name in named if name])
        inside = [owner for name, owner in owners.items() if name == layer or name.startswith(layer + ".")]
        if not inside:
            raise ValueError(f"layer {layer!r} has no parameters to draw; layers with some: {', '.join(owners)}")
        stages[layer] = inside
    return stages


def _left(model: nn.Module, images: Tensor) -> dict[str, int]:
    """When one forward pass leaves each module for the last time."""
    left: dict[str, int] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            left.pop(name, None)
            left[name] = next(clock)

        return hook

    clock = itertools.count()
    handles = [module.register_forward_hook(note(name)) for name, module in model.named_modules()]
    try:
        with frozen(model, gradients=False):
            logits_of(model, floats_of(images))
    finally:
        for handle in handles:
            handle.remove()
    return left


def _when(name: str, left: dict[str, int]) -> int:
    """A module that is not called, only read by the one around it, counts as that one."""
    while name and name not in left:
        name = name.rpartition(".")[0]
    return left.get(name, 0)


def _draw(owner: nn.Module, generator: torch.Generator) -> None:
    """New weights for one module, the same on every device."""
    seed = int(torch.randint(2**62, (1,), generator=generator))
    own = [*owner.parameters(recurse=False), *owner.buffers(recurse=False)]
    fresh = copy.deepcopy(owner).cpu()
    reset = getattr(fresh, "reset_parameters", None)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if callable(reset):
            reset()
        else:
            for parameter in fresh.parameters(recurse=False):
                size = parameter.square().mean().sqrt()
                parameter.normal_().mul_(torch.where(size > 0, size, 1))
        drawn = [*fresh.parameters(recurse=False), *fresh.buffers(recurse=False)]
        for tensor, value in zip(own, drawn, strict=True):
            tensor.copy_(value)
