"""Augmentation of a whole batch at once, on the device where the batch lies.

A set of files is augmented image by image as its files are read, by the same functions: :func:`crops` says which part
of an image is taken, :func:`jittered` changes its colours.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

FLIPS = ("none", "random", "half")
BORDERS = ("reflect", "black")
RATIOS = (3 / 4, 4 / 3)
"""Width over height of a random crop, least and most."""
TRIES = 10
SPREADS = (0.2175, 0.0188, 0.0045)
"""Standard deviations of the colours of ImageNet along their principal components, pixels in [0, 1]."""
COMPONENTS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
"""The principal components, one per column; the rows are R, G and B."""


@dataclass(frozen=True)
class Augment:
    r"""Flip, crop and cut out, drawn anew for every image of a batch.

    With the flip f in {0, 1}, shifts dy, dx uniform in -pad .. pad, and rho the reflection at the border,

    .. math:: out[n, c, y, x] = in[n, c, rho(y + dy_n), rho(x' + dx_n)], \quad x' = W - 1 - x if f_n else x

    and then one square of ``cutout`` pixels per image, its centre uniform over the image, turns mid-grey, and at last
    the colours of all pixels of an image move together, see :func:`jittered`.

    Args:
        flip: "none"; "random" flips each image with probability 1/2; "half" flips exactly floor(N/2)
            images of every batch, chosen at random (the form of the authors' code of Learn To Pay Attention).
        pad: pixels of padding before a random crop back to H x W; 0 means no crop.
        border: what the padding shows: "reflect", the image mirrored at its border, or "black".
        cutout: side of the square in pixels; 0 means none. It may hang over the border.
        crop: cut out a random part of this share of the area or more, between 3/4 and 4/3 as wide as high, and
            stretch it to H x W, see :func:`crops`; 0 means no such crop, 0.08 is that of ImageNet training. From
            files the part is cut from the image in full resolution.
        pca: strength of the colour jitter, 0.1 in AlexNet; 0 means none.

    Raises:
        ValueError: if ``flip`` or ``border`` is unknown, a number is out of its range or too large for the images, or
            ``pad`` and ``crop`` are both given.

    Source: crops by reflection as in the second authors' trainer of Learn To Pay Attention (4 pixels), on black as
    in the Residual Attention Network (4 pixels, section 4.1: zeros; whether of raw or of normalised pixels is open);
    cutout: DeVries and Taylor 2017, arXiv:1708.04552; scale and aspect-ratio crops: Szegedy et al. 2015,
    arXiv:1409.4842, section 6; colours: Krizhevsky et al. 2012, section 4.1.

    Example:
        >>> import torch
        >>> row = torch.tensor([1, 2, 3], dtype=torch.uint8).expand(2, 3, 1, 3)
        >>> out = Augment(flip="half")(row, torch.Generator().manual_seed(0))
        >>> sorted(out[:, 0, 0].tolist())
        [[1, 2, 3], [3, 2, 1]]
    """

    flip: str = "none"
    pad: int = 0
    cutout: int = 0
    border: str = "reflect"
    crop: float = 0.0
    pca: float = 0.0

    def __post_init__(self) -> None:
        for name, known in (("flip", FLIPS), ("border", BORDERS)):
            value = getattr(self, name)
            if value not in known:
                near = difflib.get_close_matches(str(value), known, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"{name} must be one of {known}, got {value!r}{hint}")
        for name in ("pad", "cutout"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(f"{name} must be a whole number of pixels, 0 or more, got {value!r}")
        for name, what in (("crop", "a share of the area"), ("pca", "a strength, 0.1 in AlexNet,")):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 1:
                raise ValueError(f"{name} must be {what} from 0 to 1, got {value!r}")
        if self.pad and self.crop:
            raise ValueError(f"pad={self.pad} and crop={self.crop} are two ways to crop; choose one")

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augment a batch.

        Args:
            images: (N, C, H, W), uint8 or floating; left as it is.
            generator: random numbers; on the CPU or on the device of the images.

        Returns:
            A new tensor of the same shape, type and device.
        """
        if images.ndim != 4:
            raise ValueError(
                f"images must be (N, C, H, W), got {tuple(images.shape)}; "
                "add a batch axis to one image with images[None]"
            )
        height, width = images.shape[2:]
        if self.pad >= min(height, width):
            raise ValueError(
                f"pad={self.pad} cannot reflect images of {height} x {width}: use at most {min(height, width) - 1}"
            )
        flipped = self._flips(len(images), generator)
        out = self._moved(images, flipped, generator)  # a new tensor in every case
        out = self._cut(out, generator) if self.cutout else out
        return jittered(out, self.shifts(len(out), generator)) if self.pca else out

    def shifts(self, n: int, generator: torch.Generator) -> Tensor:
        """How far the colours of n images move along each principal component, (n, 3), for :func:`jittered`."""
        return self.pca * torch.randn(n, 3, generator=generator, device=generator.device)

    def _flips(self, n: int, generator: torch.Generator) -> Tensor:
        """Which images to flip, bool (N,), on the generator's device."""
        if self.flip == "random":
            return torch.rand(n, generator=generator, device=generator.device) < 0.5
        if self.flip == "half":
            return torch.randperm(n, generator=generator, device=generator.device) < n // 2
        return torch.zeros(n, dtype=torch.bool, device=generator.device)

    def _moved(self, images: Tensor, flipped: Tensor, generator: torch.Generator) -> Tensor:
        """Flip and crop by one gather: both only say from which pixel each pixel comes."""
        n, channels, height, width = images.shape
        if self.crop:
            boxes = crops(n, height, width, self.crop, generator).to(images.device)
            return _stretched(images, boxes, flipped.to(images.device))
        if self.flip == "none" and self.pad == 0:
            return images.clone()
        if self.pad == 0:
            return torch.where(flipped.to(images.device)[:, None, None, None], images.flip(3), images)
        shift = torch.randint(-self.pad, self.pad + 1, (2, n, 1), generator=generator, device=generator.device)
        shift, flipped = shift.to(images.device), flipped.to(images.device)
        x = torch.arange(width, device=images.device).expand(n, width)
        x = torch.where(flipped[:, None], width - 1 - x, x) + shift[1]
        y = torch.arange(height, device=images.device) + shift[0]
        outside = ((y < 0) | (y >= height))[:, :, None] | ((x < 0) | (x >= width))[:, None, :]
        x, y = (edge - (edge - line.abs()).abs() for line, edge in ((x, width - 1), (y, height - 1)))
        source = (y[:, :, None] * width + x[:, None, :]).view(n, 1, height * width).expand(n, channels, -1)
        moved = images.reshape(n, channels, height * width).gather(2, source).view_as(images)
        return moved.masked_fill_(outside[:, None], 0) if self.border == "black" else moved

    def _cut(self, images: Tensor, generator: torch.Generator) -> Tensor:
        n, _, height, width = images.shape
        inside = []
        for length in (height, width):
            centre = torch.randint(length, (n, 1), generator=generator, device=generator.device)
            offset = torch.arange(length, device=generator.device) - (centre - self.cutout // 2)
            inside.append((offset >= 0) & (offset < self.cutout))
        square = (inside[0][:, None, :, None] & inside[1][:, None, None, :]).to(images.device)
        return images.masked_fill_(square, 0.5 if images.is_floating_point() else 128)


def crops(n: int, height: int, width: int, least: float, generator: torch.Generator) -> Tensor:
    r"""Random parts of an image, of random size and shape: the scale and aspect-ratio augmentation of Inception.

    With A = H W, s uniform in least .. 1 and log r uniform in log 3/4 .. log 4/3,

    .. math:: w = \lfloor \sqrt{s A r} \rceil, \quad h = \lfloor \sqrt{s A / r} \rceil

    at a place that is uniform over the image. What does not fit into it is drawn anew, ten times at most; then the
    middle of the image is taken, as much as the ratios allow.

    Args:
        n: parts to draw.
        height, width: of the image, in pixels.
        least: smallest share of its area.
        generator: random numbers.

    Returns:
        top, left, height and width in pixels, int64 (n, 4), on the generator's device.

    Source: Szegedy et al. 2015, section 6; the arithmetic of torchvision's RandomResizedCrop.

    Example:
        >>> crops(2, 20, 30, 1.0, torch.Generator().manual_seed(0))          # all of the area cannot be had ...
        tensor([[ 0,  1, 20, 27],
                [ 0,  1, 20, 27]])
    """
    u = torch.rand(n, TRIES, 4, generator=generator, device=generator.device)
    area = height * width * (least + (1 - least) * u[..., 0])
    low, high = math.log(RATIOS[0]), math.log(RATIOS[1])
    ratio = torch.exp(low + (high - low) * u[..., 1])
    w, h = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    top, left = (u[..., 2] * (height - h + 1)).floor(), (u[..., 3] * (width - w + 1)).floor()
    top, left = top.minimum(height - h), left.minimum(width - w)  # a number just below 1 may round up
    first = fits.int().argmax(1)
    drawn = torch.stack([top, left, h, w], 2)[torch.arange(n, device=u.device), first].long()
    return torch.where(fits.any(1)[:, None], drawn, drawn.new_tensor(_middle(height, width)))


def _middle(height: int, width: int) -> tuple[int, int, int, int]:
    """The largest part in the middle whose ratio is allowed."""
    w = min(width, round(height * RATIOS[1]))
    h = min(height, round(width / RATIOS[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def _stretched(images: Tensor, boxes: Tensor, flipped: Tensor) -> Tensor:
    """One part of each image, stretched to the size of the whole (bilinear) and flipped where asked."""
    n, _, height, width = images.shape
    top, left, h, w = (column[:, None].float() for column in boxes.unbind(1))
    y = (torch.arange(height, device=images.device) + 0.5).expand(n, -1) / height * h - 0.5
    x = (torch.arange(width, device=images.device) + 0.5).expand(n, -1) / width * w - 0.5
    x = torch.where(flipped[:, None], x.flip(1), x)
    # no pixel from outside the part
    y = (top + y.clamp(min=0).minimum(h - 1) + 0.5) * 2 / height - 1
    x = (left + x.clamp(min=0).minimum(w - 1) + 0.5) * 2 / width - 1
    places = torch.stack([x[:, None, :].expand(n, height, width), y[:, :, None].expand(n, height, width)], 3)
    wide = images if images.is_floating_point() else images.float()
    out = F.grid_sample(wide, places.to(wide.dtype), "bilinear", "border", align_corners=False)
    return out if images.is_floating_point() else out.round().clamp(0, 255).to(images.dtype)


def jittered(images: Tensor, shifts: Tensor) -> Tensor:
    r"""Move the colours of each image along the principal components of the colours of ImageNet.

    With p_k the components, d_k the standard deviations along them and a the shifts, every pixel becomes

    .. math:: out[n, :, y, x] = in[n, :, y, x] + \sum_k a_{n,k} d_k p_k

    in units of [0, 1], and stays within the range of an image.

    Args:
        images: (N, 3, H, W), uint8 or floating in [0, 1].
        shifts: (N, 3); normal with standard deviation 0.1 in AlexNet.

    Returns:
        A new tensor of the same shape and type.

    Source: Krizhevsky et al. 2012, section 4.1, with the components and spreads that were published with the ResNet
    trainer of Gross and Wilber (fb.resnet.torch) and used since.

    Example:
        >>> grey = torch.full((1, 3, 1, 1), 0.5)
        >>> jittered(grey, torch.tensor([[1.0, 0.0, 0.0]])).flatten()        # 0.5 - 0.2175 * 0.5675, ...
        tensor([0.3766, 0.3737, 0.3731])
    """
    components = shifts.new_tensor(COMPONENTS) * shifts.new_tensor(SPREADS)
    move = (shifts @ components.T)[:, :, None, None].to(images.device)
    if images.is_floating_point():
        return (images + move.to(images.dtype)).clamp(0, 1)
    return (images.float() + 255 * move).round().clamp(0, 255).to(images.dtype)
