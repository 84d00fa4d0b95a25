"""What the networks share: blocks, initialisation, class activation maps, and how attention meets the classifier."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from payattn.attention import INITS, Attended, choose, contract
from payattn.models.colour import Numbers, first_layer
from payattn.transfer import activation_map

Maps = dict[str, Tensor]

HEAD_DROPOUT = 0.5


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


def pool(x: Tensor, size: int = 2) -> Tensor:
    """Max-pool of ``size`` x ``size`` in ceil mode, as in the authors' code: with 2, 5 becomes 3, and 1 stays 1.

    Example:
        >>> pool(torch.rand(2, 8, 5, 1)).shape
        torch.Size([2, 8, 3, 1])
    """
    return F.max_pool2d(x, kernel_size=size, stride=size, ceil_mode=True)


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


def he_normal(model: nn.Module) -> None:
    """Convolutions N(0, 2 / (k^2 C_out)) as in He et al. (2015), fan out; the rest stays as PyTorch makes it.

    Example:
        >>> he_normal(nn.Sequential(nn.Conv2d(3, 8, 3)))
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def class_activation(local: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    r"""The class activation map, ``CAM_c = sum_k w_ck A_k``: where the logit of class c comes from (Zhou et al. 2016).

    With global average pooling before the linear layer, its spatial mean plus the bias is the logit.

    Args:
        local: features A before the average, (N, M, H, W).
        weight: of the linear layer, (C, M).
        target: class of each image, (N,).

    Returns:
        (N, H, W), at least float32.

    Example:
        >>> local = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
        >>> class_activation(local, torch.tensor([[3.0, 5.0], [1.0, 2.0]]), torch.tensor([1]))
        tensor([[[1., 2.]]])
    """
    return contract("nmhw,nm->nhw", local, weight[target])


def map_of_class(local: Tensor, head: nn.Linear, target: Tensor | None = None) -> Tensor:
    """The class activation map of class ``target`` (N,), or of the predicted class, after checking the target.

    Raises:
        ValueError: if ``target`` is not one class per image.

    Example:
        >>> map_of_class(torch.rand(2, 4, 3, 5), torch.nn.Linear(4, 10), torch.tensor([0, 9])).shape
        torch.Size([2, 3, 5])
    """
    n, classes = len(local), head.out_features
    if target is None:
        return class_activation(local, head.weight, head(local.mean(dim=(2, 3))).argmax(dim=1))
    if target.shape != (n,) or target.dtype not in (torch.int32, torch.int64):
        kind = str(target.dtype).removeprefix("torch.")
        raise ValueError(f"target must be one class per image, ({n},) int64, got {tuple(target.shape)} {kind}")
    if not bool(((target >= 0) & (target < classes)).all()):
        raise ValueError(f"target must lie in 0..{classes - 1}, got {target.tolist()}")
    return class_activation(local, head.weight, target.to(local.device))


def global_head(channels: int, classes: int, dropout: float) -> nn.Sequential:
    """BatchNorm, ReLU, Dropout(0.5), Linear: what classifies a global descriptor.

    Example:
        >>> global_head(8, 3, dropout=1.0)(torch.rand(2, 8)).shape
        torch.Size([2, 3])
    """
    return nn.Sequential(
        nn.BatchNorm1d(channels), nn.ReLU(), nn.Dropout(HEAD_DROPOUT * dropout), nn.Linear(channels, classes)
    )


class Classifier(nn.Module):
    """What all networks share: the first layer, initialisation as in the paper or PyTorch's own, their description.

    Example:
        >>> net = Classifier(classes=10, width=1.0, dropout=1.0, mean=0.5, std=0.25)
        >>> net.normalize
        Normalize()
    """

    levels: tuple[str, ...] = ()
    spec: dict[str, Any]

    def __init__(
        self, classes: int, width: float, dropout: float, mean: Numbers | None, std: Numbers | None, colour: str = "rgb"
    ) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"classes must be at least 2, got {classes}")
        if width <= 0:
            raise ValueError(f"width must be positive (1 is the paper's network, 0.125 suits a CPU), got {width}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout is a factor in [0, 1] on the published rates, got {dropout}")
        self.classes = classes
        self.normalize = first_layer(colour, mean, std)

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

    def features(self, images: Tensor) -> Tensor:
        """What the last linear layer sees, (N, D); call it in evaluation mode to carry it to other data sets."""
        raise NotImplementedError(f"{type(self).__name__} says nothing about its features")


class Staged(Classifier):
    """A network of stages, then global average pooling and one linear layer: the networks of Attention Transfer.

    The maps are ``F_sum^2`` of each stage's output, ``payattn.transfer.activation_map``.  A subclass has ``levels``,
    the names of its stages, a ``head``, says in ``stages`` what comes out of them, and in ``_last`` what is done to the
    last one before it is averaged, where that is something.

    Example:
        >>> from payattn.models import create
        >>> logits, maps = create("wrn-10-1", width=0.25).eval()(torch.rand(2, 3, 8, 8), return_maps=True)
        >>> {name: tuple(a.shape) for name, a in maps.items()}
        {'group0': (2, 8, 8), 'group1': (2, 4, 4), 'group2': (2, 2, 2)}
    """

    levels: tuple[str, ...]
    head: nn.Linear

    def stages(self, images: Tensor) -> Maps:
        """The output of each stage, (N, C, h, w) by name."""
        raise NotImplementedError(f"{type(self).__name__} says nothing about its stages")

    def _last(self, x: Tensor) -> Tensor:
        return x

    def _local(self, stages: Maps) -> Tensor:
        return self._last(stages[self.levels[-1]])

    def features(self, images: Tensor) -> Tensor:
        """What the linear layer sees, (N, D): the spatial mean of the last map."""
        return self._local(self.stages(images)).mean(dim=(2, 3))

    def class_map(self, images: Tensor, target: Tensor | None = None) -> Tensor:
        """The class activation map (N, h, w) of class ``target`` (N,); None takes the predicted class."""
        return map_of_class(self._local(self.stages(images)), self.head, target)

    def forward(self, images: Tensor, return_maps: bool = False) -> Tensor | tuple[Tensor, Maps]:
        """Logits (N, C); with ``return_maps`` also the activation map (N, h, w) of each stage."""
        stages = self.stages(images)
        logits: Tensor = self.head(self._local(stages).mean(dim=(2, 3)))
        return (logits, {name: activation_map(a) for name, a in stages.items()}) if return_maps else logits


class Attentive(Classifier):
    """A network that is classified from its attention-weighted descriptors alone (paper, section 3).

    A subclass has ``attention``, one ``SpatialAttention`` per level, a ``head``, ``query_length``, and says in
    ``local_features`` and ``_query`` where the local features and the query come from. Without levels it is the
    no-attention control: the head classifies the query.

    Example:
        >>> from payattn.models import create
        >>> isinstance(create("vgg-att2-concat-dp", width=0.05), Attentive)
        True
    """

    attention: nn.ModuleDict
    head: nn.Module
    query_length: int
    gradient_merge: str

    def local_features(self, images: Tensor) -> tuple[Maps, Tensor]:
        """Local features l of each level, (N, M, H, W) by name, and what the query branch continues from."""
        raise NotImplementedError

    def _query(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _queries(self, local: Maps, x: Tensor) -> Maps:
        """The query of each level: one for all, unless a network says otherwise."""
        g = self._query(x)
        return dict.fromkeys(self.levels, g)

    def _merged(self, x: Tensor, factor: float) -> Tensor:
        """``x`` with its gradient scaled, if gradients are averaged where branches meet."""
        return scale_gradient(x, factor) if self.levels and self.gradient_merge == "mean" else x

    def query(self, images: Tensor) -> Tensor:
        """The query g of each image, shape (N, M'): the output of FC-1."""
        return self._query(self.local_features(images)[1])

    def _external(self, query: Tensor, images: Tensor) -> Tensor:
        length = self.query_length
        if query.ndim != 2 or query.shape[1] != length or query.shape[0] not in (1, images.shape[0]):
            raise ValueError(
                f"query must be ({images.shape[0]}, {length}), or (1, {length}) for all images, got "
                f"{tuple(query.shape)}; model.query(images) makes one"
            )
        return query

    def attend(self, images: Tensor, query: Tensor | None = None) -> dict[str, Attended]:
        """Descriptor, map and scores of every level, by name; with ``query`` instead of the images' own g."""
        local, x = self.local_features(images)
        if query is None:
            queries = self._queries(local, x)
        else:
            queries = dict.fromkeys(self.levels, self._external(query, images))
        units = zip(self.levels, self.attention.values(), strict=True)  # by order: a level's name may have dots
        return {name: unit(local[name], queries[name]) for name, unit in units}

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
        """Logits (N, C); with ``return_maps`` also the maps by level, (N, H, W).

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
