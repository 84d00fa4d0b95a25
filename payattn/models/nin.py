"""Network in network (Lin et al. 2014) as Attention Transfer uses it: NIN-wide teaches, NIN-thin learns.

Three groups of one large and two 1x1 convolutions, a pool behind each. Without batch norm it is the student of the
gradient-based experiments, because there the loss of an image must not depend on the rest of its batch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from payattn.attention import INITS, choose
from payattn.models.base import Maps, Staged
from payattn.models.colour import Numbers
from payattn.models.wide import GROUPS, fan_in_normal
from payattn.residual import max_pool

WIDE = (192, 160, 96, 192, 192, 192, 192, 192, 192)
THIN = (80, 64, 48, 80, 80, 80, 80, 80, 80)
KERNELS = (5, 1, 1, 5, 1, 1, 3, 1, 1)


def mean_pool(x: Tensor) -> Tensor:
    """Average pool 3x3, stride 2, without padding, in ceil mode: a side n >= 2 becomes floor(n/2), 1 stays 1.

    Example:
        >>> import torch
        >>> mean_pool(torch.arange(16.0).view(1, 1, 4, 4)).flatten()
        tensor([ 5.0000,  6.5000, 11.0000, 12.5000])
    """
    height, width = x.shape[2:]
    return F.avg_pool2d(x, kernel_size=(min(3, height), min(3, width)), stride=2, ceil_mode=True)


class NIN(Staged):
    """Network in network: three groups of convolutions 5x5 or 3x3, 1x1 and 1x1, max-pool, average pool, global average.

    The maps are ``F_sum^2`` of each group's output before its pool, ``payattn.transfer.activation_map``.

    Args:
        classes: C.
        channels: of the nine convolutions.  ``WIDE`` is the authors' network of 1,007,242 parameters.  ``THIN`` is
            our proposal of 0.2 million: the paper does not print the channels of its NIN-thin.
        bn: BatchNorm (eps 1e-5) between convolution and ReLU.
        bias: of the convolutions; without BatchNorm they need one.
        relu_before_pool: ReLU as the last layer of each group.  None is True with BatchNorm and False without it, as in
            the paper's gradient experiments, where the maps are then those of convolution outputs.
        width: factor on all channels.
        dropout: without use here (the network has none); it must still lie in [0, 1].
        init: ``"paper"``: convolutions and linear layer N(0, 2 / fan in), biases 0, the start of the authors' wide
            networks; ``"default"``: PyTorch's.
        mean, std, colour: of the first layer, see ``VGGAttention``.

    Raises:
        ValueError: for channels that are not nine, or a network with neither BatchNorm nor biases.

    Source: the authors' code of Wide Residual Networks, which has the network; channels of NIN-thin are ours.

    Example:
        >>> sum(p.numel() for p in NIN(classes=10).parameters())
        1007242
    """

    levels = GROUPS
    group0: nn.Sequential
    group1: nn.Sequential
    group2: nn.Sequential

    def __init__(
        self, classes: int = 10, *, channels: Sequence[int] = WIDE, bn: bool = True, bias: bool = True,
        relu_before_pool: bool | None = None, width: float = 1.0, dropout: float = 1.0, init: str = "paper",
        mean: Numbers | None = None, std: Numbers | None = None, colour: str = "rgb",
    ) -> None:  # fmt: skip
        super().__init__(classes, width, dropout, mean, std, colour)
        if len(channels) != len(KERNELS) or min(channels) < 1:
            raise ValueError(f"channels must be nine numbers, one per convolution, got {channels!r}")
        if not (bn or bias):
            raise ValueError("without BatchNorm the convolutions need a bias: bias=True, or bn=True")
        ends = bn if relu_before_pool is None else relu_before_pool
        widths = [3, *(max(1, round(c * width)) for c in channels)]
        for g, name in enumerate(GROUPS):
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            for j, k in enumerate(range(3 * g, 3 * g + 3)):
                kernel = KERNELS[k]
                layers[f"conv{j}"] = nn.Conv2d(widths[k], widths[k + 1], kernel, padding=kernel // 2, bias=bias)
                if bn:
                    layers[f"bn{j}"] = nn.BatchNorm2d(widths[k + 1])
                if j < 2 or ends:
                    layers[f"relu{j}"] = nn.ReLU()
            self.add_module(name, nn.Sequential(layers))
        self.head = nn.Linear(widths[-1], classes)
        self.initialise(init)

    def initialise(self, init: str) -> None:
        """See ``init`` of the class."""
        if choose("init", init, INITS) == "paper":
            fan_in_normal(self)

    def stages(self, images: Tensor) -> Maps:
        """The output of each group before its pool, (N, C, h, w) by name."""
        first = self.group0(self.normalize(images))
        second = self.group1(max_pool(first))
        return dict(zip(GROUPS, (first, second, self.group2(mean_pool(second))), strict=True))
