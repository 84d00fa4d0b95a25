r"""Attention for any CNN, by the names of its layers: three forms, one vocabulary.

    net = pa.attach(cnn, ["layer2", "layer3"], classes=37)     Learn To Pay Attention: descriptors g_a^s classify
    net = pa.attach.mask(cnn, ["layer3"])                      Residual Attention: F becomes (1 + M) F
    net = pa.attach.read(cnn, ["layer2", "layer3"])            Attention Transfer: F_sum^p(A), nothing is added

Each returns a module like all others of this package: ``net(images)`` gives logits (N, C), and
``net(images, return_maps=True)`` gives ``(logits, maps)``, ``maps`` a dict from layer name to (N, h, w) at the layer's
own resolution. The mathematics is that of ``payattn.attention``, ``payattn.residual`` and ``payattn.transfer``; here is
what finds the layers, the classifier and the query.

**The caller's network is left as found**: ``net`` holds a copy of it, with its weights, as ``net.backbone``, whose
parameter names are the old ones. **Images** go to the backbone as it takes them: floats as they come, bytes divided by
255. With ``mean=`` and ``std=``, RGB in [0, 1] or bytes is normalised first, as in the project's own networks; then
pixels mean the same to attacks, saliency and plots. **Sizes**: any that the backbone takes. The network is tried once,
in evaluation mode, with one random image of ``size``.

The module is callable, so that ``pa.attach(...)`` works whether or not ``payattn.attach`` was imported before.
"""

from __future__ import annotations

import copy
import math
import sys
import types
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from payattn.attention import COMBINATIONS, SCORES, ConcatHead, IndepHead, SpatialAttention, choose, promote
from payattn.models.base import Attentive, Maps
from payattn.models.colour import Normalize, Numbers, unit_range
from payattn.residual import SoftMask, channel_mean, naive_fusion, residual_fusion, resize
from payattn.transfer import REDUCTIONS, activation_map, check_layers, deciding, tap

HEADS = ("concat", "indep")
FUSIONS = ("residual", "gated", "naive")
LOWEST = 4  # side of the lowest scale of a mask, in the networks of the paper

Size = int | Sequence[int]


# Trying a network


class Layout(NamedTuple):
    """What one image through a network tells: where it classifies, its output, and the features of the layers.

    Example:
        >>> from payattn.models import create
        >>> found = layout(create("wrn-10-1", width=0.25), ["group1"], size=16)
        >>> found.classifier, found.output.shape, found.features["group1"].shape, found.inputs["group1"].shape
        ('head', torch.Size([1, 10]), torch.Size([1, 8, 8, 8]), torch.Size([1, 4, 16, 16]))
    """

    classifier: str | None
    output: Tensor
    features: dict[str, Tensor]
    inputs: dict[str, Any]


def layout(model: nn.Module, layers: Sequence[str], size: Size = 224) -> Layout:
    """Send one random image through a network and see what it is made of; it is left as found.

    The classifier is the last layer with weights, if its output is the network's: a linear layer in most networks, a
    1x1 convolution whose output is averaged in some, and none in a network that ends with its features.

    Args:
        model: maps images to (N, K) or to features (N, K, h, w).
        layers: names that a map is wanted of.
        size: of the image to try: a side, (H, W), or (C, H, W) for other than three channels.

    Returns:
        the name of the classifier or None, the output, and per layer its output and its first input.

    Raises:
        TypeError: one string instead of several layers, or a network that puts out no tensor.
        ValueError: a layer that is not there, with the candidates and their shapes; a layer that is called more or
            less than once, has no (N, C, H, W), one position only, or is changed in place; an image it cannot take; an
            output of probabilities, behind which no classifier can be found.

    Example:
        >>> layout(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten()), ["1"], size=(5, 7))
        Traceback (most recent call last):
        ValueError: layer '1' puts out (1, 120); a map needs features (N, C, H, W)
    """
    shape = _image_shape(size)
    layers = _names(model, layers, shape)
    last: tuple[str, nn.Module, Any] = ("", model, None)
    inputs: dict[str, Any] = {}

    def heard(name: str) -> Any:
        def hook(layer: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            nonlocal last
            if name in layers:
                inputs[name] = args[0] if args else None
            if any(True for _ in layer.parameters(recurse=False)):
                last = name, layer, out

        return hook

    handles = [part.register_forward_hook(heard(name)) for name, part in model.named_modules() if name]
    try:
        with deciding(model), torch.no_grad(), tap(model, layers) as features:
            output = _tried(model, shape)
    finally:
        for handle in handles:
            handle.remove()
    for name in layers:
        if features[name].shape[2] * features[name].shape[3] < 2:
            raise ValueError(
                f"layer {name!r} puts out {tuple(features[name].shape)} for images {shape}: one position, so nothing "
                "to choose; take an earlier layer, or larger images (size=)"
            )
    return Layout(_classifier(last, output), output, features, inputs)


def _image_shape(size: Size) -> tuple[int, int, int]:
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) not in (2, 3) or min(sides) < 1:
        raise ValueError(f"size is a side, (H, W) or (C, H, W) of the images, got {size!r}")
    channels, height, width = (3, *sides)[-3:]
    return int(channels), int(height), int(width)


def _names(model: nn.Module, layers: Sequence[str], shape: Sequence[int]) -> tuple[str, ...]:
    check_layers(model, layers, size=shape)
    if not layers or len(set(layers)) < len(layers):
        raise ValueError(f"name one layer or more, each once, got {list(layers)!r}")
    return tuple(layers)


def _tried(model: nn.Module, shape: Sequence[int]) -> Tensor:
    some = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    image = torch.rand((1, *shape), generator=torch.Generator().manual_seed(0)).to(some.device, some.dtype)
    try:
        output = model(image)
    except RuntimeError as error:
        raise ValueError(
            f"the network does not take an image {tuple(image.shape)} ({str(error).splitlines()[0]}); give the size of "
            "yours, as in size=32, size=(48, 64), or size=(1, 28, 28) for one channel"
        ) from error
    return _checked(output)


def _checked(output: Any) -> Tensor:
    if not isinstance(output, Tensor):
        raise TypeError(
            f"the network puts out {type(output).__name__}, not one tensor; build it without auxiliary outputs (such "
            "as aux_logits=False), or wrap it in a module that returns its logits"
        )
    if output.ndim not in (2, 4):
        raise ValueError(f"the network must put out (N, K) or features (N, K, h, w), got {tuple(output.shape)}")
    return output


def _classifier(last: tuple[str, nn.Module, Any], output: Tensor) -> str | None:
    """The last layer with weights, if its output is the network's: as it is, or averaged, behind a ReLU or not."""
    name, layer, out = last
    if output.ndim == 2 and isinstance(layer, (nn.Linear, nn.Conv2d)):
        rows = [out]
        if isinstance(layer, nn.Conv2d):  # with a larger kernel it makes features
            rows = [out.mean((2, 3)), out.relu().mean((2, 3))] if layer.kernel_size == (1, 1) else []
        if any(row.shape == output.shape and torch.allclose(row, output) for row in rows):
            return name
    if output.ndim == 2 and output.shape[1] > 1:
        values = promote(output)
        sums_to_one = (values >= 0).all() & ((values.sum(1) - 1).abs() < 1e-4).all()
        if bool(sums_to_one | (values.logsumexp(1).abs() < 1e-4).all()):
            raise ValueError(
                "the network puts out probabilities (or their logarithms): behind a softmax its classifier cannot be "
                "told; build it without, so that it returns logits"
            )
    return None


def _replace(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put a module in the place of the one of that name, everywhere it stands."""
    old = model.get_submodule(name)
    for part in model.modules():
        for key, child in list(part._modules.items()):
            if child is old:
                part._modules[key] = new


# Hooks that live in the copy


class _Recorder:
    """Holds what layers put out while a forward pass of ours runs, and nothing between two of them."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] | None = None

    def put(self, name: str, value: Tensor) -> None:
        if self.found is None:  # the backbone was called by someone else, or recomputes for a backward pass
            return
        if name in self.found:
            raise ValueError(f"layer {name!r} was called twice in one forward pass; take one that is called once")
        self.found[name] = value


class _Keep:
    """A forward hook that records what a layer puts out; a class, so that it can be copied and pickled."""

    def __init__(self, name: str, recorder: _Recorder) -> None:
        self.name, self.recorder = name, recorder

    def __call__(self, layer: nn.Module, inputs: Any, out: Tensor) -> None:
        self.recorder.put(self.name, out)


class _Fuse:
    """A forward hook that gives (1 + M) F in place of F, and records the mask."""

    def __init__(self, name: str, recorder: _Recorder, branch: MaskBranch) -> None:
        self.name, self.recorder, self.branch = name, recorder, branch

    def __call__(self, layer: nn.Module, inputs: Any, out: Tensor) -> Tensor:
        mask = self.branch(inputs[0], out)
        self.recorder.put(self.name, mask)
        return self.branch.fuse(out, mask)


class _Bytes(nn.Module):
    """Floats pass; bytes become floats in [0, 1]."""

    def forward(self, images: Tensor) -> Tensor:
        return unit_range(images)


def _key(layer: str) -> str:
    return layer.replace(".", "-")  # a name in a ModuleDict has no dots, and one in a network no dashes


# The three forms


class Attached(nn.Module):
    """What the three forms share: a copy of the caller's network, its layers, frozen or not.

    Attributes:
        backbone: the copy.
        levels: names of the layers, those of the maps.
        frozen: whether the backbone stays as it is.

    Example:
        >>> issubclass(AttachedAttention, Attached) and issubclass(AttachedReading, Attached)
        True
    """

    backbone: nn.Module
    levels: tuple[str, ...]
    frozen: bool = False

    def _adopt(
        self, backbone: nn.Module, found: Layout, frozen: bool, mean: Numbers | None, std: Numbers | None,
        new: str | None = None,
    ) -> None:  # fmt: skip
        if (mean is None) != (std is None):
            raise ValueError(
                "mean and std go together: give both, or none where the backbone takes images as they come"
            )
        self.backbone = backbone
        self.levels = tuple(found.features)
        self.normalize: nn.Module = _Bytes() if mean is None or std is None else Normalize(mean, std)
        self._recorder = _Recorder()
        self._learned = [name for name, p in backbone.named_parameters() if p.requires_grad]
        self._new = [name for name in self._learned if new and name.startswith(f"{new}.")]
        self.freeze(frozen)

    def _run(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The output of the backbone and what was recorded on the way."""
        pixels = self.normalize(images)
        if images.dtype == torch.uint8:
            pixels = pixels.to(next(self.backbone.parameters(), pixels).dtype)
        found: dict[str, Tensor] = {}
        self._recorder.found = found
        try:
            output = self.backbone(pixels)
        finally:
            self._recorder.found = None
        return _checked(output), found

    def freeze(self, frozen: bool = True) -> Attached:
        """Keep the backbone as it is, batch norm's statistics included, or let it learn again.

        Frozen, it computes as in evaluation mode whatever ``train()`` says, and no parameter of it gets a gradient;
        gradients still pass through it to the images. Released, what learned before it was attached learns. A new
        classifier in it (``mask(..., classes=C)``) always learns.
        """
        self.frozen = frozen
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(name in (self._new if frozen else self._learned))
        return self.train(self.training)

    def train(self, mode: bool = True) -> Attached:
        """As every module, but that a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self


class AttachedAttention(Attached, Attentive):
    """A network that is classified from the attention-weighted descriptors of its layers; ``attach`` makes it.

    It is used like ``payattn.models.VGGAttention``: ``query(images)``, ``attend(images)``, ``features(images)`` and
    ``net(images, query=...)`` are there too.

    Example:
        >>> from payattn.models import create
        >>> net = attach(create("wrn-10-1", width=0.25), ["group1"], classes=3, size=16).eval()
        >>> net.query(torch.rand(2, 3, 16, 16)).shape, net.attend(torch.rand(2, 3, 16, 16))["group1"].descriptor.shape
        (torch.Size([2, 16]), torch.Size([2, 8]))
    """

    def __init__(
        self, backbone: nn.Module, found: Layout, classes: int, *, score: str, norm: str, head: str, combine: str,
        dropout: float, query: str | None, frozen: bool, mean: Numbers | None, std: Numbers | None,
    ) -> None:  # fmt: skip
        super().__init__(classes, width=1.0, dropout=dropout, mean=None, std=None)
        global_feature = found.features[query] if query else found.output
        local = {name: x for name, x in found.features.items() if name != query}
        self._adopt(backbone, found._replace(features=local), frozen, mean, std)
        self.query_layer = query
        self.query_length = global_feature.shape[1]
        self.attention = nn.ModuleDict({
            _key(name): SpatialAttention(
                x.shape[1], self.query_length, score=score, norm=norm, dropout=dropout, init="default"
            )
            for name, x in local.items()
        })  # fmt: skip
        channels = [x.shape[1] for x in local.values()]
        if choose("head", head, HEADS) == "concat":
            self.head: nn.Module = ConcatHead(channels, classes, dropout)
        else:
            self.head = IndepHead(channels, classes, dropout, combine)
        for name in found.features:
            backbone.get_submodule(name).register_forward_hook(_Keep(name, self._recorder))

    def local_features(self, images: Tensor) -> tuple[Maps, Tensor]:
        """Local features l of each layer, (N, M, h, w) by name, and the global feature."""
        output, found = self._run(images)
        x = found[self.query_layer] if self.query_layer else output
        return {name: found[name] for name in self.levels}, x

    def _query(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3)) if x.ndim == 4 else x


class MaskBranch(nn.Module):
    r"""A soft mask beside a block F of a network: ``H = (1 + M) F``, with ``M = SoftMask(e(x))``.

    x is what the block reads. e brings it to the shape of F: a 1x1 convolution where the channels differ, a resize
    where the sides do, and nothing else.

    - ``"residual"``: ``(1 + M) F``, eq. (3) of the paper. With M near one half at the start, H is about ``1.5 F``;
    - ``"gated"``: ``(1 + gamma M) F`` with a learned number gamma that starts at 0: at the start the network decides
      exactly as it did, which is what a trained one wants. Ours. In the very first step only gamma learns;
    - ``"naive"``: ``M F``, eq. (1).

    Args:
        in_channels: of x.
        channels: of F, a multiple of 4.
        depth: poolings of the mask, see ``payattn.residual.SoftMask``.
        fusion: as above.
        activation: see ``SoftMask``.

    Raises:
        ValueError: for an unknown choice, with the nearest valid one, or unfit channels.

    Source: Residual Attention Network, section 3; around a foreign block and gated: ours.

    Example:
        >>> branch = MaskBranch(4, 8, depth=1, fusion="gated")
        >>> F = torch.rand(2, 8, 3, 4)
        >>> mask = branch(torch.rand(2, 4, 6, 8), F)
        >>> mask.shape, torch.equal(branch.fuse(F, mask), F)
        (torch.Size([2, 8, 3, 4]), True)
    """

    def __init__(
        self, in_channels: int, channels: int, depth: int, fusion: str = "residual", activation: str = "mixed"
    ) -> None:
        super().__init__()
        self.fusion = choose("fusion", fusion, FUSIONS)
        same = in_channels == channels
        self.entry = nn.Identity() if same else nn.Conv2d(in_channels, channels, kernel_size=1, bias=False)
        self.soft_mask = SoftMask(channels, depth, activation=activation)
        self.gamma = nn.Parameter(torch.zeros(())) if fusion == "gated" else None

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """M, the shape of the block's output (N, C, h, w), for its input x (N, C', h', w')."""
        x = self.entry(x)
        if x.shape[2:] != features.shape[2:]:
            x = resize(x, features.shape[2:])
        mask: Tensor = self.soft_mask(x)
        return mask

    def fuse(self, features: Tensor, mask: Tensor) -> Tensor:
        """H, shape and dtype of F."""
        if self.fusion == "naive":
            return naive_fusion(features, mask)
        return residual_fusion(features, mask if self.gamma is None else self.gamma * mask)

    def extra_repr(self) -> str:
        return f"fusion={self.fusion!r}"


class AttachedMask(Attached):
    """A network with a soft mask around some of its blocks; ``attach.mask`` makes it.

    Example:
        >>> from payattn.models import create
        >>> net = mask(create("wrn-10-1", width=0.25), ["group1"], size=16).eval()
        >>> logits, maps = net(torch.rand(2, 3, 16, 16), return_maps=True)
        >>> logits.shape, maps["group1"].shape
        (torch.Size([2, 10]), torch.Size([2, 8, 8]))
    """

    def __init__(
        self, backbone: nn.Module, found: Layout, *, fusion: str, depth: int | None, activation: str, frozen: bool,
        mean: Numbers | None, std: Numbers | None, new: str | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self._adopt(backbone, found, frozen, mean, std, new)
        self.branches = nn.ModuleDict()
        for name, features in found.features.items():
            x = found.inputs[name]
            if not isinstance(x, Tensor) or x.ndim != 4:
                got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
                raise ValueError(f"block {name!r} reads {got}; a mask reads what its block reads, (N, C, H, W)")
            sides = features.shape[2:]
            poolings = max(1, int(math.log2(max(1, min(sides)) / LOWEST))) if depth is None else depth
            branch = MaskBranch(x.shape[1], features.shape[1], poolings, fusion, activation)
            self.branches[_key(name)] = branch.to(features.device, features.dtype)
            backbone.get_submodule(name).register_forward_hook(_Fuse(name, self._recorder, branch))

    def masks(self, images: Tensor) -> Maps:
        """The full mask M of each block, by name: (N, C, h, w), one value per channel and position."""
        return self._run(images)[1]

    def forward(self, images: Tensor, return_maps: bool = False) -> Tensor | tuple[Tensor, Maps]:
        """Logits (N, C); with ``return_maps`` also the mean of each mask over its channels, (N, h, w) by name."""
        logits, found = self._run(images)
        return (logits, {name: channel_mean(found[name]) for name in self.levels}) if return_maps else logits


class AttachedReading(Attached):
    """A network whose layers are read; ``attach.read`` makes it.

    Example:
        >>> from payattn.models import create
        >>> net = read(create("wrn-10-1", width=0.25), ["group1"], size=16).eval()
        >>> net.activations(torch.rand(2, 3, 16, 16))["group1"].shape
        torch.Size([2, 8, 8, 8])
    """

    def __init__(
        self, backbone: nn.Module, found: Layout, *, p: float, reduce: str, frozen: bool, mean: Numbers | None,
        std: Numbers | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.p, self.reduce = p, choose("reduce", reduce, REDUCTIONS)
        self._adopt(backbone, found, frozen, mean, std)
        for name in self.levels:
            backbone.get_submodule(name).register_forward_hook(_Keep(name, self._recorder))

    def activations(self, images: Tensor) -> Maps:
        """The features A of each layer, (N, C, h, w) by name, for a loss of your own."""
        return self._run(images)[1]

    def forward(self, images: Tensor, return_maps: bool = False) -> Tensor | tuple[Tensor, Maps]:
        """The backbone's output; with ``return_maps`` also ``F_sum^p(A)`` of each layer, (N, h, w) by name."""
        output, found = self._run(images)
        if not return_maps:
            return output
        return output, {name: activation_map(found[name], self.p, self.reduce) for name in self.levels}


# How they are made


def _copied(model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"the network must be a torch.nn.Module, got {type(model).__name__}")
    return copy.deepcopy(model)


def _like(new: nn.Module, backbone: nn.Module) -> None:
    """Device and precision of the backbone."""
    some = next((p for p in backbone.parameters() if p.is_floating_point()), None)
    if some is not None:
        new.to(some.device, some.dtype)


def attach(
    model: nn.Module, layers: Sequence[str], classes: int | None = None, *, score: str = "additive",
    norm: str = "softmax", head: str = "concat", combine: str = "product", dropout: float = 0.0,
    query: str | None = None, frozen: bool = False, mean: Numbers | None = None, std: Numbers | None = None,
    size: Size = 224,
) -> AttachedAttention:  # fmt: skip
    r"""Give a CNN trainable attention (Learn To Pay Attention) at some of its layers.

    For each named layer s with features l^s and the query g, the backbone's global feature,

        a^s = softmax(C(l^s, g)),   g_a^s = sum_i a_i^s l_i^s,   logits = W [g_a^1, ..., g_a^S] + b

    g is what the backbone's own classifier reads; that classifier is found (see ``layout``) and left away in the copy.
    Where l and g differ in length, g is projected. Only the descriptors reach the new classifier.

    With ``score="pc"`` and a softmax, or ``"uniform"``, the query has no influence (see
    ``payattn.attention.parametrised_scores``), so nothing behind the last named layer learns. What lies behind
    ``query=`` never learns.

    Args:
        model: any CNN that maps images to logits, or to features; it is copied, and left as found.
        layers: names as in ``model.named_modules()``, such as ``["layer2", "layer3"]``.
        classes: C; None takes as many as the backbone has.
        score: one of ``payattn.attention.SCORES``: ``"dp"`` and ``"pc"`` are the paper's. The default, ours, lets the
            query decide as dp does, and its softmax does not saturate before it has learned.
        norm: ``"softmax"``, or one of ``payattn.attention.NORMS``.
        head: ``"concat"``, or ``"indep"`` with ``combine``, see ``payattn.attention.IndepHead``.
        dropout: rate in the projection and the head; 0.5 in the authors' code.
        query: a layer to take g from, averaged over its positions, in place of the global feature.
        frozen: keep the backbone as it is, batch norm's statistics too; ``net.freeze(False)`` lets it learn.
        mean, std: of a first layer that normalises RGB in [0, 1] or bytes; None gives images to the backbone as they
            come.
        size: of the image to try the network with: a side, (H, W), or (C, H, W).

    Returns:
        An ``AttachedAttention``, in training mode. Its new parts are drawn from torch's global generator.

    Raises:
        TypeError, ValueError: see ``layout``; an unknown choice, with the nearest valid one; a query that is also one
            of the layers.

    Source: Learn To Pay Attention, section 3; on foreign networks: ours.

    Example:
        >>> from payattn.models import create
        >>> cnn = create("wrn-10-1", width=0.25)                    # any network; it is not changed
        >>> net = attach(cnn, ["group0", "group1"], classes=37, size=16).eval()
        >>> logits, maps = net(torch.rand(2, 3, 16, 12), return_maps=True)
        >>> logits.shape, {name: tuple(a.shape) for name, a in maps.items()}
        (torch.Size([2, 37]), {'group0': (2, 16, 12), 'group1': (2, 8, 6)})
    """
    for what, value, valid in (("score", score, SCORES), ("head", head, HEADS), ("combine", combine, COMBINATIONS)):
        choose(what, value, valid)  # combine also where concat has no use for it: a slip must not pass in silence
    backbone = _copied(model)
    levels = [layers] if isinstance(layers, str) else list(layers)
    if query in levels:
        raise ValueError(f"layer {query!r} cannot be both a query and a level; choose another query or leave it out")
    found = layout(backbone, layers if query is None or isinstance(layers, str) else [*levels, query], size)
    classes = found.output.shape[1] if classes is None else classes
    if found.classifier is not None:
        _replace(backbone, found.classifier, nn.Identity())
        found = layout(backbone, tuple(found.features), size)
    net = AttachedAttention(
        backbone, found, classes, score=score, norm=norm, head=head, combine=combine, dropout=dropout, query=query,
        frozen=frozen, mean=mean, std=std,
    )  # fmt: skip
    for new in (net.attention, net.head):
        _like(new, backbone)
    return net


def mask(
    model: nn.Module, layers: Sequence[str], classes: int | None = None, *, fusion: str = "residual",
    depth: int | None = None, activation: str = "mixed", frozen: bool = False, mean: Numbers | None = None,
    std: Numbers | None = None, size: Size = 224,
) -> AttachedMask:  # fmt: skip
    r"""Put a soft mask (Residual Attention Network) around some blocks of a CNN: F becomes ``(1 + M) F``.

    Args:
        model, layers, frozen, mean, std, size: see ``attach``. A layer is a block here: what it reads, its mask reads.
        classes: C; None keeps the backbone's classifier, a number puts a new one in its place, which learns also where
            the backbone is frozen.
        fusion, activation: see ``MaskBranch``; for a trained backbone take ``fusion="gated"``, with which the network
            decides at the start as it did.
        depth: poolings of the mask; None brings the lowest scale to a side of 4 to 7, as in the paper: 3 for a side of
            32 or 56, 2 for 16 or 28, 1 for 14 and below.

    Returns:
        An ``AttachedMask``, in training mode; its maps are the means of the masks over their channels.

    Raises:
        TypeError, ValueError: see ``layout`` and ``MaskBranch``; a block that does not read (N, C, H, W); ``classes``
            for a network without a classifier.

    Source: Residual Attention Network, section 3, eqs. (1) and (3); on foreign networks: ours.

    Example:
        >>> from payattn.models import create
        >>> cnn, images = create("wrn-10-1", width=0.25).eval(), torch.rand(2, 3, 16, 16)
        >>> net = mask(cnn, ["group1"], fusion="gated", size=16).eval()
        >>> torch.equal(net(images), cnn(images))                   # the start: nothing has changed
        True
    """
    backbone = _copied(model)
    found = layout(backbone, layers, size)
    new = None if classes is None else _new_classifier(backbone, found, classes)
    return AttachedMask(
        backbone, found, fusion=fusion, depth=depth, activation=activation, frozen=frozen, mean=mean, std=std, new=new
    )


def _new_classifier(backbone: nn.Module, found: Layout, classes: int) -> str:
    """Put a classifier of another number of classes in the place of the old one; its name."""
    if classes < 2:
        raise ValueError(f"classes must be at least 2, got {classes}")
    if found.classifier is None:
        raise ValueError(
            "this network has no classifier of its own to replace; leave classes out, or add a linear layer"
        )
    old = backbone.get_submodule(found.classifier)
    new: nn.Module
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, classes, bias=old.bias is not None)
    else:
        assert isinstance(old, nn.Conv2d)
        new = nn.Conv2d(old.in_channels, classes, old.kernel_size, old.stride, old.padding, bias=old.bias is not None)  # type: ignore[arg-type]
    _like(new, backbone)
    _replace(backbone, found.classifier, new)
    return found.classifier


def read(
    model: nn.Module, layers: Sequence[str], *, p: float = 2.0, reduce: str = "sum", frozen: bool = False,
    mean: Numbers | None = None, std: Numbers | None = None, size: Size = 224,
) -> AttachedReading:  # fmt: skip
    r"""Read where layers of a CNN are active (Attention Transfer): ``F_sum^p(A)_i = sum_c |A_ci|^p``; nothing is added.

    The maps keep their gradient, so that a loss on them teaches. ``payattn.transfer.Distill`` does the same from names
    alone; this form is for a loss of your own, for figures, and for export.

    Args:
        model, layers, frozen, mean, std, size: see ``attach``.
        p, reduce: see ``payattn.transfer.activation_map``.

    Returns:
        An ``AttachedReading``, in training mode.

    Raises:
        TypeError, ValueError: see ``layout`` and ``activation_map``.

    Source: Attention Transfer, section 3.1.

    Example:
        >>> from payattn.models import create
        >>> net = read(create("wrn-10-1", width=0.25), ["group0", "group2"], size=16).eval()
        >>> logits, maps = net(torch.rand(2, 3, 16, 16), return_maps=True)
        >>> {name: tuple(a.shape) for name, a in maps.items()}
        {'group0': (2, 16, 16), 'group2': (2, 4, 4)}
    """
    backbone = _copied(model)
    return AttachedReading(
        backbone, layout(backbone, layers, size), p=p, reduce=reduce, frozen=frozen, mean=mean, std=std
    )


class _CallableModule(types.ModuleType):
    def __call__(self, *args: Any, **options: Any) -> AttachedAttention:
        return attach(*args, **options)


sys.modules[__name__].__class__ = _CallableModule
