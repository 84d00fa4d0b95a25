"""Wide residual networks (Zagoruyko and Komodakis 2016), the networks of Attention Transfer on CIFAR: WRN-d-k.

Three groups of pre-activation blocks at the image's side, half and a quarter of it; ``depth = 6 n + 4`` with n blocks
per group, and k times 16, 32 and 64 channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from payattn.attention import INITS, choose
from payattn.models.base import Maps, Staged
from payattn.models.colour import Numbers

GROUPS = ("group0", "group1", "group2")


class WideBlock(nn.Module):
    """Two 3x3 convolutions, BatchNorm and ReLU before each, added to the input.

    Where the channels change the shortcut is a 1x1 convolution of the first BN-ReLU, without a BatchNorm of its own.
    No biases, no dropout.

    Args:
        in_channels, out_channels: of input and output.
        stride: 1 or 2, on the first convolution.

    Raises:
        ValueError: for a stride without a change of channels, which has no shortcut.

    Source: authors' code of Attention Transfer.

    Example:
        >>> WideBlock(16, 32, stride=2)(torch.rand(2, 16, 5, 8)).shape
        torch.Size([2, 32, 3, 4])
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        changes = in_channels != out_channels
        if stride != 1 and not changes:
            raise ValueError(f"a block with stride {stride} must change its {in_channels} channels")
        self.bn0 = nn.BatchNorm2d(in_channels)
        self.conv0 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv1 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.bn0(x))
        z = self.conv1(torch.relu(self.bn1(self.conv0(a))))
        return z + (x if self.shortcut is None else self.shortcut(a))


class WideResNet(Staged):
    """WRN-d-k: a stem, three groups of ``WideBlock``, BN-ReLU, global average pooling, one linear layer.

    The maps are ``F_sum^2`` of each group's output, ``payattn.transfer.activation_map``: the raw residual sums, which
    may be negative, before the next BatchNorm and ReLU.

    Args:
        classes: C.
        depth: ``6 n + 4``: 10, 16 or 40 here.
        widen: k, the factor on the channels of the groups; the stem keeps its 16.
        width: factor on all channels, stem too; 1 is the paper's network.
        dropout: without use here (the network has none); it must still lie in [0, 1].
        init: ``"paper"``: convolutions and linear layer N(0, 2 / fan in), BatchNorm gamma U(0, 1), biases 0;
            ``"default"``: PyTorch's.
        mean, std, colour: of the first layer, see ``VGGAttention``.

    Raises:
        ValueError: for another depth, with the nearest that exists.

    Source: authors' code of Attention Transfer.

    Example:
        >>> sum(p.numel() for p in WideResNet(classes=10, depth=16, widen=1).parameters())
        175066
    """

    levels = GROUPS

    def __init__(
        self, classes: int = 10, *, depth: int = 16, widen: float = 1, width: float = 1.0, dropout: float = 1.0,
        init: str = "paper", mean: Numbers | None = None, std: Numbers | None = None, colour: str = "rgb",
    ) -> None:  # fmt: skip
        super().__init__(classes, width, dropout, mean, std, colour)
        blocks = (depth - 4) // 6
        if blocks < 1 or depth != 6 * blocks + 4:
            near = 6 * max(1, round((depth - 4) / 6)) + 4
            raise ValueError(f"depth must be 6 n + 4 with n blocks per group, got {depth}; nearest: {near}")
        if not widen > 0:
            raise ValueError(f"widen is the factor k on the channels and must be positive, got {widen}")
        previous = max(1, int(16 * width))
        self.stem = nn.Conv2d(3, previous, kernel_size=3, padding=1, bias=False)
        for k, name in enumerate(GROUPS):
            channels = max(1 if k == 0 else previous + 1, int(16 * 2**k * widen * width))
            first = WideBlock(previous, channels, stride=1 if k == 0 else 2)
            self.add_module(name, nn.Sequential(first, *(WideBlock(channels, channels) for _ in range(blocks - 1))))
            previous = channels
        self.norm = nn.BatchNorm2d(previous)
        self.head = nn.Linear(previous, classes)
        self.initialise(init)

    def initialise(self, init: str) -> None:
        """See ``init`` of the class."""
        if choose("init", init, INITS) == "paper":
            fan_in_normal(self)
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    nn.init.uniform_(module.weight)

    def stages(self, images: Tensor) -> Maps:
        """The raw residual sums at the end of each group, (N, C, h, w) by name."""
        x, out = self.stem(self.normalize(images)), {}
        for name in GROUPS:
            x = out[name] = self.get_submodule(name)(x)
        return out

    def _last(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(x))


def fan_in_normal(model: nn.Module) -> None:
    """Convolutions and linear layers N(0, 2 / fan in), biases 0; the rest stays as it is.

    Source: authors' code of Attention Transfer.

    Example:
        >>> fan_in_normal(nn.Sequential(nn.Conv2d(3, 8, 3)))
    """
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
