r"""Residual Attention Network (Wang et al., CVPR 2017): the attention module.

A module reads a tensor x with two branches (paper, section 3). Here i is a position and c a channel:

    T = T(x)                           trunk: t residual units                        ``AttentionModule.trunk``
    z = z(x),  M = f(z)                soft mask: an hourglass, of the shape of T     ``SoftMask``
    H_ic = (1 + M_ic) T_ic             attention residual learning, eq. (3)           ``residual_fusion``
    H_ic = M_ic T_ic                   naive attention learning, eq. (1)              ``naive_fusion``

and p residual units stand before the branches and p behind their fusion. The functions hold the mathematics; the
modules below hold the parameters and call the functions. ``payattn.models`` builds the networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from payattn.attention import choose, promote

FUSIONS = ("residual", "naive")
ACTIVATIONS = ("mixed", "channel", "spatial")
MASKS = ("hourglass", "local")
CARDINALITY = 32  # groups of the 3x3 convolutions of ResNeXt


# Fusion of the two branches


def _check_same_shape(trunk: Tensor, mask: Tensor) -> None:
    if trunk.shape != mask.shape:
        raise ValueError(
            f"trunk T and mask M must have one shape, got {tuple(trunk.shape)} and {tuple(mask.shape)}; a mask of "
            "another size goes through resize(mask, trunk.shape[2:]) first"
        )


def residual_fusion(trunk: Tensor, mask: Tensor) -> Tensor:
    r"""Attention residual learning, ``H_ic = (1 + M_ic) T_ic`` (paper, eq. 3).

    A mask of zero leaves the trunk as it is, so that stacked modules lose no signal: with M in [0, 1] the sign of T
    stays and ``|T| <= |H| <= 2 |T|``. Backward, with ``g = dL/dH``: ``dL/dT = (1 + M) g``, ``dL/dM = T g``.

    Args:
        trunk: T, any shape, here (N, C, H, W).
        mask: M, the same shape.

    Returns:
        H, shape and dtype of T; computed in at least float32.

    Raises:
        ValueError: if the shapes differ.

    Source: Residual Attention Network, eq. (3).

    Example:
        >>> residual_fusion(torch.tensor([2.0, -4.0]), torch.tensor([0.25, 0.5]))
        tensor([ 2.5000, -6.0000])
    """
    _check_same_shape(trunk, mask)
    return ((1 + promote(mask)) * promote(trunk)).to(trunk.dtype)


def naive_fusion(trunk: Tensor, mask: Tensor) -> Tensor:
    r"""Naive attention learning, ``H_ic = M_ic T_ic`` (paper, eq. 1), the baseline of attention residual learning.

    Every module multiplies the features by numbers below one, and with them the gradient of the trunk (eq. 2):
    ``dL/dT = M g``, ``dL/dM = T g``.

    Args:
        trunk: T, any shape, here (N, C, H, W).
        mask: M, the same shape.

    Returns:
        H, shape and dtype of T; computed in at least float32.

    Raises:
        ValueError: if the shapes differ.

    Source: Residual Attention Network, eqs. (1) and (2).

    Example:
        >>> naive_fusion(torch.tensor([2.0, -4.0]), torch.tensor([0.25, 0.5]))
        tensor([ 0.5000, -2.0000])
    """
    _check_same_shape(trunk, mask)
    return (promote(mask) * promote(trunk)).to(trunk.dtype)


# Activations of the mask


def _check_logits(logits: Tensor) -> Tensor:
    if logits.ndim != 4:
        raise ValueError(f"mask logits z must be (N, C, H, W), got {tuple(logits.shape)}")
    return promote(logits)


def mixed_activation(logits: Tensor) -> Tensor:
    r"""Mixed attention, ``f1(z_ic) = 1 / (1 + exp(-z_ic))``: a sigmoid for each channel and position (paper, eq. 4).

    Args:
        logits: z, shape (N, C, H, W).

    Returns:
        Mask, the same shape, in [0, 1], at least float32.

    Raises:
        ValueError: if ``logits`` does not have four dimensions.

    Source: Residual Attention Network, eq. (4). The default: it has the lowest published error.

    Example:
        >>> mixed_activation(torch.tensor([0.0, 3.0]).view(1, 2, 1, 1)).flatten().round(decimals=4)
        tensor([0.5000, 0.9526])
    """
    return torch.sigmoid(_check_logits(logits))


def channel_activation(logits: Tensor) -> Tensor:
    r"""Channel attention, ``f2(z_ic) = z_ic / |z_i|``: unit length at each position (paper, eq. 5).

    What is left is the weight of the channels, not that of the position. There is no sigmoid, so the mask lies in
    [-1, 1] and ``1 + M`` in [0, 2]. The paper is silent on ``z_i = 0``; we divide by ``max(|z_i|, 1e-12)``.

    Args:
        logits: z, shape (N, C, H, W); ``z_i`` is the vector of the C channels at position i.

    Returns:
        Mask, the same shape, at least float32.

    Raises:
        ValueError: if ``logits`` does not have four dimensions.

    Source: Residual Attention Network, eq. (5).

    Example:
        >>> channel_activation(torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)).flatten()
        tensor([0.6000, 0.8000])
    """
    logits = _check_logits(logits)
    return logits / torch.linalg.vector_norm(logits, dim=1, keepdim=True).clamp_min(1e-12)


def spatial_activation(logits: Tensor) -> Tensor:
    r"""Spatial attention, ``f3(z_ic) = 1 / (1 + exp(-(z_ic - mean_c) / std_c))`` (paper, eq. 6).

    ``mean_c`` and ``std_c`` are over the positions of one channel of one image, so that what is left is the weight of
    the positions, not that of the channel. The paper is silent on the form of the spread; we take
    ``std_c = sqrt(population variance + 1e-5)``, and a constant map gives 0.5.

    Args:
        logits: z, shape (N, C, H, W).

    Returns:
        Mask, the same shape, in [0, 1], at least float32.

    Raises:
        ValueError: if ``logits`` does not have four dimensions.

    Source: Residual Attention Network, eq. (6).

    Example:
        >>> spatial_activation(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])).round(decimals=3)
        tensor([[[[0.2070, 0.3900],
                  [0.6100, 0.7930]]]])
    """
    logits = _check_logits(logits)
    variance, mean = torch.var_mean(logits, dim=(2, 3), correction=0, keepdim=True)
    return torch.sigmoid((logits - mean) / torch.sqrt(variance + 1e-5))


_FUSE = {"residual": residual_fusion, "naive": naive_fusion}
_ACTIVATE = {"mixed": mixed_activation, "channel": channel_activation, "spatial": spatial_activation}


# Down and up


def max_pool(x: Tensor) -> Tensor:
    """Max-pool 3x3, stride 2, without padding, in ceil mode, as the authors have it: a side n >= 2 becomes floor(n/2).

    A side of one pixel, where their layer fails, stays one pixel, so that a mask of any depth takes any image.

    Args:
        x: (N, C, H, W).

    Returns:
        (N, C, max(1, H // 2), max(1, W // 2)).

    Source: authors' network files.

    Example:
        >>> max_pool(torch.arange(16.0).view(1, 1, 4, 4)).flatten()
        tensor([10., 11., 14., 15.])
    """
    height, width = x.shape[2:]
    return F.max_pool2d(x, kernel_size=(min(3, height), min(3, width)), stride=2, ceil_mode=True)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resize with aligned corners, as the authors have it.

    Output pixel k reads the source at ``k (n_in - 1) / (n_out - 1)``: corners stay corners, one pixel is replicated.

    Args:
        x: (N, C, H, W).
        size: (H', W').

    Returns:
        (N, C, H', W').

    Source: authors' network files and layer code.

    Example:
        >>> resize(torch.tensor([[[[0.0, 3.0]]]]), (1, 4))
        tensor([[[[0., 1., 2., 3.]]]])
    """
    return F.interpolate(x, size=(int(size[0]), int(size[1])), mode="bilinear", align_corners=True)


def channel_mean(mask: Tensor) -> Tensor:
    """One map for all channels of a mask, ``a_i = (1/C) sum_c M_ic``: how open the mask is at each position.

    Args:
        mask: M, shape (N, C, H, W).

    Returns:
        (N, H, W), at least float32. It shows less than the mask: channels that open and close in turn average out.

    Example:
        >>> channel_mean(torch.tensor([[[[0.25, 1.0]], [[0.75, 1.0]]]]))
        tensor([[[0.5000, 1.0000]]])
    """
    return promote(mask).mean(dim=1)


# Residual units


def _convolution(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Without bias; a 3x3 kernel keeps the size at stride 1."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


def _activated(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU."""
    convolution = _convolution(in_channels, out_channels, kernel, stride, groups)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())


class Bottleneck(nn.Module):
    """The pre-activation unit: BN-ReLU-1x1, BN-ReLU-3x3, BN-ReLU-1x1, added to the input.

    Where the shape changes, the shortcut is a strided 1x1 convolution that shares the first BN-ReLU. No biases.

    Args:
        in_channels: channels of the input.
        planes: channels of the 3x3 convolution; the output has ``4 * planes``.
        stride: 1 or 2.
        first: whether this is the first unit of a stage, with a convolution in the shortcut.
        strided: which convolution carries the stride: ``"1x1"``, the first, as in the code of Learn To Pay
            Attention, or ``"3x3"``, as in the files of the Residual Attention Network.

    Raises:
        ValueError: for another ``strided``.

    Source: He et al. 2016; the authors' code of both papers.

    Example:
        >>> Bottleneck(16, 8, stride=2, first=True)(torch.rand(2, 16, 5, 8)).shape
        torch.Size([2, 32, 3, 4])
    """

    def __init__(
        self, in_channels: int, planes: int, stride: int = 1, first: bool = False, strided: str = "1x1"
    ) -> None:
        super().__init__()
        outer, inner = (stride, 1) if choose("strided", strided, ("1x1", "3x3")) == "1x1" else (1, stride)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = _convolution(in_channels, planes, 1, outer)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = _convolution(planes, planes, 3, inner)
        self.bn3 = nn.BatchNorm2d(planes)
        self.conv3 = _convolution(planes, 4 * planes, 1)
        self.shortcut = _convolution(in_channels, 4 * planes, 1, stride) if first else None

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.bn1(x))
        y = self.conv2(torch.relu(self.bn2(self.conv1(a))))
        y = self.conv3(torch.relu(self.bn3(y)))
        return y + (x if self.shortcut is None else self.shortcut(a))


def preactivation_unit(in_channels: int, out_channels: int, stride: int = 1) -> Bottleneck:
    """The unit U of the Residual Attention Network: a ``Bottleneck`` with a quarter of the channels inside.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, a multiple of 4.
        stride: 1 or 2, on the 3x3 convolution.

    Raises:
        ValueError: for channels that are no multiple of 4.

    Source: authors' network files (Attention-56, Attention-92).

    Example:
        >>> sum(p.numel() for p in preactivation_unit(64, 64).parameters())
        4544
    """
    if out_channels < 4 or out_channels % 4:
        near = 4 * max(1, round(out_channels / 4))
        raise ValueError(f"a pre-activation unit needs a multiple of 4 channels, got {out_channels}; nearest: {near}")
    first = in_channels != out_channels or stride != 1
    return Bottleneck(in_channels, out_channels // 4, stride, first, strided="3x3")


class _PostActivation(nn.Module):
    """``ReLU(residual(x) + shortcut(x))``; the shortcut is a 1x1 convolution and BN where the shape changes."""

    residual: nn.Module

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels or stride != 1:
            projection = _convolution(in_channels, out_channels, 1, stride)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.residual(x) + self.shortcut(x))


class ResNeXtUnit(_PostActivation):
    """The unit of AttentionNeXt: 1x1, grouped 3x3, 1x1, each with BN, half of the channels inside, ReLU after the sum.

    The 3x3 convolution has 32 groups and carries the stride. Narrow units, where 32 does not divide the channels
    inside, have as many groups as the largest divisor that both numbers share.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: 1 or 2.

    Source: authors' network files (AttentionNeXt-56, AttentionNeXt-92).

    Example:
        >>> ResNeXtUnit(64, 128, stride=2)(torch.rand(2, 64, 5, 8)).shape
        torch.Size([2, 128, 3, 4])
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, stride)
        inside = max(1, out_channels // 2)
        self.residual = nn.Sequential(
            _activated(in_channels, inside, 1),
            _activated(inside, inside, 3, stride, groups=math.gcd(CARDINALITY, inside)),
            _convolution(inside, out_channels, 1),
            nn.BatchNorm2d(out_channels),
        )


class InceptionUnit(_PostActivation):
    """The unit of AttentionInception, in our reading: the paper names a simplified Inception unit and shows none.

    Three paths, a 1x1 convolution, a 1x1 and one 3x3, a 1x1 and two 3x3, give an eighth of the channels each; a 1x1
    convolution joins them. Every convolution has BN, and ReLU stands after the sum, as in ``ResNeXtUnit``. The
    widths inside are ours: with them the network has about the parameters and multiply-adds that the paper prints.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, 16 or more.
        stride: 1 or 2, on the first 3x3 convolution of a path, or on its 1x1 where it has none.

    Source: ours, after Szegedy et al. 2017 (Inception-ResNet).

    Example:
        >>> InceptionUnit(64, 128, stride=2)(torch.rand(2, 64, 5, 8)).shape
        torch.Size([2, 128, 3, 4])
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, stride)
        eighth, sixteenth = max(1, out_channels // 8), max(1, out_channels // 16)
        self.paths = nn.ModuleList([
            _activated(in_channels, eighth, 1, stride),
            nn.Sequential(_activated(in_channels, eighth, 1), _activated(eighth, eighth, 3, stride)),
            nn.Sequential(
                _activated(in_channels, sixteenth, 1), _activated(sixteenth, eighth, 3, stride),
                _activated(eighth, eighth, 3),
            ),
        ])  # fmt: skip
        self.join = nn.Sequential(_convolution(3 * eighth, out_channels, 1), nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        joined = self.join(torch.cat([path(x) for path in self.paths], dim=1))
        return torch.relu(joined + self.shortcut(x))


UNITS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "preact": preactivation_unit,
    "resnext": ResNeXtUnit,
    "inception": InceptionUnit,
}


def residual_unit(unit: str, in_channels: int, out_channels: int, stride: int = 1) -> nn.Module:
    """A residual unit by name: ``"preact"``, ``"resnext"`` or ``"inception"``.

    Raises:
        ValueError: for another name, with the nearest one.

    Example:
        >>> residual_unit("preact", 8, 16, stride=2)(torch.rand(1, 8, 6, 6)).shape
        torch.Size([1, 16, 3, 3])
    """
    return UNITS[choose("unit", unit, tuple(UNITS))](in_channels, out_channels, stride)


def before_convolution(unit: str, channels: int) -> nn.Module:
    """What stands between a unit and a convolution: BN-ReLU after ``"preact"``, whose sum is raw, else nothing.

    Example:
        >>> before_convolution("resnext", 8)
        Identity()
    """
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU()) if unit == "preact" else nn.Identity()


def _chain(unit: str, channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(residual_unit(unit, channels, channels) for _ in range(count)))


# The soft mask branch


def _check_count(what: str, value: int, least: int, advice: str = "") -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{what} must be a whole number, {least} or more, got {value!r}{advice}")
    return value


class MaskScale(nn.Module):
    """One scale of the hourglass, and within it all the lower ones.

    With ``D`` and ``R`` of r residual units each and ``S`` of one:

        h = D(max_pool(x))
        u = h                            at the lowest scale, depth 1
        u = scale_{depth-1}(h) + S(h)    above it
        scale_depth(x) = resize(R(u), size of x)

    A hourglass of depth d has ``2 d r + d - 1`` units.

    Args:
        channels: C, the same at all scales.
        depth: number of poolings d, 1 or more.
        r: units between two poolings, and as many on the way up.
        unit: see ``residual_unit``.
        double_skip: also add h itself, ``u = scale_{depth-1}(h) + S(h) + h``; see ``SoftMask``.

    Raises:
        ValueError: for a depth or an r below 1.

    Source: Residual Attention Network, section 3.2 and figure 2; authors' network files.

    Example:
        >>> MaskScale(8, depth=3)(torch.rand(2, 8, 9, 7)).shape
        torch.Size([2, 8, 9, 7])
    """

    def __init__(
        self, channels: int, depth: int, r: int = 1, *, unit: str = "preact", double_skip: bool = False
    ) -> None:
        super().__init__()
        _check_count("depth", depth, 1, "; for a mask without pooling take mask='local'")
        self.down = _chain(unit, channels, _check_count("r", r, 1))
        self.inner = MaskScale(channels, depth - 1, r, unit=unit, double_skip=double_skip) if depth > 1 else None
        self.skip = residual_unit(unit, channels, channels) if depth > 1 else None
        self.up = _chain(unit, channels, r)
        self.double_skip = double_skip

    def forward(self, x: Tensor) -> Tensor:
        u = h = self.down(max_pool(x))
        if self.inner is not None and self.skip is not None:
            u = self.inner(h) + self.skip(h)
            if self.double_skip:
                u = u + h
        return resize(self.up(u), x.shape[2:])


class SoftMask(nn.Module):
    """The soft mask branch: ``M = f(z)``, ``z = conv(ReLU(BN(conv(ReLU(BN(u))))))``, both 1x1 from C to C channels.

    ``u`` comes from the hourglass, ``MaskScale``, or for ``mask="local"`` from residual units at full resolution
    without pooling, the control of the paper's table of mask structures.

    The authors' resize layer reads a second tensor for its size alone. Several re-implementations add that tensor:
    h at every scale below the first, the trunk's T at the first. ``double_skip=True`` does as they do.

    Args:
        channels: C.
        depth: poolings of the hourglass; without use for the local mask.
        r: see ``MaskScale``.
        unit: see ``residual_unit``. After ``"preact"`` BN-ReLU stands before the first 1x1 convolution.
        activation: one of ``ACTIVATIONS``.
        mask: one of ``MASKS``.
        local_units: residual units of the local mask. The paper says three and equal multiply-adds; on 32 px one
            unit comes closest to the cost of the hourglass.
        double_skip: the peers' reading, off by default.

    Raises:
        ValueError: for an unknown choice, with the nearest valid one, or a count below 1.

    Source: Residual Attention Network, sections 3.1 and 3.2; authors' network files.

    Example:
        >>> mask = SoftMask(8, depth=2)(torch.rand(2, 8, 9, 7))
        >>> mask.shape, bool((mask >= 0).all() and (mask <= 1).all())
        (torch.Size([2, 8, 9, 7]), True)
    """

    def __init__(
        self, channels: int, depth: int, r: int = 1, *, unit: str = "preact", activation: str = "mixed",
        mask: str = "hourglass", local_units: int = 3, double_skip: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.activation = choose("activation", activation, ACTIVATIONS)
        self.double_skip = double_skip
        self.body: nn.Module
        if choose("mask", mask, MASKS) == "hourglass":
            self.body = MaskScale(channels, depth, r, unit=unit, double_skip=double_skip)
        elif double_skip:
            raise ValueError("double_skip=True needs mask='hourglass': a local mask has no scales to connect")
        else:
            self.body = _chain(unit, channels, _check_count("local_units", local_units, 1))
        self.head = nn.Sequential(
            before_convolution(unit, channels), _convolution(channels, channels, 1),
            nn.BatchNorm2d(channels), nn.ReLU(), _convolution(channels, channels, 1),
        )  # fmt: skip

    def logits(self, x: Tensor, trunk: Tensor | None = None) -> Tensor:
        """z before the activation, (N, C, H, W); ``trunk`` is T, which only ``double_skip`` reads."""
        u = self.body(x)
        if self.double_skip:
            if trunk is None:
                raise ValueError("with double_skip=True the mask also reads the trunk: give trunk=T")
            u = u + trunk
        z: Tensor = self.head(u)
        return z

    def forward(self, x: Tensor, trunk: Tensor | None = None) -> Tensor:
        """M, (N, C, H, W), at least float32."""
        return _ACTIVATE[self.activation](self.logits(x, trunk))

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}, double_skip={self.double_skip}"


# The attention module


class Branches(NamedTuple):
    """What one attention module computes, each (N, C, H, W): trunk T, logits z, mask M, fused H, and the output.

    Example:
        >>> found = AttentionModule(8, depth=1).branches(torch.rand(2, 8, 4, 6))
        >>> torch.equal(found.fused, residual_fusion(found.trunk, found.mask))
        True
    """

    trunk: Tensor
    logits: Tensor
    mask: Tensor
    fused: Tensor
    output: Tensor


class AttentionModule(nn.Module):
    """The attention module: p units, then trunk and soft mask side by side, their fusion, and p units more.

        x = p units on the input;  T = t units on x;  M = SoftMask(x);  H = (1 + M) T;  output = p units on H

    Nothing is detached: the gradient reaches x through both branches.

    Args:
        channels: C, the same everywhere.
        depth: poolings of the mask; 3, 2, 1 in the three stages of the paper's networks.
        p: units before the branches and as many behind the fusion.
        t: units of the trunk.
        r: units between two poolings of the mask; ``{p, t, r} = {1, 2, 1}`` in the paper.
        fusion: ``"residual"``, eq. (3), or ``"naive"``, eq. (1).
        unit: see ``residual_unit``.
        activation, mask, local_units, double_skip: see ``SoftMask``.

    Raises:
        ValueError: for an unknown choice, with the nearest valid one, or a count out of range.

    Source: Residual Attention Network, section 3 and figure 2; authors' network files.

    Example:
        >>> module = AttentionModule(8, depth=2)
        >>> output, mask = module(torch.rand(2, 8, 9, 7), return_mask=True)
        >>> output.shape, mask.shape
        (torch.Size([2, 8, 9, 7]), torch.Size([2, 8, 9, 7]))
    """

    def __init__(
        self, channels: int, depth: int, *, p: int = 1, t: int = 2, r: int = 1, fusion: str = "residual",
        unit: str = "preact", activation: str = "mixed", mask: str = "hourglass", local_units: int = 3,
        double_skip: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.channels = channels
        self.fusion = choose("fusion", fusion, FUSIONS)
        self.before = _chain(unit, channels, _check_count("p", p, 0))
        self.trunk = _chain(unit, channels, _check_count("t", t, 1))
        self.soft_mask = SoftMask(
            channels, depth, r, unit=unit, activation=activation, mask=mask, local_units=local_units,
            double_skip=double_skip,
        )  # fmt: skip
        self.after = _chain(unit, channels, p)

    def branches(self, x: Tensor) -> Branches:
        """Trunk, logits, mask, fused features and output for x (N, C, H, W)."""
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(f"the attention module reads (N, {self.channels}, H, W), got {tuple(x.shape)}")
        x = self.before(x)
        trunk = self.trunk(x)
        logits = self.soft_mask.logits(x, trunk)
        mask = _ACTIVATE[self.soft_mask.activation](logits)
        fused = _FUSE[self.fusion](trunk, mask)
        return Branches(trunk, logits, mask, fused, self.after(fused))

    def forward(self, x: Tensor, return_mask: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """The output (N, C, H, W); with ``return_mask`` also the mask M, the same shape."""
        found = self.branches(x)
        return (found.output, found.mask) if return_mask else found.output

    def extra_repr(self) -> str:
        return f"channels={self.channels}, fusion={self.fusion!r}"


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Batch norm computes as in training, and its running statistics stay as they are."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    counts = [(norm.num_batches_tracked, norm.num_batches_tracked.clone()) for norm in norms
              if norm.num_batches_tracked is not None]  # fmt: skip
    for norm in norms:
        norm.momentum = 0.0  # not track_running_stats: autograd would save fewer tensors than the first time
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for count, before in counts:
            count.copy_(before)


def recomputed(module: AttentionModule, x: Tensor) -> Branches:
    """``module.branches(x)`` that keeps only x for the backward pass and computes everything else once more there.

    Memory against time (activation checkpointing, Chen et al. 2016): the same numbers, the same gradients, one more
    forward pass of the module. The running statistics of batch norm move once, as without it.

    Args:
        module: an attention module.
        x: (N, C, H, W).

    Example:
        >>> module, x = AttentionModule(8, depth=1), torch.rand(2, 8, 4, 6)
        >>> recomputed(module, x).output.shape
        torch.Size([2, 8, 4, 6])
    """
    found: Branches = checkpoint(
        module.branches, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _statistics_kept(module))
    )
    return found
