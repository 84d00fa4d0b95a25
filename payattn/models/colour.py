"""The first layer of every network: pixels in, numbers of about unit size out.

Images are RGB everywhere outside the network. What the papers call preprocessing happens in this layer, so that an
attack's epsilon, a mask and a picture are always about pixels in [0, 1], and gradients reach them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from payattn.attention import choose, contract

Numbers = float | Sequence[float]

COLOURS = ("rgb", "yuv-lcn")
TO_YUV = ((0.299, 0.587, 0.114), (-0.14713, -0.28886, 0.436), (0.615, -0.51499, -0.10001))
TAPS = tuple(math.exp(-0.5 * (i / 1.75) ** 2) for i in range(-3, 4))
FLOOR = 1e-4  # on the local spread, in levels of 0..255: where nothing varies, nothing is amplified


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


def _check_rgb(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be RGB, (N, 3, H, W), got {tuple(images.shape)}")


class Normalize(nn.Module):
    """First layer for RGB: to [0, 1] if uint8, then ``(x - mean) / std`` per channel.

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

    def __init__(self, mean: Numbers = 0.5, std: Numbers = 0.25) -> None:
        super().__init__()
        for name, value in (("mean", mean), ("std", std)):
            values = [float(value)] * 3 if isinstance(value, (int, float)) else [float(v) for v in value]
            if len(values) != 3:
                raise ValueError(f"{name} must be one number or three, one per channel, got {value!r}")
            if name == "std" and min(values) <= 0:
                raise ValueError(f"std must be positive, got {std!r}")
            self.register_buffer(name, torch.tensor(values)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        _check_rgb(images)
        pixels = unit_range(images).to(torch.promote_types(self.mean.dtype, torch.float32))
        return ((pixels - self.mean) / self.std).to(self.mean.dtype)  # so that model.half() works


def to_yuv(images: Tensor) -> Tensor:
    r"""Luminance Y and the colour differences U and V, on the scale 0..255.

    ``Y = .299 R + .587 G + .114 B; U = -.14713 R - .28886 G + .436 B; V = .615 R - .51499 G - .10001 B``
    (Learn To Pay Attention, the authors' code, which takes RGB in 0..255).

    Args:
        images: RGB, (N, 3, H, W), uint8 or float in [0, 1].

    Returns:
        (N, 3, H, W), float64 where the device has it: Y in 0..255, U and V around zero.

    Raises:
        ValueError: if the images are not RGB.

    Example:
        >>> to_yuv(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)).flatten().round(decimals=2).abs().tolist()
        [255.0, 0.0, 0.0]
    """
    _check_rgb(images)
    exact = torch.float32 if images.device.type == "mps" else torch.float64  # mps has no float64
    pixels = unit_range(images).to(exact) * 255
    return contract("ck,nkhw->nchw", torch.tensor(TO_YUV, dtype=exact, device=images.device), pixels)


def _blur(x: Tensor) -> Tensor:
    """The seven Gaussian taps along both axes, zeros outside the image."""
    weights = [tap / sum(TAPS) for tap in TAPS]
    for dim, padding in ((-1, (3, 3, 0, 0)), (-2, (0, 0, 3, 3))):
        padded, n = F.pad(x, padding), x.shape[dim]
        x = sum((w * padded.narrow(dim, k, n) for k, w in enumerate(weights)), torch.zeros_like(x))
    return x


def local_contrast(x: Tensor) -> Tensor:
    r"""Local contrast normalisation: each pixel relative to the mean and spread around it.

    With a Gaussian ``mu`` of 7 x 7 taps (``w_i ∝ exp(-(i / 1.75)^2 / 2)``, zeros outside the image) and
    ``kappa = mu(1)``:  ``y = x - mu(x) / kappa``,  ``sigma = sqrt(mu(y^2)) / kappa``,  output ``y / max(sigma, 1e-4)``.
    At the border ``kappa`` is not under the root, as in Torch7, whose layer the authors use.

    Args:
        x: (..., H, W) on the scale 0..255, float64: in float32 rounding alone exceeds the floor of 1e-4 where the
            image is flat.

    Returns:
        Same shape.

    Example:
        >>> local_contrast(torch.full((1, 4, 4), 200.0, dtype=torch.float64)).abs().max() < 1e-6
        tensor(True)
    """
    kappa = _blur(x.new_ones(x.shape[-2:]))
    y = x - _blur(x) / kappa
    spread = (_blur(y.square()) / kappa.square()).clamp_min(FLOOR**2).sqrt()  # the root last: its slope stays finite
    return y / spread


class YUVLocalContrast(nn.Module):
    """First layer of the authors' VGG networks: YUV, Y locally normalised, U and V standardised (their trainer).

    ``U`` and ``V`` become ``(U - mean) / std`` with the constants of the training set, for every data set; ``Y``
    passes ``local_contrast``, per image. Differentiable: an attack's epsilon stays in pixels.

    Args:
        u_mean, u_std, v_mean, v_std: of U and V over all pixels of the training set, on the scale 0..255. The
            defaults are round numbers for small natural images.

    Raises:
        ValueError: if a spread is not positive.

    Example:
        >>> images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
        >>> out = YUVLocalContrast.fit(images)(images)
        >>> out.shape, out[:, 1:].mean().abs() < 1e-4
        (torch.Size([8, 3, 16, 16]), tensor(True))
    """

    mean: Tensor
    std: Tensor

    def __init__(self, u_mean: float = 0.0, u_std: float = 16.0, v_mean: float = 0.0, v_std: float = 16.0) -> None:
        super().__init__()
        if min(u_std, v_std) <= 0:
            raise ValueError(f"the standard deviations of U and V must be positive, got {u_std} and {v_std}")
        self.register_buffer("mean", torch.tensor([u_mean, v_mean])[:, None, None])
        self.register_buffer("std", torch.tensor([u_std, v_std])[:, None, None])

    @classmethod
    def fit(cls, images: Tensor) -> YUVLocalContrast:
        """The layer for a training set: images (N, 3, H, W), uint8."""
        known = colour_statistics(images, "yuv-lcn")
        (u_mean, v_mean), (u_std, v_std) = known["mean"], known["std"]
        return cls(u_mean, u_std, v_mean, v_std)

    def forward(self, images: Tensor) -> Tensor:
        yuv = to_yuv(images)
        chroma = (yuv[:, 1:] - self.mean) / self.std
        return torch.cat([local_contrast(yuv[:, :1]), chroma], dim=1).to(self.mean.dtype)


def colour_statistics(images: Tensor, colour: str = "rgb") -> dict[str, tuple[float, ...]]:
    """``mean`` and ``std`` over all pixels of a training set, as ``create(..., colour=colour)`` takes them.

    Args:
        images: (N, 3, H, W), uint8.
        colour: ``"rgb"``: of R, G and B in [0, 1]; ``"yuv-lcn"``: of U and V on the scale 0..255.

    Returns:
        ``{"mean": ..., "std": ...}``, three or two numbers each. A spread is at least one level of 255, so that a
        set of one colour can be standardised too. The sums are exact: the same on every device.

    Raises:
        ValueError: for an unknown colour, or images that are not uint8 RGB.

    Example:
        >>> grey = torch.full((1, 3, 2, 2), 51, dtype=torch.uint8)
        >>> colour_statistics(grey)["mean"]
        (0.2, 0.2, 0.2)
    """
    choose("colour", colour, COLOURS)
    _check_rgb(images)
    if images.dtype != torch.uint8 or not images.numel():
        raise ValueError(f"images must be uint8 and not empty, got {images.dtype}, {tuple(images.shape)}")
    if colour == "rgb":
        levels = torch.arange(256, dtype=torch.float64) / 255
        counts = [torch.bincount(images[:, k].flatten(), minlength=256).cpu().double() for k in range(3)]
        shares = [count / count.sum() for count in counts]
        mean = [float(share @ levels) for share in shares]
        std = [float((share @ (levels - m).square()).sqrt()) for share, m in zip(shares, mean, strict=True)]
        return {"mean": tuple(mean), "std": tuple(max(s, 1 / 255) for s in std)}
    total, products = torch.zeros(3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)
    for part in images.split(max(1, 2**22 // images[0, 0].numel())):  # whole numbers far below 2^53: no rounding
        pixels = part.cpu().transpose(0, 1).flatten(1).double()
        total, products = total + pixels.sum(dim=1), products + pixels @ pixels.T
    count = images.numel() / 3
    centre = total / count
    covariance = products / count - centre.outer(centre)
    of_chroma = torch.tensor(TO_YUV[1:], dtype=torch.float64)
    variance = (of_chroma @ covariance @ of_chroma.T).diagonal()
    return {
        "mean": tuple((of_chroma @ centre).tolist()),
        "std": tuple(max(math.sqrt(max(v, 0.0)), 1.0) for v in variance.tolist()),
    }


def first_layer(colour: str = "rgb", mean: Numbers | None = None, std: Numbers | None = None) -> nn.Module:
    """The first layer of a network: ``Normalize`` for ``"rgb"``, ``YUVLocalContrast`` for ``"yuv-lcn"``.

    Args:
        colour: one of ``COLOURS``.
        mean, std: one number, or one per channel: R, G, B in [0, 1] (default 0.5 and 0.25), or U, V on the scale
            0..255 (default 0 and 16). ``colour_statistics`` measures them.

    Raises:
        ValueError: for an unknown colour or another number of channels.

    Example:
        >>> type(first_layer("yuv-lcn", mean=(-2.0, 4.0), std=(11.0, 12.0))).__name__
        'YUVLocalContrast'
    """
    if choose("colour", colour, COLOURS) == "rgb":
        return Normalize(0.5 if mean is None else mean, 0.25 if std is None else std)
    chroma = []
    for name, value, usual in (("mean", mean, 0.0), ("std", std, 16.0)):
        value = usual if value is None else value
        pair = [float(value)] * 2 if isinstance(value, (int, float)) else [float(v) for v in value]
        if len(pair) != 2:
            raise ValueError(
                f"with colour='yuv-lcn' {name} must be one number or two, for U and V on the scale 0..255, got "
                f"{value!r}; colour_statistics(images, 'yuv-lcn') measures them"
            )
        chroma.append(cast("tuple[float, float]", tuple(pair)))
    (u_mean, v_mean), (u_std, v_std) = chroma
    return YUVLocalContrast(u_mean, u_std, v_mean, v_std)
