"""ResNet-18 and ResNet-34 for ImageNet and for fine-tuning, from torchvision, as Attention Transfer uses them.

``create("resnet-34", 200, pretrained=True)`` needs torchvision, which is no dependency of this package and is imported
when a network is built: ``pip install torchvision``.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from payattn.models.base import Maps, Staged
from payattn.models.colour import Numbers

STAGES = ("layer1", "layer2", "layer3", "layer4")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _torchvision() -> Any:
    try:
        import torchvision
    except ImportError:
        raise ImportError("ResNet-18 and ResNet-34 come from torchvision; pip install torchvision") from None
    return torchvision


def pretrained_weights(depth: int, source: str | PathLike[str] | bool = True) -> dict[str, Tensor]:
    """ImageNet weights of torchvision's ResNet, from a file or, once, from the network into torch's cache folder.

    Args:
        depth: 18 or 34.
        source: a ``.pth`` file, or True for torch's cache folder (``$TORCH_HOME``), filled by a download where needed.

    Raises:
        FileNotFoundError: there is no such file.
        ConnectionError: the weights are not in the cache and cannot be downloaded; says which file to put where.

    Example:
        >>> pretrained_weights(18, "resnet18.pth")
        Traceback (most recent call last):
        FileNotFoundError: no weights at resnet18.pth; ...
    """
    url = "https://download.pytorch.org/models/" + {18: "resnet18-f37072fd.pth", 34: "resnet34-b627a593.pth"}[depth]
    if not isinstance(source, bool):
        if not Path(source).is_file():
            raise FileNotFoundError(f"no weights at {source}; the file is {url}")
        found: dict[str, Tensor] = torch.load(source, map_location="cpu", weights_only=True)
        return found
    weights = _torchvision().models.get_model_weights(f"resnet{depth}").IMAGENET1K_V1
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except OSError as error:
        place = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        raise ConnectionError(
            f"cannot download the weights of ResNet-{depth} ({error}); where there is a network, fetch "
            f"{weights.url} and put it at {place}, or pass its path as pretrained=..."
        ) from error


def _body(depth: int, width: float) -> Any:
    """torchvision's network, its stages narrower or wider by a factor."""
    models = _torchvision().models
    if width == 1:
        return getattr(models, f"resnet{depth}")()

    class Scaled(models.ResNet):  # type: ignore[misc,name-defined]
        def _make_layer(self, block: Any, planes: int, *rest: Any, **options: Any) -> nn.Sequential:
            stage: nn.Sequential = super()._make_layer(block, int(planes * width) or 1, *rest, **options)
            return stage

    return Scaled(models.resnet.BasicBlock, {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}[depth])


class ImageNetResNet(Staged):
    """torchvision's ResNet behind this package's first layer: images are RGB in [0, 1] or uint8, as everywhere here.

    The maps are ``F_sum^2`` of each stage's output, behind its last ReLU, ``payattn.transfer.activation_map``.

    Args:
        classes: C; other than 1000 gets a new linear layer.
        depth: 18 or 34.
        width: factor on the channels of the stages; the stem keeps its 64.  1 is torchvision's network.
        pretrained: False, True, or a file, see ``pretrained_weights``.
        shortcut_bn: False leaves the BatchNorm out of the shortcuts, as the authors' own ResNet-18; not with
            ``pretrained``.
        fixed: as in the paper's fine-tuning: no BatchNorm learns or counts, and ``layer1`` does not learn.
        dropout: without use here (the network has none); it must still lie in [0, 1].
        mean, std, colour: of the first layer.

    Raises:
        ImportError: without torchvision.
        ValueError: another depth, pretrained weights without their shortcuts or for another width.
        FileNotFoundError, ConnectionError: weights that cannot be had, see ``pretrained_weights``.

    Source: He et al. 2016; Attention Transfer, experiments on ImageNet and fine-tuning.

    Example:
        >>> import torch
        >>> net = ImageNetResNet(5, depth=18).eval()
        >>> logits, maps = net(torch.rand(1, 3, 64, 64), return_maps=True)
        >>> logits.shape, maps["layer4"].shape
        (torch.Size([1, 5]), torch.Size([1, 2, 2]))
    """

    levels = STAGES

    def __init__(
        self, classes: int = 1000, *, depth: int = 34, width: float = 1.0, dropout: float = 1.0,
        pretrained: str | PathLike[str] | bool = False, shortcut_bn: bool = True, fixed: bool = False,
        mean: Numbers | None = MEAN, std: Numbers | None = STD, colour: str = "rgb",
    ) -> None:  # fmt: skip
        super().__init__(classes, width, dropout, mean, std, colour)
        if depth not in (18, 34):
            raise ValueError(f"depth must be 18 or 34, got {depth}")
        if pretrained and not shortcut_bn:
            raise ValueError("the pretrained weights have BatchNorm in their shortcuts; leave shortcut_bn=True")
        if pretrained and width != 1:
            raise ValueError(f"the pretrained weights are those of width 1, got width {width}")
        body = _body(depth, width)
        if pretrained:
            body.load_state_dict(pretrained_weights(depth, pretrained))
        self.stem = nn.Sequential(body.conv1, body.bn1, body.relu, body.maxpool)
        for name in STAGES:
            stage = body.get_submodule(name)
            if not shortcut_bn and stage[0].downsample is not None:
                stage[0].downsample[1] = nn.Identity()
            self.add_module(name, stage)
        own = classes == 1000 and width == 1
        self.head = body.fc if own else nn.Linear(int(512 * width) or 1, classes)
        self.fixed = fixed
        if fixed:
            for part in (self.get_submodule("layer1"), *self._norms()):
                part.requires_grad_(False)
        self.train()

    def _norms(self) -> list[nn.BatchNorm2d]:
        return [part for part in self.modules() if isinstance(part, nn.BatchNorm2d)]

    def train(self, mode: bool = True) -> ImageNetResNet:
        """As every module, but that fixed BatchNorm stays in evaluation mode."""
        super().train(mode)
        for norm in self._norms() if getattr(self, "fixed", False) else ():
            norm.eval()
        return self

    def stages(self, images: Tensor) -> Maps:
        """The output of each stage, (N, C, h, w) by name."""
        x, out = self.stem(self.normalize(images)), {}
        for name in STAGES:
            x = out[name] = self.get_submodule(name)(x)
        return out
