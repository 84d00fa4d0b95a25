"""The pre-activation residual network (He et al. 2016) of Learn To Pay Attention, and its form with attention.

Three stages of bottleneck blocks on maps of the image's side, half and a quarter of it; ``depth = 9 n + 2`` with n
blocks per stage, 164 in the paper.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from payattn.attention import INITS, NORMS, PROJECTIONS, SCORES, ConcatHead, SpatialAttention, choose
from payattn.models.base import (
    HEAD_DROPOUT,
    Attentive,
    Classifier,
    ConvBlock,
    Maps,
    global_head,
    he_normal,
    map_of_class,
    pool,
)
from payattn.models.colour import Numbers
from payattn.residual import Bottleneck

STAGES = ("stage1", "stage2", "stage3")
RESIDUAL_HEAD_DROPOUT = 0.3


class ResidualTrunk(nn.Module):
    """The stem (3x3 convolution to 16 channels) and three stages of bottlenecks with 64, 128 and 256 channels.

    Args:
        depth: ``9 n + 2``.
        width: factor on the channels.
        strided: which convolution of a stage's first bottleneck carries the stride, see ``Bottleneck``.

    Attributes:
        channels: of each stage's output, by name.

    Raises:
        ValueError: for another depth, with the nearest that exists.

    Example:
        >>> ResidualTrunk(depth=11, width=0.25).channels
        {'stage1': 16, 'stage2': 32, 'stage3': 64}
    """

    def __init__(self, depth: int = 164, width: float = 1.0, strided: str = "1x1") -> None:
        super().__init__()
        blocks = (depth - 2) // 9
        if depth < 11 or depth != 9 * blocks + 2:
            near = 9 * max(1, round((depth - 2) / 9)) + 2
            raise ValueError(f"depth must be 9 n + 2 with n blocks per stage, got {depth}; nearest: {near}")
        planes = [max(1, round(p * width)) for p in (16, 32, 64)]
        self.channels = {name: 4 * p for name, p in zip(STAGES, planes, strict=True)}
        self.stem = nn.Conv2d(3, planes[0], kernel_size=3, padding=1, bias=False)
        previous = planes[0]
        for name, p in zip(STAGES, planes, strict=True):
            stride = 1 if name == "stage1" else 2
            first = Bottleneck(previous, p, stride, first=True, strided=strided)
            self.add_module(name, nn.Sequential(first, *(Bottleneck(4 * p, p) for _ in range(blocks - 1))))
            previous = 4 * p

    def forward(self, x: Tensor) -> Maps:
        """The residual sums at the end of each stage, by name: raw, before BatchNorm and ReLU."""
        x, out = self.stem(x), {}
        for name in STAGES:
            x = out[name] = self.get_submodule(name)(x)
        return out


class PreActResNet(Classifier):
    """RN-164: the pre-activation residual network, global average pooling and one linear layer (section 4).

    Args:
        classes: C.
        depth: ``9 n + 2``: 164 in the paper, 11 or 20 for a CPU.
        strided: ``"1x1"``, or ``"3x3"`` for the baseline of the Residual Attention Network, see ``Bottleneck``.
        width: factor on all channels, 1 is the paper's network.
        dropout: without use here (the network has none); it must still lie in [0, 1].
        init: ``"paper"`` (of Learn To Pay Attention), ``"default"`` (PyTorch's) or ``"he"``, for the baseline of the
            Residual Attention Network: its convolutions start as theirs do, batch norm as PyTorch makes it.
        mean, std, colour: of the first layer, see ``VGGAttention``.

    Example:
        >>> sum(p.numel() for p in PreActResNet(classes=10).parameters())
        1703258
    """

    def __init__(
        self, classes: int = 10, *, depth: int = 164, strided: str = "1x1", width: float = 1.0, dropout: float = 1.0,
        init: str = "paper", mean: Numbers | None = None, std: Numbers | None = None, colour: str = "rgb",
    ) -> None:  # fmt: skip
        super().__init__(classes, width, dropout, mean, std, colour)
        self.trunk = ResidualTrunk(depth, width, strided)
        channels = self.trunk.channels["stage3"]
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, classes)
        self.initialise(init)

    def initialise(self, init: str) -> None:
        """As every ``Classifier``, and ``"he"``: see ``payattn.models.base.he_normal``."""
        if choose("init", init, (*INITS, "he")) == "he":
            he_normal(self)
        else:
            super().initialise(init)

    def _local(self, images: Tensor) -> Tensor:
        return torch.relu(self.norm(self.trunk(self.normalize(images))["stage3"]))

    def features(self, images: Tensor) -> Tensor:
        """What the linear layer sees, (N, 256 at width 1): the spatial mean of the last map."""
        return self._local(images).mean(dim=(2, 3))

    def class_map(self, images: Tensor, target: Tensor | None = None) -> Tensor:
        """The class activation map (N, h, w) of class ``target`` (N,); None takes the predicted class."""
        return map_of_class(self._local(images), self.head, target)

    def forward(self, images: Tensor, return_maps: bool = False) -> Tensor | tuple[Tensor, Maps]:
        """Logits (N, C); with ``return_maps`` also an empty dict; see ``class_map``."""
        logits = self.head(self.features(images))
        return (logits, {}) if return_maps else logits


class ResNetAttention(Attentive):
    """RN-164-att2: attention on the outputs of the last two stages of the residual network (section 4).

    The local features are the raw residual sums, which may be negative. The query comes from the last stage by
    BN-ReLU, pool, a 3x3 convolution, pool and FC-1; the pools take any size, and at 32 px the last map is 1x1.

    Args:
        levels: 1 (stage 3), 2 (2 and 3) or 3 (all; the authors wrote that unit and did not use it); 0 is the
            no-attention control.
        depth: ``9 n + 2``: 164 in the paper, 11 or 20 for a CPU.
        score, norm, project: see ``payattn.attention.SpatialAttention``.
        classes, gradient_merge, width, dropout, init, score_init, mean, std, colour: see ``VGGAttention``.

    Example:
        >>> net = ResNetAttention(classes=10, depth=11, width=0.25).eval()
        >>> logits, maps = net(torch.rand(2, 3, 32, 32), return_maps=True)
        >>> logits.shape, {name: tuple(a.shape) for name, a in maps.items()}
        (torch.Size([2, 10]), {'stage2': (2, 16, 16), 'stage3': (2, 8, 8)})
    """

    def __init__(
        self, classes: int = 10, *, levels: int = 2, depth: int = 164, score: str = "pc", norm: str = "softmax",
        project: str = "query", gradient_merge: str = "sum", width: float = 1.0, dropout: float = 1.0,
        init: str = "paper", score_init: str | None = None, mean: Numbers | None = None, std: Numbers | None = None,
        colour: str = "rgb",
    ) -> None:  # fmt: skip
        super().__init__(classes, width, dropout, mean, std, colour)
        if levels not in (0, 1, 2, 3):
            raise ValueError(f"levels must be 0 (the control), 1, 2 or 3, got {levels!r}")
        for what, value, valid in (
            ("score", score, SCORES), ("norm", norm, NORMS), ("project", project, PROJECTIONS),
            ("init", init, INITS), ("score_init", score_init or init, INITS),
        ):  # fmt: skip
            choose(what, value, valid)
        self.gradient_merge = choose("gradient_merge", gradient_merge, ("sum", "mean"))
        self.levels = STAGES[len(STAGES) - levels :]
        self.trunk = ResidualTrunk(depth, width)
        self.query_length = length = self.trunk.channels["stage3"]
        rate = HEAD_DROPOUT * dropout
        self.norm = nn.BatchNorm2d(length)
        self.layer = ConvBlock(length, length, 0.4 * dropout)
        self.fc1 = nn.Sequential(nn.Dropout(rate), nn.Linear(length, length))
        self.attention = nn.ModuleDict({
            level: SpatialAttention(
                self.trunk.channels[level], length, score=score, norm=norm, project=project, dropout=rate,
                init=score_init or init,
            )
            for level in self.levels
        })  # fmt: skip
        channels = [int(unit.out_channels) for unit in self.attention.values()]  # type: ignore[arg-type]
        if self.levels:
            self.head = ConcatHead(channels, classes, RESIDUAL_HEAD_DROPOUT * dropout)
        else:
            self.head = global_head(length, classes, dropout)
        self.initialise(init)

    def local_features(self, images: Tensor) -> tuple[Maps, Tensor]:
        """Local features l of each level, (N, M, H, W) by stage, and the output of the last stage."""
        x, local = self.trunk.stem(self.normalize(images)), {}
        for name in STAGES:
            x = self.trunk.get_submodule(name)(x)
            if name in self.levels:
                x = local[name] = self._merged(x, 0.5)
        return local, x

    def _query(self, x: Tensor) -> Tensor:
        x = self.layer(pool(torch.relu(self.norm(x))))
        return self._merged(self.fc1(x.amax(dim=(2, 3))), 1 / max(1, len(self.levels)))
