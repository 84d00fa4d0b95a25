"""The networks of Learn To Pay Attention by the paper's names: VGG, VGG-GAP, VGG-att and their control.

``create("vgg-att2-concat-pc", classes=10)`` builds one; ``list_models("*att2*")`` lists them. Every model takes
images (N, 3, H, W), uint8 or float in [0, 1], of any H x W, and returns logits (N, C);
``model(images, return_maps=True)`` returns ``(logits, maps)``, ``maps`` a dict from layer name to (N, H, W).

The trunk (paper, section 4; the layer table is the authors' code) has the 3x3 convolutions 1 to 15. A *level* is
the output of layer 7, 10 or 13, and the query g comes from layers 14 and 15 and the linear layer FC-1.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatch
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from payattn.attention import (
    COMBINATIONS,
    INITS,
    NORMS,
    PROJECTIONS,
    SCORES,
    Attended,
    ConcatHead,
    IndepHead,
    SpatialAttention,
    choose,
    contract,
)

Maps = dict[str, Tensor]

# Layer number: (index into the four widths, dropout after its ReLU). Widths 64, 128, 256, 512 at width 1.
LAYERS = {
    1: (0, 0.3), 2: (0, 0.0),
    3: (1, 0.4), 4: (1, 0.0),
    5: (2, 0.4), 6: (2, 0.4), 7: (2, 0.0),
    8: (3, 0.4), 9: (3, 0.4), 10: (3, 0.0),
    11: (3, 0.4), 12: (3, 0.4), 13: (3, 0.0),
    14: (3, 0.4), 15: (3, 0.4),
}  # fmt: skip
WIDTHS = (64, 128, 256, 512)
LEVELS = {1: ("layer13",), 2: ("layer10", "layer13"), 3: ("layer7", "layer10", "layer13")}
HEAD_DROPOUT = 0.5


def unit_range(images: Tensor) -> Tensor:
    """Images as floats in [0, 1]: uint8 is divided by 255, floats pass.

    Args:
        images: (..., H, W), uint8 in 0..255 or floating in [0, 1].

    Returns:
        Floating tensor of the same shape.

    Raises:
        TypeError: for any other dtype.

    Example:
        >>> unit_range(torch.tensor([0, 51, 255], dtype=torch.uint8))
        tensor([0.0000, 0.2000, 1.0000])
    """
    if images.dtype == torch.uint8:
        return images.to(torch.get_default_dtype()) / 255
    if not images.is_floating_point():
        raise TypeError(f"images must be uint8 in 0..255 or floating in [0, 1], got {images.dtype}")
    return images


class Normalize(nn.Module):
    """First layer of every model: to [0, 1] if uint8, then ``(x - mean) / std`` per channel.

    With the normalisation inside the network, attacks, masks and plots all speak of pixels in [0, 1].

    Args:
        mean, std: one number, or one per channel, for pixels in [0, 1].

    Raises:
        ValueError: if ``std`` is not positive.

    Example:
        >>> Normalize(0.5, 0.25)(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)).flatten().tolist()
        [2.0, 2.0, 2.0]
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: float | Sequence[float] = 0.5, std: float | Sequence[float] = 0.25) -> None:
        super().__init__()
        for name, value in (("mean", mean), ("std", std)):
            values = [float(value)] * 3 if isinstance(value, (int, float)) else [float(v) for v in value]
            if len(values) != 3:
                raise ValueError(f"{name} must be one number or three, one per channel, got {value!r}")
            if name == "std" and min(values) <= 0:
                raise ValueError(f"std must be positive, got {std!r}")
            self.register_buffer(name, torch.tensor(values)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be RGB, (N, 3, H, W), got {tuple(images.shape)}")
        pixels = unit_range(images).to(torch.promote_types(self.mean.dtype, torch.float32))
        return ((pixels - self.mean) / self.std).to(self.mean.dtype)  # so that model.half() works


class ConvBlock(nn.Sequential):
    """3x3 convolution with bias, BatchNorm (eps 1e-3), ReLU and, where the rate is not zero, dropout.

    The bias is the authors'. In training BatchNorm subtracts it again, so that it gets no gradient.

    Example:
        >>> ConvBlock(3, 8)(torch.rand(2, 3, 5, 7)).shape
        torch.Size([2, 8, 5, 7])
    """

    def __init__(self, in_channels: int, out_channels: int, dropout: float = 0.0) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
            nn.BatchNorm2d(out_channels, eps=1e-3),
            nn.ReLU(),
        ]
        if dropout:
            layers.append(nn.Dropout(dropout))
        super().__init__(*layers)


def pool(x: Tensor) -> Tensor:
    """2x2 max-pool in ceil mode, as in the authors' code: 5 becomes 3, and 1 stays 1.

    Example:
        >>> pool(torch.rand(2, 8, 5, 1)).shape
        torch.Size([2, 8, 3, 1])
    """
    return F.max_pool2d(x, kernel_size=2, stride=2, ceil_mode=True)


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """The identity, whose gradient is multiplied by ``factor``.

    Example:
        >>> x = torch.ones(1, requires_grad=True)
        >>> scale_gradient(x, 0.5).backward()
        >>> x.grad
        tensor([0.5000])
    """
    out: Tensor = _ScaleGradient.apply(x, factor)
    return out


class Trunk(nn.Module):
    """The 3x3 convolutions of the VGG networks, named ``layer1`` to ``layer15``.

    Args:
        last: number of the last layer (13 or 15).
        pool_after: numbers of the layers that a 2x2 max-pool follows.
        width: factor on the widths 64, 128, 256, 512.
        dropout: factor on the published dropout rates.

    Example:
        >>> trunk = Trunk(13, pool_after=(7, 10), width=0.125)
        >>> trunk.run(torch.rand(2, 3, 32, 32), first=1, last=13).shape
        torch.Size([2, 64, 8, 8])
    """

    def __init__(self, last: int, pool_after: Sequence[int], width: float = 1.0, dropout: float = 1.0) -> None:
        super().__init__()
        self.pool_after = tuple(pool_after)
        self.channels = {n: max(1, round(WIDTHS[stage] * width)) for n, (stage, _) in LAYERS.items() if n <= last}
        previous = 3
        for number, channels in self.channels.items():
            self.add_module(f"layer{number}", ConvBlock(previous, channels, LAYERS[number][1] * dropout))
            previous = channels

    def run(self, x: Tensor, first: int, last: int) -> Tensor:
        """Apply layers ``first`` to ``last`` and their pools, but not the pool after ``last``."""
        for number in range(first, last + 1):
            x = self.get_submodule(f"layer{number}")(x)
            if number in self.pool_after and number < last:
                x = pool(x)
        return x


class _Classifier(nn.Module):
    """What all models share: the first layer, initialisation as in the paper or PyTorch's own, their description."""

    levels: tuple[str, ...] = ()
    spec: dict[str, Any]

    def __init__(
        self, classes: int, width: float, dropout: float, mean: float | Sequence[float], std: float | Sequence[float]
    ) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"classes must be at least 2, got {classes}")
        if width <= 0:
            raise ValueError(f"width must be positive (1 is the paper's network, 0.125 suits a CPU), got {width}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout is a factor in [0, 1] on the published rates, got {dropout}")
        self.classes = classes
        self.normalize = Normalize(mean, std)

    def initialise(self, init: str) -> None:
        """``"paper"``: convolutions N(0, 2 / (k^2 C_out)), BatchNorm gamma U(0, 1); ``"default"``: PyTorch's."""
        if choose("init", init, INITS) == "default":
            return
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                nn.init.uniform_(module.weight)


def _global_head(channels: int, classes: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm1d(channels), nn.ReLU(), nn.Dropout(HEAD_DROPOUT * dropout), nn.Linear(channels, classes)
    )


class VGG(_Classifier):
    """The baseline: thirteen convolutions with a pool after 2, 4, 7, 10 and 13, and two linear layers (section 4).

    Example:
        >>> sum(p.numel() for p in VGG(classes=10).parameters())
        14991946
    """

    def __init__(
        self, classes: int = 10, *, width: float = 1.0, dropout: float = 1.0, init: str = "paper",
        mean: float | Sequence[float] = 0.5, std: float | Sequence[float] = 0.25,
    ) -> None:  # fmt: skip
        super().__init__(classes, width, dropout, mean, std)
        self.trunk = Trunk(13, (2, 4, 7, 10, 13), width, dropout)
        channels = self.trunk.channels[13]
        self.fc1 = nn.Sequential(nn.Dropout(HEAD_DROPOUT * dropout), nn.Linear(channels, channels))
        self.head = _global_head(channels, classes, dropout)
        self.initialise(init)

    def forward(self, images: Tensor, return_maps: bool = False) -> Tensor | tuple[Tensor, Maps]:
        """Logits (N, C); with ``return_maps`` also an empty dict: this network has no map."""
        local = self.trunk.run(self.normalize(images), 1, 13)
        logits = self.head(self.fc1(pool(local).amax(dim=(2, 3))))
        return (logits, {}) if return_maps else logits


class VGGGAP(_Classifier):
    """Global average pooling on layer 13 of the attention networks' trunk, then one linear layer (section 4).

    Its map is the class activation map of the predicted class, ``sum_k w_ck A_k``: the logit of class c is its
    spatial mean plus the bias. It is made after the decision; nothing in the network uses it.

    Example:
        >>> sum(p.numel() for p in VGGGAP(classes=10).parameters())
        14728266
    """

    levels = ("layer13",)

    def __init__(
        self, classes: int = 10, *, width: float = 1.0, dropout: float = 1.0, init: str = "paper",
        mean: float | Sequence[float] = 0.5, std: float | Sequence[float] = 0.25,
    ) -> None:  # fmt: skip
        super().__init__(classes, width, dropout, mean, std)
        self.trunk = Trunk(13, (7, 10), width, dropout)
        self.head = nn.Linear(self.trunk.channels[13], classes)
        self.initialise(init)

    def forward(self, images: Tensor, return_maps: bool = False) -> Tensor | tuple[Tensor, Maps]:
        """Logits (N, C); with ``return_maps`` also ``{"layer13": CAM of the predicted class (N, H, W)}``."""
        local = self.trunk.run(self.normalize(images), 1, 13)
        logits = self.head(local.mean(dim=(2, 3)))
        if not return_maps:
            return logits
        of_class = self.head.weight[logits.argmax(dim=1)]
        return logits, {"layer13": contract("nmhw,nm->nhw", local, of_class)}


class VGGAttention(_Classifier):
    """VGG-att1, -att2, -att3: only attention-weighted descriptors reach the classifier (sections 3 and 4).

    Args:
        classes: C.
        levels: 1 (layer 13), 2 (10 and 13) or 3 (7, 10 and 13); 0 is the no-attention control: the same trunk,
            its query g classified directly.
        score, norm, project: see ``payattn.attention.SpatialAttention``.
        head: ``"concat"`` or ``"indep"``; with one level both are one linear classifier.
        combine: how ``"indep"`` joins its predictions, see ``payattn.attention.independent_logits``.
        tap: ``"pre"``: local features before the max-pool that follows the layer (the authors' code);
            ``"post"``: after it.
        gradient_merge: ``"sum"`` (autograd) or ``"mean"``: the authors' hand-written backward averages the
            gradients of the branches that meet at a level, and of the units that meet at g.
        width: factor on all widths, 1 is the paper's network.
        dropout: factor on all published rates, 0 switches dropout off.
        init: ``"paper"`` or ``"default"`` (PyTorch's).
        score_init: of u alone, see ``SpatialAttention``; None takes ``init``. The paper's u makes the first maps
            almost one-hot, which a short schedule does not outgrow.
        mean, std: of the first layer, see ``Normalize``.

    Raises:
        ValueError: for an unknown choice, with the nearest valid one.

    Example:
        >>> net = VGGAttention(classes=10, levels=2, score="dp", width=0.125).eval()
        >>> logits, maps = net(torch.rand(2, 3, 32, 32), return_maps=True)
        >>> logits.shape, {name: tuple(a.shape) for name, a in maps.items()}
        (torch.Size([2, 10]), {'layer10': (2, 16, 16), 'layer13': (2, 8, 8)})
    """

    def __init__(
        self, classes: int = 10, *, levels: int = 2, score: str = "pc", head: str = "concat", norm: str = "softmax",
        project: str = "query", tap: str = "pre", combine: str = "product", gradient_merge: str = "sum",
        width: float = 1.0, dropout: float = 1.0, init: str = "paper", score_init: str | None = None,
        mean: float | Sequence[float] = 0.5, std: float | Sequence[float] = 0.25,
    ) -> None:  # fmt: skip
        super().__init__(classes, width, dropout, mean, std)
        if levels not in (0, *LEVELS):
            raise ValueError(f"levels must be 0 (the control), 1, 2 or 3, got {levels!r}")
        for what, value, valid in (
            ("score", score, SCORES), ("norm", norm, NORMS), ("project", project, PROJECTIONS),
            ("head", head, ("concat", "indep")), ("combine", combine, COMBINATIONS),
            ("init", init, INITS), ("score_init", score_init or init, INITS),
        ):  # fmt: skip
            choose(what, value, valid)  # also where this network has no use for it: a slip must not pass in silence
        self.tap = choose("tap", tap, ("pre", "post"))
        self.gradient_merge = choose("gradient_merge", gradient_merge, ("sum", "mean"))
        self.levels = LEVELS.get(levels, ())
        self.trunk = Trunk(15, (7, 10, 13, 14, 15), width, dropout)
        length = self.trunk.channels[15]
        rate = HEAD_DROPOUT * dropout
        self.fc1 = nn.Sequential(nn.Dropout(rate), nn.Linear(length, length))
        self.attention = nn.ModuleDict({
            level: SpatialAttention(
                self.trunk.channels[_number(level)], length, score=score, norm=norm, project=project, dropout=rate,
                init=score_init or init,
            )
            for level in self.levels
        })  # fmt: skip
        channels = [int(unit.out_channels) for unit in self.attention.values()]  # type: ignore[arg-type]
        if not self.levels:
            self.head: nn.Module = _global_head(length, classes, dropout)
        elif head == "concat" or levels == 1:
            self.head = ConcatHead(channels, classes, rate)
        else:
            self.head = IndepHead(channels, classes, rate, combine)
        self.initialise(init)

    def local_features(self, images: Tensor) -> tuple[Maps, Tensor]:
        """Local features l of each level, (N, M, H, W) by layer name, and the input of layer 14."""
        x, start, local = self.normalize(images), 1, {}
        for number in (7, 10, 13):
            x = self.trunk.run(x, start, number)
            name, start = f"layer{number}", number + 1
            if name in self.levels and self.gradient_merge == "mean":
                x = scale_gradient(x, 0.5)
            pooled = pool(x)
            if name in self.levels:
                local[name] = x if self.tap == "pre" else pooled
            x = pooled
        return local, x

    def _query(self, x: Tensor) -> Tensor:
        x = pool(self.trunk.run(x, 14, 15))
        g = self.fc1(x.amax(dim=(2, 3)))  # 1x1 already for 32 px; the maximum makes any size work
        return scale_gradient(g, 1 / len(self.levels)) if self.levels and self.gradient_merge == "mean" else g

    def query(self, images: Tensor) -> Tensor:
        """The query g of each image, shape (N, M'): the output of FC-1."""
        return self._query(self.local_features(images)[1])

    def _external(self, query: Tensor, images: Tensor) -> Tensor:
        length = self.trunk.channels[15]
        if query.ndim != 2 or query.shape[1] != length or query.shape[0] not in (1, images.shape[0]):
            raise ValueError(
                f"query must be ({images.shape[0]}, {length}), or (1, {length}) for all images, got "
                f"{tuple(query.shape)}; model.query(images) makes one"
            )
        return query

    def attend(self, images: Tensor, query: Tensor | None = None) -> dict[str, Attended]:
        """Descriptor, map and scores of every level, by layer name; with ``query`` instead of the images' own g."""
        local, x = self.local_features(images)
        g = self._query(x) if query is None else self._external(query, images)
        return {name: self.attention[name](local[name], g) for name in self.levels}

    def features(self, images: Tensor) -> Tensor:
        """What the last linear layer sees, (N, sum of M_s): descriptors after BatchNorm and ReLU."""
        if not self.levels:
            path: Tensor = self.head[:-1](self.query(images))  # type: ignore[index]
            return path
        out: Tensor = self.head.features([a.descriptor for a in self.attend(images).values()])  # type: ignore[operator]
        return out

    def forward(
        self, images: Tensor, return_maps: bool = False, query: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Maps]:
        """Logits (N, C); with ``return_maps`` also the maps by layer name, (N, H, W).

        Args:
            images: (N, 3, H, W), uint8 or float in [0, 1].
            return_maps: also return the attention maps.
            query: use this g, (N, M') or (1, M'), in place of the images' own.
        """
        if not self.levels:
            g = self.query(images) if query is None else self._external(query, images).expand(images.shape[0], -1)
            logits = self.head(g)
            return (logits, {}) if return_maps else logits
        attended = self.attend(images, query)
        logits = self.head([a.descriptor for a in attended.values()])
        return (logits, {name: a.map for name, a in attended.items()}) if return_maps else logits


def _number(level: str) -> int:
    return int(level.removeprefix("layer"))


def _registry() -> dict[str, Callable[..., _Classifier]]:
    """The papers' names. One level has one descriptor, so ``vgg-att-pc`` needs no ``concat`` or ``indep``."""
    models: dict[str, Callable[..., _Classifier]] = {
        "vgg": VGG,
        "vgg-gap": VGGGAP,
        "vgg-att-control": partial(VGGAttention, levels=0),
    }
    for score in SCORES:
        models[f"vgg-att-{score}"] = partial(VGGAttention, levels=1, score=score)
    for levels, head, score in product((2, 3), ("concat", "indep"), SCORES):
        models[f"vgg-att{levels}-{head}-{score}"] = partial(VGGAttention, levels=levels, head=head, score=score)
    return models


REGISTRY = _registry()


def list_models(pattern: str = "*") -> list[str]:
    """Names that ``create`` knows, filtered by a shell pattern.

    Example:
        >>> list_models("vgg-att2-*-pc")
        ['vgg-att2-concat-pc', 'vgg-att2-indep-pc']
    """
    return [name for name in REGISTRY if fnmatch(name, pattern)]


def create(name: str, classes: int = 10, **options: Any) -> _Classifier:
    """Build a network by the paper's name, for example ``"vgg-att2-concat-pc"``.

    Args:
        name: one of ``list_models()``.
        classes: number of classes C.
        options: arguments of the network's class, such as ``width=0.125`` for a CPU, ``dropout=0`` or
            ``norm="sigmoid-sum"`` (see ``VGGAttention``, ``VGG`` and ``VGGGAP``).

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
