"""The networks of the Residual Attention Network (Wang et al. 2017): Attention-56 to Attention-452, AttentionNeXt.

A stage is a residual unit that changes the channels, and attention modules behind it. The CIFAR networks have three
stages at the image's side, half and a quarter of it, with the same number of modules in each. The ImageNet networks
start with a strided stem and end with a fourth stage without modules.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from payattn.attention import INITS, choose
from payattn.models.base import Classifier, Maps, he_normal, map_of_class
from payattn.models.colour import Numbers
from payattn.residual import (
    AttentionModule,
    Branches,
    before_convolution,
    channel_mean,
    max_pool,
    recomputed,
    residual_unit,
)

CIFAR_UNITS = {452: (6, (2, 4, 3))}  # modules per stage and {p, t, r} of the depth that does not follow the rule
IMAGENET_MODULES = {56: (1, 1, 1), 92: (1, 2, 3)}


def _whole_numbers(what: str, values: int | Sequence[int], length: int, least: int) -> tuple[int, ...]:
    found = (values,) * length if isinstance(values, int) else tuple(values)
    if len(found) != length or any(isinstance(v, bool) or not isinstance(v, int) or v < least for v in found):
        raise ValueError(f"{what} must be {length} whole numbers, {least} or more, got {values!r}")
    return found


def _modules_of_cifar(depth: int) -> tuple[int, tuple[int, int, int]]:
    """Modules per stage and {p, t, r} of a depth: ``36 m + 20`` with {1, 2, 1}, and Attention-452."""
    if depth in CIFAR_UNITS:
        return CIFAR_UNITS[depth]
    modules = (depth - 20) // 36
    if modules < 1 or depth != 36 * modules + 20:
        near = 36 * max(1, round((depth - 20) / 36)) + 20
        raise ValueError(
            f"depth must be 36 m + 20 with m attention modules per stage, or 452, got {depth}; nearest: {near}"
        )
    return modules, (1, 2, 1)


def _stage(
    unit: str, in_channels: int, channels: int, stride: int, count: int, modules: Sequence[nn.Module], behind: int
) -> nn.Sequential:
    """``count`` units, the last ``behind`` of them behind the attention modules, all under their names."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for j in range(count):
        parts[f"unit{j + 1}"] = residual_unit(unit, channels if j else in_channels, channels, 1 if j else stride)
    for j, module in enumerate(modules):
        parts[f"attention{j + 1}"] = module
    for j in range(count - behind, count):
        parts.move_to_end(f"unit{j + 1}")
    return nn.Sequential(parts)


class ResidualAttentionNetwork(Classifier):
    """What the CIFAR and the ImageNet form share: a stem, stages with attention modules, average, linear layer.

    Attributes:
        levels: names of the attention modules, such as ``"stage1.attention1"``; ``model.get_submodule(name)`` is
            the module.
        depth: convolutions and linear layers on the longest path through the trunk; masks and shortcuts do not
            count.

    Source: Residual Attention Network, sections 3 and 4; authors' network files.

    Example:
        >>> net = CIFARAttention(classes=10, width=0.25).eval()
        >>> isinstance(net, ResidualAttentionNetwork), net.levels
        (True, ('stage1.attention1', 'stage2.attention1', 'stage3.attention1'))
    """

    stages: tuple[str, ...]
    depth: int
    recompute: bool

    def _build(
        self, stem: nn.Module, channels: Sequence[int], modules: Sequence[int], pools: Sequence[int],
        counts: Sequence[int], behind: int, unit: str, classes: int, init: str, **options: Any,
    ) -> None:  # fmt: skip
        """The first of ``channels`` is the stem's; ``counts`` are the units of each stage outside its modules."""
        self.stem = stem
        self.stages = tuple(f"stage{k + 1}" for k in range(len(counts)))
        for k, name in enumerate(self.stages):
            inside = [
                AttentionModule(channels[k + 1], pools[k], unit=unit, **options)
                for _ in range(modules[k] if k < len(modules) else 0)
            ]
            stride = 1 if k == 0 else 2
            self.add_module(name, _stage(unit, channels[k], channels[k + 1], stride, counts[k], inside, behind))
        self.levels = tuple(
            f"{stage}.{name}"
            for stage in self.stages
            for name, layer in self._parts(stage)
            if isinstance(layer, AttentionModule)
        )
        self.norm = before_convolution(unit, channels[-1])
        self.head = nn.Linear(channels[-1], classes)
        self.depth = 3 * (sum(counts) + (2 * options["p"] + options["t"]) * len(self.levels)) + 2
        self.initialise(init)

    def initialise(self, init: str) -> None:
        """``"paper"``: convolutions N(0, 2 / (k^2 C_out)) (He et al. 2015), BatchNorm (1, 0); ``"default"``: PyTorch's.

        The paper does not say whether C_in or C_out counts; C_out is our choice. The linear layer is PyTorch's.
        """
        if choose("init", init, INITS) == "paper":
            he_normal(self)

    def _parts(self, stage: str) -> list[tuple[str, nn.Module]]:
        return list(self.get_submodule(stage).named_children())

    def _last(
        self, images: Tensor, keep: Callable[[Branches], Any] | None = None,
        keep_end: Callable[[Tensor], Any] | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:  # fmt: skip
        """Features before the average, and what is kept of each attention module and each stage's end, by name."""
        x, kept = self.stem(self.normalize(images)), {}
        for stage in self.stages:
            for name, layer in self._parts(stage):
                if not isinstance(layer, AttentionModule):
                    x = layer(x)
                    continue
                again = self.recompute and torch.is_grad_enabled()
                found = recomputed(layer, x) if again else layer.branches(x)
                x = found.output
                if keep is not None:
                    kept[f"{stage}.{name}"] = keep(found)
            if keep_end is not None:
                kept[stage] = keep_end(x)
        return self.norm(x), kept

    def branches(self, images: Tensor) -> dict[str, Branches]:
        """Trunk, logits, mask, fused features and output of each attention module, by name."""
        return self._last(images, lambda found: found)[1]

    def masks(self, images: Tensor) -> Maps:
        """The full mask M of each attention module, by name: (N, C, h, w), one value per channel and position."""
        return self._last(images, lambda found: found.mask)[1]

    def responses(self, images: Tensor) -> Maps:
        """Mean of ``|output|`` over images, channels and positions: of each attention module and stage, by name.

        Source: Residual Attention Network, section 4.1, the figure of the mean response.
        """
        return self._last(images, lambda found: found.output.abs().mean(), lambda x: x.abs().mean())[1]

    def features(self, images: Tensor) -> Tensor:
        """What the linear layer sees, (N, 256) for CIFAR and (N, 2048) for ImageNet at width 1."""
        return self._last(images)[0].mean(dim=(2, 3))

    def class_map(self, images: Tensor, target: Tensor | None = None) -> Tensor:
        """The class activation map (N, h, w) of class ``target`` (N,); None takes the predicted class."""
        return map_of_class(self._last(images)[0], self.head, target)

    def forward(self, images: Tensor, return_maps: bool = False) -> Tensor | tuple[Tensor, Maps]:
        """Logits (N, C); with ``return_maps`` also one map per attention module, (N, h, w).

        A map is the mean of the mask over its channels, and does not sum to one; ``masks(images)`` gives all
        channels.

        Args:
            images: (N, 3, H, W), uint8 or float in [0, 1].
            return_maps: also return the maps, by name.
        """
        keep = (lambda found: channel_mean(found.mask)) if return_maps else None
        x, maps = self._last(images, keep)
        logits = self.head(x.mean(dim=(2, 3)))
        return (logits, maps) if return_maps else logits


class CIFARAttention(ResidualAttentionNetwork):
    """Attention-56, -92, -128, -164, -236 and -452 for small images (section 4.1).

    The paper gives the depth, the number of modules and the size in parameters. Stem, channels, poolings and the
    place of the two units per stage are our reading: with a 3x3 convolution to 16 channels, stages of 64, 128 and
    256 channels and 3, 2, 1 poolings, Attention-92 and -236 have the printed 1.9 and 5.1 million parameters (100
    classes). Attention-452 has 10.2 million in this reading, and 8.6 in print.

    Args:
        classes: C.
        depth: ``36 m + 20`` with m modules per stage and ``{p, t, r} = {1, 2, 1}``, or 452, which has 6 with
            ``{2, 4, 3}``.
        modules: per stage, one number or three, in place of what the depth says.
        units: (p, t, r) in place of what the depth says, see ``payattn.residual.AttentionModule``.
        pools: poolings of the masks, by stage.
        unit: ``"preact"`` as in the paper, ``"resnext"`` or ``"inception"``. The last two put BN-ReLU into the stem.
        extra_units: ``"split"``: one unit before the modules of a stage and one behind; ``"before"``: both before.
        fusion, activation, mask, local_units, double_skip: see ``payattn.residual.AttentionModule``.
        recompute: keep only the input of each attention module for the backward pass, see
            ``payattn.residual.recomputed``: less memory, more time, the same numbers.
        stem: channels of the stem; None for 16 times the width.
        width: factor on all channels, 1 is the paper's network, 0.25 suits a CPU.
        dropout: without use here (the networks have none); it must still lie in [0, 1].
        init: ``"paper"`` or ``"default"``, see ``initialise``.
        mean, std, colour: of the first layer, see ``VGGAttention``.

    Raises:
        ValueError: for an impossible depth, with the nearest, and for other options out of range.

    Example:
        >>> sum(p.numel() for p in CIFARAttention(classes=10, depth=56).parameters())
        1030362
    """

    def __init__(
        self, classes: int = 10, *, depth: int = 56, modules: int | Sequence[int] | None = None,
        units: Sequence[int] | None = None, pools: Sequence[int] = (3, 2, 1), unit: str = "preact",
        fusion: str = "residual", activation: str = "mixed", mask: str = "hourglass", local_units: int = 3,
        double_skip: bool = False, recompute: bool = False, extra_units: str = "split", stem: int | None = None,
        width: float = 1.0, dropout: float = 1.0, init: str = "paper", mean: Numbers | None = None,
        std: Numbers | None = None, colour: str = "rgb",
    ) -> None:  # fmt: skip
        super().__init__(classes, width, dropout, mean, std, colour)
        self.recompute = recompute
        m, ptr = _modules_of_cifar(depth)
        p, t, r = _whole_numbers("units (p, t, r)", ptr if units is None else units, 3, 0)
        channels = [4 * max(1, round(c * width)) for c in (16, 32, 64)]
        first = max(1, round(16 * width)) if stem is None else _whole_numbers("stem", stem, 1, 1)[0]
        convolution = nn.Conv2d(3, first, kernel_size=3, padding=1, bias=False)
        self._build(
            convolution if unit == "preact" else nn.Sequential(convolution, nn.BatchNorm2d(first), nn.ReLU()),
            [first, *channels],
            _whole_numbers("modules", m if modules is None else modules, 3, 0),
            _whole_numbers("pools", pools, 3, 1),
            (2, 2, 2), int(choose("extra_units", extra_units, ("split", "before")) == "split"), unit, classes, init,
            p=p, t=t, r=r, fusion=fusion, activation=activation, mask=mask, local_units=local_units,
            double_skip=double_skip,
        )  # fmt: skip


class MaxPool(nn.Module):
    """``payattn.residual.max_pool`` as a layer.

    Example:
        >>> MaxPool()(torch.rand(1, 2, 5, 1)).shape
        torch.Size([1, 2, 2, 1])
    """

    def forward(self, x: Tensor) -> Tensor:
        return max_pool(x)


class ImageNetAttention(ResidualAttentionNetwork):
    """Attention-56 and -92, AttentionNeXt-56 and -92, AttentionInception-56 for large images (section 4.2).

    The files of the first four were released by the authors; that of AttentionInception was not, see
    ``payattn.residual.InceptionUnit``. The average over the last map takes any size, 224 or 320 px in the paper.

    Args:
        classes: C, 1000 in the paper.
        depth: 56, with one module in each of the first three stages, or 92, with 1, 2 and 3.
        modules: per stage, one number or three, in place of what the depth says.
        units: (p, t, r), see ``payattn.residual.AttentionModule``.
        unit: ``"preact"`` for Attention, ``"resnext"`` for AttentionNeXt, ``"inception"`` for AttentionInception.
        width: factor on all channels, 1 is the paper's network, 0.0625 suits a CPU.
        pools, fusion, activation, mask, local_units, double_skip, recompute, dropout, init, mean, std, colour: see
            ``CIFARAttention``.

    Raises:
        ValueError: for another depth, with the nearest, and for other options out of range.

    Example:
        >>> net = ImageNetAttention(classes=10, width=0.0625).eval()
        >>> logits, maps = net(torch.rand(1, 3, 65, 96), return_maps=True)
        >>> {name: tuple(a.shape) for name, a in maps.items()}
        {'stage1.attention1': (1, 16, 24), 'stage2.attention1': (1, 8, 12), 'stage3.attention1': (1, 4, 6)}
    """

    def __init__(
        self, classes: int = 1000, *, depth: int = 56, modules: int | Sequence[int] | None = None,
        units: Sequence[int] = (1, 2, 1), pools: Sequence[int] = (3, 2, 1), unit: str = "preact",
        fusion: str = "residual", activation: str = "mixed", mask: str = "hourglass", local_units: int = 3,
        double_skip: bool = False, recompute: bool = False, width: float = 1.0, dropout: float = 1.0,
        init: str = "paper", mean: Numbers | None = None, std: Numbers | None = None, colour: str = "rgb",
    ) -> None:  # fmt: skip
        super().__init__(classes, width, dropout, mean, std, colour)
        self.recompute = recompute
        if depth not in IMAGENET_MODULES:
            near = min(IMAGENET_MODULES, key=lambda known: abs(known - depth))
            raise ValueError(f"depth must be 56 or 92, got {depth}; nearest: {near}")
        p, t, r = _whole_numbers("units (p, t, r)", units, 3, 0)
        first, *channels = (max(1, round(64 * width)), *(4 * max(1, round(c * width)) for c in (64, 128, 256, 512)))
        convolution = nn.Conv2d(3, first, kernel_size=7, stride=2, padding=3, bias=False)
        self._build(
            nn.Sequential(convolution, nn.BatchNorm2d(first), nn.ReLU(), MaxPool()),
            [first, *channels],
            _whole_numbers("modules", IMAGENET_MODULES[depth] if modules is None else modules, 3, 0),
            _whole_numbers("pools", pools, 3, 1),
            (1, 1, 1, 3), 0, unit, classes, init,
            p=p, t=t, r=r, fusion=fusion, activation=activation, mask=mask, local_units=local_units,
            double_skip=double_skip,
        )  # fmt: skip
