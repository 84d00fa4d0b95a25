"""The networks by the papers' names: VGG, VGG-att, RN-164 and their kin; Attention-56 to -452; WRN-16-1, NIN, others.

``create("vgg-att2-concat-pc", classes=10)`` builds one; ``list_models("*att2*")`` lists them. Every model takes
images (N, 3, H, W), uint8 or float in [0, 1], of any H x W, and returns logits (N, C);
``model(images, return_maps=True)`` returns ``(logits, maps)``, ``maps`` a dict from layer name to (N, H, W), and
``model.features(images)`` what its last linear layer sees.

``colour`` holds the first layers, ``base`` what the networks share, ``vgg`` and ``resnet`` the networks of Learn To Pay
Attention, ``residual`` those of the Residual Attention Network, ``wide``, ``nin`` and ``mobile`` those of Attention
Transfer; ``imagenet`` holds ResNet-18 and -34, which need torchvision when they are built.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from fnmatch import fnmatch
from functools import partial
from itertools import product
from typing import Any

from payattn.attention import SCORES
from payattn.models.base import Classifier, ConvBlock, Maps, class_activation, pool, scale_gradient
from payattn.models.colour import (
    COLOURS,
    Normalize,
    YUVLocalContrast,
    colour_statistics,
    first_layer,
    local_contrast,
    to_yuv,
    unit_range,
)
from payattn.models.imagenet import ImageNetResNet
from payattn.models.mobile import InvertedResidual, MobileNetV2
from payattn.models.nin import NIN, THIN, WIDE
from payattn.models.residual import CIFARAttention, ImageNetAttention, ResidualAttentionNetwork
from payattn.models.resnet import PreActResNet, ResidualTrunk, ResNetAttention
from payattn.models.vgg import LAYERS, LEVELS, VGG, VGGGAP, VGGPAN, WIDTHS, QueryBranch, Trunk, VGGAttention, shrink
from payattn.models.wide import WideBlock, WideResNet
from payattn.residual import Bottleneck

__all__ = [
    "COLOURS", "LAYERS", "LEVELS", "NIN", "REGISTRY", "VGG", "VGGGAP", "VGGPAN", "WIDTHS", "Bottleneck",
    "CIFARAttention", "ConvBlock", "ImageNetAttention", "ImageNetResNet", "InvertedResidual", "Maps", "MobileNetV2",
    "Normalize", "PreActResNet", "QueryBranch", "ResNetAttention", "ResidualAttentionNetwork", "ResidualTrunk", "Trunk",
    "VGGAttention", "WideBlock", "WideResNet", "YUVLocalContrast", "class_activation", "colour_statistics", "create",
    "first_layer", "list_models", "local_contrast", "pool", "scale_gradient", "shrink", "to_yuv",
    "unit_range",
]  # fmt: skip


def _registry() -> dict[str, Callable[..., Classifier]]:
    """The papers' names. One level has one descriptor, so ``vgg-att-pc`` needs no ``concat`` or ``indep``."""
    models: dict[str, Callable[..., Classifier]] = {
        "vgg": VGG,
        "vgg-gap": VGGGAP,
        "vgg-att-control": partial(VGGAttention, levels=0),
        "vgg-pan": VGGPAN,
        "rn-164": PreActResNet,
        "rn-164-att-control": partial(ResNetAttention, levels=0),
    }
    for score in SCORES:
        models[f"vgg-att-{score}"] = partial(VGGAttention, levels=1, score=score)
    for levels, head, score in product((2, 3), ("concat", "indep"), SCORES):
        models[f"vgg-att{levels}-{head}-{score}"] = partial(VGGAttention, levels=levels, head=head, score=score)
    for score in SCORES:
        models[f"rn-164-att2-concat-{score}"] = partial(ResNetAttention, levels=2, score=score)
    for depth in (56, 92, 128, 164, 236, 452):
        models[f"attention-{depth}"] = partial(CIFARAttention, depth=depth)
    for name, unit in (("attention", "preact"), ("attentionnext", "resnext"), ("attentioninception", "inception")):
        for depth in (56,) if unit == "inception" else (56, 92):
            models[f"{name}-{depth}-imagenet"] = partial(ImageNetAttention, depth=depth, unit=unit)
    for depth, widen in ((10, 1), (16, 1), (16, 2), (40, 1), (40, 2)):
        models[f"wrn-{depth}-{widen}"] = partial(WideResNet, depth=depth, widen=widen)
    for name, channels in (("nin-wide", WIDE), ("nin-thin", THIN)):
        models[name] = partial(NIN, channels=channels, bn=True)
        models[f"{name}-nobn"] = partial(NIN, channels=channels, bn=False)
    models["mobile-v2"] = MobileNetV2
    for depth in (18, 34):  # they need torchvision when they are built
        models[f"resnet-{depth}"] = partial(ImageNetResNet, depth=depth)
    return models


REGISTRY = _registry()


def list_models(pattern: str = "*") -> list[str]:
    """Names that ``create`` knows, filtered by a shell pattern.

    Example:
        >>> list_models("vgg-att2-*-pc")
        ['vgg-att2-concat-pc', 'vgg-att2-indep-pc']
    """
    return [name for name in REGISTRY if fnmatch(name, pattern)]


def create(name: str, classes: int = 10, **options: Any) -> Classifier:
    """Build a network by the paper's name, for example ``"vgg-att2-concat-pc"``.

    Args:
        name: one of ``list_models()``.
        classes: number of classes C.
        options: arguments of the network's class, such as ``width=0.125`` for a CPU, ``dropout=0`` or
            ``norm="sigmoid-sum"`` (see ``VGGAttention``, ``VGGPAN``, ``ResNetAttention``, ``CIFARAttention``,
            ``ImageNetAttention``, ``WideResNet``, ``NIN``, ``MobileNetV2`` and ``ImageNetResNet``).

    Returns:
        The network, in training mode. Its ``spec`` holds name, classes and options, so that a checkpoint can
        build it again.

    Raises:
        ValueError: for an unknown name, with the nearest ones.
        TypeError: for an option that the network does not have.

    Example:
        >>> net = create("vgg-att2-concat-dp", classes=10, width=0.125)
        >>> net.levels
        ('layer10', 'layer13')
    """
    if name not in REGISTRY:
        near = get_close_matches(name, REGISTRY, n=3, cutoff=0.3)
        raise ValueError(f"no model {name!r}; nearest: {', '.join(near) or 'none'}; all: payattn.list_models()")
    build = REGISTRY[name]
    kind = build.func if isinstance(build, partial) else build
    fixed = set(build.keywords) if isinstance(build, partial) else set()
    valid = [key for key in inspect.signature(kind).parameters if key not in fixed | {"classes"}]
    for key in options:
        if key not in valid:
            near = get_close_matches(key, valid, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"{name} has no option {key!r}{hint} (valid: {', '.join(valid)})")
    model = build(classes, **options)
    model.spec = {"name": name, "classes": classes, "options": dict(options)}
    return model
