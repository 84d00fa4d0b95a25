"""MobileNetV2 (Sandler et al. 2018) for small images: a student of another kind than its teacher.

Attention transfer was measured between networks of one family.  A benchmark by others also let networks with inverted
residuals learn from VGG and ResNet teachers, and there it did harm; this is that student.
"""

from __future__ import annotations

from torch import Tensor, nn

from payattn.attention import INITS, choose
from payattn.models.base import Maps, Staged, he_normal
from payattn.models.colour import Numbers

STAGES = ("stage1", "stage2", "stage3", "stage4")
# expansion, channels, blocks and first stride of each row of the table of MobileNetV2, by stage
ROWS = (
    ((1, 16, 1, 1), (6, 24, 2, 1)),
    ((6, 32, 3, 2),),
    ((6, 64, 4, 2), (6, 96, 3, 1)),
    ((6, 160, 3, 2), (6, 320, 1, 1)),
)
LAST = 1280


def _unit(in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    padding = kernel // 2
    convolution = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels), nn.ReLU()]


class InvertedResidual(nn.Module):
    """1x1 convolution to more channels, 3x3 of each channel alone, 1x1 back, without ReLU; added where shapes agree.

    Args:
        in_channels, out_channels: of input and output.
        stride: 1 or 2, of the 3x3 convolution.
        expansion: factor on the channels inside.

    Source: Sandler et al. 2018.

    Example:
        >>> import torch
        >>> InvertedResidual(8, 12, stride=2)(torch.rand(2, 8, 5, 8)).shape
        torch.Size([2, 12, 3, 4])
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, expansion: int = 6) -> None:
        super().__init__()
        inside = in_channels * expansion
        self.body = nn.Sequential(
            *_unit(in_channels, inside), *_unit(inside, inside, 3, stride, groups=inside),
            *_unit(inside, out_channels)[:2],
        )  # fmt: skip
        self.adds = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.adds else y


class MobileNetV2(Staged):
    """MobileNetV2 for images of 32 pixels: a strided stem, four stages of inverted residuals, 1x1, global average.

    The stages end at a half, a quarter, an eighth and a sixteenth of the image's side.  The maps are ``F_sum^2`` of
    each stage's output, ``payattn.transfer.activation_map``.  The bias of a block's last BatchNorm shifts that output
    and its map, but not the logits: every layer that reads it subtracts a mean, so labels alone give it no gradient.

    Args:
        classes: C.
        width: factor on the channels of stem and stages; 1 is MobileNetV2, 0.5 the network of the benchmark.  The
            last convolution has 1280 channels, more only above 1.
        dropout: without use here (the network has none); it must still lie in [0, 1].
        init: ``"paper"``: convolutions N(0, 2 / fan out), linear layer N(0, 0.01^2), bias 0; ``"default"``: PyTorch's.
        mean, std, colour: of the first layer, see ``VGGAttention``.

    Source: the benchmark code RepDistiller, which has ReLU where MobileNetV2 has ReLU6, three 1x1 or 3x3 layers in
        the first block too, and fewer strides for small images.

    Example:
        >>> sum(p.numel() for p in MobileNetV2(classes=100, width=0.5).parameters())
        812836
    """

    levels = STAGES

    def __init__(
        self, classes: int = 10, *, width: float = 1.0, dropout: float = 1.0, init: str = "paper",
        mean: Numbers | None = None, std: Numbers | None = None, colour: str = "rgb",
    ) -> None:  # fmt: skip
        super().__init__(classes, width, dropout, mean, std, colour)
        previous = max(1, int(32 * width))
        self.stem = nn.Sequential(*_unit(3, previous, 3, stride=2))
        for name, rows in zip(STAGES, ROWS, strict=True):
            blocks = []
            for expansion, channels, count, stride in rows:
                for k in range(count):
                    wide = max(1, int(channels * width))
                    blocks.append(InvertedResidual(previous, wide, stride if k == 0 else 1, expansion))
                    previous = wide
            self.add_module(name, nn.Sequential(*blocks))
        last = max(LAST, int(LAST * width))
        self.last = nn.Sequential(*_unit(previous, last))
        self.head = nn.Linear(last, classes)
        self.initialise(init)

    def initialise(self, init: str) -> None:
        """See ``init`` of the class."""
        if choose("init", init, INITS) == "paper":
            he_normal(self)
            nn.init.normal_(self.head.weight, std=0.01)
            nn.init.zeros_(self.head.bias)

    def stages(self, images: Tensor) -> Maps:
        """The output of each stage, (N, C, h, w) by name; linear, so it may be negative."""
        x, out = self.stem(self.normalize(images)), {}
        for name in STAGES:
            x = out[name] = self.get_submodule(name)(x)
        return out

    def _last(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(x)
        return y
